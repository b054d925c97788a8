//! The search: every order of the accesses that conflict, each state once.
//!
//! A state is the memory, the machine, and for each CPU its place in its program: a node of the tree of histories of
//! its present call, and the answers before. CPUs switch before an access only if some CPU, in some interleaving of
//! this very case, makes another that conflicts with it; which those are is found by searching until nothing new turns
//! up. (An access that conflicts with none commutes with all of the others, so it can be made at once.) Histories only
//! grow: there is no cycle.

use std::fmt::Write as _;

use rustc_hash::FxHashMap;
use tenure_mm::model::Model;

use super::calls::Answer;
use super::case::{CPUS, Case, Seen, Violation, Wanted, describe};
use super::conflicts::Calls;
use super::explorer::{Cpu, Explorer, Moved, State, Stop};
use super::judge::{Made, is_explained};
use super::reference::views;
use super::space::{Act, Numbered, Step};

/// One search through one case.
pub struct Search<'a> {
    explorer: &'a mut Explorer,
    case: &'a Case,
    model: &'a Model,
    wanted: Wanted<'a>,
    mortal: bool,
    /// Number of each CPU's first call.
    offsets: [u8; CPUS],
    /// States that are done, and how many ways lead from each to an end; not a number for those on the way down.
    done: FxHashMap<State, f64>,
    ledgers: Numbered<Vec<u64>>,
    /// Verdicts on answers and words.
    ends: FxHashMap<([u32; CPUS], u32), Option<String>>,
    steps: u64,
}

/// A state on the way down.
struct Frame {
    state: State,
    next: usize,
    /// The only CPU whose turn it need be.
    alone: Option<usize>,
    ways: f64,
}

impl<'a> Search<'a> {
    pub fn new(explorer: &'a mut Explorer, case: &'a Case, model: &'a Model, wanted: Wanted<'a>) -> Self {
        let cpus = case.programs.len();
        let offsets = core::array::from_fn(|cpu| case.first_call(cpu.min(cpus)));
        Self {
            explorer,
            case,
            model,
            wanted,
            mortal: case.is_mortal(),
            offsets,
            done: FxHashMap::default(),
            ledgers: Numbered::new(),
            ends: FxHashMap::default(),
            steps: 0,
        }
    }

    pub fn run(mut self, (memory, machine): (u32, u32)) -> Result<Seen, Violation> {
        let empty = self.explorer.logs.number(Vec::new());
        let mut state = State { memory, machine, cpus: [Cpu::default(); CPUS] };
        for (cpu, program) in self.case.programs.iter().enumerate() {
            let node = self.explorer.root(program[0], self.mortal, (memory, machine), cpu);
            state.cpus[cpu] = Cpu { node, log: empty, ..Cpu::default() };
        }
        for cpu in 0..self.case.programs.len() {
            if let Err(Stop::Wrong(text)) = self.go(&mut state, cpu, true, None) {
                return Err(Violation(text));
            }
        }
        let mut path = vec![Frame { state, next: 0, alone: None, ways: 0.0 }];
        while let Some(frame) = path.last_mut() {
            let cpu = frame.next;
            if cpu == 0 && self.is_end(&frame.state) {
                let state = frame.state;
                if let Some(text) = self.judge(&state) {
                    return Err(self.report(&path, None, &text));
                }
                frame.ways = 1.0;
                frame.next = CPUS;
            } else if cpu < self.case.programs.len() {
                let mut state = frame.state;
                if cpu == 0 {
                    frame.alone = self.first_alone(&state);
                }
                frame.next += 1;
                if frame.alone.is_some_and(|alone| alone != cpu) {
                    continue;
                }
                if !self.can_go(&state, cpu) {
                    continue;
                }
                self.steps += 1;
                if let Err(Stop::Wrong(text)) = self.go(&mut state, cpu, false, None) {
                    return Err(self.report(&path, Some(cpu), &text));
                }
                match self.done.get(&state) {
                    Some(ways) if ways.is_nan() => {
                        return Err(self.report(&path, Some(cpu), "goes in a circle"));
                    }
                    Some(ways) => frame.ways += ways,
                    None => {
                        self.done.insert(state, f64::NAN);
                        path.push(Frame { state, next: 0, alone: None, ways: 0.0 });
                    }
                }
            } else {
                if frame.ways == 0.0 {
                    return Err(self.report(&path, None, "everybody waits"));
                }
                let (state, ways) = (frame.state, frame.ways);
                self.done.insert(state, ways);
                path.pop();
                if let Some(parent) = path.last_mut() {
                    parent.ways += ways;
                }
            }
        }
        let ways = self.done.get(&state).copied().unwrap_or(0.0);
        Ok(Seen { cases: 1, states: self.done.len() as u64, steps: self.steps, interleavings: ways })
    }

