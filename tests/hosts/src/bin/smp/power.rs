//! CPUs that come and go.

use core::sync::atomic::{AtomicU64, Ordering};

use tenure_test_hosts::{Host, calls};
use tenure_test_rt::call::{hvc, psci};
use tenure_test_rt::harness::{Failure, TestResult};
use tenure_test_rt::{check, check_eq, cpu, fail, smp};

use crate::Test;

/// The tests of this module.
pub(crate) const TESTS: &[Test] = &[
    ("a_cpu_comes_and_goes_three_times", a_cpu_comes_and_goes_three_times),
    ("a_cpu_that_is_on_cannot_be_started", a_cpu_that_is_on_cannot_be_started),
];

static SEEN: AtomicU64 = AtomicU64::new(0);
static LEAVE: AtomicU64 = AtomicU64::new(0);

/// Tells MPIDR and exception level, then goes off.
extern "C" fn visit(argument: u64) {
    if calls::tenure_answers() && cpu::current_el_raw() >> 2 == 1 && argument == 0x7e57 {
        SEEN.store(cpu::mpidr(), Ordering::Release);
    }
    while LEAVE.load(Ordering::Acquire) == 0 {
        cpu::relax();
    }
    smp::off();
}

fn wait(what: &str, condition: impl Fn() -> bool) -> TestResult {
    let begin = cpu::counter();
    while !condition() {
        if cpu::counter().wrapping_sub(begin) > cpu::counter_frequency() * 20 {
            fail!("{what} does not come");
        }
        cpu::relax();
    }
    Ok(())
}

fn second(host: &Host) -> Result<u64, Failure> {
    host.machine.cpus.get(1).copied().ok_or(Failure::Skipped("one CPU"))
}

fn a_cpu_comes_and_goes_three_times(host: &mut Host) -> TestResult {
    let mpidr = second(host)?;
    for turn in 0..3 {
        SEEN.store(0, Ordering::Release);
        LEAVE.store(0, Ordering::Release);
        check_eq!(hvc(psci::AFFINITY_INFO, &[mpidr, 0]).x(0), 1, "AFFINITY_INFO of a CPU that is off");
        check_eq!(smp::start(mpidr, 0, visit, 0x7e57), 0, "CPU_ON, turn {turn}");
        wait("the CPU", || SEEN.load(Ordering::Acquire) != 0)?;
        check_eq!(SEEN.load(Ordering::Acquire) & 0xff_00ff_ffff, mpidr, "its MPIDR");
        check_eq!(hvc(psci::AFFINITY_INFO, &[mpidr, 0]).x(0), 0, "AFFINITY_INFO of a CPU that is on");
        LEAVE.store(1, Ordering::Release);
        wait("the CPU's end", || hvc(psci::AFFINITY_INFO, &[mpidr, 0]).x(0) == 1)?;
        smp::release(0);
    }
    Ok(())
}

fn a_cpu_that_is_on_cannot_be_started(host: &mut Host) -> TestResult {
    const ALREADY_ON: i64 = -4;
    let mpidr = second(host)?;
    SEEN.store(0, Ordering::Release);
    LEAVE.store(0, Ordering::Release);
    check_eq!(smp::start(mpidr, 0, visit, 0x7e57), 0);
    wait("the CPU", || SEEN.load(Ordering::Acquire) != 0)?;
    check_eq!(smp::start(mpidr, 1, visit, 0), ALREADY_ON, "CPU_ON of a CPU that is on");
    let this = host.machine.cpus.first().copied().unwrap_or(0);
    check_eq!(smp::start(this, 1, visit, 0), ALREADY_ON, "CPU_ON of oneself");
    LEAVE.store(1, Ordering::Release);
    wait("the CPU's end", || hvc(psci::AFFINITY_INFO, &[mpidr, 0]).x(0) == 1)?;
    smp::release(0);
    check!(calls::tenure_answers());
    Ok(())
}
