//! Donation by blocks of 2 MiB (B3, U4, B2): taken whole or not at all, scrubbed over several calls, the guest's after
//! the last.

use tenure_abi::page::State;
use tenure_abi::{Reply, Status, reply};

use super::{BLOCK, Expect, Frame, Model, kind_of};

/// Pages whose scrub is noted together.
const GROUP: u64 = if cfg!(small_tables) { 2 } else { 16 };

impl Model {
    /// What DONATE answers where it deals with a block that the range covers to its end; `None` where there is none, or
    /// where the guest's addresses are not all of one status (which a block has to be).
    ///
    /// Whether addresses that could take a block are given one is for the manager to say: it may have tables of pages
    /// there already. Callers try this or [`Model::donate`], by the answer that they were given.
    pub fn donate_block(&mut self, vm: usize, gfn: u64, pfn: u64, count: u64, kind: u64) -> Option<Expect> {
        let place = pfn % BLOCK;
        if place != gfn % BLOCK || count < BLOCK - place {
            return None;
        }
        let first = pfn - place;
        if place == 0 && !self.is_parked(vm, pfn) {
            if let Some(refusal) = self.take_block(vm, gfn, first, kind) {
                return Some(Expect { reply: refusal, tables: true });
            }
            return self.scrub(vm, gfn, pfn, 1, kind);
        }
        self.is_parked(vm, pfn).then(|| self.scrub(vm, gfn, pfn, 3, kind))?
    }

    /// Parked for `vm`: nobody's, and on its way.
    fn is_parked(&self, vm: usize, pfn: u64) -> bool {
        let parked = Frame { state: State::Quarantine, owner: Some(vm), ..Frame::HOST };
        self.frames.get(&pfn).is_some_and(|frame| Frame { owes_scrub: false, ..frame.clone() } == parked)
    }

    fn takes_block(&self, vm: usize, gfn: u64, kind: u64) -> bool {
        let Some(vm) = self.vms.get(&vm) else { return false };
        (gfn..gfn + BLOCK).all(|gfn| {
            let address = vm.address(gfn);
            address.frame.is_none() && kind_of(address.status) == Some(kind)
        })
    }

    fn take_block(&mut self, vm: usize, gfn: u64, first: u64, kind: u64) -> Option<Reply> {
        for index in 0..BLOCK {
            if let Err((status, mask)) = self.judge_free(first + index) {
                return Some(Reply::blocked(status, index, mask));
            }
        }
        if !self.takes_block(vm, gfn, kind) {
            return Some(Reply::blocked(Status::Denied, 0, reply::STATE));
        }
        for index in 0..BLOCK {
            let parked = Frame { state: State::Quarantine, owner: Some(vm), owes_scrub: true, ..Frame::HOST };
            self.frames.insert(first + index, parked);
        }
        None
    }

    fn scrub(&mut self, vm: usize, gfn: u64, pfn: u64, groups: u64, kind: u64) -> Option<Expect> {
        let plain = |reply| Some(Expect { reply, tables: true });
        let (start, first, base) = (pfn % BLOCK, pfn - pfn % BLOCK, gfn - gfn % BLOCK);
        if !self.takes_block(vm, base, kind) {
            return plain(Reply::blocked(Status::Denied, 0, reply::STATE));
        }
        let mut place = start;
        for _ in 0..groups {
            let group = place / GROUP * GROUP;
            if (group..group + GROUP).any(|place| !self.is_parked(vm, first + place)) {
                let refusal = Reply::blocked(Status::Denied, place - start, reply::STATE);
                return plain(Reply { done: place - start, ..refusal });
            }
            for place in group..group + GROUP {
                if let Some(frame) = self.frames.get_mut(&(first + place)) {
                    frame.owes_scrub = false;
                }
            }
            place = group + GROUP;
            // The last group comes with the giving.
            if place == BLOCK || place == BLOCK - GROUP && place - start > GROUP {
                break;
            }
        }
        if place == BLOCK {
            let ready = |pfn| self.is_parked(vm, pfn) && !self.frames[&pfn].owes_scrub;
            if !(first..first + BLOCK).all(ready) {
                return plain(Reply::blocked(Status::Denied, 0, reply::STATE));
            }
            for index in 0..BLOCK {
                self.give(vm, base + index, first + index, kind);
            }
        }
        plain(Reply::done(place - start))
    }
}
