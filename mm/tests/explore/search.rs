//! The search: every order of the accesses that conflict, each state once.
//!
//! A state is the memory, the machine, and for each CPU its place in its program: a node of the tree of histories of
//! its present call, and the answers before. CPUs switch before an access only if some CPU, in some interleaving of
//! this very case, makes another that conflicts with it; which those are is found by searching until nothing new turns
//! up. (An access that conflicts with none commutes with all of the others, so it can be made at once.) Histories only
//! grow: there is no cycle.

use std::fmt::Write as _;
use std::rc::Rc;

use rustc_hash::FxHashMap;
use tenure_mm::fake::FakeMachine;
use tenure_mm::model::Model;
use tenure_mm::sync::watched::Access;
use tenure_mm::{Pa, Pfn, Word};

use super::calls::{Answer, BASE, Call, World, views};
use super::fault::Fault;
use super::judge::{Made, is_explained};
use super::space::{Act, Effect, Numbered, Shared, Space, Step, TAKEN};
use super::tape::Tape;

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

/// One place in the tree of what a call may be told.
struct Node {
    step: u32,
    /// The step before, and what it returned.
    parent: Option<(u32, u64)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum Object {
    Place(u16),
    Entry(Pa, usize),
    Frame(Pfn),
    Tlb,
}

/// How an access conflicts with others of the same object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Read,
    Write,
    /// Conflicts with reads only.
    Add,
}

/// CPUs that make accesses of each mode to an object.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Users {
    read: u8,
    write: u8,
    add: u8,
}

impl Users {
    fn with(mut self, mode: Mode, cpu: usize) -> Self {
        let users = match mode {
            Mode::Read => &mut self.read,
            Mode::Write => &mut self.write,
            Mode::Add => &mut self.add,
        };
        *users |= 1 << cpu;
        self
    }

