//! The state of EL2 while a guest runs: which controls differ from the host's, and with what values.
//!
//! This is the *trapped* part of the table in docs/world-switch.md: whatever a guest is not given by
//! [`crate::el1`] (switched) is trapped here, or behaves as if it were not implemented, and is hidden from the ID
//! registers by [`crate::idregs`]. Values are computed by [`GuestRegs::new`], which is pure and tested.
#![allow(unsafe_code)]

use crate::features::Features;
use crate::host::{HostRegs, hcr as h};
use crate::{barrier, sysreg};

/// `HCR_EL2` bits that only guests have, DDI 0487 D24.2.60.
pub mod hcr {
    /// Walks of a guest's stage 1 that hit device memory fault.
    pub const PTW: u64 = 1 << 2;
    /// TLB and instruction-cache maintenance of a guest reaches all CPUs.
    pub const FB: u64 = 1 << 9;
    /// Barriers of a guest reach at least the inner shareable domain.
    pub const BSU_INNER: u64 = 1 << 10;
    /// WFI traps.
    pub const TWI: u64 = 1 << 13;
    /// Identification registers group 1 trap.
    pub const TID1: u64 = 1 << 16;
    /// Identification registers group 3 trap.
    pub const TID3: u64 = 1 << 18;
    /// Implementation-defined functionality traps.
    pub const TIDCP: u64 = 1 << 20;
    /// `ACTLR_EL1` traps.
    pub const TACR: u64 = 1 << 21;
    /// Cache maintenance by set and way traps.
    pub const TSW: u64 = 1 << 22;
    /// Writes of the translation controls trap.
    pub const TVM: u64 = 1 << 26;
    /// The limited-ordering-region registers trap.
    pub const TLOR: u64 = 1 << 35;
    /// Error record registers trap.
    pub const TERR: u64 = 1 << 36;
}

/// Stage 2 of a guest: 39-bit IPA (T0SZ 25), level-1 start, one root page; the rest as the host's.
pub const VTCR: u64 = 0x8002_3559;

/// `ICH_HCR_EL2`: the virtual interface is off and every access of a guest to `ICC_*` traps (TC, TALL0, TALL1, TDIR).
const ICH_HCR_NO_VGIC: u64 = 1 << 10 | 1 << 11 | 1 << 12 | 1 << 14;

/// `CPTR_EL2.TFP`.
const CPTR_TFP: u64 = 1 << 10;

/// The values for guests on one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRegs {
    /// `HCR_EL2` of a guest that needs no watch over its caches.
    pub hcr: u64,
    /// `CPTR_EL2` while the guest has no FP/SIMD registers.
    pub cptr: u64,
    /// `MDCR_EL2`.
    pub mdcr: u64,
    /// `HCRX_EL2`, with FEAT_HCX.
    pub hcrx: u64,
    features: Features,
    host: HostRegs,
}

/// What differs from guest to guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// `VTTBR_EL2`: root table and VMID.
    pub vttbr: u64,
    /// `VMPIDR_EL2`: what the guest reads as MPIDR_EL1.
    pub vmpidr: u64,
    /// `CNTVOFF_EL2`.
    pub cntvoff: u64,
    /// `HCR_EL2` bits beside those of [`GuestRegs::hcr`] (TVM and TSW, VSE).
    pub hcr: u64,
}

