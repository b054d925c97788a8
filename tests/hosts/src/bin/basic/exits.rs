//! Why a vCPU leaves, and what an exit shows.

use tenure_abi::flags::{status, vm as vm_flags};
use tenure_abi::{PAGE_SIZE, RunPage, Status, call, exit, reg, smccc};
use tenure_test_hosts::vm::{Event, FREE_GFN, Vm, with_guest};
use tenure_test_hosts::{Host, calls};
use tenure_test_protocol::{CONSOLE, command, outcome, sysreg};
use tenure_test_rt::call::{hvc, psci};
use tenure_test_rt::harness::{Failure, TestResult};
use tenure_test_rt::{check, check_eq, cpu, fail};

crate::tests!(
    guest_reaches_its_loop_and_prints,
    touch_of_ram_asks_for_a_frame,
    only_a_frame_completes_a_touch,
    device_accesses_are_mmio_exits,
    an_exit_shows_only_what_it_needs,
    undeclared_address_is_an_abort_in_a_protected_guest,
    an_injected_abort_arrives,
    hypercall_carries_its_arguments_only,
    registers_of_an_active_guest_are_its_own,
    host_registers_survive_a_guest,
    fp_registers_do_not_leak,
    hidden_registers_trap,
    psci_is_answered_without_an_exit,
    stock_discovery,
    power_off_is_an_exit_and_final,
    wfi_is_an_exit,
);

fn exit_of(event: Event) -> Result<RunPage, Failure> {
    match event {
        Event::Exit(page) => Ok(page),
        Event::Idle(results) => fail!("no exit: the guest says {results:x?}"),
    }
}

fn guest_reaches_its_loop_and_prints(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        check!(vm.exits[exit::MMIO as usize] > 10, "the guest printed nothing");
        let results = vm.command(host, command::NOP, &[])?;
        check_eq!(results, [0; 5]);
        let before = vm.exits[exit::MMIO as usize];
        vm.command(host, command::PRINT, &[])?;
        check_eq!(vm.exits[exit::MMIO as usize] - before, 14, "characters of \"guest: hello\"");
        Ok(())
    })
}

fn touch_of_ram_asks_for_a_frame(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.populate = false;
        let page = exit_of(vm.order(host, command::READ, &[FREE_GFN * PAGE_SIZE + 8])?)?;
        check_eq!(page.reason, exit::POPULATE);
        check_eq!(page.gpa / PAGE_SIZE, FREE_GFN);
        check_eq!(page.status, status::PRIVATE);
        check!(page.count >= 1);
        let pfn = vm.give(host, FREE_GFN, 1, status::PRIVATE)?;
        let results = vm.resume(host)?;
        check_eq!(results, [outcome::OK, 0, 0, 0, 0], "a fresh page reads zero");
        check_eq!(calls::state(pfn), Some(tenure_abi::page::State::Private));
        Ok(())
    })
}

/// `data` written by the host completes nothing: the access is executed again.
fn only_a_frame_completes_a_touch(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.populate = false;
        let mut event = vm.order(host, command::READ, &[FREE_GFN * PAGE_SIZE])?;
        for _ in 0..3 {
            check_eq!(exit_of(event)?.reason, exit::POPULATE);
            vm.answer(0xbad);
            event = vm.run(host)?;
        }
        vm.give(host, FREE_GFN, 1, status::PRIVATE)?;
        let results = vm.resume(host)?;
        check_eq!(results, [outcome::OK, 0, 0, 0, 0]);
        Ok(())
    })
}

fn device_accesses_are_mmio_exits(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        for (width, mask) in [(1, 0xff), (2, 0xffff), (4, 0xffff_ffff), (8, u64::MAX)] {
            let page = exit_of(vm.order(host, command::LOAD, &[CONSOLE + 0x100, width])?)?;
            check_eq!(
                (page.reason, page.gpa, page.width, page.write),
                (exit::MMIO, CONSOLE + 0x100, width, 0)
            );
            vm.answer(0x1122_3344_5566_7788);
            let results = vm.resume(host)?;
            check_eq!(results, [outcome::OK, 0x1122_3344_5566_7788 & mask, 0, 0, 0], "width {width}");
            let page =
                exit_of(vm.order(host, command::STORE, &[CONSOLE + 0x200, width, 0x8877_6655_4433_2211])?)?;
            check_eq!(
                (page.reason, page.gpa, page.width, page.write),
                (exit::MMIO, CONSOLE + 0x200, width, 1)
            );
            check_eq!(page.data, 0x8877_6655_4433_2211 & mask, "width {width}");
            let results = vm.resume(host)?;
            check_eq!(results[0], outcome::OK);
        }
        Ok(())
    })
}

