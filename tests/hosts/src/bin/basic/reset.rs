//! The end of the host's world, and what the next kernel finds.

use tenure_abi::flags::{pin, unshare, vm as vm_flags};
use tenure_abi::page::State;
use tenure_abi::{PAGE_SIZE, Reply, Status, call, info};
use tenure_test_hosts::totals::Totals;
use tenure_test_hosts::vm::{self, FREE_GFN, Vm};
use tenure_test_hosts::{Host, calls, memory};
use tenure_test_protocol::command;
use tenure_test_rt::call::hvc;
use tenure_test_rt::harness::TestResult;
use tenure_test_rt::probe;
use tenure_test_rt::{check, check_eq};

crate::tests!(
    host_reset_destroys_all,
    nothing_of_the_old_kernel_is_left,
    the_sweep_begins_again_where_a_vm_is_found,
    a_place_that_is_none_is_refused,
    a_reset_ends_panic_mode,
);

fn host_reset_destroys_all(host: &mut Host) -> TestResult {
    let mut vm = Vm::new(host, vm_flags::PROTECTED)?;
    let outcome = vm.boot(host).and_then(|()| vm.fill(host, FREE_GFN, 16, 0xaaaa));
    let mut other = Vm::new(host, 0)?;
    outcome?;
    check!(host.reset()? > 0, "the reset did nothing");
    for vm in [&mut vm, &mut other] {
        let (reply, _) = calls::vcpu_run(vm.handle, 0);
        check!(!reply.is_success(), "a VM outlives HOST_RESET");
        vm.collect(host)?;
    }
    Ok(())
}

/// B5: no pin, no quarantine, no page in a pool; each page can be given away at once, as by a kernel that knows of nothing.
fn nothing_of_the_old_kernel_is_left(host: &mut Host) -> TestResult {
    host.reset()?;
    let clean = Totals::read()?;
    let mut vm = Vm::new(host, vm_flags::PROTECTED)?;
    vm.boot(host)?;
    vm.fill(host, FREE_GFN, 3, 0xdead)?;
    vm.share(host, FREE_GFN, 3)?;
    let first = vm.frame(FREE_GFN);
    let pages = [first, vm.frame(FREE_GFN + 1), vm.frame(FREE_GFN + 2)];
    for (pfn, kind) in pages.into_iter().zip([pin::CPU, pin::DMA, pin::CPU]) {
        check_eq!(calls::pin(pfn, 1, kind), Reply::done(1));
    }
    check_eq!(calls::pin(first, 1, pin::DMA), Reply::done(1));
    vm.order(host, command::UNSHARE, &[(FREE_GFN + 2) * PAGE_SIZE, 1, unshare::DRAIN | unshare::WAIT])?;
    check_eq!(calls::state(pages[2]), Some(State::Draining));
    (0..3).for_each(|page| vm.disown(FREE_GFN + page));
    vm.destroy(host)?;
    for pfn in pages {
        check_eq!(calls::state(pfn), Some(State::Quarantine));
        check!(memory::fill(pfn, 0x401d), "a holder's access");
    }
    // Pins of pages that never left the host, and pages that it lent.
    let mine = vm::take(host, 4, 1)?;
    check_eq!(calls::pin(mine, 4, pin::CPU), Reply::done(4));
    check_eq!(calls::pin(mine, 2, pin::DMA), Reply::done(2));
    host.top_up()?;
    // A VM whose vCPU has its run page pinned by the hypervisor.
    let mut other = Vm::new(host, vm_flags::PROTECTED)?;
    other.boot(host)?;

    host.reset()?;
    check_eq!(Totals::read()?, clean);
    for pfn in pages {
        vm::came_back(pfn)?;
        host.frames.give(pfn, 1);
    }
    host.frames.give(mine, 4);
    other.collect(host)?;
    let words = calls::figure(info::FIRST_PFN)..calls::figure(info::END_PFN);
    let pinned = words.clone().find(|pfn| {
        let word = calls::word(*pfn);
        let pins = [tenure_abi::page::CPU_PINS, tenure_abi::page::DMA_PINS, tenure_abi::page::HYP_PINS];
        pins.iter().any(|field| field.get(word) != 0)
    });
    check_eq!(pinned, None, "a pin is left");
    check!(calls::unpin(first, 1, pin::CPU).0.status == Status::Denied, "a pin that was forgotten ends");
    // The next kernel gives them to a guest of its own.
    let (reply, regs) = calls::vm_create(0);
    check!(reply.is_success(), "VM_CREATE: {reply}");
    check_eq!(calls::pool_topup(regs.x(4), mine, 4), Reply::done(4));
    vm::destroy(regs.x(4))?;
    check_eq!(host.reset()?, 0, "a second reset finds something");
    Ok(())
}

/// What a VM leaves behind the sweep is not forgotten.
fn the_sweep_begins_again_where_a_vm_is_found(host: &mut Host) -> TestResult {
    let frames = calls::figure(info::END_PFN) - calls::figure(info::FIRST_PFN);
    let (reply, regs) = calls::host_reset(frames / 2);
    check_eq!(reply.status, Status::Retry);
    check!(regs.x(5) > frames / 2 && regs.x(4) == 0, "it goes on from {}", regs.x(5));
    let (reply, _) = calls::vm_create(0);
    check!(reply.is_success(), "VM_CREATE: {reply}");
    let (reply, regs) = calls::host_reset(frames / 2);
    check_eq!((reply.status, regs.x(5)), (Status::Retry, 0), "with a VM");
    host.reset()?;
    Ok(())
}

fn a_place_that_is_none_is_refused(host: &mut Host) -> TestResult {
    let frames = Totals::read()?.frames();
    let mut vm = Vm::new(host, 0)?;
    for from in [frames + 1, u64::MAX, 1 << 63] {
        let (reply, regs) = calls::host_reset(from);
        check_eq!((reply, regs.x(4)), (Reply::refused(Status::Invalid), 0), "from {from:#x}");
    }
    check!(calls::pool_info(vm.handle).0.is_success(), "a refused reset has killed a VM");
    vm.destroy(host)
}

/// A kernel that comes after a crash kernel has the machine as if nothing had been.
fn a_reset_ends_panic_mode(host: &mut Host) -> TestResult {
    let words = calls::figure(info::FIRST_PFN)..calls::figure(info::END_PFN);
    let own = words.clone().find(|pfn| {
        calls::state(*pfn) == Some(State::Hyp) && {
            let (_, regs) = calls::query(*pfn);
            regs.x(6) == 3
        }
    });
    let Some(own) = own else { tenure_test_rt::fail!("no page of the hypervisor's own has an entry") };
    check!(probe::read(memory::address(own)).faulted());
    check_eq!(hvc(call::PANIC_MODE, &[]).reply().status, Status::Success);
    check!(!probe::read(memory::address(own)).faulted(), "panic mode shows nothing");
    check!(host.reset()? > 0, "what was shown is not taken back");
    check!(probe::read(memory::address(own)).faulted(), "panic mode outlives a reset");
    Ok(())
}