    fn is_end(&self, state: &State) -> bool {
        let programs = self.case.programs.iter();
        programs.zip(&state.cpus).all(|(program, cpu)| usize::from(cpu.call) == program.len())
    }

    fn can_go(&self, state: &State, cpu: usize) -> bool {
        let at = &state.cpus[cpu];
        if usize::from(at.call) == self.case.programs[cpu].len() {
            return false;
        }
        let step = self.explorer.nodes[at.node as usize].step;
        let space = self.explorer.space.borrow();
        match *space.steps.at(step) {
            Step::Pause => at.stirred,
            _ => !space.is_blocked(state.memory, step),
        }
    }

    /// A CPU whose next access conflicts with nothing that others may still do.
    fn first_alone(&mut self, state: &State) -> Option<usize> {
        (0..self.case.programs.len()).find(|&cpu| {
            let number = self.explorer.nodes[state.cpus[cpu].node as usize].step;
            self.can_go(state, cpu) && !self.is_point(state, cpu, number)
        })
    }

    /// Others need a turn before this step of a CPU.
    fn is_point(&mut self, state: &State, cpu: usize, number: u32) -> bool {
        let step = *self.explorer.space.borrow().steps.at(number);
        let others = self.left(state, cpu);
        self.explorer.conflicts.is_point(number, step, others) && !self.does_nothing(state, cpu, number, step)
    }

    /// Calls of other CPUs that have not ended.
    fn left(&self, state: &State, cpu: usize) -> Calls {
        let mut left = 0;
        for (other, program) in self.case.programs.iter().enumerate().filter(|(other, _)| *other != cpu) {
            let ended = (1 << state.cpus[other].call) - 1;
            left |= (((1 << program.len()) - 1) & !ended) << self.offsets[other];
        }
        left
    }

    /// Lets a CPU go on to its next point; `early`: make only what comes before its first.
    fn go(
        &mut self,
        state: &mut State,
        cpu: usize,
        early: bool,
        mut moved: Option<&mut Moved>,
    ) -> Result<(), Stop> {
        let mut first = !early;
        loop {
            let at = state.cpus[cpu];
            let Some(&call) = self.case.programs[cpu].get(usize::from(at.call)) else { return Ok(()) };
            let number = self.explorer.nodes[at.node as usize].step;
            let step = self.explorer.step(at.node);
            if let Step::Done(answer) = step {
                self.end_call(state, cpu, answer);
                continue;
            }
            let point = self.is_point(state, cpu, number);
            if point && !first || self.explorer.space.borrow().is_blocked(state.memory, number) {
                return Ok(());
            }
            if (point || first) && !at.begun {
                state.cpus[cpu].begun = true;
                state.cpus[cpu].before = self.ended(state);
            }
            first = false;
            self.explorer.micro(self.case, self.mortal, state, cpu, call, moved.as_deref_mut())?;
        }
    }

    /// A DSB with nothing of its own CPU to wait for.
    fn does_nothing(&self, state: &State, cpu: usize, number: u32, step: Step) -> bool {
        step == Step::Act(Act::DsbIsh) && {
            let mut space = self.explorer.space.borrow_mut();
            space.make(state.memory, state.machine, cpu as u8, number).machine == state.machine
        }
    }