impl GuestRegs {
    /// The values for a CPU with these features, whose host has `host`.
    pub const fn new(f: &Features, host: &HostRegs) -> Self {
        let hcr = h::VM
            | h::SWIO
            | hcr::PTW
            | h::FMO
            | h::IMO
            | h::AMO
            | hcr::FB
            | hcr::BSU_INNER
            | hcr::TWI
            | hcr::TID1
            | hcr::TID3
            | h::TSC
            | hcr::TIDCP
            | hcr::TACR
            | hcr::TLOR
            | hcr::TERR
            | h::RW
            // One for both worlds: all tables are made for it, or none, and a TLB may keep it.
            | host.hcr & h::FWB;
        Self {
            hcr,
            // RES1 bits, which include TZ (8) and TSM (12): no SVE, no SME; TFP: lazily; TTA (20), TAM (30).
            cptr: 0x33ff | CPTR_TFP | 1 << 20 | 1 << 30,
            // As many counters as the host has left itself; TPMCR, TPM (5, 6), TDA, TDOSA, TDRA (9, 10, 11), TPMS (14),
            // TTRF (19) trap; profiling and trace buffers are not the guest's (E2PB, E2TB = 0; both are drained).
            mdcr: host.mdcr & 0x1f
                | 3 << 5
                | 7 << 9
                | if f.spe { 1 << 14 } else { 0 }
                | if f.trbe { 1 << 19 } else { 0 },
            // Everything of FEAT_HCX off; with FEAT_NMI, TALLINT.
            hcrx: if f.nmi { 1 << 6 } else { 0 },
            features: *f,
            host: *host,
        }
    }

    /// Enters a guest's world: traps, timer, identity, stage 2, `HCR_EL2`. Done while EL1 can make no walk.
    ///
    /// # Safety
    /// The host's EL1 state must be saved, `world.vttbr` must name a stage 2 that gives the guest nothing but its own, and
    /// the next ERET must enter that guest.
    pub unsafe fn load(&self, world: &World) {
        // SAFETY: EL1 gets the virtual counter and timer; the physical counter may be read (EL1PCTEN), the timer traps.
        unsafe { sysreg::write_cnthctl_el2(1) };
        // SAFETY: the guest's clock.
        unsafe { sysreg::write_cntvoff_el2(world.cntvoff) };
        // SAFETY: traps more than the host's.
        unsafe { sysreg::write_cptr_el2(self.cptr) };
        // SAFETY: as above.
        unsafe { sysreg::write_mdcr_el2(self.mdcr) };
        // SAFETY: what the guest reads as its place.
        unsafe { sysreg::write_vmpidr_el2(world.vmpidr) };
        if self.features.gic_sysregs && sysreg::icc_sre_el2() & 1 != 0 {
            // SAFETY: ICC_SRE_EL1 traps (Enable = 0).
            unsafe { sysreg::write_icc_sre_el2(sysreg::icc_sre_el2() & !8) };
            // SAFETY: no virtual interrupt, every access traps.
            unsafe { sysreg::write_ich_hcr_el2(ICH_HCR_NO_VGIC) };
        }
        if self.features.mpam {
            // SAFETY: MPAM registers trap (TRAPMPAM0EL1, TRAPMPAM1EL1).
            unsafe { sysreg::write_mpam2_el2(3 << 48) };
        }
        if self.features.hcx {
            // SAFETY: young features off.
            unsafe { sysreg::write_hcrx_el2(self.hcrx) };
        }
        if self.features.fgt {
            self.load_fine_traps();
        }
        // SAFETY: the fixed format of guest tables.
        unsafe { sysreg::write_vtcr_el2(VTCR) };
        // SAFETY: the caller vouches for the tables.
        unsafe { sysreg::write_vttbr_el2(world.vttbr) };
        // SAFETY: stage 2 on, traps on; E2H stays 0.
        unsafe { sysreg::write_hcr_el2(self.hcr | world.hcr) };
        barrier::isb();
    }

    /// Fine-grained traps at zero: bits named n… trap then, and no other is needed.
    fn load_fine_traps(&self) {
        for write in [
            sysreg::write_hfgrtr_el2,
            sysreg::write_hfgwtr_el2,
            sysreg::write_hdfgrtr_el2,
            sysreg::write_hdfgwtr_el2,
            sysreg::write_hfgitr_el2,
        ] {
            // SAFETY: takes rights away; FEAT_FGT was checked.
            unsafe { write(0) };
        }
    }

    /// Lets the guest use the FP/SIMD registers, which hold its values.
    ///
    /// # Safety
    /// The registers must hold nothing of another world, and the host's state must be saved.
    pub unsafe fn open_fp(&self) {
        // SAFETY: the caller's promise; the next ERET synchronises.
        unsafe { sysreg::write_cptr_el2(self.cptr & !CPTR_TFP) };
    }

