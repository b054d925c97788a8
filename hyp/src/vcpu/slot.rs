//! A vCPU's place in its VM, and who has it.
//!
//! The state word is a lock that nobody waits for: whoever moves it from READY to HELD has the context alone, be it to run
//! the vCPU or to read a register. Unsafe is needed to reach the context by its physical address.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tenure_mm::{Pa, Pfn};

use super::context::Context;

const EMPTY: u32 = 0;
const READY: u32 = 1;
const HELD: u32 = 2;

/// Whether the guest has turned a vCPU on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Power {
    /// It waits for CPU_ON.
    Off,
    /// CPU_ON was called and it has not run since.
    Pending,
    /// It runs when the host runs it.
    On,
}

const OFF: u32 = 0;
const ON: u32 = 1;
const PENDING: u32 = 2;
/// Another vCPU is writing where it is to start.
const STARTING: u32 = 3;

/// The place of one vCPU.
pub struct Slot {
    state: AtomicU32,
    power: AtomicU32,
    context: AtomicU64,
    run_page: AtomicU64,
    entry: AtomicU64,
    argument: AtomicU64,
}

/// What a vCPU had, when it is taken apart.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Its run page, pinned.
    pub run_page: Pfn,
    /// The page of the VM's pool that its context stands in.
    pub context: Pfn,
}

/// Why a vCPU cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unavailable {
    /// There is none.
    Empty,
    /// Another CPU has it.
    Held,
}

impl Slot {
    /// An empty place.
    pub const fn new() -> Self {
        Self {
            state: AtomicU32::new(EMPTY),
            power: AtomicU32::new(OFF),
            context: AtomicU64::new(0),
            run_page: AtomicU64::new(0),
            entry: AtomicU64::new(0),
            argument: AtomicU64::new(0),
        }
    }

    /// No vCPU is here.
    pub fn is_empty(&self) -> bool {
        self.state.load(Ordering::Acquire) == EMPTY
    }

    /// Puts a vCPU here, turned on. The place is empty and the caller holds the VM's gate.
    ///
    /// `page` must be a page of the VM's pool that nobody else has; it is the vCPU's until the VM's end.
    pub fn fill(&self, page: Pfn, run_page: Pfn, context: Context) {
        let at = page.base().0;
        let place = core::ptr::with_exposed_provenance_mut::<Context>(at as usize);
        // SAFETY: a page of the hypervisor's own, mapped, aligned, large enough (see `context`), and the caller's alone.
        unsafe { place.write(context) };
        self.context.store(at, Ordering::Relaxed);
        self.run_page.store(run_page.0, Ordering::Relaxed);
        self.power.store(ON, Ordering::Relaxed);
        self.state.store(READY, Ordering::Release);
    }

    /// Takes the vCPU's context.
    ///
    /// # Errors
    /// There is none, or another CPU has it.
    pub fn hold(&self) -> Result<Held<'_>, Unavailable> {
        match self.state.compare_exchange(READY, HELD, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(Held { slot: self }),
            Err(EMPTY) => Err(Unavailable::Empty),
            Err(_) => Err(Unavailable::Held),
        }
    }

    /// Empties the place if nobody has the vCPU and `undo` succeeds. True if it is empty then.
    pub fn take_apart(&self, undo: &mut impl FnMut(Taken) -> bool) -> bool {
        match self.hold() {
            Err(Unavailable::Empty) => true,
            Err(Unavailable::Held) => false,
            Ok(held) => {
                let context = Pa(self.context.load(Ordering::Relaxed)).frame();
                if !undo(Taken { run_page: held.run_page(), context }) {
                    return false;
                }
                core::mem::forget(held);
                self.power.store(OFF, Ordering::Relaxed);
                self.state.store(EMPTY, Ordering::Release);
                true
            }
        }
    }

    /// Whether it is turned on.
    pub fn power(&self) -> Power {
        match self.power.load(Ordering::Acquire) {
            ON => Power::On,
            OFF => Power::Off,
            _ => Power::Pending,
        }
    }

    /// The host (before activation) or the vCPU itself turns it on or off.
    pub fn set_power(&self, on: bool) {
        self.power.store(if on { ON } else { OFF }, Ordering::Release);
    }

    /// Another vCPU turns it on, to start at `entry` with `argument`.
    ///
    /// # Errors
    /// Its state, if that is not off.
    pub fn power_on(&self, entry: u64, argument: u64) -> Result<(), Power> {
        if self.power.compare_exchange(OFF, STARTING, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return Err(self.power());
        }
        self.entry.store(entry, Ordering::Relaxed);
        self.argument.store(argument, Ordering::Relaxed);
        self.power.store(PENDING, Ordering::Release);
        Ok(())
    }

    /// If CPU_ON was called: where it starts and with what in x0. It is on from now on.
    pub fn take_start(&self) -> Option<(u64, u64)> {
        if self.power.load(Ordering::Acquire) != PENDING {
            return None;
        }
        let start = (self.entry.load(Ordering::Relaxed), self.argument.load(Ordering::Relaxed));
        self.power.store(ON, Ordering::Release);
        Some(start)
    }
}

/// A vCPU's context, held by this CPU.
pub struct Held<'s> {
    slot: &'s Slot,
}

impl Held<'_> {
    /// The context, as the vectors and the exit handler know it. Valid while this is held.
    pub fn pointer(&self) -> *mut Context {
        core::ptr::with_exposed_provenance_mut(self.slot.context.load(Ordering::Relaxed) as usize)
    }

    /// The context.
    pub fn context(&mut self) -> &mut Context {
        // SAFETY: `fill` wrote it, the page stays the vCPU's, and HELD makes it this CPU's alone; the result borrows `self`.
        unsafe { &mut *self.pointer() }
    }

    /// Its place.
    pub fn slot(&self) -> &Slot {
        self.slot
    }

    /// Its run page's frame, pinned by the hypervisor.
    pub fn run_page(&self) -> Pfn {
        Pfn(self.slot.run_page.load(Ordering::Relaxed))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.slot.state.store(READY, Ordering::Release);
    }
}
