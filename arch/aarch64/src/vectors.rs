//! The exception vectors of EL2.
//!
//! One table serves the host and guests: `TPIDR_EL2` points at [`CpuHead`](crate::frame::CpuHead), whose first word is
//! the loaded vCPU or null. From a lower EL, every entry stores `x16`/`x17` and looks there first:
//!
//! - **guest** (not null): it jumps to `tenure_guest_exit_<kind>` with `x17` = the vCPU, and the guest's `x16`, `x17` in the two words at
//!   `sp`, all else untouched. Kinds: `sync`, `irq`, `fiq`, `serror`. The stack is that of the call that loaded the vCPU;
//! - **host, synchronous**: a call for the version is answered here, in the vector; anything else saves a
//!   [`HostFrame`](crate::frame::HostFrame) and calls `tenure_host_sync(frame, esr)`. Interrupts of the host never come here (`HCR_EL2.IMO` = 0).
//!
//! From EL2 itself every exception is a failure of ours: registers are saved on a stack of its own (the normal one may
//! be what failed) and `tenure_el2_crash(frame)` ends the CPU. To get a first free register there, `TPIDR_EL1` of the
//! host is sacrificed: nothing returns from there.
//!
//! The functions named `tenure_…` are the EL2 binary's; the linker joins them.
#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
use crate::frame;

/// Function id that the vector answers by itself: SMCCC owner 6 (vendor hypervisor), fast HVC64, function 0x100. It must
/// be the id of the version call in `tenure-abi`; the EL2 binary asserts that.
pub const FAST_VERSION_ID: u32 = 0xc600_0100;
/// What it answers in `x1`; asserted likewise.
pub const FAST_VERSION: u32 = 0x0001_0000;

#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(include_str!("vectors.s"),
    HOST_FRAME_SIZE = const frame::HOST_FRAME_SIZE,
    CRASH_FRAME_SIZE = const frame::CRASH_FRAME_SIZE,
    CPU_VCPU = const frame::CPU_VCPU,
    CPU_CRASH_STACK = const frame::CPU_CRASH_STACK,
    FAST_ID_LO = const FAST_VERSION_ID & 0xffff,
    FAST_ID_HI = const FAST_VERSION_ID >> 16,
    FAST_VERSION_HI = const FAST_VERSION >> 16,
);

const _: () = assert!(FAST_VERSION & 0xffff == 0);

/// Points `VBAR_EL2` at the table.
///
/// # Safety
/// `TPIDR_EL2` must hold this CPU's per-CPU data, whose head is a valid [`CpuHead`](crate::frame::CpuHead).
pub unsafe fn install() {
    #[cfg(target_arch = "aarch64")]
    {
        unsafe extern "C" {
            static tenure_vectors: u8;
        }
        let table = (&raw const tenure_vectors) as u64;
        // SAFETY: the table above, 2 KiB aligned, in executable memory of ours.
        unsafe { crate::sysreg::write_vbar_el2(table) };
        crate::barrier::isb();
    }
}
