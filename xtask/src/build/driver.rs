//! The Linux driver: a copy of `driver/` in the target folder, with the C header of the hypercalls beside it, built by
//! the kernel's own makefiles against Debian's headers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::setup::Kernel;
use crate::setup::debs::Flavour;
use crate::ui::Outcome;
use crate::{exec, paths};

const LIMIT: Duration = Duration::from_secs(300);

/// The driver for a flavour of the kernel, each in a folder of its own.
pub fn module(flavour: Flavour) -> PathBuf {
    dir(flavour).join("tenure.ko")
}

fn dir(flavour: Flavour) -> PathBuf {
    paths::target().join(match flavour {
        Flavour::Cloud => "driver",
        Flavour::Full => "driver-full",
    })
}

/// Builds `tenure.ko` for a kernel.
///
/// # Errors
/// The compiler's own words.
pub fn build(kernel: &Kernel) -> Result<Outcome> {
    let dir = dir(kernel.flavour);
    fs::create_dir_all(&dir)?;
    let mut changed = false;
    for entry in fs::read_dir(paths::root().join("driver")).context("cannot read driver/")? {
        let file = entry?.path();
        if let (true, Some(name)) = (is_source(&file), file.file_name()) {
            changed |= update(&dir.join(name), &fs::read(&file)?)?;
        }
    }
    let mut header = String::new();
    tenure_abi::header::write(&mut header).context("cannot write the C header")?;
    changed |= update(&dir.join("tenure_abi.h"), header.as_bytes())?;
    // A module for another kernel is not loaded: a changed release means a new build.
    changed |= update(&dir.join("built-for"), kernel.release.as_bytes())?;
    let module = module(kernel.flavour);
    let text = format!("tenure.ko for {}", kernel.release);
    if module.exists() && !changed {
        return Ok(Outcome::Present(text));
    }
    let _ = fs::remove_file(&module);
    let mut make = Command::new("make");
    // The compiler by its plain name: the headers name the version of another Debian release.
    make.arg("-C")
        .arg(&kernel.headers)
        .arg(format!("M={}", dir.display()))
        .arg(format!("TENURE_ABI={}", dir.display()));
    make.args(["ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-", "CC=aarch64-linux-gnu-gcc", "-j2"]);
    make.args(["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]);
    exec::logged(&mut make, "build-driver", LIMIT)?;
    Ok(Outcome::Done(text))
}

fn is_source(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name == "Kbuild"
        || name == "Makefile"
        || name.ends_with(".c") && !name.ends_with(".mod.c")
        || name.ends_with(".h")
        || name.ends_with(".S")
}

/// Writes a file if its contents differ, so that make sees only real changes.
fn update(file: &Path, contents: &[u8]) -> Result<bool> {
    if fs::read(file).is_ok_and(|old| old == contents) {
        return Ok(false);
    }
    fs::write(file, contents).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_make_leaves_behind_is_no_source() {
        let is = |name: &str| is_source(Path::new(name));
        assert!(is("vm.c") && is("driver.h") && is("Kbuild"));
        assert!(!is("tenure.mod.c") && !is("vm.o") && !is(".vm.o.cmd"));
    }
}
