//! `cargo xtask test`: the tests of the build machine, then bare-metal and Debian boots in QEMU.
//!
//! What is booted and what must be seen stands in [`table`]; [`host`] runs `cargo test`; [`boot`] runs one row;
//! [`report`] prints and counts; `map` compares the documentation with the tests; [`mutants`] tries the
//! tests of the manager on faults.

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::{board, build, setup, ui};

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
    /// Only the tests of a board, in every way in that it has; `all` tests every board. `cargo xtask boards` lists them.
    #[arg(long, value_name = "NAME", value_parser = board::known_or_all, conflicts_with_all = ["quick", "long"])]
    board: Option<String>,
    /// A JSON object on standard output, in place of the lines (which go to standard error).
    #[arg(long)]
    json: bool,
    /// All of it so many times in a row.
    #[arg(long, value_name = "N", default_value_t = 1)]
    repeat: u32,
    /// Only say what would run.
    #[arg(long)]
    list: bool,
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
    let scope = match (args.quick, args.long) {
        (true, _) => When::Quick,
        (_, true) => When::Long,
        _ => When::Always,
    };
    let choice = Choice { scope, filter: &args.filter, board: args.board.as_deref() };
    if args.list {
        let (own, rows) = (choice.own(), choice.rows());
        own.iter().for_each(|name| println!("{name}"));
        rows.iter().for_each(|row| println!("{:<32} {}", row.name, row.machine()));
        return choice.check(&own, &rows);
    }
    let mut report = Report::default();
    for _ in 0..args.repeat {
        run(&choice, &mut report)?;
    }
    report.finish(args.json)?;
    report.result()
}

/// Which tests are meant.
pub struct Choice<'a> {
    /// How much.
    pub scope: When,
    /// Their names hold this.
    pub filter: &'a str,
    /// Only those of this board, in any scope; `all` means every board.
    pub board: Option<&'a str>,
}

impl Choice<'_> {
    /// What runs on the build machine.
    fn own(&self) -> Vec<&'static str> {
        let names = [(HOST, When::Quick), (MUTANTS, When::Always)];
        let wanted =
            |name: &str| name.contains(self.filter) || name == MUTANTS && self.filter.starts_with(MUTANTS);
        let meant = |when: When| self.board.is_none() && when <= self.scope;
        names.into_iter().filter(|(name, when)| meant(*when) && wanted(name)).map(|(name, _)| name).collect()
    }

    fn rows(&self) -> Vec<Row> {
        let meant = |row: &Row| match self.board {
            None => row.when <= self.scope,
            Some(board) => row.of_board().is_some_and(|name| board == "all" || board == name),
        };
        table::rows().into_iter().filter(|row| meant(row) && row.name.contains(self.filter)).collect()
    }

    fn check(&self, own: &[&str], rows: &[Row]) -> Result<()> {
        ensure!(
            !own.is_empty() || !rows.is_empty(),
            "no test that is meant has `{}` in its name",
            self.filter
        );
        Ok(())
    }
}

/// Runs the tests that are meant.
///
/// # Errors
/// Those of set-up; and if there is no such test. A test or a build that fails is no error: the report knows.
pub fn run(choice: &Choice<'_>, report: &mut Report) -> Result<()> {
    let (own, rows) = (choice.own(), choice.rows());
    choice.check(&own, &rows)?;
    if own.contains(&HOST) {
        host::run(choice.scope, report)?;
    }
    if own.contains(&MUTANTS) {
        mutants::run(choice.scope, choice.filter, report)?;
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
    if any(|kind| matches!(kind, Kind::Board { .. })) {
        parts.push(build::Part::DriverFull);
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
    fn a_board_is_tested_in_every_scope_and_alone() {
        let rows = Choice { scope: When::Quick, filter: "", board: Some("zcu102") }.rows();
        assert!(!rows.is_empty() && rows.iter().all(|row| row.of_board() == Some("zcu102")));
        let all = Choice { scope: When::Quick, filter: "", board: Some("all") };
        assert!(all.rows().len() > rows.len() && all.own().is_empty());
    }

    #[test]
    fn a_plain_boot_needs_nothing_built() {
        let rows: Vec<Row> =
            table::rows().into_iter().filter(|row| matches!(row.kind, Kind::Plain)).collect();
        assert!(!rows.is_empty() && parts(&rows).is_empty());
    }
}
