//! The end of a VM: every frame goes home, in steps of bounded length.
//!
//! 1. The handle dies; no new call or vCPU gets in, and those inside are waited for by the host calling again.
//! 2. The guest's leaves go, 32 at a time, and their frames with them.
//! 3. All words are looked through for what the tables do not show: first frames without a leaf, then pool pages.
//!    Nobody walks the tables any more, so their pages are plain pool pages; the scrap frame is one of them, and what
//!    the host sees through it is gone before it changes hands.
//! 4. The slot is free.

use tenure_abi::page::State;
use tenure_abi::reply::{self, Reply, Status};

use super::{Held, hold};
use crate::addr::{Gfn, Pa, Pfn};
use crate::machine::Machine;
use crate::manager::{Mm, SCAN_CHUNK, SCRUB_CHUNK};
use crate::stage2::guest::{Entry, walk};
use crate::stage2::{Descriptor, GUEST_FRAMES, frames_per_entry};
use crate::state::Refusal;
use crate::sync::Ordering;
use crate::tlb;
use crate::vm::{Inner, Slot, Vm, VmHandle};

/// Table entries that one entry to EL2 looks at.
const WALK_CHUNK: u64 = 1024;

/// Where a teardown stands after one step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Destroyed {
    /// SUCCESS when finished; RETRY to call again; INVALID for a stale handle.
    pub reply: Reply,
    /// Everything is back with the host, or in quarantine until its last unpin.
    pub finished: bool,
}

impl<'a, M: Machine> Mm<'a, M> {
    /// One step of a VM's end. The caller has taken its vCPUs apart before the first.
    pub fn vm_destroy(&self, handle: VmHandle) -> Destroyed {
        let again = |done, mask| Destroyed {
            reply: Reply { done, mask, ..Reply::refused(Status::Retry) },
            finished: false,
        };
        let condemned = self.slot(handle.slot()).filter(|vm| vm.condemn(handle));
        let Some(vm) = condemned else {
            return Destroyed { reply: Reply::refused(Status::Invalid), finished: false };
        };
        if vm.is_used() {
            return again(0, reply::VM_IN_USE);
        }
        let mut inner = vm.lock();
        if vm.handle() != Some(handle) {
            return Destroyed { reply: Reply::refused(Status::Invalid), finished: false };
        }
        if let Some(root) = vm.root() {
            let (done, frozen) = self.tear_leaves(vm, &mut inner, root);
            if inner.teardown.next_gfn < GUEST_FRAMES {
                return again(done, if frozen { reply::FROZEN } else { 0 });
            }
            // The last of the VM's translations, those of its tables included.
            tlb::flush_vmid(&self.machine, vm.vmid());
            vm.set_root(None);
            return again(done, 0);
        }
        let (done, frozen, end) = self.tear_words(vm, &mut inner);
        if !end {
            return again(done, if frozen { reply::FROZEN } else { 0 });
        }
        vm.set_scrap(None);
        vm.free();
        Destroyed { reply: Reply::done(done), finished: true }
    }

    /// Takes the next leaves down. Returns frames done, and whether a frozen word stopped it.
    #[inline(never)]
    fn tear_leaves(&self, vm: &Vm, inner: &mut Inner, root: Pa) -> (u64, bool) {
        let mut held = Held::new();
        let mut frozen = false;
        for _ in 0..WALK_CHUNK {
            if inner.teardown.next_gfn >= GUEST_FRAMES || held.len() as u64 >= SCRUB_CHUNK {
                break;
            }
            let gfn = Gfn(inner.teardown.next_gfn);
            let entry = walk(&self.machine, root, gfn);
            if entry.descriptor.is_valid() && !self.tear_leaf(&mut held, entry) {
                frozen = true;
                break;
            }
            let span = frames_per_entry(entry.level);
            inner.teardown.next_gfn = (gfn.0 & !(span - 1)).saturating_add(span);
        }
        if !held.is_empty() {
            tlb::flush_vmid(&self.machine, vm.vmid());
        }
        let done = held.len() as u64;
        self.retire(&mut held);
        (done, frozen)
    }

    fn tear_leaf<'w>(&'w self, held: &mut Held<'w>, entry: Entry) -> bool {
        let frame = entry.descriptor.frame();
        let Ok(cell) = self.cell(frame) else { return true };
        let word = cell.load();
        if hold(held, cell, frame, word, word).is_err() {
            return false;
        }
        entry.write(&self.machine, Descriptor::INVALID);
        true
    }

    /// Looks through the next words. Returns frames done, whether a frozen word stopped it, and whether it is the end.
    fn tear_words(&self, vm: &Vm, inner: &mut Inner) -> (u64, bool, bool) {
        let mut done = 0;
        // Frames without a leaf are rare: where there is none, one look at the words is enough.
        inner.teardown.pages |= vm.orphans.load(Ordering::Relaxed) == 0;
        for _ in 0..SCAN_CHUNK {
            let Some(frame) = self.nth_frame(inner.teardown.next_frame) else {
                if inner.teardown.pages {
                    return (done, false, true);
                }
                inner.teardown.pages = true;
                inner.teardown.next_frame = 0;
                break;
            };
            if done >= SCRUB_CHUNK {
                break;
            }
            match self.tear_word(vm.slot(), frame, inner.teardown.pages) {
                Ok(true) => done += 1,
                Ok(false) => {}
                Err(_) => return (done, true, false),
            }
            inner.teardown.next_frame += 1;
        }
        (done, false, false)
    }

    #[inline(never)]
    fn tear_word(&self, slot: Slot, frame: Pfn, pages: bool) -> Result<bool, Refusal> {
        let cell = self.cell(frame)?;
        let word = cell.load();
        if word.owner() != slot || (word.state() == State::Hyp) != pages {
            return Ok(false);
        }
        let page = cell.freeze(frame, word, word).map_err(|_| Refusal::FROZEN)?;
        if word.state() == State::Hyp {
            self.release_hyp(page);
            return Ok(true);
        }
        let mut held = Held::new();
        let _ = held.try_push(page);
        self.retire(&mut held);
        Ok(true)
    }

    fn nth_frame(&self, mut index: u64) -> Option<Pfn> {
        for region in self.frames.regions() {
            let len = region.words.len() as u64;
            if index < len {
                return Some(region.first.offset(index));
            }
            index -= len;
        }
        None
    }
}
