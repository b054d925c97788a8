//! `cargo xtask run`: boots Debian under Tenure and shows the story, or a shell.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::board::data::Way;
use crate::board::launch::{self, Host};
use crate::board::{self, Board};
use crate::initramfs::{self, Contents};
use crate::qemu::console::Watch;
use crate::qemu::runner::{self, End};
use crate::qemu::{Config, Payload};
use crate::setup::Machine;
use crate::setup::debs::Flavour;
use crate::{build, exec, paths, setup};

/// Boot an unmodified Debian kernel under Tenure in QEMU and show what Tenure is for.
///
/// A protected guest shares a page, is refused while the host has it pinned and told why, waits, and takes it back.
/// Sets the machine up and builds what is not built. With --board it runs on another board that QEMU models, with
/// Debian's full kernel (fetched once, 110 MB); `cargo xtask boards` lists them.
#[derive(clap::Args)]
pub struct Args {
    /// A shell on the host, with the driver loaded, in place of the story (no time limit; `poweroff -f` ends it).
    #[arg(long)]
    shell: bool,
    /// A board, in place of QEMU's virt machine with Debian's cloud kernel.
    #[arg(long, value_name = "NAME", value_parser = board::known)]
    board: Option<String>,
    /// How the board is started; not every board has every way.
    #[arg(long, value_enum, value_name = "WAY", requires = "board")]
    way: Option<Way>,
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
    #[arg(long, conflicts_with = "board")]
    bare: bool,
}

/// The virt machine to run on; other boards are what they are.
#[derive(clap::Args, Clone)]
pub struct MachineArgs {
    /// Number of CPUs [default: 4].
    #[arg(long, value_name = "N")]
    cpus: Option<u8>,
    /// CPU model: cortex-a53, cortex-a57, cortex-a72, cortex-a76, neoverse-n1, max, ... [default: cortex-a76].
    #[arg(long)]
    cpu: Option<String>,
    /// Version of the interrupt controller: 2 or 3 [default: 3].
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=3))]
    gic: Option<u8>,
    /// RAM, with M or G: 512M, 1G, 4G [default: 1G].
    #[arg(long, value_parser = mebibytes)]
    memory: Option<u32>,
}

impl MachineArgs {
    /// The machine as QEMU is told it.
    pub fn config(&self) -> Config {
        let usual = Config::default();
        Config {
            cpu: self.cpu.clone().unwrap_or(usual.cpu),
            cpus: self.cpus.unwrap_or(usual.cpus),
            gic: self.gic.unwrap_or(usual.gic),
            memory: self.memory.unwrap_or(usual.memory),
            ..Config::default()
        }
    }

    /// Whether anything was asked for.
    fn is_given(&self) -> bool {
        self.cpus.is_some() || self.cpu.is_some() || self.gic.is_some() || self.memory.is_some()
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
    let run = match (args.shell, args.bare) {
        (true, _) => "shell",
        (false, true) => "boot",
        (false, false) => "story",
    };
    let qemu = match &args.board {
        Some(name) => on_board(args, &machine, &board::load(name)?, run)?,
        None => on_virt(args, &machine, run)?,
    };
    follow(args, qemu, run)
}

/// QEMU's virt machine with Debian's cloud kernel, or without the hypervisor.
fn on_virt(args: &Args, machine: &Machine, run: &str) -> Result<Command> {
    let needed: &[build::Part] = match (args.bare, args.initrd.is_some()) {
        (true, _) => &[],
        (false, true) => &[build::Part::Hyp],
        (false, false) => &[build::Part::Hyp, build::Part::Driver, build::Part::Story],
    };
    build::parts_of(machine, needed)?;
    let kernel = args.kernel.clone().unwrap_or_else(|| machine.kernel.image.clone());
    let contents = Contents {
        driver: (!args.bare).then_some(Flavour::Cloud),
        programs: !args.bare,
        ..Contents::default()
    };
    let initrd = initrd(args, machine, "initramfs.cpio", contents)?;
    let bootargs = bootargs(run, &args.append);
    let config = args.machine.config();
    let payload = if args.bare {
        Payload::Bare { kernel, initrd: Some(initrd), bootargs }
    } else {
        Payload::Tenure { image: paths::image(), kernel, initrd: Some(initrd), bootargs }
    };
    println!("  QEMU: {}, {} MiB", config.name(), config.memory);
    Ok(config.command(&payload))
}

/// A board with Debian's full kernel.
fn on_board(args: &Args, machine: &Machine, board: &Board, run: &str) -> Result<Command> {
    ensure!(
        board.is_virt() || !args.machine.is_given(),
        "{} is what it is: --cpus, --cpu, --gic and --memory are for qemu-virt",
        board.name
    );
    ensure!(
        board.guests || run != "story",
        "{} cannot run guests (it has no GIC), so there is no story to show: use --shell",
        board.name
    );
    let way = board.way(args.way)?;
    let kernel = setup::board_kernel(false)?;
    let mut needed = vec![build::Part::Hyp];
    if args.initrd.is_none() {
        needed.extend([build::Part::DriverFull, build::Part::Story]);
    }
    build::parts_of(machine, &needed)?;
    let contents = Contents { driver: Some(Flavour::Full), programs: true, ..Contents::default() };
    let host = Host {
        kernel: args.kernel.clone().unwrap_or(kernel.image),
        initrd: initrd(args, machine, "initramfs-full.cpio", contents)?,
        arguments: board.qemu_arguments(run, &args.append),
    };
    let config = args.machine.config();
    launch::announce(board, &config, way);
    launch::command(board, &config, way, &host)
}

fn initrd(args: &Args, machine: &Machine, name: &str, contents: Contents) -> Result<PathBuf> {
    match &args.initrd {
        Some(file) => Ok(file.clone()),
        None => initramfs::pack(machine, name, contents),
    }
}

/// Starts QEMU: the user's terminal for a shell, else to the end of the story under a time limit.
fn follow(args: &Args, mut qemu: Command, run: &str) -> Result<()> {
    if args.shell {
        qemu.args(["-display", "none", "-serial", "mon:stdio"]);
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
