//! Pins, the host's own leaves, and the host's touches.

use tenure_abi::flags::pin;
use tenure_abi::page::{self, State};
use tenure_abi::{MAX_ATOMIC_PAGES, Reply, Status, reply};

use super::{CHUNK, Expect, Frame, Model};

/// What the last unpins of a call set free.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Freed {
    /// Pages that finished draining.
    pub drained: u64,
    /// VM of which a vCPU waited for one of them.
    pub wake: Option<usize>,
    /// Pages that came back to the host.
    pub returned: u64,
}

/// What becomes of an access of the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Touch {
    /// It goes through to the frame.
    Frame,
    /// It goes to a scrap frame.
    Scrap,
    /// It is an abort for whoever made it.
    Abort,
}

impl Model {
    /// PIN (S4, S5, U6).
    pub fn pin(&mut self, pfn: u64, count: u64, kind: u64) -> Expect {
        if kind != pin::CPU && kind != pin::DMA || !Self::is_run(pfn, count) {
            return Expect::refused(Status::Invalid);
        }
        let limit = if kind == pin::CPU { page::CPU_PINS } else { page::DMA_PINS }.max();
        let reply = self.range(
            count,
            false,
            |model, index| {
                let Some(frame) = model.frames.get(&(pfn + index)) else {
                    return Err((Status::Invalid, 0));
                };
                match frame.state {
                    State::Host | State::Shared if *pins_of(&mut frame.clone(), kind) < limit => Ok(()),
                    State::Host | State::Shared => Err((Status::Busy, reply::COUNT_LIMIT)),
                    State::Poison => Err((Status::Poisoned, reply::STATE)),
                    _ => Err((Status::Denied, reply::STATE)),
                }
            },
            |model, index| {
                if let Some(frame) = model.frames.get_mut(&(pfn + index)) {
                    *pins_of(frame, kind) += 1;
                }
            },
        );
        Expect::plain(reply)
    }

    /// UNPIN (S4, U6, F4): page by page, up to the first that has no pin of this kind.
    pub fn unpin(&mut self, pfn: u64, count: u64, kind: u64) -> (Expect, Freed) {
        let mut freed = Freed::default();
        if kind != pin::CPU && kind != pin::DMA || !Self::is_run(pfn, count) {
            return (Expect::refused(Status::Invalid), freed);
        }
        for index in 0..count.min(MAX_ATOMIC_PAGES) {
            // One VM is named for waking, and scrubbing is bounded.
            if freed.wake.is_some() || freed.drained + freed.returned >= CHUNK {
                return (Expect::plain(Reply::done(index)), freed);
            }
            let Some(frame) = self.frames.get_mut(&(pfn + index)) else {
                let refusal = Reply::blocked(Status::Invalid, index, 0);
                return (Expect::plain(Reply { done: index, ..refusal }), freed);
            };
            match Some(pins_of(frame, kind)).filter(|count| **count > 0) {
                Some(count) => *count -= 1,
                None => {
                    let refusal = Reply::blocked(Status::Denied, index, reply::STATE);
                    return (Expect::plain(Reply { done: index, ..refusal }), freed);
                }
            }
            self.settle(pfn + index, &mut freed);
        }
        (Expect::plain(Reply::done(count.min(MAX_ATOMIC_PAGES))), freed)
    }

    /// The last pin or DMA leaf is gone: a drain ends, a quarantined frame goes home.
    fn settle(&mut self, pfn: u64, freed: &mut Freed) {
        let Some(frame) = self.frames.get_mut(&pfn) else { return };
        if frame.pins() > 0 || frame.dma_leaves > 0 {
            return;
        }
        match frame.state {
            State::Draining => {
                // The host's own mappings may stand: scrap is under them from now on (§3).
                frame.state = State::Private;
                frame.host_leaf = false;
                frame.scrap = true;
                freed.drained += 1;
                if core::mem::take(&mut frame.waiter) {
                    freed.wake = frame.owner;
                }
            }
            State::Quarantine => {
                *frame = Frame::HOST;
                freed.returned += 1;
            }
            _ => (),
        }
    }

    /// What an access of the host to a frame becomes (F1, U6, U9, F4). A leaf that is made stays.
    pub fn touch(&mut self, pfn: u64) -> Touch {
        let touch = self.reach(pfn);
        if let (Touch::Frame, Some(frame)) = (touch, self.frames.get_mut(&pfn)) {
            frame.host_leaf = frame.state != State::Host;
        }
        touch
    }

    /// What an access of the host would become.
    pub fn reach(&self, pfn: u64) -> Touch {
        let Some(frame) = self.frames.get(&pfn) else { return Touch::Abort };
        let may_have_leaf = match frame.state {
            State::Host => return Touch::Frame,
            State::Shared => true,
            State::Draining => frame.cpu_pins > 0,
            State::Quarantine => frame.owner.is_none(),
            State::Private | State::Hyp | State::Poison => false,
        };
        if frame.host_leaf || may_have_leaf {
            Touch::Frame
        } else if frame.scrap {
            Touch::Scrap
        } else {
            Touch::Abort
        }
    }

