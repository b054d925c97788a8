//! Calls of a protected guest, measured by the guest itself.

use tenure_abi::flags::{pin, unshare, vm as vm_flags};
use tenure_abi::{PAGE_SIZE, Reply, exit};
use tenure_test_hosts::vm::{Event, FREE_GFN, Vm};
use tenure_test_hosts::{Host, calls, memory};
use tenure_test_protocol::{command, work};
use tenure_test_rt::harness::{self, Failure};
use tenure_test_rt::{check, check_eq, fail, probe};

use crate::{Clock, Measured, Watch, instructions};

const PAGES: u64 = 1024;
const RANGE: u64 = 512;
const IPA: u64 = FREE_GFN * PAGE_SIZE;

/// Measures them, in one guest with 1024 pages of its own; tenths of instructions that the scrub of a page takes.
pub fn run(host: &mut Host, clock: Clock) -> Option<u64> {
    let mut scrub = None;
    let mut vm = None;
    harness::run("bench", "a_guest_starts", || {
        let guest = vm.insert(Vm::new(host, vm_flags::PROTECTED | vm_flags::RIGHT_REVOKE)?);
        guest.boot(host)?;
        guest.fill(host, FREE_GFN, PAGES, 1)
    });
    if let Some(vm) = &mut vm {
        converting(host, vm, clock);
        scrub = scrubbing(host, vm, clock);
        touching(host, vm, clock);
        mapped(host, vm, clock);
        draining(host, vm, clock);
        waking(host, vm, clock);
        leaving(host, vm, clock);
        harness::run("bench", "the_guest_ends", || vm.destroy(host));
    }
    scrub
}

/// A loop of the guest's, answered as `Vm::run` does.
pub(crate) fn looped(
    host: &mut Host,
    vm: &mut Vm,
    clock: Clock,
    (what, ipa, n): (u64, u64, u64),
    steps: u64,
) -> Result<Measured, Failure> {
    let [_, ticks, answers, ..] = vm.command(host, command::LOOP, &[what, ipa, n])?;
    check!(what == work::PSCI_VERSION || answers == 0, "answers of the loop: {answers:#x}");
    Ok(clock.per_step(ticks, steps))
}

fn converting(host: &mut Host, vm: &mut Vm, clock: Clock) {
    let loops = [
        ("guest_empty_loop", work::EMPTY, PAGES, PAGES),
        ("guest_psci_version", work::PSCI_VERSION, PAGES, PAGES),
        ("guest_share", work::SHARE, PAGES, PAGES),
        ("guest_unshare", work::UNSHARE, PAGES, PAGES),
        ("guest_share_unshare_pair", work::PAIR, PAGES, PAGES),
        ("guest_share_range_512_per_page", work::SHARE_RANGE, RANGE, RANGE),
        ("guest_unshare_range_512_per_page", work::UNSHARE_RANGE, RANGE, RANGE),
        ("guest_stock_share", work::STOCK_SHARE, PAGES, PAGES),
        ("guest_unshare_after_stock", work::UNSHARE, PAGES, PAGES),
    ];
    for (name, what, n, steps) in loops {
        instructions(name, || looped(host, vm, clock, (what, IPA, n), steps));
    }
}

/// The guest's first touch of pages, each of which the host populates by a call of its own.
fn touching(host: &mut Host, vm: &mut Vm, clock: Clock) {
    const COUNT: u64 = 256;
    instructions("guest_first_touch", || {
        let ipa = IPA + PAGES * PAGE_SIZE;
        looped(host, vm, clock, (work::TOUCH, ipa, COUNT), COUNT)
    });
}

/// What a scrub takes: the difference between an unshare with ZERO and one without.
fn scrubbing(host: &mut Host, vm: &mut Vm, clock: Clock) -> Option<u64> {
    const COUNT: u64 = 32;
    let mut plain = 0;
    let mut scrub = None;
    for (name, flags) in
        [("unshare_32_by_order_per_page", 0), ("unshare_zero_32_by_order_per_page", unshare::ZERO)]
    {
        instructions(name, || {
            vm.share(host, FREE_GFN, COUNT)?;
            // The guest asks, so that its exits count too: the same for both.
            let watch = Watch::start();
            let reply = vm.call(host, command::UNSHARE, &[IPA, COUNT, flags])?;
            let measured = clock.per_step(watch.ticks(), COUNT);
            check_eq!(reply, Reply::done(COUNT));
            if flags == 0 {
                plain = measured.tenths;
            } else {
                scrub = Some(measured.tenths.saturating_sub(plain));
            }
            Ok(measured)
        });
    }
    scrub.and_then(|tenths| instructions("scrub_per_page", || Ok(Measured { tenths, steps: 0 })))
}

