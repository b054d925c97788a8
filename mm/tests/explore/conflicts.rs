//! Which accesses conflict: found by searching until nothing new turns up.

use std::rc::Rc;

use rustc_hash::FxHashMap;
use tenure_mm::sync::watched::Access;
use tenure_mm::{Pa, Pfn};

use super::calls::World;
use super::case::CPUS;
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

/// Who uses what in one case.
pub struct Conflicts {
    world: World,
    objects: FxHashMap<Object, u32>,
    /// Users of each object, by its number: as seen in this search, and as known before it.
    users: Vec<Users>,
    known: Vec<Users>,
    objects_of: FxHashMap<u32, Rc<[(u32, Mode)]>>,
    /// By step: CPUs for which it is known whether it is a point, and those for which it is.
    points: Vec<(u8, u8)>,
    /// Each act of the machine is a point of its own.
    pub fine: bool,
}

impl Conflicts {
    pub fn new(world: World) -> Self {
        Self {
            world,
            objects: FxHashMap::default(),
            users: Vec::new(),
            known: Vec::new(),
            objects_of: FxHashMap::default(),
            points: Vec::new(),
            fine: false,
        }
    }

    /// Another case begins.
    pub fn forget(&mut self) {
        self.users.iter_mut().for_each(|users| *users = Users::default());
    }

    /// Another search begins, which knows what has been seen so far.
    pub fn learn(&mut self) {
        self.known.clone_from(&self.users);
        self.points.clear();
    }

    /// True if something has turned up that the search did not know.
    pub fn has_new(&self) -> bool {
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

    /// Notes which CPU uses what. `value` is what the step returned.
    pub fn note(&mut self, number: u32, step: Step, value: u64, cpu: usize) {
        let failed = matches!(step, Step::Atomic(_, Access::CompareExchange { from, .. }) if value != from);
        for &(object, mode) in &*self.objects_of(number, step) {
            let mode = if failed { Mode::Read } else { mode };
            let users = &mut self.users[object as usize];
            *users = users.with(mode, cpu);
        }
    }

    /// True if CPUs may switch before this step.
    pub fn is_point(&mut self, number: u32, step: Step, cpu: usize) -> bool {
        if let Some((known, point)) = self.points.get(number as usize)
            && known >> cpu & 1 == 1
        {
            return point >> cpu & 1 == 1;
        }
        let objects = self.objects_of(number, step);
        let conflicts = |&(object, mode): &(u32, Mode)| {
            self.known.get(object as usize).is_some_and(|users| users.conflict(mode, cpu))
        };
        let point = step == Step::Pause || objects.iter().any(conflicts);
        if self.points.len() <= number as usize {
            self.points.resize(number as usize + 1, (0, 0));
        }
        let (known, points) = &mut self.points[number as usize];
        *known |= 1 << cpu;
        *points |= u8::from(point) << cpu;
        point
    }
}
