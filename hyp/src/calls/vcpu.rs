//! vCPUs: made, run, looked at, answered.

use tenure_abi::{Reply, Status, flags, reg, reply};
use tenure_mm::{Pfn, Refusal, VmRef};

use super::{Call, vm::named};
use crate::guest;
use crate::machine::mm;
use crate::percpu;
use crate::vcpu::context::{After, Context, Request, Verdict};
use crate::vcpu::regs::{self, NotSet};
use crate::vcpu::run as runner;
use crate::vcpu::slot::{Held, Power, Unavailable};
use crate::vm::{self, Closed};

const INVALID: Reply = Reply::refused(Status::Invalid);
const DENIED: Reply = Reply::refused(Status::Denied);

/// A call that makes a vCPU failed.
struct NotMade(Reply);

impl From<Closed> for NotMade {
    fn from(why: Closed) -> Self {
        Self(match why {
            Closed::Dying => INVALID,
            Closed::Exists => DENIED,
        })
    }
}

/// VCPU_CREATE(handle, index, run_pfn).
pub fn create(at: &mut Call<'_>) -> Reply {
    let [handle, index, run_pfn] = at.args();
    match make(handle, index, Pfn(run_pfn)) {
        Ok(()) => Reply::done(0),
        Err(NotMade(reply)) => reply,
    }
}

fn make(handle: u64, index: u64, run_page: Pfn) -> Result<(), NotMade> {
    let vm = named(handle).map_err(NotMade)?;
    let invalid = NotMade(INVALID);
    let Ok(number) = u8::try_from(index) else { return Err(invalid) };
    if index >= vm::MAX_VCPUS as u64 {
        return Err(invalid);
    }
    // What an active protected guest has, nobody adds to.
    if vm.is_sealed() {
        return Err(NotMade(DENIED));
    }
    let cpus = vm::cpus(vm.slot()).ok_or(invalid)?;
    let slot = mm().vms().get(usize::from(vm.slot().0).wrapping_sub(1)).ok_or(NotMade(INVALID))?;
    cpus.create(tenure_mm::VmHandle(handle), index, |place| {
        mm().hyp_pin(run_page).map_err(|refusal| NotMade(refusal.at(0)))?;
        let unpinned = |because| match mm().hyp_unpin(run_page) {
            Ok(()) => NotMade(because),
            Err(refusal) => NotMade(refusal.whole()),
        };
        let Some(page) = mm().vm_take_page(&vm) else { return Err(unpinned(Refusal::VM_POOL.whole())) };
        // Measured before it is there: another CPU may activate the VM at any moment.
        if !mm().measure(&vm, &[b"vcpu", &index.to_le_bytes()]) {
            mm().vm_put_page(&vm, page);
            return Err(unpinned(DENIED));
        }
        place.fill(page, run_page, Context::new(slot, number, percpu::forced_types()));
        Ok(())
    })
}

/// Runs `f` on the vCPU in x1 and x2, held; nobody else has it meanwhile.
fn with(at: &Call<'_>, f: impl FnOnce(&VmRef<'static>, &mut Held<'_>) -> Reply) -> Reply {
    let [handle, index] = at.args();
    let vm = match named(handle) {
        Ok(vm) => vm,
        Err(reply) => return reply,
    };
    let Some(slot) = vm::cpus(vm.slot()).and_then(|cpus| cpus.vcpu(index)) else { return INVALID };
    match slot.hold() {
        Ok(mut held) => f(&vm, &mut held),
        Err(Unavailable::Empty) => INVALID,
        Err(Unavailable::Held) => Reply { mask: reply::VM_IN_USE, ..Reply::refused(Status::Retry) },
    }
}

/// VCPU_RUN(handle, index).
pub fn run(at: &mut Call<'_>) -> Reply {
    let mut reason = 0;
    let reply = with(at, |vm, held| match runner::run(vm, held) {
        Ok(exit) => {
            reason = exit;
            Reply::done(0)
        }
        Err(reply) => reply,
    });
    at.set(4, reason);
    reply
}

