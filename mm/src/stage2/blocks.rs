//! Blocks of a guest's stage 2: split where a part is to leave, merged when a table has become one run of frames.
//!
//! Both replace an entry by break-before-make, under the VM's lock. Between break and make the entry says
//! [`Descriptor::MOVING`]: a CPU that faults on it returns to its instruction, a call that meets it starts again. No
//! word changes, since every page stays where it is.
//!
//! The table that a merge takes out of use is *kept* for the same addresses, in a tree of the same shape as the
//! guest's, every entry saying `MOVING`. So a walk that still holds it can only start again, and to split what was
//! merged never takes memory.

use crate::addr::{Gfn, Pa, Pfn};
use crate::frames::Frames;
use crate::machine::{Machine, Vmid};
use crate::pool::Pool;
use crate::stage2::guest::{Entry, walk, walk_to};
use crate::stage2::{Descriptor, ENTRIES, LEAF_LEVEL, ROOT_LEVEL, frames_per_entry, index};
use crate::tlb::Flush;

/// Entry of the kept tree's root from which level-2 tables stand; below it, the tables that lead to level-3 ones.
/// (Guest addresses end at half of a root table.)
const LEVEL2: usize = ENTRIES as usize / 2;

/// Tables of merged blocks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    root: Option<Pa>,
}

impl Kept {
    /// None.
    pub const EMPTY: Self = Self { root: None };

    /// The tree, for the teardown of a VM: every entry below the root is a table or nothing.
    pub const fn root(&self) -> Option<Pa> {
        self.root
    }

    /// Where the kept table of `level` for `gfn` is noted.
    fn place<M: Machine>(&self, machine: &M, gfn: Gfn, level: u32) -> Option<(Pa, usize)> {
        let root = self.root?;
        let gigabyte = index(gfn.0, ROOT_LEVEL) & (LEVEL2 - 1);
        if level < LEAF_LEVEL {
            return Some((root, LEVEL2 + gigabyte));
        }
        let below = Descriptor(machine.read(root, gigabyte));
        below.is_table(ROOT_LEVEL).then(|| (below.next(), index(gfn.0, LEAF_LEVEL - 1)))
    }

    /// As [`Kept::place`], making the pages that lead there. `None` if the pool runs dry.
    fn make_place<M: Machine>(
        &mut self,
        machine: &M,
        pool: &mut Pool,
        gfn: Gfn,
        level: u32,
    ) -> Option<(Pa, usize)> {
        if let Some(place) = self.place(machine, gfn, level) {
            return Some(place);
        }
        if self.root.is_none() {
            self.root = Some(pool.take(machine)?.base());
        }
        if level == LEAF_LEVEL {
            let page = pool.take(machine)?.base();
            let gigabyte = index(gfn.0, ROOT_LEVEL) & (LEVEL2 - 1);
            machine.write(self.root?, gigabyte, Descriptor::table(page).0);
        }
        self.place(machine, gfn, level)
    }

    /// True if a table of `level` for `gfn` is kept.
    pub fn has<M: Machine>(&self, machine: &M, gfn: Gfn, level: u32) -> bool {
        self.place(machine, gfn, level)
            .is_some_and(|(table, slot)| Descriptor(machine.read(table, slot)).is_valid())
    }

    fn take<M: Machine>(&mut self, machine: &M, gfn: Gfn, level: u32) -> Option<Pa> {
        let (table, slot) = self.place(machine, gfn, level)?;
        let kept = Descriptor(machine.read(table, slot));
        machine.write(table, slot, Descriptor::INVALID.0);
        kept.is_valid().then(|| kept.next())
    }
}

/// What a VM's lock guards of its tables, for the functions here.
pub struct Tables<'t, M: Machine> {
    /// The hardware.
    pub machine: &'t M,
    /// The VM's tag.
    pub vmid: Vmid,
    /// Root of its stage 2.
    pub root: Pa,
    /// The page database.
    pub frames: Frames<'t>,
    /// Its table memory.
    pub pool: &'t mut Pool,
    /// Tables of merged blocks.
    pub kept: &'t mut Kept,
}

