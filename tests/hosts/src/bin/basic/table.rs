//! S1: every state of a frame against every operation of the host that can be tried on it. A refused operation changes no
//! word.

use tenure_abi::flags::{pin, status, unshare, vm as vm_flags};
use tenure_abi::page::{self, State};
use tenure_abi::{PAGE_SIZE, Reply, Status};
use tenure_test_hosts::vm::{self, FREE_GFN, Vm, with_guest};
use tenure_test_hosts::{Host, calls};
use tenure_test_protocol::command;
use tenure_test_rt::harness::TestResult;
use tenure_test_rt::{check, check_eq};

crate::tests!(
    private_refuses_the_host,
    shared_refuses_what_it_must,
    shared_and_pinned_refuses_what_it_must,
    draining_refuses_the_host,
    hypervisor_refuses_the_host,
    host_frame_with_a_pin_cannot_be_given,
    address_status_is_the_guests_after_activation,
    donate_checks_address_and_frame,
);

/// A host operation on one frame at one guest address.
type Operation = (&'static str, fn(&Vm, u64) -> Reply);

const PIN_CPU: Operation = ("PIN CPU", |_, pfn| calls::pin(pfn, 1, pin::CPU));
const PIN_DMA: Operation = ("PIN DMA", |_, pfn| calls::pin(pfn, 1, pin::DMA));
const UNPIN: Operation = ("UNPIN CPU", |_, pfn| calls::unpin(pfn, 1, pin::CPU).0);
const UNPIN_DMA: Operation = ("UNPIN DMA", |_, pfn| calls::unpin(pfn, 1, pin::DMA).0);
const HOST_MAP: Operation = ("HOST_MAP", |_, pfn| calls::host_map(pfn, 1));
const POISON: Operation = ("POISON", |_, pfn| calls::poison(pfn));
const TOPUP_HOST: Operation = ("POOL_TOPUP of the host", |_, pfn| calls::pool_topup(0, pfn, 1));
const TOPUP_VM: Operation = ("POOL_TOPUP of the VM", |vm, pfn| calls::pool_topup(vm.handle, pfn, 1));
const DONATE_ELSEWHERE: Operation =
    ("DONATE elsewhere", |vm, pfn| calls::donate(vm.handle, FREE_GFN + 64, pfn, 1, status::PRIVATE));
const DONATE_SHARED: Operation =
    ("DONATE shared elsewhere", |vm, pfn| calls::donate(vm.handle, FREE_GFN + 64, pfn, 1, status::SHARED));
const DONATE_AGAIN: Operation =
    ("DONATE in its place", |vm, pfn| calls::donate(vm.handle, FREE_GFN, pfn, 1, status::PRIVATE));
const MAP_ELSEWHERE: Operation = ("GUEST_MAP", |vm, pfn| calls::guest_map(vm.handle, FREE_GFN + 64, pfn, 1));
const RECLAIM: Operation = ("RECLAIM", |vm, pfn| calls::reclaim(vm.handle, pfn, 1));
const GUEST_UNMAP: Operation = ("GUEST_UNMAP", |vm, _| calls::guest_unmap(vm.handle, FREE_GFN, 1));
const SET_SHARED: Operation =
    ("SET_STATUS shared", |vm, _| calls::set_status(vm.handle, FREE_GFN, 1, status::SHARED));
const SET_PRIVATE: Operation =
    ("SET_STATUS private", |vm, _| calls::set_status(vm.handle, FREE_GFN, 1, status::PRIVATE));
const SET_DEVICE: Operation =
    ("SET_STATUS device", |vm, _| calls::set_status(vm.handle, FREE_GFN, 1, status::DEVICE));
const CONVERT_SHARED: Operation =
    ("CONVERT to shared", |vm, _| calls::convert(vm.handle, FREE_GFN, 1, status::SHARED));
const CONVERT_PRIVATE: Operation =
    ("CONVERT to private", |vm, _| calls::convert(vm.handle, FREE_GFN, 1, status::PRIVATE));

/// Tries operations that must be refused; the frame's word must stay (its version apart).
fn all_refused(vm: &Vm, pfn: u64, operations: &[(Operation, &[Status])]) -> TestResult {
    let same = |word: u64| page::VERSION.set(word, 0);
    for ((name, operation), allowed) in operations {
        let before = calls::word(pfn);
        let reply = operation(vm, pfn);
        check!(allowed.contains(&reply.status), "{name} gives {reply}, not {allowed:?}");
        check!(reply.done == 0, "{name} did {} pages", reply.done);
        check_eq!(same(calls::word(pfn)), same(before), "the word after {name}");
    }
    Ok(())
}

const DENIED: &[Status] = &[Status::Denied];
const DENIED_OR_INVALID: &[Status] = &[Status::Denied, Status::Invalid];

fn private_refuses_the_host(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, 0x1)?;
        let pfn = vm.frame(FREE_GFN);
        all_refused(
            vm,
            pfn,
            &[
                (PIN_CPU, DENIED),
                (PIN_DMA, DENIED),
                (UNPIN, DENIED_OR_INVALID),
                (UNPIN_DMA, DENIED_OR_INVALID),
                (HOST_MAP, DENIED),
                (POISON, DENIED),
                (TOPUP_HOST, DENIED),
                (TOPUP_VM, DENIED),
                (DONATE_ELSEWHERE, DENIED),
                (DONATE_SHARED, DENIED),
                (DONATE_AGAIN, DENIED),
                (MAP_ELSEWHERE, DENIED),
                (RECLAIM, DENIED),
                (GUEST_UNMAP, DENIED),
                (SET_SHARED, DENIED),
                (SET_PRIVATE, DENIED),
                (SET_DEVICE, DENIED),
                (CONVERT_SHARED, DENIED),
                (CONVERT_PRIVATE, DENIED),
            ],
        )?;
        vm.expect(host, FREE_GFN, 1, 0x1)
    })
}

