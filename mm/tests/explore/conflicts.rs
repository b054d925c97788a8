//! Which accesses conflict: found by searching until nothing new turns up.
//!
//! Kept by call, not by CPU: before an access others need a turn only if a call that they have *not ended* makes one
//! that conflicts with it. If none does, whatever they may still do commutes with the access, so that nothing is lost
//! by making it at once (it is a persistent set of its own; and since histories only grow, nobody is put off for ever).

use std::rc::Rc;

use rustc_hash::FxHashMap;
use tenure_mm::sync::watched::Access;
use tenure_mm::{Pa, Pfn};

use super::calls::World;
use super::space::{Act, Step};

/// What an access is made to.
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

/// A set of calls, by number within the case.
pub type Calls = u16;

/// Calls that make accesses of each mode to an object.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Users {
    read: Calls,
    write: Calls,
    add: Calls,
}

impl Users {
    fn of(&mut self, mode: Mode) -> &mut Calls {
        match mode {
            Mode::Read => &mut self.read,
            Mode::Write => &mut self.write,
            Mode::Add => &mut self.add,
        }
    }

    /// Calls that an access conflicts with.
    fn against(self, mode: Mode) -> Calls {
        match mode {
            Mode::Read => self.write | self.add,
            Mode::Write => self.read | self.write | self.add,
            Mode::Add => self.read | self.write,
        }
    }
}

/// Who uses what in one case.
pub struct Conflicts {
    world: World,
    objects: FxHashMap<Object, u32>,
    /// Users of each object, by its number: as seen in this search, and as known before it.
    users: Vec<Users>,
    known: Vec<Users>,
    objects_of: FxHashMap<u32, Rc<[(u32, Mode)]>>,
    /// By step: calls that it conflicts with, once that was asked.
    against: Vec<Option<Calls>>,
    /// Each act of the machine is a point of its own.
    pub fine: bool,
    /// While a lock is taken nobody else gets at it.
    locks_hold: bool,
}

impl Conflicts {
    pub fn new(world: World, locks_hold: bool) -> Self {
        Self {
            world,
            objects: FxHashMap::default(),
            users: Vec::new(),
            known: Vec::new(),
            objects_of: FxHashMap::default(),
            against: Vec::new(),
            fine: false,
            locks_hold,
        }
    }

    /// Another case begins.
    pub fn forget(&mut self) {
        self.users.iter_mut().for_each(|users| *users = Users::default());
    }

    /// Another search begins, which knows what has been seen so far.
    pub fn learn(&mut self) {
        self.known.clone_from(&self.users);
        self.against.clear();
    }

    /// True if something has turned up that the search did not know. `others` of a call are those of the other CPUs.
    pub fn has_new(&self, others: &[Calls]) -> bool {
        self.users.iter().enumerate().any(|(object, &now)| {
            let before = self.known.get(object).copied().unwrap_or_default();
            [Mode::Read, Mode::Write, Mode::Add].into_iter().any(|mode| {
                let new = now.against(mode) & !before.against(mode);
                let makers = *{ now }.of(mode);
                others.iter().enumerate().any(|(call, others)| makers >> call & 1 == 1 && new & others != 0)
            })
        })
    }

    fn object(&mut self, object: Object) -> u32 {
        let number = self.objects.len() as u32;
        let number = *self.objects.entry(object).or_insert(number);
        self.users.resize(self.objects.len(), Users::default());
        number
    }

    /// Objects of a step, with the mode of those that does not depend on its outcome.
    fn objects_of(&mut self, number: u32, step: Step) -> Rc<[(u32, Mode)]> {
        if let Some(objects) = self.objects_of.get(&number) {
            return objects.clone();
        }
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
            Step::Act(Act::Zero(frame) | Act::Scrub(frame) | Act::Clean(frame)) => {
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
            Step::Act(Act::DsbIsh | Act::IcacheAll) => objects.push((Object::Tlb, Mode::Add)),
            _ => {}
        }
        let objects: Rc<[_]> =
            objects.into_iter().map(|(object, mode)| (self.object(object), mode)).collect();
        self.objects_of.insert(number, objects.clone());
        objects
    }

    /// Notes what a call uses. `value` is what the step returned.
    pub fn note(&mut self, number: u32, step: Step, value: u64, call: u8) {
        let failed = matches!(step, Step::Atomic(_, Access::CompareExchange { from, .. }) if value != from);
        for &(object, mode) in &*self.objects_of(number, step) {
            let mode = if failed { Mode::Read } else { mode };
            *self.users[object as usize].of(mode) |= 1 << call;
        }
    }

    /// True if CPUs may switch before this step, with these calls of others still to end.
    pub fn is_point(&mut self, number: u32, step: Step, others: Calls) -> bool {
        if step == Step::Pause {
            return true;
        }
        if let Some(&Some(against)) = self.against.get(number as usize) {
            return against & others != 0;
        }
        let mut against = 0;
        // Nobody gets at a lock that is taken, so that nothing others can do before it is given back conflicts with that.
        if !(self.locks_hold && matches!(step, Step::Unlock(..))) {
            for &(object, mode) in &*self.objects_of(number, step) {
                against |= self.known.get(object as usize).map_or(0, |users| users.against(mode));
            }
        }
        if self.against.len() <= number as usize {
            self.against.resize(number as usize + 1, None);
        }
        self.against[number as usize] = Some(against);
        against & others != 0
    }
}
