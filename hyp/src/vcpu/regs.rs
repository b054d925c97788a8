//! A vCPU's registers by number (REG_GET, REG_SET): which there are, and which values may be set.

use tenure_abi::reg;
use tenure_arch::switch;

use super::context::Context;

fn place(context: &mut Context, number: u64) -> Option<&mut u64> {
    let el1 = &mut context.el1;
    Some(match number {
        reg::SP_EL0 => &mut el1.sp_el0,
        reg::PC => &mut context.frame.pc,
        reg::PSTATE => &mut context.frame.pstate,
        reg::SP_EL1 => &mut el1.sp_el1,
        reg::ELR_EL1 => &mut el1.elr_el1,
        reg::SPSR_EL1 => &mut el1.spsr_el1,
        reg::SCTLR_EL1 => &mut el1.sctlr_el1,
        reg::VBAR_EL1 => &mut el1.vbar_el1,
        reg::TTBR0_EL1 => &mut el1.ttbr0_el1,
        reg::TTBR1_EL1 => &mut el1.ttbr1_el1,
        reg::TCR_EL1 => &mut el1.tcr_el1,
        reg::MAIR_EL1 => &mut el1.mair_el1,
        reg::ESR_EL1 => &mut el1.esr_el1,
        reg::FAR_EL1 => &mut el1.far_el1,
        reg::CNTV_CTL => &mut el1.cntv_ctl_el0,
        reg::CNTV_CVAL => &mut el1.cntv_cval_el0,
        _ => return context.frame.x.get_mut(usize::try_from(number).ok()?),
    })
}

/// Reads a register other than POWER; `None` if there is none with this number.
pub fn get(context: &mut Context, number: u64) -> Option<u64> {
    match number {
        reg::MPIDR_EL1 => Some(context.mpidr()),
        _ => place(context, number).map(|value| *value),
    }
}

/// Why a register cannot be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotSet {
    /// No such register, or no such value.
    Invalid,
    /// It can only be read.
    ReadOnly,
}

/// Whether a register other than POWER can be set to a value.
///
/// # Errors
/// See [`NotSet`].
pub fn check(context: &mut Context, number: u64, value: u64) -> Result<(), NotSet> {
    match number {
        reg::MPIDR_EL1 => Err(NotSet::ReadOnly),
        reg::PSTATE if !switch::is_startable(value) => Err(NotSet::Invalid),
        _ => place(context, number).map(|_| ()).ok_or(NotSet::Invalid),
    }
}

/// Sets a register, as [`check`] allows.
pub fn set(context: &mut Context, number: u64, value: u64) {
    if let Some(place) = place(context, number) {
        *place = value;
    }
}
