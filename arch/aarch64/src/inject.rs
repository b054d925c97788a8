//! Taking an exception into EL1 on the host's behalf: `AArch64.TakeException` (DDI 0487 J1.1.2) done by hand.
//!
//! EL2 refuses an access of the host by giving the host an abort at the faulting instruction. What kind decides whether
//! Linux can live with it; each was tried on 6.12 (see docs/architecture.md):
//!
//! - data, from EL1: an *alignment* fault, the one data abort for which Linux goes straight to its exception table, for
//!   user and kernel addresses alike; an external abort there is an oops, a translation fault may be retried for ever;
//! - data, from EL0: a synchronous external abort, which becomes SIGBUS;
//! - instruction fetch: an instruction abort with the external code.
//!
//! Everything here is a pure function on register values; [`apply`] writes them.
#![allow(unsafe_code)]

use crate::esr::{Class, Esr};
use crate::features::Features;
use crate::sysreg;

/// What the state of EL1 must be known of to enter it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct El1Context {
    /// Where the exception was taken from (`ELR_EL2`).
    pub elr: u64,
    /// The state it was taken from (`SPSR_EL2`).
    pub spsr: u64,
    /// `FAR_EL2`.
    pub far: u64,
    /// `VBAR_EL1`.
    pub vbar: u64,
    /// `SCTLR_EL1`.
    pub sctlr: u64,
    /// `GCSCR_EL1`, 0 without FEAT_GCS.
    pub gcscr: u64,
}

/// Register values that make EL1 take the exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// For `ELR_EL1`.
    pub elr_el1: u64,
    /// For `SPSR_EL1`.
    pub spsr_el1: u64,
    /// For `ESR_EL1`.
    pub esr_el1: u64,
    /// For `FAR_EL1`; `None` leaves it.
    pub far_el1: Option<u64>,
    /// For `ELR_EL2`: the vector.
    pub pc: u64,
    /// For `SPSR_EL2`: the state of the handler.
    pub pstate: u64,
}

/// SPSR bits (AArch64 form, DDI 0487 C5.2.19).
mod spsr {
    pub const M_EL1H: u64 = 0b0101;
    pub const AARCH32: u64 = 1 << 4;
    pub const DAIF: u64 = 0xf << 6;
    pub const SSBS: u64 = 1 << 12;
    pub const ALLINT: u64 = 1 << 13;
    pub const PAN: u64 = 1 << 22;
    pub const DIT: u64 = 1 << 24;
    pub const TCO: u64 = 1 << 25;
    pub const NZCV: u64 = 0xf << 28;
    pub const EXLOCK: u64 = 1 << 34;
    /// DIT in the form for a 32-bit source.
    pub const DIT_A32: u64 = 1 << 21;
}

const ESR_EC_SHIFT: u32 = 26;
const ESR_IL: u64 = 1 << 25;
const ESR_WNR: u64 = 1 << 6;
const ESR_CM: u64 = 1 << 8;
const FSC_EXTERNAL: u64 = 0x10;
const FSC_ALIGNMENT: u64 = 0x21;

/// The exception came from EL0.
const fn from_el0(spsr: u64) -> bool {
    spsr & spsr::AARCH32 != 0 || spsr & 0xc == 0
}

/// Offset of the synchronous vector for a source state (DDI 0487 D1.3.1.5).
const fn vector_offset(spsr: u64) -> u64 {
    if spsr & spsr::AARCH32 != 0 {
        0x600
    } else {
        match spsr & 0xf {
            0b0000 => 0x400,
            0b0100 => 0x000,
            _ => 0x200,
        }
    }
}

/// PSTATE at the first instruction of an EL1 handler.
pub const fn handler_pstate(c: &El1Context, f: &Features) -> u64 {
    let aarch32 = c.spsr & spsr::AARCH32 != 0;
    let mut p = spsr::M_EL1H | spsr::DAIF | (c.spsr & spsr::NZCV);
    // DIT is kept; its place differs in the 32-bit form.
    if c.spsr & (if aarch32 { spsr::DIT_A32 } else { spsr::DIT }) != 0 {
        p |= spsr::DIT;
    }
    if f.pan && (c.spsr & spsr::PAN != 0 || c.sctlr & (1 << 23) == 0) {
        p |= spsr::PAN;
    }
    if f.ssbs && c.sctlr & (1 << 44) != 0 {
        p |= spsr::SSBS;
    }
    if f.mte2 {
        p |= spsr::TCO;
    }
    // SCTLR_EL1.SPINTMASK (62) turns the all-interrupts mask on entry off.
    if f.nmi && c.sctlr & (1 << 62) == 0 {
        p |= spsr::ALLINT;
    }
    // GCSCR_EL1.EXLOCKEN (6).
    if f.gcs && c.gcscr & (1 << 6) != 0 {
        p |= spsr::EXLOCK;
    }
    // UAO, BTYPE, SS and IL are 0 in a handler.
    p
}

