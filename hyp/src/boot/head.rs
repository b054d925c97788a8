//! Assembly of the start; see `head.s`.
#![allow(unsafe_code)]

use core::arch::global_asm;
use tenure_arch::{stage1, sysreg};
use tenure_dt::platform::MAX_CPUS;

use crate::percpu;

global_asm!(include_str!("head.s"),
    boot_cpu = sym percpu::BOOT_CPU,
    stack_top = const percpu::STACK_TOP,
    early = sym super::early,
    secondary = sym super::secondary,
    root = sym super::mmu::ROOT,
    cpus = sym percpu::CPUS,
    max_cpus = const MAX_CPUS,
    cpu_mpidr = const percpu::CPU_MPIDR,
    affinity_lo = const sysreg::MPIDR_AFFINITY & 0xffff_ffff,
    cpu_stack = const percpu::CPU_STACK,
    mair = const stage1::MAIR,
    tcr_lo = const stage1::tcr(0) & 0xffff,
    tcr_hi = const stage1::tcr(0) >> 16,
    sctlr_lo = const stage1::SCTLR & 0xffff,
    sctlr_hi = const stage1::SCTLR >> 16,
);

unsafe extern "C" {
    fn tenure_mmu_on(root: u64);
    fn tenure_enter_el1(entry: u64, x0: u64, spsr: u64, stack_top: u64) -> !;
    fn tenure_secondary();
}

/// Turns EL2's own translation on.
///
/// # Safety
/// The tables at `root` must map the running code, its stack and its data to themselves.
pub unsafe fn mmu_on(root: u64) {
    // SAFETY: the caller vouches for the tables; the function returns to the same, identity-mapped, place.
    unsafe { tenure_mmu_on(root) }
}

/// Leaves EL2 for the first instruction of a world at EL1.
///
/// # Safety
/// Every EL2 control register and stage 2 must be the host's (see [`tenure_arch::host::HostRegs::load`]).
/// `stack_top` must be the top of this CPU's stack, on which nothing is needed any more.
pub unsafe fn enter_el1(entry: u64, x0: u64, stack_top: u64) -> ! {
    // SAFETY: the caller vouches for the registers and the stack.
    unsafe { tenure_enter_el1(entry, x0, tenure_arch::host::SPSR_EL1H_MASKED, stack_top) }
}

/// Where the firmware is to start another CPU of ours; no argument is needed.
pub fn secondary_entry() -> u64 {
    tenure_secondary as *const () as u64
}
