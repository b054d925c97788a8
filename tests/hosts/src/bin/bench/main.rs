//! The benchmark: how many instructions each operation takes, from the caller's loop.
//!
//! Run under QEMU's `-icount shift=0,sleep=off` with one CPU, where the counter counts instructions: a loop of known length
//! tells how many of them make a tick. The figures hold the caller's own loop (some four instructions), as those of the
//! peers do. On a real clock the unit would be wrong: the calibration says so.
//!
//! `section NAME` and the windows of [`tenure_test_rt::window`] tell an observer which instructions belong to a figure;
//! `bench NAME VALUE UNIT STEPS` is the figure, of so many steps. With `scale=1` among the boot arguments it measures how
//! figures grow with memory and with the number of VMs, and nothing else.
#![no_std]
#![no_main]
#![allow(clippy::result_large_err)] // A failure holds its text: there is no heap.

mod guest;
mod host;
mod largest;
mod ranges;
mod scale;
mod stretch;

use tenure_test_hosts::Host;
use tenure_test_rt::harness::{self, Failure};
use tenure_test_rt::{cpu, entry, fail, println, window};

entry!(main);

/// Ticks and instructions of the calibration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    instructions: u64,
    ticks: u64,
}

impl Clock {
    fn calibrate() -> Self {
        const TURNS: u64 = 1 << 20;
        let start = cpu::counter();
        cpu::spin(TURNS);
        Self { instructions: TURNS * 2, ticks: cpu::counter().wrapping_sub(start).max(1) }
    }

    /// What `ticks` were for each of `n` steps.
    pub(crate) fn per_step(self, ticks: u64, n: u64) -> Measured {
        let tenths = u128::from(ticks) * u128::from(self.instructions) * 10;
        Measured { tenths: (tenths / u128::from(self.ticks) / u128::from(n.max(1))) as u64, steps: n }
    }

    /// What a step of `work`, `n` steps long, takes.
    pub(crate) fn time(self, n: u64, work: impl FnOnce()) -> Measured {
        let watch = Watch::start();
        work();
        self.per_step(watch.ticks(), n)
    }
}

/// A measured time, within a window.
pub(crate) struct Watch(u64);

impl Watch {
    pub(crate) fn start() -> Self {
        window::open();
        Self(cpu::counter())
    }

    pub(crate) fn ticks(self) -> u64 {
        let ticks = cpu::counter().wrapping_sub(self.0);
        window::close();
        ticks
    }
}

/// A figure.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measured {
    /// Tenths of its unit, of each step.
    tenths: u64,
    /// How many steps were measured.
    steps: u64,
}

/// Measures one figure, prints it and gives its tenths back.
pub(crate) fn figure(
    name: &str,
    unit: &str,
    measure: impl FnOnce() -> Result<Measured, Failure>,
) -> Option<u64> {
    let mut value = None;
    println!("section {name}");
    window::next_section();
    harness::run("bench", name, || {
        value = Some(measure()?);
        Ok(())
    });
    if let Some(Measured { tenths, steps }) = value {
        println!("bench {name} {}.{} {unit} {steps}", tenths / 10, tenths % 10);
    }
    value.map(|measured| measured.tenths)
}

/// As [`figure`], in instructions.
pub(crate) fn instructions(name: &str, measure: impl FnOnce() -> Result<Measured, Failure>) -> Option<u64> {
    figure(name, "instructions", measure)
}

fn main(dtb: u64) -> ! {
    println!("host-bench: device tree at {dtb:#x}");
    let mut host = match Host::new(dtb) {
        Ok(host) => host,
        Err(why) => harness::abandon(why),
    };
    let clock = Clock::calibrate();
    println!("note: {} instructions in {} ticks", clock.instructions, clock.ticks);
    if !clock.instructions.is_multiple_of(clock.ticks) && clock.instructions % clock.ticks > clock.ticks / 100
    {
        println!("note: this is no instruction counter: run with -icount shift=0,sleep=off");
    }
    if !host.under_tenure {
        harness::abandon("no Tenure here");
    }
    if host.machine.argument("scale") == Some(1) {
        scale::run(&mut host, clock);
        harness::finish();
    }
    harness::run("bench", "blocks_can_be_split", || host.split_blocks());
    let populate = host::run(&mut host, clock);
    let scrub = guest::run(&mut host, clock);
    instructions("populate_2m_per_page_without_scrub", || match (populate, scrub) {
        (Some(populate), Some(scrub)) => Ok(Measured { tenths: populate.saturating_sub(scrub), steps: 0 }),
        _ => fail!("the parts were not measured"),
    });
    ranges::run(&mut host, clock);
    stretch::run(&mut host, clock);
    largest::run(&mut host);
    harness::finish()
}
