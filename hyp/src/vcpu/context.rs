//! All that a vCPU is while it does not run.

use tenure_abi::{PAGE_SIZE, Reply, RunPage};
use tenure_arch::el1::El1State;
use tenure_arch::esr::Access;
use tenure_arch::fp::FpState;
use tenure_arch::guest::hcr;
use tenure_arch::host::SPSR_EL1H_MASKED;
use tenure_arch::switch::GuestFrame;
use tenure_mm::{Gfn, Unshare, Vm};

/// The context of a vCPU; lives in a page of its VM's pool.
#[repr(C)]
#[derive(Debug)]
pub struct Context {
    /// General registers, PC, PSTATE. First: the vectors find the context by it.
    pub frame: GuestFrame,
    /// The other registers that are switched.
    pub el1: El1State,
    /// FP/SIMD registers.
    pub fp: FpState,
    /// They are in the CPU now.
    pub fp_loaded: bool,
    /// Its number in its VM.
    pub index: u8,
    /// The VM. Valid while a `VmRef` is held, which whoever holds the context has.
    pub vm: &'static Vm,
    /// `HCR_EL2` bits of its own: TVM and TSW until its MMU is on, VSE while a virtual SError waits.
    pub hcr: u64,
    /// The exit that is on its way to the run page.
    pub exit: RunPage,
    /// What the next run begins with.
    pub after: After,
    /// The conversion that the host may answer.
    pub request: Option<Request>,
    /// Number of the last request.
    pub sequence: u64,
    /// The access that the last exit was about: an abort can be injected for it.
    pub fault: Option<Fault>,
}

const _: () = assert!(size_of::<Context>() <= PAGE_SIZE as usize);
const _: () = assert!(core::mem::offset_of!(Context, frame) == 0);

/// What is left to do for an exit when the vCPU is run again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum After {
    /// Nothing.
    Nothing,
    /// Finish the load or store that the host emulated, and go to the next instruction.
    Mmio(Access),
    /// Put the host's answer into x0.
    Hypercall,
    /// The host refused: answer the call that the PC stands on with these registers, and go past it.
    Refused([u64; 4]),
}

/// A conversion that the guest asked for and the host is asked about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// First page.
    pub gfn: Gfn,
    /// Pages.
    pub count: u64,
    /// How.
    pub how: Unshare,
    /// Its number.
    pub sequence: u64,
    /// What the guest is told if the host refuses: x0 to x3. A stock guest's x1 to x3 stay as they are.
    pub verdict: Verdict,
}

/// What a refusal tells the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The answer to a call of ours.
    Reply(Reply),
    /// -3, to a stock call.
    Stock,
}

/// A faulting access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// `ESR_EL2`.
    pub esr: u64,
    /// `FAR_EL2`.
    pub far: u64,
}

impl Context {
    /// A vCPU out of reset. `forced` says that stage 2 decides about memory types (FEAT_S2FWB); else its cache
    /// maintenance is watched until its MMU is on.
    pub fn new(vm: &'static Vm, index: u8, forced: bool) -> Self {
        let mut context = Self {
            frame: GuestFrame::default(),
            el1: El1State::RESET,
            fp: FpState::RESET,
            fp_loaded: false,
            index,
            vm,
            hcr: 0,
            exit: RunPage::default(),
            after: After::Nothing,
            request: None,
            sequence: 0,
            fault: None,
        };
        context.reset(0, 0, forced);
        context
    }

    /// As out of reset, at `pc` with `x0`.
    pub fn reset(&mut self, pc: u64, x0: u64, forced: bool) {
        self.frame = GuestFrame::default();
        self.frame.pc = pc;
        self.frame.pstate = SPSR_EL1H_MASKED;
        self.frame.x[0] = x0;
        self.el1 = El1State::RESET;
        self.fp = FpState::RESET;
        self.hcr = if forced { 0 } else { hcr::TVM | hcr::TSW };
        self.after = After::Nothing;
        self.request = None;
        self.fault = None;
    }

    /// What the vCPU reads as MPIDR_EL1: its index as Aff0, in a multiprocessor system.
    pub fn mpidr(&self) -> u64 {
        1 << 31 | u64::from(self.index)
    }
}
