//! `cargo xtask bench`: instruction counts beside the peers' figures and the aims.
//!
//! QEMU runs with `-icount shift=0,sleep=off` and one CPU: one executed instruction is one nanosecond, so the same build
//! gives the same figures on any machine. Instructions count no cache misses and no barrier latency: a TCG plugin
//! ([`plugin`]) tells what they were ([`profile`]), so that invalidations, barriers, atomics and locks stand beside them.

use anyhow::Result;
use serde_json::json;

use crate::{build, setup, ui};

mod figures;
mod plugin;
mod profile;
mod report;
mod runs;

use report::Report;
use runs::Bench;

/// Measure in executed instructions (QEMU's icount; the same on every machine) and compare with the peers.
#[derive(clap::Args)]
pub struct Args {
    /// Print `{"figures": [{"name", "value", "unit"}]}` in place of the tables.
    #[arg(long)]
    json: bool,
    /// Only this part.
    #[arg(long, value_enum)]
    part: Option<Part>,
    /// Also the functions in which each operation and each long stretch spends its instructions.
    #[arg(long)]
    profile: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Calls of a bare-metal host and its guest, one by one and by ranges.
    Calls,
    /// The same with more memory and more VMs.
    Scale,
    /// Guests of the driver under Linux.
    Linux,
    /// The longest stretches of the story under Linux.
    Story,
    /// The share of the hypervisor in a Linux boot.
    Boot,
    /// The RAM that the hypervisor keeps.
    Memory,
}

const PARTS: [Part; 6] = [Part::Calls, Part::Scale, Part::Linux, Part::Story, Part::Boot, Part::Memory];

/// The task.
///
/// # Errors
/// Those of set-up and build; and if a measured machine failed.
pub fn task(args: &Args) -> Result<()> {
    ui::lines_to_stderr(args.json);
    let machine = setup::ensure()?;
    let parts: Vec<Part> =
        PARTS.into_iter().filter(|part| args.part.is_none_or(|only| only == *part)).collect();
    let programs = parts.iter().any(|part| matches!(part, Part::Linux | Part::Story));
    let needed = [build::Part::Hyp, build::Part::Bare, build::Part::Driver, build::Part::Story];
    build::parts_of(&machine, if programs { &needed } else { &needed[..2] })?;
    let bench = Bench::new(&machine)?;
    let mut report = Report::default();
    // What can be measured is shown even if something else cannot.
    let mut results = Vec::new();
    for part in parts {
        results.push(match part {
            Part::Calls => bench.calls(&mut report),
            Part::Scale => bench.scale(&mut report),
            Part::Linux => bench.linux(&mut report),
            Part::Story => bench.story(&mut report),
            Part::Boot => bench.boot(&mut report),
            Part::Memory => bench.memory(&mut report),
        });
    }
    let figures = report.figures();
    if args.json {
        let list = figures
            .iter()
            .map(|figure| json!({ "name": figure.name, "value": figure.value, "unit": figure.unit }));
        println!("{}", serde_json::to_string_pretty(&json!({ "figures": list.collect::<Vec<_>>() }))?);
    } else {
        report.tables(&figures).iter().for_each(|line| ui::line(line));
    }
    if args.profile {
        report.profiles(bench.image()).iter().for_each(|line| ui::line(line));
    }
    results.into_iter().collect()
}
