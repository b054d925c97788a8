//! Table memory: pages that the host gives to a pool and takes back.

use arrayvec::ArrayVec;
use tenure_abi::page::State;
use tenure_abi::reply::{Reply, Status};

use super::Held;
use crate::addr::{Pfn, checked_end};
use crate::machine::Machine;
use crate::manager::{Mm, SCRUB_CHUNK};
use crate::pool::Pool;
use crate::stage2::host::{FRAMES, RESERVE};
use crate::state::Refusal;
use crate::vm::{Slot, Vm};
use crate::word::{Frozen, Word};

/// Pages that one drain of a pool gives back at most: they are named in registers.
pub const DRAIN_MAX: usize = 8;

/// Pages that a pool gave back.
pub type Returned = ArrayVec<Pfn, DRAIN_MAX>;

impl<'a, M: Machine> Mm<'a, M> {
    /// The host gives frames to the pool of `vm`, or to its own (`None`). The first 32, or none.
    #[inline(never)]
    pub fn pool_topup(&self, vm: Option<&Vm>, pfn: Pfn, count: u64) -> Reply {
        if checked_end(pfn.0, count, FRAMES).is_none() {
            return Reply::refused(Status::Invalid);
        }
        let count = count.min(SCRUB_CHUNK);
        let mut held = Held::new();
        if let Err(reply) = self.freeze_donation(&mut held, pfn, count, false) {
            return reply;
        }
        let verdict = match vm {
            Some(vm) => {
                let mut inner = vm.lock();
                let mut host_pool = self.host_pool();
                self.reserve_host(&host_pool, pfn, count, RESERVE).map(|()| {
                    self.unmap_own(&mut host_pool, &held);
                    self.fill_pool(&mut inner.pool, vm.slot(), &mut held);
                })
            }
            None => {
                // The reserve is for this: the host's pool may have to split a block to take its first page.
                let mut host_pool = self.host_pool();
                self.reserve_host(&host_pool, pfn, count, 0).map(|()| {
                    self.unmap_own(&mut host_pool, &held);
                    self.fill_pool(&mut host_pool, Slot::NONE, &mut held);
                })
            }
        };
        match verdict {
            Ok(()) => Reply::done(count),
            Err(refusal) => refusal.whole(),
        }
    }

    fn fill_pool(&self, pool: &mut Pool, owner: Slot, held: &mut Held<'_>) {
        for page in held.drain(..) {
            pool.add(&self.machine, page.frame());
            let word = page.before().with_state(State::Hyp, owner).with_host_leaf(false);
            page.publish(word);
        }
    }

    /// Takes up to `max` (at most 8) free pages out of a pool; they are the host's again, scrubbed. The host's own
    /// pool keeps what it was booted with.
    pub fn pool_drain(&self, vm: Option<&Vm>, max: u64) -> (Reply, Returned) {
        let mut pages = Returned::new();
        if max == 0 || max > DRAIN_MAX as u64 {
            return (Reply::refused(Status::Invalid), pages);
        }
        match vm {
            Some(vm) => self.drain_into(&mut vm.lock().pool, max, 0, 0, &mut pages),
            None => {
                let floor = self.host_pool_floor();
                self.drain_into(&mut self.host_pool(), max, floor, RESERVE, &mut pages);
            }
        }
        (Reply::done(pages.len() as u64), pages)
    }

    fn drain_into(&self, pool: &mut Pool, max: u64, floor: u64, reserve: u64, pages: &mut Returned) {
        for _ in 0..max {
            if pool.total() <= floor || pool.free() <= reserve {
                break;
            }
            let Some(page) = pool.remove(&self.machine) else { break };
            if self.give_back(page).is_err() {
                pool.add(&self.machine, page);
                break;
            }
            let _ = pages.try_push(page);
        }
    }

    /// A page of the hypervisor becomes the host's, scrubbed.
    pub(super) fn give_back(&self, page: Pfn) -> Result<(), Refusal> {
        let cell = self.cell(page)?;
        let word = cell.load();
        let frozen = cell.freeze(page, word, word).map_err(|_| Refusal::FROZEN)?;
        self.release_hyp(frozen);
        Ok(())
    }

    /// A frozen page of the hypervisor becomes the host's, scrubbed.
    pub(crate) fn release_hyp(&self, page: Frozen<'_>) {
        // In panic mode the host may have looked at scrap in its place.
        if page.before().is_redirected() {
            self.drop_host_leaves(core::iter::once(page.frame()), 1);
        }
        self.scrub_all(core::iter::once(page.frame()));
        let word: Word = page.before().with_redirection(false).with_state(State::Host, Slot::NONE);
        page.publish(word);
    }

    /// Free and total pages of a pool.
    pub fn pool_info(&self, vm: Option<&Vm>) -> (u64, u64) {
        match vm {
            Some(vm) => {
                let inner = vm.lock();
                (inner.pool.free(), inner.pool.total())
            }
            None => {
                let pool = self.host_pool();
                (pool.free(), pool.total())
            }
        }
    }
}
