//! Runs a machine under a time limit and follows its console.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::console::{Watch, plain};
use crate::exec;

/// How long a console is still read after a forbidden line, for the rest of the report.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// When a run is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The machine switches itself off; to stay on is a failure.
    PowerOff,
    /// The last expected line has come; the machine is then stopped.
    LastLine,
}

/// What came of a run.
pub struct Outcome {
    /// What is wrong; `None` is a pass.
    pub failure: Option<String>,
    /// Every line of the console.
    pub lines: Vec<String>,
    /// The console's log file.
    pub log: PathBuf,
}

/// Starts QEMU with its console on a pipe and follows it to its end; `each` sees every line as it comes.
///
/// # Errors
/// If QEMU cannot be started or the log not be written. What goes wrong inside the machine is no error but a failure.
pub fn run(
    mut qemu: Command,
    log: &str,
    mut watch: Watch,
    end: End,
    limit: Duration,
    mut each: impl FnMut(&str),
) -> Result<Outcome> {
    let path = exec::log_path(log)?;
    let mut file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    writeln!(file, "# {}", exec::show(&qemu))?;
    qemu.args(["-display", "none", "-monitor", "none", "-serial", "stdio"]);
    qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file.try_clone()?);
    let mut child = qemu.spawn().with_context(|| format!("cannot start {}", exec::show(&qemu)))?;
    let lines = read_lines(child.stdout.take().context("QEMU has no output")?);

    let begin = Instant::now();
    let mut deadline = begin + limit;
    let mut all = Vec::new();
    let mut late = false;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                writeln!(file, "{line}")?;
                each(&line);
                let was_good = watch.bad().is_none();
                watch.line(&line);
                all.push(line);
                if was_good && watch.bad().is_some() {
                    deadline = deadline.min(Instant::now() + LAST_WORDS);
                }
                if end == End::LastLine && watch.complete() {
                    break;
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                late = true;
                break;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    // The console is closed, complete, or late: QEMU ends now or is stopped.
    let status =
        exec::wait(&mut child, if late || end == End::LastLine { Duration::ZERO } else { LAST_WORDS })?;
    let failure = watch.verdict().or_else(|| match (end, status) {
        (End::PowerOff, None) => Some("the machine did not switch itself off".to_owned()),
        (End::PowerOff, Some(status)) if !status.success() => Some(format!("QEMU ended with {status}")),
        _ => None,
    });
    let failure = failure.map(|text| match late && watch.bad().is_none() {
        true => format!("{text} within {} s", limit.as_secs()),
        false => text,
    });
    if let Some(text) = &failure {
        writeln!(file, "# failed after {:.1} s: {text}", begin.elapsed().as_secs_f32())?;
    }
    Ok(Outcome { failure, lines: all, log: path })
}

/// Reads lines on a thread of its own, so that the reader can have a time limit.
fn read_lines(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut bytes = Vec::new();
        while let Ok(count) = reader.read_until(b'\n', &mut bytes) {
            if count == 0 || sender.send(plain(&String::from_utf8_lossy(&bytes))).is_err() {
                break;
            }
            bytes.clear();
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell in QEMU's place: the arguments that `run` appends become its positional parameters.
    fn machine(script: &str, expected: &[&str], end: End, limit_ms: u64) -> Outcome {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]);
        let watch = Watch::new(expected.iter().map(|&line| line.to_owned()).collect(), Vec::new());
        let log = format!("test-runner-{:?}", thread::current().id());
        run(shell, &log, watch, end, Duration::from_millis(limit_ms), |_| {}).unwrap()
    }

    #[test]
    fn a_machine_that_says_all_and_ends_passes() {
        let outcome = machine("echo one; echo two", &["one", "two"], End::PowerOff, 10_000);
        assert_eq!(outcome.failure, None);
        assert_eq!(outcome.lines, ["one", "two"]);
    }

    #[test]
    fn a_machine_that_stays_on_fails() {
        let outcome = machine("echo one; exec sleep 20", &["one"], End::PowerOff, 300);
        assert!(outcome.failure.unwrap().contains("did not switch itself off"));
    }

    #[test]
    fn a_machine_is_stopped_after_its_last_line() {
        let begin = Instant::now();
        let outcome = machine("echo one; exec sleep 20", &["one"], End::LastLine, 10_000);
        assert_eq!(outcome.failure, None);
        assert!(begin.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_machine_that_ends_badly_fails() {
        let outcome = machine("echo one; exit 3", &["one"], End::PowerOff, 10_000);
        assert!(outcome.failure.unwrap().contains("3"));
    }

    #[test]
    fn a_silent_machine_fails_in_time() {
        let outcome = machine("exec sleep 20", &["one"], End::LastLine, 200);
        assert!(outcome.failure.unwrap().contains("does not say `one` within"));
    }
}
