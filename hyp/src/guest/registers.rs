//! System registers that trap: what is decided stands in [`tenure_arch::trap`], here it is carried out.
#![allow(unsafe_code)] // Writes of EL1's translation controls on the guest's behalf.

use tenure_arch::esr::Esr;
use tenure_arch::guest::hcr;
use tenure_arch::trap::{Answer, Control, SysAccess, answer};
use tenure_arch::{idregs, sysreg};

use super::{Next, step, undefined};
use crate::vcpu::context::Context;
use crate::vcpu::world::World;

/// `SCTLR_EL1`: MMU and data cache.
const MMU_AND_CACHES: u64 = 1 << 0 | 1 << 2;

/// A trapped access.
pub fn handle(context: &mut Context, world: &World, esr: Esr) -> Next {
    let access = SysAccess::decode(esr.iss());
    match answer(access, idregs::guest_value) {
        Answer::Value(value) => context.frame.write(access.rt, value),
        Answer::Ignore => {}
        Answer::Control(control) => {
            let value = context.frame.read(access.rt);
            write(control, value);
            if control == Control::Sctlr && value & MMU_AND_CACHES == MMU_AND_CACHES {
                // From here on its accesses are cached like everybody's: nothing is left to watch.
                world.change_hcr(context, 0, hcr::TVM | hcr::TSW);
            }
        }
        Answer::Undefined => return undefined(context),
    }
    step(context);
    Next::Resume
}

fn write(control: Control, value: u64) {
    let write = match control {
        Control::Sctlr => sysreg::write_sctlr_el1,
        Control::Ttbr0 => sysreg::write_ttbr0_el1,
        Control::Ttbr1 => sysreg::write_ttbr1_el1,
        Control::Tcr => sysreg::write_tcr_el1,
        Control::Esr => sysreg::write_esr_el1,
        Control::Far => sysreg::write_far_el1,
        Control::Afsr0 => sysreg::write_afsr0_el1,
        Control::Afsr1 => sysreg::write_afsr1_el1,
        Control::Mair => sysreg::write_mair_el1,
        Control::Amair => sysreg::write_amair_el1,
        Control::Contextidr => sysreg::write_contextidr_el1,
    };
    // SAFETY: a register of the guest's own stage 1, which its stage 2 bounds; its world is loaded.
    unsafe { write(value) };
}
