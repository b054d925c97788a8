//! The edges of the machine: bus addresses where nothing is, secondary CPUs that must not start wrongly.

use tenure_abi::flags::vm as vm_flags;
use tenure_test_hosts::vm::with_guest;
use tenure_test_hosts::{Host, calls};
use tenure_test_protocol::command;
use tenure_test_rt::call::{hvc, psci};
use tenure_test_rt::harness::TestResult;
use tenure_test_rt::probe::{self, Road};
use tenure_test_rt::{check, check_eq, vectors};

crate::tests!(
    a_dead_bus_address_is_the_hosts_own_abort,
    a_guest_meets_no_bus,
    cpu_on_with_a_wild_entry_or_target_is_refused,
    affinity_info_knows_this_cpu,
);

/// Nothing is at this address on `virt`, between the platform bus and the PCIe window.
const DEAD: u64 = 0x0bff_0000;

/// Scenario 30: the abort is the host's; then a call to EL2 works.
fn a_dead_bus_address_is_the_hosts_own_abort(_: &mut Host) -> TestResult {
    vectors::take_serrors();
    for road in [Road::Read(4), Road::Write(4), Road::Read(8)] {
        let what = probe::touch(road, DEAD, 0);
        let serrors = vectors::take_serrors();
        check!(what.faulted() || serrors > 0, "{road:?} of a dead address: {what:x?}");
        check!(calls::tenure_answers(), "Tenure does not answer after {road:?}");
    }
    Ok(())
}

fn a_guest_meets_no_bus(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let results = vm.command(host, command::READ, &[DEAD])?;
        check_eq!(results[0], 1, "the guest's read of a dead address");
        let [serrors, ..] = vm.command(host, command::SERRORS, &[])?;
        check_eq!(serrors, 0);
        check_eq!(vectors::take_serrors(), 0, "SErrors that reached the host");
        Ok(())
    })
}

fn cpu_on_with_a_wild_entry_or_target_is_refused(_: &mut Host) -> TestResult {
    for (target, entry) in [(u64::MAX, 0x4800_0000), (0xff_ff_ff, 0x4800_0000), (0, 0x4800_0000)] {
        let answer = hvc(psci::CPU_ON, &[target, entry, 0]).x(0) as i64;
        check!(answer < 0, "CPU_ON of {target:#x} at {entry:#x}: {answer}");
    }
    Ok(())
}

fn affinity_info_knows_this_cpu(host: &mut Host) -> TestResult {
    let Some(this) = host.machine.cpus.first() else { tenure_test_rt::fail!("no CPU in the tree") };
    check_eq!(hvc(psci::AFFINITY_INFO, &[*this, 0]).x(0), 0, "this CPU");
    for other in host.machine.cpus.iter().skip(1) {
        check_eq!(hvc(psci::AFFINITY_INFO, &[*other, 0]).x(0), 1, "CPU {other:#x}, which is off");
    }
    check!((hvc(psci::AFFINITY_INFO, &[0xff_ffff, 0]).x(0) as i64) < 0);
    Ok(())
}
