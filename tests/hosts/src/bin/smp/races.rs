//! What several CPUs do to the same page at once, and what must hold at every moment.

use core::sync::atomic::{AtomicU64, Ordering};

use tenure_abi::flags::{pin, status, vm as vm_flags};
use tenure_abi::page::{self, State};
use tenure_abi::{PAGE_SIZE, Status, exit};
use tenure_test_hosts::totals::Totals;
use tenure_test_hosts::vm::{Event, FREE_GFN, Vm, take, with_guest};
use tenure_test_hosts::{Host, calls, memory};
use tenure_test_protocol::{command, work};
use tenure_test_rt::harness::{Failure, TestResult};
use tenure_test_rt::probe::{self, Outcome};
use tenure_test_rt::{check, check_eq, cpu, fail, note};

use crate::Test;
use crate::crew::{self, Job};

/// The tests of this module.
pub(crate) const TESTS: &[Test] = &[
    ("a_reading_host_never_sees_a_secret", a_reading_host_never_sees_a_secret),
    ("a_pinning_host_never_sees_a_secret", a_pinning_host_never_sees_a_secret),
    ("a_guest_that_waits_gets_through_a_pinning_host", a_guest_that_waits_gets_through_a_pinning_host),
    ("lives_on_every_cpu_at_once", lives_on_every_cpu_at_once),
    ("a_frame_is_given_to_one_of_two", a_frame_is_given_to_one_of_two),
    ("a_vcpu_runs_on_one_cpu_at_a_time", a_vcpu_runs_on_one_cpu_at_a_time),
    ("a_vm_that_is_run_can_be_destroyed", a_vm_that_is_run_can_be_destroyed),
];

const IPA: u64 = FREE_GFN * PAGE_SIZE;
/// Times that the guest shares and takes back in one race.
const TURNS: u64 = 2000;

/// Times that the host must have had the page for a race to count.
const MEETINGS: u64 = 20;

/// How often the racing CPUs got what they wanted.
static SUCCESSES: AtomicU64 = AtomicU64::new(0);

/// Does a job of another CPU.
pub(crate) fn carry_out(job: Job, host: &mut Host) -> TestResult {
    let parameter = crew::PARAMETER.load(Ordering::Acquire);
    match job {
        Job::Idle => Ok(()),
        Job::Read => read(parameter),
        Job::Pin => pin_and_read(parameter),
        Job::Watch => watch(parameter),
        Job::Live => live(host),
        Job::Donate => {
            let vm = crew::SECOND.load(Ordering::Acquire);
            if calls::donate(vm, FREE_GFN, parameter, 1, status::PRIVATE).is_success() {
                SUCCESSES.fetch_add(1, Ordering::AcqRel);
            }
            Ok(())
        }
        Job::Run => run_on(parameter),
    }
}

/// Reads a page that comes and goes: it is public, or it is out of reach.
fn read(pfn: u64) -> TestResult {
    while !crew::told_to_stop() {
        match probe::read(memory::address(pfn)) {
            Outcome::Value(work::PUBLIC) => _ = SUCCESSES.fetch_add(1, Ordering::AcqRel),
            // Scrap, where a drain completed under this CPU's mapping.
            Outcome::Value(0) => _ = calls::host_unmap(pfn, 1),
            Outcome::Value(value) => fail!("the host read {value:#x}"),
            fault => check_eq!(fault.class_and_status(), Some((0x25, 0x21))),
        }
    }
    Ok(())
}

/// While this CPU holds a pin, the page is there, and public.
fn pin_and_read(pfn: u64) -> TestResult {
    while !crew::told_to_stop() {
        let reply = calls::pin(pfn, 1, pin::CPU);
        match reply.status {
            Status::Success => {}
            Status::Denied | Status::Retry => continue,
            _ => fail!("PIN: {reply}"),
        }
        for _ in 0..4 {
            let what = probe::read(memory::address(pfn));
            check!(what == Outcome::Value(work::PUBLIC), "under a pin the host reads {what:x?}");
        }
        SUCCESSES.fetch_add(1, Ordering::AcqRel);
        loop {
            let (reply, _) = calls::unpin(pfn, 1, pin::CPU);
            match reply.status {
                Status::Success => break,
                Status::Retry => {}
                _ => fail!("UNPIN: {reply}"),
            }
        }
        calls::host_unmap(pfn, 1);
        cpu::spin(300);
    }
    Ok(())
}

