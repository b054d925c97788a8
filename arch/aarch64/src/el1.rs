//! The registers of EL1 and EL0 that a guest can change without a trap: saved and loaded at every world switch.
//!
//! This is the *switched* part of the table in docs/world-switch.md. Everything that is not here is either trapped
//! (`crate::guest`), and then keeps the host's value without any effect on a guest, or hidden and trapped.
//!
//! Next to `sysreg.rs` this is the one file that reads and writes system registers, by one table.
#![allow(unsafe_code)]

macro_rules! el1_registers {
    ($( $name:ident; )+) => {
        /// Values of the switched registers.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct El1State {
            $( #[doc = concat!("`", stringify!($name), "`.")] pub $name: u64, )+
            /// `sctlr_el1`: loaded last, see [`El1State::load`].
            pub sctlr_el1: u64,
            /// `tcr_el1`: loaded last.
            pub tcr_el1: u64,
        }

        impl El1State {
            /// Reads all registers of this CPU.
            pub fn save(&mut self) {
                $(
                    #[cfg(target_arch = "aarch64")]
                    // SAFETY: reading a system register has no effect on memory.
                    unsafe {
                        core::arch::asm!(concat!("mrs {v}, ", stringify!($name)), v = out(reg) self.$name,
                            options(nomem, nostack, preserves_flags))
                    };
                )+
                #[cfg(target_arch = "aarch64")]
                // SAFETY: as above.
                unsafe {
                    core::arch::asm!("mrs {s}, sctlr_el1", "mrs {t}, tcr_el1", s = out(reg) self.sctlr_el1,
                        t = out(reg) self.tcr_el1, options(nomem, nostack, preserves_flags))
                };
            }

            /// # Safety
            /// See [`El1State::load`].
            unsafe fn load_table(&self) {
                $(
                    #[cfg(target_arch = "aarch64")]
                    // SAFETY: registers of EL1 and EL0, whose reach stage 2 bounds; EL2 uses none of them.
                    unsafe {
                        core::arch::asm!(concat!("msr ", stringify!($name), ", {v}"), v = in(reg) self.$name,
                            options(nostack, preserves_flags))
                    };
                )+
            }
        }
    };
}

el1_registers! {
    sp_el0;
    sp_el1;
    elr_el1;
    spsr_el1;
    cpacr_el1;
    ttbr0_el1;
    ttbr1_el1;
    esr_el1;
    afsr0_el1;
    afsr1_el1;
    far_el1;
    mair_el1;
    amair_el1;
    vbar_el1;
    contextidr_el1;
    tpidr_el0;
    tpidrro_el0;
    tpidr_el1;
    par_el1;
    csselr_el1;
    cntkctl_el1;
    mdscr_el1;
    cntv_cval_el0;
    cntv_ctl_el0;
}

/// `TCR_EL1.EPD0` and `EPD1`: no walks of either half.
const TCR_NO_WALKS: u64 = 1 << 7 | 1 << 23;
const SCTLR_M: u64 = 1;

impl El1State {
    /// A CPU out of reset, as a guest finds it: MMU and caches off, little-endian.
    pub const RESET: Self = Self {
        sp_el0: 0,
        sp_el1: 0,
        elr_el1: 0,
        spsr_el1: 0,
        cpacr_el1: 0,
        ttbr0_el1: 0,
        ttbr1_el1: 0,
        esr_el1: 0,
        afsr0_el1: 0,
        afsr1_el1: 0,
        far_el1: 0,
        mair_el1: 0,
        amair_el1: 0,
        vbar_el1: 0,
        contextidr_el1: 0,
        tpidr_el0: 0,
        tpidrro_el0: 0,
        tpidr_el1: 0,
        par_el1: 0,
        csselr_el1: 0,
        cntkctl_el1: 0,
        mdscr_el1: 0,
        cntv_cval_el0: 0,
        cntv_ctl_el0: 0,
        sctlr_el1: crate::host::SCTLR_EL1_RESET,
        tcr_el1: 0,
    };

    /// Loads all registers, with `between` run (to switch stage 2) while EL1&0 can make no stage-1 walk.
    ///
    /// Half of one world and half of the other must not be seen by a speculative `AT` or walk (erratum 1319367 and its
    /// kin): walks of both halves are turned off first, with the MMU on so that this counts; the true TCR and SCTLR come
    /// last.
    ///
    /// # Safety
    /// The former state must have been saved, and the world that the next ERET enters must be the one of this state.
    pub unsafe fn load(&self, between: impl FnOnce()) {
        #[cfg(target_arch = "aarch64")]
        // SAFETY: turns stage-1 walks off.
        unsafe {
            core::arch::asm!("mrs {s}, sctlr_el1", "mrs {t}, tcr_el1", "orr {t}, {t}, {n}", "orr {s}, {s}, {m}",
                "msr tcr_el1, {t}", "isb", "msr sctlr_el1, {s}", "isb", s = out(reg) _, t = out(reg) _,
                n = in(reg) TCR_NO_WALKS, m = const SCTLR_M, options(nostack))
        };
        between();
        // SAFETY: the caller's promise.
        unsafe { self.load_table() };
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as for the table.
        unsafe {
            core::arch::asm!("isb", "msr sctlr_el1, {s}", "isb", "msr tcr_el1, {t}", s = in(reg) self.sctlr_el1,
                t = in(reg) self.tcr_el1, options(nostack, preserves_flags))
        };
        let _ = (TCR_NO_WALKS, SCTLR_M);
    }
}
