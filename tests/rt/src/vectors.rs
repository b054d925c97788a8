//! Exceptions: probes go to their fix-up, SErrors are counted, everything else is told and ends the run.
#![allow(unsafe_code)] // The vectors are assembly, and Rust is entered from them by symbol.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::probe;

/// Registers at an exception, as the vectors save and restore them.
#[repr(C)]
#[derive(Debug)]
pub struct Frame {
    /// x0 to x30.
    pub x: [u64; 31],
    /// Where it happened; where it goes on.
    pub elr: u64,
    /// PSTATE.
    pub spsr: u64,
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1.
    pub far: u64,
    _pad: u64,
}

global_asm!(
    r#"
    .section .text.vectors, "ax"
    .macro rt_vector kind
    .balign 0x80
    sub     sp, sp, #288
    stp     x0, x1, [sp]
    mov     x1, #\kind
    b       rt_exception_entry
    .endm
    .balign 0x800
    .global rt_vectors
rt_vectors:
    .irp kind, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    rt_vector \kind
    .endr
rt_exception_entry:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    mrs     x2, elr_el1
    stp     x30, x2, [sp, #240]
    mrs     x2, spsr_el1
    mrs     x3, esr_el1
    stp     x2, x3, [sp, #256]
    mrs     x2, far_el1
    str     x2, [sp, #272]
    mov     x0, sp
    bl      rt_exception
    ldp     x30, x2, [sp, #240]
    msr     elr_el1, x2
    ldr     x2, [sp, #256]
    msr     spsr_el1, x2
    ldp     x0, x1, [sp]
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    add     sp, sp, #288
    eret
"#
);

static SERRORS: AtomicU64 = AtomicU64::new(0);

/// SErrors taken since the last call of this function.
pub fn take_serrors() -> u64 {
    SERRORS.swap(0, Ordering::Relaxed)
}

/// Called by the vectors; `kind` is the number of the vector (DDI 0487 D1.4.1: four groups of four).
#[unsafe(no_mangle)]
extern "C" fn rt_exception(frame: &mut Frame, kind: u64) {
    const SYNC: u64 = 0;
    const SERROR: u64 = 3;
    match kind % 4 {
        SYNC if probe::fix_up(frame) => {}
        SERROR => {
            SERRORS.fetch_add(1, Ordering::Relaxed);
        }
        _ => crate::harness::unexpected_exception(kind, frame),
    }
}
