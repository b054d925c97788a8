//! What the TLBs of all CPUs may hold, and how long.

use std::collections::BTreeMap;

use super::descriptor::{Perms, shift_of};
use crate::{Pfn, Vmid};

/// One stage-2 translation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Translation {
    /// Whose.
    pub vmid: Vmid,
    /// First address that it translates.
    pub ipa: u64,
    /// Bytes that it translates, as a shift: 12, 21 or 30.
    pub shift: u32,
    /// What `ipa` becomes.
    pub pa: u64,
    /// What it permits.
    pub perms: Perms,
    /// Memory attributes of stage 2.
    pub attr: u8,
}

impl Translation {
    /// The frame that `ipa` becomes, if this translates it.
    pub fn frame_of(&self, ipa: u64) -> Option<Pfn> {
        let offset = ipa.checked_sub(self.ipa).filter(|offset| offset >> self.shift == 0)?;
        Some(Pfn((self.pa + offset) >> 12))
    }

    /// One past the last address.
    pub fn end(&self) -> u64 {
        self.ipa + (1 << self.shift)
    }

    /// True where one TLB may not hold both (Arm DDI 0487 D8.16): the manager owed a break before this make.
    pub(super) fn conflicts_with(&self, other: &Self) -> bool {
        self.vmid == other.vmid
            && self.ipa < other.end()
            && other.ipa < self.end()
            && (self.shift != other.shift || self.pa != other.pa || self.attr != other.attr)
    }
}

/// How a translation lives on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Life {
    /// Some walker may still make it.
    pub(super) walkable: bool,
    /// When the last walk may have been.
    pub(super) last_walk: u64,
    /// A stage-2 entry may be in a TLB.
    pub(super) stage2: bool,
    /// When the stage-2 entry died.
    pub(super) stage2_end: u64,
    /// A combined stage-1 and stage-2 entry may be in a TLB.
    pub(super) combined: bool,
}

impl Life {
    const BORN: Self = Self { walkable: true, last_walk: 0, stage2: true, stage2_end: 0, combined: true };

    /// Some CPU may use it.
    pub(super) fn is_alive(&self) -> bool {
        self.stage2 || self.combined
    }
}

/// Scope of a TLBI.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Scope {
    /// Stage-2 entries of one page.
    Ipa(u64),
    /// Stage-2 entries of the pages between two addresses.
    Range(u64, u64),
    /// Stage-1 and combined entries.
    Stage1,
    /// Everything of the VMID.
    All,
}

/// A TLBI that waits for the DSB of its CPU.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct PendingTlbi {
    pub(super) vmid: Vmid,
    pub(super) scope: Scope,
    pub(super) at: u64,
}

impl PendingTlbi {
    /// True if it acts on stage-2 entries for some address in `ipa..end` of `vmid`.
    pub(super) fn covers_stage2(&self, vmid: Vmid, ipa: u64, end: u64) -> bool {
        self.vmid == vmid
            && match self.scope {
                Scope::Ipa(page) => page >= ipa && page < end,
                Scope::Range(first, last) => first < end && ipa < last,
                Scope::Stage1 => false,
                Scope::All => true,
            }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Tlb {
    pub(super) entries: BTreeMap<Translation, Life>,
}

impl Tlb {
    /// Marks `translation` walkable; true if it was not.
    pub(super) fn fill(&mut self, translation: Translation) -> bool {
        let life = self.entries.entry(translation).or_insert(Life { walkable: false, ..Life::BORN });
        let fresh = !life.walkable;
        *life = Life::BORN;
        fresh
    }

    /// Applies TLBIs whose DSB has executed at `now`.
    pub(super) fn complete(&mut self, tlbis: &[PendingTlbi], now: u64) {
        self.entries.retain(|translation, life| {
            if life.walkable {
                return true;
            }
            for tlbi in tlbis.iter().filter(|tlbi| tlbi.vmid == translation.vmid) {
                if tlbi.covers_stage2(translation.vmid, translation.ipa, translation.end())
                    && life.stage2
                    && life.last_walk < tlbi.at
                {
                    life.stage2 = false;
                    life.stage2_end = now;
                }
                // A combined entry can be made anew as long as the stage-2 entry lives.
                life.combined &= match tlbi.scope {
                    Scope::Ipa(_) | Scope::Range(..) => true,
                    Scope::Stage1 => life.stage2 || life.stage2_end >= tlbi.at,
                    Scope::All => life.last_walk >= tlbi.at,
                };
            }
            life.is_alive()
        });
    }

    /// Live translations of `vmid` that overlap `ipa..end`.
    pub(super) fn overlapping(&self, vmid: Vmid, ipa: u64, end: u64) -> Vec<(Translation, Life)> {
        let mut found = Vec::new();
        // Entries start at most 1 GiB before what they overlap.
        let from = key(vmid, (ipa >> shift_of(1)) << shift_of(1));
        for (translation, life) in self.entries.range(from..key(vmid, end)) {
            if translation.end() > ipa {
                found.push((*translation, *life));
            }
        }
        found
    }
}

/// Smallest translation of `vmid` at `ipa`.
pub(super) fn key(vmid: Vmid, ipa: u64) -> Translation {
    let perms = Perms { read: false, write: false, exec: false };
    Translation { vmid, ipa, shift: 0, pa: 0, perms, attr: 0 }
}
