//! The host calls of Tenure, one function each.

use tenure_abi::{ABI_VERSION, Reply, Status, call, guest, page};
use tenure_test_rt::call::{Regs, hvc};

/// True where Tenure answers the version call; elsewhere HVC may be undefined, which a bare `virt` machine (whose PSCI conduit is
/// HVC) answers with -1.
pub fn tenure_answers() -> bool {
    let regs = hvc(call::VERSION, &[]);
    regs.x(0) == 0 && regs.x(1) == ABI_VERSION
}

macro_rules! plain {
    ($( $(#[doc = $doc:literal])+ $name:ident($($argument:ident),*) = $id:expr; )+) => {
        $( $(#[doc = $doc])+ pub fn $name($($argument: u64),*) -> Reply { hvc($id, &[$($argument),*]).reply() } )+
    };
}

macro_rules! valued {
    ($( $(#[doc = $doc:literal])+ $name:ident($($argument:ident),*) = $id:expr; )+) => {
        $( $(#[doc = $doc])+ pub fn $name($($argument: u64),*) -> (Reply, Regs) {
            let regs = hvc($id, &[$($argument),*]);
            (regs.reply(), regs)
        } )+
    };
}

plain! {
    /// VM_SET_RIGHTS.
    vm_set_rights(handle, rights) = call::VM_SET_RIGHTS;
    /// VM_ACTIVATE.
    vm_activate(handle) = call::VM_ACTIVATE;
    /// VCPU_CREATE.
    vcpu_create(handle, index, run_pfn) = call::VCPU_CREATE;
    /// REG_SET.
    reg_set(handle, index, register, value) = call::REG_SET;
    /// VCPU_INJECT.
    vcpu_inject(handle, index, what) = call::VCPU_INJECT;
    /// CONSENT.
    consent(handle, index, sequence) = call::CONSENT;
    /// REFUSE.
    refuse(handle, index, sequence) = call::REFUSE;
    /// DONATE.
    donate(handle, gfn, pfn, count, kind) = call::DONATE;
    /// RECLAIM.
    reclaim(handle, pfn, count) = call::RECLAIM;
    /// SET_STATUS.
    set_status(handle, gfn, count, status) = call::SET_STATUS;
    /// CONVERT.
    convert(handle, gfn, count, to) = call::CONVERT;
    /// GUEST_MAP.
    guest_map(handle, gfn, pfn, count) = call::GUEST_MAP;
    /// GUEST_UNMAP.
    guest_unmap(handle, gfn, count) = call::GUEST_UNMAP;
    /// HOST_MAP.
    host_map(pfn, count) = call::HOST_MAP;
    /// HOST_UNMAP.
    host_unmap(pfn, count) = call::HOST_UNMAP;
    /// PIN.
    pin(pfn, count, kind) = call::PIN;
    /// POISON.
    poison(pfn) = call::POISON;
    /// POOL_TOPUP.
    pool_topup(handle, pfn, count) = call::POOL_TOPUP;
}

valued! {
    /// FEATURES: x4.
    features() = call::FEATURES;
    /// INFO: x4.
    info(index) = call::INFO;
    /// COUNT: x4..x12.
    count(start, frames) = call::COUNT;
    /// LOG_READ: x4, x5.
    log_read(offset, pfn) = call::LOG_READ;
    /// TRACE_READ: x4, x5.
    trace_read(number, pfn) = call::TRACE_READ;
    /// VM_CREATE: x4 = handle.
    vm_create(flags) = call::VM_CREATE;
    /// VM_DESTROY: x4 = finished.
    vm_destroy(handle) = call::VM_DESTROY;
    /// VCPU_RUN: x4 = reason.
    vcpu_run(handle, index) = call::VCPU_RUN;
    /// REG_GET: x4.
    reg_get(handle, index, register) = call::REG_GET;
    /// UNPIN: x4 = drained, x5 = handle to wake, x6 = came back.
    unpin(pfn, count, kind) = call::UNPIN;
    /// QUERY: x4 = word.
    query(pfn) = call::QUERY;
    /// QUERY_GUEST: x4 = word, x5 = pfn, x6 = status.
    query_guest(handle, gfn, op) = call::QUERY_GUEST;
    /// POOL_DRAIN: x4.. = frames.
    pool_drain(handle, max) = call::POOL_DRAIN;
    /// POOL_INFO: x4 = free, x5 = total.
    pool_info(handle) = call::POOL_INFO;
    /// HOST_RESET: x4 = finished, x5 = where to go on.
    host_reset(from) = call::HOST_RESET;
}

/// The word of a frame, 0 where QUERY fails.
pub fn word(pfn: u64) -> u64 {
    let (reply, regs) = query(pfn);
    if reply.is_success() { regs.x(4) } else { 0 }
}

/// State of a frame; `None` where QUERY fails.
pub fn state(pfn: u64) -> Option<page::State> {
    let (reply, regs) = query(pfn);
    if reply.is_success() { page::State::of(regs.x(4)) } else { None }
}

/// A figure of INFO, 0 where there is none.
pub fn figure(index: u64) -> u64 {
    let (reply, regs) = info(index);
    if reply.is_success() { regs.x(4) } else { 0 }
}

/// Repeats a call that stops at a bound of its own until `count` pages are done: `step` gets the index and the rest.
///
/// NO_MEMORY is answered by `more`, which returns false when it has none either.
pub fn all(count: u64, mut step: impl FnMut(u64, u64) -> Reply, mut more: impl FnMut() -> bool) -> Reply {
    let mut done = 0;
    for _ in 0..100_000 {
        if done >= count {
            break;
        }
        let reply = step(done, count - done);
        match reply.status {
            Status::Success if reply.done == 0 => return Reply { done, ..reply },
            Status::Success => done += reply.done,
            Status::Retry if reply.mask == 0 || reply.done > 0 => done += reply.done,
            Status::NoMemory => {
                done += reply.done;
                if !more() {
                    return Reply { done, ..reply };
                }
            }
            _ => return Reply { done: done + reply.done, ..reply },
        }
    }
    Reply::done(done)
}

/// Calls of guests, for tests that make them from where they must not work.
pub const GUEST_CALLS: [u64; 7] = [
    guest::VERSION,
    guest::SHARE,
    guest::UNSHARE,
    guest::RELINQUISH,
    guest::QUERY,
    guest::MEASUREMENT,
    guest::HOST_CALL,
];