/// Unshare of pages that the host maps: the host is asked, unmaps, consents.
fn mapped(host: &mut Host, vm: &mut Vm, clock: Clock) {
    const COUNT: u64 = 64;
    instructions("host_first_touch_per_page", || {
        vm.share(host, FREE_GFN, COUNT)?;
        let first = vm.frame(FREE_GFN);
        let mut faults = 0;
        let tenths = clock.time(COUNT, || {
            for index in 0..COUNT {
                faults += u64::from(probe::read(memory::address(vm.frame(FREE_GFN + index))).faulted());
            }
        });
        check!(faults == 0 && first != 0, "{faults} faults");
        Ok(tenths)
    });
    instructions("unshare_host_mapped", || {
        let mut event = vm.order(host, command::LOOP, &[work::UNSHARE, IPA, COUNT])?;
        let results = loop {
            match event {
                Event::Idle(results) => break results,
                Event::Exit(page) => {
                    check_eq!(page.reason, exit::CONVERT);
                    let reply = calls::host_unmap(vm.frame(page.gpa / PAGE_SIZE), 1);
                    check!(reply.is_success(), "HOST_UNMAP: {reply}");
                    let reply = calls::consent(vm.handle, 0, page.sequence);
                    check!(reply.is_success(), "CONSENT: {reply}");
                }
            }
            event = vm.run(host)?;
        };
        check_eq!(results[2], 0, "answers");
        Ok(clock.per_step(results[1], COUNT))
    });
    instructions("consent_drops_host_leaf", || consents(host, vm, clock, COUNT));
}

/// The host's consent alone: EL2 drops the host's leaf, whatever the host has unmapped.
fn consents(host: &mut Host, vm: &mut Vm, clock: Clock, count: u64) -> Result<Measured, Failure> {
    vm.share(host, FREE_GFN, count)?;
    let mut ticks = 0;
    for index in 0..count {
        check!(!probe::read(memory::address(vm.frame(FREE_GFN + index))).faulted());
        let event = vm.order(host, command::UNSHARE, &[IPA + index * PAGE_SIZE, 1, 0])?;
        let Event::Exit(page) = event else { fail!("the host was not asked: {event:x?}") };
        let watch = Watch::start();
        let reply = calls::consent(vm.handle, 0, page.sequence);
        ticks += watch.ticks();
        check_eq!(reply, Reply::done(1));
        vm.resume(host)?;
    }
    Ok(clock.per_step(ticks, count))
}

/// The last unpin of a draining page.
fn draining(host: &mut Host, vm: &mut Vm, clock: Clock) {
    const COUNT: u64 = 32;
    instructions("unpin_that_ends_a_drain", || {
        vm.share(host, FREE_GFN, COUNT)?;
        for index in 0..COUNT {
            let pfn = vm.frame(FREE_GFN + index);
            check!(!probe::read(memory::address(pfn)).faulted());
            check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
        }
        for index in 0..COUNT {
            let reply = vm.call(host, command::UNSHARE, &[IPA + index * PAGE_SIZE, 1, unshare::DRAIN])?;
            check_eq!(reply.status, tenure_abi::Status::Pending);
        }
        let mut drained = 0;
        let tenths = clock.time(COUNT, || {
            for index in 0..COUNT {
                drained += calls::unpin(vm.frame(FREE_GFN + index), 1, pin::CPU).1.x(4);
            }
        });
        check_eq!(drained, COUNT);
        for index in 0..COUNT {
            check!(calls::host_unmap(vm.frame(FREE_GFN + index), 1).is_success());
        }
        Ok(tenths)
    });
}

/// From the unpin that ends a drain to the guest that waited for it going on.
fn waking(host: &mut Host, vm: &mut Vm, clock: Clock) {
    const COUNT: u64 = 32;
    instructions("drain_wakeup", || {
        let pfn = vm.frame(FREE_GFN);
        let mut ticks = 0;
        for _ in 0..COUNT {
            vm.share(host, FREE_GFN, 1)?;
            check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
            let event = vm.order(host, command::UNSHARE, &[IPA, 1, unshare::DRAIN | unshare::WAIT])?;
            check!(matches!(event, Event::Exit(page) if page.reason == exit::DRAIN), "{event:x?}");
            let watch = Watch::start();
            let (_, regs) = calls::unpin(pfn, 1, pin::CPU);
            let event = vm.run(host)?;
            ticks += watch.ticks();
            check_eq!((regs.x(4), regs.x(5)), (1, vm.handle), "drained, and whom to wake");
            check!(matches!(event, Event::Idle([0, 1, ..])), "{event:x?}");
        }
        Ok(clock.per_step(ticks, COUNT))
    });
}

/// An exit to the host and back, with the least that a host can do, by the guest's clock.
fn leaving(host: &mut Host, vm: &mut Vm, clock: Clock) {
    instructions("guest_exit_and_entry", || {
        let event = vm.order(host, command::LOOP, &[work::HOST_CALL, 0, 256])?;
        check!(matches!(event, Event::Exit(page) if page.reason == exit::HYPERCALL), "{event:x?}");
        // From the second exit on, nothing but VCPU_RUN stands between them.
        let mut reason = exit::HYPERCALL;
        let mut turns = 0u64;
        vm.answer(0);
        let tenths = clock.time(250, || {
            while turns < 250 && reason == exit::HYPERCALL {
                reason = calls::vcpu_run(vm.handle, 0).1.x(4);
                turns += 1;
            }
        });
        check_eq!((turns, reason), (250, exit::HYPERCALL));
        loop {
            match vm.run(host)? {
                Event::Idle(_) => return Ok(tenths),
                Event::Exit(page) => check_eq!(page.reason, exit::HYPERCALL),
            }
            vm.answer(0);
        }
    });
}
