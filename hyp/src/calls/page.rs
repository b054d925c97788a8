//! Pages: arguments taken apart, decisions left to the manager.
//!
//! None is inlined: a range of frozen words takes 12 KiB of the stack, and VCPU_RUN, under which a guest's calls come, must
//! not find the room for the host's calls taken already.

use tenure_abi::{Reply, Status};
use tenure_mm::{Gfn, Pfn, PinKind};

use super::{AGAIN, Call, vm};
use crate::machine::mm;

/// DONATE(handle, gfn, pfn, count, kind).
#[inline(never)]
pub fn donate(at: &mut Call<'_>) -> Reply {
    let [_, gfn, pfn, count, kind] = at.args();
    vm::with(at, |vm| mm().donate(vm, Gfn(gfn), Pfn(pfn), count, kind))
}

/// RECLAIM(handle, pfn, count).
#[inline(never)]
pub fn reclaim(at: &mut Call<'_>) -> Reply {
    let [_, pfn, count] = at.args();
    vm::with(at, |vm| mm().reclaim(vm, Pfn(pfn), count))
}

/// SET_STATUS(handle, gfn, count, status).
#[inline(never)]
pub fn set_status(at: &mut Call<'_>) -> Reply {
    let [_, gfn, count, status] = at.args();
    vm::with(at, |vm| mm().set_status(vm, Gfn(gfn), count, status))
}

/// CONVERT(handle, gfn, count, to).
#[inline(never)]
pub fn convert(at: &mut Call<'_>) -> Reply {
    let [_, gfn, count, to] = at.args();
    vm::with(at, |vm| mm().host_convert_part(vm, Gfn(gfn), count, to).unwrap_or(AGAIN))
}

/// GUEST_MAP(handle, gfn, pfn, count).
#[inline(never)]
pub fn guest_map(at: &mut Call<'_>) -> Reply {
    let [_, gfn, pfn, count] = at.args();
    vm::with(at, |vm| mm().guest_map(vm, Gfn(gfn), Pfn(pfn), count))
}

/// GUEST_UNMAP(handle, gfn, count).
#[inline(never)]
pub fn guest_unmap(at: &mut Call<'_>) -> Reply {
    let [_, gfn, count] = at.args();
    vm::with(at, |vm| mm().guest_unmap(vm, Gfn(gfn), count))
}

/// HOST_MAP(pfn, count).
#[inline(never)]
pub fn host_map(at: &mut Call<'_>) -> Reply {
    let [pfn, count] = at.args();
    mm().host_map(Pfn(pfn), count)
}

/// HOST_UNMAP(pfn, count).
#[inline(never)]
pub fn host_unmap(at: &mut Call<'_>) -> Reply {
    let [pfn, count] = at.args();
    mm().host_unmap(Pfn(pfn), count)
}

/// PIN(pfn, count, kind).
#[inline(never)]
pub fn pin(at: &mut Call<'_>) -> Reply {
    let [pfn, count, kind] = at.args();
    match PinKind::from_raw(kind) {
        Some(kind) => mm().pin(Pfn(pfn), count, kind),
        None => Reply::refused(Status::Invalid),
    }
}

/// UNPIN(pfn, count, kind).
#[inline(never)]
pub fn unpin(at: &mut Call<'_>) -> Reply {
    let [pfn, count, kind] = at.args();
    let Some(kind) = PinKind::from_raw(kind) else { return Reply::refused(Status::Invalid) };
    let unpinned = mm().unpin(Pfn(pfn), count, kind);
    at.set(4, unpinned.drained);
    at.set(5, unpinned.wake.map_or(0, |handle| handle.0));
    at.set(6, unpinned.released);
    unpinned.reply
}

/// QUERY(pfn).
#[inline(never)]
pub fn query(at: &mut Call<'_>) -> Reply {
    match mm().query(Pfn(at.arg(1))) {
        Ok(word) => {
            let (descriptor, level) = mm().host_entry(Pfn(at.arg(1)));
            at.set(4, word.raw());
            at.set(5, descriptor);
            at.set(6, u64::from(level));
            Reply::done(1)
        }
        Err(refusal) => refusal.at(0),
    }
}

/// QUERY_GUEST(handle, gfn, op).
#[inline(never)]
pub fn query_guest(at: &mut Call<'_>) -> Reply {
    let [_, gfn, op] = at.args();
    let mut results = [0; 3];
    let reply = vm::with(at, |vm| match mm().query_guest(vm, Gfn(gfn), op) {
        Ok(seen) => {
            let (pfn, word) = seen.frame.map_or((0, 0), |(pfn, word)| (pfn.0, word.raw()));
            results = [word, pfn, seen.status];
            seen.reply
        }
        Err(status) => Reply::refused(status),
    });
    for (n, value) in (4..).zip(results) {
        at.set(n, value);
    }
    reply
}

/// POISON(pfn).
#[inline(never)]
pub fn poison(at: &mut Call<'_>) -> Reply {
    mm().poison(Pfn(at.arg(1)))
}
