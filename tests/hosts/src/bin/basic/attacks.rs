//! The host as an enemy: it reaches for what is not its own (F1), lies, and gives away what the hypervisor uses.

use tenure_abi::flags::{status, vm as vm_flags};
use tenure_abi::page::State;
use tenure_abi::{PAGE_SIZE, RunPage, Status, exit, info};
use tenure_test_hosts::vm::{self, Event, FREE_GFN, with_guest};
use tenure_test_hosts::{Host, calls, memory};
use tenure_test_protocol::{command, outcome};
use tenure_test_rt::harness::TestResult;
use tenure_test_rt::probe::{self, Outcome, Road};
use tenure_test_rt::{check, check_eq, fail};

crate::tests!(
    private_page_faults_by_every_road,
    hypervisor_memory_faults_by_every_road,
    a_table_page_faults,
    the_same_access_faults_every_time,
    the_hosts_aborts_are_counted,
    vectors_get_the_abort_with_all_registers_kept,
    a_host_page_table_in_a_private_page_reads_nothing,
    own_run_page_cannot_be_given_away,
    a_run_page_full_of_rubbish_harms_nobody,
    a_guests_frame_cannot_be_a_run_page,
    private_page_cannot_be_replaced,
    an_old_copy_cannot_be_given_back,
    a_private_page_cannot_be_made_shared,
);

/// Data abort of the same level, alignment fault: the one that Linux sends to its exception table for every address.
const ALIGNMENT: (u64, u64) = (0x25, 0x21);
/// Instruction abort of the same level, synchronous external abort.
const EXTERNAL_FETCH: (u64, u64) = (0x21, 0x10);

/// Tries every road to `address`; cache maintenance may go through where the emulator does not translate for it.
fn attack(address: u64) -> TestResult {
    for road in Road::all() {
        let what = probe::touch(road, address + 0x40, 0x4141_4141);
        let Outcome::Fault { esr, far } = what else {
            if matches!(road, Road::CleanInvalidate | Road::Invalidate) {
                continue;
            }
            fail!("{road:?} of {address:#x} went through: {what:x?}");
        };
        let expected = if road == Road::Execute { EXTERNAL_FETCH } else { ALIGNMENT };
        check_eq!(what.class_and_status(), Some(expected), "{road:?}");
        // DC ZVA may report the start of its block.
        check_eq!(far & !0x3f, address + 0x40, "FAR of {road:?}");
        if matches!(road, Road::Read(_) | Road::Write(_) | Road::Pair | Road::Zero) {
            check_eq!(esr >> 6 & 1 == 1, matches!(road, Road::Write(_) | Road::Zero), "WnR of {road:?}");
        }
        check_eq!(esr >> 24 & 1, 0, "ISV of {road:?}");
    }
    Ok(())
}

fn private_page_faults_by_every_road(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, 0x5ec7e7)?;
        attack(memory::address(vm.frame(FREE_GFN)))?;
        vm.expect(host, FREE_GFN, 1, 0x5ec7e7)?;
        // The image too: the guest's code and stack.
        attack(memory::address(vm.frame(vm::RAM_GFN)))?;
        attack(memory::address(vm.frame(vm::RAM_GFN + 15)))?;
        vm.command(host, command::NOP, &[])?;
        Ok(())
    })
}

fn hypervisor_memory_faults_by_every_road(_: &mut Host) -> TestResult {
    let (first, end) = (calls::figure(info::FIRST_PFN), calls::figure(info::END_PFN));
    let mut tried = 0;
    for pfn in first..end {
        if calls::state(pfn) != Some(State::Hyp) {
            continue;
        }
        let address = memory::address(pfn);
        if tried < 4 {
            attack(address)?;
        }
        // Every frame of it: one read and one write.
        check!(probe::read(address).faulted(), "{address:#x} can be read");
        check!(probe::write(address + 8, 0x41).faulted(), "{address:#x} can be written");
        tried += 1;
    }
    check!(tried > 16, "only {tried} frames of the hypervisor");
    Ok(())
}

/// Pages that the host gave as table memory are the hypervisor's.
fn a_table_page_faults(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |_, vm| {
        for pfn in vm.pool_frames() {
            check_eq!(calls::state(pfn), Some(State::Hyp));
            check!(probe::read(memory::address(pfn)).faulted(), "table page {pfn:#x} can be read");
            check!(probe::write(memory::address(pfn), 0x41).faulted(), "table page {pfn:#x} can be written");
        }
        Ok(())
    })
}

/// EL2 keeps no memory of earlier faults.
fn the_same_access_faults_every_time(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, 1)?;
        let address = memory::address(vm.frame(FREE_GFN));
        for _ in 0..1000 {
            check_eq!(probe::read(address).class_and_status(), Some(ALIGNMENT));
        }
        Ok(())
    })
}

fn the_hosts_aborts_are_counted(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, 1)?;
        let before = calls::figure(info::HOST_ABORTS);
        for _ in 0..5 {
            probe::read(memory::address(vm.frame(FREE_GFN)));
        }
        check_eq!(calls::figure(info::HOST_ABORTS) - before, 5);
        Ok(())
    })
}

/// The emulated entry keeps x0..x30 and returns to the right mode: a probe's value register is untouched.
fn vectors_get_the_abort_with_all_registers_kept(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, 1)?;
        let address = memory::address(vm.frame(FREE_GFN));
        let seen = probe::faulting_context(address);
        let Some(context) = seen else { fail!("no fault") };
        check_eq!(context.spsr & 0xf, 5, "mode before the fault (EL1h)");
        check_eq!(context.daif_in_handler & 0x3c0, 0x3c0, "DAIF in the handler");
        check_eq!(context.marker, 0x1234_5678_9abc_def0, "a register that the access does not use");
        Ok(())
    })
}

