//! After each step: every word, both tables, the statuses of addresses, what the host reads, and the totals, against the model.

use core::fmt;
use core::ops::Range;

use tenure_abi::flags::{query, status};
use tenure_abi::page::State;
use tenure_abi::{PAGE_SIZE, Reply};
use tenure_mm::VmHandle;
use tenure_mm::model::{Frame, Model, Touch, View};
use tenure_test_hosts::{calls, memory};
use tenure_test_rt::harness::TestResult;
use tenure_test_rt::probe::{self, Outcome};
use tenure_test_rt::{check, check_eq, fail};

use crate::contents::is_parked;
use crate::place::{ALL, BLOCK, FRAMES, GFN, GFNS, WIDE, WIDE_GFN};
use crate::world::{VMS, World};

/// What a page that the host may not touch answers: a data abort with an alignment fault.
pub const REFUSED: (u64, u64) = (0x25, 0x21);

/// Level of a table that maps single pages.
const LEAF_LEVEL: u64 = 3;
/// Bits of a descriptor: valid, MemAttr (from this bit on), address of the frame, execute-never.
const VALID: u64 = 1;
const MEM_ATTR: u32 = 2;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const XN: u64 = 1 << 54;

/// Frames of the blocks, and addresses of the wide window, that are looked at after a step though it cannot have touched them.
const ROLL: u64 = 8;
/// Steps after which every place is looked at.
const WHOLE: u64 = 2048;
/// Steps after which the addresses of all VMs are looked at, and the totals of the blocks; in between each step looks at those of
/// one VM.
const ALL_VMS: u64 = 16;
/// Of what a call names, the most that is looked at if it did nothing.
const NAMED: u64 = 32;
/// Words of a page that the host reads, a different one each step: those that are written one by one, and others.
const WORDS: u64 = 11;

impl World {
    /// After the step of this number, which found the model as it was `before`: all that the step can have touched, the arena, the
    /// narrow window of a VM, and a part of the rest; now and then everything.
    ///
    /// # Errors
    /// The first difference.
    pub fn compare_step(&self, before: &Model, step: u64) -> TestResult {
        if step.is_multiple_of(WHOLE) {
            return self.compare_all();
        }
        let all = step.is_multiple_of(ALL_VMS);
        let vm = step as usize % VMS;
        self.compare_since(before, if all { 0..VMS } else { vm..vm + 1 }, step % WORDS)?;
        let (blocks, end) = (self.first + FRAMES, self.first + ALL);
        let at = blocks + step * ROLL % (end - blocks);
        self.compare_frames(at..at + ROLL, step % WORDS)?;
        let at = step / VMS as u64 * ROLL % WIDE;
        self.compare_addresses(vm, WIDE_GFN + at..WIDE_GFN + (at + ROLL).min(WIDE))?;
        if all { self.compare_totals(FRAMES..ALL) } else { Ok(()) }
    }

    /// Everything.
    ///
    /// # Errors
    /// The first difference.
    pub fn compare_all(&self) -> TestResult {
        self.compare_frames(self.model.frames.keys().copied(), 0)?;
        for vm in 0..VMS {
            self.compare_addresses(vm, GFN..GFN + GFNS)?;
            self.compare_addresses(vm, WIDE_GFN..WIDE_GFN + WIDE)?;
        }
        self.compare_totals(0..FRAMES)?;
        self.compare_totals(FRAMES..ALL)
    }

    /// All that calls tell, without changing it: of the arena and of the narrow windows of these VMs; of the blocks and wide windows
    /// what is not as it was `before`, or was named by the last call.
    ///
    /// # Errors
    /// The first difference.
    pub fn compare_since(&self, before: &Model, mut vms: Range<usize>, word: u64) -> TestResult {
        let blocks = self.first + FRAMES..self.first + ALL;
        let runs = self.parties.iter().flatten().map(|party| party.vm.run_pfn);
        self.compare_frames((self.first..blocks.start).chain(self.far).chain(runs), word)?;
        let [frames, addresses] = self.named.get().map(|(first, count)| first..first + count.min(NAMED));
        let changed = self.model.frames.since(&before.frames).filter(|(_, was, now)| Some(*now) != *was);
        let changed = changed.map(|(pfn, ..)| pfn).filter(|pfn| !frames.contains(pfn));
        let named = frames.clone().chain(changed).filter(|pfn| blocks.contains(pfn));
        self.compare_frames(named, word)?;
        vms.try_for_each(|vm| self.compare_addresses(vm, GFN..GFN + GFNS))?;
        for (vm, now) in &self.model.vms {
            let was = before.vms.get(vm).map(|was| &was.addresses);
            let changed = was.map(|was| now.addresses.since(was).filter(|(_, was, now)| Some(*now) != *was));
            let changed = changed.into_iter().flatten().map(|(gfn, ..)| gfn);
            let wide =
                addresses.clone().chain(changed).filter(|gfn| (WIDE_GFN..WIDE_GFN + WIDE).contains(gfn));
            self.compare_addresses(*vm, wide)?;
        }
        self.compare_totals(0..FRAMES)
    }

