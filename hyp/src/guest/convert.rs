//! Share, unshare and relinquish: what of the manager's answer the guest sees, and what the host is asked.

use tenure_abi::flags::unshare as flags;
use tenure_abi::{MAX_ATOMIC_PAGES, NO_INDEX, PAGE_SIZE, Reply, RunPage, Status, exit, smccc};
use tenure_arch::sysreg;
use tenure_mm::{Gfn, Unshare};

use super::call::{absorb, answer, rewind, value};
use super::{Next, plain};
use crate::machine::mm;
use crate::vcpu::context::{Context, Request, Verdict};
use crate::vm;

const INVALID: Reply = Reply::refused(Status::Invalid);

/// SHARE(ipa, count).
pub fn share(context: &mut Context, ipa: u64, count: u64) -> Next {
    if !ipa.is_multiple_of(PAGE_SIZE) {
        return answer(context, INVALID);
    }
    let reply = mm().guest_share(context.vm, Gfn(ipa / PAGE_SIZE), count);
    settle_share(context, reply)
}

/// What the guest or the host is told of the manager's answer to a SHARE.
pub fn settle_share(context: &mut Context, reply: Reply) -> Next {
    match absorb(&reply) {
        Some(next) => next,
        None => answer(context, reply),
    }
}

/// UNSHARE(ipa, count, flags).
#[inline(never)]
pub fn unshare(context: &mut Context, ipa: u64, count: u64, raw: u64) -> Next {
    if !ipa.is_multiple_of(PAGE_SIZE) {
        return answer(context, INVALID);
    }
    let how = match Unshare::from_flags(context.vm, raw) {
        Ok(how) => how,
        Err(status) => return answer(context, Reply::refused(status)),
    };
    if raw & flags::REVOKE != 0 && !may_revoke_now(context) {
        return answer(context, Reply::refused(Status::Retry));
    }
    let gfn = Gfn(ipa / PAGE_SIZE);
    let reply = mm().guest_unshare(context.vm, gfn, count, how);
    settle_unshare(context, gfn, count, raw, how, reply)
}

/// What the guest or the host is told of the manager's answer to an UNSHARE.
pub fn settle_unshare(
    context: &mut Context,
    gfn: Gfn,
    count: u64,
    raw: u64,
    how: Unshare,
    reply: Reply,
) -> Next {
    match reply.status {
        Status::Success => answer(context, reply),
        Status::Pending if raw & flags::WAIT != 0 => {
            rewind();
            let page = gfn.offset(if reply.first == NO_INDEX { 0 } else { reply.first });
            Next::Leave(RunPage { gpa: page.base().0, count: 1, mask: reply.mask, ..plain(exit::DRAIN) })
        }
        _ => match absorb(&reply) {
            Some(next) => next,
            None if reply.status == Status::Retry => {
                ask(context, gfn, count, raw, how, reply, Verdict::Reply(reply))
            }
            None => answer(context, reply),
        },
    }
}

/// KVM's MEM_SHARE(ipa, 0, 0): 0 or -3.
pub fn stock_share(context: &mut Context, ipa: u64, reserved: u64) -> Next {
    if !ipa.is_multiple_of(PAGE_SIZE) || reserved != 0 {
        return value(context, smccc::INVALID_PARAMETER);
    }
    let reply = mm().guest_share(context.vm, Gfn(ipa / PAGE_SIZE), 1);
    match absorb(&reply) {
        Some(next) => next,
        None if reply.is_success() => value(context, 0),
        None => value(context, smccc::INVALID_PARAMETER),
    }
}

/// KVM's MEM_UNSHARE(ipa, 0, 0): 0 or -3. Whatever the host can help with is asked of the host, pins too.
pub fn stock_unshare(context: &mut Context, ipa: u64, reserved: u64) -> Next {
    if !ipa.is_multiple_of(PAGE_SIZE) || reserved != 0 {
        return value(context, smccc::INVALID_PARAMETER);
    }
    let gfn = Gfn(ipa / PAGE_SIZE);
    let how = Unshare::default();
    let reply = mm().guest_unshare(context.vm, gfn, 1, how);
    match (absorb(&reply), reply.status) {
        (Some(next), _) => next,
        (None, Status::Success) => value(context, 0),
        (None, Status::Retry | Status::Busy | Status::Pending) => {
            ask(context, gfn, 1, 0, how, reply, Verdict::Stock)
        }
        (None, _) => value(context, smccc::INVALID_PARAMETER),
    }
}

/// RELINQUISH(ipa, count).
#[inline(never)] // Its list of frozen words takes stack that no other call should have to set up.
pub fn relinquish(context: &mut Context, ipa: u64, count: u64) -> Next {
    if !ipa.is_multiple_of(PAGE_SIZE) {
        return answer(context, INVALID);
    }
    let reply = mm().guest_relinquish(context.vm, Gfn(ipa / PAGE_SIZE), count);
    match absorb(&reply) {
        Some(next) => next,
        None => answer(context, reply),
    }
}

/// Leaves to the host with a request; the PC stays on the call, which is made again whatever the host does.
fn ask(
    context: &mut Context,
    gfn: Gfn,
    count: u64,
    raw: u64,
    how: Unshare,
    reply: Reply,
    verdict: Verdict,
) -> Next {
    rewind();
    // Wraps never: one a call, 2^64 of them.
    context.sequence = context.sequence.wrapping_add(1);
    // One call converts no more than this, so that is what the host is asked about.
    let count = count.min(MAX_ATOMIC_PAGES);
    let sequence = context.sequence;
    context.request = Some(Request { gfn, count, how, sequence, verdict });
    Next::Leave(RunPage {
        gpa: gfn.base().0,
        count,
        flags: raw,
        sequence,
        first: reply.first,
        mask: reply.mask,
        ..plain(exit::CONVERT)
    })
}

fn may_revoke_now(context: &Context) -> bool {
    vm::cpus(context.vm.slot())
        .is_some_and(|cpus| cpus.revoke.take(sysreg::cntvct_el0(), sysreg::cntfrq_el0()))
}
