//! The ways out of a guest: reclaim by the host, relinquish by the guest, and what death does to a page.

use tenure_abi::flags::status;
use tenure_abi::page::State;
use tenure_abi::reply::{Reply, Status};

use super::{Held, Seen, hold};
use crate::addr::{Gfn, Pfn, checked_end};
use crate::machine::Machine;
use crate::manager::{Mm, SCRUB_CHUNK};
use crate::stage2::guest::{Cursor, walk};
use crate::stage2::host::FRAMES;
use crate::stage2::{Descriptor, GUEST_FRAMES};
use crate::state::{self, Refusal};
use crate::sync::Ordering;
use crate::tlb::Flush;
use crate::vm::Vm;
use crate::word::Frozen;

impl<'a, M: Machine> Mm<'a, M> {
    /// The host takes back frames that the VM has no leaf of, scrubbed. The first 32, or none. The guest's addresses
    /// keep their status.
    #[inline(never)]
    pub fn reclaim(&self, vm: &Vm, pfn: Pfn, count: u64) -> Reply {
        if checked_end(pfn.0, count, FRAMES).is_none() {
            return Reply::refused(Status::Invalid);
        }
        let count = count.min(SCRUB_CHUNK);
        let mut held = Held::new();
        for index in 0..count {
            let frame = pfn.offset(index);
            let verdict = self.cell(frame).and_then(|cell| {
                let word = cell.load();
                state::reclaim(word, vm.slot(), vm.is_sealed())
                    .and_then(|()| hold(&mut held, cell, frame, word, word))
            });
            if let Err(refusal) = verdict {
                return refusal.at(index);
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
        let mut gone = 0u64;
        for index in 0..count {
            let verdict = match self.look(&mut cursor, gfn.offset(index)) {
                Ok(Seen::Frame { cell, word, frame }) => state::leave(word, vm.slot()).and_then(|()| {
                    gone |= 1 << index;
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
        {
            let _structure = vm.lock();
            let pages = || (0..count).filter(|index| gone >> index & 1 == 1).map(|index| gfn.offset(index));
            for gfn in pages() {
                let entry = walk(&self.machine, root, gfn);
                entry.write(&self.machine, Descriptor::status(status::RELINQUISHED));
            }
            if gone != 0 {
                let flush = Flush::begin(&self.machine, vm.vmid(), held.len() as u64);
                pages().for_each(|gfn| flush.page(Pfn(gfn.0)));
                flush.finish();
            }
        }
        self.retire(&mut held);
        Reply::done(count)
    }

    /// Frozen pages whose guest leaf is gone (its invalidation complete) leave their VM: to quarantine while pinned,
    /// else scrubbed to the host. Frames that were the host's all along just lose the leaf.
    pub(crate) fn retire(&self, held: &mut Held<'_>) {
        let redirected = held.iter().filter(|page| page.before().is_redirected()).map(Frozen::frame);
        let count = redirected.clone().count() as u64;
        if count > 0 {
            self.drop_host_leaves(redirected, count);
        }
        // Private contents go before anybody may look, even if a pin keeps the frame in quarantine.
        let dirty = held.iter().filter(|page| match page.before().state() {
            State::Host => false,
            State::Private => true,
            _ => !page.before().is_host_pinned(),
        });
        self.scrub_all(dirty.map(Frozen::frame));
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