    /// The words of frames, what the host's table holds for them, and a word of each as the host reads it.
    fn compare_frames(&self, pfns: impl IntoIterator<Item = u64>, word: u64) -> TestResult {
        for pfn in pfns {
            let Some(frame) = self.model.frames.get(&pfn) else { continue };
            self.compare_frame(pfn, frame)?;
            self.compare_reach(pfn, frame, word)?;
        }
        Ok(())
    }

    fn slot_of(&self, vm: usize) -> u64 {
        self.handle(vm).map_or(0, |handle| u64::from(VmHandle(handle).slot().0))
    }

    /// The word of a frame, and what the host's table holds at its address.
    fn compare_frame(&self, pfn: u64, frame: &Frame) -> TestResult {
        let (reply, regs) = calls::query(pfn);
        check!(reply == Reply::done(1), "QUERY of {pfn:#x}: {reply}");
        let word = regs.x(4);
        let (real, expect) = (View::of_word(word), View::of_frame(frame, |vm| self.slot_of(vm)));
        if real != expect {
            fail!("frame {pfn:#x} is {}, in the model {}", Brief(real), Brief(expect));
        }
        let (descriptor, level) = (regs.x(5), regs.x(6));
        let target = (descriptor & VALID != 0).then_some((descriptor & ADDRESS) / PAGE_SIZE);
        let expect = if frame.state == State::Host { self.types.0 } else { self.types.1 };
        let fits = target.is_none() || descriptor >> MEM_ATTR & 0xf == expect;
        check!(fits, "{pfn:#x} is mapped with {descriptor:#x}, not with MemAttr {expect:#b}");
        if frame.state == State::Host {
            let own =
                if level < LEAF_LEVEL { pfn - pfn % (BLOCK << (9 * (LEAF_LEVEL - 1 - level))) } else { pfn };
            let inside = target.map_or(level == LEAF_LEVEL, |target| target == own);
            check!(inside, "the host's own frame {pfn:#x} leads to {descriptor:#x}");
            return Ok(());
        }
        check_eq!(
            level,
            LEAF_LEVEL,
            "frame {pfn:#x} ({:?}) stands under a host block {descriptor:#x}",
            frame.state
        );
        match target {
            Some(target) if target == pfn => {
                check!(
                    frame.host_leaf,
                    "the host maps {pfn:#x}, which the model says it does not: {descriptor:#x}"
                );
                check!(descriptor & XN != 0, "the host may execute {pfn:#x}: {descriptor:#x}");
            }
            Some(target) => {
                check!(frame.scrap, "{pfn:#x} leads the host to {descriptor:#x}");
                // A page of the pool, which may have been one of the arena.
                let pool = self.model.frames.get(&target).is_none_or(|frame| frame.state == State::Hyp);
                check!(pool, "scrap is a frame that is in use: {target:#x}");
            }
            None => {
                check!(!frame.host_leaf, "the host does not map {pfn:#x}, which its word says: {word:#x}")
            }
        }
        Ok(())
    }

    /// The guest's table: which frame stands at each of these addresses, or what the address is without one.
    fn compare_addresses(&self, vm: usize, gfns: impl IntoIterator<Item = u64>) -> TestResult {
        let (Some(handle), Some(model)) = (self.handle(vm), self.model.vms.get(&vm)) else { return Ok(()) };
        for gfn in gfns {
            let (_, regs) = calls::query_guest(handle, gfn, query::SHARE);
            let real = (regs.x(5), regs.x(6));
            let expect = match model.addresses.get(&gfn) {
                Some(address) => match address.frame {
                    Some(pfn) => (pfn, self.model.frames.get(&pfn).map_or(status::NONE, status_of)),
                    None => (0, address.status),
                },
                None => (0, status::NONE),
            };
            check_eq!(real, expect, "VM {vm} at {gfn:#x} (frame, status)");
        }
        Ok(())
    }

