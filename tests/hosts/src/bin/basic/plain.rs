//! A plain VM: its memory stays the host's, or is donated and converted by the host.

use tenure_abi::flags::{pin, status};
use tenure_abi::page::{self, State};
use tenure_abi::{PAGE_SIZE, Reply, Status, reg, reply};
use tenure_test_hosts::totals::Totals;
use tenure_test_hosts::vm::{self, FREE_GFN, RAM_GFN, RAM_PAGES, Vm, with_guest};
use tenure_test_hosts::{Host, calls, memory};
use tenure_test_protocol::command;
use tenure_test_rt::harness::TestResult;
use tenure_test_rt::probe::{self, Outcome};
use tenure_test_rt::{check, check_eq};

crate::tests!(
    a_mapped_host_page_is_seen_by_both,
    a_mapped_host_page_cannot_be_donated,
    the_host_takes_a_mapped_page_back_unscrubbed,
    the_host_converts_donated_memory_with_contents,
    the_host_may_not_convert_a_pinned_page,
    registers_of_a_plain_guest_are_the_hosts_to_see,
    a_plain_life_gives_every_page_back,
);

/// Where host pages are mapped: an address that nothing is declared at.
const GFN: u64 = RAM_GFN + RAM_PAGES + 16;

fn a_mapped_host_page_is_seen_by_both(host: &mut Host) -> TestResult {
    with_guest(host, 0, |host, vm| {
        let pfn = mapped(host, vm, 0x11)?;
        vm.expect(host, GFN, 1, 0x11)?;
        vm.fill(host, GFN, 1, 0x22)?;
        check!(memory::is_filled(pfn, 0x22));
        check_eq!(calls::state(pfn), Some(State::Host));
        check_eq!(page::GUEST_LEAVES.get(calls::word(pfn)), 1);
        unmap(host, vm, pfn)
    })
}

/// A host frame of the given contents, mapped at GFN.
fn mapped(host: &mut Host, vm: &mut Vm, value: u64) -> Result<u64, tenure_test_rt::harness::Failure> {
    let pfn = vm::take(host, 1, 1)?;
    check!(memory::fill(pfn, value));
    let mut reply = calls::guest_map(vm.handle, GFN, pfn, 1);
    if reply.status == Status::NoMemory {
        vm.top_up(host, 8)?;
        reply = calls::guest_map(vm.handle, GFN, pfn, 1);
    }
    check_eq!(reply, Reply::done(1), "GUEST_MAP");
    Ok(pfn)
}

fn unmap(host: &mut Host, vm: &Vm, pfn: u64) -> TestResult {
    check_eq!(calls::guest_unmap(vm.handle, GFN, 1), Reply::done(1), "GUEST_UNMAP");
    check_eq!(page::GUEST_LEAVES.get(calls::word(pfn)), 0);
    check!(memory::fill(pfn, 0));
    host.frames.give(pfn, 1);
    Ok(())
}

/// F6.
fn a_mapped_host_page_cannot_be_donated(host: &mut Host) -> TestResult {
    with_guest(host, 0, |host, vm| {
        let pfn = mapped(host, vm, 0x12)?;
        for reply in [
            calls::donate(vm.handle, FREE_GFN + 1, pfn, 1, status::PRIVATE),
            calls::pool_topup(vm.handle, pfn, 1),
            calls::pool_topup(0, pfn, 1),
        ] {
            check!(!reply.is_success() && reply.mask & reply::GUEST_LEAF != 0, "{reply}");
        }
        vm.expect(host, GFN, 1, 0x12)?;
        unmap(host, vm, pfn)
    })
}

