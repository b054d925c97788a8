//! The guest's calls: share, unshare, relinquish; and the conversions that the host may ask for in its place.

use tenure_abi::flags::{status, unshare};
use tenure_abi::page::State;
use tenure_abi::{MAX_ATOMIC_PAGES, Reply, Status, reply};

use super::{Block, CHUNK, Expect, Frame, Model};

/// How a page is taken back.
#[derive(Clone, Copy, Default)]
struct How {
    drain: bool,
    wait: bool,
    revoke: bool,
    consent: bool,
}

impl How {
    fn from_flags(flags: u64) -> Self {
        let has = |flag| flags & flag != 0;
        let [drain, wait, revoke] = [unshare::DRAIN, unshare::WAIT, unshare::REVOKE].map(has);
        Self { drain, wait, revoke, consent: false }
    }
}

impl Model {
    fn address_frame(&self, vm: usize, gfn: u64) -> Option<(u64, &Frame)> {
        let pfn = self.vms.get(&vm)?.addresses.get(&gfn)?.frame?;
        Some((pfn, self.frames.get(&pfn)?))
    }

    fn status_at(&self, vm: usize, gfn: u64) -> u64 {
        self.vms.get(&vm).map_or(status::NONE, |vm| vm.address(gfn).status)
    }

    fn set_status_at(&mut self, vm: usize, gfn: u64, status: u64) {
        if let Some(vm) = self.vms.get_mut(&vm) {
            vm.addresses.entry(gfn).or_default().status = status;
        }
    }

    /// May this page be shared? (U5, U6, F5, scenario 12)
    fn judge_share(&self, vm: usize, gfn: u64) -> Result<(), Block> {
        match self.address_frame(vm, gfn) {
            Some((_, frame)) => match frame.state {
                State::Private | State::Shared | State::Draining => Ok(()),
                State::Poison => Err((Status::Poisoned, reply::STATE)),
                _ => Err((Status::Denied, reply::STATE)),
            },
            None => match self.status_at(vm, gfn) {
                status::PRIVATE | status::SHARED | status::RELINQUISHED => Ok(()),
                _ => Err((Status::Denied, reply::UNPOPULATED)),
            },
        }
    }

    fn commit_share(&mut self, vm: usize, gfn: u64) {
        self.set_status_at(vm, gfn, status::SHARED);
        if let Some(pfn) = self.address_frame(vm, gfn).map(|(pfn, _)| pfn)
            && let Some(frame) = self.frames.get_mut(&pfn)
        {
            frame.state = State::Shared;
            frame.scrap = false;
            frame.waiter = false;
        }
    }

    /// Guest SHARE.
    pub fn share(&mut self, vm: usize, gfn: u64, count: u64) -> Expect {
        if !Self::is_guest_run(gfn, count) {
            return Expect::refused(Status::Invalid);
        }
        let tables = self.unpopulated(vm, gfn, count);
        let reply = self.range(
            count,
            count > MAX_ATOMIC_PAGES,
            |model, index| model.judge_share(vm, gfn + index),
            |model, index| model.commit_share(vm, gfn + index),
        );
        Expect { reply, tables }
    }

    /// True if some address of the range has no frame: its status stands in a table that may have to be made.
    fn unpopulated(&self, vm: usize, gfn: u64, count: u64) -> bool {
        (gfn..gfn + count).any(|gfn| self.address_frame(vm, gfn).is_none())
    }

