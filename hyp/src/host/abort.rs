//! Stage-2 aborts of the host.
//!
//! The manager decides: either the mapping is there by now (made, or another CPU was in the middle of something), and
//! the instruction is tried again; or the page is not the host's, and the host gets an abort of its own, by
//! [`tenure_arch::inject`]. EL2 keeps no memory of earlier faults.

use tenure_abi::trace::HOST_ABORT;
use tenure_arch::esr::{Class, Esr, Fault, stage2_address};
use tenure_arch::{inject, sysreg};
use tenure_mm::transition::HostFault;
use tenure_mm::{Access, Pa};

use crate::machine::mm;
use crate::{percpu, trace};

/// Handles an abort that EL2 took from EL1 or EL0 of the host.
pub fn handle(esr: Esr) {
    let abort = esr.abort();
    let verdict = match abort.fault() {
        Fault::Translation(_) | Fault::AccessFlag(_) => {
            let instruction = esr.class() == Class::InstAbortLower;
            let pa = Pa(stage2_address(sysreg::hpfar_el2(), sysreg::far_el2()));
            // The update of a stage-1 table by the walker is a write, whatever the access was.
            let write = !instruction && !abort.s1ptw() && abort.is_write();
            mm().host_fault(pa, Access { write, execute: instruction && !abort.s1ptw() })
        }
        // HPFAR_EL2 does not name the page of a permission fault; a walk by AT gives it, and may fail: then the tables
        // of the host have changed since, and its next try tells.
        Fault::Permission(_) => match faulting_page(abort.s1ptw()) {
            Some(pa) => {
                let execute = esr.class() == Class::InstAbortLower && !abort.s1ptw();
                mm().host_fault(pa, Access { write: !execute && abort.is_write(), execute })
            }
            None => HostFault::Resume,
        },
        Fault::TlbConflict => {
            tenure_arch::tlb::flush_local_el1();
            HostFault::Resume
        }
        // Address size, external on a stage-2 walk, and the like: nothing that a mapping would mend.
        _ => HostFault::Abort,
    };
    if verdict == HostFault::Abort {
        let fetch = esr.class() == Class::InstAbortLower;
        let what = if fetch { 2 } else { u64::from(abort.is_write()) };
        trace::note(HOST_ABORT, stage2_address(sysreg::hpfar_el2(), sysreg::far_el2()), what);
        let f = percpu::this().features();
        inject::apply(&inject::abort(&inject::context(f), f, esr));
    }
}

/// The page of a permission fault: `HPFAR_EL2` where the fault was on a stage-1 walk, else the host's stage 1 walked
/// for `FAR_EL2`.
fn faulting_page(s1ptw: bool) -> Option<Pa> {
    let far = sysreg::far_el2();
    if s1ptw {
        return Some(Pa(stage2_address(sysreg::hpfar_el2(), far)));
    }
    tenure_arch::translate::stage1_el1(far).map(|page| Pa(page | (far & 0xfff)))
}
