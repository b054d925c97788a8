//! Everything that the CPUs share, as numbered values: memories, machines, and what a step makes of them.
//!
//! Each memory, each machine and each step is stored once and known by its number, and what a step does to one is
//! computed once: the adversarial machine runs a few thousand times for millions of interleavings.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::rc::Rc;

use rustc_hash::FxHashMap;
use tenure_mm::fake::{FakeMachine, Snapshot, on_cpu};
use tenure_mm::sync::watched::{Access, Guarded, Place};
use tenure_mm::{Ipa, Machine, Pa, Pfn, Vmid};

use super::books::Ledger;
use super::fault::Fault;
use super::tape::Glimpse;

/// What a lock holds while it is taken.
pub const TAKEN: u64 = u64::MAX;

/// One access of a CPU to what others see too.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// An atomic, by the number of its place.
    Atomic(u16, Access),
    /// A lock is taken: its value is the number of what it guards.
    Lock(u16),
    /// A lock is given back with this value.
    Unlock(u16, u64),
    /// An entry of a table is read.
    Read(Pa, usize),
    /// Something is asked of the machine.
    Act(Act),
    /// The CPU waits until another has changed something.
    Pause,
    /// The call ends, with the answer of this number.
    Done(u32),
}

/// What is asked of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Act {
    Write(Pa, usize, u64),
    Zero(Pfn),
    Scrub(Pfn),
    Clean(Pfn),
    IcacheAll,
    DsbIshst,
    DsbIsh,
    Select(Vmid),
    TlbiIpa(Ipa),
    TlbiRange(Ipa, u64),
    TlbiStage1,
    TlbiAll,
    /// No CPU walks the tables of this VMID any more.
    Detach(Vmid),
    /// The host's store to a frame, if anything lets it through: 1 if so.
    HostStore(Pfn),
    /// The guest's store, if anything lets it through.
    GuestStore(Vmid, Ipa),
}

/// Values by number.
pub struct Numbered<T> {
    values: Vec<Rc<T>>,
    numbers: FxHashMap<Rc<T>, u32>,
}

impl<T: Hash + Eq> Numbered<T> {
    pub fn new() -> Self {
        Self { values: Vec::new(), numbers: FxHashMap::default() }
    }

    pub fn number(&mut self, value: T) -> u32 {
        if let Some(&number) = self.numbers.get(&value) {
            return number;
        }
        let (number, value) = (self.values.len() as u32, Rc::new(value));
        self.values.push(value.clone());
        self.numbers.insert(value, number);
        number
    }

    pub fn get(&self, number: u32) -> Rc<T> {
        self.values[number as usize].clone()
    }

    pub fn at(&self, number: u32) -> &T {
        &self.values[number as usize]
    }

    pub fn len(&self) -> usize {
        self.values.len()
    }
}

/// What a step led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Effect {
    pub memory: u32,
    pub machine: u32,
    /// What the CPU is told.
    pub value: u64,
    /// Number of what was found wrong.
    pub wrong: Option<u32>,
}

/// Memories, machines, steps.
pub struct Space {
    places: FxHashMap<Place, u16>,
    named: Vec<Place>,
    /// Value of each place when it was first seen.
    initial: Vec<u64>,
    guarded: Vec<Box<dyn Guarded>>,
    pub memories: Numbered<Vec<u64>>,
    pub machines: Numbered<Snapshot>,
    pub steps: Numbered<Step>,
    pub wrongs: Numbered<String>,
    ledgers: Numbered<Ledger>,
    ledger_of: FxHashMap<u32, u32>,
    moves: FxHashMap<(u32, u32), (u32, u64)>,
    acts: FxHashMap<(u32, u32, u32, u8), Effect>,
    looks: FxHashMap<(u32, u32), (u32, Option<u32>)>,
    fake: FakeMachine,
    pub fault: Fault,
    /// How the books are read out of a memory.
    read: Rc<ReadLedger>,
}

/// Reads the books out of a memory, with the code that reads them at any other time.
pub type ReadLedger = dyn Fn(Rc<Glimpse>) -> Ledger;

impl Space {
    pub fn new(base: Pfn, frames: u64, fault: Fault, read: Rc<ReadLedger>) -> Self {
        let mut space = Self {
            places: FxHashMap::default(),
            named: Vec::new(),
            initial: Vec::new(),
            guarded: Vec::new(),
            memories: Numbered::new(),
            machines: Numbered::new(),
            steps: Numbered::new(),
            wrongs: Numbered::new(),
            ledgers: Numbered::new(),
            ledger_of: FxHashMap::default(),
            moves: FxHashMap::default(),
            acts: FxHashMap::default(),
            looks: FxHashMap::default(),
            fake: FakeMachine::new(base, frames),
            fault,
            read,
        };
        space.memories.number(Vec::new());
        space
    }

