//! The end of a VM: every frame goes home, in steps of bounded length.
//!
//! 1. The handle dies; no new call or vCPU gets in, and those inside are waited for by the host calling again.
//! 2. The guest's leaves go, 12 at a time, and their frames with them; a block goes as one leaf, its frames after it.
//! 3. Everything of the VMID is invalidated; nobody walks the tables any more, and they go back to the pool.
//! 4. If the VM has frames that no leaf shows, all words are looked through for them.
//! 5. The pool's pages go home, the scrap frame with them: nothing is redirected to it by now.
//! 6. The slot is free.

use tenure_abi::page::State;
use tenure_abi::reply::{self, Reply, Status};

use super::uproot::Uprooted;
use super::{Held, hold};
use crate::addr::{Gfn, Pa, Pfn};
use crate::machine::Machine;
use crate::manager::{Mm, SCAN_CHUNK};
use crate::stage2::guest::{Entry, walk};
use crate::stage2::{Descriptor, ENTRIES, GUEST_FRAMES, LEAF_LEVEL, ROOT_LEVEL, frames_per_entry, index};

use crate::sync::Ordering;
use crate::tlb;
use crate::vm::{Inner, Slot, Teardown, Vm, VmHandle};
use crate::word::{Frozen, PageWord, Word};

/// Guest addresses that one entry to EL2 looks at for leaves.
const WALK_CHUNK: u64 = 640;

/// Frames that one entry to EL2 takes home.
pub(super) const TEAR_CHUNK: u64 = 12;

/// Entries that one entry to EL2 looks at for tables: each is a walk.
const TABLE_CHUNK: u64 = 192;

/// Where a teardown stands after one step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Destroyed {
    /// SUCCESS when finished; RETRY to call again; INVALID for a stale handle.
    pub reply: Reply,
    /// Everything is back with the host, or in quarantine until its last unpin.
    pub finished: bool,
}

