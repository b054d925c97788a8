//! Table memory. Handle 0 names the host's own pool.

use tenure_abi::Reply;
use tenure_mm::{Pfn, VmRef};

use super::{Call, vm};
use crate::machine::mm;

fn named(handle: u64) -> Result<Option<VmRef<'static>>, Reply> {
    match handle {
        0 => Ok(None),
        _ => vm::named(handle).map(Some),
    }
}

/// POOL_TOPUP(handle or 0, pfn, count).
#[inline(never)]
pub fn topup(at: &mut Call<'_>) -> Reply {
    let [handle, pfn, count] = at.args();
    match named(handle) {
        Ok(vm) => mm().pool_topup(vm.as_deref(), Pfn(pfn), count),
        Err(reply) => reply,
    }
}

/// POOL_DRAIN(handle or 0, max).
#[inline(never)]
pub fn drain(at: &mut Call<'_>) -> Reply {
    let [handle, max] = at.args();
    let vm = match named(handle) {
        Ok(vm) => vm,
        Err(reply) => return reply,
    };
    let (reply, pages) = mm().pool_drain(vm.as_deref(), max);
    for (n, page) in (4..).zip(pages) {
        at.set(n, page.0);
    }
    reply
}

/// POOL_INFO(handle or 0).
#[inline(never)]
pub fn info(at: &mut Call<'_>) -> Reply {
    match named(at.arg(1)) {
        Ok(vm) => {
            let (free, total) = mm().pool_info(vm.as_deref());
            at.set(4, free);
            at.set(5, total);
            Reply::done(0)
        }
        Err(reply) => reply,
    }
}