    /// May this page be taken back? (U1, U2, U5, U6, U9) With `how.drain` a pinned page is no obstacle: it drains.
    fn judge_unshare(&self, vm: usize, gfn: u64, how: How) -> Result<(), Block> {
        let Some((_, frame)) = self.address_frame(vm, gfn) else {
            return match self.status_at(vm, gfn) {
                status::PRIVATE | status::SHARED | status::RELINQUISHED => Ok(()),
                _ => Err((Status::Denied, reply::UNPOPULATED)),
            };
        };
        if how.drain && self.drains(vm, gfn) {
            return Ok(());
        }
        let revoke = how.revoke;
        match frame.state {
            State::Private => Ok(()),
            State::Shared | State::Draining => {
                let held = frame.held();
                let pins = if revoke { reply::DMA_PIN } else { reply::CPU_PIN | reply::DMA_PIN };
                let dropped = if revoke || how.consent { reply::HOST_LEAF } else { 0 };
                let leaves = (reply::HOST_LEAF | reply::DMA_LEAF) & !dropped;
                if frame.state == State::Draining && !revoke {
                    return Err((Status::Pending, held & !reply::HOST_LEAF));
                }
                if held & pins != 0 {
                    return Err((Status::Busy, held & (pins | leaves)));
                }
                if held & leaves != 0 {
                    return Err((Status::Retry, held & leaves));
                }
                Ok(())
            }
            State::Poison => Err((Status::Poisoned, reply::STATE)),
            _ => Err((Status::Denied, reply::STATE)),
        }
    }

    /// True for a page that an unshare with DRAIN lets drain, or that drains already.
    fn drains(&self, vm: usize, gfn: u64) -> bool {
        self.address_frame(vm, gfn).is_some_and(|(_, frame)| {
            frame.state == State::Draining || frame.state == State::Shared && frame.pins() > 0
        })
    }

    fn commit_unshare(&mut self, vm: usize, gfn: u64, how: How) {
        let drains = how.drain && self.drains(vm, gfn);
        let Some(pfn) = self.address_frame(vm, gfn).map(|(pfn, _)| pfn) else {
            if self.status_at(vm, gfn) == status::SHARED {
                self.set_status_at(vm, gfn, status::PRIVATE);
            }
            return;
        };
        self.set_status_at(vm, gfn, status::PRIVATE);
        let Some(frame) = self.frames.get_mut(&pfn) else { return };
        match frame.state {
            State::Private => (),
            _ if drains => {
                frame.state = State::Draining;
                frame.waiter |= how.wait;
            }
            _ => {
                frame.state = State::Private;
                frame.waiter = false;
                frame.host_leaf = false;
                frame.scrap = how.revoke;
            }
        }
    }

    /// Guest UNSHARE.
    pub fn unshare(&mut self, vm: usize, gfn: u64, count: u64, flags: u64) -> Expect {
        let Some(owner) = self.vms.get(&vm) else { return Expect::refused(Status::Invalid) };
        let has = |flag| flags & flag != 0;
        if flags & !unshare::ALL != 0
            || has(unshare::WAIT) && !has(unshare::DRAIN)
            || has(unshare::ZERO) && has(unshare::DRAIN)
        {
            return Expect::refused(Status::Invalid);
        }
        if has(unshare::REVOKE) && !owner.may_revoke {
            return Expect::refused(Status::Denied);
        }
        if !Self::is_guest_run(gfn, count) {
            return Expect::refused(Status::Invalid);
        }
        let part = count > MAX_ATOMIC_PAGES;
        let count = if has(unshare::ZERO) { count.min(CHUNK) } else { count };
        self.take_back(vm, gfn, count, part, How::from_flags(flags))
    }

    fn take_back(&mut self, vm: usize, gfn: u64, count: u64, part: bool, how: How) -> Expect {
        if !Self::is_guest_run(gfn, count) {
            return Expect::refused(Status::Invalid);
        }
        let tables = self.unpopulated(vm, gfn, count);
        let count = count.min(MAX_ATOMIC_PAGES);
        // The lowest page that drains is named, with the pins that it waits for (U5, U6).
        let draining = (0..count).find(|index| how.drain && self.drains(vm, gfn + index)).map(|index| {
            let held = self.address_frame(vm, gfn + index).map_or(0, |(_, frame)| frame.held());
            (index, held & !reply::HOST_LEAF)
        });
        let reply = self.range(
            count,
            part,
            |model, index| model.judge_unshare(vm, gfn + index, how),
            |model, index| model.commit_unshare(vm, gfn + index, how),
        );
        let reply = match draining {
            Some((first, mask)) if reply.is_success() && first < reply.done => {
                Reply { status: Status::Pending, done: reply.done, first, mask }
            }
            _ => reply,
        };
        Expect { reply, tables }
    }

