//! One test as data: what is started on which machine, and what must be seen. The table itself is [`super::table`].

use std::time::Duration;

use crate::board::data::Way;
use crate::qemu::Config;
use crate::qemu::runner::End;

/// In which scope a test runs: each scope holds those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum When {
    /// With `--quick` too.
    Quick,
    /// Unless `--quick`.
    Always,
    /// With `--long` only.
    Long,
}

/// What is started.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Debian without a hypervisor: shows that the set-up and the runner themselves are well.
    Plain,
    /// Debian under Tenure; `/init` does `run`.
    Debian {
        /// `boot`, `story`, or a script of tests/linux.
        run: String,
    },
    /// Tenure with Debian's kernel in one file, which is not as it was packed.
    Bundle(Damage),
    /// Debian's full kernel under Tenure on a board; `/init` does `board`.
    Board {
        /// Its name.
        name: String,
        /// How it is started.
        way: Way,
    },
    /// Tenure alone, entered with this device tree.
    Tree(Tree),
    /// A bare-metal host of tests/hosts under Tenure.
    Host {
        /// Its file name.
        name: String,
    },
    /// The random tester under Tenure, watched from outside; a failure is made short.
    Random {
        /// Which run.
        seed: u64,
        /// How long it is.
        steps: u64,
    },
}

/// What is wrong with a bundled file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// One bit of the kernel.
    Bit,
    /// The file ends in the middle of the kernel.
    Cut,
    /// The `Image` header claims a page more.
    Size,
    /// The header of the bundle is gone.
    Header,
    /// Nothing, but the device tree names a kernel too.
    TwoKernels,
}

/// The device tree in x0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    /// x0 = 0.
    Missing,
    /// Memory that holds zeros.
    Zeros,
    /// QEMU's own tree, all zero after its first 2 KiB.
    Cut,
    /// QEMU's own tree: says that there is no kernel.
    Whole,
}

/// One test.
#[derive(Clone, Debug)]
pub struct Row {
    /// Unique; the filter looks at it.
    pub name: String,
    /// In which scope it runs.
    pub when: When,
    /// The machine.
    pub config: Config,
    /// What is started on it.
    pub kind: Kind,
    /// Whether the hypervisor is the one that starts with the worst value in every register.
    pub unknown_resets: bool,
    /// Whether it runs a program of tests/story.
    pub programs: bool,
    /// Whether the host starts another kernel after itself.
    pub next: bool,
    /// Further words for the host's command line.
    pub bootargs: String,
    /// Lines that must come, in this order.
    pub expect: Vec<String>,
    /// Lines that must not come.
    pub never: Vec<String>,
    /// Lines that may come although they look like a crash.
    pub allow: Vec<String>,
    /// When the run is over.
    pub end: End,
    /// How long it may take; four times what it takes on two slow cores.
    pub limit: Duration,
}

impl Row {
    /// The board that it is a test of, if it is one.
    pub fn of_board(&self) -> Option<&str> {
        match &self.kind {
            Kind::Board { name, .. } => Some(name),
            _ => None,
        }
    }

    /// What it runs on, for people.
    pub fn machine(&self) -> String {
        match &self.kind {
            Kind::Board { name, way } if name != crate::board::DEFAULT => format!("{name} by {}", way.name()),
            Kind::Board { way, .. } => format!("{} by {}", self.config.name(), way.name()),
            _ => self.config.name(),
        }
    }

    pub fn new(name: &str, kind: Kind) -> Self {
        Self {
            name: name.to_owned(),
            when: When::Always,
            config: Config::default(),
            kind,
            unknown_resets: false,
            programs: false,
            next: false,
            bootargs: String::new(),
            expect: Vec::new(),
            never: Vec::new(),
            allow: Vec::new(),
            end: End::PowerOff,
            limit: Duration::from_secs(90),
        }
    }

    /// Debian without a hypervisor.
    pub fn plain(name: &str) -> Self {
        Self::new(name, Kind::Plain).expect(&["init: Debian 6.12*", "init: boot ended with 0"])
    }

    /// Debian under Tenure, which does `run` and powers off.
    pub fn debian(name: &str, run: &str) -> Self {
        Self::new(name, Kind::Debian { run: run.to_owned() })
    }

    /// Debian's full kernel on a board, with the driver and the programs.
    pub fn board(name: &str, board: &str, way: Way) -> Self {
        Self::new(name, Kind::Board { name: board.to_owned(), way }).with_programs()
    }

    /// A bare-metal host under Tenure.
    pub fn host(name: &str, host: &str) -> Self {
        Self::new(name, Kind::Host { name: host.to_owned() })
    }

    /// A run of the random tester.
    pub fn random(name: &str, seed: u64, steps: u64) -> Self {
        Self::new(name, Kind::Random { seed, steps })
    }

    pub fn on(mut self, cpu: &str, cpus: u8, gic: u8) -> Self {
        self.config = Config { cpu: cpu.to_owned(), cpus, gic, ..self.config };
        self
    }

    pub fn words(mut self, words: &str) -> Self {
        self.bootargs = words.to_owned();
        self
    }

    /// The host dies on purpose: the test ends with its last line.
    pub fn crashes(mut self) -> Self {
        self.end = End::LastLine;
        self
    }

    /// The machine restarts when it is told to, and is stopped after the last expected line.
    pub fn reboots(mut self) -> Self {
        self.config.reboots = true;
        self.end = End::LastLine;
        self
    }

    /// It must say why and stop: the run is over when it has said so.
    pub fn refuses(mut self) -> Self {
        self.end = End::LastLine;
        self.limit = Duration::from_secs(20);
        self.never(&["init: *"])
    }

    pub fn without_el2(mut self) -> Self {
        self.config.el2 = false;
        self
    }

    /// QEMU's resets are kind, hardware's are not: the hypervisor makes them unkind first.
    pub fn unknown_resets(mut self) -> Self {
        self.unknown_resets = true;
        self
    }

    /// It runs programs of tests/story.
    pub fn with_programs(mut self) -> Self {
        self.programs = true;
        self
    }

    /// It starts another kernel after itself, from its own RAM disk.
    pub fn with_next(mut self) -> Self {
        self.next = true;
        self.with_programs()
    }

    pub fn memory(mut self, mebibytes: u32) -> Self {
        self.config.memory = mebibytes;
        self
    }

    pub fn expect(mut self, lines: &[&str]) -> Self {
        self.expect.extend(lines.iter().map(|&line| line.to_owned()));
        self
    }

    pub fn never(mut self, lines: &[&str]) -> Self {
        self.never.extend(lines.iter().map(|&line| line.to_owned()));
        self
    }

    pub fn allow(mut self, lines: &[&str]) -> Self {
        self.allow.extend(lines.iter().map(|&line| line.to_owned()));
        self
    }

    pub fn seconds(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    pub fn when(mut self, when: When) -> Self {
        self.when = when;
        self
    }
}