    /// The memory in which every place has its first value.
    pub const FIRST: u32 = 0;

    /// Number of a place; `initial` is its value if it is new.
    pub fn place(&mut self, place: Place, initial: impl FnOnce(&mut Self) -> u64) -> u16 {
        if let Some(&number) = self.places.get(&place) {
            return number;
        }
        let value = initial(self);
        let number = self.initial.len() as u16;
        self.initial.push(value);
        self.named.push(place);
        self.places.insert(place, number);
        number
    }

    /// Number of what a lock guards.
    pub fn guarded(&mut self, value: &dyn Guarded) -> u64 {
        let known = self.guarded.iter().position(|known| known.same(value));
        known.unwrap_or_else(|| {
            self.guarded.push(value.copy());
            self.guarded.len() - 1
        }) as u64
    }

    /// What a lock guards, by number.
    pub fn guarded_value(&self, number: u64) -> Box<dyn Guarded> {
        self.guarded[number as usize].copy()
    }

    /// Value of a place.
    pub fn value(&self, memory: u32, place: u16) -> u64 {
        let memory = &self.memories.values[memory as usize];
        memory.get(usize::from(place)).copied().unwrap_or(self.initial[usize::from(place)])
    }

    fn with_value(&mut self, memory: u32, place: u16, value: u64) -> u32 {
        let mut values = Vec::clone(&self.memories.values[memory as usize]);
        let known = values.len();
        values.extend_from_slice(&self.initial[known..]);
        values[usize::from(place)] = value;
        self.memories.number(values)
    }

    /// Entry of a table.
    pub fn entry(&self, machine: u32, table: Pa, index: usize) -> u64 {
        self.machines.values[machine as usize].entry(table, index)
    }

    /// True if the CPU cannot make this step now.
    pub fn is_blocked(&self, memory: u32, step: u32) -> bool {
        match *self.steps.at(step) {
            Step::Lock(place) => !self.fault.ignores_locks() && self.value(memory, place) == TAKEN,
            _ => false,
        }
    }

    /// Makes a step that is not blocked.
    pub fn make(&mut self, memory: u32, machine: u32, cpu: u8, number: u32) -> Effect {
        let step = *self.steps.at(number);
        match step {
            Step::Pause | Step::Done(_) => Effect { memory, machine, value: 0, wrong: None },
            Step::Read(table, index) => {
                let value = self.entry(machine, table, index);
                Effect { memory, machine, value, wrong: None }
            }
            Step::Act(act) => self.act(memory, machine, cpu, number, act),
            Step::Atomic(..) | Step::Lock(_) | Step::Unlock(..) => {
                let (next, value) = match self.moves.get(&(memory, number)) {
                    Some(&done) => done,
                    None => {
                        let done = self.change(memory, step);
                        self.moves.insert((memory, number), done);
                        done
                    }
                };
                let (machine, wrong) = self.look(memory, next, machine);
                Effect { memory: next, machine, value, wrong }
            }
        }
    }

    fn change(&mut self, memory: u32, step: Step) -> (u32, u64) {
        let (place, next, value) = match step {
            Step::Atomic(place, access) => {
                let found = self.value(memory, place);
                let mask = u64::MAX >> (64 - self.named[usize::from(place)].bits);
                let next = match access {
                    Access::Load => found,
                    Access::Store(value) => value,
                    Access::Add(value) => found.wrapping_add(value) & mask,
                    Access::Sub(value) => found.wrapping_sub(value) & mask,
                    Access::And(value) => found & value,
                    Access::Or(value) => found | value,
                    Access::Xor(value) => found ^ value,
                    Access::CompareExchange { from, to } if found == from => to,
                    Access::CompareExchange { .. } => found,
                };
                let (next, found) = self.fault.atomic(access, found, next);
                (place, next, found)
            }
            Step::Lock(place) => match self.value(memory, place) {
                // Only with locks ignored: what it guarded last.
                TAKEN => (place, TAKEN, self.initial[usize::from(place)]),
                value => (place, TAKEN, value),
            },
            Step::Unlock(place, value) => (place, value, 0),
            _ => return (memory, 0),
        };
        if self.value(memory, place) == next {
            return (memory, value);
        }
        (self.with_value(memory, place, next), value)
    }

    /// Number of what the books say in a memory.
    fn ledger(&mut self, memory: u32) -> u32 {
        if let Some(&ledger) = self.ledger_of.get(&memory) {
            return ledger;
        }
        let ledger = (self.read)(self.glimpse(memory, None));
        let number = self.ledgers.number(ledger);
        self.ledger_of.insert(memory, number);
        number
    }

