//! Accesses that may fault: the fault is an answer, not the end.
#![allow(unsafe_code)] // Assembly whose faults the vectors turn into a return value.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use crate::vectors::Frame;

/// What a probe met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It went through; the value read, or what was written.
    Value(u64),
    /// It ended in an exception.
    Fault {
        /// ESR_EL1.
        esr: u64,
        /// FAR_EL1.
        far: u64,
    },
}

impl Outcome {
    /// The value, if it went through.
    pub fn value(self) -> Option<u64> {
        match self {
            Self::Value(value) => Some(value),
            Self::Fault { .. } => None,
        }
    }

    /// Exception class and fault status code (DDI 0487 D24.2.40), if it faulted.
    pub fn class_and_status(self) -> Option<(u64, u64)> {
        match self {
            Self::Value(_) => None,
            Self::Fault { esr, .. } => Some((esr >> 26 & 0x3f, esr & 0x3f)),
        }
    }

    /// True for a fault.
    pub fn faulted(self) -> bool {
        matches!(self, Self::Fault { .. })
    }
}

// x0 = address, x1 = value in or out, x2 and x3 = ESR and FAR; x0 = 1 on return means that it faulted. Every probe keeps its
// return address in x4, so that one fix-up serves all, the one that jumps away included.
global_asm!(
    r#"
    .section .text.probe, "ax"
    .macro rt_probe name, code:vararg
    .global \name
\name:
    mov     x4, x30
    \code
    b       rt_probe_done
    .endm
    .global rt_probe_start
rt_probe_start:
    rt_probe rt_probe_read8, ldrb w1, [x0]
    rt_probe rt_probe_read16, ldrh w1, [x0]
    rt_probe rt_probe_read32, ldr w1, [x0]
    rt_probe rt_probe_read64, ldr x1, [x0]
    rt_probe rt_probe_write8, strb w1, [x0]
    rt_probe rt_probe_write16, strh w1, [x0]
    rt_probe rt_probe_write32, str w1, [x0]
    rt_probe rt_probe_write64, str x1, [x0]
    rt_probe rt_probe_pair, ldp x1, x5, [x0]
    rt_probe rt_probe_exclusive, ldxr x1, [x0]
    rt_probe rt_probe_store_exclusive, stxr w5, x1, [x0]
    rt_probe rt_probe_civac, dc civac, x0
    rt_probe rt_probe_ivac, dc ivac, x0
    rt_probe rt_probe_zva, dc zva, x0
    rt_probe rt_probe_execute, blr x0
    rt_probe rt_probe_midr, mrs x1, midr_el1
    rt_probe rt_probe_mpidr, mrs x1, mpidr_el1
    rt_probe rt_probe_pfr0, mrs x1, id_aa64pfr0_el1
    rt_probe rt_probe_dfr0, mrs x1, id_aa64dfr0_el1
    rt_probe rt_probe_countervirtual, mrs x1, cntvct_el0
    rt_probe rt_probe_counterphysical, mrs x1, cntpct_el0
    rt_probe rt_probe_pmcr, mrs x1, pmcr_el0
    rt_probe rt_probe_mdscr, mrs x1, mdscr_el1
    .arch_extension lse
    rt_probe rt_probe_lse, ldadd x1, x1, [x0]
rt_probe_done:
    mov     x0, #0
rt_probe_out:
    mov     x30, x4
    ret
    .global rt_probe_end
rt_probe_end:
"#
);

unsafe extern "C" {
    static rt_probe_start: u8;
    static rt_probe_end: u8;
    fn rt_probe_read8();
    fn rt_probe_read16();
    fn rt_probe_read32();
    fn rt_probe_read64();
    fn rt_probe_write8();
    fn rt_probe_write16();
    fn rt_probe_write32();
    fn rt_probe_write64();
    fn rt_probe_pair();
    fn rt_probe_exclusive();
    fn rt_probe_store_exclusive();
    fn rt_probe_civac();
    fn rt_probe_ivac();
    fn rt_probe_zva();
    fn rt_probe_execute();
    fn rt_probe_lse();
    fn rt_probe_midr();
    fn rt_probe_mpidr();
    fn rt_probe_pfr0();
    fn rt_probe_dfr0();
    fn rt_probe_countervirtual();
    fn rt_probe_counterphysical();
    fn rt_probe_pmcr();
    fn rt_probe_mdscr();
    fn rt_probe_out();
}

