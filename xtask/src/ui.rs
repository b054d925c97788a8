//! What the user sees: one line a step, with a spinner while it works if the output is a terminal.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// Whether lines go to standard error, because standard output is for JSON.
static TO_STDERR: AtomicBool = AtomicBool::new(false);

/// From now on lines go to standard error (or to standard output again).
pub fn lines_to_stderr(yes: bool) {
    TO_STDERR.store(yes, Ordering::Relaxed);
}

/// Prints a line.
pub fn line(text: &str) {
    if TO_STDERR.load(Ordering::Relaxed) {
        eprintln!("{text}");
    } else {
        println!("{text}");
    }
}

/// How a step ended well.
pub enum Outcome {
    /// Nothing was to be done; the text says what was found.
    Present(String),
    /// The work was done; the text says what there is now.
    Done(String),
}

/// Runs one step: says its name, shows that it is alive, and says how it ended.
///
/// A step that found nothing to do is printed only if `verbose`, so that a set-up machine stays quiet.
///
/// # Errors
/// Those of the step, with its name in front.
pub fn step(name: &str, verbose: bool, work: impl FnOnce(&Spinner) -> Result<Outcome>) -> Result<()> {
    let begin = Instant::now();
    let spinner = Spinner::new(name);
    let result = work(&spinner);
    spinner.bar.finish_and_clear();
    match result {
        Ok(Outcome::Present(what)) => {
            if verbose {
                line(&format!("  {name}: {what} (nothing to do)"));
            }
            Ok(())
        }
        Ok(Outcome::Done(what)) => {
            line(&format!("  {name}: {what} ({:.1} s)", begin.elapsed().as_secs_f32()));
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("{name} failed")),
    }
}

/// The sign of life of a running step. Off a terminal it prints each stage as a line of its own.
pub struct Spinner {
    bar: ProgressBar,
    name: String,
    terminal: bool,
}

impl Spinner {
    fn new(name: &str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} [{elapsed}]") {
            bar.set_style(style);
        }
        bar.set_message(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar, name: name.to_owned(), terminal }
    }

    /// Says what the step does now. Only steps that change something call this.
    pub fn say(&self, stage: &str) {
        if self.terminal {
            self.bar.set_message(format!("{}: {stage}", self.name));
        } else {
            line(&format!("  {}: {stage} ...", self.name));
        }
    }
}
