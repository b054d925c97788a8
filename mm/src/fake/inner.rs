//! The machine's state under its lock, and what each call of the manager does to it.

use std::collections::BTreeMap;

use super::CPUS;
use super::descriptor::{Decoded, decode};
use super::event::Log;
use super::memory::{Contents, Frame, PendingClean};
use super::mutation::Mutations;
use super::regime::{Alternative, Links, Regime};
use super::tlb::{PendingTlbi, Scope, Tlb};
use crate::{Pfn, Vmid};

/// What belongs to one CPU.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Cpu {
    /// VMID that TLBIs act on.
    pub(super) selected: Vmid,
    /// VMID that must be selected when EL2 is left.
    pub(super) loaded: Vmid,
    pub(super) tlbis: Vec<PendingTlbi>,
    pub(super) cleans: Vec<PendingClean>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Inner {
    pub(super) base: u64,
    pub(super) frames: Vec<Frame>,
    pub(super) regimes: BTreeMap<Vmid, Regime>,
    pub(super) links: Links,
    pub(super) alternatives: BTreeMap<(u64, usize), Vec<Alternative>>,
    pub(super) tlb: Tlb,
    pub(super) cpus: Vec<Cpu>,
    /// Time, in events.
    pub(super) now: u64,
    pub(super) mutations: Mutations,
    pub(super) log: Log,
    pub(super) attention: u64,
    /// The CPUs have FEAT_TLBIRANGE.
    pub(super) range_tlbi: bool,
    /// The CPUs run with HCR_EL2.FWB.
    pub(super) fwb: bool,
    pub(super) violations: Vec<String>,
    /// States of the frames when they were last looked at.
    pub(super) states: Vec<Option<u64>>,
}

impl Inner {
    pub(super) fn new(base: Pfn, frames: u64) -> Self {
        let cpu = |_| Cpu { selected: Vmid::HOST, loaded: Vmid::HOST, tlbis: Vec::new(), cleans: Vec::new() };
        Self {
            base: base.0,
            frames: (base.0..base.0 + frames).map(Frame::new).collect(),
            regimes: BTreeMap::new(),
            links: Links::new(),
            alternatives: BTreeMap::new(),
            tlb: Tlb::default(),
            cpus: (0..CPUS).map(cpu).collect(),
            now: 1,
            mutations: Mutations::default(),
            log: Log::default(),
            attention: 0,
            range_tlbi: false,
            fwb: false,
            violations: Vec::new(),
            states: (0..frames).map(|_| None).collect(),
        }
    }

    pub(super) fn frame(&self, pfn: u64) -> Option<&Frame> {
        self.frames.get(usize::try_from(pfn.checked_sub(self.base)?).ok()?)
    }

    pub(super) fn frame_mut(&mut self, pfn: u64) -> Option<&mut Frame> {
        self.frames.get_mut(usize::try_from(pfn.checked_sub(self.base)?).ok()?)
    }

    pub(super) fn violation(&mut self, text: String) {
        if !self.violations.contains(&text) {
            self.violations.push(text);
        }
    }

    /// A store to a descriptor, by `cpu`.
    pub(super) fn write(&mut self, cpu: usize, table: u64, index: usize, value: u64) -> u64 {
        let Some(frame) = self.frame_mut(table) else {
            self.violation(format!("write to a table outside RAM at {table:#x}"));
            return 0;
        };
        let old = frame.data.get(index);
        frame.data.set(index, value);
        frame.hosts_own = false;
        if old == value {
            return old;
        }
        let older = Alternative { value: old, cpu, synced: None };
        self.alternatives.entry((table, index)).or_default().push(older);
        self.rewalk(table, index, old & 0b11 == 0b11 || value & 0b11 == 0b11);
        old
    }

    /// Walks anew through one entry; `tables` if an old or new value may be a table descriptor.
    fn rewalk(&mut self, table: u64, index: usize, tables: bool) {
        let Some(positions) = self.links.get(&table).cloned() else { return };
        if tables && positions.iter().any(|position| position.level < 3) {
            self.relink();
        }
        for position in positions {
            let (lo, hi) = position.range(index);
            self.recompute(position.vmid, lo, hi, self.now);
        }
    }

    /// Zeroes a frame by stores; nothing is cleaned.
    pub(super) fn zero(&mut self, cpu: usize, pfn: u64) {
        if self.links.contains_key(&pfn) {
            self.violation(format!("frame {pfn:#x} is zeroed while walkers may use it as a table"));
        }
        self.alternatives.retain(|&(table, _), _| table != pfn);
        match self.frame_mut(pfn) {
            Some(frame) => {
                // The worst of two worlds: the old lines were evicted before, the zeroes are not.
                if !frame.data.is_zero() {
                    frame.memory = frame.data.clone();
                }
                frame.data = Contents::filled(0);
                frame.hosts_own = true;
                frame.icache_stale = true;
                frame.zeroed_by = Some(cpu);
            }
            None => self.violation(format!("frame {pfn:#x} outside RAM is zeroed")),
        }
    }

    /// Starts to clean a frame to the point of coherency; `cpu`'s DSB completes it.
    pub(super) fn clean(&mut self, cpu: usize, pfn: u64) {
        if let Some(contents) = self.frame(pfn).map(|frame| frame.data.clone()) {
            self.cpus[cpu].cleans.push(PendingClean { pfn, contents });
        }
    }

    /// Instructions are fetched anew from what has reached the memory behind the caches.
    pub(super) fn drop_instructions(&mut self) {
        for frame in &mut self.frames {
            frame.icache_stale &= frame.is_dirty();
        }
    }

    pub(super) fn tlbi(&mut self, cpu: usize, scope: Scope) {
        let cpu = &mut self.cpus[cpu];
        cpu.tlbis.push(PendingTlbi { vmid: cpu.selected, scope, at: self.now });
    }

    /// DSB ISHST: the CPU's table writes are visible to walkers.
    pub(super) fn dsb_ishst(&mut self, cpu: usize) {
        for frame in &mut self.frames {
            if frame.zeroed_by == Some(cpu) {
                frame.zeroed_by = None;
            }
        }
        let (now, links) = (self.now, &self.links);
        let mut changed = Vec::new();
        self.alternatives.retain(|&(table, index), olds| {
            let level = links.get(&table).into_iter().flatten().map(|position| position.level).min();
            olds.retain_mut(|old| {
                if old.cpu != cpu || old.synced.is_some() {
                    return true;
                }
                changed.push((table, index));
                old.synced = Some(now);
                level.is_some_and(|level| matches!(decode(old.value, level), Decoded::Table(_)))
            });
            !olds.is_empty()
        });
        for (table, index) in changed {
            self.rewalk(table, index, false);
        }
    }

    /// DSB ISH: as ISHST, and the CPU's TLB and cache maintenance is complete.
    pub(super) fn dsb_ish(&mut self, cpu: usize) {
        self.dsb_ishst(cpu);
        let tlbis = core::mem::take(&mut self.cpus[cpu].tlbis);
        self.drop_cached_tables(&tlbis);
        self.tlb.complete(&tlbis, self.now);
        for clean in core::mem::take(&mut self.cpus[cpu].cleans) {
            if let Some(frame) = self.frame_mut(clean.pfn) {
                frame.memory = clean.contents;
            }
        }
    }
}
