//! FP/SIMD, SVE and SME state at the world switch.
//!
//! A guest has FP/SIMD only, and gets the registers at its first touch (`CPTR_EL2.TFP`). Before that the host's state is
//! put away whole: FP/SIMD, or SVE at the greatest length, or, if the host was in streaming mode, the streaming registers;
//! leaving that mode is part of it, since a guest cannot run in it. `ZA` and `ZT0` stay where they are: a guest has no
//! instruction that reaches them (`CPTR_EL2.TSM`), and a change of mode keeps them.
//!
//! All functions want EL2 to be allowed to touch the registers: the host's `CPTR_EL2`, with an ISB since.
#![allow(unsafe_code)]

use crate::features::Features;

/// Greatest vector length in bytes (DDI 0487 A2.2: 2048 bits).
const VL_MAX: usize = 256;

/// A guest's FP/SIMD registers.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug)]
pub struct FpState {
    v: [u128; 32],
    fpcr: u64,
    fpsr: u64,
}

impl FpState {
    /// All zero, as a guest finds them.
    pub const RESET: Self = Self { v: [0; 32], fpcr: 0, fpsr: 0 };

    /// Takes this CPU's.
    ///
    /// # Safety
    /// EL2 must be allowed to touch the registers.
    pub unsafe fn save(&mut self) {
        #[cfg(target_arch = "aarch64")]
        // SAFETY: room for 32 registers; access is allowed.
        unsafe {
            tenure_fp_save(self.v.as_mut_ptr())
        };
        // SAFETY: the caller's promise.
        (self.fpcr, self.fpsr) = unsafe { control() };
    }

    /// Loads these.
    ///
    /// # Safety
    /// As for [`FpState::save`]; what was in the registers must have been saved.
    pub unsafe fn load(&self) {
        #[cfg(target_arch = "aarch64")]
        // SAFETY: 32 registers; access is allowed.
        unsafe {
            tenure_fp_load(self.v.as_ptr())
        };
        // SAFETY: the caller's promise.
        unsafe { set_control(self.fpcr, self.fpsr) };
    }
}

/// Room for all that a host can have in its vector registers; one a CPU.
#[repr(C, align(16))]
#[derive(Debug)]
pub struct HostFp {
    z: [[u8; VL_MAX]; 32],
    /// `P0`–`P15`, `FFR`.
    p: [[u8; VL_MAX / 8]; 17],
    fp: FpState,
    streaming: bool,
}

impl HostFp {
    /// Empty room.
    pub const EMPTY: Self =
        Self { z: [[0; VL_MAX]; 32], p: [[0; VL_MAX / 8]; 17], fp: FpState::RESET, streaming: false };

    /// Puts the host's state away; the CPU is not in streaming mode afterwards.
    ///
    /// # Safety
    /// As for [`FpState::save`].
    pub unsafe fn save(&mut self, f: &Features) {
        // SAFETY: read where FEAT_SME is only; access is allowed.
        self.streaming = f.sme && unsafe { streaming() };
        if !self.streaming && !f.sve {
            // SAFETY: the caller's promise.
            unsafe { self.fp.save() };
            return;
        }
        // SAFETY: the caller's promise.
        (self.fp.fpcr, self.fp.fpsr) = unsafe { control() };
        #[cfg(target_arch = "aarch64")]
        // SAFETY: room for the greatest length; SVE is there or the mode is streaming.
        unsafe {
            tenure_sve_save(self.z.as_mut_ptr().cast(), self.p.as_mut_ptr().cast(), self.has_ffr(f).into())
        };
        if self.streaming {
            // SAFETY: what the change destroys was saved.
            unsafe { set_streaming(false) };
        }
    }

    /// Gives the host its state back, over whatever is in the registers.
    ///
    /// # Safety
    /// As for [`FpState::load`]; [`HostFp::save`] must have been called since the host ran.
    pub unsafe fn load(&self, f: &Features) {
        if self.streaming {
            // SAFETY: the registers are the guest's and saved.
            unsafe { set_streaming(true) };
        } else if !f.sve {
            // SAFETY: the caller's promise.
            unsafe { self.fp.load() };
            return;
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as in `save`, which filled it.
        unsafe {
            tenure_sve_load(self.z.as_ptr().cast(), self.p.as_ptr().cast(), self.has_ffr(f).into())
        };
        // SAFETY: the caller's promise.
        unsafe { set_control(self.fp.fpcr, self.fp.fpsr) };
    }

    /// Streaming mode has no first-fault register but with the full instruction set (FEAT_SME_FA64).
    #[cfg_attr(not(target_arch = "aarch64"), expect(dead_code, reason = "the instructions are compiled out"))]
    const fn has_ffr(&self, f: &Features) -> bool {
        !self.streaming || f.sme_fa64
    }
}

#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(include_str!("fp.s"));

#[cfg(target_arch = "aarch64")]
unsafe extern "C" {
    fn tenure_fp_save(v: *mut u128);
    fn tenure_fp_load(v: *const u128);
    fn tenure_sve_save(z: *mut u8, p: *mut u8, with_ffr: u64);
    fn tenure_sve_load(z: *const u8, p: *const u8, with_ffr: u64);
}

/// `FPCR` and `FPSR`.
///
/// # Safety
/// See [`FpState::save`].
unsafe fn control() -> (u64, u64) {
    #[cfg(target_arch = "aarch64")]
    {
        let (fpcr, fpsr);
        // SAFETY: reads registers that the caller may touch.
        unsafe {
            core::arch::asm!("mrs {c}, s3_3_c4_c4_0", "mrs {s}, s3_3_c4_c4_1", c = out(reg) fpcr,
                s = out(reg) fpsr, options(nomem, nostack, preserves_flags))
        };
        (fpcr, fpsr)
    }
    #[cfg(not(target_arch = "aarch64"))]
    (0, 0)
}

/// # Safety
/// See [`FpState::load`].
unsafe fn set_control(fpcr: u64, fpsr: u64) {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: EL2 has no floating-point code that these could change.
    unsafe {
        core::arch::asm!("msr s3_3_c4_c4_0, {c}", "msr s3_3_c4_c4_1, {s}", c = in(reg) fpcr, s = in(reg) fpsr,
            options(nomem, nostack, preserves_flags))
    };
    let _ = (fpcr, fpsr);
}

/// `SVCR.SM`.
///
/// # Safety
/// FEAT_SME must be there and EL2 allowed to use it.
pub unsafe fn streaming() -> bool {
    #[cfg(target_arch = "aarch64")]
    {
        let svcr: u64;
        // SAFETY: reads a register that is there.
        unsafe {
            core::arch::asm!("mrs {v}, s3_3_c4_c2_2", v = out(reg) svcr, options(nomem, nostack, preserves_flags))
        };
        svcr & 1 != 0
    }
    #[cfg(not(target_arch = "aarch64"))]
    false
}

/// Enters or leaves streaming mode, which zeroes the vector registers; `ZA` stays.
///
/// # Safety
/// As for [`streaming`]; nobody may need the vector registers.
unsafe fn set_streaming(on: bool) {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: changes SVCR.SM only; the caller gave the registers up.
    unsafe {
        core::arch::asm!("mrs {v}, s3_3_c4_c2_2", "bfi {v}, {on}, #0, #1", "msr s3_3_c4_c2_2, {v}", "isb",
            v = out(reg) _, on = in(reg) u64::from(on), options(nomem, nostack, preserves_flags))
    };
    let _ = on;
}
