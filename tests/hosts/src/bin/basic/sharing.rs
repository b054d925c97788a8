//! Share and unshare where nobody stands in the way, and what they keep.

use tenure_abi::flags::{query, status, unshare, vm as vm_flags};
use tenure_abi::page::{self, State};
use tenure_abi::{MAX_ATOMIC_PAGES, PAGE_SIZE, Reply, Status, exit, guest, info, reply, smccc};
use tenure_test_hosts::vm::{self, Event, FREE_GFN, with_guest};
use tenure_test_hosts::{Host, calls, memory};
use tenure_test_protocol::command;
use tenure_test_rt::harness::TestResult;
use tenure_test_rt::probe::{self, Outcome, Road};
use tenure_test_rt::{check, check_eq, cpu, fail};

crate::tests!(
    contents_survive_share_and_unshare,
    both_sides_see_each_others_writes,
    share_makes_no_host_leaf_until_a_touch,
    the_hosts_stage_1_decides_about_the_memory_type_of_its_own_frames_only,
    the_hosts_leaf_is_not_executable,
    a_range_is_shared_and_taken_back_whole,
    a_page_in_the_wanted_state_counts_as_done,
    a_long_range_is_done_in_steps,
    zero_flag_clears_the_page,
    stock_share_and_unshare,
    share_before_the_page_is_populated,
    unshare_before_the_page_is_populated,
    relinquished_page_comes_back_scrubbed_and_the_address_takes_a_new_one,
    guest_query_tells_the_truth,
    host_query_gives_the_verdict_of_an_attempt,
    two_guests_do_not_see_each_other,
);

const IPA: u64 = FREE_GFN * PAGE_SIZE;

fn contents_survive_share_and_unshare(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, 0xabcd)?;
        for _ in 0..3 {
            vm.share(host, FREE_GFN, 1)?;
            check_eq!(calls::state(vm.frame(FREE_GFN)), Some(State::Shared));
            vm.expect(host, FREE_GFN, 1, 0xabcd)?;
            check_eq!(vm.call(host, command::UNSHARE, &[IPA, 1, 0])?, Reply::done(1));
            check_eq!(calls::state(vm.frame(FREE_GFN)), Some(State::Private));
            vm.expect(host, FREE_GFN, 1, 0xabcd)?;
        }
        Ok(())
    })
}

fn both_sides_see_each_others_writes(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, 0x1111)?;
        vm.share(host, FREE_GFN, 1)?;
        let pfn = vm.frame(FREE_GFN);
        check!(memory::is_filled(pfn, 0x1111), "the host does not see what the guest wrote");
        check!(memory::fill(pfn, 0x2222), "the host cannot write");
        vm.expect(host, FREE_GFN, 1, 0x2222)?;
        vm.fill(host, FREE_GFN, 1, 0x3333)?;
        check!(memory::is_filled(pfn, 0x3333));
        Ok(())
    })
}

fn share_makes_no_host_leaf_until_a_touch(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 2, 7)?;
        vm.share(host, FREE_GFN, 2)?;
        let (first, second) = (vm.frame(FREE_GFN), vm.frame(FREE_GFN + 1));
        check_eq!(page::HOST_LEAF.get(calls::word(first)), 0, "after the share");
        check_eq!(probe::read(memory::address(first)), Outcome::Value(7));
        check_eq!(page::HOST_LEAF.get(calls::word(first)), 1, "after the touch");
        check_eq!(page::HOST_LEAF.get(calls::word(second)), 0, "the page beside it");
        check_eq!(calls::host_map(second, 1), Reply::done(1), "HOST_MAP");
        check_eq!(calls::host_map(second, 1), Reply::done(1), "HOST_MAP again");
        check_eq!(page::HOST_LEAF.get(calls::word(second)), 1, "after HOST_MAP");
        check_eq!(calls::host_unmap(second, 1), Reply::done(1), "HOST_UNMAP");
        check_eq!(page::HOST_LEAF.get(calls::word(second)), 0, "after HOST_UNMAP");
        check_eq!(probe::read(memory::address(second)), Outcome::Value(7), "the touch after HOST_UNMAP");
        Ok(())
    })
}