/// Why a phase did not go on.
enum Stopped {
    /// A frozen word: the host's next call tries again. Frames done before it.
    Frozen(u64),
    /// Everything is home.
    Finished,
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
        if self.tidy(false) {
            return again(0, 0);
        }
        let mut inner = vm.lock();
        if vm.handle() != Some(handle) {
            return Destroyed { reply: Reply::refused(Status::Invalid), finished: false };
        }
        match self.tear(vm, &mut inner) {
            Ok(done) => again(done, 0),
            Err(Stopped::Frozen(done)) => again(done, reply::FROZEN),
            Err(Stopped::Finished) => {
                vm.set_scrap(None);
                vm.free();
                Destroyed { reply: Reply::done(0), finished: true }
            }
        }
    }

    /// One bounded step of whatever phase is on. Returns frames done.
    fn tear(&self, vm: &Vm, inner: &mut Inner) -> Result<u64, Stopped> {
        match inner.teardown {
            Teardown::Leaves(next) => match vm.root() {
                Some(root) => self.tear_leaves(vm, inner, root, next),
                None => {
                    inner.teardown = Teardown::Orphans(0);
                    Ok(0)
                }
            },
            Teardown::Block { first, done, next } => {
                let (to, frozen) = self.retire_parked(vm, first, done);
                inner.teardown = match to {
                    ENTRIES => Teardown::Leaves(next),
                    done => Teardown::Block { first, done, next },
                };
                if frozen { Err(Stopped::Frozen(to - done)) } else { Ok(to - done) }
            }
            Teardown::Tables { root, next } => {
                let (done, next) = self.tear_tables(inner, root, next, GUEST_FRAMES);
                inner.teardown = match (next, inner.kept.root()) {
                    (Some(next), _) => Teardown::Tables { root, next },
                    (None, Some(root)) => Teardown::Kept { root, next: 0 },
                    (None, None) => Teardown::Orphans(0),
                };
                Ok(done)
            }
            Teardown::Kept { root, next } => {
                // Level-2 tables stand in the other half of the root.
                let (done, next) = self.tear_tables(inner, root, next, 2 * GUEST_FRAMES);
                inner.teardown = next.map_or(Teardown::Orphans(0), |next| Teardown::Kept { root, next });
                Ok(done)
            }
            // Frames without a leaf are rare: where there are none, nobody looks for them.
            Teardown::Orphans(_) if vm.orphans.load(Ordering::Relaxed) == 0 => {
                if let Some(scrap) = vm.scrap() {
                    vm.set_scrap(None);
                    inner.pool.put(&self.machine, scrap);
                }
                inner.teardown = Teardown::Pages;
                Ok(0)
            }
            Teardown::Orphans(next) => self.tear_orphans(vm, inner, next),
            Teardown::Pages => self.tear_pages(inner),
            Teardown::Strays(next) => self.tear_strays(vm, inner, next),
        }
    }

    /// Takes the next leaves down.
    #[inline(never)]
    fn tear_leaves(&self, vm: &Vm, inner: &mut Inner, root: Pa, mut next: u64) -> Result<u64, Stopped> {
        let mut held = Held::new();
        let mut frozen = false;
        let mut budget = WALK_CHUNK;
        while budget > 0 && next < GUEST_FRAMES && !frozen && (held.len() as u64) < TEAR_CHUNK {
            let entry = walk(&self.machine, root, Gfn(next));
            if entry.level < LEAF_LEVEL && entry.is_leaf() {
                // To take a block down takes half of a step's time.
                if !held.is_empty() || budget < WALK_CHUNK - WALK_CHUNK / 4 {
                    break;
                }
                return match self.uproot_block(vm, inner, root, next) {
                    Uprooted::Block => Ok(0),
                    Uprooted::Frozen => Err(Stopped::Frozen(0)),
                };
            }
            if entry.level < LEAF_LEVEL {
                let span = frames_per_entry(entry.level);
                next = (next & !(span - 1)).saturating_add(span);
                budget -= 1;
                continue;
            }
            let run = budget.min(ENTRIES - next % ENTRIES);
            let (passed, stopped) = self.tear_table(&mut held, entry, run);
            next += passed;
            budget = budget.saturating_sub(passed.max(1));
            frozen = stopped;
        }
        let done = held.len() as u64;
        inner.teardown = Teardown::Leaves(next);
        let last = next >= GUEST_FRAMES;
        if done > 0 || last {
            // At the end the last of the VM's translations, those of its tables included.
            tlb::flush_vmid(&self.machine, vm.vmid());
        }
        if last {
            vm.set_root(None);
            inner.teardown = Teardown::Tables { root, next: 0 };
        }
        self.retire(&mut held);
        if frozen { Err(Stopped::Frozen(done)) } else { Ok(done) }
    }

    /// Gives the next tables back to the pool, lower levels first. Returns how many, and where to go on, if not at the
    /// end.
    fn tear_tables(&self, inner: &mut Inner, root: Pa, mut next: u64, end: u64) -> (u64, Option<u64>) {
        let mut done = 0;
        for _ in 0..TABLE_CHUNK {
            if next >= end {
                inner.pool.put(&self.machine, root.frame());
                return (done + 1, None);
            }
            // The table above the entry where the walk ends goes when its last entry has been passed.
            let entry = walk(&self.machine, root, Gfn(next));
            if entry.level == LEAF_LEVEL {
                self.unlink(inner, root, next, LEAF_LEVEL - 1);
                done += 1;
                continue;
            }
            let span = frames_per_entry(entry.level);
            next = (next & !(span - 1)).saturating_add(span);
            let parent = ROOT_LEVEL + 1;
            if entry.level == parent && next.is_multiple_of(span * ENTRIES) {
                self.unlink(inner, root, next - 1, parent - 1);
                done += 1;
            }
        }
        (done, Some(next))
    }

    /// Gives the table that the entry of `level` over `gfn` points to back to the pool.
    fn unlink(&self, inner: &mut Inner, root: Pa, gfn: u64, level: u32) {
        let mut table = root;
        let mut at = ROOT_LEVEL;
        loop {
            let slot = index(gfn, at) & (ENTRIES as usize - 1);
            let descriptor = Descriptor(self.machine.read(table, slot));
            if !descriptor.is_table(at) {
                return;
            }
            if at == level {
                self.machine.write(table, slot, Descriptor::INVALID.0);
                inner.pool.put(&self.machine, descriptor.next().frame());
                return;
            }
            table = descriptor.next();
            at += 1;
        }
    }

    /// Takes leaves of one level-3 table down, from `entry` on for `run` entries, until enough are held. Returns the
    /// entries passed, and whether a frozen word stopped it.
    fn tear_table<'w>(&'w self, held: &mut Held<'w>, entry: Entry, run: u64) -> (u64, bool) {
        for (passed, slot) in (0..run).zip(entry.index..) {
            let leaf = Descriptor(self.machine.read(entry.table, slot));
            if !leaf.is_valid() {
                continue;
            }
            if held.len() as u64 >= TEAR_CHUNK {
                return (passed, false);
            }
            let Ok(cell) = self.cell(leaf.frame()) else { continue };
            let word = cell.load();
            if hold(held, cell, leaf.frame(), word, word).is_err() {
                return (passed, true);
            }
            self.machine.write(entry.table, slot, Descriptor::INVALID.0);
        }
        (run, false)
    }

    /// Looks through the next words for frames that no leaf shows.
    fn tear_orphans(&self, vm: &Vm, inner: &mut Inner, next: u64) -> Result<u64, Stopped> {
        let found = |word: Word| word.state() != State::Hyp;
        let (at, done, stopped) = self.tear_words(vm.slot(), next, found, |page| {
            vm.orphans.fetch_sub(1, Ordering::Relaxed);
            self.retire_one(page);
        });
        inner.teardown = Teardown::Orphans(at.unwrap_or(0));
        if at.is_none() {
            vm.orphans.store(0, Ordering::Relaxed);
        }
        if stopped { Err(Stopped::Frozen(done)) } else { Ok(done) }
    }

    /// Gives free pages of the pool home. What the pool has lent and did not get back is looked for afterwards.
    fn tear_pages(&self, inner: &mut Inner) -> Result<u64, Stopped> {
        for done in 0..TEAR_CHUNK {
            let Some(page) = inner.pool.remove(&self.machine) else {
                if inner.pool.total() == 0 {
                    return Err(Stopped::Finished);
                }
                inner.teardown = Teardown::Strays(0);
                return Ok(done);
            };
            if self.give_back(page).is_err() {
                inner.pool.add(&self.machine, page);
                return Err(Stopped::Frozen(done));
            }
        }
        Ok(TEAR_CHUNK)
    }

    /// Looks through the next words for pages of the VM's pool that nobody gave back.
    fn tear_strays(&self, vm: &Vm, inner: &mut Inner, next: u64) -> Result<u64, Stopped> {
        let (at, done, stopped) = self.tear_words(
            vm.slot(),
            next,
            |word| word.state() == State::Hyp,
            |page| self.release_hyp(page),
        );
        let Some(at) = at else { return Err(Stopped::Finished) };
        inner.teardown = Teardown::Strays(at);
        if stopped { Err(Stopped::Frozen(done)) } else { Ok(done) }
    }

    /// Looks through words from the `next`th on and hands the VM's frames that `wanted` says, frozen, to `each`.
    /// Returns where to go on (`None` at the end), the frames done, and whether a frozen word stopped it.
    fn tear_words(
        &self,
        slot: Slot,
        mut next: u64,
        wanted: impl Fn(Word) -> bool,
        mut each: impl FnMut(Frozen<'_>),
    ) -> (Option<u64>, u64, bool) {
        let mut done = 0;
        for _ in 0..SCAN_CHUNK {
            let Some((frame, cell)) = self.nth_frame(next) else { return (None, done, false) };
            let word = cell.load();
            if word.owner() == slot && wanted(word) {
                if done >= TEAR_CHUNK {
                    break;
                }
                let Ok(page) = cell.freeze(frame, word, word) else { return (Some(next), done, true) };
                each(page);
                done += 1;
            }
            next += 1;
        }
        (Some(next), done, false)
    }

    #[inline(never)]
    fn retire_one(&self, page: Frozen<'_>) {
        let mut held = Held::new();
        let _ = held.try_push(page);
        self.retire(&mut held);
    }

    fn nth_frame(&self, mut index: u64) -> Option<(Pfn, &PageWord)> {
        for region in self.frames.regions() {
            if let Some(cell) = region.words.get(index as usize) {
                return Some((region.first.offset(index), cell));
            }
            index -= region.words.len() as u64;
        }
        None
    }
}
