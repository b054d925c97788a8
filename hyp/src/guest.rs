//! What a guest comes back to EL2 for.
//!
//! Calls are answered in [`call`], mostly without a switch of worlds; everything else comes through [`sync`], with all of the
//! guest's general registers in its context and its other registers still in the CPU.
#![allow(unsafe_code)] // The way back from the vectors to the context.

use tenure_abi::{PAGE_SIZE, RunPage, exit, guest as abi, smccc};
use tenure_arch::esr::{Class, Esr};
use tenure_arch::{inject, sysreg};
use tenure_mm::{Gfn, Unshare};

use crate::machine::mm;
use crate::percpu;
use crate::vcpu::context::{Context, Fault};
use crate::vcpu::world::World;

mod abort;
mod call;
mod convert;
mod psci;
mod registers;

pub use call::rewind;

/// What follows an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// The guest goes on.
    Resume,
    /// The host is told this.
    Leave(RunPage),
}

/// An exit with nothing but its reason.
pub fn plain(reason: u64) -> RunPage {
    RunPage { reason, ..RunPage::default() }
}

/// Called by the vectors for a call of the guest, with `x19`–`x29` still in the CPU and its PC and PSTATE in `ELR_EL2` and
/// `SPSR_EL2`. 0: it is answered. 1: the exit stands in the context.
///
/// Share and unshare without flags that go through are answered right here: they need no more stack than this.
#[unsafe(no_mangle)]
extern "C" fn tenure_guest_call(context: *mut Context) -> u64 {
    // SAFETY: the pointer that `switch::enter` was given, and `run` keeps no reference during that call.
    let context = unsafe { &mut *context };
    let [id, ipa, count, flags, ..] = context.frame.x;
    let (id, gfn) = (id as u32 as u64, Gfn(ipa / PAGE_SIZE));
    if ipa % PAGE_SIZE != 0 {
        return slow(context, call::dispatch);
    }
    if id == abi::SHARE {
        let reply = mm().guest_share(context.vm, gfn, count);
        if !reply.is_success() {
            return slow(context, move |context| convert::settle_share(context, reply));
        }
        context.frame.x[..4].copy_from_slice(&reply.to_regs());
        return 0;
    }
    if id == abi::UNSHARE && flags == 0 {
        let how = Unshare::default();
        let reply = mm().guest_unshare(context.vm, gfn, count, how);
        if !reply.is_success() {
            return slow(context, move |context| convert::settle_unshare(context, gfn, count, 0, how, reply));
        }
        context.frame.x[..4].copy_from_slice(&reply.to_regs());
        return 0;
    }
    slow(context, call::dispatch)
}

/// The rest of [`tenure_guest_call`], with the room that an exit takes.
#[inline(never)]
fn slow(context: &mut Context, call: impl FnOnce(&mut Context) -> Next) -> u64 {
    match call(context) {
        Next::Resume => 0,
        Next::Leave(exit) => {
            context.exit = exit;
            1
        }
    }
}

/// A synchronous exception other than a call.
pub fn sync(context: &mut Context, world: &World) -> Next {
    let esr = Esr(sysreg::esr_el2());
    match esr.class() {
        Class::DataAbortLower | Class::InstAbortLower => abort::handle(context, esr),
        Class::FpAccess => {
            world.give_fp(context);
            Next::Resume
        }
        Class::SysReg => registers::handle(context, world, esr),
        Class::WaitFor => {
            // 16 bits long where IL is 0: AArch32 at EL0, if the guest went there all the same.
            context.frame.pc = context.frame.pc.wrapping_add(if esr.il() { 4 } else { 2 });
            // TI (DDI 0487 D24.2.40): 0 is WFI; WFE is not trapped.
            if esr.iss() & 3 == 0 { Next::Leave(plain(exit::WFI)) } else { Next::Resume }
        }
        Class::Smc if esr.imm16() == 0 => smc(context),
        // The immediate is 0 for every call of the convention.
        Class::Hvc | Class::Smc => {
            context.frame.x[0] = smccc::NOT_SUPPORTED;
            if esr.class() == Class::Smc {
                step(context);
            }
            Next::Resume
        }
        _ => undefined(context),
    }
}

/// A trapped SMC is a call like an HVC, but leaves the PC on the instruction.
fn smc(context: &mut Context) -> Next {
    // SAFETY: the guest's own PC, moved past its own instruction.
    unsafe { sysreg::write_elr_el2(context.frame.pc.wrapping_add(4)) };
    let next = call::dispatch(context);
    context.frame.pc = sysreg::elr_el2();
    next
}

/// Goes past the instruction that trapped.
fn step(context: &mut Context) {
    context.frame.pc = context.frame.pc.wrapping_add(4);
}

/// The state of EL1, of a world that is loaded.
fn el1(context: &Context) -> inject::El1Context {
    let live = inject::context(percpu::this().features());
    inject::El1Context { elr: context.frame.pc, spsr: context.frame.pstate, ..live }
}

fn enter(context: &mut Context, entry: &inject::Entry) -> Next {
    inject::apply(entry);
    context.frame.pc = entry.pc;
    context.frame.pstate = entry.pstate;
    Next::Resume
}

/// What the guest did is undefined for it.
fn undefined(context: &mut Context) -> Next {
    let entry = inject::undefined(&el1(context), percpu::this().features());
    enter(context, &entry)
}

/// The guest's access ends in an external abort.
fn external_abort(context: &mut Context, esr: Esr) -> Next {
    let entry = inject::external_abort(&el1(context), percpu::this().features(), esr);
    enter(context, &entry)
}

/// As [`external_abort`] for a vCPU that is not loaded, about the access of its last exit. False if that was no access.
pub fn inject_saved(context: &mut Context) -> bool {
    let Some(Fault { esr, far }) = context.fault.take() else { return false };
    let at = inject::El1Context {
        elr: context.frame.pc,
        spsr: context.frame.pstate,
        far,
        vbar: context.el1.vbar_el1,
        sctlr: context.el1.sctlr_el1,
        // FEAT_GCS is hidden from guests.
        gcscr: 0,
    };
    let entry = inject::external_abort(&at, percpu::this().features(), Esr(esr));
    context.el1.elr_el1 = entry.elr_el1;
    context.el1.spsr_el1 = entry.spsr_el1;
    context.el1.esr_el1 = entry.esr_el1;
    context.el1.far_el1 = far;
    context.frame.pc = entry.pc;
    context.frame.pstate = entry.pstate;
    context.after = crate::vcpu::context::After::Nothing;
    true
}
