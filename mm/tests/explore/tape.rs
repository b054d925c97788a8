//! The real code, run one CPU at a time: what it does next, given what it was told so far.
//!
//! A call is a function of the values that its accesses return. [`Tape`] feeds it those of one history; at the end of
//! the history the call goes on alone on the memory and machine that it is given, and what it does is written down,
//! until it ends or would have to wait. No call is ever suspended: it is run again from its start.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use rustc_hash::FxHashMap;
use tenure_mm::fake::{FakeMachine, Snapshot};
use tenure_mm::sync::watched::{Access, Guarded, Observer, Place, observe};
use tenure_mm::{Ipa, Machine, Pa, Pfn, Vmid};

use super::space::{Act, Shared, Step};

/// What the machine of a run is.
pub trait Bus {
    fn read(&self, table: Pa, index: usize) -> u64;
    fn act(&self, act: Act) -> u64;
    fn pause(&self) {}
}

thread_local! {
    static BUS: RefCell<Option<Rc<dyn Bus>>> = const { RefCell::new(None) };
}

fn bus() -> Option<Rc<dyn Bus>> {
    BUS.with_borrow(Clone::clone)
}

/// Runs `body` with its accesses to memory and machine led to `to`.
pub fn lead<R, T: Observer + Bus + 'static>(to: &Rc<T>, body: impl FnOnce() -> R) -> R {
    struct Former(Option<Rc<dyn Bus>>);
    impl Drop for Former {
        fn drop(&mut self) {
            BUS.set(self.0.take());
        }
    }
    let _former = Former(BUS.replace(Some(to.clone())));
    observe(to.clone(), body)
}

/// A CPU of a program has nothing to do until another has changed something.
pub fn pause() {
    if let Some(bus) = bus() {
        bus.pause();
    }
}

/// Asks the machine of this run for what no call of the manager asks for.
pub fn act(fake: &FakeMachine, act: Act) -> u64 {
    bus().map_or_else(|| super::space::perform(fake, act), |bus| bus.act(act))
}

/// The manager's machine: the adversarial one, or what a run puts in its place.
pub struct Led(pub FakeMachine);

impl Machine for Led {
    fn read(&self, table: Pa, index: usize) -> u64 {
        bus().map_or_else(|| self.0.read(table, index), |bus| bus.read(table, index))
    }
    fn write(&self, table: Pa, index: usize, descriptor: u64) {
        act(&self.0, Act::Write(table, index, descriptor));
    }
    fn zero(&self, frame: Pfn) {
        act(&self.0, Act::Zero(frame));
    }
    fn scrub(&self, frame: Pfn) {
        act(&self.0, Act::Scrub(frame));
    }
    fn clean_to_poc(&self, frame: Pfn) {
        act(&self.0, Act::Clean(frame));
    }
    fn drop_instructions(&self) {
        act(&self.0, Act::IcacheAll);
    }
    fn read_words(&self, frame: Pfn, first: usize) -> [u64; 32] {
        self.0.read_words(frame, first)
    }
    fn dsb_ishst(&self) {
        act(&self.0, Act::DsbIshst);
    }
    fn dsb_ish(&self) {
        act(&self.0, Act::DsbIsh);
    }
    fn isb(&self) {}
    fn select_vmid(&self, vmid: Vmid) -> Vmid {
        Vmid(act(&self.0, Act::Select(vmid)) as u16)
    }
    fn tlbi_ipas2e1is(&self, ipa: Ipa) {
        act(&self.0, Act::TlbiIpa(ipa));
    }
    fn has_range_tlbi(&self) -> bool {
        self.0.has_range_tlbi()
    }
    fn tlbi_ripas2e1is(&self, first: Ipa, pages: u64) {
        act(&self.0, Act::TlbiRange(first, pages));
    }
    fn tlbi_vmalle1is(&self) {
        act(&self.0, Act::TlbiStage1);
    }
    fn tlbi_vmalls12e1is(&self) {
        act(&self.0, Act::TlbiAll);
    }
    fn attention(&self) -> bool {
        false
    }
}

/// A memory and a machine that are only looked at.
pub struct Glimpse {
    pub values: FxHashMap<Place, u64>,
    pub guarded: FxHashMap<Place, Box<dyn Guarded>>,
    pub machine: Option<Rc<Snapshot>>,
}

impl Observer for Glimpse {
    fn atomic(&self, place: Place, access: Access, real: &mut dyn FnMut(Access) -> u64) -> u64 {
        assert_eq!(access, Access::Load, "whoever looks changes nothing");
        self.values.get(&place).copied().unwrap_or_else(|| real(Access::Load))
    }
    fn lock(&self, place: Place, real: &mut dyn FnMut() -> Box<dyn Guarded>) -> Option<Box<dyn Guarded>> {
        Some(self.guarded.get(&place).map_or_else(real, |value| value.copy()))
    }
    fn unlock(&self, _: Place, _: &dyn Guarded) {}
    fn wait(&self, _: Place) {}
}

