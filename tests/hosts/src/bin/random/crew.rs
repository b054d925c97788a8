//! The other CPUs: each waits for a round, does the one thing that it was given at the same time as the others, and tells what
//! came of it. They know nothing of the model and use no heap.

use core::sync::atomic::{AtomicU64, Ordering};

use tenure_abi::exit;
use tenure_test_hosts::{Host, calls};
use tenure_test_rt::call::{hvc, psci};
use tenure_test_rt::harness::{Failure, TestResult};
use tenure_test_rt::probe::{self, Outcome};
use tenure_test_rt::{check, cpu, fail, smp};

/// CPUs that act in a round, the first among them.
pub const CPUS: usize = smp::MAX + 1;

/// What one CPU does in a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Job {
    /// Nothing.
    Rest,
    /// The call with this id.
    Call(u64, [u64; 5]),
    /// VCPU_RUN of vCPU 0, again as long as interrupts end it.
    Run(u64),
    /// A load from this address.
    Load(u64),
    /// A store of this value.
    Store(u64, u64),
    /// CPU_OFF.
    Leave,
}

/// What came of it: x0 to x6 of a call; 0 and the value of an access, or 1, ESR and FAR.
pub type Told = [u64; 7];

/// The word of [`Job::Leave`].
const LEAVE: u64 = 5;
/// AFFINITY_INFO of a CPU that is off (DEN 0022 5.7).
const AFFINITY_OFF: u64 = 1;

struct Desk {
    job: [AtomicU64; 7],
    told: [AtomicU64; 7],
    /// Instructions to let pass before the job.
    delay: AtomicU64,
    /// The last round that this CPU has done.
    done: AtomicU64,
}

static DESKS: [Desk; CPUS] = [const {
    Desk {
        job: [const { AtomicU64::new(0) }; 7],
        told: [const { AtomicU64::new(0) }; 7],
        delay: AtomicU64::new(0),
        done: AtomicU64::new(0),
    }
}; CPUS];
/// CPUs that are ready for this round, and how many there are to be: nobody begins before all are there.
static READY: AtomicU64 = AtomicU64::new(0);
static WANTED: AtomicU64 = AtomicU64::new(0);
/// The round that is on.
static ROUND: AtomicU64 = AtomicU64::new(0);
/// Seconds that a round may take on a loaded machine.
const PATIENCE: u64 = 60;

impl Desk {
    fn put(&self, job: Job, delay: u64) {
        let words = match job {
            Job::Rest => [0; 7],
            Job::Call(id, [a, b, c, d, e]) => [1, id, a, b, c, d, e],
            Job::Run(handle) => [2, handle, 0, 0, 0, 0, 0],
            Job::Load(address) => [3, address, 0, 0, 0, 0, 0],
            Job::Store(address, value) => [4, address, value, 0, 0, 0, 0],
            Job::Leave => [LEAVE, 0, 0, 0, 0, 0, 0],
        };
        self.job.iter().zip(words).for_each(|(slot, word)| slot.store(word, Ordering::Relaxed));
        self.delay.store(delay, Ordering::Relaxed);
    }

    /// Does what lies here.
    fn work(&self) {
        let [what, a, b, arguments @ ..] = self.job.each_ref().map(|slot| slot.load(Ordering::Relaxed));
        let delay = self.delay.load(Ordering::Relaxed);
        READY.fetch_add(1, Ordering::AcqRel);
        while READY.load(Ordering::Acquire) < WANTED.load(Ordering::Relaxed) {
            cpu::relax();
        }
        cpu::spin(delay);
        let told = match what {
            1 => {
                let [c, d, e, f] = arguments;
                let regs = hvc(a, &[b, c, d, e, f]);
                core::array::from_fn(|register| regs.x(register))
            }
            2 => run(a),
            3 => outcome(probe::read(a)),
            4 => outcome(probe::write(a, b)),
            _ => [0; 7],
        };
        self.told.iter().zip(told).for_each(|(slot, word)| slot.store(word, Ordering::Relaxed));
    }
}

