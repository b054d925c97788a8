//! `cargo xtask random`: random calls, faults and accesses in QEMU beside the reference model, and a failure made short.
//!
//! The tester is `tests/hosts`' `host-random`; it compares after each step. Where QEMU can, the machine is watched from outside too
//! ([`crate::watch`]). A failing run is taken again with parts of its steps left out until each that is left is needed.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};

use crate::qemu::console::Watch;
use crate::qemu::runner::{self, End};
use crate::qemu::{Config, Payload};
use crate::watch::{self, Watched};
use crate::{build, paths, setup, ui};

pub mod steps;

use steps::{Steps, Verdict};

/// How long a failing test is made shorter for.
const PATIENCE: Duration = Duration::from_secs(300);

/// Take random steps in QEMU, compare each with the reference model, and make a failure short.
#[derive(clap::Args)]
pub struct Args {
    /// How many steps.
    #[arg(long, default_value_t = 100_000)]
    steps: u64,
    /// Which run: the same seed takes the same steps. Without it the clock decides.
    #[arg(long)]
    seed: Option<u64>,
    /// Number of CPUs: 1, or 2 to 4 that act at the same time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=4))]
    cpus: u8,
    /// The CPU model, as QEMU names it.
    #[arg(long, default_value = "cortex-a76")]
    cpu: String,
    /// Only these steps, such as `0-17,40`: what a failure printed.
    #[arg(long, value_name = "LIST")]
    only: Option<Steps>,
    /// Minutes that a failure may be made shorter for.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
}

/// A run of the tester.
#[derive(Clone, Debug)]
pub struct Run {
    /// The machine.
    pub config: Config,
    /// Which run.
    pub seed: u64,
    /// How many steps.
    pub steps: u64,
    /// Some of them only.
    pub only: Option<Steps>,
    /// Each step is told.
    pub tell: bool,
}

/// What came of it.
pub struct Outcome {
    /// What is wrong.
    pub failure: Option<String>,
    /// The step at which it went wrong.
    pub step: Option<u64>,
    /// The console.
    pub lines: Vec<String>,
    /// What the log of table writes held.
    pub watched: Option<String>,
}

/// The task.
///
/// # Errors
/// Those of set-up and build; and if a step went wrong.
pub fn task(args: &Args) -> Result<()> {
    let machine = setup::ensure()?;
    build::parts_of(&machine, &[build::Part::Hyp, build::Part::Bare])?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_millis() as u64);
    let run = Run {
        config: Config { cpu: args.cpu.clone(), cpus: args.cpus, ..Config::default() },
        seed: args.seed.unwrap_or(now),
        steps: args.only.as_ref().and_then(Steps::last).map_or(args.steps, |last| last + 1),
        only: args.only.clone(),
        tell: args.only.is_some(),
    };
    ui::line(&format!("  seed {}, {} steps on {}", run.seed, run.steps, run.config.name()));
    let begin = Instant::now();
    let outcome = run.once("random")?;
    outcome
        .lines
        .iter()
        .filter(|line| line.starts_with("note: ") || line.starts_with("step "))
        .for_each(|line| ui::line(line));
    outcome.watched.iter().for_each(|line| ui::line(&format!("  {line}")));
    let seconds = begin.elapsed().as_secs_f32();
    match outcome.failure {
        None => {
            ui::line(&format!("  {} steps, seed {}: nothing is wrong ({seconds:.1} s)", run.steps, run.seed));
            Ok(())
        }
        Some(why) => {
            ui::line(&format!("  FAILED after {seconds:.1} s: {why}"));
            run.explain(outcome.step, Duration::from_secs(60 * args.minutes))?;
            bail!("{why}")
        }
    }
}

impl Run {
    /// How long it may take on two slow cores that others use too.
    pub fn limit(&self) -> Duration {
        let steps = self.only.as_ref().map_or(self.steps, |only| only.len() as u64);
        // Several CPUs wait for one another, at worst for as long as the build machine runs something else.
        Duration::from_secs(120 + if self.config.cpus > 1 { steps / 2 } else { steps / 40 })
    }

    fn bootargs(&self) -> String {
        let only = self.only.as_ref().map(|only| format!(" only={only}")).unwrap_or_default();
        let tell = if self.tell { " tell=1" } else { "" };
        format!("seed={} steps={}{only}{tell}", self.seed, self.steps)
    }

    /// What a user types to have it again.
    fn command(&self) -> String {
        let cpu = if self.config.cpu == Config::default().cpu {
            String::new()
        } else {
            format!(" --cpu {}", self.config.cpu)
        };
        let cpus =
            if self.config.cpus == 1 { String::new() } else { format!(" --cpus {}", self.config.cpus) };
        let what = match &self.only {
            Some(only) => format!("--only {only}"),
            None => format!("--steps {}", self.steps),
        };
        format!("cargo xtask random --seed {} {what}{cpus}{cpu}", self.seed)
    }