fn the_host_takes_a_mapped_page_back_unscrubbed(host: &mut Host) -> TestResult {
    with_guest(host, 0, |host, vm| {
        let pfn = mapped(host, vm, 0x13)?;
        vm.expect(host, GFN, 1, 0x13)?;
        check_eq!(calls::guest_unmap(vm.handle, GFN, 1), Reply::done(1));
        check!(memory::is_filled(pfn, 0x13), "the host's page was scrubbed");
        // The next touch asks again.
        vm.populate = false;
        let event = vm.order(host, command::READ, &[GFN * PAGE_SIZE])?;
        check!(matches!(event, vm::Event::Exit(_)), "{event:x?}");
        check_eq!(calls::guest_map(vm.handle, GFN, pfn, 1), Reply::done(1));
        check_eq!(vm.resume(host)?[1], 0x13);
        unmap(host, vm, pfn)
    })
}

/// Only on a plain VM may the host convert at any time; contents stay (U8).
fn the_host_converts_donated_memory_with_contents(host: &mut Host) -> TestResult {
    with_guest(host, 0, |host, vm| {
        vm.fill(host, FREE_GFN, 2, 0x14)?;
        let pfn = vm.frame(FREE_GFN);
        check_eq!(calls::state(pfn), Some(State::Private));
        check!(
            probe::read(memory::address(pfn)).faulted(),
            "donated private memory is private of a plain VM too"
        );
        check_eq!(calls::convert(vm.handle, FREE_GFN, 2, status::SHARED), Reply::done(2));
        check!(memory::is_filled(pfn, 0x14));
        // The host's own wish: its leaf goes with it.
        check_eq!(calls::convert(vm.handle, FREE_GFN, 2, status::PRIVATE), Reply::done(2));
        check!(probe::read(memory::address(pfn)).faulted());
        vm.expect(host, FREE_GFN, 2, 0x14)
    })
}

fn the_host_may_not_convert_a_pinned_page(host: &mut Host) -> TestResult {
    with_guest(host, 0, |host, vm| {
        vm.fill(host, FREE_GFN, 4, 0x15)?;
        check_eq!(calls::convert(vm.handle, FREE_GFN, 4, status::SHARED), Reply::done(4));
        let pfn = vm.frame(FREE_GFN + 1);
        check_eq!(calls::pin(pfn, 1, pin::CPU), Reply::done(1));
        let reply = calls::convert(vm.handle, FREE_GFN, 4, status::PRIVATE);
        check_eq!(reply, Reply::blocked(Status::Busy, 1, reply::CPU_PIN));
        for gfn in FREE_GFN..FREE_GFN + 4 {
            check_eq!(calls::state(vm.frame(gfn)), Some(State::Shared));
        }
        check!(calls::unpin(pfn, 1, pin::CPU).0.is_success());
        check_eq!(calls::convert(vm.handle, FREE_GFN, 4, status::PRIVATE), Reply::done(4));
        vm.expect(host, FREE_GFN, 4, 0x15)
    })
}

fn registers_of_a_plain_guest_are_the_hosts_to_see(host: &mut Host) -> TestResult {
    with_guest(host, 0, |_, vm| {
        let (reply, regs) = calls::reg_get(vm.handle, 0, reg::PC);
        check!(reply.is_success(), "REG_GET: {reply}");
        let ram =
            tenure_test_protocol::ENTRY..tenure_test_protocol::ENTRY + tenure_test_protocol::IMAGE_BYTES;
        check!(ram.contains(&regs.x(4)), "PC {:#x}", regs.x(4));
        Ok(())
    })
}

fn a_plain_life_gives_every_page_back(host: &mut Host) -> TestResult {
    let before = Totals::read()?;
    let mut vm = Vm::new(host, 0)?;
    vm.boot(host)?;
    let pfn = mapped(host, &mut vm, 0x16)?;
    vm.fill(host, FREE_GFN + 4, 4, 0x16)?;
    // The VM dies with the page mapped: it stays the host's, as it was.
    vm.expect(host, GFN, 1, 0x16)?;
    vm.destroy(host)?;
    check_eq!(calls::state(pfn), Some(State::Host));
    check_eq!(page::GUEST_LEAVES.get(calls::word(pfn)), 0);
    check_eq!(probe::read(memory::address(pfn)), Outcome::Value(0x16));
    check!(memory::fill(pfn, 0));
    host.frames.give(pfn, 1);
    check_eq!(Totals::read()?, before);
    Ok(())
}
