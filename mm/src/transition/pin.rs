//! Pins: uses that the host declares, and the hypervisor's own.

use tenure_abi::MAX_ATOMIC_PAGES;
use tenure_abi::flags::pin;
use tenure_abi::page::{self, Field};
use tenure_abi::reply::{Reply, Status};

use super::{Held, hold};
use crate::addr::{Pfn, checked_end};
use crate::machine::Machine;
use crate::manager::{Mm, SCRUB_CHUNK};
use crate::stage2::host::{FRAMES, RESERVE};
use crate::state::{self, Refusal, Unpin};
use crate::sync::lock;
use crate::vm::VmHandle;

/// Tries to end a pin of the hypervisor. One is some 8 instructions, and another CPU holds a word frozen for up to 65,000
/// (a call on 512 pages): twice as long as that.
const UNPIN_TRIES: u32 = 1 << 14;

/// Pins that the hypervisor may owe. One CPU comes to owe one only while another holds the word for longer than any call.
pub(crate) const MAX_OWED: usize = 16;

/// Kind of a pin of the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PinKind {
    /// The host's CPUs use the page.
    Cpu,
    /// A device uses the page.
    Dma,
}

impl PinKind {
    /// Reads `TENURE_PIN_*`.
    pub const fn from_raw(raw: u64) -> Option<Self> {
        match raw {
            pin::CPU => Some(Self::Cpu),
            pin::DMA => Some(Self::Dma),
            _ => None,
        }
    }

    const fn field(self) -> Field {
        match self {
            Self::Cpu => page::CPU_PINS,
            Self::Dma => page::DMA_PINS,
        }
    }
}

/// What unpinning led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unpinned {
    /// The answer.
    pub reply: Reply,
    /// Pages that finished draining: they are private now.
    pub drained: u64,
    /// A VM with a vCPU that waited for one of them.
    pub wake: Option<VmHandle>,
    /// Quarantined pages that came back to the host.
    pub released: u64,
}

impl<'a, M: Machine> Mm<'a, M> {
    /// The host declares a use of each page. All of the first 512, or none.
    pub fn pin(&self, pfn: Pfn, count: u64, kind: PinKind) -> Reply {
        if checked_end(pfn.0, count, FRAMES).is_none() {
            return Reply::refused(Status::Invalid);
        }
        if count == 1 {
            return match self.pin_one(pfn, kind) {
                Ok(()) => Reply::done(1),
                Err(refusal) => refusal.at(0),
            };
        }
        self.pin_all(pfn, count.min(MAX_ATOMIC_PAGES), kind)
    }

    #[inline(never)]
    fn pin_all(&self, pfn: Pfn, count: u64, kind: PinKind) -> Reply {
        let mut held = Held::new();
        for index in 0..count {
            let frame = pfn.offset(index);
            let verdict = self.cell(frame).and_then(|cell| {
                let word = cell.load();
                state::pin(word, kind.field()).and_then(|_| hold(&mut held, cell, frame, word, word))
            });
            if let Err(refusal) = verdict {
                return refusal.at(index);
            }
        }
        for page in held.drain(..) {
            match state::pin(page.before(), kind.field()) {
                Ok(next) => page.publish(next),
                Err(_) => drop(page),
            }
        }
        Reply::done(count)
    }

    fn pin_one(&self, frame: Pfn, kind: PinKind) -> Result<(), Refusal> {
        let cell = self.cell(frame)?;
        let word = cell.load();
        let next = state::pin(word, kind.field())?;
        cell.swap(word, next).map_err(|_| Refusal::FROZEN)
    }

    /// The host ends a use of each page; the last one ends a drain or a quarantine. Stops at the first page that is
    /// refused, after 32 pages that needed work, and at the second VM with a waiter.
    pub fn unpin(&self, pfn: Pfn, count: u64, kind: PinKind) -> Unpinned {
        let mut result = Unpinned { reply: Reply::done(0), drained: 0, wake: None, released: 0 };
        if checked_end(pfn.0, count, FRAMES).is_none() {
            result.reply = Reply::refused(Status::Invalid);
            return result;
        }
        for index in 0..count.min(MAX_ATOMIC_PAGES) {
            if result.drained + result.released >= SCRUB_CHUNK || result.wake.is_some() {
                break;
            }
            if let Err(refusal) = self.unpin_one(pfn.offset(index), kind.field(), &mut result) {
                result.reply = Reply { done: index, ..refusal.at(index) };
                break;
            }
            result.reply = Reply::done(index + 1);
        }
        result
    }

