//! What all searches share: the tree of histories of every call, grown by running the real code, and what is known of
//! memories and machines.

use std::rc::Rc;

use rustc_hash::FxHashMap;
use tenure_mm::Pfn;
use tenure_mm::fake::FakeMachine;
use tenure_mm::model::Model;

use super::calls::{Answer, BASE, Call, World};
use super::case::{CPUS, Case, Seen, Violation, Wanted};
use super::conflicts::Conflicts;
use super::fault::Fault;
use super::search::Search;
use super::space::{Numbered, Shared, Space, Step, TAKEN};
use super::tape::Tape;

/// One place in the tree of what a call may be told.
pub struct Node {
    pub step: u32,
    /// The step before, and what it returned.
    pub parent: Option<(u32, u64)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Cpu {
    /// Number of the call within its program.
    pub call: u8,
    /// The call has made its first access that others can see.
    pub begun: bool,
    /// Others have changed something since it began or waited last.
    pub stirred: bool,
    /// Calls that had ended when it began.
    pub before: u16,
    pub node: u32,
    /// Calls made, by number.
    pub log: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    pub memory: u32,
    pub machine: u32,
    pub cpus: [Cpu; CPUS],
}

pub enum Stop {
    Wrong(String),
}

/// Steps of one CPU in one move, for the report.
pub type Moved = Vec<(usize, Step, u64)>;

/// Explores cases of one world.
pub struct Explorer {
    pub world: World,
    pub space: Shared,
    boot: (u32, u32),
    pub nodes: Vec<Node>,
    children: FxHashMap<(u32, u64), u32>,
    roots: FxHashMap<(Call, bool), u32>,
    pub answers: Numbered<Answer>,
    pub logs: Numbered<Vec<(u32, u16)>>,
    pub conflicts: Conflicts,
    /// What is wrong with a memory and a machine when no CPU is in EL2.
    rests: FxHashMap<(u32, u32), Option<String>>,
}

impl Explorer {
    /// A world of `vms` VMs, with a mistake put into the code.
    pub fn new(vms: u8, fault: Fault) -> Self {
        let world = World::boot(vms);
        let read = Rc::new(move |glimpse| world.ledger(glimpse));
        let mut space = Space::new(Pfn(BASE), world.frames(), fault, read);
        let machine = space.first_machine(fake(world));
        Self {
            world,
            space: Rc::new(space.into()),
            boot: (Space::FIRST, machine),
            nodes: Vec::new(),
            children: FxHashMap::default(),
            roots: FxHashMap::default(),
            answers: Numbered::new(),
            logs: Numbered::new(),
            conflicts: Conflicts::new(world, !fault.ignores_locks()),
            rests: FxHashMap::default(),
        }
    }

    /// Searches a case; what it saw, or the first interleaving that goes wrong.
    pub fn explore(&mut self, case: &Case) -> Result<Seen, Violation> {
        self.explore_for(case, &|_| true)
    }

    /// As [`Explorer::explore`]; what the calls came to must also be `wanted`, in every interleaving.
    pub fn explore_for(&mut self, case: &Case, wanted: Wanted) -> Result<Seen, Violation> {
        let (start, model) = self.prepare(case)?;
        let others = case.others();
        self.conflicts.forget();
        self.guess(case, start);
        loop {
            self.conflicts.learn();
            let result = Search::new(self, case, &model, wanted).run(start);
            // Before all that conflicts is known, a call may seem to have begun later than it did.
            if !self.conflicts.has_new(&others) {
                return result;
            }
        }
    }

    /// Makes the calls beforehand.
    fn prepare(&mut self, case: &Case) -> Result<((u32, u32), Model), Violation> {
        let mut model = self.world.reference();
        let mut at = self.boot;
        let mortal = case.is_mortal();
        for &call in &case.first {
            let alone = Case { first: vec![], programs: vec![vec![call]] };
            let (end, answer) = self.alone(&alone, at, mortal, (0, 0), call).map_err(Violation)?;
            at = end;
            if !self.world.agrees(&mut model, call, answer) {
                return Err(Violation(format!("beforehand {call:?} answers {answer:?}")));
            }
        }
        Ok((at, model))
    }

    /// Makes one call with nobody else there.
    fn alone(
        &mut self,
        case: &Case,
        (memory, machine): (u32, u32),
        mortal: bool,
        (cpu, number): (usize, usize),
        call: Call,
    ) -> Result<((u32, u32), Answer), String> {
        let node = self.root(call, mortal, (memory, machine), cpu);
        let mut state = State { memory, machine, cpus: [Cpu::default(); CPUS] };
        state.cpus[cpu].node = node;
        state.cpus[cpu].call = number as u8;
        for _ in 0..100_000 {
            let step = self.step(state.cpus[cpu].node);
            match step {
                Step::Done(answer) if *self.answers.at(answer) == Answer::Again => {
                    let at = (state.memory, state.machine);
                    state.cpus[cpu].node = self.root(call, mortal, at, cpu);
                    continue;
                }
                Step::Done(answer) => return Ok(((state.memory, state.machine), *self.answers.at(answer))),
                _ => {}
            }
            if self.space.borrow().is_blocked(state.memory, self.nodes[state.cpus[cpu].node as usize].step) {
                return Err(format!("alone, {call:?} waits at {step:?}"));
            }
            self.micro(case, mortal, &mut state, cpu, call, None)
                .map_err(|Stop::Wrong(text)| format!("alone, {call:?}: {text}"))?;
        }
        Err(format!("alone, {call:?} does not end"))
    }

