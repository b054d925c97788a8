//! Guest leaves that the host makes and drops, and the guest's faults.

use tenure_abi::MAX_ATOMIC_PAGES;
use tenure_abi::flags::status;
use tenure_abi::page::State;
use tenure_abi::reply::{Reply, Status};

use super::status::measure;
use super::uproot::Leaving;
use super::{Held, Seen, hold};
use crate::addr::{Gfn, Ipa, Pfn, checked_end};
use crate::machine::Machine;
use crate::manager::{Mm, SCRUB_CHUNK};
use crate::stage2::guest::{Cursor, ensure, tables_needed, walk};
use crate::stage2::host::FRAMES;
use crate::stage2::{Descriptor, GUEST_FRAMES, LEAF_LEVEL};
use crate::state::{self, Refusal};
use crate::sync::Ordering;
use crate::vm::Vm;
use crate::word::Word;

/// What a fault of a guest leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestFault {
    /// Return to the instruction: the leaf is there.
    Resume,
    /// Declared RAM without a frame: the host is asked for one of this kind (`TENURE_ADDR_PRIVATE` or `_SHARED`).
    Populate(u64),
    /// A device that the host emulates.
    Device,
    /// Nothing is declared here: a plain VM's host decides, a protected guest gets an abort.
    Undeclared,
}

impl<'a, M: Machine> Mm<'a, M> {
    /// The guest faulted in its stage 2 at `ipa`.
    pub fn guest_fault(&self, vm: &Vm, ipa: Ipa) -> GuestFault {
        let (Some(root), true) = (vm.root(), ipa.frame().0 < GUEST_FRAMES) else {
            return GuestFault::Undeclared;
        };
        let entry = walk(&self.machine, root, ipa.frame());
        if entry.descriptor.is_valid() || entry.descriptor.is_moving() {
            return GuestFault::Resume;
        }
        match entry.descriptor.address_status() {
            status::PRIVATE | status::RELINQUISHED => GuestFault::Populate(status::PRIVATE),
            status::SHARED => GuestFault::Populate(status::SHARED),
            status::DEVICE => GuestFault::Device,
            _ => GuestFault::Undeclared,
        }
    }

    /// Maps frames that stay the host's into a plain VM (at undeclared addresses), or frames that the VM shares and
    /// has no leaf of (at shared addresses). The first 32, or none.
    #[inline(never)]
    pub fn guest_map(&self, vm: &Vm, gfn: Gfn, pfn: Pfn, count: u64) -> Reply {
        if checked_end(gfn.0, count, GUEST_FRAMES).is_none() || checked_end(pfn.0, count, FRAMES).is_none() {
            return Reply::refused(Status::Invalid);
        }
        let count = count.min(SCRUB_CHUNK);
        let mut held = Held::new();
        for index in 0..count {
            let frame = pfn.offset(index);
            let verdict = self.cell(frame).and_then(|cell| {
                let word = cell.load();
                let next = state::map_guest(word, vm.slot(), vm.is_protected())?;
                hold(&mut held, cell, frame, word, next)
            });
            if let Err(refusal) = verdict {
                return refusal.at(index);
            }
        }
        let mut inner = vm.lock();
        let root = match self.ensure_root(vm, &mut inner.pool) {
            Ok(root) => root,
            Err(refusal) => return refusal.whole(),
        };
        for (index, page) in (0..).zip(&held) {
            let entry = walk(&self.machine, root, gfn.offset(index));
            let wanted = status_of(page.before());
            if entry.descriptor.is_valid() || entry.descriptor.address_status() != wanted {
                return Refusal::STATE.at(index);
            }
        }
        if inner.pool.free() < tables_needed(&self.machine, root, gfn, count, LEAF_LEVEL) {
            return Refusal::VM_POOL.whole();
        }
        held.iter().for_each(|page| self.machine.clean_to_poc(page.frame()));
        self.machine.dsb_ish();
        self.machine.drop_instructions();
        for (index, page) in (0..).zip(&held) {
            let at = gfn.offset(index);
            if let Some(entry) = ensure(&self.machine, &mut inner.pool, root, at, LEAF_LEVEL) {
                entry.write(&self.machine, Descriptor::page(page.frame(), self.guest_attr));
            }
        }
        self.machine.dsb_ish();
        for page in held.drain(..) {
            let before = page.before();
            if before.state() != State::Host {
                vm.orphans.fetch_sub(1, Ordering::Relaxed);
            }
            page.publish(before.add_guest_leaf().unwrap_or(before));
        }
        // After a full chunk there is no time left to merge: the next call in this table may.
        if count < SCRUB_CHUNK {
            self.tables(vm, &mut inner, root).merge(gfn.offset(count - 1));
        }
        Reply::done(count)
    }

