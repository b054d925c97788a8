//! The whole manager on the adversarial machine, beside the reference model: every call goes to both, and after each
//! the answer, every word, the tables (audit), everything that any CPU can reach, and the contents are compared.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

pub mod blocks;
pub mod calls;
pub mod history;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tenure_abi::flags::status;
use tenure_abi::page::State;
use tenure_abi::{Reply, Status, reply};
use tenure_mm::fake::{Book, FakeMachine};
use tenure_mm::model::{Expect, Frame, Model, View};
use tenure_mm::stage2::host::{HostMap, Kind};
use tenure_mm::{Config, Frames, Mm, PageWord, Pfn, Region, Slot, Vm, VmHandle, Vmid, Word, audit};

/// First frame of RAM.
pub const BASE: u64 = 0x40000;
/// VM slots.
pub const SLOTS: u8 = 3;
/// Word of each page that tests write to.
pub const WORD: usize = 7;

/// How the machine is laid out.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Frames of the host.
    pub frames: u64,
    /// Pages of the host's pool beyond those that boot uses.
    pub spare: u64,
    /// The host's RAM starts at a 2 MiB boundary and is mapped in blocks where it can be.
    pub blocks: bool,
}

impl Default for Layout {
    fn default() -> Self {
        Self { frames: 48, spare: 4, blocks: false }
    }
}

/// The page words and VM slots, as the machine looks into them.
struct Books {
    words: &'static [PageWord],
    vms: &'static [Vm],
}

impl Book for Books {
    fn word(&self, pfn: Pfn) -> Option<u64> {
        let index = usize::try_from(pfn.0.checked_sub(BASE)?).ok()?;
        Some(self.words.get(index)?.load().raw())
    }

    fn slot_of(&self, vmid: Vmid) -> Option<u64> {
        let vm = self.vms.iter().find(|vm| vm.vmid() == vmid)?;
        vm.handle().map(|_| u64::from(vm.slot().0))
    }

    fn is_scrap(&self, pfn: Pfn) -> bool {
        self.vms.iter().any(|vm| vm.scrap() == Some(pfn))
    }
}

/// Everything.
pub struct World {
    pub mm: &'static Mm<'static, FakeMachine>,
    pub model: Model,
    /// Handles of the VMs, by the model's number.
    pub handles: BTreeMap<usize, VmHandle>,
    /// A handle whose VM is dead.
    pub stale: Option<VmHandle>,
    /// What word [`WORD`] of a page must hold, where it is known.
    pub data: BTreeMap<u64, u64>,
    books: Arc<Books>,
    attached: BTreeSet<Vmid>,
    first: u64,
    /// Pages that never are the host's.
    pub boot_pages: u64,
    /// Calls after which the counts are compared with walks of all tables; fuzzing does not do it after each.
    pub audit_every: u64,
    calls: u64,
}

impl World {
    /// A machine that has booted: all frames are the host's and mapped for it.
    pub fn new(layout: Layout) -> Self {
        // Two root pages, two tables of level 2, one of level 3 for each 2 MiB that is no block, panic mode's page, the
        // reserve.
        let total = layout.frames + if layout.blocks { 512 } else { 0 };
        let broken =
            if layout.blocks { 1 + u64::from(!total.is_multiple_of(512)) } else { total.div_ceil(512) };
        let boot = 2 + 1 + 1 + broken + 1 + 2 + layout.spare;
        let first = if layout.blocks { 512 } else { boot };
        let end = first + layout.frames;
        let word = |index: u64| match index {
            index if index < boot => Word::hyp(Slot::NONE),
            index if index < first => Word::FIRMWARE,
            _ => Word::HOST,
        };
        let words: &'static [PageWord] =
            Box::leak((0..end).map(|index| PageWord::new(word(index))).collect::<Box<[_]>>());
        let vms: &'static [Vm] = Box::leak((1..=SLOTS).map(|slot| Vm::new(Slot(slot))).collect::<Box<[_]>>());
        let regions: &'static [Region<'static>] = Box::leak(Box::new([Region { first: Pfn(BASE), words }]));
        let fake = FakeMachine::new(Pfn(BASE), end);
        let books = Arc::new(Books { words, vms });
        let root = Pfn(BASE);
        for page in 0..2 {
            tenure_mm::Machine::zero(&fake, root.offset(page));
        }
        fake.give_fwb();
        let config = Config { fwb: true };
        let mm: &'static Mm<'static, FakeMachine> =
            Box::leak(Box::new(Mm::new(fake, Frames::new(regions), HostMap::new(root.base()), vms, config)));
        (2..boot).for_each(|page| mm.boot_add_page(Pfn(BASE + page)));
        mm.boot_map(BASE..BASE + end, Kind::Ram).unwrap();
        mm.boot_map(BASE..BASE + boot, Kind::Hidden).unwrap();
        mm.boot_finish().unwrap();
        mm.machine().attach(Vmid::HOST, root, 2);
        mm.machine().watch(books.clone());

