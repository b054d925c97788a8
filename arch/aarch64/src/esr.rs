//! Exception syndromes (`ESR_EL2`, DDI 0487 D24.2.40), decoded. Pure.

use core::fmt;

/// A value of `ESR_EL2`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Esr(pub u64);

/// Exception classes that Tenure tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// 0x00: unknown or undefined.
    Unknown,
    /// 0x01: WFI, WFE and their timed forms.
    WaitFor,
    /// 0x07: FP/SIMD/SVE/SME access.
    FpAccess,
    /// 0x0e: illegal execution state.
    IllegalState,
    /// 0x16: HVC from AArch64.
    Hvc,
    /// 0x17: SMC from AArch64.
    Smc,
    /// 0x18: MSR, MRS or a system instruction.
    SysReg,
    /// 0x19: SVE access.
    Sve,
    /// 0x20: instruction abort from a lower EL.
    InstAbortLower,
    /// 0x21: instruction abort from EL2.
    InstAbortSame,
    /// 0x22: PC alignment.
    PcAlignment,
    /// 0x24: data abort from a lower EL.
    DataAbortLower,
    /// 0x25: data abort from EL2.
    DataAbortSame,
    /// 0x26: SP alignment.
    SpAlignment,
    /// 0x2f: SError.
    SError,
    /// 0x3c: BRK.
    Brk,
    /// Any other, by number.
    Other(u8),
}

impl Esr {
    /// The exception class (EC).
    pub const fn class(self) -> Class {
        match ((self.0 >> 26) & 0x3f) as u8 {
            0x00 => Class::Unknown,
            0x01 => Class::WaitFor,
            0x07 => Class::FpAccess,
            0x0e => Class::IllegalState,
            0x16 => Class::Hvc,
            0x17 => Class::Smc,
            0x18 => Class::SysReg,
            0x19 => Class::Sve,
            0x20 => Class::InstAbortLower,
            0x21 => Class::InstAbortSame,
            0x22 => Class::PcAlignment,
            0x24 => Class::DataAbortLower,
            0x25 => Class::DataAbortSame,
            0x26 => Class::SpAlignment,
            0x2f => Class::SError,
            0x3c => Class::Brk,
            other => Class::Other(other),
        }
    }

    /// The instruction was 32 bits long (IL).
    pub const fn il(self) -> bool {
        self.0 & (1 << 25) != 0
    }

    /// The instruction-specific syndrome (ISS), 25 bits.
    pub const fn iss(self) -> u32 {
        (self.0 & 0x1ff_ffff) as u32
    }

    /// The immediate of an HVC or SMC.
    pub const fn imm16(self) -> u16 {
        (self.0 & 0xffff) as u16
    }

    /// The syndrome of an abort; meaningful for the abort classes only.
    pub const fn abort(self) -> Abort {
        Abort(self.iss())
    }
}

impl fmt::Debug for Esr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x} ({:?}", self.0, self.class())?;
        match self.class() {
            Class::DataAbortLower | Class::DataAbortSame | Class::InstAbortLower | Class::InstAbortSame => {
                let abort = self.abort();
                write!(f, ", {:?}, {}", abort.fault(), if abort.is_write() { "write" } else { "read" })?;
                if abort.s1ptw() {
                    write!(f, ", on a stage-1 walk")?;
                }
            }
            Class::Hvc | Class::Smc | Class::Brk => write!(f, ", #{:#x}", self.imm16())?,
            _ => {}
        }
        write!(f, ")")
    }
}

/// The ISS of a data or instruction abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort(pub u32);

/// What kind of fault an abort reports (DFSC/IFSC).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Address size, at a level.
    AddressSize(u8),
    /// Translation, at a level.
    Translation(u8),
    /// Access flag, at a level.
    AccessFlag(u8),
    /// Permission, at a level.
    Permission(u8),
    /// Synchronous external abort, not on a walk.
    External,
    /// Synchronous external abort on a walk, at a level.
    ExternalOnWalk(u8),
    /// Alignment.
    Alignment,
    /// TLB conflict.
    TlbConflict,
    /// Any other code.
    Other(u8),
}

impl Abort {
    /// The fault status code, 6 bits.
    pub const fn code(self) -> u8 {
        (self.0 & 0x3f) as u8
    }

