//! How Rust code for arm64 is compiled: by rustup's targets where they can be added, else by Debian's current rustc
//! with the standard library built from Debian's source.
//!
//! `TENURE_RUST=rustup` or `TENURE_RUST=debian` chooses without trying (for air-gapped machines, and to test both).

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use super::packages::CROSS_GCC;
use crate::ui::{Outcome, Spinner};
use crate::{exec, paths};

/// The hypervisor and the bare-metal tests: EL2 may never touch FP/SIMD registers, hence softfloat.
pub const BARE_METAL: &str = "aarch64-unknown-none-softfloat";
/// Programs of the Debian host.
pub const LINUX: &str = "aarch64-unknown-linux-gnu";
/// Debian's current compiler and its library source.
pub const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// See [`DEBIAN_RUSTC`].
pub const DEBIAN_LIBRARY: &str = "/usr/lib/rustlib/src/rust/library/core/src/lib.rs";
/// How long rustup may try before the set-up goes another way.
const RUSTUP_LIMIT: Duration = Duration::from_secs(60);
/// How long a failure of rustup is remembered.
const REFUSAL_HOLDS: Duration = Duration::from_secs(24 * 3600);

/// The compiler for arm64.
pub enum Rust {
    /// The toolchain in use has the targets.
    Rustup,
    /// Debian's compiler, with `-Zbuild-std`.
    Debian {
        /// The linker for bare metal.
        linker: PathBuf,
    },
}

impl Rust {
    /// One line for the user.
    pub fn describe(&self) -> String {
        match self {
            Self::Rustup => format!("the toolchain in use, with {BARE_METAL} and {LINUX}"),
            Self::Debian { linker } => format!("{DEBIAN_RUSTC} -Zbuild-std, linker {}", linker.display()),
        }
    }

    /// A `cargo` command for one of the two targets, in the repository's root, ready for `-p ...`.
    pub fn cargo(&self, subcommand: &str, target: &str) -> Command {
        let mut command = cargo();
        command.args([subcommand, "--target", target]);
        if target == LINUX {
            command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", CROSS_GCC);
            command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-Ctarget-feature=+crt-static");
        }
        if let Self::Debian { linker } = self {
            command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
            command.env("CARGO_TARGET_AARCH64_UNKNOWN_NONE_SOFTFLOAT_LINKER", linker);
            if target == LINUX {
                command.arg("-Zbuild-std=std,panic_abort");
            } else {
                command.arg("-Zbuild-std=core,alloc,compiler_builtins");
                command.arg("-Zbuild-std-features=compiler-builtins-mem");
            }
        }
        command
    }
}

/// The cargo that runs this program, in the repository's root.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::root());
    command
}

/// Finds or adds the targets, or chooses Debian's compiler.
///
/// # Errors
/// If neither way is open.
pub fn ensure_target(cache: &Path, spinner: &Spinner) -> Result<(Rust, Outcome)> {
    let refusal = cache.join("rustup-refused");
    let chosen = env::var("TENURE_RUST").unwrap_or_default();
    match chosen.as_str() {
        "debian" => return Ok((debian()?, Outcome::Present("Debian's rustc, as TENURE_RUST asks".into()))),
        "rustup" | "" => {}
        other => bail!("TENURE_RUST is `{other}`; it can be `rustup` or `debian`"),
    }
    if has_target(BARE_METAL)? && has_target(LINUX)? {
        return Ok((Rust::Rustup, Outcome::Present(format!("{BARE_METAL}, {LINUX}"))));
    }
    if chosen.is_empty() && recently_refused(&refusal) {
        return Ok((debian()?, Outcome::Present("Debian's rustc (rustup could not add the targets)".into())));
    }
    spinner.say("asking rustup for the targets");
    let mut rustup = Command::new("rustup");
    rustup.current_dir(paths::root()).args(["target", "add", BARE_METAL, LINUX]);
    match exec::logged(&mut rustup, "setup-rustup", RUSTUP_LIMIT) {
        Ok(()) if has_target(BARE_METAL)? && has_target(LINUX)? => {
            let _ = fs::remove_file(&refusal);
            Ok((Rust::Rustup, Outcome::Done(format!("added {BARE_METAL}, {LINUX}"))))
        }
        Err(error) if chosen == "rustup" => {
            Err(error.context("TENURE_RUST=rustup, but rustup cannot add the targets"))
        }
        _ => {
            fs::write(&refusal, "rustup could not add the targets; remove this file to let it try again\n")?;
            Ok((
                debian()?,
                Outcome::Done(
                    "rustup cannot add the targets: Debian's rustc builds the library itself".into(),
                ),
            ))
        }
    }
}

/// Whether the toolchain in use has a target's library.
fn has_target(target: &str) -> Result<bool> {
    let mut rustc = Command::new("rustc");
    rustc.current_dir(paths::root()).args(["--print", "target-libdir", "--target", target]);
    let dir = exec::output(&mut rustc).context("no Rust compiler: see https://rustup.rs")?;
    Ok(Path::new(dir.trim()).is_dir())
}

fn recently_refused(refusal: &Path) -> bool {
    let age = fs::metadata(refusal)
        .and_then(|data| data.modified())
        .map(|time| SystemTime::now().duration_since(time));
    matches!(age, Ok(Ok(age)) if age < REFUSAL_HOLDS)
}

fn debian() -> Result<Rust> {
    Ok(Rust::Debian { linker: linker()? })
}

/// The linker for bare metal: the one that comes with the toolchain in use, else Debian's.
fn linker() -> Result<PathBuf> {
    let sysroot =
        exec::output(Command::new("rustc").current_dir(paths::root()).args(["--print", "sysroot"]))?;
    let rustlib = Path::new(sysroot.trim()).join("lib/rustlib");
    let own = fs::read_dir(&rustlib).into_iter().flatten().flatten();
    let own = own.map(|entry| entry.path().join("bin/rust-lld")).find(|file| file.is_file());
    own.or_else(|| paths::which("ld.lld")).with_context(|| {
        format!(
            "no linker for bare metal: neither rust-lld below {} nor ld.lld (apt-get install lld)",
            rustlib.display()
        )
    })
}
