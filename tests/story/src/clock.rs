//! The counter as a measure of instructions (QEMU's icount: one instruction is one nanosecond), and marks for an observer.
#![allow(unsafe_code)]
// Reason: each function is one instruction that changes nothing: it reads a counter that user programs may read, or writes
// the zero register.

use std::arch::asm;

/// CNTVCT_EL0, in order with the instructions around it.
pub fn ticks() -> u64 {
    let value: u64;
    // SAFETY: reads the counter; the ISB keeps it from being read early.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) value, options(nostack)) };
    value
}

/// Instructions in `ticks`.
pub fn instructions(ticks: u64) -> f64 {
    let frequency: u64;
    // SAFETY: reads how many ticks a second has.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) frequency, options(nomem, nostack)) };
    ticks as f64 * 1e9 / frequency as f64
}

/// The next section begins: windows count for it from here on.
pub fn next_section() {
    // SAFETY: no effect. (Not `nomem`: no access is moved across it.)
    unsafe { asm!("movz xzr, #2", options(nostack, preserves_flags)) };
}

/// What follows counts.
pub fn open() {
    // SAFETY: as above.
    unsafe { asm!("movz xzr, #1", options(nostack, preserves_flags)) };
}

/// What follows does not count.
pub fn close() {
    // SAFETY: as above.
    unsafe { asm!("movz xzr, #0", options(nostack, preserves_flags)) };
}
