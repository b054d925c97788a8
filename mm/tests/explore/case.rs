//! What is explored, what was seen, and what went wrong.

use std::fmt::Write as _;

use tenure_mm::Word;

use super::calls::Call;
use super::conflicts::Calls;
use super::judge::Made;

/// CPUs that a case may have.
pub const CPUS: usize = 4;

/// What the calls of a case must have come to.
pub type Wanted<'a> = &'a dyn Fn(&[Made]) -> bool;

/// Calls made beforehand by one CPU, then the programs of all.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Case {
    pub first: Vec<Call>,
    pub programs: Vec<Vec<Call>>,
}

impl Case {
    /// Number of a CPU's first call.
    pub fn first_call(&self, cpu: usize) -> u8 {
        self.programs.iter().take(cpu).map(Vec::len).sum::<usize>() as u8
    }

    /// By number of a call: the calls of the other CPUs.
    pub fn others(&self) -> Vec<Calls> {
        let all = (1 << self.first_call(self.programs.len())) - 1;
        let of = |cpu: usize| ((1 << self.programs[cpu].len()) - 1) << self.first_call(cpu);
        (0..self.programs.len()).flat_map(|cpu| vec![all & !of(cpu); self.programs[cpu].len()]).collect()
    }

    /// The VM may die: its calls go through its gate.
    pub fn is_mortal(&self) -> bool {
        self.first.iter().chain(self.programs.iter().flatten()).any(|call| *call == Call::Destroy)
    }
}

/// What a search saw.
#[derive(Clone, Copy, Default, Debug)]
pub struct Seen {
    pub cases: u64,
    pub states: u64,
    pub steps: u64,
    /// Orders of conflicting accesses that the states stand for.
    pub interleavings: f64,
}

impl Seen {
    pub fn add(&mut self, other: Seen) {
        self.cases += other.cases;
        self.states += other.states;
        self.steps += other.steps;
        self.interleavings += other.interleavings;
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cases, states, steps, interleavings } = self;
        write!(f, "{cases} cases, {states} states, {steps} moves for {interleavings:.3e} interleavings")
    }
}

/// Something that must not be, and how it came about.
#[derive(Debug)]
pub struct Violation(pub String);

/// The calls and the words of the pages that they are about.
pub fn describe(what: &str, made: &[Made], words: &[u64]) -> String {
    let mut text = String::from(what);
    for made in made {
        let _ = write!(text, "\n{made:?}");
    }
    for &word in words {
        let _ = write!(text, "\n{:?}", Word::from_raw(word));
    }
    text
}