    fn unpin_one(&self, frame: Pfn, kind: Field, result: &mut Unpinned) -> Result<(), Refusal> {
        let cell = self.cell(frame)?;
        let word = cell.load();
        match state::unpin(word, kind)? {
            Unpin::Swap(next) => cell.swap(word, next).map_err(|_| Refusal::FROZEN),
            Unpin::Drained(next) => {
                let page = cell.freeze(frame, word, word).map_err(|_| Refusal::FROZEN)?;
                if word.has_host_leaf() {
                    self.drop_host_leaves(core::iter::once(frame), 1);
                }
                page.publish(next);
                result.drained += 1;
                if word.has_waiter() {
                    result.wake = self.slot(word.owner()).and_then(|vm| vm.handle());
                }
                Ok(())
            }
            Unpin::Released(next) => {
                let page = cell.freeze(frame, word, word).map_err(|_| Refusal::FROZEN)?;
                if word.has_host_leaf() {
                    // As the host's own it gets another leaf, of the host's own type of memory, at the next touch.
                    self.drop_host_leaves(core::iter::once(frame), 1);
                }
                self.scrub_all(core::iter::once(frame));
                page.publish(next);
                self.came_home(core::iter::once(frame));
                result.released += 1;
                Ok(())
            }
        }
    }

    /// Pins a frame of the host for the hypervisor: until [`Mm::hyp_unpin`] it can not change hands, and may be read
    /// and written.
    ///
    /// # Errors
    /// As for a pin; only a frame of the host can be pinned.
    pub fn hyp_pin(&self, frame: Pfn) -> Result<(), Refusal> {
        self.pay_pins();
        let cell = self.cell(frame)?;
        let word = cell.load();
        let next = state::hyp_pin(word)?;
        cell.swap(word, next).map_err(|_| Refusal::FROZEN)
    }

    /// Ends a pin of the hypervisor, and those that are owed. Tries again while another CPU holds the word or moves it; if
    /// that does not end, the pin is owed, and ends with a later call.
    ///
    /// # Errors
    /// The frame is not pinned by the hypervisor; or (FROZEN) it still is, and nothing more can be owed.
    pub fn hyp_unpin(&self, frame: Pfn) -> Result<(), Refusal> {
        self.pay_pins();
        match self.hyp_unpin_within(frame, UNPIN_TRIES) {
            Err(Refusal::FROZEN) => lock(&self.owed).try_push(frame).map_err(|_| Refusal::FROZEN),
            other => other,
        }
    }

    fn hyp_unpin_within(&self, frame: Pfn, tries: u32) -> Result<(), Refusal> {
        let cell = self.cell(frame)?;
        for _ in 0..tries {
            let word = cell.load();
            let next = word.count_down(page::HYP_PINS).map_err(|_| Refusal::STATE)?;
            if !word.is_frozen() && cell.swap(word, next).is_ok() {
                return Ok(());
            }
        }
        Err(Refusal::FROZEN)
    }

    /// Ends the pins that are owed and can be ended at once.
    fn pay_pins(&self) {
        lock(&self.owed).retain(|frame| self.hyp_unpin_within(*frame, 1) == Err(Refusal::FROZEN));
    }

    /// Takes a frame of the host out of use for ever: its mapping goes.
    pub fn poison(&self, frame: Pfn) -> Reply {
        match self.poison_one(frame) {
            Ok(()) => Reply::done(1),
            Err(refusal) => refusal.at(0),
        }
    }

    fn poison_one(&self, frame: Pfn) -> Result<(), Refusal> {
        let cell = self.cell(frame)?;
        let word = cell.load();
        let next = state::poison(word)?;
        let page = cell.freeze(frame, word, word).map_err(|_| Refusal::FROZEN)?;
        self.reach_host_leaves(frame, 1, RESERVE)?;
        self.unmap_own(core::iter::once(frame));
        page.publish(next);
        Ok(())
    }

    /// An IOMMU driver is about to make an entry for the frame.
    ///
    /// # Errors
    /// The state forbids it, or the count is full.
    pub fn dma_map(&self, frame: Pfn) -> Result<(), Refusal> {
        let cell = self.cell(frame)?;
        let word = cell.load();
        let next = state::dma_map(word)?;
        cell.swap(word, next).map_err(|_| Refusal::FROZEN)
    }

    /// An IOMMU driver has removed an entry and its invalidation is complete. May end a drain or a quarantine, as the
    /// last unpin does.
    pub fn dma_unmap(&self, frame: Pfn) -> Unpinned {
        let mut result = Unpinned { reply: Reply::done(1), drained: 0, wake: None, released: 0 };
        if let Err(refusal) = self.unpin_one(frame, page::DMA_LEAVES, &mut result) {
            result.reply = refusal.at(0);
        }
        result
    }
}
