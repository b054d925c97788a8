//! Too little table memory: an answer, no trace, and what never needs any.

use tenure_abi::flags::{status, vm as vm_flags};
use tenure_abi::page::State;
use tenure_abi::{PAGE_SIZE, Reply, Status, exit, reply};
use tenure_test_hosts::totals::Totals;
use tenure_test_hosts::vm::{self, Event, FREE_GFN, with_guest};
use tenure_test_hosts::{Host, calls, memory};
use tenure_test_protocol::command;
use tenure_test_rt::harness::TestResult;
use tenure_test_rt::{check, check_eq, fail};

crate::tests!(
    donate_without_tables_changes_nothing,
    share_and_touch_need_no_memory,
    a_guest_call_that_needs_a_table_waits_for_it,
);

/// C4, B1: NO_MEMORY names the pool; nothing has moved; after a top-up the same call succeeds.
fn donate_without_tables_changes_nothing(host: &mut Host) -> TestResult {
    let (reply, regs) = calls::vm_create(vm_flags::PROTECTED);
    check!(reply.is_success());
    let handle = regs.x(4);
    let outcome = (|| {
        let pfn = vm::take(host, 1, 1)?;
        check!(memory::fill(pfn, 0x7ea1));
        let before = Totals::read()?;
        let reply = calls::donate(handle, FREE_GFN, pfn, 1, status::PRIVATE);
        check_eq!(
            (reply.status, reply.done, reply.mask),
            (Status::NoMemory, 0, reply::VM_POOL),
            "with an empty pool"
        );
        check!(memory::is_filled(pfn, 0x7ea1), "a refused donate scrubbed the host's frame");
        check_eq!(calls::state(pfn), Some(State::Host));
        check_eq!(Totals::read()?, before);
        let tables = vm::take(host, 8, 1)?;
        check_eq!(calls::pool_topup(handle, tables, 8), Reply::done(8));
        check_eq!(calls::set_status(handle, FREE_GFN, 1, status::PRIVATE), Reply::done(1));
        check_eq!(
            calls::donate(handle, FREE_GFN, pfn, 1, status::PRIVATE),
            Reply::done(1),
            "after the top-up"
        );
        Ok((pfn, tables))
    })();
    vm::destroy(handle)?;
    let (pfn, tables) = outcome?;
    for frame in (tables..tables + 8).chain([pfn]) {
        vm::came_back(frame)?;
    }
    host.frames.give(tables, 8);
    host.frames.give(pfn, 1);
    Ok(())
}

/// F7, scenario 27: whatever can be taken out of the host's pool is out of it.
fn share_and_touch_need_no_memory(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 4, 0xf7)?;
        let mut drained = arrayvec::ArrayVec::<u64, 512>::new();
        for handle in [0, vm.handle] {
            loop {
                let (reply, regs) = calls::pool_drain(handle, 8);
                if !reply.is_success() || reply.done == 0 || drained.remaining_capacity() < 8 {
                    break;
                }
                drained.extend((0..reply.done as usize).map(|index| regs.x(4 + index)));
            }
        }
        let (_, regs) = calls::pool_info(vm.handle);
        check_eq!(regs.x(4), 0, "free pages of the VM's pool");
        vm.share(host, FREE_GFN, 4)?;
        for gfn in FREE_GFN..FREE_GFN + 4 {
            check!(memory::is_filled(vm.frame(gfn), 0xf7), "the host's touch of page {}", gfn - FREE_GFN);
        }
        for gfn in FREE_GFN..FREE_GFN + 4 {
            check_eq!(calls::host_unmap(vm.frame(gfn), 1), Reply::done(1));
        }
        check_eq!(vm.call(host, command::UNSHARE, &[FREE_GFN * PAGE_SIZE, 4, 0])?, Reply::done(4));
        for pfn in &drained {
            vm::came_back(*pfn)?;
            // What was the VM's is in its list of frames to look for; what was the host's goes back to it.
            if !vm.pool_frames().any(|frame| frame == *pfn) {
                check_eq!(calls::pool_topup(0, *pfn, 1), Reply::done(1));
            }
        }
        Ok(())
    })
}

/// C2: the guest shares an address far from all others; a table is missing; the host is asked, the call is executed again.
fn a_guest_call_that_needs_a_table_waits_for_it(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        while calls::pool_info(vm.handle).1.x(4) > 0 {
            check!(calls::pool_drain(vm.handle, 1).0.is_success());
        }
        let far = vm::RAM_GFN + vm::RAM_PAGES - 3;
        let before = vm.exits[exit::TABLES as usize];
        let Event::Idle(results) = vm.order(host, command::SHARE, &[far * PAGE_SIZE, 1])? else {
            fail!("another exit")
        };
        check_eq!(vm::reply_of(results)?, Reply::done(1));
        check_eq!(vm.exits[exit::TABLES as usize], before + 1, "TABLES exits");
        let (_, regs) = calls::query_guest(vm.handle, far, 0);
        check_eq!(regs.x(6), status::SHARED);
        Ok(())
    })
}
