//! Many vCPUs on many slots at once.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use story::driver;
use story::guest::Guest;
use story::mapping::Mapping;
use story::steps::Steps;
use story::vmm::Vm;
use tenure_abi::flags::unshare;
use tenure_test_protocol::{command, outcome};

use crate::PAGE;

const SLOTS: u64 = 8;
const SLOT_PAGES: u64 = 16;
const AT: u64 = 0x6800_0000;
/// vCPUs of the guests.
pub const VCPUS: u64 = 4;

/// The slots of one file, not in its order.
fn bind_many(vm: &Vm, shared: bool) -> Result<(File, Mapping)> {
    let file = vm.more_memory(SLOTS * SLOT_PAGES * PAGE, shared)?;
    let memory = Mapping::new(&file, (SLOTS * SLOT_PAGES * PAGE) as usize)?;
    for slot in 0..SLOTS {
        let offset = (SLOTS - 1 - slot) * SLOT_PAGES * PAGE;
        vm.bind(10 + slot as u32, gpa(slot), &file, offset, SLOT_PAGES * PAGE)
            .with_context(|| format!("slot {slot}"))?;
    }
    Ok((file, memory))
}

/// Slots do not touch one another.
fn gpa(slot: u64) -> u64 {
    AT + slot * 4 * SLOT_PAGES * PAGE
}

fn commanded(guest: &Guest, what: u64, arguments: &[u64]) -> Result<u64> {
    let [end, different, ..] = guest.command(what, arguments)?;
    ensure!(end == outcome::OK, "command {what} {arguments:x?}: outcome {end}");
    Ok(different)
}

/// Does the same with all vCPUs at once, and adds up the results.
fn all(guests: &mut [Guest], work: impl Fn(&Guest, u64) -> Result<u64> + Sync) -> Result<u64> {
    let work = &work;
    thread::scope(|scope| {
        let vcpus: Vec<_> =
            guests.iter_mut().zip(0..).map(|(guest, vcpu)| scope.spawn(move || work(guest, vcpu))).collect();
        vcpus.into_iter().try_fold(0, |sum, vcpu| {
            let done = vcpu.join().map_err(|_| anyhow::anyhow!("a vCPU's thread died"))??;
            Ok(sum + done)
        })
    })
}

/// Every vCPU writes and compares on every slot, while the host turns the file around as fast as it can.
pub fn plain(steps: &mut Steps, vm: &Vm, guests: &mut [Guest]) -> Result<()> {
    let (file, _memory) = bind_many(vm, true)?;
    let stop = AtomicBool::new(false);
    let converted = AtomicU64::new(0);
    let lost = thread::scope(|scope| -> Result<u64> {
        let host = scope.spawn(|| -> Result<(), (io::Error, u64)> {
            for round in 0u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                // A range that begins and ends in the middle of slots.
                let (first, pages) = (round % 7, SLOTS * SLOT_PAGES - round % 7 - round % 5);
                driver::set_private(&file, first * PAGE, pages * PAGE, round % 2 == 0)?;
                converted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let lost = all(guests, |guest, vcpu| {
            let mut lost = 0;
            for slot in 0..SLOTS {
                // Each vCPU has its own pages of every slot.
                let part = SLOT_PAGES / VCPUS;
                let start = gpa(slot) + vcpu * part * PAGE;
                let value = 0x1000 + slot * 0x10 + vcpu;
                commanded(guest, command::FILL, &[start, part, value])?;
                lost += commanded(guest, command::CHECK, &[start, part, value])?;
            }
            Ok(lost)
        });
        stop.store(true, Ordering::Relaxed);
        host.join()
            .map_err(|_| anyhow::anyhow!("the converting thread died"))?
            .map_err(|(error, at)| anyhow::anyhow!("conversion: {error} at {at:#x}"))?;
        lost
    })?;
    let converted = converted.into_inner();
    steps.check(
        "plain: four vCPUs on eight slots, while the host converts",
        format!("{converted} conversions, {lost} words lost"),
        lost == 0 && converted > 1,
    );
    Ok(())
}

/// Every vCPU shares its pages, has the host write them, and takes them back, all at the same time.
pub fn protected(steps: &mut Steps, vm: &Vm) -> Result<()> {
    const ROUNDS: u64 = 4;
    let (_file, memory) = bind_many(vm, false)?;
    let mut guests = vm.start(VCPUS)?;
    let rounds = all(&mut guests, |guest, vcpu| turns(guest, vcpu, &memory, ROUNDS))?;
    steps.check(
        "protected: four vCPUs share and take back on eight slots at once",
        format!("{rounds} rounds"),
        rounds == VCPUS * SLOTS * ROUNDS,
    );
    Ok(())
}

fn turns(guest: &Guest, vcpu: u64, memory: &Mapping, rounds: u64) -> Result<u64> {
    let part = SLOT_PAGES / VCPUS;
    let mut done = 0;
    for round in 0..rounds {
        for slot in 0..SLOTS {
            let at = gpa(slot) + vcpu * part * PAGE;
            let offset = ((SLOTS - 1 - slot) * SLOT_PAGES + vcpu * part) * PAGE;
            let value = 0x2000 + round * 0x100 + slot * 0x10 + vcpu;
            guest.write(at, value)?;
            ensure!(guest.call(command::SHARE, &[at, part])?.is_success(), "share");
            ensure!(memory.read(offset as usize) == value, "the host reads what this vCPU wrote");
            memory.write(offset as usize, !value);
            let begin = Instant::now();
            loop {
                let reply = guest.call(command::UNSHARE, &[at, part, unshare::DRAIN | unshare::WAIT])?;
                if reply.is_success() {
                    break;
                }
                ensure!(begin.elapsed() < Duration::from_secs(10), "unshare: {reply}");
            }
            ensure!(guest.read(at)? == !value, "contents kept");
            done += 1;
        }
    }
    Ok(done)
}
