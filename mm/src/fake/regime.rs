//! The tables that walkers may use, and all translations that a walk may give at this moment.

use std::collections::{BTreeMap, BTreeSet};

use super::descriptor::{Decoded, ENTRIES, decode, shift_of};
use super::inner::Inner;
use super::tlb::{PendingTlbi, Translation, key};
use crate::{Pfn, Vmid};

/// Root of a translation regime: `pages` concatenated level-1 tables.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Regime {
    pub(super) root: u64,
    pub(super) pages: u64,
}

/// A value of a descriptor that walkers may still use beside the one in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Alternative {
    pub(super) value: u64,
    /// CPU whose DSB makes the newer value visible.
    pub(super) cpu: usize,
    /// Time of that DSB. A table descriptor lives on in walk caches until a TLBI; a leaf is then in the TLB only.
    pub(super) synced: Option<u64>,
}

/// Place where a table is linked: the addresses from `base` that its entries translate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Position {
    pub(super) vmid: Vmid,
    pub(super) level: u8,
    pub(super) base: u64,
}

impl Position {
    /// Addresses that entry `index` translates.
    pub(super) fn range(&self, index: usize) -> (u64, u64) {
        let shift = shift_of(self.level);
        let ipa = self.base + ((index as u64) << shift);
        (ipa, ipa + (1 << shift))
    }
}

/// Table frame → everywhere that it is linked.
pub(super) type Links = BTreeMap<u64, BTreeSet<Position>>;

impl Inner {
    pub(super) fn attach(&mut self, vmid: Vmid, root: Pfn, pages: u64) {
        if self.tlb.entries.range(key(vmid, 0)..key(Vmid(vmid.0 + 1), 0)).next().is_some() {
            self.violation(format!("{vmid:?} is used anew while translations of its former user live"));
        }
        self.regimes.insert(vmid, Regime { root: root.0, pages });
        self.relink();
        self.recompute(vmid, 0, pages << shift_of(0), self.now);
    }

    pub(super) fn detach(&mut self, vmid: Vmid) {
        if let Some(regime) = self.regimes.remove(&vmid) {
            self.relink();
            self.recompute(vmid, 0, regime.pages << shift_of(0), self.now);
        }
    }

