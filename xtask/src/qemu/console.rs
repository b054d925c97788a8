//! What a serial console must say and must not say.

/// Lines that no run may show, unless a test allows them: a crash of the hypervisor or of the host's kernel, or a boot
/// script that the firmware gives up.
pub const FORBIDDEN: &[&str] = &[
    "EL2 crash",
    "EL2 panic",
    "Kernel panic",
    "Internal error: ",
    "Unable to handle kernel",
    "BUG: ",
    "kernel BUG at",
    "soft lockup",
    "self-detected stall",
    "detected stalls on",
    "SCRIPT FAILED",
];

/// Whether a line holds a pattern: its parts between `*` occur in this order, anywhere in the line.
pub fn matches(pattern: &str, line: &str) -> bool {
    let mut rest = line;
    for part in pattern.split('*') {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// A line without what only a terminal understands: carriage returns, escape sequences, zero bytes.
pub fn plain(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\x1b' => {
                // ESC [ parameters letter; any other escape is two characters.
                if letters.next() == Some('[') {
                    let _ = letters.by_ref().find(char::is_ascii_alphabetic);
                }
            }
            '\t' => text.push('\t'),
            other if other.is_control() => {}
            other => text.push(other),
        }
    }
    text
}

/// Follows a console: the expected lines in their order, the forbidden ones never.
pub struct Watch {
    expected: Vec<String>,
    /// How many of the expected lines have come.
    met: usize,
    allowed: Vec<String>,
    /// The first forbidden line.
    bad: Option<String>,
}

impl Watch {
    /// Expects these patterns in this order; `allowed` takes patterns off [`FORBIDDEN`].
    pub fn new(expected: Vec<String>, allowed: Vec<String>) -> Self {
        Self { expected, met: 0, allowed, bad: None }
    }

    /// Takes one line.
    pub fn line(&mut self, line: &str) {
        let forbidden = FORBIDDEN.iter().any(|pattern| matches(pattern, line));
        if forbidden && !self.allowed.iter().any(|pattern| matches(pattern, line)) && self.bad.is_none() {
            self.bad = Some(line.to_owned());
        }
        if self.expected.get(self.met).is_some_and(|pattern| matches(pattern, line)) {
            self.met += 1;
        }
    }

    /// Whether all expected lines have come.
    pub fn complete(&self) -> bool {
        self.met == self.expected.len()
    }

    /// The forbidden line that came, if one did.
    pub fn bad(&self) -> Option<&str> {
        self.bad.as_deref()
    }

    /// What is wrong at the end, if anything.
    pub fn verdict(&self) -> Option<String> {
        if let Some(line) = &self.bad {
            return Some(format!("the console says `{line}`"));
        }
        let missing = self.expected.get(self.met)?;
        let after = self.met.checked_sub(1).and_then(|last| self.expected.get(last));
        let after = after.map(|line| format!(", after `{line}`")).unwrap_or_default();
        Some(format!("the console does not say `{missing}`{after}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(expected: &[&str], allowed: &[&str], lines: &[&str]) -> Watch {
        let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        let mut watch = Watch::new(owned(expected), owned(allowed));
        lines.iter().for_each(|line| watch.line(line));
        watch
    }

    #[test]
    fn parts_of_a_pattern_come_in_order() {
        assert!(matches("share*SUCCESS", "[ 1.0] share page 3: SUCCESS"));
        assert!(!matches("share*SUCCESS", "SUCCESS share"));
        assert!(matches("", "anything"));
    }

    #[test]
    fn lines_in_order_pass() {
        assert_eq!(watch(&["one", "two"], &[], &["x", "one", "y", "two"]).verdict(), None);
    }

    #[test]
    fn lines_out_of_order_fail_and_name_the_missing_one() {
        let verdict = watch(&["one", "two"], &[], &["two", "one"]).verdict().unwrap();
        assert!(verdict.contains("`two`, after `one`"), "{verdict}");
    }

    #[test]
    fn one_line_meets_one_expectation_only() {
        assert!(!watch(&["a", "a"], &[], &["a"]).complete());
    }

    #[test]
    fn a_crash_fails_even_when_all_lines_came() {
        let verdict = watch(&["one"], &[], &["one", "[ 3.2] Kernel panic - not syncing"]).verdict().unwrap();
        assert!(verdict.contains("Kernel panic"), "{verdict}");
    }

    #[test]
    fn a_test_that_provokes_an_oops_may_allow_it() {
        assert_eq!(
            watch(&["x"], &["Internal error: Oops"], &["Internal error: Oops: 1", "x"]).verdict(),
            None
        );
        assert!(watch(&["x"], &["Internal error: Oops"], &["Kernel panic", "x"]).verdict().is_some());
    }

    #[test]
    fn terminal_sequences_are_taken_out() {
        assert_eq!(plain("\x1b[1;31mred\x1b[0m\r"), "red");
        assert_eq!(plain("a\0b"), "ab");
    }
}