/// M1 at every moment that can be seen.
fn watch(pfn: u64) -> TestResult {
    while !crew::told_to_stop() {
        let word = calls::word(pfn);
        if page::FROZEN.get(word) != 0 {
            continue;
        }
        match State::of(word) {
            Some(State::Private) => {
                check!(page::HOST_LEAF.get(word) == 0, "a private page with a host leaf: {word:#x}");
                check!(page::CPU_PINS.get(word) == 0, "a private page with a pin: {word:#x}");
                check!(page::GUEST_LEAVES.get(word) <= 1, "{word:#x}");
            }
            Some(State::Draining) => {
                check!(page::CPU_PINS.get(word) > 0, "it drains without a pin: {word:#x}")
            }
            Some(State::Shared) => {}
            _ => fail!("the guest's page is {word:#x}"),
        }
    }
    Ok(())
}

/// Runs the guest's loop to its end: consents to what it asks, waits where it waits. The guest's count of refusals.
fn drive(host: &mut Host, vm: &mut Vm, what: u64, pfn: u64) -> Result<[u64; 5], Failure> {
    let mut event = vm.order(host, command::LOOP, &[what, IPA, TURNS])?;
    loop {
        match event {
            Event::Idle(results) => return Ok(results),
            Event::Exit(page) if page.reason == exit::CONVERT => {
                calls::host_unmap(pfn, 1);
                let reply = calls::consent(vm.handle, 0, page.sequence);
                check!(
                    matches!(
                        reply.status,
                        // PENDING: another CPU pinned the page since the guest asked, so that it drains now.
                        Status::Success | Status::Busy | Status::Retry | Status::Pending
                    ),
                    "CONSENT: {reply}"
                );
            }
            Event::Exit(page) if page.reason == exit::DRAIN => cpu::spin(100),
            Event::Exit(page) => fail!("exit {page:x?}"),
        }
        event = vm.run(host)?;
    }
}

/// A guest shares and takes back, while the others do their jobs on its page.
fn race(host: &mut Host, what: u64, jobs: &[Job]) -> TestResult {
    if crew::size(host) < jobs.len() {
        return Err(Failure::Skipped("too few CPUs"));
    }
    let before = Totals::read()?;
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, work::SECRET)?;
        let pfn = vm.frame(FREE_GFN);
        SUCCESSES.store(0, Ordering::Release);
        crew::prepare(pfn, 0);
        for (index, job) in jobs.iter().enumerate() {
            crew::give(index + 1, *job);
        }
        crew::wait_begun(jobs.len() as u64);
        let (mut turns, mut refusals, mut outcome) = (0, 0, Ok(()));
        let begin = cpu::counter();
        // Until they have met: on a busy build machine the others may not run at all for a while.
        while outcome.is_ok()
            && (turns == 0 || SUCCESSES.load(Ordering::Acquire) < MEETINGS)
            && cpu::counter().wrapping_sub(begin) < cpu::counter_frequency() * 30
        {
            outcome = drive(host, vm, what, pfn).and_then(|[n, done, answer, refused, _]| {
                check!(done == n && answer == 0, "the guest did {done} of {n}: {answer:#x}");
                turns += n;
                refusals += refused;
                Ok(())
            });
        }
        crew::stop()?;
        outcome?;
        let successes = SUCCESSES.load(Ordering::Acquire);
        note!("{turns} turns, {refusals} refusals, {successes} times the host had the page");
        check!(successes >= MEETINGS, "the host hardly met the page: no race was run");
        check_eq!(calls::state(pfn), Some(State::Private));
        check_eq!(page::CPU_PINS.get(calls::word(pfn)), 0);
        let results = vm.command(host, command::READ, &[IPA])?;
        check_eq!(results[1], work::SECRET);
        Ok(())
    })?;
    check_eq!(Totals::read()?, before);
    Ok(())
}

