//! `cargo xtask run`: boots Debian under Tenure and shows the story, or a shell.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::initramfs::{self, Contents};
use crate::qemu::console::Watch;
use crate::qemu::runner::{self, End};
use crate::qemu::{Config, Payload};
use crate::setup::debs::Flavour;
use crate::{build, exec, paths, setup};

/// Boot an unmodified Debian kernel under Tenure in QEMU and show what Tenure is for.
///
/// A protected guest shares a page, is refused while the host has it pinned and told why, waits, and takes it back.
/// Sets the machine up and builds what is not built.
#[derive(clap::Args)]
pub struct Args {
    /// A shell on the host, with the driver loaded, in place of the story (no time limit; `poweroff -f` ends it).
    #[arg(long)]
    shell: bool,
    #[command(flatten)]
    machine: MachineArgs,
    /// A kernel of your own (a raw arm64 `Image`) in place of Debian's; the driver is built for Debian's.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// An initrd of your own; its own /init decides what happens then.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// More words for the kernel's command line.
    #[arg(long, value_name = "WORDS", default_value = "")]
    append: String,
    /// Seconds after which the machine is stopped.
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    timeout: u64,
    /// Without the hypervisor: the same kernel and initrd straight on QEMU, to compare.
    #[arg(long)]
    bare: bool,
}

/// The machine to run on.
#[derive(clap::Args, Clone)]
pub struct MachineArgs {
    /// Number of CPUs.
    #[arg(long, value_name = "N", default_value_t = 4)]
    cpus: u8,
    /// CPU model: cortex-a53, cortex-a57, cortex-a72, cortex-a76, neoverse-n1, max, ...
    #[arg(long, default_value = "cortex-a76")]
    cpu: String,
    /// Version of the interrupt controller: 2 or 3.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=3))]
    gic: u8,
    /// RAM, with M or G: 512M, 1G, 4G.
    #[arg(long, default_value = "1G", value_parser = mebibytes)]
    memory: u32,
}

impl MachineArgs {
    /// The machine as QEMU is told it.
    pub fn config(&self) -> Config {
        Config {
            cpu: self.cpu.clone(),
            cpus: self.cpus,
            gic: self.gic,
            memory: self.memory,
            ..Config::default()
        }
    }
}

fn mebibytes(text: &str) -> Result<u32, String> {
    let (digits, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len());
    let factor = match unit {
        "M" | "m" | "MiB" => 1,
        "G" | "g" | "GiB" => 1024,
        _ => return Err("give a number with M or G, such as 512M or 2G".into()),
    };
    let number: u32 = digits.parse().map_err(|_| format!("`{digits}` is no number"))?;
    let size = number.checked_mul(factor).ok_or("that is too much")?;
    if size < 512 { Err("the kernel and the initrd need 512M at least".into()) } else { Ok(size) }
}

/// The kernel's command line for a run of `/init`.
pub fn bootargs(run: &str, more: &str) -> String {
    format!("console=ttyAMA0 loglevel=4 panic=-1 tenure.run={run} {more}").trim_end().to_owned()
}

/// The task.
///
/// # Errors
/// Those of set-up and build; and if the machine crashed, was late, or ended its story badly.
pub fn task(args: &Args) -> Result<()> {
    let machine = setup::ensure()?;
    for file in args.kernel.iter().chain(&args.initrd) {
        ensure!(file.is_file(), "there is no file {}", file.display());
    }
    let needed: &[build::Part] = match (args.bare, args.initrd.is_some()) {
        (true, _) => &[],
        (false, true) => &[build::Part::Hyp],
        (false, false) => &[build::Part::Hyp, build::Part::Driver, build::Part::Story],
    };
    build::parts_of(&machine, needed)?;
    let kernel = args.kernel.clone().unwrap_or_else(|| machine.kernel.image.clone());
    let initrd = match &args.initrd {
        Some(file) => file.clone(),
        None => initramfs::pack(
            &machine,
            "initramfs.cpio",
            Contents { driver: (!args.bare).then_some(Flavour::Cloud), programs: !args.bare },
        )?,
    };
    let run = match (args.shell, args.bare) {
        (true, _) => "shell",
        (false, true) => "boot",
        (false, false) => "story",
    };
    let bootargs = bootargs(run, &args.append);
    let config = args.machine.config();
    let payload = if args.bare {
        Payload::Bare { kernel, initrd: Some(initrd), bootargs }
    } else {
        Payload::Tenure { image: paths::image(), kernel, initrd: Some(initrd), bootargs }
    };
    println!("  QEMU: {}, {} MiB", config.name(), config.memory);
    let mut qemu = config.command(&payload);
    if args.shell {
        qemu.arg("-nographic");
        println!("  (control-A x stops the machine)");
        let status = qemu.status().with_context(|| format!("cannot start {}", exec::show(&qemu)))?;
        ensure!(status.success(), "QEMU ended with {status}");
        return Ok(());
    }
    let expected = if args.initrd.is_some() { Vec::new() } else { vec![format!("init: {run} ended with 0")] };
    let limit = Duration::from_secs(args.timeout);
    let show = |line: &str| println!("{line}");
    let outcome = runner::run(qemu, "run", Watch::new(expected, Vec::new()), End::PowerOff, limit, show)?;
    match outcome.failure {
        None => Ok(()),
        Some(failure) => bail!("{failure} (console: {})", outcome.log.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_sizes_have_units() {
        assert_eq!(mebibytes("1G"), Ok(1024));
        assert_eq!(mebibytes("512M"), Ok(512));
        assert!(mebibytes("256M").is_err());
        assert!(mebibytes("1024").is_err());
        assert!(mebibytes("G").is_err());
        assert!(mebibytes("9999999G").is_err());
    }

    #[test]
    fn the_command_line_says_what_init_shall_do() {
        assert!(bootargs("story", "").ends_with("tenure.run=story"));
        assert!(bootargs("boot", "quiet").ends_with("tenure.run=boot quiet"));
    }
}
