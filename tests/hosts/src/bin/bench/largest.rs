//! Range calls, each with as many pages as one call takes, over pages in the states that take longest: nothing is measured
//! here, an observer sees how long each keeps the CPU.

use tenure_abi::flags::{pin, status, unshare, vm as vm_flags};
use tenure_abi::{MAX_ATOMIC_PAGES, PAGE_SIZE, Reply, Status};
use tenure_test_hosts::vm::{FREE_GFN, RAM_GFN, RAM_PAGES, Vm, take, with_guest};
use tenure_test_hosts::{Host, calls};
use tenure_test_protocol::command;
use tenure_test_rt::harness::{self, TestResult};
use tenure_test_rt::{check, check_eq};

const ALL: u64 = MAX_ATOMIC_PAGES;
const IPA: u64 = FREE_GFN * PAGE_SIZE;
/// Addresses of a plain VM that nothing is declared at, in the middle of a table.
const LENT: u64 = RAM_GFN + RAM_PAGES + 16;

/// Makes the calls, of a protected and of a plain VM.
pub fn run(host: &mut Host) {
    harness::run("bench", "range_calls_at_their_largest", || {
        with_guest(host, vm_flags::PROTECTED | vm_flags::RIGHT_REVOKE, |host, vm| {
            let pfn = take(host, ALL as usize, ALL as usize)?;
            vm.donate(host, FREE_GFN, pfn, ALL, status::PRIVATE)?;
            revokes(host, vm, pfn)?;
            drains(host, vm, pfn)?;
            kinds_by_turns(host, vm, pfn)?;
            addresses(host, vm)?;
            relinquishes(host, vm)
        })
    });
    harness::run("bench", "range_calls_of_a_plain_vm_at_their_largest", || with_guest(host, 0, plain));
}

fn host_map(pfn: u64) -> TestResult {
    check_eq!(calls::all(ALL, |at, rest| calls::host_map(pfn + at, rest), || false), Reply::done(ALL));
    Ok(())
}

fn host_unmap(pfn: u64) -> TestResult {
    check_eq!(calls::all(ALL, |at, rest| calls::host_unmap(pfn + at, rest), || false), Reply::done(ALL));
    Ok(())
}

fn pinned(pfn: u64) -> TestResult {
    let pin = |at, rest| calls::pin(pfn + at, rest, pin::CPU);
    check_eq!(calls::all(ALL, pin, || false), Reply::done(ALL), "PIN");
    Ok(())
}

fn unpinned(pfn: u64) -> TestResult {
    let unpin = |at, rest| calls::unpin(pfn + at, rest, pin::CPU).0;
    check_eq!(calls::all(ALL, unpin, || false), Reply::done(ALL), "UNPIN");
    Ok(())
}

/// UNSHARE of all pages, which must answer `status` for all of them.
fn unshare(host: &mut Host, vm: &mut Vm, flags: u64, status: Status) -> TestResult {
    let reply = vm.call(host, command::UNSHARE, &[IPA, ALL, flags])?;
    check_eq!((reply.status, reply.done), (status, ALL), "UNSHARE with flags {flags:#x}: {reply}");
    Ok(())
}

/// Pages that the host maps are revoked; they are shared again with the redirections standing.
fn revokes(host: &mut Host, vm: &mut Vm, pfn: u64) -> TestResult {
    vm.share(host, FREE_GFN, ALL)?;
    host_map(pfn)?;
    unshare(host, vm, unshare::REVOKE, Status::Success)?;
    vm.share(host, FREE_GFN, ALL)?;
    host_map(pfn)?;
    unshare(host, vm, unshare::REVOKE, Status::Success)?;
    host_unmap(pfn)?;
    vm.share(host, FREE_GFN, ALL)
}

/// Pages that the host maps and pins drain, drain already, are revoked meanwhile, are shared meanwhile, or become
/// private at the last unpin.
fn drains(host: &mut Host, vm: &mut Vm, pfn: u64) -> TestResult {
    host_map(pfn)?;
    pinned(pfn)?;
    unshare(host, vm, unshare::DRAIN | unshare::REVOKE, Status::Pending)?;
    unshare(host, vm, unshare::DRAIN, Status::Pending)?;
    unshare(host, vm, unshare::REVOKE, Status::Success)?;
    vm.share(host, FREE_GFN, ALL)?;
    host_map(pfn)?;
    unshare(host, vm, unshare::DRAIN, Status::Pending)?;
    vm.share(host, FREE_GFN, ALL)?;
    unshare(host, vm, unshare::DRAIN, Status::Pending)?;
    unpinned(pfn)?;
    host_unmap(pfn)?;
    vm.share(host, FREE_GFN, ALL)
}