impl<M: Machine> Tables<'_, M> {
    /// Pages that [`Tables::split`] will take from the pool to reach `level` at `gfn`; if `second`, after it has been
    /// to the same gigabyte before.
    pub fn needed(&self, gfn: Gfn, level: u32, second: bool) -> u64 {
        let entry = walk(self.machine, self.root, gfn);
        if !entry.is_leaf() {
            return 0;
        }
        let from = if second { LEAF_LEVEL } else { entry.level + 1 };
        (from..=level).filter(|&level| !self.kept.has(self.machine, gfn, level)).count() as u64
    }

    /// Splits the blocks around `gfn` until an entry of `level` or below decides about it. `None`, with no more than
    /// needless splits as a trace, if the pool runs dry.
    pub fn split(&mut self, gfn: Gfn, level: u32) -> Option<Entry> {
        loop {
            let entry = walk(self.machine, self.root, gfn);
            if entry.level >= level || !entry.is_leaf() {
                return Some(entry);
            }
            let below = entry.level + 1;
            let table = match self.kept.take(self.machine, gfn, below) {
                Some(table) => table,
                None => self.pool.take(self.machine)?.base(),
            };
            let (mut frame, attr) = (entry.descriptor.frame(), entry.descriptor.attr());
            for slot in 0..ENTRIES as usize {
                self.machine.write(table, slot, Descriptor::leaf(below, frame, attr).0);
                frame = frame.offset(frames_per_entry(below));
            }
            self.replace(entry, gfn, 1, Descriptor::table(table));
        }
    }

    /// Merges the table that decides about `gfn` into a block if it maps one aligned run of frames with the same
    /// attributes, and the table above it likewise. Does nothing while the pool has no page to note what is kept.
    pub fn merge(&mut self, gfn: Gfn) {
        for level in [LEAF_LEVEL, LEAF_LEVEL - 1] {
            let entry = walk(self.machine, self.root, gfn);
            if entry.level >= level && !self.merge_table(gfn, level) {
                return;
            }
        }
    }

    fn merge_table(&mut self, gfn: Gfn, level: u32) -> bool {
        let entry = walk_to(self.machine, self.root, gfn, level - 1);
        if entry.level != level - 1 || !entry.descriptor.is_table(entry.level) {
            return false;
        }
        let table = entry.descriptor.next();
        let read = |slot: usize| Descriptor(self.machine.read(table, slot));
        let first = read(0);
        if !first.is_leaf(level)
            || first.frame().0 & (entry.span() - 1) != 0
            || self.frames.run(first.frame(), entry.span()).is_none()
        {
            return false;
        }
        let stride = frames_per_entry(level) << crate::addr::PAGE_SHIFT;
        let is_next = |slot: usize| read(slot).0 == first.0.wrapping_add(slot as u64 * stride);
        // The ends and the neighbours first: a donor that goes page by page finds a hole there at once.
        let here = index(gfn.0, level) & (ENTRIES as usize - 1);
        let last = ENTRIES as usize - 1;
        let whole = [last, here.saturating_sub(1), (here + 1).min(last)].into_iter().all(is_next)
            && (1..=last).all(is_next);
        if !whole {
            return false;
        }
        let Some((note, slot)) = self.kept.make_place(self.machine, self.pool, gfn, level) else {
            return false;
        };
        entry.write(self.machine, Descriptor::MOVING);
        for slot in 0..ENTRIES as usize {
            self.machine.write(table, slot, Descriptor::MOVING.0);
        }
        self.machine.write(note, slot, Descriptor::table(table).0);
        let block = Descriptor::block(first.frame(), first.attr());
        self.replace(entry, gfn, ENTRIES, block);
        true
    }

    /// Break-before-make of an entry that stood for `leaves` leaves.
    fn replace(&self, entry: Entry, gfn: Gfn, leaves: u64, by: Descriptor) {
        entry.write(self.machine, Descriptor::MOVING);
        let first = Pfn(entry.first_of(gfn).0);
        let mut flush = Flush::begin(self.machine, self.vmid, leaves);
        let pages = if leaves > 1 { entry.span() } else { 1 };
        flush.run(first, pages);
        flush.finish();
        entry.write(self.machine, by);
        self.machine.dsb_ishst();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::*;
    use crate::addr::Ipa;
    use crate::frames::Region;
    use crate::stage2::Attr;
    use crate::stage2::guest::{ensure, tables_needed};
    use crate::word::{PageWord, Word};

    /// Memory, and nothing that it could be cached in.
    #[derive(Default)]
    struct Plain(Mutex<BTreeMap<(u64, usize), u64>>);

    #[allow(clippy::unwrap_used, reason = "a test stops where it fails")]
    impl Machine for Plain {
        fn read(&self, table: Pa, index: usize) -> u64 {
            self.0.lock().unwrap().get(&(table.0, index)).copied().unwrap_or(0)
        }
        fn write(&self, table: Pa, index: usize, descriptor: u64) {
            self.0.lock().unwrap().insert((table.0, index), descriptor);
        }
        fn zero(&self, frame: Pfn) {
            (0..512).for_each(|index| self.write(frame.base(), index, 0));
        }
        fn select_vmid(&self, vmid: Vmid) -> Vmid {
            vmid
        }
        fn read_words(&self, _: Pfn, _: usize) -> [u64; 32] {
            [0; 32]
        }
        fn has_range_tlbi(&self) -> bool {
            false
        }
        fn attention(&self) -> bool {
            false
        }
        fn scrub(&self, _: Pfn) {}
        fn clean_to_poc(&self, _: Pfn) {}
        fn drop_instructions(&self) {}
        fn dsb_ishst(&self) {}
        fn dsb_ish(&self) {}
        fn isb(&self) {}
        fn tlbi_ipas2e1is(&self, _: Ipa) {}
        fn tlbi_ripas2e1is(&self, _: Ipa, _: u64) {}
        fn tlbi_vmalle1is(&self) {}
        fn tlbi_vmalls12e1is(&self) {}
    }

    /// A gigabyte of RAM from 4 GiB up.
    const RAM: Pfn = Pfn(1 << 20);
    const GIGABYTE: u64 = 1 << 18;

    fn level(tables: &Tables<'_, Plain>, gfn: u64) -> u32 {
        walk(tables.machine, tables.root, Gfn(gfn)).level
    }

    #[test]
    fn a_gigabyte_of_blocks_becomes_one_and_is_split_as_far_as_it_is_needed() {
        let words: Vec<PageWord> = (0..GIGABYTE).map(|_| PageWord::new(Word::HOST)).collect();
        let regions = [Region { first: RAM, words: &words }];
        let machine = Plain::default();
        let (mut pool, mut kept) = (Pool::empty(), Kept::EMPTY);
        (1..=16).for_each(|page| pool.add(&machine, Pfn(page)));
        let root = pool.take(&machine).unwrap().base();
        let frames = Frames::new(&regions);
        let mut tables =
            Tables { machine: &machine, vmid: Vmid(1), root, frames, pool: &mut pool, kept: &mut kept };
        let gfn = Gfn(GIGABYTE);
        assert_eq!(tables_needed(&machine, root, gfn, GIGABYTE, LEAF_LEVEL - 1), 1);
        for block in (0..GIGABYTE).step_by(512) {
            assert_eq!(level(&tables, gfn.0), if block == 0 { 1 } else { 2 });
            let at = gfn.offset(block);
            let entry = ensure(&machine, tables.pool, root, at, LEAF_LEVEL - 1).unwrap();
            entry.write(&machine, Descriptor::block(RAM.offset(block), Attr::GUEST));
            tables.merge(at);
        }
        assert_eq!(level(&tables, gfn.0 + 777), 1);
        let entry = walk(&machine, root, gfn.offset(777));
        assert_eq!(entry.frame_of(gfn.offset(777)), RAM.offset(777));
        // The level-2 table was kept; one of level 3 is new.
        assert_eq!(tables.needed(gfn.offset(777), LEAF_LEVEL, false), 1);
        assert!(tables.split(gfn.offset(777), LEAF_LEVEL).is_some());
        assert_eq!([level(&tables, gfn.0 + 777), level(&tables, gfn.0 + 2048)], [3, 2]);
        assert_eq!(walk(&machine, root, gfn.offset(777)).frame_of(gfn.offset(777)), RAM.offset(777));
        // Whole again, all the way up; and down once more without memory.
        tables.merge(gfn.offset(777));
        assert_eq!(level(&tables, gfn.0 + 777), 1);
        assert_eq!(tables.needed(gfn.offset(777), LEAF_LEVEL, false), 0);
        while tables.pool.take(&machine).is_some() {}
        assert!(tables.split(gfn.offset(777), LEAF_LEVEL).is_some());
    }
}
