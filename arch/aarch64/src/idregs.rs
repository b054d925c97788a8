//! What a guest reads in the ID registers: for every field, kept, limited, fixed or hidden.
//!
//! `HCR_EL2.TID3` traps op0 = 3, op1 = 0, CRn = 0, CRm = 1 to 7. A register or field that is not in [`TABLE`] reads as
//! zero, which means "not implemented": what is younger than this table is hidden, and it traps or is off
//! (see [`crate::guest`]). Field positions: DDI 0487 D24.2.

use crate::sysreg;

/// What becomes of a 4-bit field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    /// As on this CPU, from this bit up: the instructions or behaviour need no state beyond what is switched.
    Keep(u32),
    /// As on this CPU, but not above this value.
    Limit(u32, u64),
    /// This value.
    Fixed(u32, u64),
}

use Field::{Fixed, Keep, Limit};

/// One register by CRm and op2.
struct Row {
    crm: u8,
    op2: u8,
    raw: fn() -> u64,
    fields: &'static [Field],
}

const TABLE: &[Row] = &[
    // ID_AA64PFR0_EL1: AArch64 at EL0 and EL1 only (0, 4), FP, AdvSIMD (16, 20), DIT (48), CSV2 without SCXTNUM (56),
    // CSV3 (60). No GIC registers, RAS, SVE, MPAM, AMU.
    Row {
        crm: 4,
        op2: 0,
        raw: sysreg::id_aa64pfr0_el1,
        fields: &[Fixed(0, 1), Fixed(4, 1), Keep(16), Keep(20), Keep(48), Limit(56, 1), Keep(60)],
    },
    // ID_AA64PFR1_EL1: BT (0), SSBS (4). No MTE, SME, NMI, GCS.
    Row { crm: 4, op2: 1, raw: sysreg::id_aa64pfr1_el1, fields: &[Keep(0), Keep(4)] },
    // ID_AA64DFR0_EL1: v8.0 debug (0) with two breakpoints and watchpoints (12, 20) that do nothing; DoubleLock (36).
    Row {
        crm: 5,
        op2: 0,
        raw: sysreg::id_aa64dfr0_el1,
        fields: &[Fixed(0, 6), Fixed(12, 1), Fixed(20, 1), Keep(36)],
    },
    // ID_AA64ISAR0_EL1: all but TME (24).
    Row {
        crm: 6,
        op2: 0,
        raw: sysreg::id_aa64isar0_el1,
        fields: &[
            Keep(4),
            Keep(8),
            Keep(12),
            Keep(16),
            Keep(20),
            Keep(28),
            Keep(32),
            Keep(36),
            Keep(40),
            Keep(44),
            Keep(48),
            Keep(52),
            Keep(56),
            Keep(60),
        ],
    },
    // ID_AA64ISAR1_EL1: DPB (0), JSCVT (12), FCMA (16), LRCPC (20), FRINTTS (32), SB (36), SPECRES (40), BF16 (44),
    // DGH (48), I8MM (52). No pointer authentication (4, 8, 24, 28): its keys are not switched; no XS, LS64.
    Row {
        crm: 6,
        op2: 1,
        raw: sysreg::id_aa64isar1_el1,
        fields: &[
            Keep(0),
            Keep(12),
            Keep(16),
            Keep(20),
            Keep(32),
            Keep(36),
            Limit(40, 1),
            Keep(44),
            Keep(48),
            Keep(52),
        ],
    },
    // ID_AA64ISAR2_EL1: RPRES (4), BC (20), CLRBHB (28), RPRFM (48), CSSC (52). No WFxT, PAuth, MOPS.
    Row {
        crm: 6,
        op2: 2,
        raw: sysreg::id_aa64isar2_el1,
        fields: &[Keep(4), Keep(20), Keep(28), Keep(48), Keep(52)],
    },
    // ID_AA64MMFR0_EL1: PARange (0) of at most 40 bits, ASIDBits (4), TGran16, 64, 4 (20, 24, 28).
    Row {
        crm: 7,
        op2: 0,
        raw: sysreg::id_aa64mmfr0_el1,
        fields: &[Limit(0, 2), Keep(4), Keep(20), Keep(24), Keep(28)],
    },
    // ID_AA64MMFR1_EL1: HAFDBS (0), HPDS (12), PAN (20), SpecSEI (24), ETS (36), AFP (44), nTLBPA (48), ECBHB (60).
    Row {
        crm: 7,
        op2: 1,
        raw: sysreg::id_aa64mmfr1_el1,
        fields: &[Limit(0, 2), Keep(12), Keep(20), Keep(24), Keep(36), Keep(44), Keep(48), Keep(60)],
    },
    // ID_AA64MMFR2_EL1: CnP (0), UAO (4), LSM (8), VARange (16), CCIDX (20), ST (28), AT (32), TTL (48), BBM (52),
    // E0PD (60).
    Row {
        crm: 7,
        op2: 2,
        raw: sysreg::id_aa64mmfr2_el1,
        fields: &[
            Keep(0),
            Keep(4),
            Keep(8),
            Limit(16, 1),
            Keep(20),
            Keep(28),
            Keep(32),
            Keep(48),
            Keep(52),
            Keep(60),
        ],
    },
];

