//! The host's stage 2: an identity map in blocks, split where a page leaves.
//!
//! Structure changes, by break-before-make, under the lock of the gigabyte ([`Structure`]); a CPU that faults between
//! break and make returns to its instruction. Once a level-3 table exists its entries belong to the page words: whoever
//! holds a frame's word frozen may change that frame's leaf without a lock, and finds the table where it is, since a
//! block is merged again only by who holds all of its words frozen. A frame in a state other than `Host` is never under
//! a block, so a later fault on it never allocates.

use crate::addr::{Pa, Pfn};
use crate::machine::{Machine, Vmid};
use crate::pool::Pool;
use crate::stage2::{Attr, Descriptor, ENTRIES, LEAF_LEVEL, ROOT_LEVEL, frames_per_entry, index};
use crate::sync::{Guard, Lock, lock, rank};
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

/// The locks of the map's structure: one for every gigabyte, modulo 16, so that CPUs that take memory for different
/// VMs seldom meet. Inside: the pool's.
#[derive(Debug)]
pub struct Structure([Lock<(), { rank::HOST }>; 16]);

impl Structure {
    /// All free.
    pub fn new() -> Self {
        Self(core::array::from_fn(|_| Lock::new(())))
    }

    /// Takes the lock of a frame's gigabyte.
    pub fn lock(&self, frame: Pfn) -> Guard<'_, ()> {
        let gigabyte = frame.0 / frames_per_entry(ROOT_LEVEL);
        lock(&self.0[(gigabyte % 16) as usize])
    }
}

