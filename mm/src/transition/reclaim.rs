//! The ways out of a guest: reclaim by the host, relinquish by the guest, and what death does to a page.

use tenure_abi::flags::status;
use tenure_abi::page::State;
use tenure_abi::reply::{Reply, Status};

use super::uproot::Leaving;
use super::{Held, Seen, hold};
use crate::addr::{Gfn, Pfn, checked_end};
use crate::machine::Machine;
use crate::manager::{Mm, SCRUB_CHUNK};
use crate::stage2::GUEST_FRAMES;
use crate::stage2::guest::Cursor;
use crate::stage2::host::FRAMES;
use crate::state::{self, Refusal};
use crate::sync::Ordering;
use crate::vm::Vm;
use crate::word::Frozen;

/// Frames that a reclaim takes after it has looked after a block of the host.
const AFTER_TIDY: u64 = 8;

impl<'a, M: Machine> Mm<'a, M> {
    /// The host takes back frames that the VM has no leaf of, or that are parked for it, scrubbed. The first 32 (8 where
    /// there is other work to do), or none. The guest's addresses
    /// keep their status.
    #[inline(never)]
    pub fn reclaim(&self, vm: &Vm, pfn: Pfn, count: u64) -> Reply {
        if checked_end(pfn.0, count, FRAMES).is_none() {
            return Reply::refused(Status::Invalid);
        }
        // To merge a block of the host takes most of a call's time.
        let count = count.min(if self.tidy(false) { AFTER_TIDY } else { SCRUB_CHUNK });
        // The lock outlives what is held: a parked word is thawed under it too.
        let mut lock = None;
        let mut held = Held::new();
        for index in 0..count {
            let frame = pfn.offset(index);
            let verdict = self.cell(frame).and_then(|cell| {
                if state::is_parked(cell.load(), vm.slot()) {
                    // A parked word changes under the lock only.
                    lock.get_or_insert_with(|| vm.lock());
                }
                let word = cell.load();
                if lock.is_none() && state::is_parked(word, vm.slot()) {
                    return Err(Refusal::FROZEN);
                }
                state::reclaim(word, vm.slot(), vm.is_sealed())
                    .and_then(|()| hold(&mut held, cell, frame, word, word))
            });
            if let Err(refusal) = verdict {
                return refusal.at(index);
            }
        }
        if lock.is_some() {
            let parked = |page: &&Frozen<'_>| page.before().state() == State::Quarantine;
            for page in held.iter().filter(parked) {
                if let Err(refusal) = self.unpark(vm, pfn, page.frame()) {
                    return refusal.at(page.frame().0 - pfn.0);
                }
            }
        }
        vm.orphans.fetch_sub(held.len() as u32, Ordering::Relaxed);
        self.retire(&mut held);
        Reply::done(count)
    }

    /// The guest gives pages back. The first 32, or none. Addresses without a frame count as given back.
    #[inline(never)]
    pub fn guest_relinquish(&self, vm: &Vm, gfn: Gfn, count: u64) -> Reply {
        if checked_end(gfn.0, count, GUEST_FRAMES).is_none() {
            return Reply::refused(Status::Invalid);
        }
        let count = count.min(SCRUB_CHUNK);
        let Some(root) = vm.root() else { return Refusal::UNPOPULATED.at(0) };
        let mut cursor = Cursor::new(root);
        let mut held = Held::new();
        let mut leaving = Leaving::none();
        for index in 0..count {
            let verdict = match self.look(&mut cursor, gfn.offset(index)) {
                Ok(Seen::Frame { cell, word, frame }) => state::leave(word, vm.slot()).and_then(|()| {
                    leaving.goes(index, status::RELINQUISHED);
                    hold(&mut held, cell, frame, word, word)
                }),
                Ok(Seen::Empty(entry)) => match entry.descriptor.address_status() {
                    status::PRIVATE | status::SHARED | status::RELINQUISHED => Ok(()),
                    _ => Err(Refusal::UNPOPULATED),
                },
                Err(refusal) => Err(refusal),
            };
            if let Err(refusal) = verdict {
                return refusal.at(index);
            }
        }
        let dropped = self.drop_guest_leaves(vm, &mut vm.lock(), root, gfn, count, &leaving);
        if let Err(refusal) = dropped {
            return refusal.whole();
        }
        self.retire(&mut held);
        Reply::done(count)
    }

    /// Frozen pages whose guest leaf is gone (its invalidation complete) leave their VM: to quarantine while pinned,
    /// else scrubbed to the host. Frames that were the host's all along just lose the leaf.
    pub(crate) fn retire(&self, held: &mut Held<'_>) {
        // What becomes the host's own gets another leaf, of the host's own type of memory, at the next touch.
        let stale = held.iter().filter(|page| {
            let word = page.before();
            let goes_home = word.state() != State::Host && state::release(state::quarantine(word)).is_some();
            word.is_redirected() || word.has_host_leaf() && goes_home
        });
        let count = stale.clone().count() as u64;
        if count > 0 {
            self.drop_host_leaves(stale.map(Frozen::frame), count);
        }
        // Private contents go before anybody may look, even if a pin keeps the frame in quarantine.
        let dirty = held.iter().filter(|page| match page.before().state() {
            State::Host => false,
            State::Private | State::Quarantine => true,
            _ => !page.before().is_host_pinned(),
        });
        self.scrub_all(dirty.map(Frozen::frame));
        self.came_home(held.iter().map(Frozen::frame));
        for page in held.drain(..) {
            let before = page.before();
            let word = before.remove_guest_leaf().unwrap_or(before);
            if before.state() == State::Host {
                page.publish(word);
                continue;
            }
            let quarantined = state::quarantine(word);
            page.publish(state::release(quarantined).unwrap_or(quarantined));
        }
    }
}