/// Scenarios 5, 6, 13, 20.
fn a_reading_host_never_sees_a_secret(host: &mut Host) -> TestResult {
    let jobs = [Job::Read, Job::Read, Job::Watch];
    let count = crew::size(host).min(jobs.len());
    race(host, work::SECRETS, &jobs[..count.max(1)])
}

fn a_pinning_host_never_sees_a_secret(host: &mut Host) -> TestResult {
    let jobs = [Job::Pin, Job::Read, Job::Watch];
    let count = crew::size(host).min(jobs.len());
    race(host, work::SECRETS, &jobs[..count.max(1)])
}

/// Scenario 21.
fn a_guest_that_waits_gets_through_a_pinning_host(host: &mut Host) -> TestResult {
    let jobs = [Job::Pin, Job::Pin, Job::Watch];
    let count = crew::size(host).min(jobs.len());
    race(host, work::SECRETS_DRAIN, &jobs[..count.max(1)])
}

/// Lives of VMs: donate, boot, share, unshare, die.
fn live(host: &mut Host) -> TestResult {
    for life in 0..4 {
        with_guest(host, vm_flags::PROTECTED, |host, vm| {
            vm.fill(host, FREE_GFN, 8, life)?;
            vm.share(host, FREE_GFN, 4)?;
            for gfn in FREE_GFN..FREE_GFN + 4 {
                check!(memory::is_filled(vm.frame(gfn), life), "what the host sees in life {life}");
            }
            drive(host, vm, work::SECRETS, vm.frame(FREE_GFN)).map(|_| ())?;
            vm.expect(host, FREE_GFN + 4, 4, life)
        })?;
    }
    SUCCESSES.fetch_add(1, Ordering::AcqRel);
    Ok(())
}

/// Scenario 15 in spirit: no CPU waits for another for ever.
fn lives_on_every_cpu_at_once(host: &mut Host) -> TestResult {
    let count = crew::size(host);
    if count == 0 {
        return Err(Failure::Skipped("one CPU"));
    }
    let before = Totals::read()?;
    SUCCESSES.store(0, Ordering::Release);
    crew::prepare(0, 0);
    (1..=count).for_each(|index| crew::give(index, Job::Live));
    let own = live(host);
    crew::wait_for_all()?;
    own?;
    check_eq!(SUCCESSES.load(Ordering::Acquire), count as u64 + 1);
    check_eq!(Totals::read()?, before);
    Ok(())
}

fn a_frame_is_given_to_one_of_two(host: &mut Host) -> TestResult {
    if crew::size(host) == 0 {
        return Err(Failure::Skipped("one CPU"));
    }
    let before = Totals::read()?;
    let mut one = Vm::new(host, vm_flags::PROTECTED)?;
    let mut two = Vm::new(host, vm_flags::PROTECTED)?;
    let outcome = (|| {
        one.give(host, FREE_GFN + 1, 1, status::PRIVATE)?;
        two.give(host, FREE_GFN + 1, 1, status::PRIVATE)?;
        for turn in 0..64 {
            let pfn = take(host, 1, 1)?;
            SUCCESSES.store(0, Ordering::Release);
            crew::prepare(pfn, two.handle);
            crew::give(1, Job::Donate);
            crew::wait_begun(1);
            let own = calls::donate(one.handle, FREE_GFN, pfn, 1, status::PRIVATE);
            crew::wait_for_all()?;
            let winners = SUCCESSES.load(Ordering::Acquire) + u64::from(own.is_success());
            check_eq!(
                calls::state(pfn).map(|state| state == State::Private),
                Some(winners == 1),
                "turn {turn}: {own}"
            );
            check!(winners <= 1, "turn {turn}: both got the frame");
            if winners == 0 {
                // Each met the other's frozen word.
                host.frames.give(pfn, 1);
                continue;
            }
            // Before activation the host may take it back, from the one that has it.
            let winner = if own.is_success() { &one } else { &two };
            let reply = calls::guest_unmap(winner.handle, FREE_GFN, 1);
            check!(reply.is_success(), "GUEST_UNMAP: {reply}");
            let reply = calls::reclaim(winner.handle, pfn, 1);
            check!(reply.is_success(), "RECLAIM: {reply}");
            tenure_test_hosts::vm::came_back(pfn)?;
            host.frames.give(pfn, 1);
        }
        Ok(())
    })();
    one.destroy(host)?;
    two.destroy(host)?;
    outcome?;
    check_eq!(Totals::read()?, before);
    Ok(())
}