const fn enter(c: &El1Context, f: &Features, esr_el1: u64, far_el1: Option<u64>) -> Entry {
    Entry {
        elr_el1: c.elr,
        spsr_el1: c.spsr,
        esr_el1,
        far_el1,
        pc: c.vbar.wrapping_add(vector_offset(c.spsr)),
        pstate: handler_pstate(c, f),
    }
}

/// The abort that EL1 gets for an access that its stage 2 refused (see the head of this file).
///
/// `esr` is the syndrome that EL2 took; only its class, IL, WnR and CM are used.
pub const fn abort(c: &El1Context, f: &Features, esr: Esr) -> Entry {
    let el0 = from_el0(c.spsr);
    let instruction = matches!(esr.class(), Class::InstAbortLower);
    let ec: u64 = match (instruction, el0) {
        (true, true) => 0x20,
        (true, false) => 0x21,
        (false, true) => 0x24,
        (false, false) => 0x25,
    };
    let iss = if instruction {
        FSC_EXTERNAL
    } else {
        let kept = esr.0 & (ESR_WNR | ESR_CM);
        kept | if el0 { FSC_EXTERNAL } else { FSC_ALIGNMENT }
    };
    // IL is 1 for a data abort whose ISV is 0, and for an instruction abort (DDI 0487 D24.2.39, IL).
    enter(c, f, (ec << ESR_EC_SHIFT) | ESR_IL | iss, Some(c.far))
}

/// A synchronous external abort for a guest's access that nothing answers: data or instruction by the class of `esr`.
pub const fn external_abort(c: &El1Context, f: &Features, esr: Esr) -> Entry {
    let el0 = from_el0(c.spsr);
    let ec: u64 = match (matches!(esr.class(), Class::InstAbortLower), el0) {
        (true, true) => 0x20,
        (true, false) => 0x21,
        (false, true) => 0x24,
        (false, false) => 0x25,
    };
    enter(c, f, (ec << ESR_EC_SHIFT) | ESR_IL | (esr.0 & (ESR_WNR | ESR_CM)) | FSC_EXTERNAL, Some(c.far))
}

/// An undefined-instruction exception (EC 0), for what EL2 trapped and does not offer. `c.elr` must point at the
/// instruction.
pub const fn undefined(c: &El1Context, f: &Features) -> Entry {
    enter(c, f, ESR_IL, None)
}

/// Reads what [`El1Context`] needs, on a CPU that has just taken an exception from EL1 or EL0.
pub fn context(f: &Features) -> El1Context {
    El1Context {
        elr: sysreg::elr_el2(),
        spsr: sysreg::spsr_el2(),
        far: sysreg::far_el2(),
        vbar: sysreg::vbar_el1(),
        sctlr: sysreg::sctlr_el1(),
        gcscr: if f.gcs { sysreg::gcscr_el1() } else { 0 },
    }
}

