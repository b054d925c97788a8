//! The host: how it is entered, and what happens when it comes back to EL2.
//!
//! It comes back for three reasons only: a call (HVC, or SMC, which is trapped), an access that its stage 2 does not
//! let through, and a system register that is trapped. Interrupts are its own.
#![allow(unsafe_code)]

use core::sync::atomic::Ordering;

use tenure_arch::esr::{Class, Esr};
use tenure_arch::frame::HostFrame;
use tenure_arch::host::HostRegs;
use tenure_arch::{inject, sysreg};
use tenure_dt::Conduit;

use crate::machine::mm;
use crate::{boot, percpu};

mod abort;
pub mod call;

/// `VTTBR_EL2` of the host: VMID 0 and its root tables.
pub fn vttbr() -> u64 {
    mm().host_map_root().root().0
}

/// Enters the host on this CPU, at `pc` with `x0`, as a kernel expects to find the machine.
pub fn enter(pc: u64, x0: u64) -> ! {
    tenure_arch::errata::note_this_cpu();
    let cpu = percpu::this();
    cpu.head.vcpu.store(core::ptr::null_mut(), Ordering::Relaxed);
    // SAFETY: the host's stage 2 gives it nothing but its own; EL2's MMU is on and no vCPU is loaded.
    unsafe { HostRegs::current(percpu::forced_types()).load(vttbr()) };
    // SAFETY: all registers are the host's, and this function returns to nobody, so the stack is free.
    unsafe { boot::head::enter_el1(pc, x0, cpu.stack_top()) }
}

/// Called by the vectors: a synchronous exception of the host.
#[unsafe(no_mangle)]
extern "C" fn tenure_host_sync(frame: &mut HostFrame, esr: u64) {
    let esr = Esr(esr);
    match esr.class() {
        Class::Hvc => call::dispatch(frame, Conduit::Hvc),
        Class::Smc => {
            // A trapped SMC leaves ELR_EL2 at the instruction (DDI 0487 D1.3.4).
            // SAFETY: EL1's own program counter, moved past its own instruction.
            unsafe { sysreg::write_elr_el2(sysreg::elr_el2().wrapping_add(4)) };
            call::dispatch(frame, Conduit::Smc);
        }
        Class::DataAbortLower | Class::InstAbortLower => abort::handle(esr),
        _ => refuse_instruction(esr),
    }
}

/// An instruction that EL2 traps and does not offer: undefined, as on a CPU without it.
fn refuse_instruction(esr: Esr) {
    log::debug!("host: {esr:?} at {:#x} is undefined", sysreg::elr_el2());
    let f = percpu::this().features();
    inject::apply(&inject::undefined(&inject::context(f), f));
}
