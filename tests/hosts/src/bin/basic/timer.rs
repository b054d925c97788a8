//! A guest's virtual timer: told to the host once, and held off until the guest writes it again.

use tenure_abi::{exit, reg};
use tenure_test_hosts::vm::{self, Event};
use tenure_test_hosts::{Host, calls};
use tenure_test_protocol::command;
use tenure_test_rt::harness::TestResult;
use tenure_test_rt::{check, check_eq, fail};

crate::tests!(a_fired_timer_is_told_once_and_its_line_held_off);

/// `CNTV_CTL_EL0`: enabled, interrupt masked, condition met.
const FIRED_AND_MASKED: u64 = 0b111;

fn a_fired_timer_is_told_once_and_its_line_held_off(host: &mut Host) -> TestResult {
    // A plain VM, whose registers can be looked at.
    let mut vm = vm::Vm::new(host, 0)?;
    let outcome = (|| {
        for (register, value) in [(reg::CNTV_CVAL, 0), (reg::CNTV_CTL, 1)] {
            let reply = calls::reg_set(vm.handle, 0, register, value);
            check!(reply.is_success(), "REG_SET: {reply}");
        }
        vm.boot(host)?;
        // The guest waits with its timer due: it is told at the latest now, and the guest runs on.
        let event = vm.order(host, command::WFI, &[])?;
        check!(matches!(event, Event::Idle(_)), "the first WFI: {event:x?}");
        check_eq!(vm.exits[exit::TIMER as usize], 1, "TIMER exits");
        let (reply, regs) = calls::reg_get(vm.handle, 0, reg::CNTV_CTL);
        check!(reply.is_success(), "REG_GET: {reply}");
        check_eq!(regs.x(4), FIRED_AND_MASKED, "CNTV_CTL_EL0 of the guest");
        // The condition still holds, but its line is down: the next wait is a wait.
        match vm.order(host, command::WFI, &[])? {
            Event::Exit(page) => check_eq!(page.reason, exit::WFI, "the second WFI"),
            Event::Idle(_) => fail!("the second WFI made no exit"),
        }
        vm.resume(host)?;
        check_eq!(vm.exits[exit::TIMER as usize], 1, "TIMER exits in all");
        Ok(())
    })();
    let end = vm.destroy(host);
    outcome.and(end)
}