/// The roads by which memory can be touched, and registers that may be trapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Road {
    /// Load of this many bytes (1, 2, 4; 8 for all others).
    Read(u64),
    /// Store of this many bytes.
    Write(u64),
    /// Load of a pair: an access without a valid syndrome.
    Pair,
    /// Load exclusive.
    Exclusive,
    /// Store exclusive (fails without a fault where the monitor is open, so only the fault counts).
    StoreExclusive,
    /// DC CIVAC.
    CleanInvalidate,
    /// DC IVAC.
    Invalidate,
    /// DC ZVA.
    Zero,
    /// Branch and link.
    Execute,
    /// LDADD: only where the CPU has FEAT_LSE.
    Atomic,
    /// MRS of MIDR_EL1; the address is not used.
    Midr,
    /// MRS of MPIDR_EL1; the address is not used.
    Mpidr,
    /// MRS of ID_AA64PFR0_EL1; the address is not used.
    Pfr0,
    /// MRS of ID_AA64DFR0_EL1; the address is not used.
    Dfr0,
    /// MRS of CNTVCT_EL0; the address is not used.
    CounterVirtual,
    /// MRS of CNTPCT_EL0; the address is not used.
    CounterPhysical,
    /// MRS of PMCR_EL0; the address is not used.
    Pmcr,
    /// MRS of MDSCR_EL1; the address is not used.
    Mdscr,
}

impl Road {
    /// All roads to memory, for the machine that it runs on.
    pub fn all() -> impl Iterator<Item = Self> {
        const ALL: [Road; 15] = [
            Road::Read(1),
            Road::Read(2),
            Road::Read(4),
            Road::Read(8),
            Road::Write(1),
            Road::Write(2),
            Road::Write(4),
            Road::Write(8),
            Road::Pair,
            Road::Exclusive,
            Road::CleanInvalidate,
            Road::Invalidate,
            Road::Zero,
            Road::Execute,
            Road::Atomic,
        ];
        ALL.into_iter().filter(|road| *road != Self::Atomic || has_lse())
    }

    fn code(self) -> *const () {
        let code: unsafe extern "C" fn() = match self {
            Self::Read(1) => rt_probe_read8,
            Self::Read(2) => rt_probe_read16,
            Self::Read(4) => rt_probe_read32,
            Self::Read(_) => rt_probe_read64,
            Self::Write(1) => rt_probe_write8,
            Self::Write(2) => rt_probe_write16,
            Self::Write(4) => rt_probe_write32,
            Self::Write(_) => rt_probe_write64,
            Self::Pair => rt_probe_pair,
            Self::Exclusive => rt_probe_exclusive,
            Self::StoreExclusive => rt_probe_store_exclusive,
            Self::CleanInvalidate => rt_probe_civac,
            Self::Invalidate => rt_probe_ivac,
            Self::Zero => rt_probe_zva,
            Self::Execute => rt_probe_execute,
            Self::Atomic => rt_probe_lse,
            Self::Midr => rt_probe_midr,
            Self::Mpidr => rt_probe_mpidr,
            Self::Pfr0 => rt_probe_pfr0,
            Self::Dfr0 => rt_probe_dfr0,
            Self::CounterVirtual => rt_probe_countervirtual,
            Self::CounterPhysical => rt_probe_counterphysical,
            Self::Pmcr => rt_probe_pmcr,
            Self::Mdscr => rt_probe_mdscr,
        };
        code as *const ()
    }
}

/// True where the CPU has FEAT_LSE.
pub fn has_lse() -> bool {
    let isar0: u64;
    // SAFETY: reads an identification register.
    unsafe { asm!("mrs {}, id_aa64isar0_el1", out(reg) isar0, options(nomem, nostack)) };
    isar0 >> 20 & 0xf != 0
}

