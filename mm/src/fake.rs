//! An adversarial machine for tests on the build machine.
//!
//! It does to the manager whatever the architecture allows, at once and every time: each CPU's TLB has already walked
//! every translation that was ever walkable and keeps it until a TLBI that covers it *and* the issuing CPU's DSB ISH
//! are through (Arm DDI 0487 D8.13); a table write that no DSB has followed is seen by a walker both as the old and as
//! the new descriptor; table descriptors live on in walk caches; what is written stays in dirty lines, with the old
//! contents in the memory behind, until it is cleaned. Since all TLB maintenance of [`Machine`](crate::Machine) is
//! broadcast and every CPU fills as fast as it can, the TLBs of all CPUs hold the same set, which is kept once.
//!
//! - [`FakeMachine::host_read`] and friends are the hostile accesses: they go through if anything stale permits them.
//! - [`FakeMachine::check`] compares all that any CPU may reach with the page words: the promises of the design.
//! - [`Mutation`]s drop one sort of call, so that a test can show that its absence is found.
//!
//! It decodes descriptors by the architecture and shares no code with the manager's own tables.

mod access;
mod check;
mod descriptor;
mod event;
mod inner;
mod machine;
mod memory;
mod mutation;
mod regime;
mod snapshot;
#[cfg(all(test, not(loom)))]
mod tests;
mod tlb;

use core::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use access::Access;
pub use check::{Book, Moment};
pub use descriptor::Perms;
pub use event::{Counts, Event};
pub use mutation::{Mutation, Which};
pub use snapshot::Snapshot;
pub use tlb::Translation;

use crate::{Pfn, Vmid};
use inner::Inner;

/// CPUs of the fake machine.
pub const CPUS: usize = 4;

thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
}

/// Runs `body` as CPU `cpu`.
pub fn on_cpu<R>(cpu: usize, body: impl FnOnce() -> R) -> R {
    let before = CPU.replace(cpu % CPUS);
    let result = body();
    CPU.set(before);
    result
}

fn current_cpu() -> usize {
    CPU.get()
}

/// What another CPU does after an event.
pub type Hook = Arc<dyn Fn(&Event) + Send + Sync>;

/// The machine. All methods take `&self`: it is shared by the test's threads like the real one by its CPUs.
pub struct FakeMachine {
    inner: Mutex<Inner>,
    book: Mutex<Option<Arc<dyn Book>>>,
    hook: Mutex<Option<Hook>>,
}

impl FakeMachine {
    /// A machine with `frames` frames of RAM from `base` up, full of descriptors that map one another: whoever uses
    /// a frame as a table without zeroing it makes a hole at once.
    pub fn new(base: Pfn, frames: u64) -> Self {
        Self { inner: Mutex::new(Inner::new(base, frames)), book: Mutex::new(None), hook: Mutex::new(None) }
    }

    /// Compares what can be reached with `book` at every event from now on, also in the middle of operations.
    pub fn watch(&self, book: Arc<dyn Book>) {
        *lock(&self.book) = Some(book);
    }

    /// Stops watching (a book that borrows the manager must not outlive it).
    pub fn unwatch(&self) {
        *lock(&self.book) = None;
    }

    /// Calls `hook` after every event and every read of a table, with no lock of the machine held: the place for another CPU to interfere.
    /// The hook is taken away while it runs.
    pub fn interfere(&self, hook: Option<Hook>) {
        *lock(&self.hook) = hook;
    }

    /// Lets walkers use the table at `root` (`pages` concatenated pages, start at level 1) for `vmid`.
    pub fn attach(&self, vmid: Vmid, root: Pfn, pages: u64) {
        self.lock().attach(vmid, root, pages);
    }

    /// No CPU has `vmid` loaded any more. What its walkers have put into TLBs stays there.
    pub fn detach(&self, vmid: Vmid) {
        self.lock().detach(vmid);
    }

    /// From now on drops `which` of the calls that `mutation` names.
    pub fn mutate(&self, mutation: Mutation, which: Which) {
        self.lock().mutations.arm(mutation, which);
    }

    /// Calls dropped so far: a mutation that never bit proves nothing.
    pub fn dropped(&self) -> u64 {
        self.lock().mutations.dropped()
    }

    /// What was called since the start or since [`FakeMachine::reset_log`].
    pub fn counts(&self) -> Counts {
        self.lock().log.counts
    }

    /// Every event since the start or since [`FakeMachine::reset_log`], the latest [`event::LOG_LIMIT`] of them.
    pub fn log(&self) -> Vec<Event> {
        self.lock().log.events.iter().copied().collect()
    }

    /// Forgets the log and the counts.
    pub fn reset_log(&self) {
        self.lock().log = event::Log::default();
    }

    /// Gives the CPUs FEAT_TLBIRANGE.
    pub fn give_range_tlbi(&self) {
        self.lock().range_tlbi = true;
    }

    /// Lets the CPUs run with HCR_EL2.FWB.
    pub fn give_fwb(&self) {
        self.lock().fwb = true;
    }

    /// Lets `attention` answer true for the next `calls` calls.
    pub fn want_attention(&self, calls: u64) {
        self.lock().attention = calls;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// After an event: checks it in the light of the words and lets others interfere.
    fn settle(&self, event: Event) {
        let book = lock(&self.book).clone();
        if let Some(book) = book {
            self.lock().check_live(&*book, &event);
        }
        self.tell(&event);
    }

    /// Lets others interfere after `event`.
    fn tell(&self, event: &Event) {
        let hook = lock(&self.hook).take();
        if let Some(hook) = hook {
            hook(event);
            lock(&self.hook).get_or_insert(hook);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