/// C5: the fields that a reason does not name are zero, for a protected guest.
fn an_exit_shows_only_what_it_needs(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        vm.populate = false;
        let page = exit_of(vm.order(host, command::LOAD, &[CONSOLE + 0x100, 4])?)?;
        let expected = RunPage { reason: exit::MMIO, gpa: CONSOLE + 0x100, width: 4, ..RunPage::default() };
        check_eq!(RunPage { timer_ctl: 0, timer_cval: 0, ..page }, expected);
        vm.answer(1);
        vm.resume(host)?;
        let page = exit_of(vm.order(host, command::WRITE, &[FREE_GFN * PAGE_SIZE + 0x18, 0x5ec7e7])?)?;
        check_eq!(page.reason, exit::POPULATE);
        check_eq!(page.gpa, FREE_GFN * PAGE_SIZE, "the page, not the word in it");
        check_eq!((page.data, page.width, page.write, page.esr, page.args), (0, 0, 0, 0, [0; 6]));
        vm.give(host, FREE_GFN, 1, status::PRIVATE)?;
        vm.resume(host)?;
        Ok(())
    })
}

fn undeclared_address_is_an_abort_in_a_protected_guest(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        for address in [0x1000, CONSOLE + PAGE_SIZE, 0x5000_0000, 0x40_0000_0000 - PAGE_SIZE] {
            for (order, arguments) in [(command::READ, &[address][..]), (command::WRITE, &[address, 1])] {
                let results = vm.command(host, order, arguments)?;
                check_eq!(results[0], outcome::FAULT, "{address:#x}");
                check_eq!(results[2] >> 26, 0x25, "exception class at {address:#x}");
                check_eq!(results[3], address, "FAR");
            }
        }
        Ok(())
    })
}

fn an_injected_abort_arrives(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        exit_of(vm.order(host, command::LOAD, &[CONSOLE + 0x300, 8])?)?;
        let reply = vm.inject_abort();
        check!(reply.is_success(), "VCPU_INJECT: {reply}");
        let results = vm.resume(host)?;
        check_eq!(results[0], outcome::FAULT);
        check_eq!(results[2] & 0x3f, 0x10, "synchronous external abort");
        check_eq!(results[3], CONSOLE + 0x300, "FAR");
        Ok(())
    })
}

fn hypercall_carries_its_arguments_only(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let arguments = [tenure_abi::guest::HOST_CALL, 0x11, 0x22, 0x33, 0x44, 0x55];
        let page = exit_of(vm.order(host, command::HVC, &arguments)?)?;
        let expected = RunPage {
            reason: exit::HYPERCALL,
            args: [0x11, 0x22, 0x33, 0x44, 0x55, 0],
            ..RunPage::default()
        };
        check_eq!(RunPage { timer_ctl: 0, timer_cval: 0, ..page }, expected);
        vm.answer(0xfeed_face_cafe_beef);
        let results = vm.resume(host)?;
        check_eq!(results[0], 0xfeed_face_cafe_beef);
        Ok(())
    })
}

fn registers_of_an_active_guest_are_its_own(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        for register in reg::X0..=reg::POWER + 2 {
            let (reply, regs) = calls::reg_get(vm.handle, 0, register);
            check!(!reply.is_success(), "REG_GET of {register}: {reply}");
            check_eq!(regs.x(4), 0, "REG_GET of {register}");
            let reply = calls::reg_set(vm.handle, 0, register, 0x4141_4141);
            check!(!reply.is_success(), "REG_SET of {register}: {reply}");
        }
        vm.command(host, command::NOP, &[])?;
        Ok(())
    })?;
    // Before activation, and of a plain VM, they are the host's to see.
    let mut vm = Vm::new(host, vm_flags::PROTECTED)?;
    let (reply, regs) = calls::reg_get(vm.handle, 0, reg::PC);
    vm.destroy(host)?;
    check!(reply.is_success(), "REG_GET before activation: {reply}");
    check_eq!(regs.x(4), tenure_test_protocol::ENTRY);
    Ok(())
}

/// x0..x17 of the host carry results or stay as SMCCC says; no guest value is in them.
fn host_registers_survive_a_guest(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let arguments =
            [tenure_abi::guest::HOST_CALL, 0x5ec_0001, 0x5ec_0002, 0x5ec_0003, 0x5ec_0004, 0x5ec_0005];
        exit_of(vm.order(host, command::HVC, &arguments)?)?;
        vm.answer(0);
        vm.resume(host)?;
        vm.answer(command::NOP);
        let regs = hvc(call::VCPU_RUN, &[vm.handle, 0]);
        check_eq!(regs.reply().status, Status::Success);
        for n in 5..18 {
            check!(regs.x(n) < 0x5ec_0000, "x{n} = {:#x} after VCPU_RUN", regs.x(n));
        }
        check_eq!(cpu::current_el_raw() >> 2, 1);
        Ok(())
    })
}

fn fp_registers_do_not_leak(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        cpu::swap_fp(0x0505);
        let [dirty, ..] = vm.command(host, command::FP_SWAP, &[0x6006])?;
        check_eq!(dirty, 0, "FP registers of the host that the guest saw");
        check_eq!(cpu::swap_fp(0), 32, "FP registers of the host after the guest");
        let [kept, ..] = vm.command(host, command::FP_SWAP, &[0])?;
        check_eq!(kept, 32, "FP registers of the guest after the host");
        Ok(())
    })
}