        let mut model = Model::new(BASE..BASE + end);
        model.take_for_hypervisor(BASE..BASE + boot);
        for pfn in BASE + boot..BASE + first {
            model.frames.get_mut(&pfn).unwrap().firmware = true;
        }
        let mut world = Self {
            mm,
            model,
            handles: BTreeMap::new(),
            stale: None,
            data: BTreeMap::new(),
            books,
            attached: BTreeSet::new(),
            first: BASE + first,
            boot_pages: boot,
            audit_every: 1,
            calls: 0,
        };
        world.verify("boot");
        world
    }

    /// A machine with VM 0: its pool filled, 16 private addresses from 0, frames 8 to 11 at 0 to 3, active.
    pub fn with_guest(flags: u64) -> Self {
        let mut world = Self::new(Layout::default());
        world.furnish(0, flags, 0);
        world
    }

    /// Makes VM `vm` of 12 frames from `first`: 8 for its pool, 4 donated at 0 to 3 of its 16 private addresses.
    pub fn furnish(&mut self, vm: usize, flags: u64, first: u64) {
        self.create(vm, flags);
        assert_eq!(self.topup(Some(vm), self.frame(first), 8), Some(Reply::done(8)));
        assert_eq!(self.set_status(vm, 0, 16, status::PRIVATE), Some(Reply::done(16)));
        assert_eq!(self.donate(vm, 0, self.frame(first + 8), 4, status::PRIVATE), Some(Reply::done(4)));
        assert_eq!(self.activate(vm), Some(Reply::done(0)));
    }

    pub fn fake(&self) -> &FakeMachine {
        self.mm.machine()
    }

    /// Frame `number` of the host's RAM.
    pub fn frame(&self, number: u64) -> Pfn {
        Pfn(self.first + number)
    }

    /// One past the last frame.
    pub fn end(&self) -> u64 {
        self.model.frames.keys().next_back().unwrap() + 1
    }

    pub fn word(&self, pfn: Pfn) -> Word {
        self.mm.query(pfn).unwrap()
    }

    pub fn state(&self, pfn: Pfn) -> State {
        self.word(pfn).state()
    }

    pub fn vm(&self, vm: usize) -> Option<tenure_mm::VmRef<'static>> {
        self.mm.vm(*self.handles.get(&vm)?).ok()
    }

    pub fn vmid(&self, vm: usize) -> Vmid {
        self.handles[&vm].slot().vmid()
    }

    fn slot_of(&self, vm: usize) -> u64 {
        self.handles.get(&vm).map_or(0, |handle| u64::from(handle.slot().0))
    }

    /// Compares an answer with the model's, and everything else with it; takes the model back where the call was
    /// short of table memory.
    pub fn settle(&mut self, what: &str, before: Model, expect: Expect, real: Reply) -> Reply {
        if real.status == Status::NoMemory {
            assert!(expect.tables, "{what}: NO_MEMORY from a call that needs no tables, expected {expect:?}");
            assert_ne!(real.mask & (reply::VM_POOL | reply::HOST_POOL), 0, "{what}: which pool? {real}");
            assert_eq!(real.done, 0, "{what}: {real}");
            self.model = before;
        } else {
            assert_eq!(real, expect.reply, "{what}: the manager answers {real}, the model {}", expect.reply);
            self.age_contents(&before);
        }
        self.verify(what);
        real
    }

    /// Frames that changed hands are zero.
    fn age_contents(&mut self, before: &Model) {
        for (pfn, now) in &self.model.frames {
            let was = before.frames[pfn].state;
            let moved = was != now.state;
            let parked = |frame: &Frame| frame.state == State::Quarantine && frame.owner.is_some();
            let from_guest = was == State::Private && now.state == State::Quarantine;
            if parked(now) {
                // It is scrubbed now, or later.
                self.data.remove(pfn);
            } else if parked(&before.frames[pfn]) && moved {
                self.data.insert(*pfn, 0);
            } else if moved && (now.state == State::Host || was == State::Host || from_guest) {
                if now.state == State::Hyp || now.state == State::Poison {
                    self.data.remove(pfn);
                } else {
                    self.data.insert(*pfn, 0);
                }
            } else if moved && now.state == State::Quarantine && now.cpu_pins + now.dma_pins == 0 {
                // Kept by a DMA leaf alone: scrubbed now or when that goes.
                self.data.remove(pfn);
            }
        }
    }

    /// Walkers of guests that have a root table by now.
    pub fn attach_guests(&mut self) {
        for vm in self.mm.vms() {
            if let Some(root) = vm.root()
                && vm.handle().is_some()
                && self.attached.insert(vm.vmid())
            {
                self.fake().attach(vm.vmid(), root.frame(), 1);
            }
        }
    }

    pub fn detach(&mut self, vm: usize) {
        let vmid = self.vmid(vm);
        if self.attached.remove(&vmid) {
            self.fake().detach(vmid);
        }
    }

    /// All that must hold between two calls.
    pub fn verify(&mut self, what: &str) {
        self.attach_guests();
        self.compare_words(what);
        self.calls += 1;
        if self.calls.is_multiple_of(self.audit_every) {
            let faults = audit::audit(self.mm);
            assert!(faults.is_empty(), "{what}: the audit finds {faults:#?}");
        }
        if let Err(violations) = self.fake().check(&*self.books) {
            panic!("{what}: {violations:#?}\nlog: {:#x?}", self.recent());
        }
        for (&pfn, &value) in &self.data {
            assert_eq!(self.fake().peek(Pfn(pfn), WORD), value, "{what}: contents of {pfn:#x}");
        }
    }

    /// The last events, for messages.
    pub fn recent(&self) -> Vec<tenure_mm::fake::Event> {
        let log = self.fake().log();
        log[log.len().saturating_sub(24)..].to_vec()
    }

    /// Violations that the machine sees now, without stopping.
    pub fn violations(&self) -> Vec<String> {
        self.fake().check(&*self.books).err().unwrap_or_default()
    }

    fn compare_words(&self, what: &str) {
        for (&pfn, frame) in &self.model.frames {
            let word = self.word(Pfn(pfn));
            let (real, expected) = (View::of_word(word.raw()), View::of_frame(frame, |vm| self.slot_of(vm)));
            assert_eq!(
                real, expected,
                "{what}: frame {pfn:#x}: the manager (left) and the model (right) differ"
            );
        }
        let mut totals = [0; State::ALL.len()];
        let mut pins = (0, 0);
        let mut at = BASE;
        while at < self.end() {
            let (done, part) = self.mm.count(Pfn(at), self.end() - at);
            totals.iter_mut().zip(part.states).for_each(|(total, part)| *total += part);
            pins = (pins.0 + part.cpu_pins, pins.1 + part.dma_pins);
            at += done;
        }
        let expected = self
            .model
            .frames
            .values()
            .fold((0, 0), |(cpu, dma), frame| (cpu + frame.cpu_pins, dma + frame.dma_pins));
        assert_eq!(pins, expected, "{what}: totals of CPU and DMA pins");
        for (state, count) in self.model.totals() {
            assert_eq!(totals[usize::from(state)], count, "{what}: total of state {state}");
        }
    }
}
