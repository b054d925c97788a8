//! The switch of general registers between EL2 and a guest, and the short way for calls.
//!
//! [`enter`] returns when the guest did something that needs the rest of its state put away, or may need it; a call
//! (HVC #0) goes to `tenure_guest_call(frame)` of the EL2 binary first, with only the caller-saved registers stored. If
//! that returns 0 the guest goes on at once, else [`enter`] returns [`Exit::Call`].
//!
//! While a guest runs, `CpuHead::vcpu` points at its [`GuestFrame`]; the vectors tell the worlds apart by it.
#![allow(unsafe_code)]

use crate::frame::CpuHead;

/// General registers of a guest. The first thing in a vCPU's context: the vectors find it by `CpuHead::vcpu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct GuestFrame {
    /// `x0`–`x30`.
    pub x: [u64; 31],
    unused: u64,
    /// The program counter. While `tenure_guest_call` runs it stands in `ELR_EL2` instead.
    pub pc: u64,
    /// PSTATE in the form of `SPSR_EL2`. While `tenure_guest_call` runs it stands in `SPSR_EL2` instead.
    pub pstate: u64,
}

impl GuestFrame {
    /// Register `n` as an instruction names it: 31 is the zero register.
    pub fn read(&self, n: u8) -> u64 {
        self.x.get(usize::from(n)).copied().unwrap_or(0)
    }

    /// Writes register `n`; a write of 31 is lost.
    pub fn write(&mut self, n: u8, value: u64) {
        if let Some(x) = self.x.get_mut(usize::from(n)) {
            *x = value;
        }
    }
}

/// PSTATE bits that may be chosen for a guest: N, Z, C, V, D, A, I, F and the mode.
const PSTATE_ALLOWED: u64 = 0xf << 28 | 0xf << 6 | 0xf;

/// True for a PSTATE that a guest may be started with: AArch64 at EL0 or EL1.
pub const fn is_startable(pstate: u64) -> bool {
    pstate & !PSTATE_ALLOWED == 0 && matches!(pstate & 0xf, 0b0000 | 0b0100 | 0b0101)
}

/// Upper half of the 32-bit syndrome of `HVC #0` (EC 0x16, IL 1, immediate 0); the lower half is 0.
#[cfg(target_arch = "aarch64")]
const ESR_HVC_HI: u64 = (0x16 << 26 | 1 << 25) >> 16;

const EXIT_SYNC: u64 = 0;
const EXIT_CALL: u64 = 1;
const EXIT_IRQ: u64 = 2;
const EXIT_SERROR: u64 = 3;

/// Why [`enter`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A synchronous exception: `ESR_EL2` tells.
    Sync,
    /// A call that `tenure_guest_call` did not finish.
    Call,
    /// A physical IRQ or FIQ is pending for the host.
    Interrupt,
    /// A physical SError was taken from the guest.
    SError,
}

#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(include_str!("switch.s"),
    CPU_VCPU = const crate::frame::CPU_VCPU,
    PC = const core::mem::offset_of!(GuestFrame, pc),
    ESR_HVC_HI = const ESR_HVC_HI,
    EXIT_SYNC = const EXIT_SYNC,
    EXIT_CALL = const EXIT_CALL,
    EXIT_IRQ = const EXIT_IRQ,
    EXIT_SERROR = const EXIT_SERROR,
);

const _: () = assert!(core::mem::offset_of!(GuestFrame, x) == 0);
const _: () = assert!(core::mem::offset_of!(GuestFrame, pc).is_multiple_of(16));

#[cfg(target_arch = "aarch64")]
unsafe extern "C" {
    fn tenure_guest_enter(frame: *mut GuestFrame, cpu: *const CpuHead) -> u64;
    fn tenure_serror_window() -> u64;
}

/// Runs the guest of `frame` on this CPU, whose head is `cpu`.
///
/// # Safety
/// All of the guest's world but its general registers must be loaded (see [`crate::guest`]), its stage 2 must give it
/// nothing but its own, `frame.pstate` must name EL0 or EL1, and `frame` must be the head of what `tenure_guest_call`
/// takes it for, with no reference to it alive during the call.
pub unsafe fn enter(frame: *mut GuestFrame, cpu: &CpuHead) -> Exit {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the caller vouches for the world; the function keeps the callee-saved registers and the stack.
    let exit = unsafe { tenure_guest_enter(frame, cpu) };
    #[cfg(not(target_arch = "aarch64"))]
    let exit = {
        let _ = (frame, cpu);
        EXIT_IRQ
    };
    match exit {
        EXIT_SYNC => Exit::Sync,
        EXIT_CALL => Exit::Call,
        EXIT_SERROR => Exit::SError,
        _ => Exit::Interrupt,
    }
}

/// Takes an SError that the guest left pending: true if there was one. It is the guest's, whose accesses are all
/// complete after the DSB; `HCR_EL2.AMO` must still be set, or the CPU would keep it for the host.
///
/// # Safety
/// The guest's `TPIDR_EL1`, `TPIDRRO_EL0`, PC and PSTATE must be saved and not be needed in their registers.
pub unsafe fn take_serror() -> bool {
    crate::barrier::dsb_sy();
    // ISR_EL1.A: a physical SError is pending.
    if crate::sysreg::isr_el1() & (1 << 8) == 0 {
        return false;
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: SErrors are unmasked only where the vector knows it, and it destroys what the caller gave up.
    let taken = unsafe { tenure_serror_window() } != 0;
    #[cfg(not(target_arch = "aarch64"))]
    let taken = false;
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_guest_starts_at_el2_or_in_32_bits_or_in_single_step() {
        for pstate in [0, 0b0100, 0b0101, 0x3c5, 0xf000_0000] {
            assert!(is_startable(pstate), "{pstate:#x}");
        }
        for pstate in [0b1000, 0b1001, 0b1101, 0b0001, 0x10, 0x1d3, 1 << 20, 1 << 21, 1 << 32] {
            assert!(!is_startable(pstate), "{pstate:#x}");
        }
    }

    #[test]
    fn register_31_reads_zero_and_swallows_writes() {
        let mut frame = GuestFrame::default();
        frame.write(31, 7);
        frame.write(30, 9);
        assert_eq!((frame.read(31), frame.read(30), frame.pc), (0, 9, 0));
    }
}
