//! The longest single entry to EL2 that the host can cause or meet: every call timed by itself.

use tenure_abi::flags::{pin, status, vm as vm_flags};
use tenure_abi::{MAX_ATOMIC_PAGES, PAGE_SIZE, Reply, Status, exit};
use tenure_test_hosts::vm::{Event, FREE_GFN, Vm, take};
use tenure_test_hosts::{Host, calls, memory};
use tenure_test_protocol::command;
use tenure_test_rt::harness::{self, Failure};
use tenure_test_rt::{check, check_eq, cpu, fail, probe};

use crate::{Clock, Measured, Watch, instructions};

/// Calls that can yield, each over as many pages as it will take at once.
pub fn run(host: &mut Host, clock: Clock) {
    let mut longest = 0;
    instructions("longest_donate_call", || {
        let (tenths, _) = donate_and_destroy(host, clock)?;
        longest = longest.max(tenths.tenths);
        Ok(tenths)
    });
    instructions("longest_destroy_call", || {
        let (_, tenths) = donate_and_destroy(host, clock)?;
        longest = longest.max(tenths.tenths);
        Ok(tenths)
    });
    if longest > 0 {
        instructions("longest_host_call", || Ok(Measured { tenths: longest, steps: 1 }));
    }
    instructions("consent_of_512_host_leaves", || consent_of_512(host, clock));
    harness::run("bench", "calls_that_tell_much", || {
        let pfn = take(host, 1, 1)?;
        let frames = host.frames.range();
        check!(calls::count(frames.start, frames.end - frames.start).0.done > 0);
        check!(calls::log_read(0, pfn).0.is_success() && calls::trace_read(0, pfn).0.is_success());
        host.frames.give(pfn, 1);
        Ok(())
    });
    instructions("longest_reset_call", || reset(host, clock));
}

/// The sweep of a reset, over a block all of whose pages are pinned, and one that is to be merged with 64 pages in quarantine.
fn reset(host: &mut Host, clock: Clock) -> Result<Measured, Failure> {
    const ALL: u64 = MAX_ATOMIC_PAGES;
    const HELD: u64 = 64;
    let pinned = take(host, ALL as usize, ALL as usize)?;
    check_eq!(calls::pin(pinned, ALL, pin::CPU), Reply::done(ALL));
    let mut vm = Vm::new(host, vm_flags::PROTECTED)?;
    vm.boot(host)?;
    vm.fill(host, FREE_GFN, HELD, 3)?;
    vm.share(host, FREE_GFN, HELD)?;
    let held: arrayvec::ArrayVec<u64, 64> = (0..HELD).map(|index| vm.frame(FREE_GFN + index)).collect();
    for (index, pfn) in (0..).zip(&held) {
        check_eq!(calls::pin(*pfn, 1, pin::CPU), Reply::done(1));
        vm.disown(FREE_GFN + index);
    }
    vm.destroy(host)?;
    let (mut longest, mut next, mut finished) = (0, 0, false);
    while !finished {
        let start = cpu::counter();
        let (reply, regs) = calls::host_reset(next);
        longest = longest.max(cpu::counter().wrapping_sub(start));
        check!(matches!(reply.status, Status::Success | Status::Retry), "HOST_RESET: {reply}");
        (next, finished) = (regs.x(5), regs.x(4) == 1);
    }
    host.reset()?;
    held.iter().for_each(|pfn| host.frames.give(*pfn, 1));
    host.frames.give(pinned, ALL as usize);
    Ok(clock.per_step(longest, 1))
}

/// The longest of the DONATE calls of 1024 pages, and of the VM_DESTROY calls after it.
fn donate_and_destroy(host: &mut Host, clock: Clock) -> Result<(Measured, Measured), Failure> {
    const PAGES: u64 = 1024;
    let mut vm = Vm::new(host, vm_flags::PROTECTED)?;
    vm.top_up(host, 8)?;
    let pfn = take(host, PAGES as usize, 1)?;
    let (mut done, mut donate) = (0, 0);
    while done < PAGES {
        let start = cpu::counter();
        let reply = calls::donate(vm.handle, FREE_GFN + done, pfn + done, PAGES - done, status::PRIVATE);
        donate = donate.max(cpu::counter().wrapping_sub(start));
        check!(reply.is_success() && reply.done > 0, "DONATE: {reply}");
        (done..done + reply.done).for_each(|index| vm.donate_noted(FREE_GFN + index, pfn + index));
        done += reply.done;
    }
    let mut destroy = 0;
    let mut finished = false;
    while !finished {
        let start = cpu::counter();
        let (reply, regs) = calls::vm_destroy(vm.handle);
        destroy = destroy.max(cpu::counter().wrapping_sub(start));
        check!(matches!(reply.status, Status::Success | Status::Retry), "VM_DESTROY: {reply}");
        finished = reply.is_success() && regs.x(4) == 1;
    }
    vm.collect(host)?;
    Ok((clock.per_step(donate, 1), clock.per_step(destroy, 1)))
}

/// One all-or-nothing conversion of 512 pages whose host leaves EL2 drops itself.
fn consent_of_512(host: &mut Host, clock: Clock) -> Result<Measured, Failure> {
    let mut vm = Vm::new(host, vm_flags::PROTECTED)?;
    let outcome = (|| {
        vm.boot(host)?;
        vm.fill(host, FREE_GFN, MAX_ATOMIC_PAGES, 3)?;
        vm.share(host, FREE_GFN, MAX_ATOMIC_PAGES)?;
        for index in 0..MAX_ATOMIC_PAGES {
            check!(!probe::read(memory::address(vm.frame(FREE_GFN + index))).faulted());
        }
        let event = vm.order(host, command::UNSHARE, &[FREE_GFN * PAGE_SIZE, MAX_ATOMIC_PAGES, 0])?;
        let Event::Exit(page) = event else { fail!("the host was not asked: {event:x?}") };
        check_eq!(page.reason, exit::CONVERT);
        let watch = Watch::start();
        let reply = calls::consent(vm.handle, 0, page.sequence);
        let ticks = watch.ticks();
        check_eq!(reply, Reply::done(MAX_ATOMIC_PAGES));
        vm.resume(host)?;
        Ok(clock.per_step(ticks, 1))
    })();
    vm.destroy(host)?;
    outcome
}
