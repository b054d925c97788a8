//! Who may hold a shared page, and what its guest then gets: long holders refuse, short ones pass, REVOKE asks nobody.

use std::fs;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use story::change;
use story::driver::Session;
use story::guest::Guest;
use story::mapping::{self, Outcome};
use story::ring::RingHold;
use story::roads::{KERNEL_ROAD, ROADS, Road};
use story::show;
use story::steps::Steps;
use story::vmm::{FREE, Kind, Vm};
use tenure_abi::flags::{pin, unshare};
use tenure_abi::{Reply, Status, reply as block};
use tenure_test_protocol::{self as protocol, command};

const PAGE: u64 = 4096;
const SIGBUS: Outcome = Outcome::Signal(libc::SIGBUS);
/// Longer than anything takes under emulation.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let mut steps = Steps::new("holders");
    let error = holders(&mut steps).err();
    if steps.finish(error.as_ref()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn holders(steps: &mut Steps) -> Result<()> {
    let session = Session::open().context("cannot open /dev/tenure")?;
    let image = fs::read("/lib/guest-basic").context("no guest in the initramfs (/lib/guest-basic)")?;
    let vm = Vm::new(Kind { protected: true, revoke: true })?;
    vm.place(&image, true)?;
    let guest = Guest::start(vm.vcpu()?)?;
    let test = Test { session: &session, vm: &vm, guest: &guest };
    untouched(steps, &test)?;
    long(steps, &test)?;
    short(steps, &test)?;
    revoked(steps, &test)?;
    two_processes(steps, &test)
}

struct Test<'a> {
    session: &'a Session,
    vm: &'a Vm,
    guest: &'a Guest,
}

fn place(index: u64) -> (u64, u64) {
    (FREE + index * PAGE, protocol::FREE + index * PAGE)
}

impl Test<'_> {
    /// A page of the guest's, shared and read by the host.
    fn share(&self, index: u64, value: u64) -> Result<(u64, u64)> {
        let (offset, gpa) = place(index);
        self.guest.write(gpa, value)?;
        ensure!(self.guest.call(command::SHARE, &[gpa, 1])?.is_success(), "share");
        ensure!(self.vm.memory.read(offset as usize) == value, "the host reads what the guest shared");
        Ok((offset, gpa))
    }

    fn unshare(&self, gpa: u64, flags: u64) -> Result<Reply> {
        self.guest.call(command::UNSHARE, &[gpa, 1, flags])
    }

    /// Asks until it is done: refusals on the way, and the time.
    fn until_done(&self, gpa: u64) -> Result<(u64, Duration)> {
        let begin = Instant::now();
        let mut refused = 0;
        loop {
            let reply = self.unshare(gpa, 0)?;
            if reply.is_success() {
                return Ok((refused, begin.elapsed()));
            }
            ensure!(
                matches!(reply.status, Status::Busy | Status::Retry) && begin.elapsed() < PATIENCE,
                "unshare: {}",
                show::answer(&reply)
            );
            refused += 1;
        }
    }
}

/// Linux has mapped the page for a process that has not touched it yet, when the guest takes it back: the PTE goes first, so
/// that no thread of the kernel takes a reference by it and walks into what is private.
fn untouched(steps: &mut Steps, test: &Test) -> Result<()> {
    let (offset, gpa) = place(2);
    test.guest.write(gpa, 0x5ec4e7)?;
    ensure!(test.guest.call(command::SHARE, &[gpa, 1])?.is_success(), "share");
    let mut reply = None;
    let outcome = KERNEL_ROAD.take_stale(&test.vm.memory, offset as usize, || {
        reply = Some(test.unshare(gpa, 0));
        Ok(())
    })?;
    let reply = reply.context("the child did not wait")??;
    steps.check(
        "a PTE that was never used goes too: process_vm_readv",
        format!("{}, {}", show::answer(&reply), Road::show(outcome)),
        reply.is_success() && Road::is_efault(outcome),
    );
    Ok(())
}

/// A buffer registered with io_uring is pinned for devices as long as it is registered: nothing takes the page.
fn long(steps: &mut Steps, test: &Test) -> Result<()> {
    let (offset, gpa) = test.share(0, 0x1111)?;
    let ring =
        RingHold::new(&test.vm.memory, offset as usize, PAGE as usize).context("a registered buffer")?;
    let reply = test.unshare(gpa, 0)?;
    let names: Vec<String> =
        test.session.holders(test.vm.gmem_fd(), offset, PAGE)?.iter().map(|holder| holder.name()).collect();
    steps.check(
        "a registered buffer: the guest is told BUSY, by a device",
        format!("{}, holder {}", show::answer(&reply), names.join(", ")),
        reply.status == Status::Busy && reply.mask & block::DMA_PIN != 0 && names.len() == 1,
    );
    let reply = test.unshare(gpa, unshare::REVOKE)?;
    steps.check(
        "REVOKE does not pull a page from under a device",
        show::answer(&reply),
        reply.status == Status::Busy && reply.mask & block::DMA_PIN != 0,
    );
    let held = test.vm.memory.read(offset as usize);
    drop(ring);
    let (refused, time) = test.until_done(gpa)?;
    let kept = test.guest.read(gpa)?;
    steps.check(
        "unregistered: the guest gets it, without a word of the VMM's",
        format!("after {refused} refusals, {} ms; contents {kept:#x}", time.as_millis()),
        held == 0x1111 && kept == 0x1111,
    );
    Ok(())
}

