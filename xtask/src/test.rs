//! `cargo xtask test`: the tests of the build machine, then bare-metal and Debian boots in QEMU.
//!
//! What is booted and what must be seen stands in [`table`]; [`host`] runs `cargo test`; [`boot`] runs one row;
//! [`report`] prints and counts; `map` compares the documentation with the tests; [`mutants`] tries the
//! tests of the manager on faults.

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::{build, setup, ui};

mod boot;
mod host;
#[cfg(test)]
mod map;
mod mutants;
pub mod report;
pub mod row;
pub mod table;

use report::Report;
use row::{Kind, Row, When};

/// Test everything: on the build machine, bare-metal in QEMU, and Debian under Tenure in QEMU.
///
/// Sets the machine up and builds what is not built. Consoles go to target/log/. Ends with one plain line,
/// `N passed, N failed`, and fails if anything failed.
#[derive(clap::Args)]
pub struct Args {
    /// Only the build machine's tests and one boot of each kind.
    #[arg(long, conflicts_with = "long")]
    quick: bool,
    /// Also what takes minutes.
    #[arg(long)]
    long: bool,
    /// Only tests whose name holds this text (`host` is the name of the build machine's tests).
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// The board that is emulated.
    #[arg(long, value_enum, default_value = "qemu-virt")]
    board: Board,
    /// A JSON object on standard output, in place of the lines (which go to standard error).
    #[arg(long)]
    json: bool,
    /// Only say what would run.
    #[arg(long)]
    list: bool,
}

/// Boards that QEMU models and the tests know.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Board {
    /// QEMU's `virt`.
    QemuVirt,
}

/// The name by which the filter knows the build machine's tests.
const HOST: &str = "host";

/// The name by which the filter knows the mutants of the manager: a few, with `--long` all; `mutants/TEXT` picks some.
const MUTANTS: &str = "mutants";

/// The task.
///
/// # Errors
/// Those of set-up and build; and if a test failed.
pub fn task(args: &Args) -> Result<()> {
    ui::lines_to_stderr(args.json);
    let Board::QemuVirt = args.board;
    let scope = match (args.quick, args.long) {
        (true, _) => When::Quick,
        (_, true) => When::Long,
        _ => When::Always,
    };
    if args.list {
        let own: Vec<&str> = own(scope, &args.filter).collect();
        own.iter().for_each(|name| println!("{name}"));
        let rows = chosen(scope, &args.filter);
        rows.iter().for_each(|row| println!("{:<32} {}", row.name, row.config.name()));
        ensure!(!own.is_empty() || !rows.is_empty(), "no test has `{}` in its name", args.filter);
        return Ok(());
    }
    let mut report = Report::default();
    run(scope, &args.filter, &mut report)?;
    report.finish(args.json)?;
    report.result()
}

/// Runs the tests of a scope whose name holds `filter`.
///
/// # Errors
/// Those of set-up; and if there is no such test. A test or a build that fails is no error: the report knows.
pub fn run(scope: When, filter: &str, report: &mut Report) -> Result<()> {
    let own: Vec<&str> = own(scope, filter).collect();
    let rows = chosen(scope, filter);
    ensure!(!own.is_empty() || !rows.is_empty(), "no test has `{filter}` in its name");
    if own.contains(&HOST) {
        host::run(scope, report)?;
    }
    if own.contains(&MUTANTS) {
        mutants::run(scope, filter, report)?;
    }
    if !rows.is_empty() {
        let machine = setup::ensure()?;
        let begin = Instant::now();
        if let Err(error) = build::parts_of(&machine, &parts(&rows)) {
            report.one("build", Some(format!("{error:#}")), begin.elapsed());
            return Ok(());
        }
        let boots = boot::Boots::new(&machine, &rows)?;
        for row in &rows {
            boots.run(row, report)?;
        }
    }
    Ok(())
}

/// What runs on the build machine.
fn own(scope: When, filter: &str) -> impl Iterator<Item = &'static str> {
    let names = [(HOST, When::Quick), (MUTANTS, When::Always)];
    let wanted = move |name: &str| name.contains(filter) || name == MUTANTS && filter.starts_with(MUTANTS);
    names.into_iter().filter(move |(name, when)| *when <= scope && wanted(name)).map(|(name, _)| name)
}

fn chosen(scope: When, filter: &str) -> Vec<Row> {
    table::rows().into_iter().filter(|row| row.when <= scope && row.name.contains(filter)).collect()
}

/// The parts that these rows need.
fn parts(rows: &[Row]) -> Vec<build::Part> {
    let any = |wanted: fn(&Kind) -> bool| rows.iter().any(|row| wanted(&row.kind));
    let mut parts = Vec::new();
    if any(|kind| !matches!(kind, Kind::Plain)) {
        parts.push(build::Part::Hyp);
    }
    if rows.iter().any(|row| row.unknown_resets) {
        parts.push(build::Part::HypUnknownResets);
    }
    if any(|kind| matches!(kind, Kind::Host { .. } | Kind::Random { .. })) {
        parts.push(build::Part::Bare);
    }
    if any(|kind| matches!(kind, Kind::Debian { .. })) {
        parts.push(build::Part::Driver);
    }
    if rows.iter().any(|row| row.programs) {
        parts.push(build::Part::Story);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_boot_needs_nothing_built() {
        let rows: Vec<Row> =
            table::rows().into_iter().filter(|row| matches!(row.kind, Kind::Plain)).collect();
        assert!(!rows.is_empty() && parts(&rows).is_empty());
    }
}
