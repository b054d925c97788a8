//! Pins: what they refuse, draining, revoking.

use tenure_abi::flags::{pin, unshare, vm as vm_flags};
use tenure_abi::page::{self, State};
use tenure_abi::{NO_INDEX, PAGE_SIZE, Reply, Status, call, exit, info, reply};
use tenure_test_hosts::vm::{self, Event, FREE_GFN, Vm, with_guest};
use tenure_test_hosts::{Host, calls, memory};
use tenure_test_protocol::command;
use tenure_test_rt::call::hvc;
use tenure_test_rt::harness::{Failure, TestResult};
use tenure_test_rt::probe::{self, Outcome, Road};
use tenure_test_rt::{check, check_eq, fail};

crate::tests!(
    unshare_of_a_pinned_page_is_busy,
    unshare_of_a_dma_pinned_page_names_dma,
    a_range_with_index_2_pinned_changes_nothing,
    pins_are_counted_and_never_wrap,
    drain_answers_pending_and_the_last_unpin_completes,
    drain_with_wait_parks_the_vcpu,
    draining_takes_no_new_pin,
    a_holder_may_touch_first_while_it_drains,
    share_cancels_a_drain,
    the_last_unpin_of_two_completes,
    revoke_needs_the_right,
    revoke_leaves_the_host_a_scrap_page,
    revoke_is_refused_under_a_dma_pin,
    revoke_while_it_drains,
    scrap_ends_with_unmap,
);

const IPA: u64 = FREE_GFN * PAGE_SIZE;
const REVOKER: u64 = vm_flags::PROTECTED | vm_flags::RIGHT_REVOKE;

/// `count` pages shared at FREE_GFN, of the given contents.
fn shared(host: &mut Host, vm: &mut Vm, count: u64, value: u64) -> Result<u64, Failure> {
    vm.fill(host, FREE_GFN, count, value)?;
    vm.share(host, FREE_GFN, count)?;
    Ok(vm.frame(FREE_GFN))
}

fn unshare_with(host: &mut Host, vm: &mut Vm, count: u64, flags: u64) -> Result<Reply, Failure> {
    vm.call(host, command::UNSHARE, &[IPA, count, flags])
}

/// Scenario 3.
fn unshare_of_a_pinned_page_is_busy(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let pfn = shared(host, vm, 1, 0xd0)?;
        check_eq!(probe::read(memory::address(pfn)), Outcome::Value(0xd0));
        check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
        check_eq!(calls::host_unmap(pfn, 1), Reply::done(1));
        let word = calls::word(pfn);
        check_eq!(unshare_with(host, vm, 1, 0)?, Reply::blocked(Status::Busy, 0, reply::CPU_PIN));
        check_eq!(calls::word(pfn), word, "the word after a refusal");
        check!(memory::fill(pfn, 0xd1), "the holder's access");
        let mask = reply::CPU_PIN | reply::HOST_LEAF;
        check_eq!(unshare_with(host, vm, 1, 0)?, Reply::blocked(Status::Busy, 0, mask), "pinned and mapped");
        check_eq!(calls::host_unmap(pfn, 1), Reply::done(1));
        let (reply, regs) = calls::unpin(pfn, 1, pin::CPU);
        check!(reply.is_success() && regs.x(4) == 0 && regs.x(5) == 0, "UNPIN: {reply}");
        check_eq!(unshare_with(host, vm, 1, 0)?, Reply::done(1));
        vm.expect(host, FREE_GFN, 1, 0xd1)
    })
}

fn unshare_of_a_dma_pinned_page_names_dma(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let pfn = shared(host, vm, 1, 1)?;
        check_eq!(calls::pin(pfn, 1, pin::DMA), Reply::done(1));
        check_eq!(unshare_with(host, vm, 1, 0)?, Reply::blocked(Status::Busy, 0, reply::DMA_PIN));
        check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
        check_eq!(
            unshare_with(host, vm, 1, 0)?,
            Reply::blocked(Status::Busy, 0, reply::DMA_PIN | reply::CPU_PIN)
        );
        check!(calls::unpin(pfn, 1, pin::DMA).0.is_success());
        check!(calls::unpin(pfn, 1, pin::CPU).0.is_success());
        check_eq!(unshare_with(host, vm, 1, 0)?, Reply::done(1));
        Ok(())
    })
}

