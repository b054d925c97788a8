//! Numbered steps: each is printed with what was seen, and counted.

use std::fmt::Display;

/// A list of checks with a name in front of each line.
pub struct Steps {
    name: &'static str,
    passed: u32,
    total: u32,
}

impl Steps {
    /// No step yet.
    pub fn new(name: &'static str) -> Self {
        Self { name, passed: 0, total: 0 }
    }

    /// A line that checks nothing.
    pub fn say(&self, text: impl Display) {
        println!("{}: {text}", self.name);
    }

    /// One step: what was done, what was seen, and whether that is what must be.
    pub fn check(&mut self, step: &str, seen: impl Display, good: bool) -> bool {
        self.total += 1;
        self.passed += u32::from(good);
        let mark = if good { "" } else { "  <== NOT AS IT MUST BE" };
        println!("{}: {:2} {step} ... {seen}{mark}", self.name, self.total);
        good
    }

    /// The last line; true if all passed. `error` is what ended the steps early.
    pub fn finish(mut self, error: Option<&anyhow::Error>) -> bool {
        if let Some(error) = error {
            self.total += 1;
            println!("{}: stopped: {error:#}", self.name);
        }
        println!("{}: passed {} of {}", self.name, self.passed, self.total);
        self.passed == self.total && self.total > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_step_is_a_bad_end() {
        let mut steps = Steps::new("test");
        assert!(steps.check("a", "b", true));
        assert!(!steps.check("c", "d", false));
        assert!(!steps.finish(None));
        assert!(!Steps::new("empty").finish(None));
    }
}
