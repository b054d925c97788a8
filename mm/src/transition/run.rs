//! Ranges of a guest's pages are frozen here, a few instructions a page: one walk for each level-3 table or block.
//!
//! The operation looks at each word and admits it or not. What is not admitted, or does not stand still, ends the run;
//! the operation looks at that page by itself ([`Mm::look`]) and goes on behind it.

use super::{Held, PageRun};
use crate::addr::{Gfn, Pa};
use crate::machine::Machine;
use crate::manager::Mm;
use crate::stage2::guest::{Cursor, Entry};
use crate::stage2::{Descriptor, ENTRIES, LEAF_LEVEL};
use crate::word::{Frozen, Word};

impl<'a, M: Machine> Mm<'a, M> {
    /// Freezes the pages from `gfn` on while they have a frame whose word `admits` lets pass, given its place in `held`
    /// (never a frozen word). Returns how many.
    #[inline]
    pub(super) fn freeze_run(
        &self,
        cursor: &mut Cursor,
        gfn: Gfn,
        count: u64,
        held: &mut Held<'a>,
        mut admits: impl FnMut(usize, Word) -> bool,
    ) -> u64 {
        let mut near = PageRun::new(&self.frames);
        let mut done = 0;
        while done < count {
            let at = gfn.offset(done);
            let entry = cursor.entry(&self.machine, at);
            let run = (count - done).min(ENTRIES - at.0 % ENTRIES) as usize;
            let frozen = match entry.level {
                LEAF_LEVEL => self.freeze_table(&mut near, entry.table, entry.index, run, held, &mut admits),
                _ if entry.is_leaf() => self.freeze_block(&mut near, entry, at, run, held, &mut admits),
                _ => return done,
            };
            done += frozen as u64;
            if frozen < run {
                return done;
            }
        }
        done
    }

    /// As [`Mm::freeze_run`], for `run` entries of one level-3 table.
    #[inline(always)]
    fn freeze_table(
        &self,
        near: &mut PageRun<'a>,
        table: Pa,
        first: usize,
        run: usize,
        held: &mut Held<'a>,
        admits: &mut impl FnMut(usize, Word) -> bool,
    ) -> usize {
        let before = held.len();
        let slots = (first..).take(run.min(held.remaining_capacity()));
        held.extend(slots.map_while(|slot| {
            let leaf = Descriptor(self.machine.read(table, slot));
            let frame = leaf.frame();
            let cell = near.word(frame).filter(|_| leaf.is_valid())?;
            let word = cell.load();
            // The leaf stood while the word was read; the freeze from that word shows that it still does.
            let place = before.wrapping_add(slot.wrapping_sub(first));
            if !admits(place, word) || self.machine.read(table, slot) != leaf.0 {
                return None;
            }
            cell.freeze_thawed(frame, word).ok()
        }));
        held.len() - before
    }

    /// As [`Mm::freeze_run`], for `run` pages of one block.
    #[inline(always)]
    fn freeze_block(
        &self,
        near: &mut PageRun<'a>,
        entry: Entry,
        at: Gfn,
        run: usize,
        held: &mut Held<'a>,
        admits: &mut impl FnMut(usize, Word) -> bool,
    ) -> usize {
        let before = held.len();
        let pages = (0..run as u64).take(held.remaining_capacity());
        held.extend(pages.map_while(|page| {
            self.freeze_leaf(near, entry, at.offset(page), |word| {
                admits(before.wrapping_add(page as usize), word)
            })
        }));
        held.len() - before
    }

    /// Freezes the page at `at`, which `entry` maps, if its word is admitted and stands still.
    #[inline(always)]
    pub(super) fn freeze_leaf(
        &self,
        near: &mut PageRun<'a>,
        entry: Entry,
        at: Gfn,
        admits: impl FnOnce(Word) -> bool,
    ) -> Option<Frozen<'a>> {
        let frame = entry.frame_of(at);
        let cell = near.word(frame)?;
        let word = cell.load();
        // The leaf stood while the word was read; the freeze from that word shows that it still does.
        if !admits(word) || entry.reread(&self.machine) != entry.descriptor {
            return None;
        }
        cell.freeze_thawed(frame, word).ok()
    }
}
