//! Lives of VMs: what is given comes back.

use tenure_abi::flags::vm as vm_flags;
use tenure_abi::page::State;
use tenure_abi::{Status, info};
use tenure_test_hosts::totals::Totals;
use tenure_test_hosts::vm::{self, FREE_GFN, Vm, with_guest};
use tenure_test_hosts::{Host, calls, memory};
use tenure_test_rt::harness::TestResult;
use tenure_test_rt::{check, check_eq, fail};

crate::tests!(
    a_life_gives_every_page_back,
    ten_lives_leave_no_trace,
    a_vm_that_never_ran_gives_every_page_back,
    as_many_vms_as_promised,
    activation_needs_a_pool,
    pool_can_be_drained_and_is_scrubbed,
    measurement_tells_the_image,
);

fn a_life_gives_every_page_back(host: &mut Host) -> TestResult {
    let before = Totals::read()?;
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 8, 0x5ec7e7)?;
        vm.share(host, FREE_GFN, 2)?;
        let during = Totals::read()?;
        check!(during.states[State::Private as usize] > 0);
        check_eq!(during.states[State::Shared as usize], 2);
        Ok(())
    })?;
    check_eq!(Totals::read()?, before);
    Ok(())
}

fn ten_lives_leave_no_trace(host: &mut Host) -> TestResult {
    let before = Totals::read()?;
    for life in 0..10 {
        with_guest(host, vm_flags::PROTECTED, |host, vm| vm.fill(host, FREE_GFN, 4, life))?;
        check_eq!(Totals::read()?, before, "life {life}");
    }
    Ok(())
}

fn a_vm_that_never_ran_gives_every_page_back(host: &mut Host) -> TestResult {
    let before = Totals::read()?;
    let mut vm = Vm::new(host, vm_flags::PROTECTED)?;
    vm.destroy(host)?;
    check_eq!(Totals::read()?, before);
    Ok(())
}

fn as_many_vms_as_promised(_: &mut Host) -> TestResult {
    let before = Totals::read()?;
    let promised = calls::figure(info::MAX_VMS);
    let mut handles = arrayvec::ArrayVec::<u64, 300>::new();
    let last = loop {
        let (reply, regs) = calls::vm_create(vm_flags::PROTECTED);
        if !reply.is_success() || handles.is_full() {
            break reply;
        }
        handles.push(regs.x(4));
    };
    for handle in &handles {
        vm::destroy(*handle)?;
    }
    check_eq!(handles.len() as u64, promised);
    check!(matches!(last.status, Status::Busy | Status::NoMemory | Status::Denied), "one more: {last}");
    check_eq!(Totals::read()?, before);
    Ok(())
}

fn activation_needs_a_pool(_: &mut Host) -> TestResult {
    let (reply, regs) = calls::vm_create(vm_flags::PROTECTED);
    check!(reply.is_success());
    let handle = regs.x(4);
    let activated = calls::vm_activate(handle);
    vm::destroy(handle)?;
    check_eq!(activated.status, Status::NoMemory);
    Ok(())
}

fn pool_can_be_drained_and_is_scrubbed(host: &mut Host) -> TestResult {
    let (reply, regs) = calls::vm_create(vm_flags::PROTECTED);
    check!(reply.is_success());
    let handle = regs.x(4);
    let pfn = vm::take(host, 8, 1)?;
    for frame in pfn..pfn + 8 {
        check!(memory::fill(frame, 0x1111));
    }
    check_eq!(calls::pool_topup(handle, pfn, 8).done, 8);
    for frame in pfn..pfn + 8 {
        check_eq!(calls::state(frame), Some(State::Hyp));
    }
    let (_, regs) = calls::pool_info(handle);
    check_eq!((regs.x(4), regs.x(5)), (8, 8));
    let (reply, regs) = calls::pool_drain(handle, 3);
    check!(reply.is_success() && reply.done == 3, "POOL_DRAIN: {reply}");
    for index in 0..3 {
        check!((pfn..pfn + 8).contains(&regs.x(4 + index)), "frame {:#x}", regs.x(4 + index));
        vm::came_back(regs.x(4 + index))?;
    }
    vm::destroy(handle)?;
    for frame in pfn..pfn + 8 {
        vm::came_back(frame)?;
    }
    host.frames.give(pfn, 8);
    Ok(())
}

/// Two VMs of the same image measure alike, one with another status of a page does not; never zero.
fn measurement_tells_the_image(host: &mut Host) -> TestResult {
    use tenure_abi::flags::status;
    use tenure_test_protocol::command;
    let mut sums = [[0u64; 4]; 3];
    for (turn, sum) in sums.iter_mut().enumerate() {
        let mut vm = Vm::new(host, vm_flags::PROTECTED)?;
        let outcome = (|| {
            if turn == 2 {
                vm.set_status(host, FREE_GFN, 1, status::SHARED)?;
            }
            vm.boot(host)?;
            let [r0, _, _, _, x4] =
                vm.command(host, command::HVC, &[tenure_abi::guest::MEASUREMENT, 0, 0, 0, 0, 0])?;
            check_eq!(r0, 0, "MEASUREMENT");
            let [x5, x6, x7, ..] = vm.command(host, command::MORE, &[])?;
            *sum = [x4, x5, x6, x7];
            Ok(())
        })();
        vm.destroy(host)?;
        outcome?;
    }
    let [first, second, third] = sums;
    if first == [0; 4] {
        fail!("the measurement is zero");
    }
    check_eq!(first, second);
    check!(first != third, "another layout measures alike");
    Ok(())
}
