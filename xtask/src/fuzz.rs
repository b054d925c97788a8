//! `cargo xtask fuzz`: the fuzz targets of `fuzz/` under libFuzzer.
//!
//! No nightly compiler and no cargo-fuzz is needed: the coverage that libFuzzer steers by is asked of the stable compiler, and
//! the crate `libfuzzer-sys` brings libFuzzer's source, which a C++ compiler builds. (The layout is cargo-fuzz's, for those
//! who want its other commands.) What is found on the way is kept in `target/fuzz`; `--keep` reduces it to the few inputs
//! that reach everything and puts these into the repository's corpus.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::setup::rust;
use crate::{exec, paths, ui};

/// Fuzz the calls, lists of actions, and device trees.
///
/// Ends with one line a target. An input that breaks a promise is an error that names its file: run it again by
/// `cargo xtask fuzz TARGET --input FILE`.
#[derive(clap::Args)]
pub struct Args {
    /// Only this target: calls, actions, or tree.
    target: Option<String>,
    /// How long each target runs.
    #[arg(long, value_name = "N", default_value = "1")]
    minutes: u64,
    /// Runs one input and no other.
    #[arg(long, value_name = "FILE", requires = "target")]
    input: Option<PathBuf>,
    /// Afterwards reduce the corpus and put it into fuzz/corpus.
    #[arg(long)]
    keep: bool,
}

/// The targets.
const TARGETS: [&str; 3] = ["calls", "actions", "tree"];

/// What cargo-fuzz asks of the compiler, less the sanitizers: no target has unsafe code.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions --cfg fuzzing";

/// A cold build, libFuzzer included.
const BUILD_LIMIT: Duration = Duration::from_secs(1200);

/// Inputs that one process tries: those of the manager leak their worlds, as its tests do.
fn runs_of(target: &str) -> i64 {
    if target == "tree" { -1 } else { 20_000 }
}

/// Inputs of a corpus in the repository at most, the shortest.
const KEPT: usize = 150;

/// Bytes of an input at most.
fn longest(target: &str) -> u64 {
    if target == "tree" { 4096 } else { 512 }
}

/// The task.
///
/// # Errors
/// If a target cannot be built, or if an input broke a promise.
pub fn task(args: &Args) -> Result<()> {
    let targets: Vec<&str> = TARGETS
        .into_iter()
        .filter(|name| args.target.as_deref().is_none_or(|target| target == *name))
        .collect();
    ensure!(!targets.is_empty(), "there is no such target; there are {}", TARGETS.join(", "));
    let programs = build(&targets)?;
    for (target, program) in targets.iter().zip(programs) {
        let fuzzer = Fuzzer::new(target, program)?;
        match &args.input {
            Some(input) => fuzzer.once(input)?,
            None => fuzzer.run(Duration::from_secs(args.minutes * 60))?,
        }
        if args.keep {
            fuzzer.keep()?;
        }
    }
    Ok(())
}

/// Builds the targets.
fn build(targets: &[&str]) -> Result<Vec<PathBuf>> {
    ensure!(
        paths::which("c++").is_some(),
        "libFuzzer is built by a C++ compiler, and there is none (apt-get install g++)"
    );
    let host = exec::output(Command::new("rustc").current_dir(paths::root()).arg("-vV"))?;
    let host =
        host.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?.to_owned();
    let dir = paths::target().join("fuzz/build");
    let mut cargo = rust::cargo();
    cargo.args(["build", "--color", "never", "--release", "-p", "tenure-fuzz", "--features", "libfuzzer"]);
    // With a target named, build scripts are compiled without these flags.
    cargo.args(["--target", &host]).env("RUSTFLAGS", COVERAGE).env("CARGO_TARGET_DIR", &dir);
    cargo.env("CARGO_PROFILE_RELEASE_LTO", "false");
    targets.iter().for_each(|target| {
        cargo.args(["--bin", target]);
    });
    ui::line("  fuzz: building the targets with coverage ...");
    exec::logged(&mut cargo, "fuzz-build", BUILD_LIMIT).context("the fuzz targets cannot be built here")?;
    Ok(targets.iter().map(|target| dir.join(&host).join("release").join(target)).collect())
}

struct Fuzzer {
    name: String,
    program: PathBuf,
    /// What is in the repository.
    corpus: PathBuf,
    /// What was found on the way.
    grown: PathBuf,
    artifacts: PathBuf,
}

