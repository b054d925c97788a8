//! Long ranges of ordinary pages: the common case of share and unshare, a few instructions a page.
//!
//! Walks once per level-3 table and judges a word by [`Quick`]. It stops at the first page that is not the common case;
//! the general way goes on from there with what is held.

use super::{Held, PageRun};
use crate::addr::{Gfn, Pa};
use crate::machine::Machine;
use crate::manager::Mm;
use crate::stage2::guest::{Entry, walk};
use crate::stage2::{Descriptor, ENTRIES, LEAF_LEVEL};
use crate::state::Quick;
use crate::vm::Vm;
use crate::word::Frozen;

impl<'a, M: Machine> Mm<'a, M> {
    /// Freezes the pages from `gfn` on while they are the common case. Returns how many.
    #[inline]
    pub(super) fn freeze_run(&self, vm: &Vm, gfn: Gfn, count: u64, quick: Quick, held: &mut Held<'a>) -> u64 {
        let Some(root) = vm.root() else { return 0 };
        let mut near = PageRun::new(&self.frames);
        let mut done = 0;
        while done < count {
            let at = gfn.offset(done);
            let entry = walk(&self.machine, root, at);
            let run = (count - done).min(ENTRIES - at.0 % ENTRIES) as usize;
            let frozen = match entry.level {
                LEAF_LEVEL => self.freeze_table(&mut near, entry.table, entry.index, run, quick, held),
                _ if entry.is_leaf() => self.freeze_block(&mut near, entry, at, run, quick, held),
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
        quick: Quick,
        held: &mut Held<'a>,
    ) -> usize {
        let before = held.len();
        let slots = (first..).take(run.min(held.remaining_capacity()));
        held.extend(slots.map_while(|slot| {
            let leaf = Descriptor(self.machine.read(table, slot));
            let frame = leaf.frame();
            let cell = near.word(frame).filter(|_| leaf.is_valid())?;
            let word = cell.load();
            // The leaf stood while the word was read; the freeze from that word shows that it still does.
            if !quick.matches(word) || self.machine.read(table, slot) != leaf.0 {
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
        quick: Quick,
        held: &mut Held<'a>,
    ) -> usize {
        let before = held.len();
        let first = entry.frame_of(at);
        let pages = (0..run as u64).take(held.remaining_capacity());
        held.extend(pages.map_while(|page| {
            let frame = first.offset(page);
            let cell = near.word(frame)?;
            let word = cell.load();
            if !quick.matches(word) || entry.reread(&self.machine) != entry.descriptor {
                return None;
            }
            cell.freeze_thawed(frame, word).ok()
        }));
        held.len() - before
    }

    /// Publishes a range in which every page is the common case.
    #[inline]
    pub(super) fn publish_run(&self, quick: Quick, drop_leaves: bool, zero: bool, held: &mut Held<'_>) {
        if drop_leaves {
            self.drop_host_leaves(held.iter().map(Frozen::frame), held.len() as u64);
        }
        if zero {
            self.scrub_all(held.iter().map(Frozen::frame));
        }
        for page in held.drain(..) {
            quick.publish(page);
        }
    }
}
