//! What the vectors save, and the part of the per-CPU data that they read.
//!
//! Offsets used by the assembly are computed from these types, so the two cannot disagree.

use core::sync::atomic::{AtomicPtr, AtomicU64};

/// Registers of the host that a call or fault may change: what a compiled function does not preserve by itself.
///
/// `x19`–`x29` stay in the CPU (AAPCS64 keeps them), and the host's `SP`, `SP_EL0` and FP/SIMD state are not touched.
#[repr(C, align(16))]
#[derive(Debug)]
pub struct HostFrame {
    /// `x0`–`x18`.
    pub x: [u64; 19],
    /// `x30`.
    pub lr: u64,
}

/// All that is known when EL2 itself has failed.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug)]
pub struct CrashFrame {
    /// `x0`–`x30`.
    pub x: [u64; 31],
    /// The stack pointer of EL2 at the exception.
    pub sp: u64,
    /// `ELR_EL2`.
    pub elr: u64,
    /// `SPSR_EL2`.
    pub spsr: u64,
    /// `ESR_EL2`.
    pub esr: u64,
    /// `FAR_EL2`.
    pub far: u64,
    /// `HPFAR_EL2`.
    pub hpfar: u64,
    /// Which vector: its offset from `VBAR_EL2`.
    pub vector: u64,
}

/// The head of the per-CPU data that `TPIDR_EL2` points to; the vectors read it.
#[repr(C)]
#[derive(Debug)]
pub struct CpuHead {
    /// Null while the host runs; else the context of the vCPU that is loaded. An exit then belongs to the guest.
    pub vcpu: AtomicPtr<u8>,
    /// Top of the stack that a crash is reported on; the normal one may be what failed.
    pub crash_stack: AtomicU64,
}

impl CpuHead {
    /// A CPU with no vCPU and no crash stack yet.
    pub const fn new() -> Self {
        Self { vcpu: AtomicPtr::new(core::ptr::null_mut()), crash_stack: AtomicU64::new(0) }
    }
}

impl Default for CpuHead {
    fn default() -> Self {
        Self::new()
    }
}

/// Size of [`HostFrame`], a multiple of 16.
pub const HOST_FRAME_SIZE: usize = size_of::<HostFrame>();
/// Size of [`CrashFrame`], a multiple of 16.
pub const CRASH_FRAME_SIZE: usize = size_of::<CrashFrame>();
/// Offset of [`CpuHead::vcpu`].
pub const CPU_VCPU: usize = core::mem::offset_of!(CpuHead, vcpu);
/// Offset of [`CpuHead::crash_stack`].
pub const CPU_CRASH_STACK: usize = core::mem::offset_of!(CpuHead, crash_stack);

const _: () = assert!(HOST_FRAME_SIZE.is_multiple_of(16) && CRASH_FRAME_SIZE.is_multiple_of(16));
