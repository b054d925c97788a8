//! Running other programs: their output to a log file, a time limit, and an error that shows what they said.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::paths;

/// How often a running program is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How much of a failed program's output is shown.
const TAIL_LINES: usize = 40;

/// A command line as a user could type it, for messages.
pub fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(quote));
    words.join(" ")
}

fn quote(arg: &OsStr) -> String {
    let text = arg.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%^".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Waits for a child, at most until `limit` has passed; a child that is late is killed and `None` returned.
///
/// # Errors
/// If the child cannot be waited for or killed.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        sleep(POLL);
    }
}

/// Runs a command with its output in `target/log/<log>.log`.
///
/// # Errors
/// If it cannot be started, takes longer than `limit`, or fails: the error shows the end of its output.
pub fn logged(command: &mut Command, log: &str, limit: Duration) -> Result<()> {
    let path = log_path(log)?;
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    command.stdin(Stdio::null()).stderr(file.try_clone()?).stdout(file);
    let mut child = command.spawn().with_context(|| format!("cannot start {}", show(command)))?;
    match wait(&mut child, limit)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => {
            bail!("{} ended with {status}:\n{}\n(all of it: {})", show(command), tail(&path), path.display())
        }
        None => bail!("{} was stopped after {} s:\n{}", show(command), limit.as_secs(), tail(&path)),
    }
}

/// Runs a command and gives its standard output as text.
///
/// # Errors
/// If it cannot be started or fails: the error shows what it wrote to standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", show(command)))?;
    if !output.status.success() {
        bail!(
            "{} ended with {}: {}",
            show(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The file of a log, its folder made.
///
/// # Errors
/// If the folder cannot be made.
pub fn log_path(log: &str) -> Result<PathBuf> {
    let dir = paths::logs();
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir.join(format!("{log}.log")))
}

/// The last lines of a file, for a message.
pub fn tail(path: &std::path::Path) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    lines[from..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_commands_can_be_pasted_into_a_shell() {
        let mut command = Command::new("qemu");
        command.args(["-append", "console=ttyAMA0 quiet", "it's", ""]);
        assert_eq!(show(&command), r"qemu -append 'console=ttyAMA0 quiet' 'it'\''s' ''");
    }

    #[test]
    fn a_late_child_is_killed() {
        let mut child = Command::new("sleep").arg("30").spawn().unwrap();
        assert!(wait(&mut child, Duration::from_millis(50)).unwrap().is_none());
    }

    #[test]
    fn a_child_in_time_gives_its_status() {
        let mut child = Command::new("false").spawn().unwrap();
        assert_eq!(wait(&mut child, Duration::from_secs(10)).unwrap().unwrap().code(), Some(1));
    }
}
