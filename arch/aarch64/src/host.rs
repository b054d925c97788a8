//! The state of EL2 while the host runs: every register that decides what an EL1 kernel may do without a trap.
//!
//! All of it is written on every CPU that starts or wakes (resets are UNKNOWN on hardware), in the order of
//! [`HostRegs::load`]. The host keeps all features of the CPU; only SMC, its stage 2 and implementation-defined
//! controls are ours. Values are computed by [`HostRegs::new`], which is pure and tested.
#![allow(unsafe_code)]

use crate::features::Features;
use crate::{barrier, cache, sysreg, tlb};

/// `HCR_EL2` bits, DDI 0487 D24.2.60.
pub mod hcr {
    /// Stage 2 on.
    pub const VM: u64 = 1 << 0;
    /// Set/way invalidation cleans too.
    pub const SWIO: u64 = 1 << 1;
    /// FIQs go to EL2.
    pub const FMO: u64 = 1 << 3;
    /// IRQs go to EL2.
    pub const IMO: u64 = 1 << 4;
    /// SErrors go to EL2.
    pub const AMO: u64 = 1 << 5;
    /// A virtual SError is pending.
    pub const VSE: u64 = 1 << 8;
    /// SMC traps.
    pub const TSC: u64 = 1 << 19;
    /// EL1 is AArch64.
    pub const RW: u64 = 1 << 31;
    /// VHE: never on here.
    pub const E2H: u64 = 1 << 34;
    /// Pointer authentication keys are not trapped.
    pub const APK: u64 = 1 << 40;
    /// Pointer authentication instructions are not trapped.
    pub const API: u64 = 1 << 41;
    /// MemAttr of stage 2 can force the memory type (FEAT_S2FWB).
    pub const FWB: u64 = 1 << 46;
    /// The fault-injection registers are not trapped.
    pub const FIEN: u64 = 1 << 47;
    /// `SCXTNUM` is not trapped.
    pub const EN_SCXT: u64 = 1 << 53;
    /// Allocation tags are reachable.
    pub const ATA: u64 = 1 << 56;
}

/// Stage 2 of the host: 40-bit IPA, 4 KiB granule, level-1 start with two concatenated root tables, 40-bit PA,
/// Normal write-back inner-shareable walks (DDI 0487 D24.2.191).
pub const VTCR: u64 = 0x8002_3558;

/// `SCTLR_EL1` as a kernel finds it: RES1 bits, MMU and caches off, little-endian.
pub const SCTLR_EL1_RESET: u64 = 0x30d0_0800;

/// `SPSR_EL2` for the first entry: EL1h with D, A, I and F masked.
pub const SPSR_EL1H_MASKED: u64 = 0x3c5;

/// The values for one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRegs {
    /// `HCR_EL2`.
    pub hcr: u64,
    /// `CPTR_EL2` in its E2H = 0 layout.
    pub cptr: u64,
    /// `MDCR_EL2`.
    pub mdcr: u64,
    /// `HCRX_EL2`, with FEAT_HCX.
    pub hcrx: Option<u64>,
    /// `HFGRTR_EL2` and `HFGWTR_EL2`, with FEAT_FGT.
    pub hfgrw: Option<u64>,
    /// `HDFGRTR_EL2` and `HDFGWTR_EL2`, with FEAT_FGT.
    pub hdfgrw: Option<(u64, u64)>,
    /// `HFGITR_EL2`, with FEAT_FGT.
    pub hfgitr: Option<u64>,
    /// `ZCR_EL2`, with FEAT_SVE.
    pub zcr: Option<u64>,
    /// `SMCR_EL2`, with FEAT_SME.
    pub smcr: Option<u64>,
    features: Features,
}