    /// Lets EL2 itself touch vector registers, between two worlds.
    ///
    /// # Safety
    /// `CPTR_EL2` must be set for the next world before EL2 is left.
    pub unsafe fn open_fp_for_el2(&self) {
        // SAFETY: the host's value traps nothing; EL2 touches the registers only in `crate::fp`.
        unsafe { sysreg::write_cptr_el2(self.host.cptr) };
        barrier::isb();
    }

    /// Back to the host's world. Done while EL1 can make no walk.
    ///
    /// # Safety
    /// The guest's EL1 state must be saved, `vttbr` must name the host's stage 2, and the next ERET must enter the host.
    pub unsafe fn unload(&self, vttbr: u64) {
        // SAFETY: the host's values, as at boot.
        unsafe { sysreg::write_cnthctl_el2(3) };
        // SAFETY: as above.
        unsafe { sysreg::write_cntvoff_el2(0) };
        // SAFETY: as above.
        unsafe { sysreg::write_cptr_el2(self.host.cptr) };
        // SAFETY: as above.
        unsafe { sysreg::write_mdcr_el2(self.host.mdcr) };
        // SAFETY: as above.
        unsafe { sysreg::write_vmpidr_el2(sysreg::mpidr_el1()) };
        if self.features.gic_sysregs && sysreg::icc_sre_el2() & 1 != 0 {
            // SAFETY: as above.
            unsafe { sysreg::write_ich_hcr_el2(0) };
            // SAFETY: as above.
            unsafe { sysreg::write_icc_sre_el2(sysreg::icc_sre_el2() | 9) };
        }
        if self.features.mpam {
            // SAFETY: as above.
            unsafe { sysreg::write_mpam2_el2(0) };
        }
        if let Some(v) = self.host.hcrx {
            // SAFETY: as above.
            unsafe { sysreg::write_hcrx_el2(v) };
        }
        if let (Some(rw), Some((read, write)), Some(itr)) =
            (self.host.hfgrw, self.host.hdfgrw, self.host.hfgitr)
        {
            // SAFETY: as above.
            unsafe { sysreg::write_hfgrtr_el2(rw) };
            // SAFETY: as above.
            unsafe { sysreg::write_hfgwtr_el2(rw) };
            // SAFETY: as above.
            unsafe { sysreg::write_hdfgrtr_el2(read) };
            // SAFETY: as above.
            unsafe { sysreg::write_hdfgwtr_el2(write) };
            // SAFETY: as above.
            unsafe { sysreg::write_hfgitr_el2(itr) };
        }
        // SAFETY: as above.
        unsafe { sysreg::write_vtcr_el2(crate::host::VTCR) };
        // SAFETY: the caller vouches for the tables.
        unsafe { sysreg::write_vttbr_el2(vttbr) };
        // SAFETY: as above.
        unsafe { sysreg::write_hcr_el2(self.host.hcr) };
        barrier::isb();
    }
}

/// Profiling, trace, branch records and counters of the host, stopped while a guest runs: their buffers are addressed by
/// the host's translation, and what they see of a guest is none of the host's business.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Monitors {
    pmscr: u64,
    pmblimitr: u64,
    trfcr: u64,
    trblimitr: u64,
    brbcr: u64,
    pmcr: u64,
}