impl Bus for Glimpse {
    fn read(&self, table: Pa, index: usize) -> u64 {
        self.machine.as_ref().map_or(0, |machine| machine.entry(table, index))
    }
    fn act(&self, act: Act) -> u64 {
        panic!("whoever looks changes nothing: {act:?}")
    }
}

/// The end of a run that is not the end of its call.
struct Suspended;

/// Steps that one run adds at most; the rest is for when it is reached.
const AHEAD: usize = 4096;

/// A run of a call.
pub struct Tape {
    space: Shared,
    cpu: u8,
    /// What the call did before, and what it was told.
    past: Vec<(u32, u64)>,
    at: Cell<usize>,
    memory: Cell<u32>,
    machine: Cell<u32>,
    fresh: RefCell<Vec<(u32, u64)>>,
    /// For a mistake that is put in: the first value of each entry that was read.
    first_reads: RefCell<FxHashMap<(Pa, usize), u64>>,
}

/// What a run added to its past: steps and what they returned. The last has returned nothing yet.
pub struct Found {
    pub steps: Vec<(u32, u64)>,
}

impl Tape {
    /// Runs `call` through `past`, and on alone from `memory` and `machine`. `answer` numbers its answer.
    pub fn run(
        space: &Shared,
        cpu: u8,
        past: Vec<(u32, u64)>,
        (memory, machine): (u32, u32),
        call: impl FnOnce() -> u32,
    ) -> Found {
        let tape = Rc::new(Self {
            space: space.clone(),
            cpu,
            past,
            at: Cell::new(0),
            memory: Cell::new(memory),
            machine: Cell::new(machine),
            fresh: RefCell::default(),
            first_reads: RefCell::default(),
        });
        let outcome = catch_unwind(AssertUnwindSafe(|| lead(&tape, call)));
        match outcome {
            Ok(answer) => {
                let done = space.borrow_mut().steps.number(Step::Done(answer));
                tape.fresh.borrow_mut().push((done, 0));
            }
            Err(end) if end.is::<Suspended>() => {}
            Err(panic) => resume_unwind(panic),
        }
        assert!(tape.at.get() >= tape.past.len(), "a call is no function of what it was told");
        Found { steps: tape.fresh.take() }
    }

    fn step(&self, step: Step) -> u64 {
        if std::thread::panicking() {
            return 0; // the call is being taken apart
        }
        let at = self.at.get();
        self.at.set(at + 1);
        let mut space = self.space.borrow_mut();
        let number = space.steps.number(step);
        if let Some(&(before, value)) = self.past.get(at) {
            assert_eq!(before, number, "a call is no function of what it was told: {step:?}");
            return value;
        }
        let (memory, machine) = (self.memory.get(), self.machine.get());
        let mut fresh = self.fresh.borrow_mut();
        if step == Step::Pause || space.is_blocked(memory, number) || fresh.len() >= AHEAD {
            fresh.push((number, 0));
            drop((fresh, space));
            resume_unwind(Box::new(Suspended));
        }
        let effect = space.make(memory, machine, self.cpu, number);
        self.memory.set(effect.memory);
        self.machine.set(effect.machine);
        fresh.push((number, effect.value));
        effect.value
    }
}

impl Observer for Tape {
    fn atomic(&self, place: Place, access: Access, real: &mut dyn FnMut(Access) -> u64) -> u64 {
        if std::thread::panicking() {
            return 0;
        }
        let place = self.space.borrow_mut().place(place, |_| real(Access::Load));
        self.step(Step::Atomic(place, access))
    }

    fn lock(&self, place: Place, real: &mut dyn FnMut() -> Box<dyn Guarded>) -> Option<Box<dyn Guarded>> {
        let place = self.space.borrow_mut().place(place, |space| space.guarded(&*real()));
        let value = self.step(Step::Lock(place));
        Some(self.space.borrow().guarded_value(value))
    }

    fn unlock(&self, place: Place, value: &dyn Guarded) {
        if std::thread::panicking() {
            return;
        }
        let (place, value) = {
            let mut space = self.space.borrow_mut();
            (space.place(place, |_| 0), space.guarded(value))
        };
        self.step(Step::Unlock(place, value));
    }

    fn wait(&self, _: Place) {}
}

impl Bus for Tape {
    fn read(&self, table: Pa, index: usize) -> u64 {
        if self.space.borrow().fault.keeps_first_reads() {
            if let Some(&value) = self.first_reads.borrow().get(&(table, index)) {
                return value;
            }
            let value = self.step(Step::Read(table, index));
            self.first_reads.borrow_mut().insert((table, index), value);
            return value;
        }
        self.step(Step::Read(table, index))
    }

    fn act(&self, act: Act) -> u64 {
        self.step(Step::Act(act))
    }

    fn pause(&self) {
        self.step(Step::Pause);
    }
}
