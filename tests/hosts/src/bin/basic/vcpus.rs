//! A guest with two vCPUs.

use tenure_abi::flags::vm as vm_flags;
use tenure_abi::{PAGE_SIZE, exit, info, page, reg};
use tenure_test_hosts::vm::{self, Event, FREE_GFN};
use tenure_test_hosts::{Host, calls, memory};
use tenure_test_protocol::command;
use tenure_test_rt::harness::TestResult;
use tenure_test_rt::probe::{self, Outcome};
use tenure_test_rt::{check, check_eq, fail};

crate::tests!(a_second_vcpu_starts_and_ends);

/// PSCI of a guest: vCPU 1 is started at an address of the guest's choice, says its number, and turns itself off.
fn a_second_vcpu_starts_and_ends(host: &mut Host) -> TestResult {
    use tenure_test_rt::call::psci;
    // mov x1, x0; HOST_CALL with it: movz, movk, hvc; CPU_OFF: movz, movk, hvc; b . (never reached).
    const CODE: [u64; 4] = [
        instructions(0xaa00_03e1, 0xd280_4200),
        instructions(0xf2b8_c000, 0xd400_0002),
        instructions(0xd280_0040, 0xf2b0_8000),
        instructions(0xd400_0002, 0x1400_0000),
    ];
    if calls::figure(info::MAX_VCPUS) < 2 {
        return Err(tenure_test_rt::harness::Failure::Skipped("one vCPU a VM"));
    }
    let mut vm = vm::Vm::new(host, vm_flags::PROTECTED)?;
    let run = vm::take(host, 1, 1)?;
    let outcome = (|| {
        let reply = calls::vcpu_create(vm.handle, 1, run);
        check!(reply.is_success(), "VCPU_CREATE of vCPU 1: {reply}");
        let reply = calls::reg_set(vm.handle, 1, reg::POWER, 0);
        check!(reply.is_success(), "REG_SET of POWER: {reply}");
        vm.boot(host)?;
        let (reply, regs) = calls::vcpu_run(vm.handle, 1);
        check!(
            reply.is_success() && regs.x(4) == exit::OFF,
            "vCPU 1 before CPU_ON: {reply}, exit {}",
            regs.x(4)
        );
        let code = FREE_GFN * PAGE_SIZE;
        for (at, word) in (0..).step_by(8).zip(CODE) {
            vm.command(host, command::WRITE, &[code + at, word])?;
        }
        let event = vm.order(host, command::HVC, &[psci::CPU_ON, 1, code, 0x5e, 0, 0])?;
        let Event::Exit(page) = event else { fail!("CPU_ON made no exit: {event:x?}") };
        check_eq!((page.reason, page.target), (exit::CPU_ON, 1));
        let results = vm.resume(host)?;
        check_eq!(results[0], 0, "CPU_ON");
        let (reply, regs) = calls::vcpu_run(vm.handle, 1);
        check!(reply.is_success(), "VCPU_RUN of vCPU 1: {reply}");
        check_eq!(regs.x(4), exit::HYPERCALL, "vCPU 1's first exit");
        let said = memory::address(run) + core::mem::offset_of!(tenure_abi::RunPage, args) as u64;
        check_eq!(probe::read(said), Outcome::Value(0x5e), "the context that CPU_ON named");
        let (reply, regs) = calls::vcpu_run(vm.handle, 1);
        check!(reply.is_success() && regs.x(4) == exit::OFF, "after CPU_OFF: {reply}, exit {}", regs.x(4));
        let [state, ..] = vm.command(host, command::HVC, &[psci::AFFINITY_INFO, 1, 0, 0, 0, 0])?;
        check_eq!(state, 1, "AFFINITY_INFO of vCPU 1");
        Ok(())
    })();
    vm.destroy(host)?;
    check_eq!(page::HYP_PINS.get(calls::word(run)), 0, "pins of vCPU 1's run page");
    host.frames.give(run, 1);
    outcome
}

const fn instructions(first: u32, second: u32) -> u64 {
    first as u64 | (second as u64) << 32
}