fn shared_refuses_what_it_must(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, 0x2)?;
        vm.share(host, FREE_GFN, 1)?;
        let pfn = vm.frame(FREE_GFN);
        all_refused(
            vm,
            pfn,
            &[
                (UNPIN, DENIED_OR_INVALID),
                (UNPIN_DMA, DENIED_OR_INVALID),
                (POISON, DENIED),
                (TOPUP_HOST, DENIED),
                (TOPUP_VM, DENIED),
                (DONATE_ELSEWHERE, DENIED),
                (DONATE_SHARED, DENIED),
                (DONATE_AGAIN, DENIED),
                (MAP_ELSEWHERE, DENIED),
                // F3: a guest leaf stands, which the host may drop first.
                (RECLAIM, &[Status::Retry]),
                (SET_SHARED, DENIED),
                (SET_PRIVATE, DENIED),
                (CONVERT_SHARED, DENIED),
                (CONVERT_PRIVATE, DENIED),
            ],
        )?;
        // The punch hole of a shared page: guest leaf dropped, reclaimed, the address keeps its status.
        check_eq!(calls::guest_unmap(vm.handle, FREE_GFN, 1), Reply::done(1));
        check_eq!(calls::reclaim(vm.handle, pfn, 1), Reply::done(1));
        vm::came_back(pfn)?;
        vm.forget(host, FREE_GFN);
        vm.expect(host, FREE_GFN, 1, 0)?;
        check_eq!(calls::state(vm.frame(FREE_GFN)), Some(State::Shared), "the status of the address held");
        Ok(())
    })
}

fn shared_and_pinned_refuses_what_it_must(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, 0x3)?;
        vm.share(host, FREE_GFN, 1)?;
        let pfn = vm.frame(FREE_GFN);
        check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
        check_eq!(calls::guest_unmap(vm.handle, FREE_GFN, 1), Reply::done(1));
        all_refused(
            vm,
            pfn,
            &[
                (UNPIN_DMA, DENIED_OR_INVALID),
                (POISON, DENIED),
                (TOPUP_HOST, DENIED),
                (DONATE_ELSEWHERE, DENIED),
                (RECLAIM, &[Status::Busy]),
            ],
        )?;
        check!(calls::unpin(pfn, 1, pin::CPU).0.is_success());
        // Not reclaimed: the host maps the same frame again, and the guest finds what it left.
        check_eq!(calls::guest_map(vm.handle, FREE_GFN, pfn, 1), Reply::done(1));
        vm.expect(host, FREE_GFN, 1, 0x3)
    })
}

fn draining_refuses_the_host(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, 0x4)?;
        vm.share(host, FREE_GFN, 1)?;
        let pfn = vm.frame(FREE_GFN);
        check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
        let reply = vm.call(host, command::UNSHARE, &[FREE_GFN * PAGE_SIZE, 1, unshare::DRAIN])?;
        check_eq!(reply.status, Status::Pending);
        all_refused(
            vm,
            pfn,
            &[
                (PIN_CPU, DENIED),
                (PIN_DMA, DENIED),
                (UNPIN_DMA, DENIED_OR_INVALID),
                (POISON, DENIED),
                (TOPUP_HOST, DENIED),
                (DONATE_ELSEWHERE, DENIED),
                (DONATE_AGAIN, DENIED),
                (RECLAIM, &[Status::Denied, Status::Busy]),
                (SET_SHARED, DENIED),
                (CONVERT_SHARED, DENIED),
            ],
        )?;
        check!(calls::unpin(pfn, 1, pin::CPU).0.is_success());
        check_eq!(calls::state(pfn), Some(State::Private));
        vm.expect(host, FREE_GFN, 1, 0x4)
    })
}

