//! Unshare of a page that the host maps: the host is asked, and what it may answer.

use tenure_abi::flags::vm as vm_flags;
use tenure_abi::page::{self, State};
use tenure_abi::{NO_INDEX, PAGE_SIZE, Reply, RunPage, Status, exit, reply, smccc};
use tenure_test_hosts::vm::{Event, FREE_GFN, Vm, with_guest};
use tenure_test_hosts::{Host, calls, memory};
use tenure_test_protocol::command;
use tenure_test_rt::harness::{Failure, TestResult};
use tenure_test_rt::probe::{self, Outcome};
use tenure_test_rt::{check, check_eq, fail};

crate::tests!(
    host_is_asked_and_consents,
    consent_without_an_unmap_drops_the_leaf,
    refusal_fails_the_call_and_changes_nothing,
    running_on_without_an_answer_asks_again,
    forged_and_repeated_answers_are_refused,
    late_answer_after_a_reshare_is_refused,
    consent_is_rechecked_against_a_new_pin,
    stock_unshare_waits_on_its_instruction,
    stock_unshare_refused_gives_invalid,
    a_range_with_one_leaf_is_taken_back_whole,
);

const IPA: u64 = FREE_GFN * PAGE_SIZE;

/// A shared page at FREE_GFN that the host has touched, and the exit that an unshare of `count` pages causes.
fn asked(host: &mut Host, vm: &mut Vm, order: u64, arguments: &[u64]) -> Result<RunPage, Failure> {
    match vm.order(host, order, arguments)? {
        Event::Exit(page) => {
            check_eq!(page.reason, exit::CONVERT);
            check_eq!(page.gpa, IPA);
            Ok(page)
        }
        Event::Idle(results) => fail!("the host was not asked: the guest got {results:x?}"),
    }
}

fn mapped_page(host: &mut Host, vm: &mut Vm, value: u64) -> Result<u64, Failure> {
    vm.fill(host, FREE_GFN, 1, value)?;
    vm.share(host, FREE_GFN, 1)?;
    let pfn = vm.frame(FREE_GFN);
    check_eq!(probe::read(memory::address(pfn)), Outcome::Value(value));
    Ok(pfn)
}

fn host_is_asked_and_consents(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let pfn = mapped_page(host, vm, 0xc0)?;
        let page = asked(host, vm, command::UNSHARE, &[IPA, 1, 0])?;
        check_eq!((page.count, page.flags, page.first, page.mask), (1, 0, 0, reply::HOST_LEAF));
        check_eq!(calls::state(pfn), Some(State::Shared), "while the host is asked");
        check_eq!(calls::host_unmap(pfn, 1), Reply::done(1));
        let reply = calls::consent(vm.handle, 0, page.sequence);
        check!(reply.is_success(), "CONSENT: {reply}");
        check_eq!(calls::state(pfn), Some(State::Private));
        check!(probe::read(memory::address(pfn)).faulted(), "the host reads a private page");
        let results = vm.resume(host)?;
        check_eq!(tenure_test_hosts::vm::reply_of(results)?, Reply::done(1));
        vm.expect(host, FREE_GFN, 1, 0xc0)
    })
}

/// Scenario 23: EL2 drops the host's leaves itself.
fn consent_without_an_unmap_drops_the_leaf(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let pfn = mapped_page(host, vm, 0xc1)?;
        let page = asked(host, vm, command::UNSHARE, &[IPA, 1, 0])?;
        check!(calls::consent(vm.handle, 0, page.sequence).is_success());
        check_eq!(calls::state(pfn), Some(State::Private));
        check_eq!(page::HOST_LEAF.get(calls::word(pfn)), 0);
        check!(probe::read(memory::address(pfn)).faulted());
        vm.resume(host)?;
        vm.expect(host, FREE_GFN, 1, 0xc1)
    })
}

/// U3.
fn refusal_fails_the_call_and_changes_nothing(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let pfn = mapped_page(host, vm, 0xc2)?;
        let word = calls::word(pfn);
        let page = asked(host, vm, command::UNSHARE, &[IPA, 1, 0])?;
        let reply = calls::refuse(vm.handle, 0, page.sequence);
        check!(reply.is_success(), "REFUSE: {reply}");
        let answer = tenure_test_hosts::vm::reply_of(vm.resume(host)?)?;
        check!(!answer.is_success(), "the guest's call succeeded: {answer}");
        check_eq!(calls::word(pfn), word, "the page's word");
        check_eq!(probe::read(memory::address(pfn)), Outcome::Value(0xc2), "the host's mapping");
        vm.expect(host, FREE_GFN, 1, 0xc2)
    })
}

