//! Counting and printing: one line a test as it ends, and the totals.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::ui;

/// What came of all tests so far.
#[derive(Default)]
pub struct Report {
    tests: Vec<Test>,
}

struct Test {
    name: String,
    failure: Option<String>,
    seconds: f32,
    /// How many tests this line stands for: a test binary or a bare-metal host reports many.
    passed: usize,
    failed: usize,
}

impl Report {
    /// One test ended.
    pub fn one(&mut self, name: &str, failure: Option<String>, time: Duration) {
        let failed = usize::from(failure.is_some());
        self.many(name, failure, time, 1 - failed, failed);
    }

    /// A group of tests ended, which counted its own.
    pub fn many(
        &mut self,
        name: &str,
        failure: Option<String>,
        time: Duration,
        passed: usize,
        failed: usize,
    ) {
        let seconds = time.as_secs_f32();
        // A group that failed as a whole without a failed test of its own (it crashed, say) counts as one failure.
        let failed = if failure.is_some() { failed.max(1) } else { failed };
        let count =
            if passed + failed > 1 { format!(" {} of {}", passed, passed + failed) } else { String::new() };
        match &failure {
            None => ui::line(&format!("test {name} ... ok{count} ({seconds:.1} s)")),
            Some(why) => ui::line(&format!("test {name} ... FAILED{count} ({seconds:.1} s): {why}")),
        }
        self.tests.push(Test { name: name.to_owned(), failure, seconds, passed, failed });
    }

    /// How many passed.
    pub fn passed(&self) -> usize {
        self.tests.iter().map(|test| test.passed).sum()
    }

    /// How many failed.
    pub fn failed(&self) -> usize {
        self.tests.iter().map(|test| test.failed).sum()
    }

    /// The verdict.
    ///
    /// # Errors
    /// If a test failed, or none ran.
    pub fn result(&self) -> Result<()> {
        ensure!(self.failed() == 0, "{} of {} tests failed", self.failed(), self.failed() + self.passed());
        ensure!(self.passed() > 0, "no test ran");
        Ok(())
    }

    /// Prints what failed once more, and the totals.
    ///
    /// # Errors
    /// If the JSON cannot be written.
    pub fn finish(&self, json: bool) -> Result<()> {
        if self.failed() > 0 {
            ui::line("failed:");
        }
        for test in &self.tests {
            if let Some(why) = &test.failure {
                ui::line(&format!("  {}: {why}", test.name));
            }
        }
        ui::line(&format!("{} passed, {} failed", self.passed(), self.failed()));
        if json {
            let tests = self.tests.iter().map(|test| {
                json!({
                    "name": test.name, "ok": test.failure.is_none(), "failure": test.failure,
                    "seconds": test.seconds, "passed": test.passed, "failed": test.failed,
                })
            });
            let all = json!({ "passed": self.passed(), "failed": self.failed(), "tests": tests.collect::<Vec<_>>() });
            println!("{}", serde_json::to_string_pretty(&all)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_crashed_counts_as_a_failure() {
        let mut report = Report::default();
        report.many("bare", Some("EL2 crash".into()), Duration::ZERO, 7, 0);
        assert_eq!((report.passed(), report.failed()), (7, 1));
    }

    #[test]
    fn groups_and_single_tests_add_up() {
        let mut report = Report::default();
        report.one("a", None, Duration::ZERO);
        report.one("b", Some("no".into()), Duration::ZERO);
        report.many("c", None, Duration::ZERO, 5, 0);
        assert_eq!((report.passed(), report.failed()), (6, 1));
    }
}
