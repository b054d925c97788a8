//! `cargo xtask bench`: instruction counts beside the peers' figures and the aims.
//!
//! QEMU runs with `-icount shift=0,sleep=off` and one CPU: one executed instruction is one nanosecond, so the same build
//! gives the same figures on any machine. Instructions count no cache misses and no barrier latency.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::initramfs::{self, Contents};
use crate::qemu::console::Watch;
use crate::qemu::runner::{self, End};
use crate::qemu::{Config, IMAGE_ADDRESS, Payload};
use crate::setup::Machine;
use crate::{build, paths, run, setup, ui};

mod figures;
mod plugin;

use figures::Figure;
use plugin::Plugin;

/// Measure in executed instructions (QEMU's icount; the same on every machine) and compare with the peers.
#[derive(clap::Args)]
pub struct Args {
    /// Print `{"figures": [{"name", "value", "unit"}]}` in place of the table.
    #[arg(long)]
    json: bool,
}

/// A run under icount is slower than in the tests.
const LIMIT: Duration = Duration::from_secs(300);

/// The task.
///
/// # Errors
/// Those of set-up and build; and if a measured machine failed.
pub fn task(args: &Args) -> Result<()> {
    ui::lines_to_stderr(args.json);
    let machine = setup::ensure()?;
    build::parts_of(&machine, &[build::Part::Hyp, build::Part::Bare])?;
    let mut figures = Vec::new();
    // What can be measured is shown even if something else cannot.
    let results = [calls(&mut figures), boot(&machine, &mut figures), memory(&machine, &mut figures)];
    if args.json {
        let list = figures
            .iter()
            .map(|figure| json!({ "name": figure.name, "value": figure.value, "unit": figure.unit }));
        println!("{}", serde_json::to_string_pretty(&json!({ "figures": list.collect::<Vec<_>>() }))?);
    } else {
        figures::table(&figures).iter().for_each(|line| ui::line(line));
    }
    results.into_iter().collect()
}

fn machine_with(memory: u32) -> Config {
    Config { cpus: 1, icount: true, memory, ..Config::default() }
}

/// What the bare-metal host of the benchmark measures of the calls.
fn calls(figures: &mut Vec<Figure>) -> Result<()> {
    ui::step("calls, measured by a bare-metal host", true, |_| {
        let payload = Payload::Tenure {
            image: paths::image(),
            kernel: build::bare("host-bench"),
            initrd: None,
            bootargs: String::new(),
        };
        let expected = vec!["bench ".to_owned(), "result: *passed, 0 failed".to_owned()];
        let lines = follow(&machine_with(1024), &payload, Vec::new(), expected, "bench-calls")?;
        let found: Vec<Figure> = lines.iter().filter_map(|line| Figure::read(line)).collect();
        let count = found.len();
        figures.extend(found);
        Ok(ui::Outcome::Done(format!("{count} figures")))
    })
}

/// What the hypervisor executes in a Linux boot to its first program.
fn boot(machine: &Machine, figures: &mut Vec<Figure>) -> Result<()> {
    ui::step("a Linux boot, instructions counted", true, |_| {
        let plugin = Plugin::build()?;
        let size = std::fs::metadata(paths::image()).context("the hypervisor is not built")?.len();
        let argument = vec!["-plugin".to_owned(), plugin.argument(IMAGE_ADDRESS, IMAGE_ADDRESS + size)];
        let initrd = initramfs::pack(machine, "initramfs-plain.cpio", Contents::default())?;
        follow(&machine_with(1024), &linux(machine, initrd, true), argument, booted(), "bench-boot")?;
        let counts = plugin.counts()?;
        if counts.entries == 0 {
            bail!("the hypervisor was never entered at {IMAGE_ADDRESS:#x}: {counts:?}");
        }
        let mut add = |name: &str, value: f64, unit: &str| {
            figures.push(Figure { name: name.to_owned(), value, unit: unit.to_owned() });
        };
        add("boot_el2_percent", 100.0 * counts.inside as f64 / counts.all as f64, "percent");
        add("boot_el2_instructions", counts.inside as f64, "instructions");
        add("boot_el2_entries", counts.entries as f64, "entries");
        add("boot_el2_start", counts.start as f64, "instructions");
        add("boot_el2_longest", counts.longest as f64, "instructions");
        Ok(ui::Outcome::Done(format!("{} of {}", counts.inside, counts.all)))
    })
}

