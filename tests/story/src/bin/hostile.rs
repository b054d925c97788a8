//! A hostile process of the Debian host: every road to a private page, and every wrong use of the driver's calls.

use std::fs;
use std::io;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use story::driver::{self, Session};
use story::guest::Guest;
use story::mapping::Mapping;
use story::roads::{self, KERNEL_ROAD, ROADS, Road};
use story::show;
use story::steps::Steps;
use story::vmm::{FREE, Kind, Vm};
use tenure_abi::flags::{pin, query, unshare};
use tenure_abi::info;
use tenure_abi::page::State;
use tenure_test_protocol::{self as protocol, command, outcome};

const PAGE: u64 = 4096;
const SECRET: u64 = 0x5ec4_e75e_c4e7;

fn main() -> ExitCode {
    let mut steps = Steps::new("hostile");
    let error = attacks(&mut steps).err();
    if steps.finish(error.as_ref()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn place(index: u64) -> (u64, u64) {
    (FREE + index * PAGE, protocol::FREE + index * PAGE)
}

fn attacks(steps: &mut Steps) -> Result<()> {
    let session = Session::open().context("cannot open /dev/tenure")?;
    let image = fs::read("/lib/guest-basic").context("no guest in the initramfs (/lib/guest-basic)")?;
    let vm = Vm::new(Kind { protected: true, revoke: true })?;
    vm.place(&image, true)?;
    registers(steps, &vm)?;
    let vcpu = vm.vcpu()?;
    let guest = Guest::start(vcpu)?;

    // The page was never shared: no PTE, so the driver refuses.
    let (offset, gpa) = place(0);
    guest.write(gpa, SECRET)?;
    for road in ROADS.iter().chain([&KERNEL_ROAD]) {
        let outcome = road.take(&vm.memory, offset as usize)?;
        steps.check(&format!("never shared: {}", road.name), Road::show(outcome), road.ends_well(outcome));
    }
    // A PTE of the time when it was shared still stands: the hypervisor refuses. (The driver takes PTEs away with the
    // page; a REVOKE asks nobody, and what was revoked and shared again is taken back without a word to the host.)
    let aborts = || session.info().map(|info| info.value[info::HOST_ABORTS as usize]);
    let before = aborts()?;
    for (index, road) in (1..).zip(ROADS.iter().chain([&KERNEL_ROAD])) {
        // One page each: a thread that dies in the kernel keeps its reference for ever.
        let (offset, gpa) = place(index);
        guest.write(gpa, SECRET)?;
        ensure!(guest.call(command::SHARE, &[gpa, 1])?.is_success(), "share");
        let mut unshared = None;
        let outcome = road.take_stale(&vm.memory, offset as usize, || {
            unshared = Some(
                guest
                    .call(command::UNSHARE, &[gpa, 1, unshare::REVOKE])
                    .and_then(|_| guest.call(command::SHARE, &[gpa, 1]))
                    .and_then(|_| guest.call(command::UNSHARE, &[gpa, 1, 0])),
            );
            Ok(())
        })?;
        let reply = unshared.context("the child did not wait")??;
        let kept = guest.read(gpa)?;
        steps.check(
            &format!("stale PTE: {}", road.name),
            format!(
                "unshare {}, {}, contents kept: {}",
                show::answer(&reply),
                Road::show(outcome),
                kept == SECRET
            ),
            reply.is_success() && road.ends_well(outcome) && kept == SECRET,
        );
    }
    let counted = aborts()? - before;
    steps.check(
        "the hypervisor counted them",
        format!("{counted} aborts"),
        counted >= ROADS.len() as u64 - 1,
    );

    decisions(steps, &session, &vm, &guest)?;
    calls(steps, &session, &vm)?;
    races(steps, &session, &vm, &guest)?;
    let [ok, ..] = guest.command(command::CHECK, &[place(1).1, 1, 0])?;
    steps.check("the guest lives and answers", format!("outcome {ok}"), ok == outcome::OK);
    Ok(())
}

fn refused(steps: &mut Steps, step: &str, result: io::Result<()>, errnos: &[i32]) {
    let seen = match &result {
        Ok(()) => "it was allowed".to_owned(),
        Err(error) => error.to_string(),
    };
    let good = result.is_err_and(|error| error.raw_os_error().is_some_and(|errno| errnos.contains(&errno)));
    steps.check(step, seen, good);
}

/// Before activation the registers are the VMM's; a second vCPU with the same number is not.
fn registers(steps: &mut Steps, vm: &Vm) -> Result<()> {
    let huge =
        vm.vm().create_vcpu(100_000).map(drop).map_err(|error| io::Error::from_raw_os_error(error.errno()));
    refused(steps, "a vCPU with an absurd number", huge, &[libc::EINVAL]);
    Ok(())
}

/// U10: for an active protected VM the host decides nothing about what is shared.
fn decisions(steps: &mut Steps, session: &Session, vm: &Vm, guest: &Guest) -> Result<()> {
    let (offset, gpa) = place(0);
    let plain = |result: Result<(), (io::Error, u64)>| result.map_err(|(error, _)| error);
    refused(
        steps,
        "make a private page shared",
        plain(driver::set_private(vm.gmem(), offset, PAGE, false)),
        &[libc::EPERM],
    );
    ensure!(guest.call(command::SHARE, &[gpa, 1])?.is_success(), "share");
    refused(
        steps,
        "make a shared page private that the guest did not ask for",
        plain(driver::set_private(vm.gmem(), offset, PAGE, true)),
        &[libc::EPERM],
    );
    ensure!(guest.call(command::UNSHARE, &[gpa, 1, 0])?.is_success(), "unshare");
    let (answer, result) = session.pin(vm.gmem_fd(), offset, PAGE, pin::CPU, "attacker");
    refused(steps, "pin a private page", result, &[libc::EPERM]);
    let status = answer.answer.reply().map(|reply| reply.status);
    steps.check("its answer", format!("{status:?}"), status == Some(tenure_abi::Status::Denied));
    let (_, result) = session.unpin(vm.gmem_fd(), offset, PAGE, pin::CPU);
    refused(steps, "take back a pin that nobody made", result, &[libc::ENOENT]);
    refused(
        steps,
        "punch a hole into private memory",
        story::mapping::punch(vm.gmem(), offset, PAGE),
        &[libc::EPERM],
    );
    refused(steps, "take the slot away", vm.remove_slot(), &[libc::EPERM]);
    refused(steps, "add a slot", vm.add_slot_of(0x8000_0000), &[libc::EPERM, libc::EEXIST]);
    let query = session.query(vm.gmem_fd(), offset, query::RECLAIM)?;
    let verdict = query.answer.reply().map(|reply| reply.status);
    steps.check(
        "and the hypervisor would refuse a reclaim",
        format!("{verdict:?}"),
        verdict == Some(tenure_abi::Status::Denied) && State::of(query.answer.word) == Some(State::Private),
    );
    steps.check("contents", "", guest.read(gpa)? == SECRET);
    Ok(())
}

/// Rubbish by the calls that Linux lets a process make.
fn calls(steps: &mut Steps, session: &Session, vm: &Vm) -> Result<()> {
    let size = story::vmm::RAM;
    let attributes =
        |offset, length| driver::set_private(vm.gmem(), offset, length, true).map_err(|(error, _)| error);
    refused(steps, "attributes: not a page", attributes(1, PAGE), &[libc::EINVAL]);
    refused(steps, "attributes: nothing", attributes(0, 0), &[libc::EINVAL]);
    refused(steps, "attributes: beyond the end", attributes(size, PAGE), &[libc::EINVAL]);
    refused(steps, "attributes: wrap", attributes(PAGE, u64::MAX - PAGE + 1), &[libc::EINVAL]);
    let pins = [(0, 1), (1, PAGE), (size, PAGE), (0, !0xfff), (!0xfff, PAGE)];
    for (offset, length) in pins {
        let (_, result) = session.pin(vm.gmem_fd(), offset, length, pin::CPU, "rubbish");
        refused(steps, &format!("pin {offset:#x} + {length:#x}"), result, &[libc::EINVAL]);
    }
    let (_, result) = session.pin(vm.gmem_fd(), 0, PAGE, 77, "rubbish");
    refused(steps, "pin of no kind", result, &[libc::EINVAL]);
    let (_, result) = session.pin(0, 0, PAGE, pin::CPU, "rubbish");
    refused(steps, "pin of what is no guest memory", result, &[libc::EINVAL]);
    refused(steps, "query of what is no guest memory", session.query(0, 0, 0).map(drop), &[libc::EBADF]);
    let mut worst = Vec::new();
    for group in [0xAE, 0xB7] {
        for nr in 0..=255u8 {
            let mut bytes = [0xa5; 128];
            // Whatever it answers: not success, and the machine goes on.
            if session.rubbish(group, nr, &mut bytes).is_ok() {
                worst.push((group, nr));
            }
        }
    }
    steps.check("512 rubbish ioctls", format!("{worst:x?} succeeded"), worst.is_empty());
    let private = Mapping::with(vm.gmem(), PAGE as usize, libc::PROT_READ, libc::MAP_PRIVATE).map(drop);
    refused(steps, "a copy-on-write mapping", private, &[libc::EINVAL]);
    Ok(())
}

/// The host pins, unpins and reads in loops while the guest shares and takes back in a loop: with DRAIN it gets through.
fn races(steps: &mut Steps, session: &Session, vm: &Vm, guest: &Guest) -> Result<()> {
    const ROUNDS: u64 = 50;
    let (offset, gpa) = place(40);
    guest.write(gpa, SECRET)?;
    let (stop, pins, reads) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let through = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if session.pin(vm.gmem_fd(), offset, PAGE, pin::CPU, "again").1.is_ok() {
                    pins.fetch_add(1, Ordering::Relaxed);
                    let _ = session.unpin(vm.gmem_fd(), offset, PAGE, pin::CPU);
                }
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                reads.fetch_add(
                    u64::from(roads::peek(&vm.memory, offset as usize).is_some()),
                    Ordering::Relaxed,
                );
            }
        });
        let through = (|| -> Result<u64> {
            for round in 0..ROUNDS {
                // Long enough for the others to come in between.
                ensure!(guest.call(command::SHARE, &[gpa, 1])?.is_success(), "share");
                thread::sleep(Duration::from_millis(2));
                let reply = guest.call(command::UNSHARE, &[gpa, 1, unshare::DRAIN | unshare::WAIT])?;
                if !reply.is_success() {
                    return Ok(round);
                }
            }
            Ok(ROUNDS)
        })();
        stop.store(true, Ordering::Relaxed);
        through
    })?;
    let (pins, reads) = (pins.into_inner(), reads.into_inner());
    let kept = guest.read(gpa)? == SECRET;
    steps.check(
        "pins and reads in loops: the guest gets its page back each time",
        format!("{through} of {ROUNDS} rounds against {pins} pins and {reads} reads, contents kept: {kept}"),
        through == ROUNDS && pins > 0 && reads > 0 && kept,
    );
    Ok(())
}
