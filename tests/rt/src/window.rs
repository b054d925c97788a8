//! Marks for an observer of the machine (xtask's TCG plugin): instructions that do nothing and are counted from and to.
#![allow(unsafe_code)] // Each function is one instruction, a write to the zero register.

use core::arch::asm;

/// The next section begins: windows count for it from here on.
pub fn next_section() {
    // SAFETY: no effect; like the others not `nomem`, so that no access is moved across it.
    unsafe { asm!("movz xzr, #2", options(nostack, preserves_flags)) };
}

/// What follows counts.
#[inline(always)]
pub fn open() {
    // SAFETY: no effect.
    unsafe { asm!("movz xzr, #1", options(nostack, preserves_flags)) };
}

/// What follows does not count.
#[inline(always)]
pub fn close() {
    // SAFETY: no effect.
    unsafe { asm!("movz xzr, #0", options(nostack, preserves_flags)) };
}