impl Monitors {
    /// Stops what is there.
    ///
    /// # Safety
    /// The host's `MDCR_EL2` and `VTTBR_EL2` must be loaded; [`Monitors::resume`] must follow before the host runs.
    pub unsafe fn stop(f: &Features) -> Self {
        let mut m = Self::default();
        if f.pmu {
            m.pmcr = sysreg::pmcr_el0();
            // SAFETY: E = 0: the counters of EL1 stand still.
            unsafe { sysreg::write_pmcr_el0(m.pmcr & !1) };
        }
        if f.spe {
            m.pmscr = sysreg::pmscr_el1();
            m.pmblimitr = sysreg::pmblimitr_el1();
            // SAFETY: no sampling, then the buffer is drained and off.
            unsafe { sysreg::write_pmscr_el1(0) };
            barrier::isb();
            sysreg::psb_csync();
            barrier::dsb_nsh();
            // SAFETY: as above.
            unsafe { sysreg::write_pmblimitr_el1(0) };
        }
        if f.trbe {
            m.trfcr = sysreg::trfcr_el1();
            m.trblimitr = sysreg::trblimitr_el1();
            // SAFETY: no trace, then the buffer is drained and off.
            unsafe { sysreg::write_trfcr_el1(0) };
            barrier::isb();
            sysreg::tsb_csync();
            barrier::dsb_nsh();
            // SAFETY: as above.
            unsafe { sysreg::write_trblimitr_el1(0) };
        }
        if f.brbe {
            m.brbcr = sysreg::brbcr_el1();
            // SAFETY: E0BRE and E1BRE are 0: no branch of EL0 or EL1 is recorded.
            unsafe { sysreg::write_brbcr_el1(0) };
        }
        barrier::isb();
        m
    }

    /// Lets them go on.
    ///
    /// # Safety
    /// The host's `MDCR_EL2` and `VTTBR_EL2` must be loaded.
    pub unsafe fn resume(&self, f: &Features) {
        if f.trbe {
            // SAFETY: the host's own value.
            unsafe { sysreg::write_trblimitr_el1(self.trblimitr) };
            barrier::isb();
            // SAFETY: as above.
            unsafe { sysreg::write_trfcr_el1(self.trfcr) };
        }
        if f.spe {
            // SAFETY: as above.
            unsafe { sysreg::write_pmblimitr_el1(self.pmblimitr) };
            barrier::isb();
            // SAFETY: as above.
            unsafe { sysreg::write_pmscr_el1(self.pmscr) };
        }
        if f.brbe {
            // SAFETY: as above.
            unsafe { sysreg::write_brbcr_el1(self.brbcr) };
        }
        if f.pmu {
            // SAFETY: as above; the bits that act when written read as zero.
            unsafe { sysreg::write_pmcr_el0(self.pmcr) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(f: &Features) -> GuestRegs {
        GuestRegs::new(f, &HostRegs::new(f, 6, f.s2fwb))
    }

    #[test]
    fn a_guest_has_stage_2_and_its_interrupts_go_to_el2() {
        let g = guest(&Features::default());
        for bit in [h::VM, h::RW, h::IMO, h::FMO, h::AMO, h::TSC, hcr::TID3, hcr::TWI] {
            assert_ne!(g.hcr & bit, 0, "{bit:#x}");
        }
        assert_eq!(g.hcr & (h::E2H | h::API | h::APK | h::ATA | h::EN_SCXT | h::FIEN | h::FWB), 0);
    }

    #[test]
    fn memory_types_are_forced_in_both_worlds_and_only_where_the_tables_are_made_for_it() {
        let f = Features { s2fwb: true, ..Features::default() };
        for (fwb, bit) in [(true, h::FWB), (false, 0)] {
            let host = HostRegs::new(&f, 0, fwb);
            assert_eq!(host.hcr & h::FWB, bit);
            assert_eq!(GuestRegs::new(&f, &host).hcr & h::FWB, bit);
        }
    }

    #[test]
    fn vectors_beyond_simd_always_trap() {
        let f = Features { sve: true, sme: true, ..Features::default() };
        assert_eq!(guest(&f).cptr & (1 << 8 | 1 << 12 | CPTR_TFP), 1 << 8 | 1 << 12 | CPTR_TFP);
    }

    #[test]
    fn debug_and_counters_trap_and_the_counters_stay_reserved() {
        let g = guest(&Features { pmu: true, ..Features::default() });
        assert_eq!(g.mdcr, 6 | 3 << 5 | 7 << 9);
    }

    #[test]
    fn guest_tables_have_39_bits_and_start_at_level_1() {
        assert_eq!((VTCR & 0x3f, (VTCR >> 6) & 3), (25, 1));
    }
}
