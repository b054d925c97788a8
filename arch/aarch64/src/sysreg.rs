//! The façade over system registers: the only file that reads or writes one, but for the table of `el1.rs`.
//!
//! Registers that the `aarch64-cpu` crate knows go through it; younger ones are named by their encoding. Its writes are
//! safe functions although writing HCR_EL2 or a TTBR can break memory safety: here every write whose value can change
//! what memory a world reaches, or where the CPU executes, is `unsafe` with that as its contract. Reads have no effect.
//!
//! Reads on the build machine give 0 and writes do nothing, so that callers can be compiled (not run) there.
#![allow(unsafe_code)]

use aarch64_cpu::registers as r;
use tock_registers::interfaces::{Readable, Writeable};

macro_rules! read_known {
    ($($name:ident = $reg:ident;)*) => {$(
        #[doc = concat!("Reads `", stringify!($reg), "`.")]
        #[inline(always)]
        pub fn $name() -> u64 {
            if cfg!(target_arch = "aarch64") { r::$reg.get() } else { 0 }
        }
    )*};
}

macro_rules! write_known {
    ($($name:ident = $reg:ident;)*) => {$(
        #[doc = concat!("Writes `", stringify!($reg), "`.")]
        /// # Safety
        /// The value must keep every promise about which memory and code each world reaches. An ISB may be needed after.
        #[inline(always)]
        pub unsafe fn $name(value: u64) {
            if cfg!(target_arch = "aarch64") { r::$reg.set(value) }
        }
    )*};
}

macro_rules! read_encoded {
    ($($(#[$doc:meta])* $name:ident = $enc:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() -> u64 {
            #[cfg(target_arch = "aarch64")]
            {
                let value: u64;
                // SAFETY: reading a system register has no effect on memory.
                unsafe {
                    core::arch::asm!(concat!("mrs {v}, ", $enc), v = out(reg) value,
                        options(nomem, nostack, preserves_flags))
                };
                value
            }
            #[cfg(not(target_arch = "aarch64"))]
            0
        }
    )*};
}