fn hypervisor_refuses_the_host(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |_, vm| {
        let pfn = crate::discovery::hyp_frame()?;
        all_refused(
            vm,
            pfn,
            &[
                (PIN_CPU, DENIED),
                (PIN_DMA, DENIED),
                (UNPIN, DENIED_OR_INVALID),
                (HOST_MAP, DENIED),
                (POISON, DENIED),
                (TOPUP_HOST, DENIED),
                (TOPUP_VM, DENIED),
                (DONATE_ELSEWHERE, DENIED),
                (DONATE_SHARED, DENIED),
                (MAP_ELSEWHERE, DENIED),
            ],
        )?;
        let reply = calls::host_unmap(pfn, 1);
        check!(calls::state(pfn) == Some(State::Hyp), "HOST_UNMAP gave {reply}");
        let reply = calls::vcpu_create(vm.handle, 1, pfn);
        check!(!reply.is_success(), "a run page in the hypervisor: {reply}");
        Ok(())
    })
}

/// F6.
fn host_frame_with_a_pin_cannot_be_given(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let pfn = vm::take(host, 1, 1)?;
        for kind in [pin::CPU, pin::DMA] {
            check_eq!(calls::pin(pfn, 1, kind), Reply::done(1));
            all_refused(
                vm,
                pfn,
                &[
                    (DONATE_ELSEWHERE, &[Status::Busy]),
                    (TOPUP_VM, &[Status::Busy]),
                    (TOPUP_HOST, &[Status::Busy]),
                ],
            )?;
            check!(calls::unpin(pfn, 1, kind).0.is_success());
        }
        check_eq!(calls::host_unmap(pfn, 1).status, Status::Denied, "HOST_UNMAP of a host frame");
        check_eq!(calls::state(pfn), Some(State::Host));
        check!(tenure_test_hosts::memory::fill(pfn, 0), "the host lost its frame");
        host.frames.give(pfn, 1);
        Ok(())
    })
}

/// U10: status changes are refused once the guest is active, populated or not.
fn address_status_is_the_guests_after_activation(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        for gfn in [FREE_GFN, FREE_GFN + 100, vm::RAM_GFN, tenure_test_protocol::CONSOLE / PAGE_SIZE, 1] {
            for to in [status::NONE, status::PRIVATE, status::SHARED, status::DEVICE, status::RELINQUISHED] {
                let reply = calls::set_status(vm.handle, gfn, 1, to);
                check!(!reply.is_success(), "SET_STATUS of {gfn:#x} to {to}: {reply}");
            }
        }
        let pfn = vm::take(host, 1, 1)?;
        for kind in [status::SHARED, status::DEVICE, status::NONE] {
            let reply = calls::donate(vm.handle, FREE_GFN, pfn, 1, kind);
            check!(!reply.is_success(), "DONATE as {kind} where the guest expects private memory: {reply}");
        }
        check_eq!(calls::state(pfn), Some(State::Host));
        let device = tenure_test_protocol::CONSOLE / PAGE_SIZE;
        for kind in [status::SHARED, status::PRIVATE] {
            let reply = calls::donate(vm.handle, device, pfn, 1, kind);
            check_eq!(reply.status, Status::Denied, "DONATE at a device address");
        }
        host.frames.give(pfn, 1);
        Ok(())
    })
}

fn donate_checks_address_and_frame(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, 0x5)?;
        let pfn = vm::take(host, 4, 1)?;
        let word = calls::word(vm.frame(FREE_GFN));
        let reply = calls::donate(vm.handle, FREE_GFN, pfn, 1, status::PRIVATE);
        check_eq!(reply.status, Status::Denied, "DONATE over a page that is there");
        check_eq!(calls::word(vm.frame(FREE_GFN)), word);
        // A range that meets it in the middle: what is done before is told, the rest is refused.
        let reply = calls::donate(vm.handle, FREE_GFN - 1, pfn, 3, status::PRIVATE);
        for index in 0..reply.done {
            vm.donate_noted(FREE_GFN - 1 + index, pfn + index);
        }
        check!(reply.done <= 1, "{reply}");
        let rest = calls::state(pfn + 1);
        check_eq!(rest, Some(State::Host));
        let reply = calls::donate(vm.handle, 1, pfn + 2, 1, status::PRIVATE);
        check!(!reply.is_success(), "DONATE where nothing is declared: {reply}");
        let end = calls::figure(tenure_abi::info::END_PFN);
        let reply = calls::donate(vm.handle, FREE_GFN + 9, end, 1, status::PRIVATE);
        check!(!reply.is_success(), "DONATE of what is no RAM: {reply}");
        vm.expect(host, FREE_GFN, 1, 0x5)
    })
}