/// Scenario 11.
fn a_range_with_index_2_pinned_changes_nothing(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        shared(host, vm, 4, 0xd2)?;
        let pinned = vm.frame(FREE_GFN + 2);
        check_eq!(calls::pin(pinned, 1, pin::CPU), Reply::done(1));
        check_eq!(unshare_with(host, vm, 4, 0)?, Reply::blocked(Status::Busy, 2, reply::CPU_PIN));
        for gfn in FREE_GFN..FREE_GFN + 4 {
            check_eq!(calls::state(vm.frame(gfn)), Some(State::Shared), "page {}", gfn - FREE_GFN);
            check_eq!(page::HOST_LEAF.get(calls::word(vm.frame(gfn))), 0);
            check!(memory::is_filled(vm.frame(gfn), 0xd2), "the host's view of page {}", gfn - FREE_GFN);
            check_eq!(calls::host_unmap(vm.frame(gfn), 1), Reply::done(1));
        }
        for index in [0, 1, 3] {
            let reply = vm.call(host, command::UNSHARE, &[IPA + index * PAGE_SIZE, 1, 0])?;
            check_eq!(reply, Reply::done(1), "page {index} alone");
        }
        check_eq!(unshare_with(host, vm, 4, 0)?, Reply::blocked(Status::Busy, 2, reply::CPU_PIN));
        check!(calls::unpin(pinned, 1, pin::CPU).0.is_success());
        check_eq!(unshare_with(host, vm, 4, 0)?, Reply::done(4));
        vm.expect(host, FREE_GFN, 4, 0xd2)
    })
}

/// S4.
fn pins_are_counted_and_never_wrap(host: &mut Host) -> TestResult {
    let pfn = vm::take(host, 1, 1)?;
    for (kind, field) in [(pin::CPU, page::CPU_PINS), (pin::DMA, page::DMA_PINS)] {
        let mut count = 0;
        loop {
            let reply = calls::pin(pfn, 1, kind);
            if !reply.is_success() {
                check_eq!(reply.mask, reply::COUNT_LIMIT, "{reply}");
                check_eq!(reply.first, 0);
                break;
            }
            count += 1;
            check!(count <= field.max(), "more pins than the field holds");
        }
        check_eq!(field.get(calls::word(pfn)), count);
        check!(count >= field.max() / 2, "only {count} pins");
        for left in (0..count).rev() {
            check!(calls::unpin(pfn, 1, kind).0.is_success());
            check_eq!(field.get(calls::word(pfn)), left);
        }
        let (reply, _) = calls::unpin(pfn, 1, kind);
        check!(!reply.is_success(), "UNPIN without a pin: {reply}");
        check_eq!(field.get(calls::word(pfn)), 0);
    }
    // A range of which one page has no pin: it stops there, and says so.
    host.frames.give(pfn, 1);
    let four = vm::take(host, 4, 1)?;
    check_eq!(calls::pin(four, 3, pin::CPU), Reply::done(3));
    let (reply, _) = calls::unpin(four, 4, pin::CPU);
    check!(
        !reply.is_success() && (reply.done, reply.first) == (3, 3),
        "UNPIN of a range with a hole: {reply}"
    );
    for index in 0..4 {
        check_eq!(page::CPU_PINS.get(calls::word(four + index)), 0, "page {index}");
    }
    host.frames.give(four, 4);
    Ok(())
}

/// U6.
fn drain_answers_pending_and_the_last_unpin_completes(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let pfn = shared(host, vm, 1, 0xd3)?;
        check!(memory::is_filled(pfn, 0xd3));
        check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
        let reply = unshare_with(host, vm, 1, unshare::DRAIN)?;
        check_eq!(reply.status, Status::Pending, "{reply}");
        check_eq!(calls::state(pfn), Some(State::Draining));
        let reply = unshare_with(host, vm, 1, 0)?;
        check_eq!((reply.status, reply.first), (Status::Pending, 0), "while it drains");
        check!(memory::is_filled(pfn, 0xd3), "the holder's access while it drains");
        let (reply, regs) = calls::unpin(pfn, 1, pin::CPU);
        check!(reply.is_success(), "UNPIN: {reply}");
        check_eq!((regs.x(4), regs.x(6)), (1, 0), "drained, came back");
        check_eq!(calls::state(pfn), Some(State::Private));
        // The host's own mapping stood: no hole, no guest byte.
        let what = probe::read(memory::address(pfn));
        check!(what == Outcome::Value(0) || what.faulted(), "{what:x?}");
        check_eq!(unshare_with(host, vm, 1, 0)?, Reply::done(1));
        vm.expect(host, FREE_GFN, 1, 0xd3)
    })
}