fn running_on_without_an_answer_asks_again(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let pfn = mapped_page(host, vm, 0xc3)?;
        asked(host, vm, command::UNSHARE, &[IPA, 1, 0])?;
        for turn in 0..3 {
            match vm.run(host)? {
                Event::Exit(page) => check_eq!(page.reason, exit::CONVERT, "turn {turn}"),
                Event::Idle(results) => {
                    // RETRY as an answer is the truth as well: nothing has changed.
                    let reply = tenure_test_hosts::vm::reply_of(results)?;
                    check_eq!(reply.status, Status::Retry, "{reply}");
                    return Ok(());
                }
            }
        }
        check_eq!(calls::state(pfn), Some(State::Shared));
        // The host lets go: the guest's own call now succeeds, without any consent.
        check_eq!(calls::host_unmap(pfn, 1), Reply::done(1));
        let reply = tenure_test_hosts::vm::reply_of(vm.resume(host)?)?;
        check_eq!(reply, Reply::done(1));
        check_eq!(calls::state(pfn), Some(State::Private));
        Ok(())
    })
}

fn forged_and_repeated_answers_are_refused(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let pfn = mapped_page(host, vm, 0xc4)?;
        // Before any request.
        for sequence in [0, 1, 2, u64::MAX] {
            let reply = calls::consent(vm.handle, 0, sequence);
            check!(!reply.is_success(), "CONSENT to nothing: {reply}");
            let reply = calls::refuse(vm.handle, 0, sequence);
            check!(!reply.is_success(), "REFUSE of nothing: {reply}");
        }
        check_eq!(calls::state(pfn), Some(State::Shared));
        let page = asked(host, vm, command::UNSHARE, &[IPA, 1, 0])?;
        let sequence = page.sequence;
        for forged in [sequence.wrapping_add(1), sequence.wrapping_sub(1), !sequence, u64::MAX] {
            let reply = calls::consent(vm.handle, 0, forged);
            check!(!reply.is_success(), "CONSENT with {forged:#x} for {sequence:#x}: {reply}");
        }
        for index in [1, 2, u64::MAX] {
            let reply = calls::consent(vm.handle, index, sequence);
            check!(!reply.is_success(), "CONSENT for vCPU {index}: {reply}");
        }
        check_eq!(calls::state(pfn), Some(State::Shared));
        check!(calls::consent(vm.handle, 0, sequence).is_success());
        check_eq!(calls::state(pfn), Some(State::Private));
        let word = calls::word(pfn);
        check!(!calls::consent(vm.handle, 0, sequence).is_success(), "CONSENT twice");
        check!(!calls::refuse(vm.handle, 0, sequence).is_success(), "REFUSE after CONSENT");
        check_eq!(calls::word(pfn), word);
        let reply = tenure_test_hosts::vm::reply_of(vm.resume(host)?)?;
        check_eq!(reply, Reply::done(1), "what the guest is told");
        check!(!calls::consent(vm.handle, 0, sequence).is_success(), "CONSENT after the guest ran");
        vm.expect(host, FREE_GFN, 1, 0xc4)
    })
}

/// An answer to a request that has had its answer, while the page is shared again.
fn late_answer_after_a_reshare_is_refused(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let pfn = mapped_page(host, vm, 0xc5)?;
        let old = asked(host, vm, command::UNSHARE, &[IPA, 1, 0])?.sequence;
        check!(calls::consent(vm.handle, 0, old).is_success());
        vm.resume(host)?;
        vm.share(host, FREE_GFN, 1)?;
        check!(!calls::consent(vm.handle, 0, old).is_success(), "CONSENT of the last life");
        check_eq!(calls::state(pfn), Some(State::Shared));
        check_eq!(probe::read(memory::address(pfn)), Outcome::Value(0xc5));
        let new = asked(host, vm, command::UNSHARE, &[IPA, 1, 0])?.sequence;
        check!(new != old, "the sequence {old:#x} came again");
        check!(!calls::consent(vm.handle, 0, old).is_success(), "the old answer to the new request");
        check!(calls::refuse(vm.handle, 0, new).is_success());
        vm.resume(host)?;
        check_eq!(calls::state(pfn), Some(State::Shared));
        Ok(())
    })
}

