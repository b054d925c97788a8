//! The frames that change hands, the ledger of their pins, and what must be true of them.

use tenure_abi::flags::pin;
use tenure_abi::page::{self, State};
use tenure_test_hosts::vm::take;
use tenure_test_hosts::{Host, calls, memory};
use tenure_test_protocol::work;
use tenure_test_rt::harness::{Failure, TestResult};
use tenure_test_rt::probe::{self, Outcome};
use tenure_test_rt::{check, check_eq, fail};

use crate::steps::Dice;

/// Frames that change hands.
pub const FRAMES: u64 = 64;
/// Frames that the host reads after each step.
const TOUCHES: u64 = 3;

/// The frames.
#[derive(Debug)]
pub struct Arena {
    /// The first of them.
    pub first: u64,
    pins: [[u64; 2]; FRAMES as usize],
}

impl Arena {
    /// Takes frames of the host.
    ///
    /// # Errors
    /// If there are none.
    pub fn new(host: &mut Host) -> Result<Self, Failure> {
        Ok(Self { first: take(host, FRAMES as usize, 1)?, pins: [[0; 2]; FRAMES as usize] })
    }

    /// One of the frames, with at least `count` from there on.
    pub fn some(&self, dice: &mut Dice, count: u64) -> u64 {
        self.first + dice.below(FRAMES - count + 1)
    }

    /// A frame that is the host's and unpinned, from a random place on.
    pub fn free(&self, dice: &mut Dice) -> Option<u64> {
        let start = dice.below(FRAMES);
        (0..FRAMES).map(|index| self.first + (start + index) % FRAMES).find(|pfn| {
            let word = calls::word(*pfn);
            State::of(word) == Some(State::Host)
                && page::CPU_PINS.get(word) + page::DMA_PINS.get(word) + page::GUEST_LEAVES.get(word) == 0
        })
    }

    /// A frame with a pin of this kind, from a random place on.
    pub fn pinned(&mut self, kind: u64, dice: &mut Dice) -> Option<u64> {
        let (start, first) = (dice.below(FRAMES), self.first);
        let mut frames = (0..FRAMES).map(|index| first + (start + index) % FRAMES);
        frames.find(|pfn| self.ledger(*pfn, kind).is_some_and(|pins| *pins > 0))
    }

    /// The ledger of a frame's pins of a kind.
    pub fn ledger(&mut self, pfn: u64, kind: u64) -> Option<&mut u64> {
        self.pins.get_mut(pfn.wrapping_sub(self.first) as usize)?.get_mut(kind as usize)
    }

    /// What must hold whatever happened: of every word, and of some frames as the host sees them.
    ///
    /// # Errors
    /// What does not hold.
    pub fn audit(&mut self, dice: &mut Dice) -> TestResult {
        for (index, pins) in (0..).zip(self.pins) {
            audit_word(calls::word(self.first + index), pins)?;
        }
        for _ in 0..TOUCHES {
            touch(self.some(dice, 1))?;
        }
        Ok(())
    }

    /// Ends every pin; every frame must be the host's then, and hold no secret.
    ///
    /// # Errors
    /// A frame that did not come back as it must.
    pub fn end(&mut self, host: &mut Host) -> TestResult {
        for (pfn, pins) in (self.first..).zip(self.pins) {
            for (kind, count) in [pin::CPU, pin::DMA].into_iter().zip(pins) {
                for _ in 0..count {
                    let (reply, _) = calls::unpin(pfn, 1, kind);
                    check!(reply.is_success(), "the last UNPINs of {pfn:#x}: {reply}");
                }
            }
            check_eq!(calls::state(pfn), Some(State::Host), "{pfn:#x} at the end");
            no_secret(pfn)?;
            check!(memory::fill(pfn, 0), "the host lost {pfn:#x}");
        }
        host.frames.give(self.first, FRAMES as usize);
        Ok(())
    }
}

/// S2, S8, M1, M3 of one word.
fn audit_word(word: u64, pins: [u64; 2]) -> TestResult {
    check_eq!(page::FROZEN.get(word), 0, "frozen outside EL2: {word:#x}");
    check_eq!([page::CPU_PINS.get(word), page::DMA_PINS.get(word)], pins, "pins of {word:#x}");
    check_eq!(page::HYP_PINS.get(word), 0, "{word:#x}");
    check_eq!(page::DMA_LEAVES.get(word), 0, "{word:#x}");
    let pinned = pins != [0, 0];
    let owner = page::OWNER.get(word);
    match State::of(word) {
        Some(State::Host) => check!(owner == 0 && page::GUEST_LEAVES.get(word) <= 2, "{word:#x}"),
        Some(State::Private) => {
            check!(owner != 0, "nobody's private page: {word:#x}");
            check_eq!(page::HOST_LEAF.get(word), 0, "a private page under a host leaf: {word:#x}");
            check!(page::GUEST_LEAVES.get(word) <= 1, "{word:#x}");
        }
        Some(State::Shared) => check!(owner != 0 && page::GUEST_LEAVES.get(word) <= 1, "{word:#x}"),
        Some(State::Draining) => check!(owner != 0 && pinned, "it drains without a pin: {word:#x}"),
        Some(State::Quarantine) => {
            check!(owner == 0 && pinned && page::GUEST_LEAVES.get(word) == 0, "in quarantine: {word:#x}");
        }
        state => fail!("a frame of the arena is {state:?}: {word:#x}"),
    }
    Ok(())
}

/// F1: what the host's own access meets is what the word says.
fn touch(pfn: u64) -> TestResult {
    let word = calls::word(pfn);
    let what = probe::read(memory::address(pfn));
    check!(what != Outcome::Value(work::SECRET), "the host reads the secret in {pfn:#x}: {word:#x}");
    let mapped = match State::of(word) {
        Some(State::Host | State::Shared | State::Quarantine) => true,
        Some(State::Private) => page::SCRAP.get(word) == 1,
        Some(State::Draining) => page::CPU_PINS.get(word) > 0 || page::HOST_LEAF.get(word) == 1,
        _ => false,
    };
    let redirected = State::of(word) == Some(State::Private) && page::SCRAP.get(word) == 1;
    check!(
        !redirected || what != Outcome::Value(work::PUBLIC),
        "the host reads the guest's page, not scrap: {word:#x}"
    );
    check_eq!(!what.faulted(), mapped, "the host's read of {pfn:#x}, {word:#x}");
    if what.faulted() {
        check_eq!(what.class_and_status(), Some((0x25, 0x21)), "{pfn:#x}, {word:#x}");
    }
    Ok(())
}

fn no_secret(pfn: u64) -> TestResult {
    for offset in (0..tenure_abi::PAGE_SIZE).step_by(8) {
        let what = probe::read(memory::address(pfn) + offset);
        check!(
            !what.faulted() && what != Outcome::Value(work::SECRET),
            "a frame that came back: {what:x?} at {pfn:#x}+{offset:#x}"
        );
    }
    Ok(())
}
