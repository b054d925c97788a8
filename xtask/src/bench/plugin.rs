//! The TCG plugin that counts what the hypervisor executes (`assets/count.c`).

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{exec, paths};

const SOURCE: &str = include_str!("../../assets/count.c");
const LIMIT: Duration = Duration::from_secs(60);

/// The compiled plugin.
pub struct Plugin {
    object: PathBuf,
    out: PathBuf,
}

/// What it counted, in instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// In the hypervisor's address range.
    pub inside: u64,
    /// Everywhere.
    pub all: u64,
    /// How often the range was left again.
    pub entries: u64,
    /// The first stretch inside: the start of the machine.
    pub start: u64,
    /// The longest later stretch.
    pub longest: u64,
}

impl Plugin {
    /// Compiles the plugin.
    ///
    /// # Errors
    /// The compiler's own words.
    pub fn build() -> Result<Self> {
        let dir = paths::target().join("plugin");
        fs::create_dir_all(&dir)?;
        let source = dir.join("count.c");
        fs::write(&source, SOURCE)?;
        let object = dir.join("count.so");
        let compiler = if paths::which("gcc").is_some() { "gcc" } else { "cc" };
        let mut gcc = Command::new(compiler);
        gcc.args(["-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=hidden", "-o"])
            .arg(&object)
            .arg(&source);
        exec::logged(&mut gcc, "build-plugin", LIMIT)?;
        Ok(Self { object, out: dir.join("counts") })
    }

    /// QEMU's argument, counting in this address range.
    pub fn argument(&self, begin: u64, end: u64) -> String {
        let _ = fs::remove_file(&self.out);
        format!("{},begin={begin:#x},end={end:#x},out={}", self.object.display(), self.out.display())
    }

    /// What the machine that just ended did.
    ///
    /// # Errors
    /// If the plugin has written nothing.
    pub fn counts(&self) -> Result<Counts> {
        let text = fs::read_to_string(&self.out).context("QEMU's plugin has written no counts")?;
        parse(&text).with_context(|| format!("unexpected counts: {text}"))
    }
}

fn parse(text: &str) -> Option<Counts> {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.parse().ok()
    };
    let counts = Counts {
        inside: value("inside")?,
        all: value("all")?,
        entries: value("entries")?,
        start: value("start")?,
        longest: value("longest")?,
    };
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_by_name() {
        let counts = parse("inside 5\nall 100\nentries 2\nstart 4\nlongest 3\n").unwrap();
        assert_eq!(counts, Counts { inside: 5, all: 100, entries: 2, start: 4, longest: 3 });
        assert_eq!(parse("inside 5\nall 100\n"), None);
    }
}
