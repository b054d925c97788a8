//! Mutants: faults put into a copy of `mm` on purpose, each of which a named test must catch.
//!
//! The copy is in `target/mutants`; the production code has no switches. A [`Mutant`] is a piece of source and what
//! stands there instead; a piece that is not found exactly once is an error, so that the list cannot go stale unseen. The
//! tests that a mutant names are run on the copy as it is first, where they must pass, and on the mutant, where each of
//! them must fail. A mutant that does not compile, or that hangs, was not caught.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::report::Report;
use super::row::When;
use crate::setup::rust;
use crate::{exec, paths};

mod blocks;
mod steps;
mod verdicts;
mod words;

/// A fault.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// What is wrong, in words; unique. `docs/testing.md` has it.
    pub fault: &'static str,
    /// The file, below `mm/src`.
    pub file: &'static str,
    /// What is replaced, each found once, and what stands there instead.
    pub edits: &'static [(&'static str, &'static str)],
    /// Who catches it: `file::test`, the file below `mm/tests`.
    pub tests: &'static [&'static str],
    /// In which scope it is tried.
    pub when: When,
}

impl Mutant {
    const fn new(
        fault: &'static str,
        file: &'static str,
        edits: &'static [(&'static str, &'static str)],
        tests: &'static [&'static str],
    ) -> Self {
        Self { fault, file, edits, tests, when: When::Long }
    }

    /// One of the few that every full test tries.
    const fn always(mut self) -> Self {
        self.when = When::Always;
        self
    }

    /// The file's text with the fault in it.
    fn apply(&self, source: &str) -> Result<String> {
        let mut text = source.to_owned();
        for (from, to) in self.edits {
            let found = text.matches(from).count();
            ensure!(found == 1, "`{}`: mm/src/{} has {found} times\n{from}", self.fault, self.file);
            text = text.replacen(from, to, 1);
        }
        ensure!(text != source, "`{}` changes nothing", self.fault);
        Ok(text)
    }
}

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Mutant> {
    [words::MUTANTS, verdicts::MUTANTS, steps::MUTANTS, blocks::MUTANTS].into_iter().flatten()
}

/// How long the tests of one mutant may take, compilation included.
const LIMIT: Duration = Duration::from_secs(300);

/// Tries the mutants of this scope, one test each; or those whose name holds the text that follows `mutants/`.
///
/// # Errors
/// If the copy cannot be made, or there is no such mutant.
pub fn run(scope: When, filter: &str, report: &mut Report) -> Result<()> {
    let wanted = |mutant: &&Mutant| match filter.strip_prefix("mutants/") {
        Some(text) => mutant.fault.contains(text),
        None => mutant.when <= scope,
    };
    let mutants: Vec<_> = all().filter(wanted).collect();
    ensure!(!mutants.is_empty(), "no mutant has that in its name: `{filter}`");
    let copy = Copy::make()?;
    let begin = Instant::now();
    let tests: BTreeSet<&str> = mutants.iter().flat_map(|mutant| mutant.tests).copied().collect();
    let healthy = copy.failed(&tests, "mutants-none").and_then(|failed| match failed.is_empty() {
        true => Ok(()),
        false => bail!("without a fault these fail: {failed:?}"),
    });
    let failure = healthy.err().map(|error| format!("{error:#}"));
    let well = failure.is_none();
    report.one("mutants/none", failure, begin.elapsed());
    if !well {
        return Ok(());
    }
    for (number, mutant) in mutants.iter().enumerate() {
        let begin = Instant::now();
        let caught = copy.with(mutant, || copy.failed(&mutant.tests.iter().copied().collect(), "mutant"));
        let failure = match caught {
            Ok(failed) => {
                let missed: Vec<_> = mutant.tests.iter().filter(|test| !failed.contains(**test)).collect();
                (!missed.is_empty()).then(|| format!("not caught by {missed:?}"))
            }
            Err(error) => Some(format!("{error:#}")),
        };
        if failure.is_some() {
            let _ = fs::rename(exec::log_path("mutant")?, exec::log_path(&format!("mutant-{number}"))?);
        }
        report.one(&format!("mutants/{}", mutant.fault), failure, begin.elapsed());
    }
    Ok(())
}

/// The copy of the sources.
struct Copy {
    root: PathBuf,
}

impl Copy {
    /// Copies `mm` and what it needs. Files that did not change keep their time, so that cargo builds what it must.
    fn make() -> Result<Self> {
        let root = paths::target().join("mutants");
        let from = paths::root();
        let mut kept = BTreeSet::new();
        for part in ["abi", "mm"] {
            copy_tree(&from.join(part), &root.join(part), &mut kept)?;
        }
        for part in ["abi", "mm"] {
            remove_others(&root.join(part), &kept)?;
        }
        write(&root.join("Cargo.toml"), &workspace(&fs::read_to_string(from.join("Cargo.toml"))?)?)?;
        if !root.join("Cargo.lock").exists() {
            fs::copy(from.join("Cargo.lock"), root.join("Cargo.lock"))?;
        }
        Ok(Self { root })
    }

