//! Rust for arm64, by cargo.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::setup::{Machine, rust};
use crate::ui::Outcome;
use crate::{exec, paths};

/// A cold build of the standard library and everything, on a slow machine.
const LIMIT: Duration = Duration::from_secs(1200);

/// Builds all binaries of a package for a target, in release mode.
///
/// # Errors
/// The compiler's own words.
pub fn build(machine: &Machine, target: &str, package: &str) -> Result<Outcome> {
    build_in(machine, &paths::target(), target, package, &[])
}

/// The same with further arguments, into a target folder of its own: two variants in one would evict each other.
///
/// # Errors
/// The compiler's own words.
pub fn build_in(
    machine: &Machine,
    dir: &Path,
    target: &str,
    package: &str,
    more: &[&str],
) -> Result<Outcome> {
    let begin = SystemTime::now();
    let mut command = machine.rust.cargo("build", target);
    command.args(["--release", "--color", "never", "-p", package]).args(more).arg("--target-dir").arg(dir);
    let log = format!("build-{package}{}", more.concat().replace('-', "_"));
    exec::logged(&mut command, &log, LIMIT)?;
    let changed = fs::read_dir(folder(dir, target))?.flatten().any(|entry| {
        let time = entry.metadata().and_then(|data| data.modified());
        entry.path().is_file() && time.is_ok_and(|time| time > begin)
    });
    let text = package.to_owned();
    Ok(if changed { Outcome::Done(text) } else { Outcome::Present(text) })
}

fn folder(dir: &Path, target: &str) -> PathBuf {
    dir.join(target).join("release")
}

/// Where cargo leaves a binary.
pub fn artifact(target: &str, name: &str) -> PathBuf {
    artifact_in(&paths::target(), target, name)
}

/// The same for [`build_in`].
pub fn artifact_in(dir: &Path, target: &str, name: &str) -> PathBuf {
    folder(dir, target).join(name)
}

/// The names of a package's binaries.
///
/// # Errors
/// If the workspace has no such package.
pub fn binaries(package: &str) -> Result<Vec<String>> {
    let text =
        exec::output(rust::cargo().args(["metadata", "--format-version", "1", "--no-deps", "--offline"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text).context("cargo metadata is no JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let found = packages.iter().find(|found| found["name"] == package);
    let targets = found.and_then(|found| found["targets"].as_array());
    let targets = targets.with_context(|| format!("the workspace has no package {package}"))?;
    let binary = |target: &&serde_json::Value| {
        target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "bin"))
    };
    Ok(targets
        .iter()
        .filter(binary)
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packages_binaries_are_found_by_name() {
        assert_eq!(binaries("xtask").unwrap(), ["xtask"]);
        assert!(binaries("no-such-package").is_err());
    }
}
