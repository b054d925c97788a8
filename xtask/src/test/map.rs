//! Compares `docs/requirements.md`, `docs/testing.md` and the sources: which test holds which line.
//!
//! The pages are for people and stay plain Markdown. What is read of them: of the requirements the lines that begin with
//! a bold letter and number or with a number; of the map the tables below `## Requirements` and `## Mutations`.

use std::collections::{BTreeMap, BTreeSet};

use super::{mutants, table};
use crate::paths;

/// The table of the mutants, below `## Mutations`.
const FAULTS: &str = "### Faults in the source";

/// Everything that is compared.
struct Pages<'a> {
    requirements: &'a str,
    testing: &'a str,
    /// Names of all rows of the QEMU tests.
    rows: Vec<String>,
    /// A file of the repository.
    source: &'a dyn Fn(&str) -> Option<String>,
}

/// A file of tests, as the map declares it.
struct Tests {
    path: String,
    source: String,
}

/// What is wrong, one line each.
fn complaints(pages: &Pages<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    let files = files(pages, &mut wrong);
    let lines = table_of(pages.testing, "## Requirements", 2);
    let mut mapped: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for cells in lines.iter().filter(|cells| is_id(cells[0])) {
        let tests = quoted(cells[1]);
        if mapped.insert(cells[0], tests).is_some() {
            wrong.push(format!("{} has two lines in the map", cells[0]));
        }
    }
    let ids: BTreeSet<&str> = pages.requirements.lines().filter_map(id_of).collect();
    if ids.is_empty() {
        wrong.push("no requirement was found".into());
    }
    for id in &ids {
        if mapped.get(id).is_none_or(Vec::is_empty) {
            wrong.push(format!("{id} has no test"));
        }
    }
    wrong.extend(mapped.keys().filter(|id| !ids.contains(*id)).map(|id| format!("{id} is no requirement")));

    let mutations: Vec<(&str, Vec<&str>)> =
        table_of(pages.testing, "## Mutations", 2).iter().map(|cells| (cells[0], quoted(cells[1]))).collect();
    for (fault, tests) in &mutations {
        if tests.is_empty() {
            wrong.push(format!("nothing catches `{fault}`"));
        }
    }
    let listed: BTreeSet<String> = table_of(pages.testing, FAULTS, 2)
        .iter()
        .map(|cells| format!("| {} | {} |", cells[0], cells[1]))
        .collect();
    let tried: BTreeSet<String> = mutants::all()
        .map(|mutant| {
            let tests: Vec<String> = mutant.tests.iter().map(|test| format!("`{test}`")).collect();
            format!("| {} | {} |", mutant.fault, tests.join(" "))
        })
        .collect();
    wrong.extend(tried.difference(&listed).map(|line| format!("the table of faults lacks\n{line}")));
    wrong.extend(listed.difference(&tried).map(|line| format!("no such fault is tried:\n{line}")));
    for (what, tests) in
        mapped.iter().map(|(id, tests)| (*id, tests)).chain(mutations.iter().map(|(a, b)| (*a, b)))
    {
        let mut seen = BTreeSet::new();
        for test in tests {
            if !seen.insert(test) {
                wrong.push(format!("{what} names `{test}` twice"));
            }
            if let Err(why) = exists(test, &files, &pages.rows) {
                wrong.push(format!("{what}: {why}"));
            }
        }
    }
    let named: BTreeSet<&str> =
        mapped.values().chain(mutations.iter().map(|(_, tests)| tests)).flatten().copied().collect();
    for (key, tests) in &files {
        if !named.iter().any(|test| test.split_once("::").is_some_and(|(file, _)| file == *key)) {
            wrong.push(format!("`{key}` is listed, but no line names a test of it"));
        }
        for name in names_in(&tests.source).filter(|name| has_test(&tests.source, name)) {
            let full = format!("{key}::{name}");
            for id in scenarios_of(name) {
                if !mapped.get(id.as_str()).is_some_and(|tests| tests.contains(&full.as_str())) {
                    wrong.push(format!("`{full}` is not in the line of scenario {id}"));
                }
            }
            if name.starts_with("without_")
                && !mutations.iter().any(|(_, tests)| tests.contains(&full.as_str()))
            {
                wrong.push(format!("`{full}` is not among the mutations"));
            }
        }
    }
    wrong
}