    /// Takes the steps.
    ///
    /// # Errors
    /// If QEMU or the plugin cannot be started. What goes wrong in the machine is no error but a failure.
    pub fn once(&self, log: &str) -> Result<Outcome> {
        let payload = Payload::Tenure {
            image: paths::image(),
            kernel: build::bare("host-random"),
            initrd: None,
            bootargs: self.bootargs(),
        };
        let watched = watch::is_possible().then(|| Watched::prepare("random")).transpose()?;
        let extra = watched.as_ref().map(Watched::arguments).unwrap_or_default();
        let config = Config { extra, ..self.config.clone() };
        let expected = vec!["result: * passed, 0 failed".to_owned()];
        let outcome = runner::run(
            config.command(&payload),
            log,
            Watch::new(expected, Vec::new()),
            End::PowerOff,
            self.limit(),
            |_| {},
        )?;
        let wrong = outcome.lines.iter().find_map(|line| Some(line.split_once("FAILED: ")?.1.to_owned()));
        let mut step = outcome.lines.iter().rev().find_map(|line| step_of(line));
        let mut failure = wrong.or(outcome.failure);
        let mut seen = None;
        if let Some(watched) = watched {
            let (line, findings) = watched.verdict()?;
            seen = Some(line);
            if let Some(first) = findings.first() {
                step = first
                    .strip_prefix("step ")
                    .and_then(|rest| rest.split(':').next()?.parse().ok())
                    .or(step);
                failure = failure.or_else(|| Some(findings.get(..2).unwrap_or(&findings).join("; ")));
            }
        }
        Ok(Outcome { failure, step, lines: outcome.lines, watched: seen })
    }

    /// As a test: what is wrong, if anything, and then a short form of it on the console.
    ///
    /// # Errors
    /// If QEMU cannot be started.
    pub fn test(&self, name: &str) -> Result<Option<String>> {
        let outcome = self.once(&format!("test-{}", name.replace('/', "-")))?;
        let watched =
            outcome.watched.unwrap_or_else(|| "not watched: QEMU's plugins cannot do it yet".to_owned());
        ui::line(&format!("  seed {}, {} steps: {watched}", self.seed, self.steps));
        if outcome.failure.is_some() {
            self.explain(outcome.step, PATIENCE)?;
        }
        Ok(outcome.failure)
    }

    /// Makes a failing run short and prints it.
    ///
    /// # Errors
    /// If QEMU cannot be started.
    pub fn explain(&self, step: Option<u64>, patience: Duration) -> Result<()> {
        ui::line(&format!("  replay: {}", self.command()));
        let begin = Instant::now();
        if self.config.cpus > 1 && self.once("random-again")?.failure.is_none() {
            ui::line("  it did not fail again: several CPUs meet differently each time");
            return Ok(());
        }
        // A machine that crashed says at which step only if each is told.
        let step = match step {
            Some(step) => Some(step),
            None => Self { tell: true, ..self.clone() }.once("random-tell")?.step,
        };
        let Some(last) = step else {
            ui::line("  it does not fail again");
            return Ok(());
        };
        let all = self.only.clone().unwrap_or_else(|| Steps::up_to(last)).until(last);
        let count = all.len();
        let mut trials = 0;
        let short = all.shorten(|trial| {
            if begin.elapsed() > patience {
                return Ok(None);
            }
            trials += 1;
            let run = Self { only: Some(trial.clone()), tell: trial.len() < 100, ..self.clone() };
            let outcome = run.once("random-shorten")?;
            let last = trial.last().unwrap_or(0);
            let failed = outcome.failure.is_some() && trial.len() > 0;
            Ok::<_, anyhow::Error>(Some(match failed {
                true => Verdict::Fails(outcome.step.unwrap_or(last)),
                false => Verdict::Passes,
            }))
        })?;
        let seconds = begin.elapsed().as_secs();
        ui::line(&format!(
            "  {} of {count} steps are enough to fail ({trials} trials, {seconds} s):",
            short.len()
        ));
        let run = Self { only: Some(short), tell: true, ..self.clone() };
        let outcome = run.once("random-short")?;
        let told = |line: &&String| {
            line.starts_with("step ") || line.starts_with("note: ") && !line.contains(" steps, ")
        };
        outcome.lines.iter().filter(told).for_each(|line| ui::line(&format!("    {line}")));
        outcome.failure.iter().for_each(|why| ui::line(&format!("    {why}")));
        ui::line(&format!("  replay: {}", run.command()));
        Ok(())
    }
}

/// The step in `note: seed=1 step=17 ...` or `step 17: ...`.
fn step_of(line: &str) -> Option<u64> {
    let digits = match line.strip_prefix("step ") {
        Some(rest) => rest,
        None => line.strip_prefix("note: seed=")?.split_once(" step=")?.1,
    };
    digits.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_of_a_failure_is_read_from_the_console() {
        assert_eq!(step_of("note: seed=4 step=812 Donate { vm: 0 }"), Some(812));
        assert_eq!(step_of("step 17: Pin { frame: 1 }"), Some(17));
        assert_eq!(step_of("note: seed=4 steps=10"), None);
    }
}
