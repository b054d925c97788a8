//! Secondary CPUs: started by PSCI, each with a stack of its own.
#![allow(unsafe_code)] // Stacks and start blocks are statics that another CPU takes over.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::call::{hvc, psci};
use crate::start::{Secondary, secondary_entry};

/// Secondary CPUs that there are stacks for.
pub const MAX: usize = 3;
const STACK: usize = 128 << 10;

#[repr(C, align(16))]
struct Area {
    stack: UnsafeCell<[u8; STACK]>,
    start: UnsafeCell<Secondary>,
    taken: AtomicBool,
}

// SAFETY: `taken` gives an area to one starter, and through it to one CPU, at a time.
unsafe impl Sync for Area {}

extern "C" fn nothing(_: u64) {}

static AREAS: [Area; MAX] = [const {
    Area {
        stack: UnsafeCell::new([0; STACK]),
        start: UnsafeCell::new(Secondary { stack_top: 0, entry: nothing, argument: 0 }),
        taken: AtomicBool::new(false),
    }
}; MAX];

/// Starts the CPU with this MPIDR in area `index`: it runs `entry(argument)`. PSCI's answer, 0 for success.
///
/// The area is the CPU's until [`release`].
pub fn start(mpidr: u64, index: usize, entry: extern "C" fn(u64), argument: u64) -> i64 {
    const INVALID_PARAMETERS: i64 = -2;
    let Some(area) = AREAS.get(index) else { return INVALID_PARAMETERS };
    if area.taken.swap(true, Ordering::Acquire) {
        return INVALID_PARAMETERS;
    }
    let stack_top = area.stack.get() as u64 + STACK as u64;
    // SAFETY: `taken` makes this the only writer, and no CPU runs in the area yet.
    unsafe { area.start.get().write(Secondary { stack_top, entry, argument }) };
    crate::cpu::barrier();
    let answer = hvc(psci::CPU_ON, &[mpidr, secondary_entry(), area.start.get() as u64]).x(0) as i64;
    if answer != 0 {
        area.taken.store(false, Ordering::Release);
    }
    answer
}

/// The CPU that ran in area `index` is off (AFFINITY_INFO says so): the area may be used again.
pub fn release(index: usize) {
    if let Some(area) = AREAS.get(index) {
        area.taken.store(false, Ordering::Release);
    }
}

/// Turns this CPU off; returns PSCI's answer if that failed.
pub fn off() -> i64 {
    hvc(psci::CPU_OFF, &[]).x(0) as i64
}
