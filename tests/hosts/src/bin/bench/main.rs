//! The benchmark: how many instructions each operation takes, from the caller's loop.
//!
//! Run under QEMU's `-icount shift=0,sleep=off` with one CPU, where the counter counts instructions: a loop of known length
//! tells how many of them make a tick. The figures hold the caller's own loop (some four instructions), as those of the
//! peers do. On a real clock the unit would be wrong: the calibration says so.
#![no_std]
#![no_main]
#![allow(clippy::result_large_err)] // A failure holds its text: there is no heap.

mod guest;
mod host;
mod stretch;

use tenure_test_hosts::Host;
use tenure_test_rt::harness::{self, Failure};
use tenure_test_rt::{cpu, entry, fail, println};

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

    /// Tenths of instructions in `ticks`, divided by `n`.
    pub(crate) fn tenths(self, ticks: u64, n: u64) -> u64 {
        let tenths = u128::from(ticks) * u128::from(self.instructions) * 10;
        (tenths / u128::from(self.ticks) / u128::from(n.max(1))) as u64
    }

    /// Tenths of instructions a step that `work`, `n` steps long, takes.
    pub(crate) fn time(self, n: u64, work: impl FnOnce()) -> u64 {
        let start = cpu::counter();
        work();
        self.tenths(cpu::counter().wrapping_sub(start), n)
    }
}

/// Measures one figure, in tenths of its unit, prints it and gives it back.
pub(crate) fn figure(name: &str, unit: &str, measure: impl FnOnce() -> Result<u64, Failure>) -> Option<u64> {
    let mut value = None;
    harness::run("bench", name, || {
        value = Some(measure()?);
        Ok(())
    });
    if let Some(tenths) = value {
        println!("bench {name} {}.{} {unit}", tenths / 10, tenths % 10);
    }
    value
}

/// As [`figure`], in instructions.
pub(crate) fn instructions(name: &str, measure: impl FnOnce() -> Result<u64, Failure>) -> Option<u64> {
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
    harness::run("bench", "blocks_can_be_split", || host.split_blocks());
    let populate = host::run(&mut host, clock);
    let scrub = guest::run(&mut host, clock);
    instructions("populate_2m_per_page_without_scrub", || match (populate, scrub) {
        (Some(populate), Some(scrub)) => Ok(populate.saturating_sub(scrub)),
        _ => fail!("the parts were not measured"),
    });
    stretch::run(&mut host, clock);
    harness::finish()
}
