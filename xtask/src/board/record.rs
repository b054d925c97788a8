//! The results of the last tests of a board: one file a board below `target/boards/`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::paths;

/// What came of one test.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// When it ended (RFC 3339, UTC).
    pub date: String,
    /// What was wrong, if anything.
    pub failure: Option<String>,
    /// How long it took.
    pub seconds: f32,
}

/// The last outcome of each test of a board, by the test's name.
pub type Outcomes = BTreeMap<String, Outcome>;

fn file(board: &str) -> PathBuf {
    paths::target().join("boards").join(format!("{board}.json"))
}

/// What is known of a board; nothing, if it was never tested here.
pub fn read(board: &str) -> Outcomes {
    // A file that cannot be read is as good as none: the next test writes it anew.
    fs::read(file(board)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Notes the outcome of a test.
///
/// # Errors
/// If the file cannot be written.
pub fn note(board: &str, test: &str, failure: Option<String>, seconds: f32) -> Result<()> {
    let mut outcomes = read(board);
    let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    outcomes.insert(test.to_owned(), Outcome { date, failure, seconds });
    let file = file(board);
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    fs::write(&file, serde_json::to_string_pretty(&outcomes)?)
        .with_context(|| format!("cannot write {}", file.display()))
}

/// In a few words: `4 of 4 passed, 2026-01-31T12:00:00Z`.
pub fn summary(outcomes: &Outcomes) -> String {
    let passed = outcomes.values().filter(|outcome| outcome.failure.is_none()).count();
    match outcomes.values().map(|outcome| &outcome.date).max() {
        None => "not tested here".to_owned(),
        Some(date) => format!("{passed} of {} passed, {date}", outcomes.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_counts_and_gives_the_last_date() {
        assert_eq!(summary(&Outcomes::new()), "not tested here");
        let outcome = |date: &str, failure: Option<&str>| Outcome {
            date: date.to_owned(),
            failure: failure.map(str::to_owned),
            seconds: 1.0,
        };
        let outcomes = Outcomes::from([
            ("a".to_owned(), outcome("2026-02-01T00:00:00Z", Some("no"))),
            ("b".to_owned(), outcome("2026-01-01T00:00:00Z", None)),
        ]);
        assert_eq!(summary(&outcomes), "1 of 2 passed, 2026-02-01T00:00:00Z");
    }
}