    /// Totals of the frames of these numbers.
    fn compare_totals(&self, numbers: Range<u64>) -> TestResult {
        let pfns = self.first + numbers.start..self.first + numbers.end;
        let mut real = [0; State::ALL.len() + 2];
        let mut at = pfns.start;
        while at < pfns.end {
            let (reply, regs) = calls::count(at, pfns.end - at);
            check!(reply.done > 0 && reply == Reply::done(reply.done), "COUNT: {reply}");
            real.iter_mut().enumerate().for_each(|(index, sum)| *sum += regs.x(4 + index));
            at += reply.done;
        }
        let mut expect = [0; State::ALL.len() + 2];
        for frame in self.model.frames.range(pfns).map(|(_, frame)| frame) {
            for (index, more) in [
                (frame.state as usize, 1),
                (State::ALL.len(), frame.cpu_pins),
                (State::ALL.len() + 1, frame.dma_pins),
            ] {
                if let Some(sum) = expect.get_mut(index) {
                    *sum += more;
                }
            }
        }
        for (index, (real, expect)) in real.into_iter().zip(expect).enumerate() {
            check_eq!(real, expect, "COUNT, register {}", 4 + index);
        }
        Ok(())
    }

    /// What the host reads of a frame that it may read as things are; or that it may not, of some. `word` picks the word.
    fn compare_reach(&self, pfn: u64, frame: &Frame, word: u64) -> TestResult {
        if frame.hyp_pins > 0 {
            // A run page: the hypervisor writes it.
            return Ok(());
        }
        let mapped = frame.state == State::Host || frame.host_leaf;
        let refused = !frame.scrap
            && (matches!(frame.state, State::Private | State::Hyp | State::Poison) || is_parked(frame));
        // Refusals cost an exception each, so not all of them are tried.
        if mapped || frame.scrap || refused && pfn % 8 == word % 8 {
            let real = probe::read(memory::address(pfn) + word * 8);
            self.compare_read(pfn, word, real)?;
        }
        Ok(())
    }

    /// A word that the host has read, as the model's touch says.
    ///
    /// # Errors
    /// The difference.
    pub fn compare_read(&self, pfn: u64, word: u64, real: Outcome) -> TestResult {
        match (self.model.reach(pfn), real) {
            (Touch::Abort, _) => {
                check_eq!(real.class_and_status(), Some(REFUSED), "the host's read of {pfn:#x}")
            }
            (Touch::Scrap, _) => check_eq!(real, Outcome::Value(0), "the host's read of scrap at {pfn:#x}"),
            (Touch::Frame, Outcome::Value(value)) => {
                let expect = self.contents.of(pfn).map_or(value, |page| page.word(word));
                check_eq!(value, expect, "word {word} of {pfn:#x}");
            }
            (Touch::Frame, fault) => fail!("the host's read of {pfn:#x}: {fault:x?}"),
        }
        Ok(())
    }

    /// A whole page, as the host reads it.
    ///
    /// # Errors
    /// The first difference.
    pub fn compare_page(&self, pfn: u64) -> TestResult {
        for word in 0..PAGE_SIZE / 8 {
            self.compare_read(pfn, word, probe::read(memory::address(pfn) + word * 8))?;
        }
        Ok(())
    }
}

/// A frame in few words: what is not there is not named.
struct Brief(View);

impl fmt::Display for Brief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.0;
        write!(f, "{:?} of {}", view.state, view.owner)?;
        let counts = [
            ("guest-leaves", view.guest_leaves),
            ("host-leaf", u64::from(view.host_leaf)),
            ("scrap", u64::from(view.scrap)),
            ("cpu-pins", view.cpu_pins),
            ("dma-pins", view.dma_pins),
            ("hyp-pins", view.hyp_pins),
            ("waiter", u64::from(view.waiter)),
            ("frozen", u64::from(view.frozen)),
        ];
        for (name, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            write!(f, " {name}={count}")?;
        }
        Ok(())
    }
}

/// What QUERY_GUEST calls the status of an address with this frame.
fn status_of(frame: &Frame) -> u64 {
    match frame.state {
        State::Shared => status::SHARED,
        State::Private => status::PRIVATE,
        _ => status::NONE,
    }
}
