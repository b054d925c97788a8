//! Stage-2 aborts of a guest.

use tenure_abi::flags::status;
use tenure_abi::{PAGE_SIZE, RunPage, exit};
use tenure_arch::esr::{Class, Esr, Fault as Cause, stage2_address};
use tenure_arch::{emulate, sysreg};
use tenure_mm::{GuestFault, Ipa};

use super::{Next, external_abort, plain, step};
use crate::machine::mm;
use crate::vcpu::context::{After, Context, Fault};

/// An abort that the guest took to EL2.
pub fn handle(context: &mut Context, esr: Esr) -> Next {
    let abort = esr.abort();
    match abort.fault() {
        Cause::Translation(_) | Cause::AccessFlag(_) => {}
        // Leaves of guests have all rights, so this one is gone by now, or was a TLB's memory of it; where the fault was on
        // a walk, HPFAR_EL2 is valid and the look below tells.
        Cause::Permission(_) if !abort.s1ptw() => return Next::Resume,
        Cause::Permission(_) => {}
        Cause::TlbConflict => {
            tenure_arch::tlb::vmalls12e1();
            tenure_arch::barrier::dsb_nsh();
            return Next::Resume;
        }
        _ => return external_abort(context, esr),
    }
    let far = sysreg::far_el2();
    let ipa = stage2_address(sysreg::hpfar_el2(), far);
    match mm().guest_fault(context.vm, Ipa(ipa)) {
        GuestFault::Resume => Next::Resume,
        GuestFault::Populate(kind) => {
            context.fault = Some(Fault { esr: esr.0, far });
            Next::Leave(RunPage {
                gpa: ipa & !(PAGE_SIZE - 1),
                count: 1,
                status: kind,
                ..plain(exit::POPULATE)
            })
        }
        GuestFault::Device => device(context, esr, ipa, far),
        // A protected guest touches what nobody declared: its own mistake.
        GuestFault::Undeclared if context.vm.is_protected() => external_abort(context, esr),
        GuestFault::Undeclared => undeclared(context, esr, ipa, far),
    }
}

/// A device that the host emulates: only what one register does can be told.
fn device(context: &mut Context, esr: Esr, ipa: u64, far: u64) -> Next {
    let abort = esr.abort();
    let data = esr.class() == Class::DataAbortLower && !abort.s1ptw();
    if data && abort.is_cache_op() {
        // Cache maintenance of a device does nothing.
        step(context);
        return Next::Resume;
    }
    let Some(access) = abort.access().filter(|_| data) else { return external_abort(context, esr) };
    context.fault = Some(Fault { esr: esr.0, far });
    context.after = After::Mmio(access);
    Next::Leave(RunPage { gpa: ipa, ..accessed(context, exit::MMIO, esr) })
}

/// A plain VM touches what nobody declared: the host maps a frame there, declares a device, or injects an abort; the guest
/// tries again. What the access was is told where the syndrome says it.
fn undeclared(context: &mut Context, esr: Esr, ipa: u64, far: u64) -> Next {
    context.fault = Some(Fault { esr: esr.0, far });
    let page = accessed(context, exit::POPULATE, esr);
    Next::Leave(RunPage { gpa: ipa & !(PAGE_SIZE - 1), count: 1, status: status::NONE, ..page })
}

fn accessed(context: &Context, reason: u64, esr: Esr) -> RunPage {
    match esr.abort().access().filter(|_| esr.class() == Class::DataAbortLower) {
        Some(access) => RunPage {
            width: u64::from(access.size),
            write: u64::from(access.write),
            data: if access.write { emulate::stored(&context.frame, access) } else { 0 },
            ..plain(reason)
        },
        None => plain(reason),
    }
}