const fn apply(raw: u64, fields: &[Field]) -> u64 {
    let mut value = 0;
    let mut i = 0;
    while i < fields.len() {
        value |= match fields[i] {
            Keep(shift) => raw & (0xf << shift),
            Limit(shift, max) => {
                let field = (raw >> shift) & 0xf;
                (if field < max { field } else { max }) << shift
            }
            Fixed(shift, value) => value << shift,
        };
        i += 1;
    }
    value
}

/// What a guest reads in the ID register with op0 = 3, op1 = 0, CRn = 0 and these numbers.
pub fn guest_value(crm: u8, op2: u8) -> u64 {
    match TABLE.iter().find(|row| (row.crm, row.op2) == (crm, op2)) {
        Some(row) => apply((row.raw)(), row.fields),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(crm: u8, op2: u8, raw: u64) -> u64 {
        TABLE.iter().find(|row| (row.crm, row.op2) == (crm, op2)).map_or(0, |row| apply(raw, row.fields))
    }

    #[test]
    fn everything_that_is_not_in_the_table_is_hidden() {
        assert_eq!(seen(4, 4, u64::MAX), 0);
        assert_eq!(seen(4, 5, u64::MAX), 0);
        assert_eq!(seen(7, 3, u64::MAX), 0);
        assert_eq!(guest_value(1, 0), 0);
    }

    #[test]
    fn a_guest_has_no_el2_no_gic_and_no_young_vectors() {
        let pfr0 = seen(4, 0, 0x1101_0011_1301_1122 | 1 << 32);
        assert_eq!(pfr0 & 0xffff, 0x0011);
        assert_eq!(pfr0 & (0xf << 24 | 0xf << 28 | 0xf << 32), 0);
    }

    #[test]
    fn absent_floating_point_stays_absent() {
        assert_eq!(seen(4, 0, 0xff << 16) >> 16 & 0xff, 0xff);
    }

    #[test]
    fn pointer_authentication_is_hidden_in_every_place() {
        assert_eq!(seen(6, 1, u64::MAX) & (0xff << 4 | 0xff << 24), 0);
        assert_eq!(seen(6, 2, u64::MAX) & (0xff << 8 | 0xf << 24), 0);
    }

    #[test]
    fn limits_hold() {
        assert_eq!(seen(7, 0, 6) & 0xf, 2);
        assert_eq!(seen(7, 0, 1) & 0xf, 1);
        assert_eq!(seen(5, 0, u64::MAX) & 0xf0f, 6);
    }

    #[test]
    fn no_register_and_no_field_stands_twice() {
        for (i, row) in TABLE.iter().enumerate() {
            assert!(TABLE[..i].iter().all(|other| (other.crm, other.op2) != (row.crm, row.op2)));
            let mut mask = 0u64;
            for field in row.fields {
                let (Keep(shift) | Limit(shift, _) | Fixed(shift, _)) = *field;
                assert_eq!(mask & (0xf << shift), 0);
                mask |= 0xf << shift;
            }
        }
    }
}