macro_rules! write_encoded {
    ($($(#[$doc:meta])* $name:ident = $enc:literal;)*) => {$(
        $(#[$doc])*
        /// # Safety
        /// The register must exist on this CPU, and the value must keep every promise about which memory and code each
        /// world reaches. An ISB may be needed after.
        #[inline(always)]
        pub unsafe fn $name(value: u64) {
            #[cfg(target_arch = "aarch64")]
            // SAFETY: the caller answers for the value.
            unsafe {
                core::arch::asm!(concat!("msr ", $enc, ", {v}"), v = in(reg) value,
                    options(nostack, preserves_flags))
            };
            let _ = value;
        }
    )*};
}

read_known! {
    midr_el1 = MIDR_EL1; mpidr_el1 = MPIDR_EL1;
    id_aa64dfr0_el1 = ID_AA64DFR0_EL1; id_aa64dfr1_el1 = ID_AA64DFR1_EL1;
    id_aa64isar0_el1 = ID_AA64ISAR0_EL1; id_aa64isar1_el1 = ID_AA64ISAR1_EL1;
    id_aa64mmfr0_el1 = ID_AA64MMFR0_EL1; id_aa64mmfr1_el1 = ID_AA64MMFR1_EL1; id_aa64mmfr2_el1 = ID_AA64MMFR2_EL1;
    id_aa64pfr0_el1 = ID_AA64PFR0_EL1; id_aa64pfr1_el1 = ID_AA64PFR1_EL1;
    hcr_el2 = HCR_EL2; vtcr_el2 = VTCR_EL2; vttbr_el2 = VTTBR_EL2;
    esr_el2 = ESR_EL2; far_el2 = FAR_EL2; hpfar_el2 = HPFAR_EL2; elr_el2 = ELR_EL2; spsr_el2 = SPSR_EL2;
    tpidr_el2 = TPIDR_EL2; cntvoff_el2 = CNTVOFF_EL2;
    vbar_el1 = VBAR_EL1; sctlr_el1 = SCTLR_EL1; elr_el1 = ELR_EL1; spsr_el1 = SPSR_EL1;
    cntvct_el0 = CNTVCT_EL0; cntfrq_el0 = CNTFRQ_EL0;
    par_el1 = PAR_EL1;
    ich_vtr_el2 = ICH_VTR_EL2; icc_sre_el2 = ICC_SRE_EL2;
}

read_encoded! {
    /// Reads `CTR_EL0`.
    ctr_el0 = "ctr_el0";
    /// Reads `DCZID_EL0`.
    dczid_el0 = "dczid_el0";
    /// Reads `ID_AA64ISAR2_EL1`.
    id_aa64isar2_el1 = "s3_0_c0_c6_2";
    /// Reads `ID_AA64MMFR3_EL1`.
    id_aa64mmfr3_el1 = "s3_0_c0_c7_3";
    /// Reads `ID_AA64MMFR4_EL1`.
    id_aa64mmfr4_el1 = "s3_0_c0_c7_4";
    /// Reads `ID_AA64PFR2_EL1`.
    id_aa64pfr2_el1 = "s3_0_c0_c4_2";
    /// Reads `ID_AA64ZFR0_EL1`.
    id_aa64zfr0_el1 = "s3_0_c0_c4_4";
    /// Reads `ID_AA64SMFR0_EL1`.
    id_aa64smfr0_el1 = "s3_0_c0_c4_5";
    /// Reads `ISR_EL1`: which physical interrupts are pending.
    isr_el1 = "s3_0_c12_c1_0";
    /// Reads `PMCR_EL0`; only where a PMU is.
    pmcr_el0 = "s3_3_c9_c12_0";
    /// Reads `GCSCR_EL1`; only with FEAT_GCS.
    gcscr_el1 = "s3_0_c2_c5_0";
    /// Reads `DISR_EL1`; only with FEAT_RAS.
    disr_el1 = "s3_0_c12_c1_1";
    /// Reads `PMSCR_EL1` (FEAT_SPE).
    pmscr_el1 = "s3_0_c9_c9_0";
    /// Reads `PMBLIMITR_EL1` (FEAT_SPE).
    pmblimitr_el1 = "s3_0_c9_c10_0";
    /// Reads `TRFCR_EL1` (FEAT_TRF).
    trfcr_el1 = "s3_0_c1_c2_1";
    /// Reads `BRBCR_EL1` (FEAT_BRBE).
    brbcr_el1 = "s2_1_c9_c0_0";
    /// Reads `TRBLIMITR_EL1` (FEAT_TRBE).
    trblimitr_el1 = "s3_0_c9_c11_0";
}

write_known! {
    write_hcr_el2 = HCR_EL2; write_vtcr_el2 = VTCR_EL2; write_vttbr_el2 = VTTBR_EL2;
    write_elr_el2 = ELR_EL2; write_spsr_el2 = SPSR_EL2; write_tpidr_el2 = TPIDR_EL2; write_vbar_el2 = VBAR_EL2;
    write_cptr_el2 = CPTR_EL2; write_cnthctl_el2 = CNTHCTL_EL2; write_cntvoff_el2 = CNTVOFF_EL2;
    write_mdcr_el2 = MDCR_EL2;
    write_sctlr_el1 = SCTLR_EL1; write_elr_el1 = ELR_EL1; write_spsr_el1 = SPSR_EL1;
    write_esr_el1 = ESR_EL1; write_far_el1 = FAR_EL1;
    write_vmpidr_el2 = VMPIDR_EL2; write_icc_sre_el2 = ICC_SRE_EL2; write_ich_hcr_el2 = ICH_HCR_EL2;
}

write_encoded! {
    /// Writes `PAR_EL1`.
    write_par_el1 = "par_el1";
    /// Writes `HSTR_EL2`.
    write_hstr_el2 = "hstr_el2";
    /// Writes `HACR_EL2`.
    write_hacr_el2 = "s3_4_c1_c1_7";
    /// Writes `VPIDR_EL2`.
    write_vpidr_el2 = "vpidr_el2";
    /// Writes `HCRX_EL2` (FEAT_HCX).
    write_hcrx_el2 = "s3_4_c1_c2_2";
    /// Writes `HFGRTR_EL2` (FEAT_FGT).
    write_hfgrtr_el2 = "s3_4_c1_c1_4";
    /// Writes `HFGWTR_EL2` (FEAT_FGT).
    write_hfgwtr_el2 = "s3_4_c1_c1_5";
    /// Writes `HFGITR_EL2` (FEAT_FGT).
    write_hfgitr_el2 = "s3_4_c1_c1_6";
    /// Writes `HDFGRTR_EL2` (FEAT_FGT).
    write_hdfgrtr_el2 = "s3_4_c3_c1_4";
    /// Writes `HDFGWTR_EL2` (FEAT_FGT).
    write_hdfgwtr_el2 = "s3_4_c3_c1_5";
    /// Writes `HAFGRTR_EL2` (FEAT_FGT and FEAT_AMUv1).
    write_hafgrtr_el2 = "s3_4_c3_c1_6";
    /// Writes `HDFGRTR2_EL2` (FEAT_FGT2).
    write_hdfgrtr2_el2 = "s3_4_c3_c1_0";
    /// Writes `HDFGWTR2_EL2` (FEAT_FGT2).
    write_hdfgwtr2_el2 = "s3_4_c3_c1_1";
    /// Writes `HFGRTR2_EL2` (FEAT_FGT2).
    write_hfgrtr2_el2 = "s3_4_c3_c1_2";
    /// Writes `HFGWTR2_EL2` (FEAT_FGT2).
    write_hfgwtr2_el2 = "s3_4_c3_c1_3";
    /// Writes `HFGITR2_EL2` (FEAT_FGT2).
    write_hfgitr2_el2 = "s3_4_c3_c1_7";
    /// Writes `ZCR_EL2` (FEAT_SVE); `CPTR_EL2` must allow it first.
    write_zcr_el2 = "s3_4_c1_c2_0";
    /// Writes `SMCR_EL2` (FEAT_SME); `CPTR_EL2` must allow it first.
    write_smcr_el2 = "s3_4_c1_c2_6";
    /// Writes `MPAM2_EL2` (FEAT_MPAM).
    write_mpam2_el2 = "s3_4_c10_c5_0";
    /// Writes `MPAMHCR_EL2` (FEAT_MPAM with virtualisation).
    write_mpamhcr_el2 = "s3_4_c10_c4_0";
    /// Writes `LORC_EL1` (FEAT_LOR).
    write_lorc_el1 = "s3_0_c10_c4_3";
    /// Writes `MAIR_EL2`.
    write_mair_el2 = "mair_el2";
    /// Writes `TCR_EL2`.
    write_tcr_el2 = "tcr_el2";
    /// Writes `TTBR0_EL2`.
    write_ttbr0_el2 = "ttbr0_el2";
    /// Writes `SCTLR_EL2`.
    write_sctlr_el2 = "sctlr_el2";
    /// Writes `DISR_EL1` (FEAT_RAS).
    write_disr_el1 = "s3_0_c12_c1_1";
    /// Writes `VSESR_EL2` (FEAT_RAS): the syndrome of a virtual SError.
    write_vsesr_el2 = "s3_4_c5_c2_3";
    /// Writes `PMCR_EL0` (FEAT_PMUv3).
    write_pmcr_el0 = "s3_3_c9_c12_0";
    /// Writes `PMSCR_EL1` (FEAT_SPE).
    write_pmscr_el1 = "s3_0_c9_c9_0";
    /// Writes `PMBLIMITR_EL1` (FEAT_SPE).
    write_pmblimitr_el1 = "s3_0_c9_c10_0";
    /// Writes `TRFCR_EL1` (FEAT_TRF).
    write_trfcr_el1 = "s3_0_c1_c2_1";
    /// Writes `BRBCR_EL1` (FEAT_BRBE).
    write_brbcr_el1 = "s2_1_c9_c0_0";
    /// Writes `BRBCR_EL2` (FEAT_BRBE).
    write_brbcr_el2 = "s2_4_c9_c0_0";
    /// Writes `TRBLIMITR_EL1` (FEAT_TRBE).
    write_trblimitr_el1 = "s3_0_c9_c11_0";
    /// Writes `TTBR0_EL1`.
    write_ttbr0_el1 = "ttbr0_el1";
    /// Writes `TTBR1_EL1`.
    write_ttbr1_el1 = "ttbr1_el1";
    /// Writes `TCR_EL1`.
    write_tcr_el1 = "tcr_el1";
    /// Writes `AFSR0_EL1`.
    write_afsr0_el1 = "afsr0_el1";
    /// Writes `AFSR1_EL1`.
    write_afsr1_el1 = "afsr1_el1";
    /// Writes `MAIR_EL1`.
    write_mair_el1 = "mair_el1";
    /// Writes `AMAIR_EL1`.
    write_amair_el1 = "amair_el1";
    /// Writes `CONTEXTIDR_EL1`.
    write_contextidr_el1 = "contextidr_el1";
    /// Writes `CNTV_CTL_EL0`.
    write_cntv_ctl_el0 = "cntv_ctl_el0";
}

/// `PSB CSYNC`: waits for the profiling buffer (a hint, nothing without FEAT_SPE).
pub fn psb_csync() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint.
    unsafe {
        core::arch::asm!("hint #17", options(nostack, preserves_flags))
    };
}

/// `TSB CSYNC`: waits for the trace buffer (a hint, nothing without FEAT_TRF).
pub fn tsb_csync() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint.
    unsafe {
        core::arch::asm!("hint #18", options(nostack, preserves_flags))
    };
}

/// Affinity fields of an MPIDR value: what names a CPU in PSCI and in the device tree (DEN0022 5.1.4).
pub const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;