/// VCPU_RUN of another CPU's vCPU: refused, or taken in turn; every hypercall exit that it meets it answers with NOP.
fn run_on(handle: u64) -> TestResult {
    while !crew::told_to_stop() {
        let (reply, _) = calls::vcpu_run(handle, 0);
        match reply.status {
            Status::Success => _ = SUCCESSES.fetch_add(1, Ordering::AcqRel),
            Status::Busy | Status::Retry | Status::Denied | Status::Invalid => {}
            _ => fail!("VCPU_RUN: {reply}"),
        }
    }
    Ok(())
}

fn a_vcpu_runs_on_one_cpu_at_a_time(host: &mut Host) -> TestResult {
    let count = crew::size(host);
    if count == 0 {
        return Err(Failure::Skipped("one CPU"));
    }
    let before = Totals::read()?;
    with_guest(host, vm_flags::PROTECTED, |_, vm| {
        SUCCESSES.store(0, Ordering::Release);
        crew::prepare(vm.handle, 0);
        // NOP after NOP, whoever runs it: the host's answer stays in the run page.
        vm.answer(command::NOP);
        (1..=count).for_each(|index| crew::give(index, Job::Run));
        crew::wait_begun(count as u64);
        let mut own = 0;
        let begin = cpu::counter();
        while (own < 50 || SUCCESSES.load(Ordering::Acquire) < 50)
            && cpu::counter().wrapping_sub(begin) < cpu::counter_frequency() * 20
        {
            let (reply, regs) = calls::vcpu_run(vm.handle, 0);
            match reply.status {
                Status::Success => {
                    check!(
                        matches!(regs.x(4), exit::HYPERCALL | exit::INTERRUPT),
                        "the guest was disturbed: exit {}",
                        regs.x(4)
                    );
                    own += 1;
                }
                Status::Busy | Status::Retry | Status::Denied => {}
                _ => fail!("VCPU_RUN: {reply}"),
            }
        }
        crew::stop()?;
        note!("{own} runs here, {} elsewhere", SUCCESSES.load(Ordering::Acquire));
        check!(own >= 50 && SUCCESSES.load(Ordering::Acquire) >= 50, "there was no race");
        Ok(())
    })?;
    check_eq!(Totals::read()?, before);
    Ok(())
}

fn a_vm_that_is_run_can_be_destroyed(host: &mut Host) -> TestResult {
    if crew::size(host) == 0 {
        return Err(Failure::Skipped("one CPU"));
    }
    let before = Totals::read()?;
    for _ in 0..8 {
        let mut vm = Vm::new(host, vm_flags::PROTECTED)?;
        let outcome = vm.boot(host).and_then(|()| vm.fill(host, FREE_GFN, 8, 1));
        SUCCESSES.store(0, Ordering::Release);
        crew::prepare(vm.handle, 0);
        vm.answer(command::NOP);
        crew::give(1, Job::Run);
        while outcome.is_ok() && SUCCESSES.load(Ordering::Acquire) < 100 {
            cpu::relax();
        }
        let end = vm.destroy(host);
        crew::stop()?;
        outcome?;
        end?;
    }
    check_eq!(Totals::read()?, before);
    Ok(())
}