    /// The fault, decoded.
    pub const fn fault(self) -> Fault {
        let code = self.code();
        let level = code & 3;
        match code >> 2 {
            0b0000 => Fault::AddressSize(level),
            0b0001 => Fault::Translation(level),
            0b0010 => Fault::AccessFlag(level),
            0b0011 => Fault::Permission(level),
            0b0101 => Fault::ExternalOnWalk(level),
            _ => match code {
                0x10 => Fault::External,
                0x21 => Fault::Alignment,
                0x30 => Fault::TlbConflict,
                other => Fault::Other(other),
            },
        }
    }

    /// WnR: the access was a write (or cache maintenance; data aborts only).
    pub const fn is_write(self) -> bool {
        self.0 & (1 << 6) != 0
    }

    /// S1PTW: the fault is stage 2's, on the walk of a stage-1 table.
    pub const fn s1ptw(self) -> bool {
        self.0 & (1 << 7) != 0
    }

    /// CM: cache maintenance or address translation.
    pub const fn is_cache_op(self) -> bool {
        self.0 & (1 << 8) != 0
    }

    /// FnV: `FAR_EL2` is not valid.
    pub const fn far_not_valid(self) -> bool {
        self.0 & (1 << 10) != 0
    }

    /// The valid single-register syndrome, where ISV is set: what an MMIO exit needs.
    pub const fn access(self) -> Option<Access> {
        if self.0 & (1 << 24) == 0 {
            return None;
        }
        Some(Access {
            size: 1 << ((self.0 >> 22) & 3),
            sign_extend: self.0 & (1 << 21) != 0,
            register: ((self.0 >> 16) & 0x1f) as u8,
            wide: self.0 & (1 << 15) != 0,
            write: self.is_write(),
        })
    }
}

/// A load or store of one general register, from a valid syndrome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// A load that extends the sign.
    pub sign_extend: bool,
    /// The register's number; 31 is the zero register.
    pub register: u8,
    /// The register is used as 64 bits.
    pub wide: bool,
    /// A store.
    pub write: bool,
}

/// The faulting address of stage 2: page from `HPFAR_EL2`, offset in the page from `FAR_EL2`.
///
/// Valid for translation and access-flag faults, and for permission faults on a stage-1 walk; for other permission
/// faults the page must be found by a walk (DDI 0487 D24.2.63).
pub const fn stage2_address(hpfar: u64, far: u64) -> u64 {
    ((hpfar & 0xfff_ffff_fff0) << 8) | (far & 0xfff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_of_an_unmapped_page_decodes() {
        let esr = Esr(0x9383_0007);
        assert_eq!(esr.class(), Class::DataAbortLower);
        let a = esr.abort();
        assert_eq!(a.fault(), Fault::Translation(3));
        assert!(!a.is_write() && !a.s1ptw());
        let access = a.access().unwrap();
        assert_eq!((access.size, access.register, access.write), (4, 3, false));
    }

    #[test]
    fn a_fault_without_a_valid_syndrome_names_no_register() {
        assert_eq!(Esr(0x9200_0047).abort().access(), None);
        assert!(Esr(0x9200_0047).abort().is_write());
    }

    #[test]
    fn a_fault_on_a_walk_says_so() {
        assert!(Esr(0x9200_0087).abort().s1ptw());
    }

    #[test]
    fn hvc_and_smc_keep_their_immediate() {
        assert_eq!(Esr(0x5a00_0000).class(), Class::Hvc);
        assert_eq!(Esr(0x5e00_0001).imm16(), 1);
        assert_eq!(Esr(0x5e00_0001).class(), Class::Smc);
    }

    #[test]
    fn codes_outside_the_table_are_kept() {
        assert_eq!(Esr(0x3f << 26).class(), Class::Other(0x3f));
        assert_eq!(Abort(0x3f).fault(), Fault::Other(0x3f));
    }

    #[test]
    fn the_address_joins_page_and_offset() {
        assert_eq!(stage2_address(0x4_1000, 0xffff_8000_1234_5678), 0x410_0678);
    }

    #[test]
    fn the_print_is_readable() {
        let s = std::format!("{:?}", Esr(0x9600_0045));
        assert!(s.contains("DataAbortSame") && s.contains("Translation(1)") && s.contains("write"), "{s}");
    }
}
