//! A guest's stage 2: walks without a lock, changes of structure under the VM's.
//!
//! A populated address has a leaf, of level 3 or a block above it; an unpopulated one has its status in the invalid
//! entry of whatever level the walk ends at. Sharing changes no leaf, so a block stays one whatever its pages are; it
//! is split when a part of it leaves ([`super::blocks`]).
//!
//! A table page of a live VM never serves another range of addresses, so a walk that raced a change reads an old
//! entry, or one that says [`Descriptor::MOVING`]; never another page's.

use crate::addr::{Gfn, Pa, Pfn};
use crate::machine::Machine;
use crate::pool::Pool;
use crate::stage2::{Descriptor, ENTRIES, LEAF_LEVEL, ROOT_LEVEL, frames_per_entry, index};

/// Where a walk ended, and what it read there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The table page.
    pub table: Pa,
    /// Index in it.
    pub index: usize,
    /// Level of the table.
    pub level: u32,
    /// The descriptor as read.
    pub descriptor: Descriptor,
}

impl Entry {
    /// Reads the entry again.
    #[inline]
    pub fn reread<M: Machine>(&self, machine: &M) -> Descriptor {
        Descriptor(machine.read(self.table, self.index))
    }

    /// Writes the entry.
    pub fn write<M: Machine>(&self, machine: &M, descriptor: Descriptor) {
        machine.write(self.table, self.index, descriptor.0);
    }

    /// Maps memory.
    #[inline]
    pub const fn is_leaf(&self) -> bool {
        self.descriptor.is_leaf(self.level)
    }

    /// Has no frame, and says what the address is without one.
    #[inline]
    pub const fn is_status(&self) -> bool {
        !self.descriptor.is_valid() && !self.descriptor.is_moving()
    }

    /// The frame that a leaf maps `gfn` to.
    #[inline]
    pub const fn frame_of(&self, gfn: Gfn) -> Pfn {
        let first = self.descriptor.frame();
        if self.level == LEAF_LEVEL { first } else { first.offset(gfn.0 & (self.span() - 1)) }
    }

    /// Frames that the entry decides about.
    #[inline]
    pub const fn span(&self) -> u64 {
        frames_per_entry(self.level)
    }

    /// Frames from `gfn` on that the entry decides about.
    #[inline]
    pub const fn rest(&self, gfn: Gfn) -> u64 {
        if self.level == LEAF_LEVEL { 1 } else { self.span() - (gfn.0 & (self.span() - 1)) }
    }

    /// First address that the entry decides about, given one of them.
    pub const fn first_of(&self, gfn: Gfn) -> Gfn {
        Gfn(gfn.0 & !(self.span() - 1))
    }
}

/// Walks to the entry that decides about `gfn`.
#[inline]
pub fn walk<M: Machine>(machine: &M, root: Pa, gfn: Gfn) -> Entry {
    walk_to(machine, root, gfn, LEAF_LEVEL)
}

/// As [`walk`], to `level` at most: the entry may point to a table there.
#[inline]
pub fn walk_to<M: Machine>(machine: &M, root: Pa, gfn: Gfn, deepest: u32) -> Entry {
    let mut table = root;
    let mut level = ROOT_LEVEL;
    loop {
        let index = index(gfn.0, level) & (ENTRIES as usize - 1);
        let descriptor = Descriptor(machine.read(table, index));
        if level == deepest || !descriptor.is_table(level) {
            return Entry { table, index, level, descriptor };
        }
        table = descriptor.next();
        level += 1;
    }
}

/// A walker that remembers the level-3 table of the last page: ranges cost one walk per 2 MiB.
#[derive(Debug)]
pub struct Cursor {
    root: Pa,
    table: Option<Pa>,
    region: u64,
}

impl Cursor {
    /// A walker from `root`.
    pub const fn new(root: Pa) -> Self {
        Self { root, table: None, region: u64::MAX }
    }

    /// As [`walk`].
    #[inline]
    pub fn entry<M: Machine>(&mut self, machine: &M, gfn: Gfn) -> Entry {
        let region = gfn.0 / ENTRIES;
        if let (true, Some(table)) = (region == self.region, self.table) {
            let index = (gfn.0 % ENTRIES) as usize;
            return Entry {
                table,
                index,
                level: LEAF_LEVEL,
                descriptor: Descriptor(machine.read(table, index)),
            };
        }
        let entry = walk(machine, self.root, gfn);
        self.region = region;
        self.table = (entry.level == LEAF_LEVEL).then_some(entry.table);
        entry
    }

    /// As [`ensure`] to level 3, remembering the table.
    pub fn ensure<M: Machine>(&mut self, machine: &M, pool: &mut Pool, gfn: Gfn) -> Option<Entry> {
        let entry = self.entry(machine, gfn);
        if entry.level == LEAF_LEVEL {
            return Some(entry);
        }
        let entry = ensure(machine, pool, self.root, gfn, LEAF_LEVEL)?;
        self.table = (entry.level == LEAF_LEVEL).then_some(entry.table);
        Some(entry)
    }
}

/// Tables that [`ensure`] will take from the pool to reach `level` for all unpopulated ones of `count` frames from
/// `gfn`.
pub fn tables_needed<M: Machine>(machine: &M, root: Pa, gfn: Gfn, count: u64, level: u32) -> u64 {
    let mut needed = 0u64;
    let mut new_level2 = u64::MAX;
    let mut at = gfn.0;
    let end = gfn.0.saturating_add(count);
    while at < end {
        let entry = walk(machine, root, Gfn(at));
        let gigabyte = at / frames_per_entry(ROOT_LEVEL);
        if !entry.descriptor.is_valid() {
            if entry.level == ROOT_LEVEL && gigabyte != new_level2 {
                new_level2 = gigabyte;
                needed += 1;
            }
            needed += u64::from(entry.level < LEAF_LEVEL && level == LEAF_LEVEL);
        }
        at = (at / ENTRIES + 1) * ENTRIES;
    }
    needed
}

/// Reaches `level` for `gfn` if it is unpopulated, making tables that repeat the status of the entry that they replace.
/// Where a block stands, that is the answer.
///
/// Returns `None`, without a trace, if the pool runs dry (callers reserve by [`tables_needed`] first).
pub fn ensure<M: Machine>(machine: &M, pool: &mut Pool, root: Pa, gfn: Gfn, level: u32) -> Option<Entry> {
    loop {
        let entry = walk_to(machine, root, gfn, level);
        if entry.level == level || entry.descriptor.is_valid() {
            return Some(entry);
        }
        let table = pool.take(machine)?.base();
        if entry.descriptor != Descriptor::INVALID {
            for slot in 0..ENTRIES as usize {
                machine.write(table, slot, entry.descriptor.0);
            }
        }
        // The new table must be visible before the walker can be led to it.
        machine.dsb_ishst();
        entry.write(machine, Descriptor::table(table));
    }
}
