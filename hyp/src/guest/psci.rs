//! PSCI 1.1 for guests (DEN0022), by HVC.

use tenure_abi::exit::{self, system};
use tenure_abi::{RunPage, smccc};
use tenure_mm::addr::Ipa;
use tenure_mm::stage2::GUEST_FRAMES;

use super::call::value;
use super::{Next, plain};
use crate::psci::{NO_TRUSTED_OS, VERSION_1_1, id, result};
use crate::vcpu::context::Context;
use crate::vcpu::slot::{Power, Slot};
use crate::vm;

/// AFFINITY_INFO's answers.
const AFFINITY_ON: u64 = 0;
const AFFINITY_OFF: u64 = 1;
const AFFINITY_PENDING: u64 = 2;
/// Affinity fields that a target may have: Aff0 is the vCPU's index, the others are 0.
const AFF0: u64 = 0xff;

/// Answers a PSCI call, or says that there is no such call.
pub fn dispatch(context: &mut Context, function: u32) -> Next {
    let wide = function & id::SMC64 != 0;
    let [_, a1, a2, a3, ..] = context.frame.x;
    // Arguments of a 32-bit call are 32 bits.
    let [a1, a2, a3] = [a1, a2, a3].map(|v| if wide { v } else { v as u32 as u64 });
    match function & !id::SMC64 {
        id::VERSION if !wide => value(context, VERSION_1_1),
        id::FEATURES if !wide => value(context, features(a1 as u32)),
        id::MIGRATE_INFO_TYPE if !wide => value(context, NO_TRUSTED_OS),
        id::CPU_ON => cpu_on(context, a1, a2, a3),
        id::CPU_OFF if !wide => off(context, plain(exit::OFF)),
        id::CPU_SUSPEND => {
            // Every state is entered as standby, which the specification allows (5.4.2): the vCPU waits for an event.
            context.frame.x[0] = result::SUCCESS;
            Next::Leave(plain(exit::WFI))
        }
        id::AFFINITY_INFO => {
            let state = affinity_info(context, a1, a2);
            value(context, state)
        }
        id::SYSTEM_OFF if !wide => off(context, RunPage { system: system::OFF, ..plain(exit::SYSTEM) }),
        id::SYSTEM_RESET if !wide => off(context, RunPage { system: system::RESET, ..plain(exit::SYSTEM) }),
        _ => value(context, smccc::NOT_SUPPORTED),
    }
}

/// PSCI_FEATURES.
const fn features(asked: u32) -> u64 {
    let both = matches!(asked & !id::SMC64, id::CPU_SUSPEND | id::CPU_ON | id::AFFINITY_INFO);
    let narrow = matches!(
        asked,
        id::VERSION | id::CPU_OFF | id::MIGRATE_INFO_TYPE | id::SYSTEM_OFF | id::SYSTEM_RESET | id::FEATURES
    );
    if both || narrow || asked as u64 == smccc::VERSION { result::SUCCESS } else { result::NOT_SUPPORTED }
}

/// This vCPU is off until somebody turns it on; none of these calls comes back.
fn off(context: &mut Context, exit: RunPage) -> Next {
    if let Some(slot) = slot(context, u64::from(context.index)) {
        slot.set_power(false);
    }
    Next::Leave(exit)
}

fn slot(context: &Context, target: u64) -> Option<&'static Slot> {
    if target & !AFF0 != 0 {
        return None;
    }
    vm::cpus(context.vm.slot())?.vcpu(target).filter(|slot| !slot.is_empty())
}

fn cpu_on(context: &mut Context, target: u64, entry: u64, argument: u64) -> Next {
    let Some(slot) = slot(context, target) else { return value(context, result::INVALID_PARAMETERS) };
    if !entry.is_multiple_of(4) || Ipa(entry).frame().0 >= GUEST_FRAMES {
        return value(context, result::INVALID_ADDRESS);
    }
    match slot.power_on(entry, argument) {
        Ok(()) => {
            context.frame.x[0] = result::SUCCESS;
            Next::Leave(RunPage { target, ..plain(exit::CPU_ON) })
        }
        Err(Power::On) => value(context, result::ALREADY_ON),
        Err(_) => value(context, result::ON_PENDING),
    }
}

fn affinity_info(context: &Context, target: u64, level: u64) -> u64 {
    match (level, slot(context, target)) {
        (0, Some(slot)) => match slot.power() {
            Power::On => AFFINITY_ON,
            Power::Off => AFFINITY_OFF,
            Power::Pending => AFFINITY_PENDING,
        },
        _ => result::INVALID_PARAMETERS,
    }
}