/// With FEAT_S2FWB a frame that is not the host's own is write-back whatever the host maps it as, or it could write behind a
/// cache line that the guest reads; its own is again what it maps it as. (QEMU has no caches: this looks at MemAttr.)
fn the_hosts_stage_1_decides_about_the_memory_type_of_its_own_frames_only(host: &mut Host) -> TestResult {
    let fwb = calls::features().1.x(4) & info::feature::FWB != 0;
    let (own, borrowed) = if fwb { (0b111, 0b110) } else { (0b1111, 0b1111) };
    let memory_type = |pfn| calls::query(pfn).1.x(5) >> 2 & 0b1111;
    let mut pfn = 0;
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, 7)?;
        vm.share(host, FREE_GFN, 1)?;
        pfn = vm.frame(FREE_GFN);
        check_eq!(probe::read(memory::address(pfn)), Outcome::Value(7));
        check_eq!(memory_type(pfn), borrowed, "shared");
        check_eq!(memory_type(vm.run_pfn), own, "the host's, used by EL2");
        Ok(())
    })?;
    check_eq!(probe::read(memory::address(pfn)), Outcome::Value(0));
    check_eq!(memory_type(pfn), own, "back at the host's");
    Ok(())
}

/// U7.
fn the_hosts_leaf_is_not_executable(host: &mut Host) -> TestResult {
    const RET: u64 = 0xd65f_03c0;
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, RET)?;
        vm.share(host, FREE_GFN, 1)?;
        let address = memory::address(vm.frame(FREE_GFN));
        check_eq!(probe::read(address), Outcome::Value(RET));
        cpu::sync_code(address);
        let what = probe::touch(Road::Execute, address, 0);
        check_eq!(what.class_and_status().map(|(class, _)| class), Some(0x21), "{what:x?}");
        check_eq!(probe::read(address), Outcome::Value(RET), "a read after it");
        Ok(())
    })
}

fn a_range_is_shared_and_taken_back_whole(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 64, 0x64)?;
        vm.share(host, FREE_GFN, 64)?;
        for gfn in FREE_GFN..FREE_GFN + 64 {
            check_eq!(calls::state(vm.frame(gfn)), Some(State::Shared));
        }
        check_eq!(vm.call(host, command::UNSHARE, &[IPA, 64, 0])?, Reply::done(64));
        for gfn in FREE_GFN..FREE_GFN + 64 {
            check_eq!(calls::state(vm.frame(gfn)), Some(State::Private));
        }
        vm.expect(host, FREE_GFN, 64, 0x64)
    })
}

/// U5.
fn a_page_in_the_wanted_state_counts_as_done(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 4, 9)?;
        check_eq!(vm.call(host, command::UNSHARE, &[IPA, 4, 0])?, Reply::done(4), "unshare of private pages");
        vm.share(host, FREE_GFN + 1, 2)?;
        vm.share(host, FREE_GFN, 4)?;
        vm.share(host, FREE_GFN, 4)?;
        check_eq!(vm.call(host, command::UNSHARE, &[IPA, 4, 0])?, Reply::done(4));
        check_eq!(vm.call(host, command::UNSHARE, &[IPA, 4, 0])?, Reply::done(4), "again");
        vm.expect(host, FREE_GFN, 4, 9)
    })
}

/// U4: above 512 pages the calls resume, each with done >= 1.
fn a_long_range_is_done_in_steps(host: &mut Host) -> TestResult {
    const PAGES: u64 = 700;
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, PAGES, 0x700)?;
        for (order, arguments) in [(command::SHARE, &[][..]), (command::UNSHARE, &[0])] {
            let mut done = 0;
            while done < PAGES {
                let mut all = arrayvec::ArrayVec::<u64, 3>::new();
                all.extend(
                    [IPA + done * PAGE_SIZE, PAGES - done].into_iter().chain(arguments.iter().copied()),
                );
                let reply = vm.call(host, order, &all)?;
                check!(
                    reply.is_success() && reply.done > 0 && reply.done <= MAX_ATOMIC_PAGES,
                    "at {done}: {reply}"
                );
                done += reply.done;
            }
            check_eq!(done, PAGES);
        }
        vm.expect(host, FREE_GFN, PAGES, 0x700)
    })
}

