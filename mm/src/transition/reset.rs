//! The end of the host's world: what the VMs, which are gone by now, have left of it.
//!
//! A kernel that ends by kexec or in a panic takes its ledger of holders with it: the next one knows of no pin, and would
//! never end one. So the sweep drops every pin that a host declared, sends home what only a pin kept in quarantine, and
//! gives back what was lent to the host's pool. The host's map is made whole on the way, so that no lent page is kept as
//! the table of a block that need not be split.
//!
//! Nothing is remembered between the steps but a place that the caller brings back. Steps on several CPUs do not
//! disturb one another: each word is changed by one swap or under its freeze, as by any other call. A kernel that died in
//! the middle leaves nothing half done that the next, who begins at 0, would not find.

use tenure_abi::reply::{self, Reply, Status};

use super::teardown::TEAR_CHUNK;
use crate::addr::Pfn;
use crate::block::{first_of, place_of};
use crate::machine::Machine;
use crate::manager::Mm;
use crate::stage2::ENTRIES;
use crate::state::{self, Forget, Refusal};
use crate::word::PageWord;

/// Where a reset stands after one step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Swept {
    /// SUCCESS when finished; RETRY to go on from `next`; INVALID for a place that is none.
    pub reply: Reply,
    /// Where to go on: frames of RAM, counted over all regions.
    pub next: u64,
    /// Nothing of the host that was is left.
    pub finished: bool,
}

impl Swept {
    const fn again(done: u64, mask: u64, next: u64) -> Self {
        Self { reply: Reply { done, mask, ..Reply::refused(Status::Retry) }, next, finished: false }
    }
}

impl<'a, M: Machine> Mm<'a, M> {
    /// One step of the sweep over all words, from the `from`th on: at most to the end of a block of 2 MiB, or
    /// 12 frames that go home. `done` counts what was changed. There should be no VM: what is a VM's is left alone.
    #[inline(never)]
    pub fn host_reset(&self, from: u64) -> Swept {
        let Some((first, words)) = self.rest_of_block(from) else {
            return if from == self.frames.len() {
                self.give_lent(from)
            } else {
                Swept { reply: Reply::refused(Status::Invalid), next: 0, finished: false }
            };
        };
        let (mut done, mut home) = (0, 0);
        for (index, cell) in (0..).zip(words) {
            if state::is_forgotten(cell.load()) {
                continue;
            }
            if home == TEAR_CHUNK {
                return Swept::again(done, 0, from + index);
            }
            match self.forget(first.offset(index), cell) {
                Ok(Forget::Already) => {}
                Ok(Forget::Swap(_)) => done += 1,
                Ok(Forget::DropScrap(_) | Forget::Release(_)) => {
                    done += 1;
                    home += 1;
                }
                Err(_) => return Swept::again(done, reply::FROZEN, from + index),
            }
        }
        let end = from + words.len() as u64;
        if done > 0 {
            // To merge a block takes the time of a step: the next one looks at the last word again, and does.
            return Swept::again(done, 0, end - 1);
        }
        match self.make_whole(Pfn(first_of(first.0))) {
            Ok(()) => Swept::again(done, 0, end),
            Err(_) => Swept::again(done, reply::FROZEN, end - 1),
        }
    }

    /// Merges a block of the host that is split; where that cannot be, at least no page that the host lent is its table.
    fn make_whole(&self, first: Pfn) -> Result<(), Refusal> {
        if self.host.leaf(&self.machine, first).is_none() {
            return Ok(());
        }
        match self.merge_host_block(first) {
            Err(Refusal::STATE) => self.free_lent_table(first),
            whole => whole,
        }
    }

    fn forget(&self, frame: Pfn, cell: &PageWord) -> Result<Forget, Refusal> {
        let word = cell.load();
        let forget = state::forget(word)?;
        match forget {
            Forget::Already => {}
            Forget::Swap(next) => cell.swap(word, next).map_err(|_| Refusal::FROZEN)?,
            Forget::DropScrap(next) => {
                let page = cell.freeze(frame, word, word).map_err(|_| Refusal::FROZEN)?;
                self.drop_host_leaves(core::iter::once(frame), 1);
                page.publish(next);
            }
            Forget::Release(next) => {
                let page = cell.freeze(frame, word, word).map_err(|_| Refusal::FROZEN)?;
                // Its memory type is that of a borrowed frame.
                if word.has_host_leaf() {
                    self.drop_host_leaves(core::iter::once(frame), 1);
                }
                self.scrub_all(core::iter::once(frame));
                page.publish(next);
            }
        }
        Ok(forget)
    }

    /// Gives one page that was lent to the host's pool home, and looks whether its block is whole now: that may set the
    /// next one free. No reserve is kept of them: what boot kept is back by now, but for the tables of blocks with a broken
    /// frame.
    fn give_lent(&self, from: u64) -> Swept {
        let mut pool = self.host_pool();
        let Some(page) = pool.remove(&self.machine) else {
            return Swept { reply: Reply::done(0), next: from, finished: true };
        };
        if self.give_back(page).is_err() {
            pool.add(&self.machine, page);
            return Swept::again(0, reply::FROZEN, from);
        }
        drop(pool);
        match self.make_whole(Pfn(first_of(page.0))) {
            Ok(()) => Swept::again(1, 0, from),
            // Its table may be lent: from the start again.
            Err(_) => Swept::again(1, reply::FROZEN, 0),
        }
    }

    /// The `index`th frame of RAM, and the words from it to the end of its block of 2 MiB.
    fn rest_of_block(&self, mut index: u64) -> Option<(Pfn, &'a [PageWord])> {
        for region in self.frames.regions() {
            let count = region.words.len() as u64;
            if index < count {
                let first = region.first.offset(index);
                let end = (index + ENTRIES - place_of(first.0)).min(count);
                return region.words.get(index as usize..end as usize).map(|words| (first, words));
            }
            index -= count;
        }
        None
    }
}