    fn with<T>(&self, mutant: &Mutant, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let path = self.root.join("mm/src").join(mutant.file);
        let healthy = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        fs::write(&path, mutant.apply(&healthy)?)?;
        let result = body();
        fs::write(&path, healthy)?;
        result
    }

    /// Runs tests, and says which of them failed. All must have run.
    fn failed(&self, tests: &BTreeSet<&str>, log: &str) -> Result<BTreeSet<String>> {
        let mut cargo = rust::cargo();
        cargo.current_dir(&self.root).args(["test", "--color", "never", "-p", "tenure-mm", "--no-fail-fast"]);
        let (mut files, mut names) = (BTreeSet::new(), BTreeSet::new());
        for test in tests {
            let (file, name) = test.split_once("::").with_context(|| format!("`{test}` names no file"))?;
            files.insert(file);
            names.insert(name);
        }
        files.iter().for_each(|file| {
            cargo.args(["--test", file]);
        });
        cargo.args(["--", "--exact"]).args(&names);
        cargo.env("CARGO_TARGET_DIR", self.root.join("build")).env("RUST_BACKTRACE", "0");
        // What a failing test says is in the log; that it failed is no error here.
        let ended = exec::logged(&mut cargo, log, LIMIT);
        let text = fs::read_to_string(exec::log_path(log)?)?;
        let verdicts = |verdict: &str| -> BTreeSet<String> {
            let lines = text.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(verdict));
            lines.map(|name| name.trim_end_matches(" - should panic").to_owned()).collect()
        };
        let (passed, failed) = (verdicts(" ... ok"), verdicts(" ... FAILED"));
        for name in &names {
            if !passed.contains(*name) && !failed.contains(*name) {
                ended?;
                bail!("`{name}` did not run");
            }
        }
        Ok(tests
            .iter()
            .filter(|test| test.split_once("::").is_some_and(|(_, name)| failed.contains(name)))
            .map(|test| (*test).to_owned())
            .collect())
    }
}

/// A workspace of the copied crates, with the dependencies and lints of the whole one, that compiles fast.
fn workspace(whole: &str) -> Result<String> {
    let section = |name: &str| {
        let start = whole.find(&format!("[{name}]"))?;
        let rest = &whole[start..];
        Some(rest.split_once("\n[").map_or(rest, |(section, _)| section).trim_end().to_owned())
    };
    let mut text = "[workspace]\nresolver = \"3\"\nmembers = [\"abi\", \"mm\"]\n".to_owned();
    for name in
        ["workspace.package", "workspace.dependencies", "workspace.lints.rust", "workspace.lints.clippy"]
    {
        let section = section(name).with_context(|| format!("Cargo.toml has no [{name}]"))?;
        text += &format!("\n{section}\n");
    }
    text += "\n[profile.dev]\ndebug = 0\n\n[profile.dev.package.tenure-mm]\nopt-level = 1\n";
    Ok(text)
}

fn write(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn copy_tree(from: &Path, to: &Path, kept: &mut BTreeSet<PathBuf>) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target, kept)?;
        } else {
            write_bytes(&target, &fs::read(entry.path())?)?;
            kept.insert(target);
        }
    }
    Ok(())
}

fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn remove_others(dir: &Path, kept: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_others(&entry.path(), kept)?;
        } else if !kept.contains(&entry.path()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_finds_what_it_replaces() {
        let mut wrong = Vec::new();
        for mutant in all() {
            let path = paths::root().join("mm/src").join(mutant.file);
            let applied = fs::read_to_string(&path)
                .map_err(anyhow::Error::from)
                .and_then(|source| mutant.apply(&source));
            wrong.extend(applied.err().map(|error| format!("{error:#}")));
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn faults_have_names_of_their_own_and_somebody_to_catch_them() {
        let mut names = BTreeSet::new();
        for mutant in all() {
            assert!(names.insert(mutant.fault), "`{}` stands twice", mutant.fault);
            assert!(!mutant.tests.is_empty(), "nothing catches `{}`", mutant.fault);
        }
        assert!(names.len() >= 25);
        assert!(all().any(|mutant| mutant.when == When::Always));
    }

    #[test]
    fn text_that_is_not_there_or_there_twice_is_an_error() {
        let mutant = Mutant::new("x", "x.rs", &[("a + b", "a - b")], &["x::y"]);
        assert_eq!(mutant.apply("let c = a + b;").unwrap(), "let c = a - b;");
        assert!(mutant.apply("let c = a * b;").is_err());
        assert!(mutant.apply("let c = a + b + (a + b);").is_err());
    }
}
