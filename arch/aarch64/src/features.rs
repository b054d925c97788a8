//! What this CPU has: the ID registers, read once and decoded (DDI 0487 D24.2).
//!
//! Only features that change how EL2 must be set up or how exceptions are entered. Pure decode, so that the tables of
//! each CPU model can be tested on the build machine.

use crate::sysreg;

/// Raw ID registers that [`Features`] is decoded from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdRegs {
    /// `ID_AA64PFR0_EL1`.
    pub pfr0: u64,
    /// `ID_AA64PFR1_EL1`.
    pub pfr1: u64,
    /// `ID_AA64PFR2_EL1`.
    pub pfr2: u64,
    /// `ID_AA64DFR0_EL1`.
    pub dfr0: u64,
    /// `ID_AA64ISAR1_EL1`.
    pub isar1: u64,
    /// `ID_AA64ISAR0_EL1`.
    pub isar0: u64,
    /// `ID_AA64MMFR0_EL1`.
    pub mmfr0: u64,
    /// `ID_AA64MMFR1_EL1`.
    pub mmfr1: u64,
    /// `ID_AA64MMFR2_EL1`.
    pub mmfr2: u64,
    /// `ID_AA64MMFR3_EL1`.
    pub mmfr3: u64,
    /// `ID_AA64SMFR0_EL1`.
    pub smfr0: u64,
}

impl IdRegs {
    /// Reads this CPU's.
    pub fn read() -> Self {
        Self {
            pfr0: sysreg::id_aa64pfr0_el1(),
            pfr1: sysreg::id_aa64pfr1_el1(),
            pfr2: sysreg::id_aa64pfr2_el1(),
            dfr0: sysreg::id_aa64dfr0_el1(),
            isar0: sysreg::id_aa64isar0_el1(),
            isar1: sysreg::id_aa64isar1_el1(),
            mmfr0: sysreg::id_aa64mmfr0_el1(),
            mmfr1: sysreg::id_aa64mmfr1_el1(),
            mmfr2: sysreg::id_aa64mmfr2_el1(),
            mmfr3: sysreg::id_aa64mmfr3_el1(),
            smfr0: sysreg::id_aa64smfr0_el1(),
        }
    }
}

/// A 4-bit field of an ID register.
const fn field(reg: u64, shift: u32) -> u8 {
    ((reg >> shift) & 0xf) as u8
}

/// Features, by their Arm names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// `MMFR0.PARange`, as encoded (0 = 32 bits … 6 = 52 bits).
    pub pa_range: u8,
    /// System-register interface of the GIC (`PFR0.GIC`).
    pub gic_sysregs: bool,
    /// FEAT_RAS.
    pub ras: bool,
    /// FEAT_SVE.
    pub sve: bool,
    /// FEAT_SME.
    pub sme: bool,
    /// FEAT_SME_FA64.
    pub sme_fa64: bool,
    /// FEAT_SME2.
    pub sme2: bool,
    /// FEAT_AMUv1.
    pub amu: bool,
    /// FEAT_MPAM.
    pub mpam: bool,
    /// FEAT_MTE2.
    pub mte2: bool,
    /// FEAT_SSBS.
    pub ssbs: bool,
    /// FEAT_NMI.
    pub nmi: bool,
    /// FEAT_GCS.
    pub gcs: bool,
    /// FEAT_FPMR.
    pub fpmr: bool,
    /// FEAT_PMUv3 in any version that is Arm's.
    pub pmu: bool,
    /// FEAT_SPE.
    pub spe: bool,
    /// FEAT_SPEv1p2.
    pub spe_v1p2: bool,
    /// FEAT_TRBE.
    pub trbe: bool,
    /// FEAT_BRBE.
    pub brbe: bool,
    /// FEAT_FGT.
    pub fgt: bool,
    /// FEAT_FGT2.
    pub fgt2: bool,
    /// FEAT_HCX.
    pub hcx: bool,
    /// FEAT_LOR.
    pub lor: bool,
    /// FEAT_PAN.
    pub pan: bool,
    /// FEAT_UAO.
    pub uao: bool,
    /// FEAT_LS64 (any level).
    pub ls64: bool,
    /// FEAT_LS64_ACCDATA.
    pub ls64_accdata: bool,
    /// FEAT_S1PIE.
    pub s1pie: bool,
    /// FEAT_S1POE.
    pub s1poe: bool,
    /// FEAT_S2FWB.
    pub s2fwb: bool,
    /// FEAT_VMID16.
    pub vmid16: bool,
    /// FEAT_TLBIRANGE.
    pub tlbi_range: bool,
}

impl Features {
    /// Decodes the registers.
    pub const fn decode(id: &IdRegs) -> Self {
        let pmu = field(id.dfr0, 8);
        Self {
            pa_range: field(id.mmfr0, 0),
            gic_sysregs: field(id.pfr0, 24) != 0,
            ras: field(id.pfr0, 28) != 0,
            sve: field(id.pfr0, 32) != 0,
            sme: field(id.pfr1, 24) != 0,
            sme_fa64: id.smfr0 & (1 << 63) != 0,
            sme2: field(id.pfr1, 24) >= 2,
            amu: field(id.pfr0, 44) != 0,
            mpam: field(id.pfr0, 40) != 0 || field(id.pfr1, 16) != 0,
            mte2: field(id.pfr1, 8) >= 2,
            ssbs: field(id.pfr1, 4) != 0,
            nmi: field(id.pfr1, 36) != 0,
            gcs: field(id.pfr1, 44) != 0,
            fpmr: field(id.pfr2, 32) != 0,
            pmu: pmu != 0 && pmu != 0xf,
            spe: field(id.dfr0, 32) != 0,
            spe_v1p2: field(id.dfr0, 32) >= 3,
            trbe: field(id.dfr0, 44) != 0,
            brbe: field(id.dfr0, 52) != 0,
            fgt: field(id.mmfr0, 56) != 0,
            fgt2: field(id.mmfr0, 56) >= 2,
            hcx: field(id.mmfr1, 40) != 0,
            lor: field(id.mmfr1, 16) != 0,
            pan: field(id.mmfr1, 20) != 0,
            uao: field(id.mmfr2, 4) != 0,
            ls64: field(id.isar1, 60) != 0,
            ls64_accdata: field(id.isar1, 60) >= 3,
            s1pie: field(id.mmfr3, 8) != 0,
            s1poe: field(id.mmfr3, 16) != 0,
            s2fwb: field(id.mmfr2, 40) != 0,
            vmid16: field(id.mmfr1, 4) == 2,
            tlbi_range: field(id.isar0, 56) >= 2,
        }
    }

    /// This CPU's.
    pub fn current() -> Self {
        Self::decode(&IdRegs::read())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cortex_a53_has_none_of_the_young_features() {
        let a53 = IdRegs { pfr0: 0x0100_2222, dfr0: 0x1030_5106, mmfr0: 0x1122, ..IdRegs::default() };
        let f = Features::decode(&a53);
        assert_eq!(f, Features { pa_range: 2, gic_sysregs: true, pmu: true, ..Features::default() });
    }

    #[test]
    fn an_implementation_defined_pmu_does_not_count() {
        assert!(!Features::decode(&IdRegs { dfr0: 0xf00, ..IdRegs::default() }).pmu);
    }

    #[test]
    fn levels_are_told_apart() {
        let id = IdRegs { pfr1: (1 << 8) | (2 << 24), mmfr0: 2 << 56, ..IdRegs::default() };
        let f = Features::decode(&id);
        assert!(!f.mte2 && f.sme && f.sme2 && f.fgt && f.fgt2);
    }
}
