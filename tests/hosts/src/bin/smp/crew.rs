//! The other CPUs: each waits for a job, does it, and says how it went.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tenure_test_hosts::Host;
use tenure_test_rt::harness::{Failure, TestResult};
use tenure_test_rt::{check, cpu, fail, note, smp};

use crate::races;

/// CPUs that share the frames, the first among them.
pub const PARTS: usize = smp::MAX + 1;

/// Where the device tree lies.
pub static DEVICE_TREE: AtomicU64 = AtomicU64::new(0);

/// What a CPU is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Job {
    /// Wait.
    Idle = 0,
    /// Read the frame of PARAMETER over and over; fail if it is ever the secret.
    Read,
    /// Pin, read, unpin the frame of PARAMETER over and over.
    Pin,
    /// Look at the word of the frame of PARAMETER over and over.
    Watch,
    /// Lives of VMs of its own.
    Live,
    /// DONATE of the frame of PARAMETER to the VM of SECOND.
    Donate,
    /// VCPU_RUN of the VM of PARAMETER until told to stop.
    Run,
}

const JOBS: [Job; 6] = [Job::Read, Job::Pin, Job::Watch, Job::Live, Job::Donate, Job::Run];

/// Bit in `STATE` of a CPU: the job is done.
const DONE: usize = 1 << 8;
/// Bit in `STATE` of a CPU: the job failed; what was wrong is on the console.
const FAILED: usize = 1 << 9;

static STATE: [AtomicUsize; PARTS] = [const { AtomicUsize::new(DONE) }; PARTS];
/// What the job is about.
pub static PARAMETER: AtomicU64 = AtomicU64::new(0);
/// More of it.
pub static SECOND: AtomicU64 = AtomicU64::new(0);
/// 1 when jobs without an end of their own are to end.
static STOP: AtomicU64 = AtomicU64::new(0);
/// Jobs that have begun.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// True when a job without an end of its own is to end.
pub fn told_to_stop() -> bool {
    STOP.load(Ordering::Acquire) != 0
}

/// Starts every CPU that there is a stack for.
///
/// # Errors
/// PSCI's refusal; or the machine has one CPU only.
pub fn start(host: &Host) -> TestResult {
    if host.machine.cpus.len() < 2 {
        return Err(Failure::Skipped("one CPU"));
    }
    for (index, mpidr) in host.machine.cpus.iter().skip(1).take(smp::MAX).enumerate() {
        STATE[index + 1].store(Job::Idle as usize, Ordering::Release);
        let answer = smp::start(*mpidr, index, work, index as u64 + 1);
        check!(answer == 0, "CPU_ON of {mpidr:#x}: {answer}");
    }
    wait_for_all()
}

/// Number of CPUs at work beside the first.
pub fn size(host: &Host) -> usize {
    host.machine.cpus.len().saturating_sub(1).min(smp::MAX)
}

/// Gives CPU `index` (1 and up) a job.
pub fn give(index: usize, job: Job) {
    STATE[index].store(job as usize, Ordering::Release);
}

/// Forgets what was before: to be called ahead of the first job of a test.
pub fn prepare(parameter: u64, second: u64) {
    PARAMETER.store(parameter, Ordering::Release);
    SECOND.store(second, Ordering::Release);
    STOP.store(0, Ordering::Release);
    BEGUN.store(0, Ordering::Release);
}

/// Waits until `count` jobs have begun.
pub fn wait_begun(count: u64) {
    while BEGUN.load(Ordering::Acquire) < count {
        cpu::relax();
    }
}

/// Ends the jobs that have no end of their own, and waits for all.
///
/// # Errors
/// If one failed.
pub fn stop() -> TestResult {
    STOP.store(1, Ordering::Release);
    wait_for_all()
}

/// Waits until every CPU has done its job.
///
/// # Errors
/// If one failed, or has not ended after a long time.
pub fn wait_for_all() -> TestResult {
    let mut failed = false;
    for (index, state) in STATE.iter().enumerate().skip(1) {
        let begin = cpu::counter();
        loop {
            let now = state.load(Ordering::Acquire);
            if now & DONE != 0 {
                failed |= now & FAILED != 0;
                state.store(DONE, Ordering::Release);
                break;
            }
            if cpu::counter().wrapping_sub(begin) > cpu::counter_frequency() * 60 {
                fail!("CPU {index} does not end its job {now}");
            }
            cpu::relax();
        }
    }
    check!(!failed, "another CPU failed, see its note");
    Ok(())
}

/// What a secondary CPU runs.
extern "C" fn work(index: u64) {
    let index = index as usize;
    let Ok(mut host) = Host::new(DEVICE_TREE.load(Ordering::Acquire)) else {
        STATE[index].store(DONE | FAILED, Ordering::Release);
        return;
    };
    host.frames = host.frames.part(index, PARTS);
    STATE[index].store(DONE, Ordering::Release);
    loop {
        let state = STATE[index].load(Ordering::Acquire);
        let Some(job) = JOBS.into_iter().find(|job| *job as usize == state) else {
            cpu::relax();
            continue;
        };
        BEGUN.fetch_add(1, Ordering::AcqRel);
        let mut end = DONE;
        if let Err(failure) = races::carry_out(job, &mut host) {
            note!("CPU {index}: {failure:?}");
            end |= FAILED;
        }
        STATE[index].store(end, Ordering::Release);
    }
}