/// Touches `address` by `road`; a store stores `value`.
///
/// The address must not belong to anything that Rust owns: callers pass pages of the test's own, or what is not
/// theirs at all.
pub fn touch(road: Road, address: u64, value: u64) -> Outcome {
    let (faulted, read, esr, far): (u64, u64, u64, u64);
    // SAFETY: the code either returns with x0 = 0 or is sent to `rt_probe_out` by the vectors with x0 = 1; it clobbers what
    // is named here. What it may do to memory is the caller's to answer for: no Rust object lies there.
    unsafe {
        asm!("blr {code}", code = in(reg) road.code(), inout("x0") address => faulted, inout("x1") value => read,
             out("x2") esr, out("x3") far, clobber_abi("C"));
    }
    if faulted == 0 { Outcome::Value(read) } else { Outcome::Fault { esr, far } }
}

/// Reads 64 bits.
pub fn read(address: u64) -> Outcome {
    touch(Road::Read(8), address, 0)
}

/// Writes 64 bits.
pub fn write(address: u64, value: u64) -> Outcome {
    touch(Road::Write(8), address, value)
}

/// What the vectors saw at a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Context {
    /// SPSR_EL1 at the fault.
    pub spsr: u64,
    /// DAIF in the handler.
    pub daif_in_handler: u64,
    /// What a register that the access does not use held after it.
    pub marker: u64,
}

static LAST_SPSR: AtomicU64 = AtomicU64::new(0);
static LAST_DAIF: AtomicU64 = AtomicU64::new(0);

/// Reads `address` and tells how its fault arrived; `None` if there was none.
pub fn faulting_context(address: u64) -> Option<Context> {
    let (faulted, marker): (u64, u64);
    // SAFETY: as in `touch`; x6 goes in and comes out of the vectors' frame.
    unsafe {
        asm!("blr {code}", code = in(reg) Road::Read(8).code(), inout("x0") address => faulted,
             inout("x6") 0x1234_5678_9abc_def0_u64 => marker, clobber_abi("C"));
    }
    (faulted != 0).then(|| Context {
        spsr: LAST_SPSR.load(Ordering::Relaxed),
        daif_in_handler: LAST_DAIF.load(Ordering::Relaxed),
        marker,
    })
}

/// Reads through a level-1 stage-1 table at physical address `table`, which the upper half of the address space uses meanwhile.
pub fn through_table(table: u64) -> Outcome {
    /// TCR_EL1.EPD1: no walks for the upper half.
    const EPD1: u64 = 1 << 23;
    /// T1SZ 25, inner and outer write-back, inner shareable, 4 KiB granule.
    const UPPER: u64 = 25 << 16 | 1 << 24 | 1 << 26 | 3 << 28 | 2 << 30;
    const FIRST_ADDRESS: u64 = 0xffff_ff80_0000_0000;
    let tcr: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, tcr_el1", out(reg) tcr, options(nomem, nostack)) };
    set_upper_half(table, tcr & !EPD1 | UPPER);
    let outcome = read(FIRST_ADDRESS);
    set_upper_half(0, tcr);
    outcome
}

fn set_upper_half(table: u64, tcr: u64) {
    // SAFETY: no Rust object is mapped in the upper half, and the lower half's fields of TCR stay as they are.
    unsafe {
        asm!("msr ttbr1_el1, {table}", "msr tcr_el1, {tcr}", "isb", "tlbi vmalle1", "dsb nsh", "isb",
             table = in(reg) table, tcr = in(reg) tcr, options(nostack));
    }
}

/// Sends a fault of a probe to its return; false if the fault was not one of a probe.
pub(crate) fn fix_up(frame: &mut Frame) -> bool {
    let probes = (&raw const rt_probe_start) as u64..(&raw const rt_probe_end) as u64;
    let class = frame.esr >> 26 & 0x3f;
    // An instruction abort (0x21) is taken at the target; the jump left its return address in x30.
    let from = if class == 0x21 { frame.x[30] } else { frame.elr };
    if !probes.contains(&from) {
        return false;
    }
    LAST_SPSR.store(frame.spsr, Ordering::Relaxed);
    LAST_DAIF.store(crate::cpu::daif(), Ordering::Relaxed);
    frame.x[0] = 1;
    frame.x[2] = frame.esr;
    frame.x[3] = frame.far;
    frame.elr = rt_probe_out as *const () as u64;
    true
}