    fn conflict(self, mode: Mode, cpu: usize) -> bool {
        let users = match mode {
            Mode::Read => self.write | self.add,
            Mode::Write => self.read | self.write | self.add,
            Mode::Add => self.read | self.write,
        };
        users & !(1 << cpu) != 0
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
struct Cpu {
    /// Number of the call within its program.
    call: u8,
    /// The call has made its first access that others can see.
    begun: bool,
    /// Others have changed something since it began or waited last.
    stirred: bool,
    /// Calls that had ended when it began.
    before: u16,
    node: u32,
    /// Calls made, by number.
    log: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct State {
    memory: u32,
    machine: u32,
    cpus: [Cpu; CPUS],
}

/// Something that must not be, and how it came about.
#[derive(Debug)]
pub struct Violation(pub String);

enum Stop {
    Wrong(String),
}

/// Steps of one CPU in one move, for the report.
type Moved = Vec<(usize, Step, u64)>;

/// Explores cases of one world.
pub struct Explorer {
    world: World,
    space: Shared,
    boot: (u32, u32),
    nodes: Vec<Node>,
    children: FxHashMap<(u32, u64), u32>,
    roots: FxHashMap<(Call, bool), u32>,
    answers: Numbered<Answer>,
    logs: Numbered<Vec<(u32, u16)>>,
    objects: FxHashMap<Object, u32>,
    /// Number of users by object.
    users: Vec<Users>,
    known: Vec<Users>,
    objects_of: FxHashMap<u32, Rc<[(u32, Mode)]>>,
    /// What is wrong with a memory and a machine when no CPU is in EL2.
    rests: FxHashMap<(u32, u32), Option<String>>,
    /// By step: CPUs for which it is known whether it is a point, and those for which it is.
    points: Vec<(u8, u8)>,
    /// Each act of the machine is a point of its own.
    pub fine: bool,
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
            objects: FxHashMap::default(),
            users: Vec::new(),
            known: Vec::new(),
            objects_of: FxHashMap::default(),
            rests: FxHashMap::default(),
            points: Vec::new(),
            fine: false,
        }
    }

    /// Searches a case; what it saw, or the first interleaving that goes wrong.
    pub fn explore(&mut self, case: &Case) -> Result<Seen, Violation> {
        self.explore_for(case, &|_| true)
    }

    /// As [`Explorer::explore`]; what the calls came to must also be `wanted`, in every interleaving.
    pub fn explore_for(&mut self, case: &Case, wanted: Wanted) -> Result<Seen, Violation> {
        let (start, model) = self.prepare(case)?;
        self.users.iter_mut().for_each(|users| *users = Users::default());
        self.guess(case, start);
        loop {
            self.known.clone_from(&self.users);
            self.points.clear();
            let result = Search::new(self, case, &model, wanted).run(start);
            // Before all that conflicts is known, a call may seem to have begun later than it did.
            if !self.has_new_conflicts() {
                return result;
            }
        }
    }

    /// Makes the calls beforehand.
    fn prepare(&mut self, case: &Case) -> Result<((u32, u32), Model), Violation> {
        let mut model = self.world.reference();
        let mut at = self.boot;
        let mortal = is_mortal(case);
        for &call in &case.first {
            let alone = Case { first: vec![], programs: vec![vec![call]] };
            let (end, answer) = self.alone(&alone, at, mortal, 0, call).map_err(Violation)?;
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
        cpu: usize,
        call: Call,
    ) -> Result<((u32, u32), Answer), String> {
        let node = self.root(call, mortal, (memory, machine), cpu);
        let mut state = State { memory, machine, cpus: [Cpu::default(); CPUS] };
        state.cpus[cpu].node = node;
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
        let mortal = is_mortal(case);
        for (cpu, program) in case.programs.iter().enumerate() {
            let mut at = start;
            for &call in program {
                match self.alone(case, at, mortal, cpu, call) {
                    Ok((next, _)) => at = next,
                    Err(_) => break,
                }
            }
        }
    }

    fn has_new_conflicts(&self) -> bool {
        self.users.iter().enumerate().any(|(object, now)| {
            let before = self.known.get(object).copied().unwrap_or_default();
            [Mode::Read, Mode::Write, Mode::Add].into_iter().any(|mode| {
                (0..CPUS).any(|cpu| {
                    let uses = now.with(mode, cpu) == *now;
                    uses && now.conflict(mode, cpu) && !before.conflict(mode, cpu)
                })
            })
        })
    }

    fn step(&self, node: u32) -> Step {
        *self.space.borrow().steps.at(self.nodes[node as usize].step)
    }

    /// First node of a call.
    fn root(&mut self, call: Call, mortal: bool, at: (u32, u32), cpu: usize) -> u32 {
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
    fn micro(
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
        self.note(step, effect, cpu);
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

    fn object(&mut self, object: Object) -> u32 {
        let number = self.objects.len() as u32;
        let number = *self.objects.entry(object).or_insert(number);
        self.users.resize(self.objects.len(), Users::default());
        number
    }

    /// Objects of a step, with the mode of those that does not depend on its outcome.
    fn objects_of(&mut self, number: u32) -> Rc<[(u32, Mode)]> {
        if let Some(objects) = self.objects_of.get(&number) {
            return objects.clone();
        }
        let step = *self.space.borrow().steps.at(number);
        let mut objects: Vec<(Object, Mode)> = match step {
            Step::Atomic(place, Access::Load) => vec![(Object::Place(place), Mode::Read)],
            Step::Atomic(place, _) | Step::Lock(place) | Step::Unlock(place, _) => {
                vec![(Object::Place(place), Mode::Write)]
            }
            Step::Read(table, index) => {
                vec![(Object::Entry(table, index), Mode::Read), (Object::Frame(table.frame()), Mode::Read)]
            }
            Step::Act(Act::Write(table, index, _)) => {
                vec![(Object::Entry(table, index), Mode::Write), (Object::Frame(table.frame()), Mode::Read)]
            }
            Step::Act(Act::Zero(frame) | Act::Scrub(frame) | Act::Clean(frame) | Act::Icache(frame)) => {
                vec![(Object::Frame(frame), Mode::Write)]
            }
            Step::Act(Act::HostStore(frame)) => {
                let frames = self.world.scraps().chain([frame]);
                frames.map(|frame| (Object::Frame(frame), Mode::Write)).collect()
            }
            _ => vec![],
        };
        // A store of the host goes through or not by what the TLBs hold, which a write to the host's tables adds to and
        // a DSB takes from. Two such acts of different CPUs commute in what they permit.
        match step {
            Step::Act(Act::HostStore(_)) => objects.push((Object::Tlb, Mode::Read)),
            Step::Act(_) if self.fine => objects.push((Object::Tlb, Mode::Write)),
            Step::Act(Act::Write(table, ..)) if World::is_host_table(table) => {
                objects.push((Object::Tlb, Mode::Add));
            }
            Step::Act(Act::DsbIsh | Act::Icache(_) | Act::IcacheAll) => {
                objects.push((Object::Tlb, Mode::Add))
            }
            _ => {}
        }
        let objects: Rc<[_]> =
            objects.into_iter().map(|(object, mode)| (self.object(object), mode)).collect();
        self.objects_of.insert(number, objects.clone());
        objects
    }

    /// Notes which CPU uses what.
    fn note(&mut self, number: u32, effect: Effect, cpu: usize) {
        let failed = match *self.space.borrow().steps.at(number) {
            Step::Atomic(_, Access::CompareExchange { from, .. }) => effect.value != from,
            _ => false,
        };
        for &(object, mode) in &*self.objects_of(number) {
            let mode = if failed { Mode::Read } else { mode };
            let users = &mut self.users[object as usize];
            *users = users.with(mode, cpu);
        }
    }

    /// True if CPUs may switch before this step.
    fn is_point(&mut self, number: u32, cpu: usize) -> bool {
        if let Some((known, point)) = self.points.get(number as usize)
            && known >> cpu & 1 == 1
        {
            return point >> cpu & 1 == 1;
        }
        let pause = *self.space.borrow().steps.at(number) == Step::Pause;
        let objects = self.objects_of(number);
        let conflicts = |&(object, mode): &(u32, Mode)| {
            self.known.get(object as usize).is_some_and(|users| users.conflict(mode, cpu))
        };
        let point = pause || objects.iter().any(conflicts);
        if self.points.len() <= number as usize {
            self.points.resize(number as usize + 1, (0, 0));
        }
        let (known, points) = &mut self.points[number as usize];
        *known |= 1 << cpu;
        *points |= u8::from(point) << cpu;
        point
    }

    /// What is wrong with a memory and a machine when no CPU is in EL2.
    fn judge_rest(&mut self, memory: u32, machine: u32) -> Option<String> {
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

fn is_mortal(case: &Case) -> bool {
    case.first.iter().chain(case.programs.iter().flatten()).any(|call| *call == Call::Destroy)
}

/// The calls and the words of the pages that they are about.
fn describe(what: &str, made: &[Made], words: &[u64]) -> String {
    let mut text = String::from(what);
    for made in made {
        let _ = write!(text, "\n{made:?}");
    }
    for &word in words {
        let _ = write!(text, "\n{:?}", Word::from_raw(word));
    }
    text
}

/// One search through one case.
struct Search<'a> {
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
    ways: f64,
}

impl<'a> Search<'a> {
    fn new(explorer: &'a mut Explorer, case: &'a Case, model: &'a Model, wanted: Wanted<'a>) -> Self {
        let mut offsets = [0; CPUS];
        let mut calls = 0;
        for (cpu, program) in case.programs.iter().enumerate() {
            offsets[cpu] = calls;
            calls += program.len() as u8;
        }
        Self {
            explorer,
            case,
            model,
            wanted,
            mortal: is_mortal(case),
            offsets,
            done: FxHashMap::default(),
            ledgers: Numbered::new(),
            ends: FxHashMap::default(),
            steps: 0,
        }
    }

    fn run(mut self, (memory, machine): (u32, u32)) -> Result<Seen, Violation> {
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
        let mut path = vec![Frame { state, next: 0, ways: 0.0 }];
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
                frame.next += 1;
                let mut state = frame.state;
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
                        path.push(Frame { state, next: 0, ways: 0.0 });
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
            let point = self.explorer.is_point(number, cpu) && !self.does_nothing(state, cpu, number, step);
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
                made.push(Made { call, answer: *self.explorer.answers.at(answer), before });
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
                if matches!(step, Step::Read(..)) && !self.explorer.is_point(number, cpu) {
                    continue;
                }
                let _ = write!(out, "\n  CPU {cpu}: {step:x?} -> {value:#x}");
            }
        }
        Violation(out)
    }
}