fn run(handle: u64) -> Told {
    loop {
        let (_, regs) = calls::vcpu_run(handle, 0);
        if regs.x(0) != 0 || !matches!(regs.x(4), exit::INTERRUPT | exit::TIMER) {
            return core::array::from_fn(|register| regs.x(register));
        }
    }
}

fn outcome(what: Outcome) -> Told {
    match what {
        Outcome::Value(value) => [0, value, 0, 0, 0, 0, 0],
        Outcome::Fault { esr, far } => [1, esr, far, 0, 0, 0, 0],
    }
}

/// Starts every CPU that there is a stack for; how many CPUs act from now on.
///
/// # Errors
/// PSCI's refusal.
pub fn start(host: &Host) -> Result<usize, Failure> {
    let others = host.machine.cpus.iter().skip(1).take(smp::MAX);
    let mut started = 1;
    let round = ROUND.load(Ordering::Relaxed);
    for (index, mpidr) in others.enumerate() {
        if let Some(desk) = DESKS.get(index + 1) {
            desk.done.store(round, Ordering::Relaxed);
        }
        let answer = smp::start(*mpidr, index, attend, index as u64 + 1);
        check!(answer == 0, "CPU_ON of {mpidr:#x}: {answer}");
        started += 1;
    }
    Ok(started)
}

/// Sends them home: what spins without work keeps the machine under the emulator from its own.
///
/// # Errors
/// A CPU that does not go.
pub fn stop(host: &Host) -> TestResult {
    DESKS.iter().skip(1).for_each(|desk| desk.put(Job::Leave, 0));
    ROUND.fetch_add(1, Ordering::Release);
    for (index, mpidr) in host.machine.cpus.iter().skip(1).take(smp::MAX).enumerate() {
        let begin = cpu::counter();
        while hvc(psci::AFFINITY_INFO, &[*mpidr, 0]).x(0) != AFFINITY_OFF {
            check!(
                cpu::counter().wrapping_sub(begin) < cpu::counter_frequency() * PATIENCE,
                "CPU {mpidr:#x} stays on"
            );
        }
        smp::release(index);
    }
    Ok(())
}

/// What a secondary CPU does while it is on.
extern "C" fn attend(number: u64) {
    let Some(desk) = DESKS.get(number as usize) else { return };
    let mut last = desk.done.load(Ordering::Relaxed);
    loop {
        let round = ROUND.load(Ordering::Acquire);
        if round == last {
            cpu::relax();
            continue;
        }
        last = round;
        if desk.job.first().is_some_and(|what| what.load(Ordering::Relaxed) == LEAVE) {
            smp::off();
        }
        desk.work();
        desk.done.store(round, Ordering::Release);
    }
}

/// `cpus` CPUs do their jobs, each after a delay, and tell what came of them; those without a job rest.
///
/// # Errors
/// A CPU that never ends.
pub fn round(cpus: usize, jobs: &[(Job, u64)]) -> Result<[Told; CPUS], Failure> {
    let rest = core::iter::repeat(&(Job::Rest, 0));
    DESKS.iter().zip(jobs.iter().chain(rest)).for_each(|(desk, (job, delay))| desk.put(*job, *delay));
    READY.store(0, Ordering::Relaxed);
    WANTED.store(cpus as u64, Ordering::Relaxed);
    let round = ROUND.load(Ordering::Relaxed) + 1;
    ROUND.store(round, Ordering::Release);
    let [own, others @ ..] = &DESKS;
    own.work();
    let begin = cpu::counter();
    for desk in others.iter().take(cpus.saturating_sub(1)) {
        while desk.done.load(Ordering::Acquire) != round {
            cpu::relax();
            if cpu::counter().wrapping_sub(begin) > cpu::counter_frequency() * PATIENCE {
                fail!("a CPU does not come back from its job: {jobs:x?}");
            }
        }
    }
    Ok(DESKS.each_ref().map(|desk| desk.told.each_ref().map(|slot| slot.load(Ordering::Relaxed))))
}

/// The job of a call.
pub fn call(id: u64, arguments: &[u64]) -> Job {
    let mut all = [0; 5];
    all.iter_mut().zip(arguments).for_each(|(to, from)| *to = *from);
    Job::Call(id, all)
}
