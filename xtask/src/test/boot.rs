//! Runs one row of the table.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tenure_boards::bundle::{IMAGE_SIZE, MAGIC};

use super::report::Report;
use super::row::{Damage, Kind, Row, Tree};
use crate::board::launch::{self, Host};
use crate::board::{self, bundle, record};
use crate::initramfs::{self, Contents};
use crate::qemu::console::{Watch, matches};
use crate::qemu::runner::{self, End};
use crate::qemu::{self, Config, Payload};
use crate::random::Run;
use crate::setup::Machine;
use crate::setup::debs::Flavour;
use crate::{build, exec, paths, run, setup, ui};

/// All that the rows boot, packed once.
pub struct Boots<'a> {
    machine: &'a Machine,
    /// With the driver and the programs.
    full: Option<PathBuf>,
    /// The same, with a kernel to go on with.
    next: Option<PathBuf>,
    /// With busybox alone.
    plain: PathBuf,
    /// The kernel of boards, and the initrd with the driver for it.
    boards: Option<(PathBuf, PathBuf)>,
}

impl<'a> Boots<'a> {
    /// Packs the root file systems that these rows need.
    ///
    /// # Errors
    /// If one cannot be packed.
    pub fn new(machine: &'a Machine, rows: &[Row]) -> Result<Self> {
        let plain = initramfs::pack(machine, "initramfs-plain.cpio", Contents::default())?;
        let debian = rows.iter().any(|row| matches!(row.kind, Kind::Debian { .. }));
        let contents = Contents {
            driver: Some(Flavour::Cloud),
            programs: rows.iter().any(|row| row.programs),
            next: None,
        };
        let full = debian.then(|| initramfs::pack(machine, "initramfs.cpio", contents)).transpose()?;
        let next = full.as_deref().filter(|_| rows.iter().any(|row| row.next)).map(|ramdisk| {
            let contents = Contents { next: Some((&machine.kernel.image, ramdisk)), ..contents };
            initramfs::pack(machine, "initramfs-next.cpio", contents)
        });
        let next = next.transpose()?;
        let board = rows.iter().any(|row| row.of_board().is_some());
        let boards = board.then(|| {
            let contents = Contents { driver: Some(Flavour::Full), programs: true, next: None };
            Ok::<_, anyhow::Error>((
                setup::board_kernel(false)?.image,
                initramfs::pack(machine, "initramfs-full.cpio", contents)?,
            ))
        });
        Ok(Self { machine, full, next, plain, boards: boards.transpose()? })
    }

    /// Boots a row and reports it.
    ///
    /// # Errors
    /// If QEMU cannot be started.
    pub fn run(&self, row: &Row, report: &mut Report) -> Result<()> {
        let begin = Instant::now();
        if let Kind::Random { seed, steps } = row.kind {
            let run = Run { config: row.config.clone(), seed, steps, only: None, tell: false };
            let failure = run.test(&row.name)?;
            report.one(&row.name, failure, begin.elapsed());
            return Ok(());
        }
        let qemu = self.command(row)?;
        let mut expected = row.expect.clone();
        let last = match &row.kind {
            Kind::Host { .. } => Some("result: * passed, * failed".to_owned()),
            Kind::Board { .. } => Some("init: board ended with 0".to_owned()),
            // One that starts another kernel ends in that one.
            Kind::Debian { run } if row.end == End::PowerOff && !row.next => {
                Some(format!("init: {run} ended with 0"))
            }
            _ => None,
        };
        expected.extend(last.filter(|last| !row.expect.contains(last)));
        let log = format!("test-{}", row.name.replace('/', "-"));
        let watch = Watch::new(expected, row.allow.clone());
        let outcome = runner::run(qemu, &log, watch, row.end, row.limit, |_| {})?;
        let bad = outcome.lines.iter().find(|line| row.never.iter().any(|pattern| matches(pattern, line)));
        let failure = outcome.failure.or_else(|| bad.map(|line| format!("the console says `{line}`")));
        let log = |why: String| format!("{why} (console: {})", outcome.log.display());
        match row.kind {
            Kind::Host { .. } => {
                let suite = Suite::read(&outcome.lines);
                suite.failures.iter().for_each(|failure| ui::line(&format!("  {}", short(failure))));
                let failure = failure.or_else(|| suite.failure()).map(log);
                report.many(&row.name, failure, begin.elapsed(), suite.passed, suite.failed);
            }
            _ => {
                let failure = failure.map(log);
                if let Some(board) = row.of_board() {
                    record::note(board, &row.name, failure.clone(), begin.elapsed().as_secs_f32())?;
                }
                report.one(&row.name, failure, begin.elapsed());
            }
        }
        Ok(())
    }