impl Default for Structure {
    fn default() -> Self {
        Self::new()
    }
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
        let mut entry = self.root_entry(machine, frame);
        while entry.descriptor.is_table(entry.level) {
            entry = below(machine, entry, frame);
        }
        entry
    }

    #[inline]
    fn root_entry<M: Machine>(&self, machine: &M, frame: Pfn) -> Entry {
        let slot = index(frame.0, ROOT_LEVEL);
        // The root is two pages long; the machine is asked for one of them.
        let (table, slot) = match slot.checked_sub(ENTRIES as usize) {
            None => (self.root, slot),
            Some(slot) => (Pa(self.root.0 | 0x1000), slot),
        };
        let descriptor = Descriptor(machine.read(table, slot));
        Entry { table, index: slot, level: ROOT_LEVEL, descriptor }
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

    /// Reaches `level` for `frame`, one level a call: replaces the block that covers it by a table of the same
    /// mappings. Tables come from `take`, zeroed. The caller holds the gigabyte's [`Structure`] lock.
    ///
    /// Returns `None`, with no more than a needless split as a trace, if `take` gives none (callers reserve first).
    pub fn split<M: Machine>(
        &self,
        machine: &M,
        mut take: impl FnMut() -> Option<Pfn>,
        frame: Pfn,
        level: u32,
    ) -> Option<Entry> {
        loop {
            let entry = self.walk(machine, frame);
            if entry.level >= level {
                return Some(entry);
            }
            let table = take()?.base();
            fill(machine, table, entry);
            replace(machine, entry, frame, 1, Descriptor::table(table));
        }
    }

    /// Replaces the block of 2 MiB at `entry`, all of whose words the caller holds frozen, by the zeroed `table`: the
    /// host reaches none of its frames any more. Under the [`Structure`] lock.
    pub fn empty_block<M: Machine>(&self, machine: &M, entry: Entry, first: Pfn, table: Pfn) {
        replace(machine, entry, first, 1, Descriptor::table(table.base()));
    }

    /// As [`HostMap::empty_block`], where the level-3 table `table` stands.
    pub fn empty_table<M: Machine>(&self, machine: &M, first: Pfn, table: Pfn) {
        let Some(above) = self.above(machine, first) else { return };
        break_entry(machine, above, first, ENTRIES);
        machine.zero(table);
        machine.dsb_ishst();
        above.write(machine, above.descriptor);
        machine.dsb_ishst();
    }

    /// Makes a block of 2 MiB of the host's RAM, of attributes `ram`, again, all of whose words say `Host` and are held
    /// frozen by the caller. Returns the table that it replaces. Under the [`Structure`] lock.
    pub fn merge<M: Machine>(&self, machine: &M, first: Pfn, ram: Attr) -> Option<Pfn> {
        let above = self.above(machine, first)?;
        replace(machine, above, first, ENTRIES, Descriptor::block(first, ram));
        Some(above.descriptor.next().frame())
    }

    /// Puts the zeroed `to` in the place of the level-3 table at `first`; the caller holds the words of all its frames frozen.
    /// The host's leaves come again with its touches. Returns the table that it replaces. Under the [`Structure`] lock.
    pub fn renew_table<M: Machine>(&self, machine: &M, first: Pfn, to: Pfn) -> Option<Pfn> {
        let above = self.above(machine, first)?;
        replace(machine, above, first, ENTRIES, Descriptor::table(to.base()));
        Some(above.descriptor.next().frame())
    }

    /// The level-2 entry over a frame, if it points to a level-3 table.
    fn above<M: Machine>(&self, machine: &M, frame: Pfn) -> Option<Entry> {
        let mut entry = self.root_entry(machine, frame);
        while entry.level < LEAF_LEVEL - 1 && entry.descriptor.is_table(entry.level) {
            entry = below(machine, entry, frame);
        }
        (entry.level == LEAF_LEVEL - 1 && entry.descriptor.is_table(entry.level)).then_some(entry)
    }

    /// Maps `frames` with attributes `attr` at boot, before any CPU uses the tables; without, they are unmapped down to
    /// level 3. False if the pool runs dry.
    pub fn build<M: Machine>(
        &self,
        machine: &M,
        pool: &mut Pool,
        frames: core::ops::Range<u64>,
        attr: Option<Attr>,
    ) -> bool {
        let end = frames.end.min(FRAMES);
        let mut at = frames.start;
        while at < end {
            let entry = self.walk(machine, Pfn(at));
            let span = frames_per_entry(entry.level);
            let whole = at & (span - 1) == 0 && end - at >= span;
            if !whole || (attr.is_none() && entry.level < LEAF_LEVEL) {
                let Some(table) = pool.take(machine) else { return false };
                fill(machine, table.base(), entry);
                entry.write(machine, Descriptor::table(table.base()));
                continue;
            }
            let leaf = attr.map(|attr| Descriptor::leaf(entry.level, Pfn(at), attr));
            entry.write(machine, leaf.unwrap_or(Descriptor::INVALID));
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
    /// As [`HostMap::leaf`]. (The caller holds words of the block frozen: its level-3 table stays.)
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

/// The entry below one that points to a table.
#[inline]
fn below<M: Machine>(machine: &M, entry: Entry, frame: Pfn) -> Entry {
    let (table, level) = (entry.descriptor.next(), entry.level + 1);
    let slot = index(frame.0, level);
    Entry { table, index: slot, level, descriptor: Descriptor(machine.read(table, slot)) }
}

/// Break-before-make of an entry that stood for `leaves` leaves.
fn replace<M: Machine>(machine: &M, entry: Entry, frame: Pfn, leaves: u64, by: Descriptor) {
    if entry.descriptor.is_valid() {
        break_entry(machine, entry, frame, leaves);
    } else {
        machine.dsb_ishst();
    }
    entry.write(machine, by);
    machine.dsb_ishst();
}

/// Makes an entry that stood for `leaves` leaves invalid, and waits.
fn break_entry<M: Machine>(machine: &M, entry: Entry, frame: Pfn, leaves: u64) {
    entry.write(machine, Descriptor::INVALID);
    let first = Pfn(frame.0 & !(entry.span() - 1));
    let mut flush = Flush::begin(machine, Vmid::HOST, leaves);
    let pages = if leaves > 1 { entry.span() } else { 1 };
    flush.run(first, pages);
    flush.finish();
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
