//! Table memory: pages that the host gives to a pool and takes back.

use arrayvec::ArrayVec;
use tenure_abi::page::State;
use tenure_abi::reply::{Reply, Status};

use super::Held;
use crate::addr::{Pfn, checked_end};
use crate::machine::Machine;
use crate::manager::{Mm, SCRUB_CHUNK};
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
        // The reserve is for the host's own pool: it may have to split a block to take its first page.
        let reserve = if vm.is_some() { RESERVE } else { 0 };
        if let Err(refusal) = self.reach_host_leaves(pfn, count, reserve) {
            return refusal.whole();
        }
        self.unmap_own(held.iter().map(Frozen::frame));
        match vm {
            Some(vm) => {
                let pool = &mut vm.lock().pool;
                self.fill_pool(|page| pool.add(&self.machine, page), vm.slot(), &mut held);
            }
            None => {
                let mut pool = self.host_pool();
                self.fill_pool(|page| pool.add(&self.machine, page), Slot::NONE, &mut held);
            }
        }
        Reply::done(count)
    }

    fn fill_pool(&self, mut add: impl FnMut(Pfn), owner: Slot, held: &mut Held<'_>) {
        for page in held.drain(..) {
            add(page.frame());
            let word = page.before().with_state(State::Hyp, owner).with_host_leaf(false);
            page.publish(word);
        }
    }

    /// Takes up to `max` (at most 8) free pages out of a pool; they are the host's again, scrubbed. The host's own pool
    /// gives what the host lent to it.
    pub fn pool_drain(&self, vm: Option<&Vm>, max: u64) -> (Reply, Returned) {
        let mut pages = Returned::new();
        if max == 0 || max > DRAIN_MAX as u64 {
            return (Reply::refused(Status::Invalid), pages);
        }
        if vm.is_none() {
            // A block that is whole again has a table to give.
            self.tidy(true);
        }
        let mut inner = vm.map(Vm::lock);
        let mut host = vm.is_none().then(|| self.host_pool());
        for _ in 0..max {
            let page = match (&mut inner, &mut host) {
                (Some(inner), _) => inner.pool.remove(&self.machine),
                (None, Some(pool)) if pool.free() > RESERVE => pool.remove(&self.machine),
                _ => None,
            };
            let Some(page) = page else { break };
            if self.give_back(page).is_err() {
                match (&mut inner, &mut host) {
                    (Some(inner), _) => inner.pool.add(&self.machine, page),
                    (None, Some(pool)) => pool.add(&self.machine, page),
                    _ => {}
                }
                break;
            }
            let _ = pages.try_push(page);
        }
        (Reply::done(pages.len() as u64), pages)
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
        let frame = page.frame();
        page.publish(word);
        self.came_home(core::iter::once(frame));
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