impl HostRegs {
    /// The values for a CPU with these features and this many PMU event counters; `fwb` says that the tables, the host's
    /// and the guests', are made for HCR_EL2.FWB.
    pub const fn new(f: &Features, pmu_counters: u64, fwb: bool) -> Self {
        let mut hcr =
            hcr::RW | hcr::TSC | hcr::VM | hcr::SWIO | hcr::API | hcr::APK | hcr::EN_SCXT | hcr::FIEN;
        if f.mte2 {
            hcr |= hcr::ATA;
        }
        if fwb {
            hcr |= hcr::FWB;
        }
        // RES1 bits 0–7, 9 and 13; TZ (8) and TSM (12) are RES1 only where there is no SVE or SME to trap.
        let mut cptr = 0x22ff;
        if !f.sve {
            cptr |= 1 << 8;
        }
        if !f.sme {
            cptr |= 1 << 12;
        }
        // All event counters are the host's; profiling and trace buffers use its translation, so stage 2 holds them.
        let mut mdcr = pmu_counters;
        if f.spe {
            mdcr |= 3 << 12;
        }
        if f.trbe {
            mdcr |= 3 << 24;
        }
        Self {
            hcr,
            cptr,
            mdcr,
            hcrx: if f.hcx { Some(Self::hcrx(f)) } else { None },
            hfgrw: if f.fgt { Some(Self::hfg(f)) } else { None },
            hdfgrw: if f.fgt { Some(Self::hdfg(f)) } else { None },
            // nBRBINJ, nBRBIALL (55, 56); nGCSPUSHM_EL1, nGCSSTR_EL1, nGCSEPP (57–59).
            hfgitr: if f.fgt {
                Some((if f.brbe { 3 << 55 } else { 0 }) | (if f.gcs { 7 << 57 } else { 0 }))
            } else {
                None
            },
            zcr: if f.sve { Some(0xf) } else { None },
            smcr: if f.sme {
                Some(0xf | ((f.sme_fa64 as u64) << 31) | ((f.sme2 as u64) << 30))
            } else {
                None
            },
            features: *f,
        }
    }

    /// `HCRX_EL2`: MSCEn and TCR2En always (RES0 where absent), the rest by feature.
    const fn hcrx(f: &Features) -> u64 {
        let mut v = (1 << 11) | (1 << 14);
        if f.ls64 {
            v |= 0b11;
        }
        if f.gcs {
            v |= 1 << 22;
        }
        if f.fpmr {
            v |= 1 << 23;
        }
        v
    }

    /// `HDFGRTR_EL2` and `HDFGWTR_EL2`: nPMSNEVFR (62), nBRBDATA, nBRBCTL and, for reads, nBRBIDR (61, 60, 59).
    const fn hdfg(f: &Features) -> (u64, u64) {
        let snevfr = if f.spe_v1p2 { 1 << 62 } else { 0 };
        if f.brbe { (snevfr | (7 << 59), snevfr | (3 << 60)) } else { (snevfr, snevfr) }
    }

    /// `HFGRTR_EL2`/`HFGWTR_EL2`: only the bits whose *zero* traps.
    const fn hfg(f: &Features) -> u64 {
        let mut v = 0;
        if f.ls64_accdata {
            v |= 1 << 50;
        }
        if f.gcs {
            v |= 3 << 52;
        }
        if f.sme {
            v |= 3 << 54;
        }
        if f.s1pie {
            v |= 3 << 57;
        }
        if f.s1poe {
            v |= 3 << 59;
        }
        v
    }

    /// This CPU's values, for tables that are made for HCR_EL2.FWB or not.
    pub fn current(fwb: bool) -> Self {
        let f = Features::current();
        let counters = if f.pmu { (sysreg::pmcr_el0() >> 11) & 0x1f } else { 0 };
        Self::new(&f, counters, fwb)
    }

    /// Writes every register of the host's world but its general registers, drops what the TLBs of this CPU hold of
    /// EL1&0, and turns stage 2 on.
    ///
    /// # Safety
    /// `vttbr` must name the host's stage 2, whose tables give the host nothing that is not its own. EL2 runs with its
    /// own MMU on, on a CPU where no vCPU is loaded.
    pub unsafe fn load(&self, vttbr: u64) {
        #[cfg(feature = "unknown-resets")]
        // SAFETY: stage 2 is off, no EL1 runs, and every one of them is written below.
        unsafe {
            self.scramble()
        };
        // SAFETY: the timer, identity and debug registers below give EL1 its own machine; none of them maps memory.
        unsafe { self.load_controls() };
        // SAFETY: fine-grained traps only take rights away or leave EL1 what its CPU has.
        unsafe { self.load_fine_traps() };
        barrier::isb();
        // SAFETY: CPTR_EL2 lets EL2 reach them since the ISB, and lengths bound registers, not memory.
        unsafe { self.load_vectors_lengths() };
        // SAFETY: MMU off, EL1's first state; its stage 1 is bounded by stage 2.
        unsafe { sysreg::write_sctlr_el1(SCTLR_EL1_RESET) };
        // SAFETY: the fixed format of the host's tables.
        unsafe { sysreg::write_vtcr_el2(VTCR) };
        // SAFETY: the caller vouches for the tables.
        unsafe { sysreg::write_vttbr_el2(vttbr) };
        // SAFETY: stage 2 on, traps on; E2H stays 0, so EL2's own translation is untouched.
        unsafe { sysreg::write_hcr_el2(self.hcr) };
        barrier::isb();
        tlb::flush_local_el1();
        cache::invalidate_all_instructions();
    }