    /// Drops guest leaves; the addresses keep their status. Never of a private page of an active protected VM; before that
    /// the measurement tells of it: what was placed there is gone. All of the first 512, or none; a frame that stands at
    /// two addresses of a plain VM ends the call before the second.
    #[inline(never)]
    pub fn guest_unmap(&self, vm: &Vm, gfn: Gfn, count: u64) -> Reply {
        if checked_end(gfn.0, count, GUEST_FRAMES).is_none() {
            return Reply::refused(Status::Invalid);
        }
        let mut count = count.min(MAX_ATOMIC_PAGES);
        let Some(root) = vm.root() else { return Reply::done(count) };
        let mut cursor = Cursor::new(root);
        let mut held = Held::new();
        let mut leaving = Leaving::none();
        let (slot, sealed) = (vm.slot(), vm.is_sealed());
        let mut index = 0;
        while index < count {
            let before = held.len();
            index += self.freeze_run(&mut cursor, gfn.offset(index), count - index, &mut held, |_, word| {
                state::unmap_guest(word, slot, sealed).is_ok()
            });
            let frozen = held.iter().skip(before);
            (index + before as u64 - held.len() as u64..)
                .zip(frozen)
                .for_each(|(index, page)| leaving.goes(index, status_of(page.before())));
            if index == count {
                break;
            }
            let verdict = match self.look(&mut cursor, gfn.offset(index)) {
                // Frozen by this very call: it goes in the next.
                Ok(Seen::Frame { word, frame, .. })
                    if word.is_frozen() && held.iter().any(|page| page.frame() == frame) =>
                {
                    count = index;
                    break;
                }
                Ok(Seen::Frame { cell, word, frame }) => state::unmap_guest(word, slot, sealed)
                    .and_then(|_| hold(&mut held, cell, frame, word, word))
                    .map(|()| leaving.goes(index, status_of(word))),
                Ok(Seen::Empty(_)) => Ok(()),
                Err(refusal) => Err(refusal),
            };
            if let Err(refusal) = verdict {
                return refusal.at(index);
            }
            index += 1;
        }
        let mut inner = vm.lock();
        let places = held.iter().any(|page| page.before().state() == State::Private) && vm.is_protected();
        // Activation takes the lock: the VM may have been activated, and its guest may run, since the pages were judged.
        if places && vm.is_active() {
            return Refusal::FROZEN.whole();
        }
        if let Err(refusal) = self.drop_guest_leaves(vm, &mut inner, root, gfn, count, &leaving) {
            return refusal.whole();
        }
        if places {
            measure(&mut inner, &[b"unmap", &gfn.0.to_le_bytes(), &count.to_le_bytes()]);
        }
        for page in held.drain(..) {
            let before = page.before();
            if before.state() != State::Host {
                vm.orphans.fetch_add(1, Ordering::Relaxed);
            }
            page.publish(before.remove_guest_leaf().unwrap_or(before));
        }
        Reply::done(count)
    }
}

/// The status that the address of a frame in this state has without it.
pub(super) fn status_of(word: Word) -> u64 {
    match word.state() {
        State::Shared => status::SHARED,
        State::Private => status::PRIVATE,
        _ => status::NONE,
    }
}