/// Threads that read and write through the mapping all the time, with a reference for a moment each.
fn short(steps: &mut Steps, test: &Test) -> Result<()> {
    const ROUNDS: u64 = 20;
    let (offset, gpa) = place(1);
    let (stop, uses) = (AtomicBool::new(false), AtomicU64::new(0));
    let page = test.vm.memory.at(offset as usize) as usize;
    let (refused, worst) = thread::scope(|scope| -> Result<(u64, Duration)> {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                uses.fetch_add(u64::from(mapping::copy_by_reference(page)), Ordering::Relaxed);
            }
        });
        let rounds = (|| {
            let (mut refused, mut worst) = (0, Duration::ZERO);
            for round in 0..ROUNDS {
                test.guest.write(gpa, round)?;
                ensure!(test.guest.call(command::SHARE, &[gpa, 1])?.is_success(), "share");
                thread::sleep(Duration::from_millis(2));
                let (more, time) = test.until_done(gpa)?;
                ensure!(test.guest.read(gpa)? == round, "contents kept");
                (refused, worst) = (refused + more, worst.max(time));
            }
            Ok((refused, worst))
        })();
        stop.store(true, Ordering::Relaxed);
        rounds
    })?;
    let uses = uses.into_inner();
    steps.check(
        "short uses in a loop: the guest gets its page every time",
        format!("{ROUNDS} rounds against {uses} uses; {refused} refusals, {} ms at worst", worst.as_millis()),
        uses > 0,
    );
    Ok(())
}

/// After a REVOKE every road of the host finds zeros and kills nobody: by the old PTE, from user mode, by system calls that
/// copy, and where the kernel reads through its own map of all memory.
fn revoked(steps: &mut Steps, test: &Test) -> Result<()> {
    for (index, (name, expected)) in (10..).zip([
        ("read", 0),
        ("process_vm_readv", 0),
        ("write(2) from it", 1),
        ("read(2) into it", 1),
        ("write", 1),
    ]) {
        let road = ROADS
            .iter()
            .chain([&KERNEL_ROAD])
            .find(|road| road.name == name)
            .with_context(|| format!("no road {name}"))?;
        let (offset, gpa) = test.share(index, 0x5ec4e7)?;
        test.session.pin(test.vm.gmem_fd(), offset, PAGE, pin::CPU, "a reader").1.context("PIN")?;
        let mut reply = None;
        let outcome = road.take_stale(&test.vm.memory, offset as usize, || {
            reply = Some(test.unshare(gpa, unshare::REVOKE));
            Ok(())
        })?;
        let reply = reply.context("the child did not wait")??;
        let kept = test.guest.read(gpa)?;
        steps.check(
            &format!("after a REVOKE: {name}"),
            format!("{}, {}, the guest reads {kept:#x}", show::answer(&reply), Road::show(outcome)),
            reply.is_success() && outcome == Outcome::Value(expected) && kept == 0x5ec4e7,
        );
        test.session.unpin(test.vm.gmem_fd(), offset, PAGE, pin::CPU).1.context("UNPIN")?;
    }
    Ok(())
}

/// Two processes have the page mapped; after the unshare both get SIGBUS, on whatever CPU they are.
fn two_processes(steps: &mut Steps, test: &Test) -> Result<()> {
    let cpus = thread::available_parallelism()?.get();
    let mut good = true;
    for cpu in 0..cpus {
        let (offset, gpa) = test.share(20 + cpu as u64, 0x2222)?;
        let at = offset as usize;
        let ready = |cpu| {
            let _ = change::run_on(cpu % cpus);
            test.vm.memory.read(at);
        };
        let (mut second, mut reply) = (None, None);
        let first = mapping::in_child_after(
            || ready(cpu),
            || {
                let between = || {
                    reply = Some(test.unshare(gpa, 0));
                    Ok(())
                };
                let read = || test.vm.memory.read(at);
                second = Some(mapping::in_child_after(|| ready(cpu + 1), between, read)?);
                Ok(())
            },
            || test.vm.memory.read(at),
        )?;
        let reply = reply.context("the children did not wait")??;
        good &= reply.is_success() && first == SIGBUS && second == Some(SIGBUS);
        if !good {
            steps.say(format!("CPU {cpu}: {}, {first:?}, {second:?}", show::answer(&reply)));
        }
    }
    steps.check(
        "two processes on every pair of CPUs: both fault after the unshare",
        format!("{cpus} CPUs"),
        good,
    );
    Ok(())
}