    /// What each CPU touches if it goes first: most of what conflicts.
    fn guess(&mut self, case: &Case, start: (u32, u32)) {
        let mortal = case.is_mortal();
        for (cpu, program) in case.programs.iter().enumerate() {
            let mut at = start;
            for (number, &call) in program.iter().enumerate() {
                match self.alone(case, at, mortal, (cpu, number), call) {
                    Ok((next, _)) => at = next,
                    Err(_) => break,
                }
            }
        }
    }

    pub fn step(&self, node: u32) -> Step {
        *self.space.borrow().steps.at(self.nodes[node as usize].step)
    }

    /// First node of a call.
    pub fn root(&mut self, call: Call, mortal: bool, at: (u32, u32), cpu: usize) -> u32 {
        if let Some(&root) = self.roots.get(&(call, mortal)) {
            return root;
        }
        let root = self.grow(None, at, cpu, call, mortal);
        self.roots.insert((call, mortal), root);
        root
    }

    /// Runs the call through the history that ends with `parent`, and adds what it does then.
    fn grow(
        &mut self,
        parent: Option<(u32, u64)>,
        at: (u32, u32),
        cpu: usize,
        call: Call,
        mortal: bool,
    ) -> u32 {
        let mut past = Vec::new();
        let mut link = parent;
        while let Some((node, value)) = link {
            let node = &self.nodes[node as usize];
            past.push((node.step, value));
            link = node.parent;
        }
        past.reverse();
        let (world, answers) = (self.world, &mut self.answers);
        let found = Tape::run(&self.space, cpu as u8, past, at, || answers.number(world.make(call, mortal)));
        let first = self.nodes.len() as u32;
        let mut parent = parent;
        for (step, value) in found.steps {
            let node = self.nodes.len() as u32;
            self.nodes.push(Node { step, parent });
            if let Some(link) = parent {
                self.children.insert(link, node);
            }
            parent = Some((node, value));
        }
        first
    }

    /// One access of a CPU.
    pub fn micro(
        &mut self,
        case: &Case,
        mortal: bool,
        state: &mut State,
        cpu: usize,
        call: Call,
        moved: Option<&mut Moved>,
    ) -> Result<(), Stop> {
        let node = state.cpus[cpu].node;
        let step = self.nodes[node as usize].step;
        let effect = self.space.borrow_mut().make(state.memory, state.machine, cpu as u8, step);
        let made = case.first_call(cpu) + state.cpus[cpu].call;
        self.conflicts.note(step, self.step(node), effect.value, made);
        if effect.memory != state.memory || effect.machine != state.machine {
            for ((number, other), program) in state.cpus.iter_mut().enumerate().zip(&case.programs) {
                let pauses = program.get(usize::from(other.call)) == Some(&Call::Destroy);
                other.stirred |= pauses && number != cpu;
            }
        }
        if self.step(node) == Step::Pause {
            state.cpus[cpu].stirred = false;
        }
        (state.memory, state.machine) = (effect.memory, effect.machine);
        if let Some(moved) = moved {
            moved.push((cpu, self.step(node), effect.value));
        }
        if let Some(wrong) = effect.wrong {
            return Err(Stop::Wrong(String::clone(&self.space.borrow().wrongs.get(wrong))));
        }
        let link = (node, effect.value);
        state.cpus[cpu].node = match self.children.get(&link) {
            Some(&next) => next,
            None => self.grow(Some(link), (state.memory, state.machine), cpu, call, mortal),
        };
        Ok(())
    }

    /// What is wrong with a memory and a machine when no CPU is in EL2.
    pub fn judge_rest(&mut self, memory: u32, machine: u32) -> Option<String> {
        if let Some(known) = self.rests.get(&(memory, machine)) {
            return known.clone();
        }
        let (glimpse, taken, mut found) = {
            let mut space = self.space.borrow_mut();
            let found = space.rest(memory, machine);
            (space.glimpse(memory, Some(machine)), space.memories.at(memory).contains(&TAKEN), found)
        };
        if taken {
            found.push("a lock is left taken".into());
        } else {
            found.extend(self.world.audit(glimpse));
        }
        let verdict = (!found.is_empty()).then(|| found.join("\n"));
        self.rests.insert((memory, machine), verdict.clone());
        verdict
    }

    pub fn figures(&self) -> String {
        let space = self.space.borrow();
        format!(
            "{} memories, {} machines, {} histories of calls",
            space.memories.len(),
            space.machines.len(),
            self.nodes.len()
        )
    }
}

fn fake(world: World) -> &'static FakeMachine {
    &world.mm.machine().0
}