fn hidden_registers_trap(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let midr = vm.command(host, command::SYSREG, &[sysreg::MIDR])?;
        check_eq!((midr[0], midr[1]), (outcome::OK, cpu::midr()), "MIDR_EL1");
        let mpidr = vm.command(host, command::SYSREG, &[sysreg::MPIDR])?;
        check_eq!(mpidr[1] & 0xff, 0, "affinity of vCPU 0");
        let pfr0 = vm.command(host, command::SYSREG, &[sysreg::PFR0])?;
        check_eq!(pfr0[0], outcome::OK, "ID_AA64PFR0_EL1");
        check_eq!(pfr0[1] & 0xff00, 0, "a guest has neither EL2 nor EL3");
        let dfr0 = vm.command(host, command::SYSREG, &[sysreg::DFR0])?;
        check_eq!(dfr0[1] >> 8 & 0xf, 0, "PMUVer");
        let pmcr = vm.command(host, command::SYSREG, &[sysreg::PMCR])?;
        check_eq!(pmcr[0], outcome::FAULT, "PMCR_EL0");
        let clock = vm.command(host, command::SYSREG, &[sysreg::CNTVCT])?;
        check!(clock[0] == outcome::OK && clock[1] > 0, "CNTVCT_EL0: {clock:x?}");
        Ok(())
    })
}

fn psci_is_answered_without_an_exit(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        for order in [command::HVC, command::SMC] {
            let before: u32 = vm.exits.iter().sum();
            let [version, ..] = vm.command(host, order, &[psci::VERSION, 0, 0, 0, 0, 0])?;
            check!((0x1_0000..=0x1_ffff).contains(&version), "PSCI_VERSION by order {order}: {version:#x}");
            // Six arguments and the next request.
            check_eq!(vm.exits.iter().sum::<u32>() - before, 7);
        }
        // Nothing of the firmware's is a guest's to call, by either conduit.
        for (order, id) in
            [(command::HVC, 0xC400_0021), (command::SMC, 0xC400_0021), (command::SMC, 0x8400_0063)]
        {
            let [answer, ..] = vm.command(host, order, &[id, 0, 0, 0, 0, 0])?;
            check_eq!(answer as u32, u32::MAX, "{id:#x}");
        }
        let [answer, ..] = vm.command(host, command::HVC, &[psci::CPU_ON, 1, 0x4000_0000, 0, 0, 0])?;
        check!((answer as i64) < 0, "CPU_ON of a vCPU that is not there: {answer:#x}");
        let [answer, ..] = vm.command(host, command::HVC, &[psci::AFFINITY_INFO, 0, 0, 0, 0, 0])?;
        check_eq!(answer, 0, "AFFINITY_INFO of vCPU 0");
        Ok(())
    })
}

/// C1: what a stock Linux guest asks.
fn stock_discovery(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let uid = vm.command(host, command::HVC, &[smccc::VENDOR_HYP_UID, 0, 0, 0, 0, 0])?;
        for (found, word) in uid.iter().zip(smccc::KVM_UID) {
            check_eq!(*found, u64::from(word), "UID");
        }
        let [features, ..] = vm.command(host, command::HVC, &[smccc::KVM_FEATURES, 0, 0, 0, 0, 0])?;
        check_eq!(features & 0x1c, 0x1c, "MEMINFO, SHARE, UNSHARE in {features:#x}");
        let [granule, ..] = vm.command(host, command::HVC, &[smccc::KVM_MEMINFO, 0, 0, 0, 0, 0])?;
        check_eq!(granule, PAGE_SIZE);
        let [version, ..] = vm.command(host, command::HVC, &[smccc::VERSION, 0, 0, 0, 0, 0])?;
        check!(version >= 0x1_0001, "SMCCC {version:#x}");
        let [unknown, ..] = vm.command(host, command::HVC, &[0x8600_003f, 0, 0, 0, 0, 0])?;
        check_eq!(unknown as u32, u32::MAX);
        Ok(())
    })
}

fn power_off_is_an_exit_and_final(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let page = exit_of(vm.order(host, command::OFF, &[])?)?;
        check_eq!((page.reason, page.system), (exit::SYSTEM, exit::system::OFF));
        let (reply, regs) = calls::vcpu_run(vm.handle, 0);
        check!(
            !reply.is_success() || regs.x(4) == exit::OFF || regs.x(4) == exit::SYSTEM,
            "a vCPU runs after power-off: {reply}, exit {}",
            regs.x(4)
        );
        Ok(())
    })
}

fn wfi_is_an_exit(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let page = exit_of(vm.order(host, command::WFI, &[])?)?;
        check_eq!(page.reason, exit::WFI);
        let results = vm.resume(host)?;
        check_eq!(results, [0; 5]);
        Ok(())
    })
}
