//! `cargo xtask setup`: brings a machine to where Tenure builds and runs, and changes nothing if it is there.
//!
//! The order is: look at everything first, then add the Rust targets (a user's matter), then the packages (root's
//! matter: a user who is not root is told the whole list and one command, before anything was half done), then fetch
//! the Debian kernel, its headers and busybox into the cache. Every step looks for the thing itself, not for the
//! package that usually brings it, so that a machine set up in another way is fine.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{paths, ui};

pub mod apt;
mod debs;
mod packages;
pub mod rust;

/// The kernel series that the driver is built for and the tests boot.
pub const KERNEL_SERIES: &str = "6.12";

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
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Fetch the package lists, the kernel, its headers and busybox again.
    #[arg(long)]
    refresh: bool,
}

/// What set-up provides to the other tasks.
pub struct Machine {
    /// How code for the target is compiled.
    pub rust: rust::Rust,
    /// Debian's arm64 kernel: a raw `Image`.
    pub kernel: PathBuf,
    /// Its release, as `uname -r` says it.
    pub kernel_release: String,
    /// Its headers: the folder for `make -C`.
    pub headers: PathBuf,
    /// A static arm64 busybox.
    pub busybox: PathBuf,
}

/// The task: sets up, and says where things are.
///
/// # Errors
/// Those of [`ensure`].
pub fn task(args: &Args) -> Result<()> {
    if args.refresh {
        for dir in ["apt", "kernel-6.12-cloud", "headers-6.12-cloud", "busybox", "rustup-refused"] {
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
    println!("kernel   {} ({})", machine.kernel.display(), machine.kernel_release);
    println!("headers  {}", machine.headers.display());
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
    debs::kernel(&apt, &cache, verbose)?;
    debs::headers(&apt, &cache, verbose)?;
    debs::busybox(&apt, &cache, verbose)?;
    let kernel_dir = cache.join(debs::KERNEL_DIR);
    Ok(Machine {
        rust: compiler,
        kernel: kernel_dir.join("Image"),
        kernel_release: debs::release(&kernel_dir)?,
        headers: cache.join(debs::HEADERS_DIR).join("build"),
        busybox: cache.join(debs::BUSYBOX_DIR).join("busybox"),
    })
}

/// Only one set-up at a time: the lock goes when the file is dropped.
fn lock(path: &std::path::Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    if file.try_lock().is_err() {
        println!("  waiting for another set-up to end ({})", path.display());
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}
