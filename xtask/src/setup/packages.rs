//! The programs that must be installed on the machine, each found by looking for the thing itself.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::apt::Apt;
use super::rust::Rust;
use crate::ui::{Outcome, Spinner};
use crate::{exec, paths};

/// The oldest QEMU whose CPU models, plugins and boards the tests need.
pub const QEMU_VERSION: (u32, u32) = (10, 0);
/// The emulator.
pub const QEMU: &str = "qemu-system-aarch64";
/// The cross compiler of the driver and the linker of programs for the Debian host.
pub const CROSS_GCC: &str = "aarch64-linux-gnu-gcc";

/// The oldest compiler that the workspace builds with (`rust-version` of its Cargo.toml).
const RUST_VERSION: (u32, u32) = (1, 89);

/// Something that is missing.
pub struct Missing {
    /// The Debian package that brings it.
    package: &'static str,
    /// What it is for, for the message.
    why: String,
}

/// Looks for all that the tasks need.
pub fn missing(rust: &Rust) -> Vec<Missing> {
    let mut list = Vec::new();
    let mut need = |there: bool, package: &'static str, why: &str| {
        if !there {
            list.push(Missing { package, why: why.to_owned() });
        }
    };
    need(
        paths::which(QEMU).and_then(|_| qemu_version()) >= Some(QEMU_VERSION),
        "qemu-system-arm",
        "the emulator, 10.0 or later",
    );
    need(
        paths::which(CROSS_GCC).is_some(),
        "gcc-aarch64-linux-gnu",
        "compiles the driver, links the host's programs",
    );
    need(cross_libc(), "libc6-dev-arm64-cross", "the static arm64 libc of the host's programs");
    need(paths::which("make").is_some(), "make", "builds the driver by the kernel's own makefiles");
    need(
        paths::which("gcc").or_else(|| paths::which("cc")).is_some(),
        "gcc",
        "compiles the instruction counter of the bench",
    );
    if matches!(rust, Rust::Debian { .. }) {
        need(
            debian_rustc() >= Some(RUST_VERSION),
            "rustc-web",
            "the compiler for arm64, 1.89 or later (in the release's security suite)",
        );
        need(Path::new(super::rust::DEBIAN_LIBRARY).exists(), "rust-web-src", "the source of its library");
    }
    list
}

/// Installs what is missing, or tells a user who is not root what to do.
///
/// # Errors
/// If it cannot be installed; for a user who is not root, always, with the list and the one command.
pub fn install(apt: &Apt, missing: &[Missing], spinner: &Spinner) -> Result<Outcome> {
    apt.update(spinner)?;
    let names: Vec<&str> = missing.iter().map(|item| item.package).collect();
    if !is_root()? {
        bail!(
            "these packages are not installed, and only root can:\n{}\nInstall them all with\n\n  sudo apt-get -c {} \
             install -y --no-install-recommends {}\n\nand run this command again. (The file names package lists of \
             its own; the machine's sources stay as they are.)",
            list(missing),
            apt.install_config().display(),
            names.join(" ")
        );
    }
    spinner.say(&format!("installing {}", names.join(" ")));
    apt.install(&names)?;
    Ok(Outcome::Done(format!("installed {}", names.join(" "))))
}

/// Sees that nothing is missing any more.
///
/// # Errors
/// With the list of what still is.
pub fn check(missing: &[Missing]) -> Result<()> {
    if !missing.is_empty() {
        bail!(
            "still missing after the installation (see target/log/setup-apt-install.log):\n{}",
            list(missing)
        );
    }
    Ok(())
}

fn list(missing: &[Missing]) -> String {
    missing.iter().map(|item| format!("  {:<24} {}", item.package, item.why)).collect::<Vec<_>>().join("\n")
}

fn is_root() -> Result<bool> {
    Ok(exec::output(Command::new("id").arg("-u"))?.trim() == "0")
}

/// The installed QEMU's version.
fn qemu_version() -> Option<(u32, u32)> {
    parse_version(&exec::output(Command::new(QEMU).arg("--version")).ok()?)
}

/// The version of Debian's compiler.
fn debian_rustc() -> Option<(u32, u32)> {
    let text = exec::output(Command::new(super::rust::DEBIAN_RUSTC).arg("--version")).ok()?;
    parse_version(&text.replacen("rustc ", "version ", 1))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let number = text.split_once("version ")?.1;
    let mut parts = number.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// Whether the cross compiler finds a static libc.
fn cross_libc() -> bool {
    let asked = exec::output(Command::new(CROSS_GCC).arg("-print-file-name=libc.a"));
    asked.is_ok_and(|answer| Path::new(answer.trim()).is_absolute() && Path::new(answer.trim()).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_versions_are_compared_as_numbers() {
        let version = parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright");
        assert_eq!(version, Some((10, 0)));
        assert!(parse_version("QEMU emulator version 9.2.0") < Some(QEMU_VERSION));
        assert!(parse_version("nonsense") < Some(QEMU_VERSION));
    }
}