fn drain_with_wait_parks_the_vcpu(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let pfn = shared(host, vm, 1, 0xd4)?;
        check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
        let event = vm.order(host, command::UNSHARE, &[IPA, 1, unshare::DRAIN | unshare::WAIT])?;
        let Event::Exit(page) = event else { fail!("the guest did not wait: {event:x?}") };
        check_eq!((page.reason, page.gpa), (exit::DRAIN, IPA));
        check_eq!(page::WAITER.get(calls::word(pfn)), 1);
        // Run too early: it waits on.
        let Event::Exit(page) = vm.run(host)? else { fail!("the guest ran on while the page is pinned") };
        check_eq!(page.reason, exit::DRAIN);
        let (reply, regs) = calls::unpin(pfn, 1, pin::CPU);
        check!(reply.is_success(), "UNPIN: {reply}");
        check_eq!((regs.x(4), regs.x(5)), (1, vm.handle), "drained, VM to wake");
        check_eq!(page::WAITER.get(calls::word(pfn)), 0);
        check_eq!(vm::reply_of(vm.resume(host)?)?, Reply::done(1));
        check_eq!(calls::state(pfn), Some(State::Private));
        vm.expect(host, FREE_GFN, 1, 0xd4)
    })
}

/// S5.
fn draining_takes_no_new_pin(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let pfn = shared(host, vm, 1, 1)?;
        check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
        check_eq!(unshare_with(host, vm, 1, unshare::DRAIN)?.status, Status::Pending);
        for kind in [pin::CPU, pin::DMA] {
            let reply = calls::pin(pfn, 1, kind);
            check!(!reply.is_success(), "PIN of kind {kind} while it drains: {reply}");
        }
        check_eq!(page::CPU_PINS.get(calls::word(pfn)), 1);
        check!(calls::unpin(pfn, 1, pin::CPU).0.is_success());
        check_eq!(calls::state(pfn), Some(State::Private));
        Ok(())
    })
}

/// Scenario 26.
fn a_holder_may_touch_first_while_it_drains(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let pfn = shared(host, vm, 1, 0xd5)?;
        check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
        check_eq!(unshare_with(host, vm, 1, unshare::DRAIN)?.status, Status::Pending);
        check_eq!(page::HOST_LEAF.get(calls::word(pfn)), 0);
        check_eq!(probe::read(memory::address(pfn)), Outcome::Value(0xd5), "the first touch");
        check!(!probe::write(memory::address(pfn), 0xd6).faulted());
        check!(calls::unpin(pfn, 1, pin::CPU).0.is_success());
        check_eq!(calls::state(pfn), Some(State::Private));
        let results = vm.command(host, command::READ, &[IPA])?;
        check_eq!(results[1], 0xd6, "what the holder wrote");
        Ok(())
    })
}

fn share_cancels_a_drain(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let pfn = shared(host, vm, 1, 0xd7)?;
        check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
        check_eq!(unshare_with(host, vm, 1, unshare::DRAIN)?.status, Status::Pending);
        vm.share(host, FREE_GFN, 1)?;
        check_eq!(calls::state(pfn), Some(State::Shared));
        check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1), "a new pin");
        for _ in 0..2 {
            let (reply, regs) = calls::unpin(pfn, 1, pin::CPU);
            check!(reply.is_success() && regs.x(4) == 0, "UNPIN: {reply}, {} drained", regs.x(4));
        }
        check_eq!(calls::state(pfn), Some(State::Shared));
        vm.expect(host, FREE_GFN, 1, 0xd7)
    })
}

fn the_last_unpin_of_two_completes(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let pfn = shared(host, vm, 1, 1)?;
        check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
        check_eq!(calls::pin(pfn, 1, pin::DMA), Reply::done(1));
        check_eq!(unshare_with(host, vm, 1, unshare::DRAIN)?.status, Status::Pending);
        let (_, regs) = calls::unpin(pfn, 1, pin::CPU);
        check_eq!(regs.x(4), 0);
        check_eq!(calls::state(pfn), Some(State::Draining));
        let (_, regs) = calls::unpin(pfn, 1, pin::DMA);
        check_eq!(regs.x(4), 1);
        check_eq!(calls::state(pfn), Some(State::Private));
        let (reply, _) = calls::unpin(pfn, 1, pin::DMA);
        check!(!reply.is_success(), "UNPIN of a private page: {reply}");
        Ok(())
    })
}

