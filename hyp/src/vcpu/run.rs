//! VCPU_RUN: from the host's call to the exit that it is told.
#![allow(unsafe_code)] // Entering the guest.

use tenure_abi::{Reply, RunPage, exit};
use tenure_arch::emulate;
use tenure_arch::host::hcr;
use tenure_arch::switch::{self, Exit};
use tenure_mm::Vm;

use super::context::{After, Context};
use super::run_page::{self, HostPage};
use super::slot::{Held, Power};
use super::world::{World, timer};
use crate::guest::{self, Next};
use crate::machine::mm;
use crate::percpu;

/// Runs the vCPU until it leaves to the host. The caller holds the `VmRef` of `vm`. Returns the exit's reason.
///
/// # Errors
/// What VM_ACTIVATE, which the first run implies, answered.
pub fn run(vm: &Vm, held: &mut Held<'_>) -> Result<u64, Reply> {
    if !vm.is_active() {
        let reply = mm().vm_activate(vm);
        if !reply.is_success() {
            return Err(reply);
        }
    }
    // SAFETY: pinned from the vCPU's creation to its end.
    let page = unsafe { HostPage::new(held.run_page()) };
    if let Some((entry, argument)) = held.slot().take_start() {
        held.context().reset(entry, argument, percpu::forced_types());
    }
    let exit = match (held.slot().power(), vm.root()) {
        (Power::On, Some(root)) => {
            complete(held.context(), page);
            execute(held, root.0)
        }
        _ => RunPage { reason: exit::OFF, ..RunPage::default() },
    };
    run_page::tell(page, &exit);
    Ok(exit.reason)
}

/// Finishes what the last exit left open, with the host's answer.
fn complete(context: &mut Context, page: HostPage) {
    // A request that was not answered dies here: a consent that comes later finds nothing.
    context.request = None;
    context.fault = None;
    match core::mem::replace(&mut context.after, After::Nothing) {
        After::Nothing => {}
        After::Mmio(access) => {
            if !access.write {
                emulate::complete_load(&mut context.frame, access, run_page::answer(page));
            }
            context.frame.pc = context.frame.pc.wrapping_add(4);
        }
        After::Hypercall => context.frame.x[0] = run_page::answer(page),
        After::Refused(registers) => {
            context.frame.x[..4].copy_from_slice(&registers);
            context.frame.pc = context.frame.pc.wrapping_add(4);
        }
    }
}

/// Switches worlds, runs, switches back.
fn execute(held: &mut Held<'_>, root: u64) -> RunPage {
    // SAFETY: called from the host's world; the context is held, its VM active and kept by the caller; unloaded below.
    let world = unsafe { World::load(held.context(), root) };
    let mut exit = loop {
        // SAFETY: the world is loaded; PSTATE is one of EL0 or EL1 (see `regs` and what the CPU saves); the pointer is the
        // context's, which begins with the frame, and no reference to it lives.
        let why = unsafe { switch::enter(held.pointer().cast(), &crate::percpu::this().head) };
        let context = held.context();
        let next = match why {
            Exit::Interrupt => Next::Leave(RunPage { reason: exit::INTERRUPT, ..RunPage::default() }),
            Exit::Call => Next::Leave(context.exit),
            Exit::Sync => guest::sync(context, &world),
            Exit::SError => {
                // Its own doing or the machine's: the world that was running gets it.
                world.change_hcr(context, hcr::VSE, 0);
                Next::Resume
            }
        };
        if let Next::Leave(exit) = next {
            break exit;
        }
    };
    let context = held.context();
    let left = world.unload(context);
    if left.timer_fired && matches!(exit.reason, exit::INTERRUPT | exit::WFI) {
        let el1 = &mut context.el1;
        exit = RunPage {
            reason: exit::TIMER,
            timer_ctl: el1.cntv_ctl_el0,
            timer_cval: el1.cntv_cval_el0,
            ..RunPage::default()
        };
        // The line stays up as long as the condition holds: it is masked until the guest writes its timer again.
        el1.cntv_ctl_el0 |= timer::IMASK;
    }
    exit
}