    /// Puts the worst into every register that [`HostRegs::load`] is to write: what traps or misleads the host.
    ///
    /// # Safety
    /// Nothing at EL1 may run before all of them are written again.
    #[cfg(feature = "unknown-resets")]
    unsafe fn scramble(&self) {
        type Write = unsafe fn(u64);
        let f = &self.features;
        // SAFETY: lets EL2 itself reach the registers of SVE and SME below.
        unsafe { sysreg::write_cptr_el2(self.cptr) };
        barrier::isb();
        // Positive trap bits set, and those that trap by being clear, clear.
        let registers: [(bool, Write, u64); 26] = [
            (true, sysreg::write_cnthctl_el2, 0),
            (true, sysreg::write_cntvoff_el2, 0x1234_5678_9abc_def0),
            (true, sysreg::write_mdcr_el2, u64::MAX),
            (true, sysreg::write_hstr_el2, u64::MAX),
            (true, sysreg::write_hacr_el2, u64::MAX),
            (true, sysreg::write_vpidr_el2, 0x5555_5555),
            (true, sysreg::write_vmpidr_el2, 0xaaaa_aaaa),
            (f.gic_sysregs, sysreg::write_ich_hcr_el2, u64::MAX),
            (f.mpam, sysreg::write_mpam2_el2, u64::MAX),
            (f.brbe, sysreg::write_brbcr_el2, 0b11),
            (f.hcx, sysreg::write_hcrx_el2, 0),
            (f.fgt, sysreg::write_hfgrtr_el2, (1 << 50) - 1),
            (f.fgt, sysreg::write_hfgwtr_el2, (1 << 50) - 1),
            (f.fgt, sysreg::write_hfgitr_el2, (1 << 55) - 1),
            (f.fgt, sysreg::write_hdfgrtr_el2, (1 << 59) - 1),
            (f.fgt, sysreg::write_hdfgwtr_el2, (1 << 59) - 1),
            (f.fgt && f.amu, sysreg::write_hafgrtr_el2, u64::MAX),
            (f.fgt2, sysreg::write_hfgrtr2_el2, u64::MAX),
            (f.fgt2, sysreg::write_hfgwtr2_el2, u64::MAX),
            (f.fgt2, sysreg::write_hfgitr2_el2, u64::MAX),
            (f.sve, sysreg::write_zcr_el2, 0),
            (f.sme, sysreg::write_smcr_el2, 0),
            (true, sysreg::write_sctlr_el1, u64::MAX),
            (true, sysreg::write_vtcr_el2, u64::MAX),
            (true, sysreg::write_vttbr_el2, u64::MAX),
            (true, sysreg::write_cptr_el2, u64::MAX),
        ];
        for (there, write, garbage) in registers {
            if there {
                // SAFETY: the caller keeps EL1 from running, and none of them translates for EL2.
                unsafe { write(garbage) };
            }
        }
        barrier::isb();
    }

    /// # Safety
    /// See [`HostRegs::load`].
    unsafe fn load_controls(&self) {
        // SAFETY: EL1 gets both counters and the physical timer.
        unsafe { sysreg::write_cnthctl_el2(3) };
        // SAFETY: the host's clock reads CNTVCT; an offset would only move it.
        unsafe { sysreg::write_cntvoff_el2(0) };
        // SAFETY: no trap of FP, SVE, SME or CPACR; memory is not concerned.
        unsafe { sysreg::write_cptr_el2(self.cptr) };
        // SAFETY: buffers that EL1 owns are translated by its stages 1 and 2.
        unsafe { sysreg::write_mdcr_el2(self.mdcr) };
        // SAFETY: AArch32 traps off.
        unsafe { sysreg::write_hstr_el2(0) };
        // SAFETY: implementation-defined traps off.
        unsafe { sysreg::write_hacr_el2(0) };
        // SAFETY: what EL1 reads as its identity.
        unsafe { sysreg::write_vpidr_el2(sysreg::midr_el1()) };
        // SAFETY: as above.
        unsafe { sysreg::write_vmpidr_el2(sysreg::mpidr_el1()) };
        if self.features.gic_sysregs {
            // SAFETY: SRE | Enable: EL1 chooses its own interface to the interrupt controller.
            unsafe { sysreg::write_icc_sre_el2(sysreg::icc_sre_el2() | 9) };
            barrier::isb();
            if sysreg::icc_sre_el2() & 1 != 0 {
                // SAFETY: the virtual interface is off.
                unsafe { sysreg::write_ich_hcr_el2(0) };
            }
        }
        if self.features.mpam {
            // SAFETY: MPAM labels traffic and reaches no memory.
            unsafe { sysreg::write_mpam2_el2(0) };
        }
        if self.features.brbe {
            // SAFETY: no branch of EL2 is recorded; cycles and mispredictions (CC, MPRED) of the host's may be.
            unsafe { sysreg::write_brbcr_el2(1 << 3 | 1 << 4) };
        }
        if self.features.lor {
            // SAFETY: limited ordering regions off.
            unsafe { sysreg::write_lorc_el1(0) };
        }
    }