/// Writes an [`Entry`]: the next ERET goes to EL1's handler.
pub fn apply(e: &Entry) {
    // SAFETY: a value for EL1's own handler; EL1 can write this register itself.
    unsafe { sysreg::write_elr_el1(e.elr_el1) };
    // SAFETY: as above.
    unsafe { sysreg::write_spsr_el1(e.spsr_el1) };
    // SAFETY: as above.
    unsafe { sysreg::write_esr_el1(e.esr_el1) };
    if let Some(far) = e.far_el1 {
        // SAFETY: as above.
        unsafe { sysreg::write_far_el1(far) };
    }
    // SAFETY: EL2 returns to EL1, whose reach stage 2 bounds whatever the address.
    unsafe { sysreg::write_elr_el2(e.pc) };
    // SAFETY: `handler_pstate` always names EL1h.
    unsafe { sysreg::write_spsr_el2(e.pstate) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const V8_0: Features = features();
    const fn features() -> Features {
        Features::decode(&crate::features::IdRegs {
            pfr0: 0,
            pfr1: 0,
            pfr2: 0,
            dfr0: 0,
            isar0: 0,
            isar1: 0,
            mmfr0: 0,
            mmfr1: 0,
            mmfr2: 0,
            mmfr3: 0,
            smfr0: 0,
        })
    }

    fn from(spsr: u64) -> El1Context {
        El1Context { elr: 0x1234, spsr, far: 0x5678, vbar: 0xffff_0000, ..El1Context::default() }
    }

    #[test]
    fn data_abort_from_el1_is_an_alignment_fault_that_keeps_the_write() {
        let e = abort(&from(0x8000_0005), &V8_0, Esr(0x9200_0047));
        assert_eq!(e.esr_el1, (0x25 << 26) | (1 << 25) | 0x61);
        assert_eq!((e.pc, e.elr_el1, e.far_el1), (0xffff_0200, 0x1234, Some(0x5678)));
        assert_eq!(e.pstate, 0x8000_03c5);
        assert_eq!(e.spsr_el1, 0x8000_0005);
    }

    #[test]
    fn data_abort_from_el0_is_external() {
        let e = abort(&from(0), &V8_0, Esr(0x9200_0007));
        assert_eq!(e.esr_el1, (0x24 << 26) | (1 << 25) | 0x10);
        assert_eq!(e.pc, 0xffff_0400);
    }

    #[test]
    fn a_valid_register_syndrome_is_not_passed_on() {
        let e = abort(&from(0), &V8_0, Esr(0x9383_0007));
        assert_eq!(e.esr_el1 & 0x1ff_ffff, 0x10);
    }

    #[test]
    fn thirty_two_bit_el0_enters_by_its_own_vector_and_keeps_dit() {
        let e = abort(&from(0x10 | (1 << 21)), &V8_0, Esr(0x9200_0007));
        assert_eq!(e.pc, 0xffff_0600);
        assert_eq!(e.pstate, 0x3c5 | (1 << 24));
    }

    #[test]
    fn el1t_enters_by_the_first_vector() {
        assert_eq!(abort(&from(0b0100), &V8_0, Esr(0x9200_0007)).pc, 0xffff_0000);
    }

    #[test]
    fn instruction_fetch_gets_an_instruction_abort() {
        let e = abort(&from(0b0101), &V8_0, Esr(0x8200_0007));
        assert_eq!(e.esr_el1, (0x21 << 26) | (1 << 25) | 0x10);
        assert_eq!(abort(&from(0), &V8_0, Esr(0x8200_0007)).esr_el1 >> 26, 0x20);
    }

    #[test]
    fn pan_is_set_only_if_span_is_clear_and_else_kept() {
        let f = Features { pan: true, ..V8_0 };
        let mut c = from(0);
        assert_ne!(handler_pstate(&c, &f) & (1 << 22), 0);
        c.sctlr = 1 << 23;
        assert_eq!(handler_pstate(&c, &f) & (1 << 22), 0);
        c.spsr |= 1 << 22;
        assert_ne!(handler_pstate(&c, &f) & (1 << 22), 0);
    }

    #[test]
    fn young_state_bits_follow_their_features() {
        let f = Features { ssbs: true, mte2: true, nmi: true, gcs: true, ..V8_0 };
        let mut c = from(0);
        c.sctlr = 1 << 44;
        c.gcscr = 1 << 6;
        assert_eq!(handler_pstate(&c, &f), 0x3c5 | (1 << 12) | (1 << 13) | (1 << 25) | (1 << 34));
        c.sctlr |= 1 << 62;
        assert_eq!(handler_pstate(&c, &f) & (1 << 13), 0);
        assert_eq!(handler_pstate(&c, &V8_0), 0x3c5);
    }

    #[test]
    fn user_access_override_single_step_and_btype_are_cleared() {
        let c = from((1 << 23) | (1 << 21) | (3 << 10) | (1 << 20));
        assert_eq!(handler_pstate(&c, &V8_0), 0x3c5);
    }

    #[test]
    fn a_guests_data_abort_is_external_at_both_levels() {
        let e = external_abort(&from(0x8000_0005), &V8_0, Esr(0x9383_0047));
        assert_eq!(e.esr_el1, (0x25 << 26) | (1 << 25) | 0x50);
        assert_eq!(external_abort(&from(0), &V8_0, Esr(0x8200_0007)).esr_el1 >> 26, 0x20);
    }

    #[test]
    fn undefined_leaves_far_alone() {
        let e = undefined(&from(0b0101), &V8_0);
        assert_eq!((e.esr_el1, e.far_el1), (1 << 25, None));
    }
}