/// U8.
fn zero_flag_clears_the_page(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 3, 0xffff)?;
        vm.share(host, FREE_GFN, 3)?;
        check_eq!(vm.call(host, command::UNSHARE, &[IPA, 2, unshare::ZERO])?, Reply::done(2));
        vm.expect(host, FREE_GFN, 2, 0)?;
        vm.expect(host, FREE_GFN + 2, 1, 0xffff)
    })
}

fn stock_share_and_unshare(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, 0x57)?;
        let [r0, ..] = vm.command(host, command::STOCK_SHARE, &[IPA])?;
        check_eq!(r0, 0, "MEM_SHARE");
        check_eq!(calls::state(vm.frame(FREE_GFN)), Some(State::Shared));
        let [r0, ..] = vm.command(host, command::STOCK_UNSHARE, &[IPA])?;
        check_eq!(r0, 0, "MEM_UNSHARE");
        check_eq!(calls::state(vm.frame(FREE_GFN)), Some(State::Private));
        let [r0, ..] = vm.command(host, command::STOCK_SHARE, &[0x1000])?;
        check_eq!(r0, smccc::INVALID_PARAMETER, "MEM_SHARE of nothing");
        vm.expect(host, FREE_GFN, 1, 0x57)
    })
}

/// Scenario 12, by the guest: the status holds at the first fault.
fn share_before_the_page_is_populated(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let reply = settle(host, vm, command::SHARE, &[IPA, 2])?;
        check_eq!(reply, Reply::done(2), "SHARE of nothing yet");
        let results = vm.command(host, command::TOUCH, &[IPA, 2])?;
        check_eq!(results[0], 0);
        check_eq!(calls::state(vm.frame(FREE_GFN)), Some(State::Shared));
        let pfn = vm.frame(FREE_GFN);
        check!(memory::fill(pfn, 0x12), "the host cannot write what the guest shared");
        vm.expect(host, FREE_GFN, 1, 0x12)
    })
}

fn unshare_before_the_page_is_populated(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        check_eq!(settle(host, vm, command::SHARE, &[IPA, 1])?, Reply::done(1));
        check_eq!(settle(host, vm, command::UNSHARE, &[IPA, 1, 0])?, Reply::done(1));
        vm.fill(host, FREE_GFN, 1, 0x13)?;
        check_eq!(calls::state(vm.frame(FREE_GFN)), Some(State::Private));
        Ok(())
    })
}

/// A guest's call that may need a table page or a frame first; both are given by `run`, so only an answer of the guest's counts.
fn settle(
    host: &mut Host,
    vm: &mut vm::Vm,
    order: u64,
    arguments: &[u64],
) -> Result<Reply, tenure_test_rt::harness::Failure> {
    match vm.order(host, order, arguments)? {
        Event::Idle(results) => vm::reply_of(results),
        Event::Exit(page) => fail!("order {order}: exit {page:x?}"),
    }
}

fn relinquished_page_comes_back_scrubbed_and_the_address_takes_a_new_one(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 2, 0x5ec7e7)?;
        vm.share(host, FREE_GFN + 1, 1)?;
        check_eq!(vm.call(host, command::RELINQUISH, &[IPA, 2])?, Reply::done(2));
        for gfn in [FREE_GFN, FREE_GFN + 1] {
            vm::came_back(vm.frame(gfn))?;
            vm.forget(host, gfn);
        }
        let (reply, regs) = calls::query_guest(vm.handle, FREE_GFN, query::SHARE);
        check_eq!((regs.x(4), regs.x(6)), (0, status::RELINQUISHED), "{reply}");
        vm.expect(host, FREE_GFN, 2, 0)?;
        check_eq!(calls::state(vm.frame(FREE_GFN)), Some(State::Private), "a new frame is private");
        check_eq!(calls::state(vm.frame(FREE_GFN + 1)), Some(State::Private), "a new frame is private");
        Ok(())
    })
}

