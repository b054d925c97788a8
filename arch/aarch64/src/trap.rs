//! Trapped system register accesses (EC 0x18, DDI 0487 D24.2.40 "ISS encoding for an exception from MSR, MRS, or
//! System instruction execution in AArch64 state"), decoded. Pure.

/// Name of a system register or instruction: op0, op1, CRn, CRm, op2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding(pub u8, pub u8, pub u8, pub u8, pub u8);

/// A trapped access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SysAccess {
    /// What is accessed.
    pub register: Encoding,
    /// The general register; 31 is the zero register.
    pub rt: u8,
    /// MRS (or a system instruction with a result), else MSR.
    pub read: bool,
}

impl SysAccess {
    /// Decodes the syndrome.
    pub fn decode(iss: u32) -> Self {
        let field = |shift: u32, mask: u32| ((iss >> shift) & mask) as u8;
        Self {
            register: Encoding(field(20, 3), field(14, 7), field(10, 0xf), field(1, 0xf), field(17, 7)),
            rt: field(5, 0x1f),
            read: iss & 1 != 0,
        }
    }
}

/// What a trapped access of a guest leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A read gives this value.
    Value(u64),
    /// The write is lost, the instruction does nothing.
    Ignore,
    /// A write of this translation control goes to the register itself (trapped by TVM).
    Control(Control),
    /// An undefined-instruction exception.
    Undefined,
}

/// Registers whose writes `HCR_EL2.TVM` traps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// `SCTLR_EL1`.
    Sctlr,
    /// `TTBR0_EL1`.
    Ttbr0,
    /// `TTBR1_EL1`.
    Ttbr1,
    /// `TCR_EL1`.
    Tcr,
    /// `ESR_EL1`.
    Esr,
    /// `FAR_EL1`.
    Far,
    /// `AFSR0_EL1`.
    Afsr0,
    /// `AFSR1_EL1`.
    Afsr1,
    /// `MAIR_EL1`.
    Mair,
    /// `AMAIR_EL1`.
    Amair,
    /// `CONTEXTIDR_EL1`.
    Contextidr,
}

/// Decides about an access; `id` gives what a guest reads in an ID register of this CRm and op2.
pub fn answer(access: SysAccess, id: impl FnOnce(u8, u8) -> u64) -> Answer {
    let constant = |value| if access.read { Answer::Value(value) } else { Answer::Undefined };
    let ignored = if access.read { Answer::Value(0) } else { Answer::Ignore };
    match access.register {
        Encoding(3, 0, 0, crm @ 1..=7, op2) => match access.read {
            true => Answer::Value(id(crm, op2)),
            false => Answer::Undefined,
        },
        // REVIDR_EL1, AIDR_EL1.
        Encoding(3, 0, 0, 0, 6) | Encoding(3, 1, 0, 0, 7) => constant(0),
        // ACTLR_EL1.
        Encoding(3, 0, 1, 0, 1) => ignored,
        // OSLSR_EL1: the OS lock is implemented (OSLM = 0b10) and open.
        Encoding(2, 0, 1, 1, 4) => constant(1 << 3),
        // All other debug registers do nothing.
        Encoding(2, 0, _, _, _) => ignored,
        // DC ISW, CSW, CISW.
        Encoding(1, 0, 7, 6 | 10 | 14, 2) => Answer::Ignore,
        register if !access.read => match control(register) {
            Some(control) => Answer::Control(control),
            None => Answer::Undefined,
        },
        _ => Answer::Undefined,
    }
}

const fn control(register: Encoding) -> Option<Control> {
    Some(match register {
        Encoding(3, 0, 1, 0, 0) => Control::Sctlr,
        Encoding(3, 0, 2, 0, 0) => Control::Ttbr0,
        Encoding(3, 0, 2, 0, 1) => Control::Ttbr1,
        Encoding(3, 0, 2, 0, 2) => Control::Tcr,
        Encoding(3, 0, 5, 2, 0) => Control::Esr,
        Encoding(3, 0, 6, 0, 0) => Control::Far,
        Encoding(3, 0, 5, 1, 0) => Control::Afsr0,
        Encoding(3, 0, 5, 1, 1) => Control::Afsr1,
        Encoding(3, 0, 10, 2, 0) => Control::Mair,
        Encoding(3, 0, 10, 3, 0) => Control::Amair,
        Encoding(3, 0, 13, 0, 1) => Control::Contextidr,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(register: Encoding, read: bool) -> Answer {
        answer(SysAccess { register, rt: 0, read }, |crm, op2| u64::from(crm) << 8 | u64::from(op2))
    }

    #[test]
    fn the_syndrome_decodes() {
        // MRS x7, ID_AA64MMFR2_EL1: op0 3, op1 0, CRn 0, CRm 7, op2 2.
        let iss = 3 << 20 | 2 << 17 | 7 << 5 | 7 << 1 | 1;
        let access = SysAccess::decode(iss);
        assert_eq!(access, SysAccess { register: Encoding(3, 0, 0, 7, 2), rt: 7, read: true });
        assert_eq!(decide(access.register, true), Answer::Value(0x702));
    }

    #[test]
    fn counters_timers_and_the_interrupt_controller_are_undefined() {
        for register in [
            Encoding(3, 3, 9, 12, 0),
            Encoding(3, 3, 14, 2, 1),
            Encoding(3, 0, 12, 12, 5),
            Encoding(3, 0, 12, 11, 5),
            Encoding(3, 0, 5, 3, 0),
            Encoding(2, 1, 0, 0, 0),
        ] {
            assert_eq!(decide(register, true), Answer::Undefined);
            assert_eq!(decide(register, false), Answer::Undefined);
        }
    }

    #[test]
    fn debug_registers_do_nothing_and_the_os_lock_says_it_is_there() {
        assert_eq!(decide(Encoding(2, 0, 0, 2, 2), false), Answer::Ignore);
        assert_eq!(decide(Encoding(2, 0, 0, 2, 2), true), Answer::Value(0));
        assert_eq!(decide(Encoding(2, 0, 1, 1, 4), true), Answer::Value(8));
    }

    #[test]
    fn a_write_of_an_id_register_is_undefined() {
        assert_eq!(decide(Encoding(3, 0, 0, 4, 0), false), Answer::Undefined);
    }

    #[test]
    fn translation_controls_are_told_apart_and_reads_do_not_trap() {
        assert_eq!(decide(Encoding(3, 0, 1, 0, 0), false), Answer::Control(Control::Sctlr));
        assert_eq!(decide(Encoding(3, 0, 1, 0, 0), true), Answer::Undefined);
    }
}