    /// The books of a memory.
    pub fn books(&mut self, memory: u32) -> Rc<Ledger> {
        let number = self.ledger(memory);
        self.ledgers.get(number)
    }

    /// Holds the machine against the books after a word has changed.
    fn look(&mut self, before: u32, memory: u32, machine: u32) -> (u32, Option<u32>) {
        if before == memory {
            return (machine, None);
        }
        let (old, ledger) = (self.ledger(before), self.ledger(memory));
        if old == ledger {
            return (machine, None);
        }
        if let Some(&known) = self.looks.get(&(machine, ledger)) {
            return known;
        }
        let snapshot = self.machines.get(machine);
        self.fake.restore(&snapshot);
        self.fake.look(&*self.ledgers.get(ledger));
        let outcome = self.outcome();
        self.looks.insert((machine, ledger), outcome);
        outcome
    }

    /// Number of what the machine has become, and of what it complains of.
    fn outcome(&mut self) -> (u32, Option<u32>) {
        let found = self.fake.take_violations();
        let wrong = (!found.is_empty()).then(|| self.wrongs.number(found.join("\n")));
        (self.machines.number(self.fake.snapshot()), wrong)
    }

    fn act(&mut self, memory: u32, machine: u32, cpu: u8, number: u32, act: Act) -> Effect {
        let ledger = self.ledger(memory);
        match self.acts.entry((machine, ledger, number, cpu)) {
            Entry::Occupied(known) => return Effect { memory, ..*known.get() },
            Entry::Vacant(_) => {}
        }
        self.fake.restore(&self.machines.get(machine));
        let books = self.ledgers.get(ledger);
        self.fake.watch(std::sync::Arc::new(Ledger::clone(&books)));
        let (drops, act) = (self.fault.drops(&act), self.fault.act(act));
        let value = if drops { 0 } else { on_cpu(usize::from(cpu), || perform(&self.fake, act)) };
        self.fake.unwatch();
        let (after, wrong) = self.outcome();
        let effect = Effect { memory, machine: after, value, wrong };
        self.acts.insert((machine, ledger, number, cpu), effect);
        effect
    }

    /// The memory and the machine as the code may look at them, without changing them.
    pub fn glimpse(&self, memory: u32, machine: Option<u32>) -> Rc<Glimpse> {
        let mut values = FxHashMap::default();
        let mut guarded = FxHashMap::default();
        for (place, &named) in (0..).zip(&self.named) {
            let value = self.value(memory, place);
            if named.bits > 0 {
                values.insert(named, value);
            } else if value != TAKEN {
                guarded.insert(named, self.guarded_value(value));
            }
        }
        Rc::new(Glimpse { values, guarded, machine: machine.map(|machine| self.machines.get(machine)) })
    }

    /// Takes `fake` as the first machine.
    pub fn first_machine(&mut self, fake: &FakeMachine) -> u32 {
        self.machines.number(fake.snapshot())
    }

    /// Everything that must hold when no CPU is in EL2.
    pub fn rest(&mut self, memory: u32, machine: u32) -> Vec<String> {
        let books = self.books(memory);
        self.fake.restore(&self.machines.get(machine));
        self.fake.check(&*books).err().unwrap_or_default()
    }
}

pub fn perform(fake: &FakeMachine, act: Act) -> u64 {
    match act {
        Act::Write(table, index, value) => fake.write(table, index, value),
        Act::Zero(frame) => fake.zero(frame),
        Act::Scrub(frame) => fake.scrub(frame),
        Act::Clean(frame) => fake.clean_to_poc(frame),
        Act::IcacheAll => fake.drop_instructions(),
        Act::DsbIshst => fake.dsb_ishst(),
        Act::DsbIsh => fake.dsb_ish(),
        Act::Select(vmid) => return u64::from(fake.select_vmid(vmid).0),
        Act::TlbiIpa(ipa) => fake.tlbi_ipas2e1is(ipa),
        Act::TlbiRange(first, pages) => fake.tlbi_ripas2e1is(first, pages),
        Act::TlbiStage1 => fake.tlbi_vmalle1is(),
        Act::TlbiAll => fake.tlbi_vmalls12e1is(),
        Act::Detach(vmid) => fake.detach(vmid),
        Act::GuestStore(vmid, ipa) => return u64::from(fake.write_at(vmid, ipa, 3, 0xc0de)),
        Act::HostStore(frame) => return u64::from(fake.host_write_data(frame, 7, 0x5ec)),
    }
    0
}

/// The space, shared by a search and the runs of the real code.
pub type Shared = Rc<RefCell<Space>>;
