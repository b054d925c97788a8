//! What cannot be undone: the machine is in panic mode after it.

use tenure_abi::flags::vm as vm_flags;
use tenure_abi::page::State;
use tenure_abi::{Status, call, info};
use tenure_test_hosts::vm::{FREE_GFN, Vm};
use tenure_test_hosts::{Host, calls, memory};
use tenure_test_rt::call::hvc;
use tenure_test_rt::harness::TestResult;
use tenure_test_rt::probe::{self, Outcome};
use tenure_test_rt::{check, check_eq};

crate::tests!(panic_mode_shows_zeros_and_no_secret);

/// B5: a crash kernel reads all of RAM; what is not the host's reads as zeros, and nothing oopses.
fn panic_mode_shows_zeros_and_no_secret(host: &mut Host) -> TestResult {
    let mut vm = Vm::new(host, vm_flags::PROTECTED)?;
    vm.boot(host)?;
    vm.fill(host, FREE_GFN, 2, 0x5ec7e7)?;
    vm.share(host, FREE_GFN + 1, 1)?;
    let (private, shared) = (vm.frame(FREE_GFN), vm.frame(FREE_GFN + 1));
    check!(probe::read(memory::address(private)).faulted());
    let reply = hvc(call::PANIC_MODE, &[]).reply();
    check_eq!(reply.status, Status::Success, "PANIC_MODE");
    check!(memory::is_filled(private, 0), "a private page in panic mode");
    check!(
        memory::is_filled(shared, 0x5ec7e7) || memory::is_filled(shared, 0),
        "a shared page in panic mode"
    );
    for pfn in calls::figure(info::FIRST_PFN)..calls::figure(info::END_PFN) {
        let word = calls::state(pfn);
        let what = probe::read(memory::address(pfn));
        check!(!what.faulted(), "{pfn:#x} ({word:?}) cannot be dumped: {what:x?}");
        if matches!(word, Some(State::Hyp | State::Private)) {
            check_eq!(what, Outcome::Value(0), "{pfn:#x}, {word:?}");
        }
    }
    check!(!probe::write(memory::address(private), 0xbad).faulted(), "a write in panic mode");
    vm.expect(host, FREE_GFN, 1, 0x5ec7e7)
}