    /// CONVERT by the host: contents stay; before activation, or on a plain VM's donated memory.
    pub fn convert(&mut self, vm: usize, gfn: u64, count: u64, to: u64) -> Expect {
        let Some(owner) = self.vms.get(&vm) else { return Expect::refused(Status::Invalid) };
        if owner.is_sealed() {
            return Expect::whole(Status::Denied, reply::STATE);
        }
        if !Self::is_guest_run(gfn, count) {
            return Expect::refused(Status::Invalid);
        }
        // The first image is measured page by page.
        let count = if owner.protected { count.min(1) } else { count };
        match to {
            status::SHARED => self.share(vm, gfn, count),
            // The host's own wish is its consent: EL2 drops its leaf. What may be an image is cleaned: a chunk at a time.
            status::PRIVATE => {
                let (part, count) = (count > MAX_ATOMIC_PAGES, count.min(CHUNK));
                self.take_back(vm, gfn, count, part, How { consent: true, ..How::default() })
            }
            _ => Expect::refused(Status::Invalid),
        }
    }

    /// The host consents to what a vCPU asked for: its leaves are dropped by EL2, everything is checked anew (C2,
    /// scenario 23). Pins still refuse.
    pub fn consent(&mut self, vm: usize, gfn: u64, count: u64, flags: u64) -> Expect {
        if !Self::is_guest_run(gfn, count) {
            return Expect::refused(Status::Invalid);
        }
        let part = count > MAX_ATOMIC_PAGES;
        let count = if flags & unshare::ZERO != 0 { count.min(CHUNK) } else { count };
        self.take_back(vm, gfn, count, part, How { consent: true, ..How::from_flags(flags) })
    }

    /// Guest RELINQUISH: the frame leaves the VM, the address asks for a new one at its next touch.
    pub fn relinquish(&mut self, vm: usize, gfn: u64, count: u64) -> Expect {
        if !Self::is_guest_run(gfn, count) {
            return Expect::refused(Status::Invalid);
        }
        let count = count.min(CHUNK);
        let reply = self.range(
            count,
            false,
            |model, index| match model.address_frame(vm, gfn + index) {
                Some((_, frame)) => match frame.state {
                    State::Private | State::Shared | State::Draining if frame.dma_leaves > 0 => {
                        Err((Status::Retry, reply::DMA_LEAF))
                    }
                    State::Private | State::Shared | State::Draining => Ok(()),
                    State::Poison => Err((Status::Poisoned, reply::STATE)),
                    _ => Err((Status::Denied, reply::STATE)),
                },
                None => match model.status_at(vm, gfn + index) {
                    status::PRIVATE | status::SHARED | status::RELINQUISHED => Ok(()),
                    _ => Err((Status::Denied, reply::UNPOPULATED)),
                },
            },
            |model, index| {
                let gfn = gfn + index;
                // An address without a frame counts as given back.
                if let Some(pfn) = model.address_frame(vm, gfn).map(|(pfn, _)| pfn) {
                    model.leave_address(vm, gfn);
                    model.quarantine(pfn);
                    model.set_status_at(vm, gfn, status::RELINQUISHED);
                }
            },
        );
        // A block that is cut is split.
        Expect { reply, tables: true }
    }

    /// The frame at an address stands there no more; the address keeps its status.
    pub(super) fn leave_address(&mut self, vm: usize, gfn: u64) {
        if let Some(vm) = self.vms.get_mut(&vm)
            && let Some(address) = vm.addresses.get_mut(&gfn)
        {
            address.frame = None;
        }
    }
}