/// REG_GET(handle, index, register).
pub fn reg_get(at: &mut Call<'_>) -> Reply {
    let number = at.arg(3);
    let mut value = 0;
    let reply = with(at, |vm, held| {
        if vm.is_sealed() {
            return DENIED;
        }
        let found = match number {
            reg::POWER => Some(u64::from(held.slot().power() != Power::Off)),
            _ => regs::get(held.context(), number),
        };
        match found {
            Some(found) => {
                value = found;
                Reply::done(0)
            }
            None => INVALID,
        }
    });
    at.set(4, value);
    reply
}

/// REG_SET(handle, index, register, value).
pub fn reg_set(at: &mut Call<'_>) -> Reply {
    let [_, index, number, value] = at.args();
    with(at, |vm, held| {
        if vm.is_sealed() {
            return DENIED;
        }
        let valid = match (number, value) {
            (reg::POWER, 0 | 1) => Ok(()),
            (reg::POWER, _) => Err(NotSet::Invalid),
            _ => regs::check(held.context(), number, value),
        };
        match valid {
            Ok(()) => {}
            Err(NotSet::Invalid) => return INVALID,
            Err(NotSet::ReadOnly) => return DENIED,
        }
        // Measured before it is set: another CPU may activate the VM at any moment.
        let record = [b"reg".as_slice(), &index.to_le_bytes(), &number.to_le_bytes(), &value.to_le_bytes()];
        if !mm().measure(vm, &record) {
            return DENIED;
        }
        match number {
            reg::POWER => held.slot().set_power(value == 1),
            _ => regs::set(held.context(), number, value),
        }
        Reply::done(0)
    })
}

/// VCPU_INJECT(handle, index, what).
pub fn inject(at: &mut Call<'_>) -> Reply {
    let what = at.arg(3);
    with(at, |_, held| match what {
        flags::inject::DATA_ABORT if guest::inject_saved(held.context()) => Reply::done(0),
        flags::inject::DATA_ABORT => DENIED,
        _ => INVALID,
    })
}

/// The request that the host names, if the vCPU waits with it.
fn request(context: &Context, sequence: u64) -> Option<Request> {
    context.request.filter(|request| request.sequence == sequence)
}

/// CONSENT(handle, index, sequence): valid once, for the request that stands.
#[inline(never)]
pub fn consent(at: &mut Call<'_>) -> Reply {
    let sequence = at.arg(3);
    with(at, |vm, held| {
        let Some(request) = request(held.context(), sequence) else { return INVALID };
        let reply = mm().consent(vm, request.gfn, request.count, request.how);
        match (reply.status, request.verdict) {
            // The host did its part, and a pin beyond the page that the guest's call met first still stands: that is the
            // answer of the guest's call. To make it again would only meet the first page again.
            (Status::Busy, Verdict::Reply(_)) => {
                held.context().after = After::Refused(reply.to_regs());
                held.context().request = None;
            }
            // What will pass, or needs the host to do more, may be tried again.
            (Status::Retry | Status::Busy | Status::NoMemory, _) => {}
            // All else has used the consent up.
            _ => held.context().request = None,
        }
        reply
    })
}

/// REFUSE(handle, index, sequence).
pub fn refuse(at: &mut Call<'_>) -> Reply {
    let sequence = at.arg(3);
    with(at, |_, held| {
        let context = held.context();
        let Some(request) = request(context, sequence) else { return INVALID };
        let x = &context.frame.x;
        context.after = After::Refused(match request.verdict {
            Verdict::Reply(reply) => reply.to_regs(),
            Verdict::Stock => [tenure_abi::smccc::INVALID_PARAMETER, x[1], x[2], x[3]],
        });
        context.request = None;
        Reply::done(0)
    })
}
