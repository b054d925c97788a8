//! The tests of the build machine: `cargo test` of the default members, its summary lines passed on.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result};

use super::report::Report;
use super::row::When;
use crate::setup::rust;
use crate::{exec, paths, ui};

/// One call of `cargo test`.
struct Group {
    name: &'static str,
    args: &'static [&'static str],
    /// Variables of the environment.
    env: &'static [(&'static str, &'static str)],
    when: When,
}

/// What is run. A failing one does not stop the next.
const GROUPS: &[Group] = &[
    Group { name: "host", args: &["--no-fail-fast"], env: &[], when: When::Quick },
    Group { name: "host-story", args: &["-p", "tenure-story", "--lib"], env: &[], when: When::Quick },
    // Every interleaving of two CPUs on two pages. A target folder of its own: other flags would rebuild all.
    Group {
        name: "host-interleavings",
        args: &["-p", "tenure-mm", "--release", "--test", "loom", "--target-dir", "target/loom"],
        env: &[("RUSTFLAGS", "--cfg loom")],
        when: When::Always,
    },
    Group {
        name: CORPUS,
        args: &["-p", "tenure-dt", "--test", "corpus", "--", "--nocapture"],
        env: &[],
        when: When::Always,
    },
    // Histories and random inputs of which every test tries some, in number.
    Group {
        name: "host-histories",
        args: &["-p", "tenure-mm", "--release", "--test", "properties"],
        env: &[("TENURE_CASES", "3000")],
        when: When::Long,
    },
    // Every interleaving of three CPUs on two pages; every test explores a part.
    Group {
        name: "host-three-cpus",
        args: &["-p", "tenure-mm", "--test", "interleavings", "--", "--nocapture"],
        env: &[("TENURE_CASES", "1")],
        when: When::Long,
    },
    // The same of blocks.
    Group {
        name: "host-blocks",
        args: &["-p", "tenure-mm-small", "--test", "blocks", "--", "--nocapture"],
        env: &[("TENURE_CASES", "1")],
        when: When::Long,
    },
    Group {
        name: "host-fuzz",
        args: &["-p", "tenure-fuzz", "--test", "corpus"],
        env: &[("TENURE_FUZZ_SECONDS", "60")],
        when: When::Long,
    },
];

/// The group that reads the device trees of Debian's kernel package, where set-up has brought them.
const CORPUS: &str = "host-corpus";

/// Runs the groups of this scope.
///
/// # Errors
/// If cargo cannot be started.
pub fn run(scope: When, report: &mut Report) -> Result<()> {
    for group in GROUPS.iter().filter(|group| group.when <= scope) {
        let begin = Instant::now();
        let trees = paths::board_trees()?;
        if group.name == CORPUS && !trees.is_dir() {
            ui::line("test host-corpus ... skipped: `cargo xtask setup --boards` brings the device trees");
            continue;
        }
        let mut cargo = rust::cargo();
        cargo.args(["test", "--color", "never"]).args(group.args);
        cargo.envs(group.env.iter().copied());
        // Once is enough: in the group of all tests the corpus is empty.
        cargo.env("TENURE_DTBS", if group.name == CORPUS { trees.as_os_str() } else { OsStr::new("") });
        ui::line(&format!("  {}: {}", group.name, exec::show(&cargo)));
        let output = cargo.stdin(Stdio::null()).output().context("cannot start cargo")?;
        let text = format!(
            "{}\n{}",
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
        let log = exec::log_path(&format!("test-{}", group.name))?;
        std::fs::write(&log, &text)?;
        text.lines().filter(|line| is_summary(line)).for_each(ui::line);
        let (passed, failed) = counts(&text);
        let failure = (!output.status.success()).then(|| {
            text.lines().filter(|line| is_failure(line)).for_each(ui::line);
            format!("cargo test ended with {} (all of it: {})", output.status, log.display())
        });
        report.many(group.name, failure, begin.elapsed(), passed, failed);
    }
    Ok(())
}

/// Sums `test result: ok. 12 passed; 0 failed; ...`.
fn counts(text: &str) -> (usize, usize) {
    let number = |line: &str, what: &str| {
        let before = &line[..line.find(what)?];
        before.split_whitespace().last()?.parse::<usize>().ok()
    };
    let results = text.lines().filter(|line| line.starts_with("test result:"));
    results.fold((0, 0), |(passed, failed), line| {
        (passed + number(line, " passed").unwrap_or(0), failed + number(line, " failed").unwrap_or(0))
    })
}

/// Lines worth showing of any run: how many passed, and what came of the device trees.
fn is_summary(line: &str) -> bool {
    line.starts_with("test result:") || line.starts_with("corpus:")
}

/// Lines worth showing of a failed run.
fn is_failure(line: &str) -> bool {
    line.ends_with("... FAILED") || line.starts_with("error") || line.contains("panicked at")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_all_test_binaries_are_added() {
        let text = "running 3 tests\ntest result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
                    test result: FAILED. 10 passed; 2 failed; 0 ignored\n";
        assert_eq!(counts(text), (13, 2));
    }
}