    /// All values that a walker may read from an entry, the newest first.
    pub(super) fn possible(&self, table: u64, index: usize) -> impl Iterator<Item = u64> + '_ {
        let newest = self.frame(table).map(|frame| frame.data.get(index));
        let older = self.alternatives.get(&(table, index)).into_iter().flatten().map(|old| old.value);
        newest.into_iter().chain(older)
    }

    /// Indices of a table between two bounds at which anything may stand.
    fn indices(&self, table: u64, from: usize, to: usize) -> BTreeSet<usize> {
        let Some(frame) = self.frame(table) else { return BTreeSet::new() };
        let written = frame.data.entries().map(|(index, _)| index);
        let older = self.alternatives.range((table, from)..(table, to)).map(|((_, index), _)| *index);
        // A table that was never zeroed is reported elsewhere; one entry of it is enough to do harm.
        let rubbish = (frame.data.fill != 0).then_some(from);
        written.filter(|index| (from..to).contains(index)).chain(older).chain(rubbish).collect()
    }

    /// Rebuilds where each table is linked, by any value that a walker may read.
    pub(super) fn relink(&mut self) {
        let mut links = Links::new();
        for (&vmid, regime) in &self.regimes {
            for page in 0..regime.pages {
                self.link(
                    &mut links,
                    regime.root + page,
                    Position { vmid, level: 1, base: page << shift_of(0) },
                );
            }
        }
        self.links = links;
        let mut bad = Vec::new();
        for &table in self.links.keys() {
            match self.frame(table) {
                None => bad.push(format!("a walker is led to a table outside RAM at {table:#x}")),
                Some(frame) if frame.data.fill != 0 => bad.push(format!("table {table:#x} was never zeroed")),
                Some(frame) if frame.zeroed_by.is_some() => {
                    bad.push(format!("table {table:#x} is linked before its zeroes are visible"));
                }
                Some(_) => (),
            }
        }
        bad.into_iter().for_each(|text| self.violation(text));
    }

    fn link(&self, links: &mut Links, table: u64, position: Position) {
        if !links.entry(table).or_default().insert(position) || position.level == 3 {
            return;
        }
        for index in self.indices(table, 0, ENTRIES) {
            for value in self.possible(table, index) {
                if let Decoded::Table(next) = decode(value, position.level) {
                    let (base, _) = position.range(index);
                    let below = Position { level: position.level + 1, base, ..position };
                    self.link(links, next >> 12, below);
                }
            }
        }
    }

    /// Finds the translations of `vmid` in `lo..hi` that walks may give now, and puts them into the TLBs. Those that
    /// are gone were walkable until `last`.
    pub(super) fn recompute(&mut self, vmid: Vmid, lo: u64, hi: u64, last: u64) {
        let mut found = BTreeSet::new();
        if let Some(regime) = self.regimes.get(&vmid).copied() {
            for page in 0..regime.pages {
                let position = Position { vmid, level: 1, base: page << shift_of(0) };
                self.walk(regime.root + page, position, lo, hi, &mut found);
            }
        }
        for (translation, life) in self.tlb.entries.range_mut(key(vmid, lo)..key(vmid, hi)) {
            if life.walkable && !found.contains(translation) {
                life.walkable = false;
                life.last_walk = last;
            }
        }
        for translation in found {
            if self.tlb.fill(translation) {
                self.made(translation);
            }
        }
    }

    fn walk(&self, table: u64, position: Position, lo: u64, hi: u64, found: &mut BTreeSet<Translation>) {
        let Position { vmid, level, base } = position;
        let shift = shift_of(level);
        let end = base + ((ENTRIES as u64) << shift);
        if hi <= base || lo >= end {
            return;
        }
        let from = (lo.max(base) - base) >> shift;
        let to = (hi.min(end) - base + (1 << shift) - 1) >> shift;
        for index in self.indices(table, from as usize, to as usize) {
            let (ipa, _) = position.range(index);
            for value in self.possible(table, index) {
                match decode(value, level) {
                    Decoded::Invalid => (),
                    Decoded::Table(next) => {
                        let below = Position { vmid, level: level + 1, base: ipa };
                        self.walk(next >> 12, below, lo, hi, found);
                    }
                    Decoded::Leaf { pa, perms, attr } => {
                        found.insert(Translation { vmid, ipa, shift, pa, perms, attr });
                    }
                }
            }
        }
    }

    /// A translation has become walkable: it may not conflict with what lives, and what it lets a guest execute must
    /// be visible to instruction fetch.
    fn made(&mut self, new: Translation) {
        for (other, _) in self.tlb.overlapping(new.vmid, new.ipa, new.end()) {
            if new.conflicts_with(&other) {
                self.violation(format!("break-before-make: {new:x?} is made while {other:x?} lives"));
            }
        }
        if new.vmid != Vmid::HOST && new.perms.exec {
            let pages = 1 << (new.shift - 12);
            let stale = (new.pa >> 12..(new.pa >> 12) + pages)
                .find(|&pfn| self.frame(pfn).is_some_and(|frame| frame.icache_stale));
            if let Some(pfn) = stale {
                self.violation(format!("guest may execute {pfn:#x} with stale instruction caches: {new:x?}"));
            }
        }
    }

    /// Drops what TLBIs whose DSB has executed have removed from walk caches.
    pub(super) fn drop_cached_tables(&mut self, tlbis: &[PendingTlbi]) {
        let mut dropped = Vec::new();
        let links = &self.links;
        self.alternatives.retain(|&(table, index), olds| {
            olds.retain(|old| {
                let Some(synced) = old.synced else { return true };
                let positions = || links.get(&table).into_iter().flatten();
                let gone = positions().all(|position| {
                    let (ipa, end) = position.range(index);
                    tlbis.iter().any(|tlbi| tlbi.at > synced && tlbi.covers_stage2(position.vmid, ipa, end))
                });
                if gone {
                    dropped
                        .extend(positions().map(|position| (position.vmid, position.range(index), synced)));
                }
                !gone
            });
            !olds.is_empty()
        });
        if !dropped.is_empty() {
            self.relink();
        }
        for (vmid, (lo, hi), last) in dropped {
            self.recompute(vmid, lo, hi, last);
        }
    }
}