/// The table of files: a short name, where it is, what runs it.
fn files<'a>(pages: &Pages<'a>, wrong: &mut Vec<String>) -> BTreeMap<&'a str, Tests> {
    let mut files = BTreeMap::new();
    for cells in table_of(pages.testing, "## Requirements", 3) {
        let ([Some(key), Some(path)], run_by) =
            ([cells[0], cells[1]].map(|cell| quoted(cell).first().copied()), cells[2])
        else {
            continue;
        };
        for row in quoted(run_by).into_iter().filter(|row| row.contains('/')) {
            if !any_row(row, &pages.rows) {
                wrong.push(format!("`{key}` is run by `{row}`, which is no row"));
            }
        }
        let Some(source) = (pages.source)(path) else {
            wrong.push(format!("`{key}` is `{path}`, which is not there"));
            continue;
        };
        if files.insert(key, Tests { path: path.to_owned(), source }).is_some() {
            wrong.push(format!("`{key}` is listed twice"));
        }
    }
    files
}

/// `file::test` or `group/row`.
fn exists(test: &str, files: &BTreeMap<&str, Tests>, rows: &[String]) -> Result<(), String> {
    match test.split_once("::") {
        None if any_row(test, rows) => Ok(()),
        None => Err(format!("`{test}` is no row of the tests")),
        Some((file, name)) => {
            let tests = files.get(file).ok_or_else(|| format!("`{test}` is of a file that is not listed"))?;
            match has_test(&tests.source, name) {
                true => Ok(()),
                false => Err(format!("`{test}` is not in {}", tests.path)),
            }
        }
    }
}

/// True if a row has this name; `*` at the end stands for anything.
fn any_row(name: &str, rows: &[String]) -> bool {
    match name.strip_suffix('*') {
        Some(start) => rows.iter().any(|row| row.starts_with(start)),
        None => rows.iter().any(|row| row == name),
    }
}

/// True if `source` has a function `name` that is run as a test: marked as one, or in a table of a bare-metal host.
fn has_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let start = format!("fn {name}(");
    let Some(at) = lines.iter().position(|line| line.starts_with(&start)) else { return false };
    let attributes = lines[..at].iter().rev().take_while(|line| line.starts_with("#["));
    let marked = attributes.into_iter().any(|line| line.contains("test"));
    let listed = source
        .split_once("tests!(")
        .and_then(|(_, rest)| rest.split_once(");"))
        .is_some_and(|(list, _)| list.split(',').any(|entry| entry.trim() == name));
    marked || listed || source.contains(&format!("(\"{name}\", {name})"))
}

/// Names of all functions of a source.
fn names_in(source: &str) -> impl Iterator<Item = &str> {
    source.lines().filter_map(|line| line.trim().strip_prefix("fn ")?.split(['(', '<']).next())
}

/// The numbers in front of a test's name: `scenario_05_and_06_a_fault` is of 5 and 6.
fn scenarios_of(name: &str) -> Vec<String> {
    let Some(rest) = name.strip_prefix("scenario_") else { return Vec::new() };
    let words = rest.split('_').take_while(|word| *word == "and" || word.parse::<u32>().is_ok());
    words.filter_map(|word| word.parse::<u32>().ok()).map(|number| number.to_string()).collect()
}

fn is_id(cell: &str) -> bool {
    let digits = cell.strip_prefix(['S', 'U', 'F', 'C', 'B']).unwrap_or(cell);
    !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit())
}

