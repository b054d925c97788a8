//! `cargo xtask ci`: formatting, lints and documentation, then all tests; what `.ci/run` calls.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::setup::rust::{self, BARE_METAL, LINUX, Rust};
use crate::test::report::Report;
use crate::test::row::When;
use crate::{exec, setup, test, ui};

/// Check formatting, lints and documentation, then test everything.
///
/// Each check counts as a test. Ends with one plain line, `N passed, N failed`, and fails if anything failed.
#[derive(clap::Args)]
pub struct Args {
    /// The tests of `cargo xtask test --quick` only.
    #[arg(long)]
    quick: bool,
}

/// A cold check of everything, on a slow machine.
const LIMIT: Duration = Duration::from_secs(1200);
/// The packages that are built for the target only. Together they would share features: the tests have a heap, the hypervisor has
/// none.
const TARGET_PACKAGES: [(&str, &[&str]); 2] = [
    ("lint/clippy-target", &["-p", "tenure-hyp"]),
    ("lint/clippy-target-tests", &["-p", "tenure-test-guests", "-p", "tenure-test-hosts"]),
];

/// The task.
///
/// # Errors
/// Those of set-up; and if a check or a test failed.
pub fn task(args: &Args) -> Result<()> {
    let machine = setup::ensure()?;
    let mut report = Report::default();
    let check = |report: &mut Report, name: &str, command: &mut Command| {
        let begin = Instant::now();
        let log = format!("ci-{}", name.replace('/', "-"));
        let failure = exec::logged(command, &log, LIMIT).err().map(|error| format!("{error:#}"));
        report.one(name, failure, begin.elapsed());
    };
    check(&mut report, "lint/format", rust::cargo().args(["fmt", "--all", "--check"]));
    let clippy = ["clippy", "--color", "never", "--all-targets", "--", "-Dwarnings"];
    check(&mut report, "lint/clippy", rust::cargo().args(clippy));
    match machine.rust {
        Rust::Rustup => {
            for (name, packages) in TARGET_PACKAGES {
                let mut clippy = machine.rust.cargo("clippy", BARE_METAL);
                clippy.args(["--color", "never", "--release"]).args(packages).args(["--", "-Dwarnings"]);
                check(&mut report, name, &mut clippy);
            }
            let mut clippy = machine.rust.cargo("clippy", LINUX);
            clippy.args(["--color", "never", "--release", "-p", "tenure-story", "--", "-Dwarnings"]);
            check(&mut report, "lint/clippy-story", &mut clippy);
        }
        // Clippy comes with rustup's toolchain and cannot read what Debian's compiler built.
        Rust::Debian { .. } => ui::line("test lint/clippy-target ... skipped: needs rustup's target"),
    }
    let mut doc = rust::cargo();
    doc.args(["doc", "--color", "never", "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "-Dwarnings -Arustdoc::private_intra_doc_links");
    check(&mut report, "lint/doc", &mut doc);
    let scope = if args.quick { When::Quick } else { When::Always };
    test::run(&test::Choice { scope, filter: "", board: None }, &mut report)?;
    report.finish(false)?;
    report.result()
}