/// No two neighbours are of one kind.
fn kinds_by_turns(host: &mut Host, vm: &mut Vm, pfn: u64) -> TestResult {
    for index in (0..ALL).step_by(2) {
        let reply = vm.call(host, command::UNSHARE, &[IPA + index * PAGE_SIZE, 1, 0])?;
        check_eq!(reply, Reply::done(1), "UNSHARE of one");
    }
    for index in (1..ALL).step_by(2) {
        check_eq!(calls::host_map(pfn + index, 1), Reply::done(1));
    }
    unshare(host, vm, unshare::REVOKE, Status::Success)?;
    vm.share(host, FREE_GFN, ALL)?;
    for index in (0..ALL).step_by(2) {
        check_eq!(calls::pin(pfn + index, 1, pin::CPU), Reply::done(1));
    }
    unshare(host, vm, unshare::DRAIN, Status::Pending)?;
    for index in (0..ALL).step_by(2) {
        check_eq!(calls::unpin(pfn + index, 1, pin::CPU).0, Reply::done(1));
    }
    Ok(())
}

/// Addresses without frames, and with a frame at every other one.
fn addresses(host: &mut Host, vm: &mut Vm) -> TestResult {
    let gfn = FREE_GFN + 2 * ALL + 77;
    let ipa = gfn * PAGE_SIZE;
    let share = (command::SHARE, &[ipa, ALL][..]);
    let unshare = (command::UNSHARE, &[ipa, ALL, 0][..]);
    for by_turns in [false, true] {
        for (command, arguments) in [share, unshare, share] {
            let reply = vm.call(host, command, arguments)?;
            check_eq!(reply, Reply::done(ALL), "addresses, frames by turns: {by_turns}");
        }
        if !by_turns {
            for index in (0..ALL).step_by(2) {
                vm.give(host, gfn + index, 1, status::SHARED)?;
            }
        }
    }
    Ok(())
}

fn relinquishes(host: &mut Host, vm: &mut Vm) -> TestResult {
    let step = |vm: &mut Vm, host: &mut Host, done| {
        vm.call(host, command::RELINQUISH, &[IPA + done * PAGE_SIZE, ALL - done])
    };
    let mut done = 0;
    while done < ALL {
        let reply = step(vm, host, done)?;
        check!(reply.is_success() && reply.done > 0, "RELINQUISH: {reply}");
        done += reply.done;
    }
    (0..ALL).for_each(|index| vm.forget(host, FREE_GFN + index));
    Ok(())
}

/// What the host does with a plain VM: statuses, frames that stay its own, conversions both ways, and frames that it takes
/// back.
fn plain(host: &mut Host, vm: &mut Vm) -> TestResult {
    vm.set_status(host, LENT + 2 * ALL, ALL, status::PRIVATE)?;
    vm.set_status(host, LENT + 2 * ALL, ALL, status::DEVICE)?;
    let pfn = take(host, ALL as usize, ALL as usize)?;
    let handle = vm.handle;
    for _ in 0..2 {
        let map = |at, rest| calls::guest_map(handle, LENT + at, pfn + at, rest);
        let reply = calls::all(ALL, map, || vm.top_up(host, 8).is_ok());
        check_eq!(reply, Reply::done(ALL), "GUEST_MAP");
        check_eq!(calls::guest_unmap(handle, LENT, ALL), Reply::done(ALL), "GUEST_UNMAP");
    }
    vm.donate(host, FREE_GFN, pfn, ALL, status::PRIVATE)?;
    for mapped in [false, true] {
        for to in [status::SHARED, status::PRIVATE] {
            let convert = |at, rest| calls::convert(handle, FREE_GFN + at, rest, to);
            check_eq!(calls::all(ALL, convert, || false), Reply::done(ALL), "CONVERT to {to}");
            if to == status::SHARED && mapped {
                host_map(pfn)?;
            }
        }
    }
    check_eq!(calls::guest_unmap(handle, FREE_GFN, ALL), Reply::done(ALL), "GUEST_UNMAP");
    let reclaim = |at, rest| calls::reclaim(handle, pfn + at, rest);
    check_eq!(calls::all(ALL, reclaim, || false), Reply::done(ALL), "RECLAIM");
    (0..ALL).for_each(|index| vm.forget(host, FREE_GFN + index));
    Ok(())
}
