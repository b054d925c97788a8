//! Figures of a guest under the Linux driver, in the lines that `cargo xtask bench` reads: `section NAME`, then
//! `bench NAME VALUE UNIT STEPS`. They mean something only where the counter counts instructions.
//!
//! The guest measures its loops by its own clock, exits, driver and scheduler included; the rest is measured here.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use story::clock;
use story::driver::Session;
use story::guest::{Guest, reply};
use story::vmm::{FREE, Kind, Vm};
use tenure_abi::flags::{pin, unshare};
use tenure_test_protocol::{self as protocol, command, work};

const PAGE: u64 = 4096;
/// Pages of the loops.
const PAGES: u64 = 256;
/// Pages of one call.
const RANGE: u64 = 512;

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("bench: stopped: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A figure: how many steps were measured, and the ticks of all of them.
fn figure(name: &str, measure: impl FnOnce() -> Result<(u64, u64)>) -> Result<()> {
    println!("section {name}");
    clock::next_section();
    let (steps, ticks) = measure().with_context(|| name.to_owned())?;
    println!("bench {name} {:.1} instructions {steps}", clock::instructions(ticks) / steps as f64);
    Ok(())
}

fn bench() -> Result<()> {
    let image = fs::read("/lib/guest-basic").context("no guest in the initramfs (/lib/guest-basic)")?;
    let vm = Vm::new(Kind { protected: true, revoke: true })?;
    vm.place(&image, true)?;
    let guest = Guest::start(vm.vcpu()?)?;
    let looped = |what: u64, page: u64, count: u64, steps: u64| -> Result<(u64, u64)> {
        let [_, ticks, answers, ..] =
            guest.command(command::LOOP, &[what, protocol::FREE + page * PAGE, count])?;
        ensure!(answers == 0, "answers of the loop: {answers:#x}");
        Ok((steps, ticks))
    };

    figure("linux_first_touch_per_page", || looped(work::TOUCH, 0, 4 * RANGE, 4 * RANGE))?;
    figure("linux_guest_share", || looped(work::SHARE, 0, PAGES, PAGES))?;
    figure("linux_host_first_touch_per_page", || {
        clock::open();
        let start = clock::ticks();
        touch(&vm, PAGES);
        let ticks = clock::ticks() - start;
        clock::close();
        Ok((PAGES, ticks))
    })?;
    figure("linux_unshare_host_mapped", || looped(work::UNSHARE, 0, PAGES, PAGES))?;
    ensure!(guest.call(command::SHARE, &[protocol::FREE, RANGE])?.is_success(), "share of {RANGE} pages");
    touch(&vm, RANGE);
    figure("linux_unshare_host_mapped_512_per_page", || looped(work::UNSHARE_RANGE, 0, RANGE, RANGE))?;
    figure("linux_drain_wakeup", || waking(&vm, &guest))?;
    Ok(())
}

/// The host reads the pages that the guest shares.
fn touch(vm: &Vm, pages: u64) {
    (0..pages).for_each(|index| _ = vm.memory.read((FREE + index * PAGE) as usize));
}

/// From the holder's last unpin to the answer of the guest's call that waited for it, as the VMM sees it.
fn waking(vm: &Vm, guest: &Guest) -> Result<(u64, u64)> {
    const COUNT: u64 = 16;
    let session = Session::open()?;
    let mut ticks = 0;
    for _ in 0..COUNT {
        ensure!(guest.call(command::SHARE, &[protocol::FREE, 1])?.is_success(), "share");
        session.pin(vm.gmem_fd(), FREE, PAGE, pin::CPU, "bench").1.context("PIN")?;
        guest.order(command::UNSHARE, &[protocol::FREE, 1, unshare::DRAIN | unshare::WAIT])?;
        // Until it waits.
        ensure!(guest.event_within(std::time::Duration::from_millis(20))?.is_none(), "it did not wait");
        clock::open();
        let start = clock::ticks();
        let (_, result) = session.unpin(vm.gmem_fd(), FREE, PAGE, pin::CPU);
        let answer = guest.result();
        ticks += clock::ticks() - start;
        clock::close();
        result.context("UNPIN")?;
        ensure!(reply(answer?)?.is_success(), "the guest's call failed");
    }
    Ok((COUNT, ticks))
}