fn consent_is_rechecked_against_a_new_pin(host: &mut Host) -> TestResult {
    use tenure_abi::flags::pin;
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let pfn = mapped_page(host, vm, 0xc6)?;
        let page = asked(host, vm, command::UNSHARE, &[IPA, 1, 0])?;
        check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
        let reply = calls::consent(vm.handle, 0, page.sequence);
        check_eq!(
            (reply.status, reply.first, reply.mask & reply::CPU_PIN),
            (Status::Busy, 0, reply::CPU_PIN)
        );
        check_eq!(calls::state(pfn), Some(State::Shared));
        check_eq!(probe::read(memory::address(pfn)), Outcome::Value(0xc6), "the host's mapping");
        check!(calls::unpin(pfn, 1, pin::CPU).0.is_success());
        // The guest asks again by itself or is told why not; either way nothing was lost.
        match vm.run(host)? {
            Event::Exit(page) => {
                check_eq!(page.reason, exit::CONVERT);
                check!(calls::consent(vm.handle, 0, page.sequence).is_success());
                check_eq!(tenure_test_hosts::vm::reply_of(vm.resume(host)?)?, Reply::done(1));
            }
            Event::Idle(results) => {
                let reply = tenure_test_hosts::vm::reply_of(results)?;
                check!(matches!(reply.status, Status::Busy | Status::Retry), "{reply}");
            }
        }
        vm.expect(host, FREE_GFN, 1, 0xc6)
    })
}

/// C1: the PC stays on the HVC; BUSY and RETRY are never shown to a stock guest.
fn stock_unshare_waits_on_its_instruction(host: &mut Host) -> TestResult {
    use tenure_abi::flags::pin;
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let pfn = mapped_page(host, vm, 0xc7)?;
        check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
        let page = asked(host, vm, command::STOCK_UNSHARE, &[IPA])?;
        check!(page.mask & reply::CPU_PIN != 0, "mask {:#x}", page.mask);
        check_eq!(calls::consent(vm.handle, 0, page.sequence).status, Status::Busy);
        check!(calls::unpin(pfn, 1, pin::CPU).0.is_success());
        check_eq!(calls::host_unmap(pfn, 1), Reply::done(1));
        let [r0, ..] = vm.resume(host)?;
        check_eq!(r0, 0, "MEM_UNSHARE");
        check_eq!(calls::state(pfn), Some(State::Private));
        vm.expect(host, FREE_GFN, 1, 0xc7)
    })
}

fn stock_unshare_refused_gives_invalid(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let pfn = mapped_page(host, vm, 0xc8)?;
        let page = asked(host, vm, command::STOCK_UNSHARE, &[IPA])?;
        check!(calls::refuse(vm.handle, 0, page.sequence).is_success());
        let [r0, ..] = vm.resume(host)?;
        check_eq!(r0, smccc::INVALID_PARAMETER);
        check_eq!(calls::state(pfn), Some(State::Shared));
        vm.expect(host, FREE_GFN, 1, 0xc8)
    })
}

fn a_range_with_one_leaf_is_taken_back_whole(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 8, 0xc9)?;
        vm.share(host, FREE_GFN, 8)?;
        check_eq!(probe::read(memory::address(vm.frame(FREE_GFN + 5))), Outcome::Value(0xc9));
        let page = asked(host, vm, command::UNSHARE, &[IPA, 8, 0])?;
        check_eq!((page.count, page.first, page.mask), (8, 5, reply::HOST_LEAF));
        for gfn in FREE_GFN..FREE_GFN + 8 {
            check_eq!(calls::state(vm.frame(gfn)), Some(State::Shared));
        }
        let reply = calls::consent(vm.handle, 0, page.sequence);
        check!(reply.is_success() && reply.first == NO_INDEX, "{reply}");
        check_eq!(tenure_test_hosts::vm::reply_of(vm.resume(host)?)?, Reply::done(8));
        for gfn in FREE_GFN..FREE_GFN + 8 {
            check_eq!(calls::state(vm.frame(gfn)), Some(State::Private));
            check!(probe::read(memory::address(vm.frame(gfn))).faulted());
        }
        vm.expect(host, FREE_GFN, 8, 0xc9)
    })
}
