//! The end of a VM with pins outstanding.

use tenure_abi::flags::{pin, unshare, vm as vm_flags};
use tenure_abi::page::{self, State};
use tenure_abi::{PAGE_SIZE, Reply, Status};
use tenure_test_hosts::totals::Totals;
use tenure_test_hosts::vm::{self, FREE_GFN, Vm};
use tenure_test_hosts::{Host, calls, memory};
use tenure_test_protocol::command;
use tenure_test_rt::harness::TestResult;
use tenure_test_rt::{check, check_eq};

crate::tests!(
    a_pinned_page_outlives_its_vm_in_quarantine,
    a_draining_page_outlives_its_vm_in_quarantine,
    a_relinquished_pinned_page_waits_for_its_unpin,
    the_handle_is_never_valid_again,
    a_poisoned_frame_stays_out,
);

/// F4, scenario 9.
fn a_pinned_page_outlives_its_vm_in_quarantine(host: &mut Host) -> TestResult {
    let before = Totals::read()?;
    let mut vm = Vm::new(host, vm_flags::PROTECTED)?;
    vm.boot(host)?;
    vm.fill(host, FREE_GFN, 2, 0xdead)?;
    vm.share(host, FREE_GFN, 2)?;
    let (pinned, untouched) = (vm.frame(FREE_GFN), vm.frame(FREE_GFN + 1));
    check!(memory::is_filled(pinned, 0xdead));
    check_eq!(calls::pin(pinned, 1, pin::CPU), Reply::done(1));
    check_eq!(calls::pin(pinned, 1, pin::DMA), Reply::done(1));
    check_eq!(calls::pin(untouched, 1, pin::CPU), Reply::done(1));
    vm.disown(FREE_GFN);
    vm.disown(FREE_GFN + 1);
    vm.destroy(host)?;

    for pfn in [pinned, untouched] {
        check_eq!(calls::state(pfn), Some(State::Quarantine));
        check!(!calls::pin(pfn, 1, pin::CPU).is_success(), "PIN in quarantine");
        check!(!calls::pool_topup(0, pfn, 1).is_success(), "POOL_TOPUP of quarantine");
        // A holder must not fall into a hole.
        check!(memory::fill(pfn, 0x401d), "a holder's access");
    }
    let (reply, regs) = calls::unpin(pinned, 1, pin::CPU);
    check!(reply.is_success() && regs.x(6) == 0, "the first unpin: {reply}, {} back", regs.x(6));
    check_eq!(calls::state(pinned), Some(State::Quarantine));
    for (pfn, kind) in [(pinned, pin::DMA), (untouched, pin::CPU)] {
        let (reply, regs) = calls::unpin(pfn, 1, kind);
        check!(reply.is_success() && regs.x(6) == 1, "the last unpin: {reply}, {} back", regs.x(6));
        vm::came_back(pfn)?;
        host.frames.give(pfn, 1);
    }
    check_eq!(Totals::read()?, before);
    Ok(())
}

fn a_draining_page_outlives_its_vm_in_quarantine(host: &mut Host) -> TestResult {
    let before = Totals::read()?;
    let mut vm = Vm::new(host, vm_flags::PROTECTED)?;
    vm.boot(host)?;
    vm.fill(host, FREE_GFN, 1, 0xdead)?;
    vm.share(host, FREE_GFN, 1)?;
    let pfn = vm.frame(FREE_GFN);
    check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
    // The vCPU waits for the page when the VM dies.
    vm.order(host, command::UNSHARE, &[FREE_GFN * PAGE_SIZE, 1, unshare::DRAIN | unshare::WAIT])?;
    check_eq!(calls::state(pfn), Some(State::Draining));
    vm.disown(FREE_GFN);
    vm.destroy(host)?;
    check_eq!(calls::state(pfn), Some(State::Quarantine));
    check_eq!(page::WAITER.get(calls::word(pfn)), 0, "the waiter died");
    let (reply, regs) = calls::unpin(pfn, 1, pin::CPU);
    check!(reply.is_success(), "UNPIN: {reply}");
    check_eq!((regs.x(5), regs.x(6)), (0, 1), "VM to wake, came back");
    vm::came_back(pfn)?;
    host.frames.give(pfn, 1);
    check_eq!(Totals::read()?, before);
    Ok(())
}

fn a_relinquished_pinned_page_waits_for_its_unpin(host: &mut Host) -> TestResult {
    vm::with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, 0xdead)?;
        vm.share(host, FREE_GFN, 1)?;
        let pfn = vm.frame(FREE_GFN);
        check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
        check_eq!(vm.call(host, command::RELINQUISH, &[FREE_GFN * PAGE_SIZE, 1])?, Reply::done(1));
        check_eq!(calls::state(pfn), Some(State::Quarantine));
        vm.disown(FREE_GFN);
        vm.expect(host, FREE_GFN, 1, 0)?;
        check!(vm.frame(FREE_GFN) != pfn, "the same frame came again");
        let (reply, regs) = calls::unpin(pfn, 1, pin::CPU);
        check!(reply.is_success() && regs.x(6) == 1, "UNPIN: {reply}");
        vm::came_back(pfn)?;
        host.frames.give(pfn, 1);
        Ok(())
    })
}

fn the_handle_is_never_valid_again(host: &mut Host) -> TestResult {
    let mut seen = arrayvec::ArrayVec::<u64, 40>::new();
    for _ in 0..40 {
        let (reply, regs) = calls::vm_create(vm_flags::PROTECTED);
        check!(reply.is_success(), "VM_CREATE: {reply}");
        let handle = regs.x(4);
        check!(handle != 0 && !seen.contains(&handle), "the handle {handle:#x} came again");
        seen.push(handle);
        vm::destroy(handle)?;
        check_eq!(calls::vm_activate(handle).status, Status::Invalid, "a stale handle");
    }
    let _ = host;
    Ok(())
}

/// F5: final. Takes one frame of the machine out of use for the rest of the run.
fn a_poisoned_frame_stays_out(host: &mut Host) -> TestResult {
    let pfn = vm::take(host, 1, 1)?;
    let reply = calls::poison(pfn);
    check!(reply.is_success(), "POISON: {reply}");
    check_eq!(calls::state(pfn), Some(State::Poison));
    for (name, reply) in [
        ("PIN", calls::pin(pfn, 1, pin::CPU)),
        ("HOST_MAP", calls::host_map(pfn, 1)),
        ("POOL_TOPUP", calls::pool_topup(0, pfn, 1)),
        ("VCPU run page", calls::vcpu_create(0, 0, pfn)),
    ] {
        check!(!reply.is_success(), "{name} of a poisoned frame: {reply}");
    }
    check_eq!(calls::pin(pfn, 1, pin::CPU).status, Status::Poisoned);
    check_eq!(calls::poison(pfn).status, Status::Poisoned, "POISON again");
    check_eq!(calls::state(pfn), Some(State::Poison));
    Ok(())
}
