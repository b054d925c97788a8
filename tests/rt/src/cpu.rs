//! Registers and instructions that tests use.
#![allow(unsafe_code)] // Each function is one instruction.

use core::arch::asm;

macro_rules! read {
    ($( $(#[doc = $doc:literal])+ $name:ident = $register:literal; )+) => {
        $( $(#[doc = $doc])+ pub fn $name() -> u64 {
            let value: u64;
            // SAFETY: reads a register that EL1 may read and that has no effect on memory.
            unsafe { asm!(concat!("mrs {}, ", $register), out(reg) value, options(nomem, nostack)) };
            value
        } )+
    };
}

read! {
    /// MIDR_EL1.
    midr = "midr_el1";
    /// MPIDR_EL1.
    mpidr = "mpidr_el1";
    /// ID_AA64PFR0_EL1.
    pfr0 = "id_aa64pfr0_el1";
    /// ID_AA64DFR0_EL1.
    dfr0 = "id_aa64dfr0_el1";
    /// MDSCR_EL1.
    mdscr = "mdscr_el1";
    /// Frequency of the counters in Hz.
    counter_frequency = "cntfrq_el0";
    /// Interrupt masks.
    daif = "daif";
    /// CurrentEL, as the register holds it (bits 3:2).
    current_el_raw = "CurrentEL";
}

/// CNTVCT_EL0, in order with the instructions around it.
pub fn counter() -> u64 {
    let value: u64;
    // SAFETY: reads the counter; the ISB keeps it from being read early.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) value, options(nomem, nostack)) };
    value
}

/// WFI.
pub fn wait_for_interrupt() {
    // SAFETY: waits; changes no state.
    unsafe { asm!("wfi", options(nomem, nostack)) };
}

/// Tells `value` to whoever watches the machine from outside: HINT #86, which no architecture gives a meaning, with the value in
/// x0.
pub fn mark(value: u64) {
    // SAFETY: an unallocated hint executes as NOP (DDI 0487 C6.2.122).
    unsafe { asm!("hint #86", in("x0") value, options(nomem, nostack)) };
}

/// A hint that this is a spin loop, for both compiler and CPU.
pub fn relax() {
    core::hint::spin_loop();
}

/// Executes `n` times a loop of two instructions.
pub fn spin(n: u64) {
    if n == 0 {
        return;
    }
    // SAFETY: counts a register down.
    unsafe { asm!("1: subs {0}, {0}, #1", "b.ne 1b", inout(reg) n => _, options(nomem, nostack)) };
}

/// Waits until every store so far is visible to all observers.
pub fn barrier() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", "isb", options(nostack)) };
}

/// Makes code that was just written at `address` (up to 64 bytes) executable.
pub fn sync_code(address: u64) {
    // SAFETY: cache maintenance of memory that the caller just wrote.
    unsafe {
        asm!("dc cvau, {0}", "dsb ish", "ic ivau, {0}", "dsb ish", "isb", in(reg) address, options(nostack))
    };
}

/// Fills v0..v31 with `value` and tells how many of them were not zero before.
pub fn swap_fp(value: u64) -> u64 {
    let dirty: u64;
    // SAFETY: the program is compiled without FP/SIMD, so the compiler keeps nothing in these registers; FP is enabled
    // by the start code. The assembler is told to allow them for these lines only.
    unsafe {
        asm!(
            ".arch_extension fp",
            ".arch_extension simd",
            "mov {dirty}, #0",
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            "mov {low}, v\\n\\().d[0]",
            "mov {high}, v\\n\\().d[1]",
            "orr {low}, {low}, {high}",
            "cmp {low}, #0",
            "cinc {dirty}, {dirty}, ne",
            "dup v\\n\\().2d, {value}",
            ".endr",
            ".arch_extension nosimd",
            ".arch_extension nofp",
            dirty = out(reg) dirty, low = out(reg) _, high = out(reg) _, value = in(reg) value,
            options(nomem, nostack)
        );
    }
    dirty
}