impl Fuzzer {
    fn new(name: &str, program: PathBuf) -> Result<Self> {
        let fuzzer = Self {
            name: name.to_owned(),
            program,
            corpus: paths::root().join("fuzz/corpus").join(name),
            grown: paths::target().join("fuzz/corpus").join(name),
            artifacts: paths::target().join("fuzz/artifacts"),
        };
        for dir in [&fuzzer.corpus, &fuzzer.grown, &fuzzer.artifacts] {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        Ok(fuzzer)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(paths::root());
        command.arg(format!("-artifact_prefix={}/{}-", self.artifacts.display(), self.name));
        command.args(["-rss_limit_mb=6000", "-timeout=60", "-print_final_stats=1"]);
        command.arg(format!("-max_len={}", longest(&self.name)));
        command
    }

    fn once(&self, input: &std::path::Path) -> Result<()> {
        let mut command = self.command();
        command.arg(input);
        exec::logged(&mut command, &format!("fuzz-{}", self.name), Duration::from_secs(120))?;
        ui::line(&format!("fuzz {}: {} is fine", self.name, input.display()));
        Ok(())
    }

    /// One process after the other until the time is over.
    fn run(&self, time: Duration) -> Result<()> {
        let begin = Instant::now();
        let (mut runs, mut coverage, mut processes) = (0, 0, 0);
        let log = format!("fuzz-{}", self.name);
        while begin.elapsed() < time {
            let left = time.saturating_sub(begin.elapsed()).as_secs().max(1);
            let mut command = self.command();
            command.args([format!("-max_total_time={left}"), format!("-runs={}", runs_of(&self.name))]);
            command.args([&self.grown, &self.corpus]);
            if let Err(error) = exec::logged(&mut command, &log, time + Duration::from_secs(300)) {
                bail!("fuzz {}: an input breaks a promise: {error:#}", self.name);
            }
            let text = fs::read_to_string(exec::log_path(&log)?)?;
            runs += figure(&text, "stat::number_of_executed_units:").context("libFuzzer counts no runs")?;
            coverage = coverage.max(text.lines().filter_map(covered).max().unwrap_or(0));
            processes += 1;
        }
        let grown = fs::read_dir(&self.grown)?.count();
        ui::line(&format!(
            "fuzz {}: {runs} inputs in {} s, {processes} processes, {coverage} edges reached, {grown} inputs kept on the way, none breaks a promise",
            self.name,
            begin.elapsed().as_secs(),
        ));
        Ok(())
    }

    /// A small set of inputs that reaches what all of them reach (or most of it) becomes the corpus of the repository.
    fn keep(&self) -> Result<()> {
        let small = self.grown.with_file_name(format!("{}-small", self.name));
        let _ = fs::remove_dir_all(&small);
        fs::create_dir_all(&small)?;
        let mut command = self.command();
        command.arg("-set_cover_merge=1").args([&small, &self.grown, &self.corpus]);
        exec::logged(&mut command, &format!("fuzz-{}-merge", self.name), BUILD_LIMIT)?;
        let mut inputs = Vec::new();
        for entry in fs::read_dir(&small)? {
            let entry = entry?;
            inputs.push((entry.metadata()?.len(), entry.file_name()));
        }
        inputs.sort();
        inputs.truncate(KEPT);
        fs::remove_dir_all(&self.corpus)?;
        fs::create_dir_all(&self.corpus)?;
        for (_, name) in &inputs {
            fs::copy(small.join(name), self.corpus.join(name))?;
        }
        let count = inputs.len();
        ui::line(&format!("fuzz {}: {count} inputs in {}", self.name, self.corpus.display()));
        Ok(())
    }
}

/// `name value` of libFuzzer's statistics.
fn figure(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// The edges that a line of progress tells: `#123 NEW cov: 45 ft: ...`.
fn covered(line: &str) -> Option<u64> {
    let mut words = line.strip_prefix('#')?.split_whitespace().skip_while(|word| *word != "cov:");
    words.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libfuzzers_figures_are_read() {
        let text = "#2\tINITED cov: 8 ft: 8\n#90\tNEW    cov: 412 ft: 9 corp: 2/4b\nstat::number_of_executed_units: 20000\n";
        assert_eq!(figure(text, "stat::number_of_executed_units:"), Some(20_000));
        assert_eq!(text.lines().filter_map(covered).max(), Some(412));
        assert_eq!(figure(text, "stat::slowest_unit_time_sec:"), None);
    }

    #[test]
    fn every_target_is_a_program_with_a_corpus() {
        for target in TARGETS {
            assert!(paths::root().join(format!("fuzz/fuzz_targets/{target}.rs")).is_file(), "{target}");
            assert!(paths::root().join("fuzz/corpus").join(target).is_dir(), "{target}");
        }
    }
}
