//! The machines that are measured.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::figures::Figure;
use super::plugin::{Counts, Plugin};
use super::profile::Image;
use super::report::Report;
use crate::initramfs::{self, Contents};
use crate::qemu::console::Watch;
use crate::qemu::runner::{self, End};
use crate::qemu::{Config, Payload};
use crate::setup::Machine;
use crate::setup::debs::Flavour;
use crate::{build, paths, run, ui};

/// A run that is watched and counts its instructions is slower than in the tests.
const LIMIT: Duration = Duration::from_secs(600);

/// What the measured machines are made of.
pub struct Bench<'a> {
    machine: &'a Machine,
    plugin: Plugin,
    image: Image,
}

impl<'a> Bench<'a> {
    /// Compiles the plugin and reads the hypervisor.
    ///
    /// # Errors
    /// Those of both.
    pub fn new(machine: &'a Machine) -> Result<Self> {
        Ok(Self { machine, plugin: Plugin::build()?, image: Image::load(&build::hypervisor())? })
    }

    /// The hypervisor's image, to name functions.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Calls, measured by a bare-metal host.
    pub fn calls(&self, report: &mut Report) -> Result<()> {
        ui::step("calls, measured by a bare-metal host", true, |_| self.bare(report, 1024, ""))
    }

    /// Growth with memory and with VMs.
    pub fn scale(&self, report: &mut Report) -> Result<()> {
        ui::step("calls, with 64 MiB to 4 GiB and 1 to 64 VMs", true, |_| self.bare(report, 6144, "scale=1"))
    }

    fn bare(&self, report: &mut Report, memory: u32, words: &str) -> Result<ui::Outcome> {
        let payload = Payload::Tenure {
            image: paths::image(),
            kernel: build::bare("host-bench"),
            initrd: None,
            bootargs: words.to_owned(),
        };
        let expected = vec!["bench ".to_owned(), "result: *passed, 0 failed".to_owned()];
        let log = if words.is_empty() { "bench-calls" } else { "bench-scale" };
        let (lines, counts) = self.watched(&icount(memory), &payload, expected, log)?;
        self.take(report, &lines, counts, "bare-metal host")
    }

    /// Guests of the driver, under Linux.
    pub fn linux(&self, report: &mut Report) -> Result<()> {
        ui::step("guests of the driver under Linux", true, |_| {
            let expected = vec!["bench ".to_owned(), "init: bench ended with 0".to_owned()];
            let (lines, counts) =
                self.watched(&icount(1024), &self.debian("bench", true)?, expected, "bench-linux")?;
            self.take(report, &lines, counts, "bench under Linux")
        })
    }

    /// The story: every operation that it makes, on four CPUs, and how long each kept a CPU at EL2.
    pub fn story(&self, report: &mut Report) -> Result<()> {
        ui::step("the story, its longest stretches", true, |_| {
            let config = Config { memory: 1024, ..Config::default() };
            let expected = vec!["init: story ended with 0".to_owned()];
            let (_, counts) = self.watched(&config, &self.debian("story", true)?, expected, "bench-story")?;
            let longest = counts.longest;
            report.stretches("story under Linux", counts);
            Ok(ui::Outcome::Done(format!("{longest} instructions")))
        })
    }

    /// What the hypervisor executes in a Linux boot to its first program.
    pub fn boot(&self, report: &mut Report) -> Result<()> {
        ui::step("a Linux boot, instructions counted", true, |_| {
            let payload = self.debian("boot", false)?;
            let (_, counts) = self.watched(&icount(1024), &payload, booted(), "bench-boot")?;
            let percent = 100.0 * counts.inside as f64 / counts.all as f64;
            report.figure("boot_el2_percent", percent, "percent");
            report.figure("boot_el2_instructions", counts.inside as f64, "instructions");
            report.figure("boot_el2_entries", counts.entries as f64, "entries");
            report.figure("boot_el2_start", counts.start as f64, "instructions");
            report.figure("boot_el2_longest", counts.longest as f64, "instructions");
            let done = format!("{} of {}", counts.inside, counts.all);
            report.stretches("boot of Linux", counts);
            Ok(ui::Outcome::Done(done))
        })
    }