/// `- **S1** …` or `1. …`.
fn id_of(line: &str) -> Option<&str> {
    let id = match line.strip_prefix("- **") {
        Some(rest) => rest.split_once("**")?.0,
        None => line.split_once(". ")?.0,
    };
    is_id(id).then_some(id)
}

/// Rows of `columns` cells of all tables below a heading, up to the next of its level.
fn table_of<'a>(page: &'a str, heading: &str, columns: usize) -> Vec<Vec<&'a str>> {
    let section =
        page.lines().skip_while(|line| *line != heading).skip(1).take_while(|line| !line.starts_with("## "));
    let rows = section.filter(|line| line.starts_with('|') && !line.starts_with("|-"));
    let cells = rows.map(|line| line.trim().trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
    cells.filter(|cells| cells.len() == columns && !is_heading(cells)).collect()
}

fn is_heading(cells: &[&str]) -> bool {
    ["file", "line", "scenario", "left out", "fault"].contains(&cells[0])
}

/// What stands between backquotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn whole<R>(check: impl FnOnce(Pages<'_>) -> R) -> R {
    let source = |path: &str| std::fs::read_to_string(paths::root().join(path)).ok();
    let [requirements, testing] =
        ["docs/requirements.md", "docs/testing.md"].map(|path| source(path).unwrap_or_default());
    let rows = table::rows().into_iter().map(|row| row.name).collect();
    check(Pages { requirements: &requirements, testing: &testing, rows, source: &source })
}

#[test]
fn every_requirement_scenario_and_mutation_has_its_tests() {
    let wrong = whole(|pages| complaints(&pages));
    assert!(
        wrong.is_empty(),
        "docs/requirements.md, docs/testing.md and the tests differ:\n{}",
        wrong.join("\n")
    );
}

/// The check itself: each sort of difference is found.
#[test]
fn the_map_of_the_tests_can_be_wrong() {
    let red = |change: &dyn Fn(&str, &str) -> (String, String), expected: &str| {
        let wrong = whole(|pages| {
            let (requirements, testing) = change(pages.requirements, pages.testing);
            complaints(&Pages { requirements: &requirements, testing: &testing, ..pages })
        });
        assert!(wrong.iter().any(|line| line.contains(expected)), "`{expected}` is not among {wrong:#?}");
    };
    let testing = |from: &'static str, to: &'static str| {
        move |requirements: &str, testing: &str| {
            assert!(testing.contains(from), "{from}");
            (requirements.to_owned(), testing.replacen(from, to, 1))
        }
    };
    let without = |start: &'static str| {
        move |requirements: &str, testing: &str| {
            let kept: Vec<&str> = testing.lines().filter(|line| !line.starts_with(start)).collect();
            (requirements.to_owned(), kept.join("\n"))
        }
    };
    red(&without("| S5 |"), "S5 has no test");
    red(&without("| 30 |"), "30 has no test");
    red(&without("| TLBI of a dead VM |"), "is not among the mutations");
    red(&without("| `scenarios` |"), "is of a file that is not listed");
    red(&without("| a count is not released |"), "lacks\n| a count is not released |");
    red(&testing("| a count is not released |", "| a count is released |"), "no such fault is tried");
    red(&testing("| S5 |", "| S4 |"), "S4 has two lines");
    red(&testing("| S5 |", "| S55 |"), "S55 is no requirement");
    red(&testing("`attacks::poison_is_final`", "`attacks::poison_is_not`"), "is not in mm/tests/attacks.rs");
    red(&testing("`linux/hostile`", "`linux/polite`"), "`linux/polite` is no row");
    red(&testing("`story/*`", "`tale/*`"), "`tale/*` is no row");
    red(
        &testing("`scenarios::scenario_16_", "`scenarios::scenario_61_"),
        "is not in the line of scenario 16",
    );
    red(
        &|requirements, testing| (format!("{requirements}\n- **B99** New."), testing.to_owned()),
        "B99 has no test",
    );
}
