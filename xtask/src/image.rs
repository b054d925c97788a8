//! `cargo xtask image`: what a person copies to an SD card, for one board.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::board::launch::Host;
use crate::board::{self, disk, pack};
use crate::initramfs::{self, Contents};
use crate::setup::debs::Flavour;
use crate::{build, paths, setup, ui};

/// Pack a folder for a board's SD card: hypervisor, Debian's kernel, an initrd, a device tree, and the steps in a README.
///
/// Raspberry Pi: config.txt, cmdline.txt, kernel8.img (all in one file), the device tree; the firmware's own files must
/// be added by you, and the README says which and from where. Boards with U-Boot: boot.scr, tenure.img, Image,
/// initrd.cpio, the device tree. `cargo xtask boards` lists the boards; boards/NAME/README.md is the page of each.
#[derive(clap::Args)]
pub struct Args {
    /// The board.
    #[arg(long, value_name = "NAME", default_value = board::DEFAULT, value_parser = board::known)]
    board: String,
    /// Where to; the folder is made anew [default: target/image/NAME].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Also a disk image of the folder beside it (FOLDER.img): a DOS partition table and one bootable FAT partition.
    #[arg(long)]
    disk: bool,
    /// A kernel of your own (a raw arm64 `Image`) in place of Debian's.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// An initrd of your own.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// What the packed initrd does: shell, story, boot, or a script of tests/linux.
    #[arg(long, value_name = "WHAT", default_value = "shell")]
    run: String,
    /// More words for the kernel's command line.
    #[arg(long, value_name = "WORDS", default_value = "")]
    append: String,
}

/// The task.
///
/// # Errors
/// Those of set-up and build; and if a file cannot be copied.
pub fn task(args: &Args) -> Result<()> {
    let board = board::load(&args.board)?;
    for file in args.kernel.iter().chain(&args.initrd) {
        ensure!(file.is_file(), "there is no file {}", file.display());
    }
    let machine = setup::ensure()?;
    let kernel = setup::board_kernel(false)?;
    build::parts_of(&machine, &[build::Part::Hyp, build::Part::DriverFull, build::Part::Story])?;
    let initrd = match &args.initrd {
        Some(file) => file.clone(),
        None => {
            let contents = Contents { driver: Some(Flavour::Full), programs: true, ..Contents::default() };
            initramfs::pack(&machine, "initramfs-full.cpio", contents)?
        }
    };
    let host = Host {
        kernel: args.kernel.clone().unwrap_or(kernel.image),
        initrd,
        arguments: board.arguments(&args.run, &args.append),
    };
    let out = match &args.out {
        Some(out) => std::path::absolute(out)?,
        None => paths::target().join("image").join(&board.name),
    };
    ensure!(
        !out.exists() || out.join("README.txt").is_file(),
        "{} is there and was not made by this command; it would be emptied",
        out.display()
    );
    pack::write(&board, &host, &out)?;
    ui::line(&format!(
        "{}: the files for {}; README.txt says what to do with them",
        out.display(),
        board.title
    ));
    if args.disk {
        let file = out.with_extension("img");
        disk::write(&out, &file)?;
        ui::line(&format!("{}: the same as a disk image", file.display()));
    }
    Ok(())
}