    /// HOST_MAP: the host's own leaf before its first touch, page by page up to the first that it may not have (U7), and no
    /// more than 128 in one call.
    pub fn host_map(&mut self, pfn: u64, count: u64) -> Expect {
        if !Self::is_run(pfn, count) {
            return Expect::refused(Status::Invalid);
        }
        let count = count.min(128);
        for index in 0..count {
            let block = match self.frames.get(&(pfn + index)).map(|frame| frame.state) {
                None => (Status::Invalid, 0),
                Some(State::Poison) => (Status::Poisoned, reply::STATE),
                // Scrap is for accesses that were under way, not for new mappings.
                Some(State::Private) => (Status::Denied, reply::STATE),
                Some(_) if self.touch(pfn + index) == Touch::Frame => continue,
                Some(_) => (Status::Denied, reply::STATE),
            };
            let refusal = Reply::blocked(block.0, index, block.1);
            return Expect::plain(Reply { done: index, ..refusal });
        }
        Expect::plain(Reply::done(count))
    }

    /// HOST_UNMAP: the host's own leaf, or the scrap in its place, is dropped.
    pub fn host_unmap(&mut self, pfn: u64, count: u64) -> Expect {
        if !Self::is_run(pfn, count) {
            return Expect::refused(Status::Invalid);
        }
        let reply = self.range(
            count,
            false,
            |model, index| match model.frames.get(&(pfn + index)).map(|frame| frame.state) {
                None => Err((Status::Invalid, 0)),
                Some(State::Host | State::Hyp) => Err((Status::Denied, reply::STATE)),
                Some(State::Poison) => Err((Status::Poisoned, reply::STATE)),
                Some(_) => Ok(()),
            },
            |model, index| {
                if let Some(frame) = model.frames.get_mut(&(pfn + index)) {
                    frame.host_leaf = false;
                    frame.scrap = false;
                }
            },
        );
        Expect::plain(reply)
    }

    /// An IOMMU table that EL2 owns gets an entry: for `Host` and `Shared`, and for a page that drains only beside the
    /// DMA pins that it has (U6).
    pub fn dma_map(&mut self, pfn: u64) -> bool {
        let Some(frame) = self.frames.get_mut(&pfn) else { return false };
        let may = frame.dma_leaves < page::DMA_LEAVES.max()
            && match frame.state {
                State::Host | State::Shared => true,
                State::Draining => frame.dma_pins > 0,
                _ => false,
            };
        frame.dma_leaves += u64::from(may);
        may
    }

    /// It loses the entry again, which may end a drain or a quarantine as the last unpin does.
    pub fn dma_unmap(&mut self, pfn: u64) -> (Expect, Freed) {
        let mut freed = Freed::default();
        let Some(frame) = self.frames.get_mut(&pfn) else {
            return (Expect::plain(Reply::blocked(Status::Invalid, 0, 0)), freed);
        };
        if frame.dma_leaves == 0 {
            return (Expect::plain(Reply::blocked(Status::Denied, 0, reply::STATE)), freed);
        }
        frame.dma_leaves -= 1;
        self.settle(pfn, &mut freed);
        (Expect::plain(Reply::done(1)), freed)
    }

    /// EL2 is about to use a page of the host, or has ended to.
    pub fn hyp_pin(&mut self, pfn: u64, on: bool) -> bool {
        let Some(frame) = self.frames.get_mut(&pfn) else { return false };
        match on {
            true if frame.state == State::Host && frame.hyp_pins < page::HYP_PINS.max() => {
                frame.hyp_pins += 1
            }
            false if frame.hyp_pins > 0 => frame.hyp_pins -= 1,
            _ => return false,
        }
        true
    }

    /// POISON: final (F5), for a frame that is the host's and that no table and no call of EL2 uses. Pins stay.
    pub fn poison(&mut self, pfn: u64) -> Expect {
        let Some(frame) = self.frames.get_mut(&pfn) else {
            return Expect::plain(Reply::blocked(Status::Invalid, 0, 0));
        };
        let unpinned = Frame { cpu_pins: 0, dma_pins: 0, ..frame.clone() };
        let reply = match frame.state {
            State::Poison => Reply::blocked(Status::Poisoned, 0, reply::STATE),
            State::Host => match super::host::occupied(&unpinned) {
                Some((status, mask)) => Reply::blocked(status, 0, mask),
                None => {
                    frame.state = State::Poison;
                    Reply::done(1)
                }
            },
            _ => Reply::blocked(Status::Denied, 0, reply::STATE),
        };
        Expect { reply, tables: true }
    }

    /// True for a range that is not empty and stays within the physical space; whether it is RAM is judged page by
    /// page.
    pub(super) fn is_run(pfn: u64, count: u64) -> bool {
        count > 0 && pfn.checked_add(count).is_some_and(|end| end <= 1 << 28)
    }
}

fn pins_of(frame: &mut Frame, kind: u64) -> &mut u64 {
    if kind == pin::CPU { &mut frame.cpu_pins } else { &mut frame.dma_pins }
}