    /// What the hypervisor keeps, by its own word, and how much less RAM Linux counts than without it. The second can be
    /// the smaller one: QEMU's own device tree is padded to 1 MiB, which Linux keeps too, and Tenure's is not.
    pub fn memory(&self, report: &mut Report) -> Result<()> {
        let mut words = Vec::new();
        for gibibytes in [1_u32, 4] {
            ui::step(&format!("memory kept of {gibibytes} GiB"), true, |_| {
                let boot = |tenure: bool| {
                    let config = Config { cpus: 1, memory: gibibytes * 1024, ..Config::default() };
                    let log = format!("bench-memory-{gibibytes}g-{}", if tenure { "tenure" } else { "bare" });
                    let payload = if tenure { self.debian("boot", false)? } else { self.without_tenure()? };
                    follow(&config, &payload, booted(), &log)
                };
                let (bare, tenure) = (boot(false)?, boot(true)?);
                let total = |lines: &[String]| lines.iter().find_map(|line| mem_total(line));
                let (without, with) =
                    total(&bare).zip(total(&tenure)).context("the console does not show Linux' memory")?;
                let kept = tenure
                    .iter()
                    .find_map(|line| mem_kept(line))
                    .context("the hypervisor does not say what it keeps")?;
                let whole = f64::from(gibibytes) * 1024.0 * 1024.0;
                report.figure(&format!("kept_percent_{gibibytes}g"), 100.0 * kept as f64 / whole, "percent");
                let less = without.saturating_sub(with);
                report.figure(&format!("linux_total_less_{gibibytes}g"), less as f64, "KiB");
                words.push((kept * 1024, u64::from(gibibytes) << 18));
                Ok(ui::Outcome::Done(format!("{kept} KiB; Linux counts {less} KiB less")))
            })?;
        }
        if let [(less, few), (more, many)] = words[..] {
            // What a page more costs: its word, and its share of what grows with RAM.
            let bytes = more.saturating_sub(less) as f64 / many.saturating_sub(few).max(1) as f64;
            report.figure("metadata_bytes_per_page", bytes, "bytes");
        }
        Ok(())
    }

    /// Figures, sections and stretches of a run.
    fn take(
        &self,
        report: &mut Report,
        lines: &[String],
        counts: Counts,
        place: &'static str,
    ) -> Result<ui::Outcome> {
        let names: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("section ")).collect();
        ensure!(
            names.len() == counts.sections.len(),
            "{} sections were named, {} were seen",
            names.len(),
            counts.sections.len()
        );
        let mut count = 0;
        for (figure, steps) in lines.iter().filter_map(|line| Figure::read(line)) {
            let section = names.iter().position(|name| *name == figure.name);
            if let Some(profile) = section.and_then(|at| counts.sections.get(at)) {
                let kinds = self.image.kinds(profile);
                report.operation(&figure.name, steps, kinds, profile.clone());
            }
            report.figure(&figure.name, figure.value, &figure.unit);
            count += 1;
        }
        report.stretches(place, counts);
        Ok(ui::Outcome::Done(format!("{count} figures")))
    }

    /// Runs a machine under the plugin to its end.
    fn watched(
        &self,
        config: &Config,
        payload: &Payload,
        expected: Vec<String>,
        log: &str,
    ) -> Result<(Vec<String>, Counts)> {
        let config = Config { extra: self.plugin.arguments()?, ..config.clone() };
        let lines = follow(&config, payload, expected, log)?;
        Ok((lines, self.plugin.counts()?))
    }

    fn debian(&self, what: &str, programs: bool) -> Result<Payload> {
        let initrd = if programs {
            let contents = Contents { driver: Some(Flavour::Cloud), programs, ..Contents::default() };
            initramfs::pack(self.machine, "initramfs-bench.cpio", contents)?
        } else {
            self.plain()?
        };
        let (kernel, bootargs) = (self.machine.kernel.image.clone(), run::bootargs(what, ""));
        Ok(Payload::Tenure { image: paths::image(), kernel, initrd: Some(initrd), bootargs })
    }

    fn without_tenure(&self) -> Result<Payload> {
        let (kernel, bootargs) = (self.machine.kernel.image.clone(), run::bootargs("boot", ""));
        Ok(Payload::Bare { kernel, initrd: Some(self.plain()?), bootargs })
    }

    fn plain(&self) -> Result<PathBuf> {
        initramfs::pack(self.machine, "initramfs-plain.cpio", Contents::default())
    }
}

/// The machine whose clock counts instructions.
fn icount(memory: u32) -> Config {
    Config { cpus: 1, icount: true, memory, ..Config::default() }
}

fn booted() -> Vec<String> {
    vec!["init: Debian *".to_owned(), "init: boot ended with 0".to_owned()]
}

/// The KiB of `tenure: memory kept N KiB of ...`.
fn mem_kept(line: &str) -> Option<u64> {
    line.strip_prefix("tenure: memory kept ")?.split(' ').next()?.parse().ok()
}

/// The kB of `init: Debian ... with N CPUs, M kB`.
fn mem_total(line: &str) -> Option<u64> {
    line.strip_prefix("init: Debian ")?.rsplit(", ").next()?.strip_suffix(" kB")?.parse().ok()
}

/// Runs a machine to its end and gives its console.
fn follow(config: &Config, payload: &Payload, expected: Vec<String>, log: &str) -> Result<Vec<String>> {
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
