//! QEMU's command line for a board, by each of the ways in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::data::{Pack, Way};
use super::tree::{self, Module};
use super::{Board, bundle, disk, pack};
use crate::qemu::{Config, Payload, loader};
use crate::setup::{self, packages};
use crate::{paths, ui};

/// What runs under the hypervisor.
#[derive(Clone, Debug)]
pub struct Host {
    /// The kernel: a raw arm64 `Image`.
    pub kernel: PathBuf,
    /// Its initrd.
    pub initrd: PathBuf,
    /// Its command line.
    pub arguments: String,
}

/// The command that starts the hypervisor and `host` on a board; its serial console comes next: `-serial stdio`.
///
/// `virt` says what a virt machine is like; other boards are what they are.
///
/// # Errors
/// If a file that it needs cannot be read or made.
pub fn command(board: &Board, virt: &Config, way: Way, host: &Host) -> Result<Command> {
    let dir = paths::target().join("boards").join(&board.name);
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    if board.is_virt() {
        return Ok(virt.command(&payload(board, way, host, &dir)?));
    }
    let mut qemu = Command::new(packages::QEMU);
    qemu.args(["-M", &board.qemu.machine, "-smp", &board.cpus.to_string(), "-m", &board.qemu.memory]);
    qemu.args(["-nic", "none"]);
    if !virt.reboots {
        qemu.arg("-no-reboot");
    }
    let dtb = dir.join(format!("{}.dtb", way.name()));
    if way == Way::Bundle {
        tree::write(board, &[], &dtb)?;
        let (file, outside) = bundled(board, host, &dir)?;
        qemu.arg("-kernel").arg(file).args(["-append", outside]);
    } else {
        tree::write(board, &modules(board, host)?, &dtb)?;
        qemu.arg("-kernel").arg(paths::image());
        qemu.arg("-device").arg(loader(board.load.kernel, &host.kernel, ""));
        qemu.arg("-device").arg(loader(board.load.ramdisk, &host.initrd, ""));
    }
    qemu.arg("-dtb").arg(dtb);
    qemu.args(&board.qemu.arguments);
    for _ in 0..board.qemu.serial {
        qemu.args(["-serial", "null"]);
    }
    Ok(qemu)
}

/// What is started on a virt machine.
fn payload(board: &Board, way: Way, host: &Host, dir: &Path) -> Result<Payload> {
    Ok(match way {
        Way::GuestLoader | Way::Modules => Payload::Tenure {
            image: paths::image(),
            kernel: host.kernel.clone(),
            initrd: Some(host.initrd.clone()),
            bootargs: host.arguments.clone(),
        },
        Way::Bundle => Payload::Alone { image: bundled(board, host, dir)?.0 },
        Way::UBoot => {
            let folder = dir.join("card");
            pack::write(board, host, &folder)?;
            let image = dir.join("card.img");
            disk::write(&folder, &image)?;
            Payload::Firmware { bios: setup::u_boot(false)?, disk: image }
        }
    })
}

/// The one file of a board, and the part of the command line that its firmware hands over beside it.
fn bundled<'a>(board: &Board, host: &'a Host, dir: &Path) -> Result<(PathBuf, &'a str)> {
    let (inside, outside) = match board.pack {
        // cmdline.txt
        Pack::RaspberryPi { .. } => ("", host.arguments.as_str()),
        Pack::UBoot { .. } => (host.arguments.as_str(), ""),
    };
    let file = dir.join("bundle.img");
    bundle::write(&paths::image(), &host.kernel, &host.initrd, inside, &file)?;
    Ok((file, outside))
}

/// The host's kernel and initrd, where the board's data puts them.
fn modules<'a>(board: &Board, host: &'a Host) -> Result<[Module<'a>; 2]> {
    let size = |file: &Path| {
        Ok::<u64, anyhow::Error>(
            fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?.len(),
        )
    };
    Ok([
        Module {
            kind: "multiboot,kernel",
            address: board.load.kernel,
            size: size(&host.kernel)?,
            arguments: Some(&host.arguments),
        },
        Module {
            kind: "multiboot,ramdisk",
            address: board.load.ramdisk,
            size: size(&host.initrd)?,
            arguments: None,
        },
    ])
}

/// Says which machine runs.
pub fn announce(board: &Board, virt: &Config, way: Way) {
    let machine = if board.is_virt() { virt.name() } else { format!("{} CPUs", board.cpus) };
    ui::line(&format!("  QEMU: {} ({machine}), started by {}", board.title, way.name()));
}