/// The walk of a host table that lies in a private page is an access of the host's like any other (F1).
fn a_host_page_table_in_a_private_page_reads_nothing(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        // A table full of valid-looking block descriptors, in the guest's own page.
        vm.fill(host, FREE_GFN, 1, 0x4000_0705)?;
        let table = memory::address(vm.frame(FREE_GFN));
        let what = probe::through_table(table);
        check!(what.faulted(), "the walker read a private page: {what:x?}");
        check_eq!(calls::state(vm.frame(FREE_GFN)), Some(State::Private));
        vm.expect(host, FREE_GFN, 1, 0x4000_0705)
    })
}

/// Scenario 29.
fn own_run_page_cannot_be_given_away(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let run = vm.run_pfn;
        for (name, reply) in [
            ("DONATE", calls::donate(vm.handle, FREE_GFN, run, 1, status::PRIVATE)),
            ("POOL_TOPUP of the VM", calls::pool_topup(vm.handle, run, 1)),
            ("POOL_TOPUP of the host", calls::pool_topup(0, run, 1)),
            ("POISON", calls::poison(run)),
            ("RECLAIM", calls::reclaim(vm.handle, run, 1)),
        ] {
            check!(!reply.is_success(), "{name} of the run page: {reply}");
            if name != "RECLAIM" {
                check_eq!((reply.status, reply.mask), (Status::Busy, tenure_abi::reply::HYP_PIN), "{name}");
            }
        }
        check_eq!(calls::state(run), Some(State::Host));
        vm.command(host, command::NOP, &[])?;
        Ok(())
    })
}

fn a_run_page_full_of_rubbish_harms_nobody(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, 0x600d)?;
        vm.populate = false;
        for value in [u64::MAX, 0x4141_4141_4141_4141, 1] {
            // At a populate exit, where the host's words must not matter at all.
            let event = vm.order(host, command::READ, &[(FREE_GFN + 1) * PAGE_SIZE])?;
            let Event::Exit(RunPage { reason: exit::POPULATE, .. }) = event else { fail!("{event:x?}") };
            check!(memory::fill(vm.run_pfn, value));
            vm.give(host, FREE_GFN + 1, 1, status::PRIVATE)?;
            check_eq!(vm.resume(host)?, [outcome::OK, 0, 0, 0, 0]);
            let reply = vm.call(host, command::RELINQUISH, &[(FREE_GFN + 1) * PAGE_SIZE, 1])?;
            check!(reply.is_success(), "{reply}");
            vm.forget(host, FREE_GFN + 1);
        }
        vm.expect(host, FREE_GFN, 1, 0x600d)
    })
}

fn a_guests_frame_cannot_be_a_run_page(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 2, 1)?;
        vm.share(host, FREE_GFN + 1, 1)?;
        for pfn in [vm.frame(FREE_GFN), vm.frame(FREE_GFN + 1)] {
            let reply = calls::vcpu_create(vm.handle, 1, pfn);
            check!(!reply.is_success(), "{reply}");
        }
        Ok(())
    })
}

/// U10, scenario 28.
fn private_page_cannot_be_replaced(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, 0x01d)?;
        check!(!calls::guest_unmap(vm.handle, FREE_GFN, 1).is_success(), "GUEST_UNMAP");
        check!(!calls::reclaim(vm.handle, vm.frame(FREE_GFN), 1).is_success(), "RECLAIM");
        let pfn = vm::take(host, 1, 1)?;
        check!(memory::fill(pfn, 0xbad));
        for kind in [status::PRIVATE, status::SHARED] {
            check!(!calls::donate(vm.handle, FREE_GFN, pfn, 1, kind).is_success(), "DONATE over it");
            check!(!calls::guest_map(vm.handle, FREE_GFN, pfn, 1).is_success(), "GUEST_MAP over it");
        }
        check!(memory::is_filled(pfn, 0xbad), "a refused donate scrubbed the host's frame");
        host.frames.give(pfn, 1);
        vm.expect(host, FREE_GFN, 1, 0x01d)
    })
}

/// What a guest gets at a populated address is scrubbed, whatever the host put there before.
fn an_old_copy_cannot_be_given_back(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.populate = false;
        let event = vm.order(host, command::CHECK, &[FREE_GFN * PAGE_SIZE, 1, 0])?;
        check!(matches!(event, Event::Exit(RunPage { reason: exit::POPULATE, .. })), "{event:x?}");
        let pfn = vm::take(host, 1, 1)?;
        check!(memory::fill(pfn, 0x01dc_0b1e));
        vm.donate(host, FREE_GFN, pfn, 1, status::PRIVATE)?;
        check_eq!(vm.resume(host)?, [outcome::OK, 0, 0, 0, 1], "words that are not zero");
        Ok(())
    })
}

fn a_private_page_cannot_be_made_shared(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.fill(host, FREE_GFN, 1, 0x9)?;
        let pfn = vm.frame(FREE_GFN);
        for reply in [
            calls::convert(vm.handle, FREE_GFN, 1, status::SHARED),
            calls::set_status(vm.handle, FREE_GFN, 1, status::SHARED),
            calls::host_map(pfn, 1),
            calls::consent(vm.handle, 0, 0),
            calls::vm_activate(vm.handle),
        ] {
            let _ = reply;
            check_eq!(calls::state(pfn), Some(State::Private));
            check!(probe::read(memory::address(pfn)).faulted());
        }
        vm.expect(host, FREE_GFN, 1, 0x9)
    })
}