fn revoke_needs_the_right(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let pfn = shared(host, vm, 1, 1)?;
        check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
        let reply = unshare_with(host, vm, 1, unshare::REVOKE)?;
        check!(!reply.is_success(), "{reply}");
        check_eq!(calls::state(pfn), Some(State::Shared));
        check!(calls::unpin(pfn, 1, pin::CPU).0.is_success());
        Ok(())
    })
}

/// U9, scenario 4.
fn revoke_leaves_the_host_a_scrap_page(host: &mut Host) -> TestResult {
    with_guest(host, REVOKER, |host, vm| {
        let pfn = shared(host, vm, 1, 0xd8)?;
        check!(memory::is_filled(pfn, 0xd8));
        check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
        let before = calls::figure(info::SCRAP_TOUCHES);
        check_eq!(unshare_with(host, vm, 1, unshare::REVOKE)?, Reply::done(1));
        check_eq!(calls::state(pfn), Some(State::Private));
        check!(memory::is_filled(pfn, 0), "the host reads something else than zeros");
        check!(calls::figure(info::SCRAP_TOUCHES) > before, "the redirection was not counted");
        check!(!probe::write(memory::address(pfn), 0xbad).faulted(), "the host's write faults");
        check!(
            probe::touch(Road::Execute, memory::address(pfn), 0).faulted(),
            "the scrap frame is executable"
        );
        vm.expect(host, FREE_GFN, 1, 0xd8)?;
        let (reply, _) = calls::unpin(pfn, 1, pin::CPU);
        check!(reply.is_success(), "UNPIN after REVOKE: {reply}");
        Ok(())
    })
}

fn revoke_is_refused_under_a_dma_pin(host: &mut Host) -> TestResult {
    with_guest(host, REVOKER, |host, vm| {
        let pfn = shared(host, vm, 1, 0xd9)?;
        check_eq!(calls::pin(pfn, 1, pin::DMA), Reply::done(1));
        let reply = unshare_with(host, vm, 1, unshare::REVOKE)?;
        check_eq!((reply.status, reply.mask & reply::DMA_PIN), (Status::Busy, reply::DMA_PIN), "{reply}");
        check_eq!(calls::state(pfn), Some(State::Shared));
        check!(memory::is_filled(pfn, 0xd9));
        check!(calls::unpin(pfn, 1, pin::DMA).0.is_success());
        Ok(())
    })
}

/// DRAIN together with REVOKE drains; a later REVOKE revokes.
fn revoke_while_it_drains(host: &mut Host) -> TestResult {
    with_guest(host, REVOKER, |host, vm| {
        let pfn = shared(host, vm, 1, 0xda)?;
        check!(memory::is_filled(pfn, 0xda));
        check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
        let reply = unshare_with(host, vm, 1, unshare::DRAIN | unshare::REVOKE)?;
        check_eq!(reply.status, Status::Pending, "{reply}");
        check_eq!(calls::state(pfn), Some(State::Draining));
        check_eq!(unshare_with(host, vm, 1, unshare::REVOKE)?, Reply::done(1));
        check_eq!(calls::state(pfn), Some(State::Private));
        check!(memory::is_filled(pfn, 0), "the host reads something else than zeros");
        let (reply, regs) = calls::unpin(pfn, 1, pin::CPU);
        check!(reply.is_success() && regs.x(4) == 0, "UNPIN: {reply}, {} drained", regs.x(4));
        vm.expect(host, FREE_GFN, 1, 0xda)
    })
}

fn scrap_ends_with_unmap(host: &mut Host) -> TestResult {
    with_guest(host, REVOKER, |host, vm| {
        let pfn = shared(host, vm, 1, 0xdb)?;
        check!(memory::is_filled(pfn, 0xdb));
        check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
        check_eq!(unshare_with(host, vm, 1, unshare::REVOKE)?, Reply::done(1));
        check!(memory::is_filled(pfn, 0));
        check!(calls::unpin(pfn, 1, pin::CPU).0.is_success());
        let reply = hvc(call::HOST_UNMAP, &[pfn, 1]).reply();
        check_eq!(reply, Reply { status: Status::Success, done: 1, first: NO_INDEX, mask: 0 });
        check_eq!(page::SCRAP.get(calls::word(pfn)), 0);
        check!(probe::read(memory::address(pfn)).faulted(), "a hole is a hole again");
        // Shared again, it is the guest's page that the host sees.
        vm.share(host, FREE_GFN, 1)?;
        check!(memory::is_filled(pfn, 0xdb));
        Ok(())
    })
}
