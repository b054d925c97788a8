//! `cargo xtask setup`: brings a machine to where Tenure builds and runs, and changes nothing if it is there.
//!
//! The order is: look at everything first, then add the Rust targets (a user's matter), then the packages (root's
//! matter: a user who is not root is told the whole list and one command, before anything was half done), then fetch
//! the Debian kernel, its headers and busybox into the cache. Every step looks for the thing itself, not for the
//! package that usually brings it, so that a machine set up in another way is fine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{paths, ui};

pub mod apt;
pub mod debs;
pub mod packages;
pub mod rust;

/// The kernel series that the driver is built for and the tests boot.
pub const KERNEL_SERIES: &str = "6.12";

/// All flavours.
const FLAVOURS: [debs::Flavour; 2] = [debs::Flavour::Cloud, debs::Flavour::Full];

/// Bring this machine to where Tenure builds and runs; each step is skipped when it is done.
///
/// Installed on the machine (root only; else you are told the one command): QEMU 10 or later (from the release, or
/// from its backports through a private source list; the machine's own package sources are not changed), the arm64
/// cross gcc and libc, make, and Debian's current rustc with its library source if rustup cannot add a target.
///
/// Fetched through apt into ${XDG_CACHE_HOME:-~/.cache}/tenure/ (hashes checked by apt):
///   kernel-6.12-cloud/Image    Debian's unmodified arm64 cloud kernel; root/ beside it holds its package
///   headers-6.12-cloud/build   its headers, ready for `make -C`
///   busybox/busybox            a static arm64 busybox
///   apt/                       the private package lists
/// and, with --boards or when a task needs a board other than qemu-virt (110 MB to download):
///   kernel-6.12-full/Image     the kernel of the full flavour, which boards need
///   kernel-6.12-full/dtbs/     the device trees of its package: dtbs/broadcom/bcm2711-rpi-4-b.dtb ...
///   headers-6.12-full/build    its headers
///   u-boot-qemu/u-boot.bin     U-Boot for QEMU's virt machine
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Fetch the package lists, the kernel, its headers and busybox again.
    #[arg(long)]
    refresh: bool,
    /// Also what boards need: the kernel of the full flavour with its device trees and headers, and U-Boot.
    #[arg(long)]
    boards: bool,
}

/// A Debian kernel in the cache.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Which of Debian's kernels it is.
    pub flavour: debs::Flavour,
    /// A raw arm64 `Image`.
    pub image: PathBuf,
    /// Its release, as `uname -r` says it.
    pub release: String,
    /// Its headers: the folder for `make -C`.
    pub headers: PathBuf,
}

/// What set-up provides to the other tasks.
pub struct Machine {
    /// How code for the target is compiled.
    pub rust: rust::Rust,
    /// Debian's arm64 kernel for virtual machines.
    pub kernel: Kernel,
    /// A static arm64 busybox.
    pub busybox: PathBuf,
}

/// The task: sets up, and says where things are.
///
/// # Errors
/// Those of [`ensure`].
pub fn task(args: &Args) -> Result<()> {
    if args.refresh {
        let kernels = FLAVOURS.iter().flat_map(|flavour| [flavour.kernel_dir(), flavour.headers_dir()]);
        for dir in kernels.chain(["apt", debs::BUSYBOX_DIR, debs::U_BOOT_DIR, "rustup-refused"]) {
            let path = paths::cache()?.join(dir);
            let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match gone {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", path.display()));
                }
                _ => {}
            }
        }
    }
    let machine = ensure_with(true)?;
    let boards = args.boards.then(|| board_kernel(true)).transpose()?;
    let u_boot = args.boards.then(|| u_boot(true)).transpose()?;
    for kernel in [Some(&machine.kernel), boards.as_ref()].into_iter().flatten() {
        println!("kernel   {} ({})", kernel.image.display(), kernel.release);
        println!("headers  {}", kernel.headers.display());
    }
    if let Some(u_boot) = u_boot {
        println!("trees    {}", paths::board_trees()?.display());
        println!("U-Boot   {}", u_boot.display());
    }
    println!("busybox  {}", machine.busybox.display());
    println!("rust     {}", machine.rust.describe());
    Ok(())
}

/// Sets up what is missing, and prints only that.
///
/// # Errors
/// Whatever could not be set up, with what is missing and the command that gets it.
pub fn ensure() -> Result<Machine> {
    ensure_with(false)
}

fn ensure_with(verbose: bool) -> Result<Machine> {
    let cache = paths::cache()?;
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let _only_one = lock(&cache.join("lock"))?;
    if verbose {
        println!("setup:");
    }
    let mut compiler = None;
    ui::step("Rust for arm64", verbose, |spinner| {
        let (found, outcome) = rust::ensure_target(&cache, spinner)?;
        compiler = Some(found);
        Ok(outcome)
    })?;
    let compiler = compiler.context("no Rust compiler for arm64 was chosen")?;
    let apt = apt::Apt::new(&cache)?;
    let mut missing = packages::missing(&compiler);
    if !missing.is_empty() {
        ui::step("packages", verbose, |spinner| packages::install(&apt, &missing, spinner))?;
        missing = packages::missing(&compiler);
        packages::check(&missing)?;
    } else if verbose {
        println!("  packages: all there (nothing to do)");
    }
    let kernel = kernel(&apt, &cache, debs::Flavour::Cloud, verbose)?;
    debs::busybox(&apt, &cache, verbose)?;
    Ok(Machine { rust: compiler, kernel, busybox: cache.join(debs::BUSYBOX_DIR).join("busybox") })
}

/// The kernel of the full flavour, fetched if it is not there; its device trees are in [`paths::board_trees`].
///
/// [`ensure`] comes first: this fetches, but does not look at what else the machine needs.
///
/// # Errors
/// If it cannot be fetched.
pub fn board_kernel(verbose: bool) -> Result<Kernel> {
    let cache = paths::cache()?;
    let _only_one = lock(&cache.join("lock"))?;
    kernel(&apt::Apt::new(&cache)?, &cache, debs::Flavour::Full, verbose)
}

/// U-Boot for QEMU's `virt`, fetched if it is not there.
///
/// # Errors
/// If it cannot be fetched.
pub fn u_boot(verbose: bool) -> Result<PathBuf> {
    let cache = paths::cache()?;
    let _only_one = lock(&cache.join("lock"))?;
    debs::u_boot(&apt::Apt::new(&cache)?, &cache, verbose)?;
    Ok(cache.join(debs::U_BOOT_DIR).join("u-boot.bin"))
}

/// A kernel and its headers, fetched if they are not there.
fn kernel(apt: &apt::Apt, cache: &Path, flavour: debs::Flavour, verbose: bool) -> Result<Kernel> {
    debs::kernel(apt, cache, flavour, verbose)?;
    debs::headers(apt, cache, flavour, verbose)?;
    let dir = cache.join(flavour.kernel_dir());
    Ok(Kernel {
        flavour,
        image: dir.join("Image"),
        release: debs::release(&dir)?,
        headers: cache.join(flavour.headers_dir()).join("build"),
    })
}

/// Only one set-up at a time: the lock goes when the file is dropped.
fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    if file.try_lock().is_err() {
        println!("  waiting for another set-up to end ({})", path.display());
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}