    fn command(&self, row: &Row) -> Result<Command> {
        let Kind::Board { name, way } = &row.kind else {
            return Ok(row.config.command(&self.payload(row)?));
        };
        let board = board::load(name)?;
        let (kernel, initrd) = self.boards.clone().context("the board's kernel was not set up")?;
        let guests = if board.guests { "" } else { " tenure.guests=no" };
        let more = format!("tenure.cpus={}{guests} {}", board.cpus, row.bootargs);
        let host = Host { kernel, initrd, arguments: board.qemu_arguments("board", &more) };
        launch::command(&board, &row.config, *way, &host)
    }

    fn payload(&self, row: &Row) -> Result<Payload> {
        let debian = || self.machine.kernel.image.clone();
        let image = if row.unknown_resets { paths::unknown_resets_image() } else { paths::image() };
        Ok(match &row.kind {
            Kind::Plain => {
                let bootargs = run::bootargs("boot", &row.bootargs);
                Payload::Bare { kernel: debian(), initrd: Some(self.plain.clone()), bootargs }
            }
            Kind::Debian { run } => {
                let bootargs = run::bootargs(run, &row.bootargs);
                Payload::Tenure {
                    image,
                    kernel: debian(),
                    initrd: if row.next { self.next.clone() } else { self.full.clone() },
                    bootargs,
                }
            }
            Kind::Host { name } => host(image, name, &row.bootargs),
            Kind::Random { seed, steps } => host(image, "host-random", &format!("seed={seed} steps={steps}")),
            Kind::Tree(kind) => tree(&row.config, *kind)?,
            Kind::Bundle(damage) => self.damaged(*damage)?,
            Kind::Board { .. } => bail!("a board's command line is made elsewhere"),
        })
    }

    /// A bundle that must be refused.
    fn damaged(&self, damage: Damage) -> Result<Payload> {
        let kernel = self.machine.kernel.image.clone();
        let file = paths::target().join(format!("bundle-{damage:?}.img"));
        bundle::write(&paths::image(), &kernel, &self.plain, &run::bootargs("boot", ""), &file)?;
        let mut bytes = fs::read(&file)?;
        let size = bytes.len();
        // In the middle of the kernel, which is nearly all of it.
        let middle = size / 2;
        match damage {
            Damage::Bit => bytes[middle] ^= 1,
            Damage::Cut => bytes.truncate(middle),
            Damage::Size => bytes[IMAGE_SIZE].copy_from_slice(&(size as u64 + 4096).to_le_bytes()),
            Damage::Header => {
                // The last one: the hypervisor itself knows the word too.
                let at = bytes.windows(MAGIC.len()).rposition(|window| window == MAGIC);
                bytes[at.context("the bundle has no header")?] = 0;
            }
            Damage::TwoKernels => {
                let bootargs = run::bootargs("boot", "");
                return Ok(Payload::Tenure { image: file, kernel, initrd: None, bootargs });
            }
        }
        fs::write(&file, bytes)?;
        Ok(Payload::Alone { image: file })
    }
}

