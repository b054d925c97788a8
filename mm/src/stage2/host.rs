//! The host's stage 2: an identity map in blocks, split where a page leaves.
//!
//! A block is split under the host's structure lock, by break-before-make. A CPU that faults between break and make
//! returns to its instruction. Once a level-3 table exists its entries belong to the page words: whoever holds a
//! frame's word frozen may change that frame's leaf without a lock. A frame in a state other than `Host` is never
//! under a block, so a later fault on it never allocates.

use crate::addr::{Pa, Pfn};
use crate::machine::{Machine, Vmid};
use crate::pool::Pool;
use crate::stage2::{Attr, Descriptor, ENTRIES, LEAF_LEVEL, ROOT_LEVEL, frames_per_entry, index};
use crate::tlb::Flush;

/// Frames that the map covers.
pub const FRAMES: u64 = 1 << (super::HOST_IPA_BITS - 12);

/// Pages of the pool that only a top-up of the host's own pool may take: it may have to split first.
pub const RESERVE: u64 = 2;

/// What a range of physical memory is for the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The host's RAM.
    Ram,
    /// Devices and whatever else is not RAM.
    Other,
    /// Not the host's: unmapped down to level 3.
    Hidden,
}

/// The identity map.
#[derive(Clone, Copy, Debug)]
pub struct HostMap {
    root: Pa,
}

pub use super::guest::Entry;

impl HostMap {
    /// The map whose two concatenated root tables (8 KiB aligned, zeroed) are at `root`.
    pub const fn new(root: Pa) -> Self {
        Self { root }
    }

    /// Root, for VTTBR_EL2.
    pub const fn root(&self) -> Pa {
        self.root
    }

    /// Walks to the entry that decides about `frame`.
    #[inline]
    pub fn walk<M: Machine>(&self, machine: &M, frame: Pfn) -> Entry {
        let mut table = self.root;
        let mut level = ROOT_LEVEL;
        let mut slot = index(frame.0, level);
        // The root is two pages long; the machine is asked for one of them.
        if slot >= ENTRIES as usize {
            table = Pa(table.0 | 0x1000);
            slot -= ENTRIES as usize;
        }
        loop {
            let descriptor = Descriptor(machine.read(table, slot));
            if !descriptor.is_table(level) {
                return Entry { table, index: slot, level, descriptor };
            }
            table = descriptor.next();
            level += 1;
            slot = index(frame.0, level);
        }
    }

    /// The frame's level-3 entry, or `None` while a block covers it.
    #[inline]
    pub fn leaf<M: Machine>(&self, machine: &M, frame: Pfn) -> Option<Entry> {
        let entry = self.walk(machine, frame);
        (entry.level == LEAF_LEVEL).then_some(entry)
    }

    /// A walker for frames near one another.
    pub const fn cursor(&self) -> Cursor {
        Cursor { map: *self, table: None, region: u64::MAX }
    }

    /// Tables that [`HostMap::split`] will take for `count` frames from `first`.
    pub fn tables_needed<M: Machine>(&self, machine: &M, first: Pfn, count: u64) -> u64 {
        let mut needed = 0u64;
        let mut new_level2 = u64::MAX;
        let mut at = first.0;
        let end = first.0.saturating_add(count);
        while at < end {
            let entry = self.walk(machine, Pfn(at));
            let gigabyte = at / frames_per_entry(ROOT_LEVEL);
            if entry.level == ROOT_LEVEL && gigabyte != new_level2 {
                new_level2 = gigabyte;
                needed += 1;
            }
            if entry.level < LEAF_LEVEL {
                needed += 1;
            }
            at = (at / ENTRIES + 1) * ENTRIES;
        }
        needed
    }

    /// Reaches level 3 for `frame`: replaces the block that covers it by a table of the same mappings.
    ///
    /// Returns `None`, without a trace, if the pool runs dry (callers reserve first).
    pub fn split<M: Machine>(&self, machine: &M, pool: &mut Pool, frame: Pfn) -> Option<Entry> {
        loop {
            let entry = self.walk(machine, frame);
            if entry.level == LEAF_LEVEL {
                return Some(entry);
            }
            let table = pool.take(machine)?.base();
            fill(machine, table, entry);
            let first = frame.0 & !(frames_per_entry(entry.level) - 1);
            if entry.descriptor.is_valid() {
                entry.write(machine, Descriptor::INVALID);
                let flush = Flush::begin(machine, Vmid::HOST, 1);
                flush.page(Pfn(first));
                flush.finish();
            } else {
                machine.dsb_ishst();
            }
            entry.write(machine, Descriptor::table(table));
            machine.dsb_ishst();
        }
    }

    /// Maps `frames` as `kind` at boot, before any CPU uses the tables. False if the pool runs dry.
    pub fn build<M: Machine>(
        &self,
        machine: &M,
        pool: &mut Pool,
        frames: core::ops::Range<u64>,
        kind: Kind,
    ) -> bool {
        let end = frames.end.min(FRAMES);
        let mut at = frames.start;
        while at < end {
            let entry = self.walk(machine, Pfn(at));
            let span = frames_per_entry(entry.level);
            let whole = at & (span - 1) == 0 && end - at >= span;
            if !whole || (kind == Kind::Hidden && entry.level < LEAF_LEVEL) {
                let Some(table) = pool.take(machine) else { return false };
                fill(machine, table.base(), entry);
                entry.write(machine, Descriptor::table(table.base()));
                continue;
            }
            entry.write(
                machine,
                match kind {
                    Kind::Ram => Descriptor::leaf(entry.level, Pfn(at), Attr::HOST_RAM),
                    Kind::Other => Descriptor::leaf(entry.level, Pfn(at), Attr::HOST_DATA),
                    Kind::Hidden => Descriptor::INVALID,
                },
            );
            at += span;
        }
        machine.dsb_ishst();
        true
    }
}

/// Finds level-3 entries of the host, and remembers the table of the last.
#[derive(Debug)]
pub struct Cursor {
    map: HostMap,
    table: Option<Pa>,
    region: u64,
}

impl Cursor {
    /// As [`HostMap::leaf`]. (Level-3 tables of the host's live as long as the machine runs.)
    #[inline]
    pub fn leaf<M: Machine>(&mut self, machine: &M, frame: Pfn) -> Option<Entry> {
        let region = frame.0 / ENTRIES;
        if let (true, Some(table)) = (region == self.region, self.table) {
            let index = (frame.0 % ENTRIES) as usize;
            let descriptor = Descriptor(machine.read(table, index));
            return Some(Entry { table, index, level: LEAF_LEVEL, descriptor });
        }
        let entry = self.map.leaf(machine, frame)?;
        self.region = region;
        self.table = Some(entry.table);
        Some(entry)
    }
}

/// Fills a new table with what the entry that it will replace maps.
fn fill<M: Machine>(machine: &M, table: Pa, entry: Entry) {
    if !entry.descriptor.is_valid() {
        return;
    }
    let step = frames_per_entry(entry.level + 1);
    let attr = entry.descriptor.attr();
    let mut frame = entry.descriptor.frame();
    for slot in 0..ENTRIES as usize {
        machine.write(table, slot, Descriptor::leaf(entry.level + 1, frame, attr).0);
        frame = frame.offset(step);
    }
}
