//! Calls of the host that need no running guest.

use tenure_abi::flags::{pin, status, vm as vm_flags};
use tenure_abi::{call, info};
use tenure_test_hosts::vm::{FREE_GFN, Vm, destroy, take};
use tenure_test_hosts::{Host, calls};
use tenure_test_rt::call::quick;
use tenure_test_rt::check;

use crate::{Clock, Measured, Watch, figure, instructions};

const CALLS: u64 = 1024;
const BLOCK: u64 = 512;

/// Measures them; tenths of instructions that populating a page takes.
pub fn run(host: &mut Host, clock: Clock) -> Option<u64> {
    instructions("host_null", || {
        let mut answers = 0;
        let tenths = clock.time(CALLS, || {
            for _ in 0..CALLS {
                answers |= quick(call::VERSION, 0, 0, 0);
            }
        });
        check!(answers == 0, "VERSION: {answers:#x}");
        Ok(tenths)
    });
    instructions("host_query", || {
        let pfn = take(host, 1, 1)?;
        let tenths = clock.time(CALLS, || (0..CALLS).for_each(|_| _ = quick(call::QUERY, pfn, 0, 0)));
        host.frames.give(pfn, 1);
        Ok(tenths)
    });
    instructions("host_pin_unpin_pair", || {
        let pfn = take(host, 1, 1)?;
        let mut answers = 0;
        let tenths = clock.time(CALLS, || {
            for _ in 0..CALLS {
                answers |= quick(call::PIN, pfn, 1, pin::CPU);
                answers |= quick(call::UNPIN, pfn, 1, pin::CPU);
            }
        });
        check!(answers == 0, "PIN and UNPIN: {answers:#x}");
        host.frames.give(pfn, 1);
        Ok(tenths)
    });
    instructions("vm_create_destroy_pair", || {
        let mut outcome = Ok(());
        let tenths = clock.time(8, || {
            for _ in 0..8 {
                let (_, regs) = calls::vm_create(vm_flags::PROTECTED);
                outcome = outcome.clone().and(destroy(regs.x(4)));
            }
        });
        outcome.map(|()| tenths)
    });
    pools(host, clock);
    figure("kept_kib", "KiB", || {
        Ok(Measured { tenths: calls::figure(info::KEPT_BYTES) * 10 / 1024, steps: 0 })
    });
    donations(host, clock)
}

/// Table pages: no scrub on the way in, one on the way out.
fn pools(host: &mut Host, clock: Clock) {
    const PAGES: u64 = 256;
    let mut vm = None;
    instructions("pool_topup_per_page", || {
        let (reply, regs) = calls::vm_create(vm_flags::PROTECTED);
        check!(reply.is_success(), "VM_CREATE: {reply}");
        let handle = regs.x(4);
        let pfn = take(host, PAGES as usize, 1)?;
        vm = Some((handle, pfn));
        let mut reply = tenure_abi::Reply::done(0);
        let measured = clock.time(PAGES, || {
            reply = calls::all(PAGES, |at, rest| calls::pool_topup(handle, pfn + at, rest), || false);
        });
        check!(reply.done == PAGES, "POOL_TOPUP: {reply}");
        Ok(measured)
    });
    let Some((handle, pfn)) = vm else { return };
    instructions("destroy_per_pool_page", || {
        let watch = Watch::start();
        destroy(handle)?;
        let measured = clock.per_step(watch.ticks(), PAGES);
        host.frames.give(pfn, PAGES as usize);
        Ok(measured)
    });
}

/// Donate of a whole 2 MiB block in as few calls as Tenure takes, and its way back.
fn donations(host: &mut Host, clock: Clock) -> Option<u64> {
    let mut vm = match Vm::new(host, 0) {
        Ok(vm) => vm,
        Err(failure) => return instructions("populate_2m_per_page", || Err(failure)),
    };
    let mut pages = 0;
    let populate = instructions("populate_2m_per_page", || {
        let pfn = take(host, BLOCK as usize, BLOCK as usize)?;
        pages = pfn;
        // A table for the 2 MiB of guest addresses is there beforehand, as it is for a whole block.
        let gfn = FREE_GFN.next_multiple_of(BLOCK);
        vm.give(host, gfn + BLOCK, 1, status::PRIVATE)?;
        vm.top_up(host, 4)?;
        let handle = vm.handle;
        let mut reply = tenure_abi::Reply::done(0);
        let tenths = clock.time(BLOCK, || {
            reply = calls::all(
                BLOCK,
                |at, rest| calls::donate(handle, gfn + at, pfn + at, rest, status::PRIVATE),
                || false,
            );
        });
        check!(reply.done == BLOCK, "DONATE: {reply}");
        (0..BLOCK).for_each(|index| vm.donate_noted(gfn + index, pfn + index));
        Ok(tenths)
    });
    instructions("reclaim_2m_per_page", || {
        let gfn = FREE_GFN.next_multiple_of(BLOCK);
        let handle = vm.handle;
        let mut unmapped = tenure_abi::Reply::done(0);
        let mut reply = unmapped;
        let tenths = clock.time(BLOCK, || {
            unmapped = calls::all(BLOCK, |at, rest| calls::guest_unmap(handle, gfn + at, rest), || false);
            reply = calls::all(BLOCK, |at, rest| calls::reclaim(handle, pages + at, rest), || false);
        });
        check!(unmapped.done == BLOCK, "GUEST_UNMAP: {unmapped}");
        check!(reply.done == BLOCK, "RECLAIM: {reply}");
        (0..BLOCK).for_each(|index| vm.forget(host, gfn + index));
        Ok(tenths)
    });
    one_by_one(host, &mut vm, clock);
    tenure_test_rt::harness::run("bench", "plain_vm_ends", || vm.destroy(host));
    populate
}

/// Donate and its way back (unmap and reclaim), a call for each page, as a host does that has no more.
fn one_by_one(host: &mut Host, vm: &mut Vm, clock: Clock) {
    const COUNT: u64 = 64;
    let gfn = FREE_GFN.next_multiple_of(BLOCK);
    let handle = vm.handle;
    let mut first = 0;
    instructions("donate_4k", || {
        let pfn = take(host, COUNT as usize, 1)?;
        let mut done = 0;
        let measured = clock.time(COUNT, || {
            for index in 0..COUNT {
                done += calls::donate(handle, gfn + index, pfn + index, 1, status::PRIVATE).done;
            }
        });
        check!(done == COUNT, "DONATE of {done} pages");
        (0..COUNT).for_each(|index| vm.donate_noted(gfn + index, pfn + index));
        first = pfn;
        Ok(measured)
    });
    instructions("reclaim_4k", || {
        check!(first != 0, "nothing was donated");
        let mut done = 0;
        let measured = clock.time(COUNT, || {
            for index in 0..COUNT {
                let unmapped = calls::guest_unmap(handle, gfn + index, 1);
                done += unmapped.done.min(calls::reclaim(handle, first + index, 1).done);
            }
        });
        check!(done == COUNT, "RECLAIM of {done} pages");
        (0..COUNT).for_each(|index| vm.forget(host, gfn + index));
        Ok(measured)
    });
}