/// A bare-metal host.
fn host(image: PathBuf, name: &str, bootargs: &str) -> Payload {
    Payload::Tenure { image, kernel: build::bare(name), initrd: None, bootargs: bootargs.to_owned() }
}

/// A machine whose device tree is not what Tenure needs.
fn tree(config: &Config, kind: Tree) -> Result<Payload> {
    let dir = paths::target().join("tree");
    fs::create_dir_all(&dir)?;
    let stub = dir.join("stub");
    fs::write(&stub, qemu::stub(kind != Tree::Missing))?;
    let dump = dir.join("virt.dtb");
    let none = Payload::Tree { tree: None, stub: stub.clone() };
    exec::output(config.command(&none).arg("-M").arg(format!("dumpdtb={}", dump.display())))?;
    let mut bytes = fs::read(&dump)?;
    match kind {
        Tree::Missing => return Ok(none),
        Tree::Zeros => bytes.fill(0),
        // Some way into the nodes: the header and what it claims stay.
        Tree::Cut => bytes.iter_mut().skip(2048).for_each(|byte| *byte = 0),
        Tree::Whole => {}
    }
    let tree = dir.join(format!("{kind:?}.dtb"));
    fs::write(&tree, bytes)?;
    Ok(Payload::Tree { tree: Some(tree), stub })
}

/// A line that fits on a screen.
fn short(line: &str) -> String {
    const LETTERS: usize = 300;
    let cut = if line.chars().count() > LETTERS { " ..." } else { "" };
    line.chars().take(LETTERS).chain(cut.chars()).collect()
}

/// What a bare-metal host counted (its lines are defined in tests/README.md).
struct Suite {
    passed: usize,
    failed: usize,
    /// The failed tests, each with its reason.
    failures: Vec<String>,
    /// What its last line says.
    result: Option<(usize, usize)>,
}

impl Suite {
    fn read(lines: &[String]) -> Self {
        let mut suite = Self { passed: 0, failed: 0, failures: Vec::new(), result: None };
        for line in lines {
            match line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
                // A test may say something before its verdict.
                Some((_, verdict)) if verdict == "ok" || verdict.ends_with(" ok") => suite.passed += 1,
                Some((name, verdict)) if verdict.starts_with("FAILED") => {
                    suite.failed += 1;
                    suite.failures.push(format!("{name}: {verdict}"));
                }
                _ => {}
            }
            if let Some(rest) = line.strip_prefix("result: ") {
                let mut numbers =
                    rest.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok());
                suite.result = numbers.next().zip(numbers.next());
            }
        }
        suite
    }

    /// What is wrong, if anything.
    fn failure(&self) -> Option<String> {
        if let Some(first) = self.failures.first() {
            return Some(short(first));
        }
        match self.result {
            Some((0, _)) => Some("no test ran".to_owned()),
            Some(result) if result == (self.passed, self.failed) => None,
            Some(_) => Some("the console's lines and its own result disagree".to_owned()),
            None => Some("the console shows no result".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(lines: &[&str]) -> Suite {
        Suite::read(&lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_suite_is_counted_by_its_lines() {
        let suite =
            suite(&["test a ... ok", "note: x", "test b ... skipped: no MTE", "result: 1 passed, 0 failed"]);
        assert_eq!((suite.passed, suite.failed, suite.failure()), (1, 0, None));
    }

    #[test]
    fn a_failed_test_is_named() {
        let suite = suite(&["test a ... FAILED: it is 3", "result: 0 passed, 1 failed"]);
        assert_eq!(suite.failure().unwrap(), "a: FAILED: it is 3");
    }

    #[test]
    fn a_result_that_its_lines_do_not_bear_out_fails() {
        assert!(suite(&["test a ... ok", "result: 2 passed, 0 failed"]).failure().is_some());
        assert!(suite(&["result: 0 passed, 0 failed"]).failure().is_some());
        assert!(suite(&["test a ... ok"]).failure().is_some());
    }
}