    /// # Safety
    /// See [`HostRegs::load`].
    unsafe fn load_fine_traps(&self) {
        if let Some(v) = self.hcrx {
            // SAFETY: enables instructions and registers of EL1 that stage 2 bounds.
            unsafe { sysreg::write_hcrx_el2(v) };
        }
        if let Some(v) = self.hfgrw {
            // SAFETY: as above.
            unsafe { sysreg::write_hfgrtr_el2(v) };
            // SAFETY: as above.
            unsafe { sysreg::write_hfgwtr_el2(v) };
        }
        if let Some((read, write)) = self.hdfgrw {
            // SAFETY: as above.
            unsafe { sysreg::write_hdfgrtr_el2(read) };
            // SAFETY: as above.
            unsafe { sysreg::write_hdfgwtr_el2(write) };
        }
        if let Some(v) = self.hfgitr {
            // SAFETY: as above.
            unsafe { sysreg::write_hfgitr_el2(v) };
            if self.features.amu {
                // SAFETY: as above.
                unsafe { sysreg::write_hafgrtr_el2(0) };
            }
        }
        if self.features.fgt2 {
            for write in [
                sysreg::write_hfgrtr2_el2,
                sysreg::write_hfgwtr2_el2,
                sysreg::write_hfgitr2_el2,
                sysreg::write_hdfgrtr2_el2,
                sysreg::write_hdfgwtr2_el2,
            ] {
                // SAFETY: zero traps what no kernel of the host uses yet and gives it nothing.
                unsafe { write(0) };
            }
        }
    }

    /// # Safety
    /// `CPTR_EL2` must hold `self.cptr`, with an ISB since.
    unsafe fn load_vectors_lengths(&self) {
        if let Some(v) = self.zcr {
            // SAFETY: the greatest vector length; registers only.
            unsafe { sysreg::write_zcr_el2(v) };
        }
        if let Some(v) = self.smcr {
            // SAFETY: as above.
            unsafe { sysreg::write_smcr_el2(v) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cortex_a53_traps_nothing_but_smc() {
        let r = HostRegs::new(
            &Features { pmu: true, gic_sysregs: true, pa_range: 2, ..Features::default() },
            6,
            false,
        );
        assert_eq!(r.cptr, 0x33ff);
        assert_eq!(r.mdcr, 6);
        assert_eq!(r.hcr & 0xffff_ffff, 0x8008_0003);
        assert_eq!(r.hcr & hcr::FWB, 0);
        assert!(r.hcrx.is_none() && r.hfgrw.is_none() && r.zcr.is_none() && r.smcr.is_none());
    }

    #[test]
    fn vector_lengths_are_left_to_a_host_that_has_them() {
        let f = Features { sve: true, sme: true, sme_fa64: true, sme2: true, ..Features::default() };
        let r = HostRegs::new(&f, 0, false);
        assert_eq!(r.cptr, 0x22ff);
        assert_eq!((r.zcr, r.smcr), (Some(0xf), Some(0xc000_000f)));
    }

    #[test]
    fn bits_that_trap_when_clear_are_set_with_their_feature() {
        let f = Features { fgt: true, hcx: true, sme: true, s1pie: true, mte2: true, ..Features::default() };
        let r = HostRegs::new(&f, 0, false);
        assert_eq!(r.hfgrw, Some((3 << 54) | (3 << 57)));
        assert_eq!(r.hcrx, Some((1 << 11) | (1 << 14)));
        assert_ne!(r.hcr & hcr::ATA, 0);
    }

    #[test]
    fn the_host_never_runs_with_its_interrupts_routed_to_us() {
        let r = HostRegs::new(&Features::default(), 0, false);
        assert_eq!(r.hcr & (hcr::IMO | hcr::FMO | hcr::AMO | hcr::E2H), 0);
    }
}