/// What the hypervisor keeps, by its own word, and how much less RAM Linux counts than without it. The second can be
/// the smaller one: QEMU's own device tree is padded to 1 MiB, which Linux keeps too, and Tenure's is not.
fn memory(machine: &Machine, figures: &mut Vec<Figure>) -> Result<()> {
    for gibibytes in [1_u32, 4] {
        ui::step(&format!("memory kept of {gibibytes} GiB"), true, |_| {
            let initrd = initramfs::pack(machine, "initramfs-plain.cpio", Contents::default())?;
            let boot = |tenure: bool| {
                let config = Config { cpus: 1, memory: gibibytes * 1024, ..Config::default() };
                let log = format!("bench-memory-{gibibytes}g-{}", if tenure { "tenure" } else { "bare" });
                follow(&config, &linux(machine, initrd.clone(), tenure), Vec::new(), booted(), &log)
            };
            let (bare, tenure) = (boot(false)?, boot(true)?);
            let total = |lines: &[String]| lines.iter().find_map(|line| mem_total(line));
            let (without, with) =
                total(&bare).zip(total(&tenure)).context("the console does not show Linux' memory")?;
            let kept = tenure
                .iter()
                .find_map(|line| mem_kept(line))
                .context("the hypervisor does not say what it keeps")?;
            let percent =
                |kibibytes: u64| 100.0 * kibibytes as f64 / (f64::from(gibibytes) * 1024.0 * 1024.0);
            let mut add = |name: &str, value: f64, unit: &str| {
                figures.push(Figure { name: format!("{name}_{gibibytes}g"), value, unit: unit.to_owned() });
            };
            add("kept_percent", percent(kept), "percent");
            add("linux_total_less", without.saturating_sub(with) as f64, "KiB");
            Ok(ui::Outcome::Done(format!(
                "{kept} KiB; Linux counts {} KiB less",
                without.saturating_sub(with)
            )))
        })?;
    }
    Ok(())
}

/// The KiB of `tenure: memory kept N KiB of ...`.
fn mem_kept(line: &str) -> Option<u64> {
    line.strip_prefix("tenure: memory kept ")?.split(' ').next()?.parse().ok()
}

/// The kB of `init: Debian ... with N CPUs, M kB`.
fn mem_total(line: &str) -> Option<u64> {
    line.strip_prefix("init: Debian ")?.rsplit(", ").next()?.strip_suffix(" kB")?.parse().ok()
}

fn booted() -> Vec<String> {
    vec!["init: Debian *".to_owned(), "init: boot ended with 0".to_owned()]
}

fn linux(machine: &Machine, initrd: PathBuf, tenure: bool) -> Payload {
    let (kernel, initrd, bootargs) = (machine.kernel.image.clone(), Some(initrd), run::bootargs("boot", ""));
    if tenure {
        Payload::Tenure { image: paths::image(), kernel, initrd, bootargs }
    } else {
        Payload::Bare { kernel, initrd, bootargs }
    }
}

/// Runs a machine to its end and gives its console.
fn follow(
    config: &Config,
    payload: &Payload,
    extra: Vec<String>,
    expected: Vec<String>,
    log: &str,
) -> Result<Vec<String>> {
    let config = Config { extra, ..config.clone() };
    let watch = Watch::new(expected, Vec::new());
    let outcome = runner::run(config.command(payload), log, watch, End::PowerOff, LIMIT, |_| {})?;
    match outcome.failure {
        None => Ok(outcome.lines),
        Some(failure) => bail!("{failure} (console: {})", outcome.log.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_first_lines_of_host_and_hypervisor() {
        assert_eq!(mem_total("init: Debian 6.12.95 with 1 CPUs, 997096 kB"), Some(997_096));
        assert_eq!(mem_total("init: boot ended with 0"), None);
        assert_eq!(mem_kept("tenure: memory kept 2864 KiB of 1024 MiB (0.274 %)"), Some(2864));
    }
}