fn guest_query_tells_the_truth(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, 1)?;
        let [r0, _, _, _, word] = vm.command(host, command::QUERY, &[IPA])?;
        let [address_status, contained, ..] = vm.command(host, command::MORE, &[])?;
        check_eq!(r0, 0);
        check_eq!(page::State::of(word), Some(State::Private));
        check_eq!((address_status, contained), (status::PRIVATE, 0), "status, DMA contained");
        vm.share(host, FREE_GFN, 1)?;
        let [_, _, _, _, word] = vm.command(host, command::QUERY, &[IPA])?;
        check_eq!(page::State::of(word), Some(State::Shared));
        let [r0, x1, ..] = vm.command(host, command::HVC, &[guest::VERSION, 0, 0, 0, 0, 0])?;
        check_eq!((r0, x1), (0, tenure_abi::ABI_VERSION), "VERSION");
        Ok(())
    })
}

/// C3: the query and an attempt made at once agree.
fn host_query_gives_the_verdict_of_an_attempt(host: &mut Host) -> TestResult {
    use tenure_abi::flags::pin;
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, 1)?;
        let pfn = vm.frame(FREE_GFN);
        let verdict = |vm: &vm::Vm, op| calls::query_guest(vm.handle, FREE_GFN, op).0;
        check_eq!(verdict(vm, query::RECLAIM).status, Status::Denied, "reclaim of a private page");
        check_eq!(calls::reclaim(vm.handle, pfn, 1).status, Status::Denied);
        check!(verdict(vm, query::SHARE).is_success());
        vm.share(host, FREE_GFN, 1)?;
        check!(verdict(vm, query::UNSHARE).is_success());
        check_eq!(
            verdict(vm, query::RECLAIM).mask & reply::GUEST_LEAF,
            reply::GUEST_LEAF,
            "reclaim under a guest leaf"
        );
        check_eq!(calls::reclaim(vm.handle, pfn, 1).status, Status::Retry);
        check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
        let asked = verdict(vm, query::UNSHARE);
        let tried = vm.call(host, command::UNSHARE, &[IPA, 1, 0])?;
        check_eq!((asked.status, asked.mask), (tried.status, tried.mask), "unshare of a pinned page");
        check_eq!(tried.status, Status::Busy);
        check!(calls::unpin(pfn, 1, pin::CPU).0.is_success());
        let (reply, regs) = calls::query_guest(vm.handle, FREE_GFN, query::UNSHARE);
        check!(reply.is_success(), "{reply}");
        check_eq!(regs.x(5), pfn, "x5 of QUERY_GUEST");
        Ok(())
    })
}

fn two_guests_do_not_see_each_other(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, one| {
        one.fill(host, FREE_GFN, 4, 0x1)?;
        with_guest(host, vm_flags::PROTECTED, |host, two| {
            two.expect(host, FREE_GFN, 4, 0)?;
            two.fill(host, FREE_GFN, 4, 0x2)?;
            one.expect(host, FREE_GFN, 4, 0x1)?;
            two.expect(host, FREE_GFN, 4, 0x2)?;
            // A frame of one cannot be given to the other.
            let reply = calls::donate(two.handle, FREE_GFN + 8, one.frame(FREE_GFN), 1, status::PRIVATE);
            check_eq!(reply.status, Status::Denied, "DONATE of another guest's frame");
            one.share(host, FREE_GFN, 1)?;
            let reply = calls::donate(two.handle, FREE_GFN + 8, one.frame(FREE_GFN), 1, status::PRIVATE);
            check_eq!(reply.status, Status::Denied, "DONATE of another guest's shared frame");
            Ok(())
        })?;
        check!(one.exits[exit::FAULT as usize] == 0);
        one.expect(host, FREE_GFN, 4, 0x1)
    })
}