    /// Calls that have ended.
    fn ended(&self, state: &State) -> u16 {
        let mut ended = 0;
        for (cpu, &offset) in state.cpus.iter().zip(&self.offsets).take(self.case.programs.len()) {
            ended |= ((1u16 << cpu.call) - 1) << offset;
        }
        ended
    }

    fn end_call(&mut self, state: &mut State, cpu: usize, answer: u32) {
        let at = state.cpus[cpu];
        if *self.explorer.answers.at(answer) == Answer::Again {
            let again = self.case.programs[cpu][usize::from(at.call)];
            let node = self.explorer.root(again, self.mortal, (state.memory, state.machine), cpu);
            state.cpus[cpu].node = node;
            return;
        }
        let before = if at.begun { at.before } else { self.ended(state) };
        let mut log = Vec::clone(&self.explorer.logs.get(at.log));
        log.push((answer, before));
        let log = self.explorer.logs.number(log);
        let call = at.call + 1;
        let node = match self.case.programs[cpu].get(usize::from(call)) {
            Some(&next) => self.explorer.root(next, self.mortal, (state.memory, state.machine), cpu),
            None => 0,
        };
        state.cpus[cpu] = Cpu { call, node, log, ..Cpu::default() };
    }

    /// What is wrong with an end.
    fn judge(&mut self, state: &State) -> Option<String> {
        if let Some(text) = self.explorer.judge_rest(state.memory, state.machine) {
            return Some(text);
        }
        let ledger = self.explorer.space.borrow_mut().books(state.memory);
        let logs = state.cpus.map(|cpu| cpu.log);
        let number = self.ledgers.number(ledger.words.clone());
        if let Some(known) = self.ends.get(&(logs, number)) {
            return known.clone();
        }
        let made = self.made(state);
        let explained = is_explained(self.explorer.world, self.model, &made, &views(&ledger));
        let verdict = match (explained, (self.wanted)(&made)) {
            (true, true) => None,
            (false, _) => Some(describe(
                "no order of the calls explains",
                &made,
                self.explorer.world.of_pages(&ledger.words),
            )),
            (_, false) => {
                Some(describe("this is not to come out", &made, self.explorer.world.of_pages(&ledger.words)))
            }
        };
        self.ends.insert((logs, number), verdict.clone());
        verdict
    }

    fn made(&self, state: &State) -> Vec<Made> {
        let mut made = Vec::new();
        for (cpu, program) in self.case.programs.iter().enumerate() {
            let log = self.explorer.logs.get(state.cpus[cpu].log);
            for (&call, &(answer, before)) in program.iter().zip(&*log) {
                let answer = *self.explorer.answers.at(answer);
                made.push(Made { call, answer, before: before.into() });
            }
        }
        made
    }

    /// The schedule that led here, in words.
    fn report(&mut self, path: &[Frame], last: Option<usize>, text: &str) -> Violation {
        let mut out = format!("{text}\nafter {:?}", self.case.first);
        for (cpu, program) in self.case.programs.iter().enumerate() {
            let _ = write!(out, "\nCPU {cpu}: {program:?}");
        }
        let chosen = path.windows(2).map(|pair| (pair[0].state, pair[0].next - 1));
        let last = last.and_then(|cpu| path.last().map(|frame| (frame.state, cpu)));
        for (mut state, cpu) in chosen.chain(last) {
            let mut moved = Moved::new();
            let _ = self.go(&mut state, cpu, false, Some(&mut moved));
            for (cpu, step, value) in moved {
                // Of reads only those that others have to do with.
                let number = self.explorer.space.borrow_mut().steps.number(step);
                let others = self.case.others()[usize::from(self.offsets[cpu])];
                if matches!(step, Step::Read(..)) && !self.explorer.conflicts.is_point(number, step, others) {
                    continue;
                }
                let _ = write!(out, "\n  CPU {cpu}: {step:x?} -> {value:#x}");
            }
        }
        Violation(out)
    }
}
