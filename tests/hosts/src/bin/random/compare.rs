//! After each step: every word, both tables, the statuses of addresses, what the host reads, and the totals, against the model.

use core::fmt;
use core::ops::Range;

use tenure_abi::flags::{query, status};
use tenure_abi::page::State;
use tenure_abi::{PAGE_SIZE, Reply};
use tenure_mm::VmHandle;
use tenure_mm::model::{Frame, Touch, View};
use tenure_test_hosts::{calls, memory};
use tenure_test_rt::harness::TestResult;
use tenure_test_rt::probe::{self, Outcome};
use tenure_test_rt::{check, check_eq, fail};

use crate::world::{FRAMES, GFN, GFNS, World};

/// What a page that the host may not touch answers: a data abort with an alignment fault.
pub const REFUSED: (u64, u64) = (0x25, 0x21);

/// Level of a table that maps single pages.
const LEAF_LEVEL: u64 = 3;
/// Bits of a descriptor: valid, address of the frame, execute-never.
const VALID: u64 = 1;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const XN: u64 = 1 << 54;

impl World {
    /// All that calls tell, without changing it; addresses of these VMs only.
    ///
    /// # Errors
    /// The first difference.
    pub fn compare(&self, mut vms: Range<usize>) -> TestResult {
        for (pfn, frame) in &self.model.frames {
            self.compare_frame(*pfn, frame)?;
        }
        vms.try_for_each(|vm| self.compare_addresses(vm))?;
        self.compare_totals()
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
        if frame.state == State::Host {
            let inside = level < LEAF_LEVEL || target.is_none_or(|target| target == pfn);
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

    /// The guest's table: which frame stands at each address of the window, or what the address is without one.
    fn compare_addresses(&self, vm: usize) -> TestResult {
        let (Some(handle), Some(model)) = (self.handle(vm), self.model.vms.get(&vm)) else { return Ok(()) };
        for gfn in GFN..GFN + GFNS {
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

    fn compare_totals(&self) -> TestResult {
        let (reply, regs) = calls::count(self.first, FRAMES);
        check_eq!(reply, Reply::done(FRAMES), "COUNT");
        let mut expect = [0; State::ALL.len() + 2];
        for frame in self.model.frames.range(self.first..self.first + FRAMES).map(|(_, frame)| frame) {
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
        for (index, sum) in expect.into_iter().enumerate() {
            check_eq!(regs.x(4 + index), sum, "COUNT, register {}", 4 + index);
        }
        Ok(())
    }

    /// What the host reads of every frame that it may read as things are, and that it may not read some others. `word` picks
    /// the word of each page.
    ///
    /// # Errors
    /// The first difference.
    pub fn compare_reads(&self, word: u64) -> TestResult {
        for (&pfn, frame) in self.model.frames.range(self.first..self.first + FRAMES) {
            let mapped = frame.state == State::Host || frame.host_leaf;
            let refused = !frame.scrap && matches!(frame.state, State::Private | State::Hyp | State::Poison);
            // Refusals cost an exception each, so not all of them are tried.
            if mapped || frame.scrap || refused && pfn % 8 == word % 8 {
                let real = probe::read(memory::address(pfn) + word * 8);
                self.compare_read(pfn, word, real)?;
            }
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
