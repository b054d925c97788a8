//! The host's calls that give, take and declare memory.

use alloc::collections::BTreeSet;

use tenure_abi::flags::status;
use tenure_abi::page::{GUEST_LEAVES, State};
use tenure_abi::{MAX_ATOMIC_PAGES, Reply, Status, reply};

use super::{BLOCK, Block, CHUNK, Expect, Frame, Model, kind_of};

/// What stands in the way of taking a frame from the host (F6).
pub(super) fn occupied(frame: &Frame) -> Option<Block> {
    let bit = |on: bool, bit| if on { bit } else { 0 };
    let pins = bit(frame.cpu_pins > 0, reply::CPU_PIN)
        | bit(frame.dma_pins > 0, reply::DMA_PIN)
        | bit(frame.hyp_pins > 0, reply::HYP_PIN);
    let leaves = bit(frame.guest_leaves > 0, reply::GUEST_LEAF) | bit(frame.dma_leaves > 0, reply::DMA_LEAF);
    match (pins, leaves) {
        (0, 0) => None,
        (0, leaves) => Some((Status::Retry, leaves)),
        (pins, leaves) => Some((Status::Busy, pins | leaves)),
    }
}

impl Model {
    /// A frame that may be taken from the host: `Host`, not firmware's, with no reference.
    pub(super) fn judge_free(&self, pfn: u64) -> Result<(), Block> {
        match self.frames.get(&pfn) {
            Some(frame) => match frame.state {
                State::Host if frame.firmware => Err((Status::Denied, reply::STATE)),
                State::Host => occupied(frame).map_or(Ok(()), Err),
                State::Poison => Err((Status::Poisoned, reply::STATE)),
                _ => Err((Status::Denied, reply::STATE)),
            },
            None => Err((Status::Invalid, 0)),
        }
    }

    /// DONATE: frames become the VM's, scrubbed, of exactly the kind that the status says (F6, U10).
    pub fn donate(&mut self, vm: usize, gfn: u64, pfn: u64, count: u64, kind: u64) -> Expect {
        let known = kind == status::PRIVATE || kind == status::SHARED;
        let sound = Self::is_guest_run(gfn, count) && Self::is_run(pfn, count);
        if !known || !sound || !self.vms.contains_key(&vm) {
            return Expect::refused(Status::Invalid);
        }
        // A range stops where a block of 2 MiB begins that it could go on with.
        let ahead = BLOCK - pfn % BLOCK;
        let blocks = pfn % BLOCK == gfn % BLOCK && count >= ahead + BLOCK && !pfn.is_multiple_of(BLOCK);
        let count = if blocks { count.min(ahead) } else { count }.min(CHUNK);
        // Frames are judged before addresses.
        for index in 0..count {
            if let Err((status, mask)) = self.judge_free(pfn + index) {
                return Expect::plain(Reply::blocked(status, index, mask));
            }
        }
        let reply = self.range(
            count,
            false,
            |model, index| {
                let address = model.vms.get(&vm).map(|vm| vm.address(gfn + index)).unwrap_or_default();
                match address.frame.is_some() || kind_of(address.status) != Some(kind) {
                    true => Err((Status::Denied, reply::STATE)),
                    false => Ok(()),
                }
            },
            |model, index| {
                model.give(vm, gfn + index, pfn + index, kind);
            },
        );
        Expect { reply, tables: true }
    }

    /// A frame is the VM's, at an address.
    pub(super) fn give(&mut self, vm: usize, gfn: u64, pfn: u64, kind: u64) {
        let state = if kind == status::SHARED { State::Shared } else { State::Private };
        let frame = Frame { state, owner: Some(vm), guest_leaves: 1, ..Frame::HOST };
        self.frames.insert(pfn, frame);
        if let Some(vm) = self.vms.get_mut(&vm) {
            let address = vm.addresses.entry(gfn).or_default();
            address.frame = Some(pfn);
            address.status = kind;
        }
    }

    /// RECLAIM: frames without a leaf or pin come back scrubbed; never a private one of a sealed VM (F3, U10).
    pub fn reclaim(&mut self, vm: usize, pfn: u64, count: u64) -> Expect {
        let Some(sealed) = self.vms.get(&vm).map(super::Vm::is_sealed) else {
            return Expect::refused(Status::Invalid);
        };
        if !Self::is_run(pfn, count) {
            return Expect::refused(Status::Invalid);
        }
        let count = count.min(CHUNK);
        let reply = self.range(
            count,
            false,
            |model, index| match model.frames.get(&(pfn + index)) {
                Some(frame) if frame.state == State::Poison => Err((Status::Poisoned, reply::STATE)),
                Some(frame) if frame.owner == Some(vm) => match frame.state {
                    State::Private if sealed => Err((Status::Denied, reply::STATE)),
                    State::Draining => Err((Status::Busy, frame.held() & !reply::HOST_LEAF)),
                    // What is parked is taken back at any time.
                    State::Quarantine => Ok(()),
                    State::Private | State::Shared => occupied(frame).map_or(Ok(()), Err),
                    _ => Err((Status::Denied, reply::STATE)),
                },
                Some(_) => Err((Status::Denied, reply::STATE)),
                None => Err((Status::Invalid, 0)),
            },
            |model, index| model.quarantine(pfn + index),
        );
        Expect::plain(reply)
    }

    /// GUEST_UNMAP: guest leaves go, the address keeps its status; never one of a private page of a sealed VM, nor
    /// one of a page that drains.
    pub fn guest_unmap(&mut self, vm: usize, gfn: u64, count: u64) -> Expect {
        let Some(sealed) = self.vms.get(&vm).map(super::Vm::is_sealed) else {
            return Expect::refused(Status::Invalid);
        };
        if !Self::is_guest_run(gfn, count) {
            return Expect::refused(Status::Invalid);
        }
        let frame_at = |model: &Self, gfn: u64| model.vms.get(&vm)?.addresses.get(&gfn)?.frame;
        // A frame that stands at two addresses is one page: the call ends before the second.
        let mut seen = BTreeSet::new();
        let again = (0..count.min(MAX_ATOMIC_PAGES))
            .find(|index| frame_at(self, gfn + index).is_some_and(|pfn| !seen.insert(pfn)));
        let count = again.unwrap_or(count);
        let reply = self.range(
            count,
            false,
            |model, index| {
                let Some(frame) = frame_at(model, gfn + index).and_then(|pfn| model.frames.get(&pfn)) else {
                    return Ok(());
                };
                match frame.state {
                    State::Private if sealed => Err((Status::Denied, reply::STATE)),
                    State::Draining => Err((Status::Busy, frame.held() & !reply::HOST_LEAF)),
                    _ => Ok(()),
                }
            },
            |model, index| {
                if let Some(pfn) = frame_at(model, gfn + index) {
                    model.leave_address(vm, gfn + index);
                    if let Some(frame) = model.frames.get_mut(&pfn) {
                        frame.guest_leaves -= 1;
                    }
                }
            },
        );
        // A block that is cut is split.
        Expect { reply, tables: true }
    }

    /// SET_STATUS: declares addresses that have no frame, before activation or for a plain VM.
    pub fn set_status(&mut self, vm: usize, gfn: u64, count: u64, to: u64) -> Expect {
        let Some(owner) = self.vms.get(&vm) else { return Expect::refused(Status::Invalid) };
        if to > status::DEVICE || !Self::is_guest_run(gfn, count) {
            return Expect::refused(Status::Invalid);
        }
        if owner.is_sealed() {
            return Expect::whole(Status::Denied, reply::STATE);
        }
        // Address by address, up to the first that has a frame; what was done stays.
        let Some(owner) = self.vms.get_mut(&vm) else { return Expect::refused(Status::Invalid) };
        for index in 0..count {
            let address = owner.addresses.entry(gfn + index).or_default();
            if address.frame.is_some() {
                let refusal = Reply::blocked(Status::Denied, index, reply::STATE);
                return Expect { reply: Reply { done: index, ..refusal }, tables: true };
            }
            address.status = to;
        }
        Expect { reply: Reply::done(count), tables: true }
    }

    /// GUEST_MAP: frames that stay the host's, for a plain VM; or frames that the VM shares and that have lost their
    /// guest leaf, at an address that is shared (U10: never where the guest expects private memory).
    pub fn guest_map(&mut self, vm: usize, gfn: u64, pfn: u64, count: u64) -> Expect {
        let Some(protected) = self.vms.get(&vm).map(|vm| vm.protected) else {
            return Expect::refused(Status::Invalid);
        };
        if !Self::is_run(pfn, count) || !Self::is_guest_run(gfn, count) {
            return Expect::refused(Status::Invalid);
        }
        let count = count.min(CHUNK);
        for index in 0..count {
            let Some(frame) = self.frames.get(&(pfn + index)) else {
                return Expect::plain(Reply::blocked(Status::Invalid, index, 0));
            };
            let block = match frame.state {
                State::Poison => (Status::Poisoned, reply::STATE),
                State::Host if !protected && !frame.firmware => match frame.guest_leaves < GUEST_LEAVES.max()
                {
                    true => continue,
                    false => (Status::Busy, reply::COUNT_LIMIT),
                },
                State::Shared if frame.owner == Some(vm) && frame.guest_leaves == 0 => continue,
                _ => (Status::Denied, reply::STATE),
            };
            return Expect::plain(Reply::blocked(block.0, index, block.1));
        }
        let reply = self.range(
            count,
            false,
            |model, index| {
                let here = model.vms.get(&vm).map(|vm| vm.address(gfn + index)).unwrap_or_default();
                let owned = model.frames.get(&(pfn + index)).is_some_and(|frame| frame.owner.is_some());
                let wanted = if owned { status::SHARED } else { status::NONE };
                match here.frame.is_some() || here.status != wanted {
                    true => Err((Status::Denied, reply::STATE)),
                    false => Ok(()),
                }
            },
            |model, index| {
                let Some(owner) = model.vms.get_mut(&vm) else { return };
                owner.addresses.entry(gfn + index).or_default().frame = Some(pfn + index);
                if let Some(frame) = model.frames.get_mut(&(pfn + index)) {
                    frame.guest_leaves += 1;
                }
            },
        );
        Expect { reply, tables: true }
    }

    /// POOL_TOPUP: frames become the hypervisor's, to be given back at the latest when `vm` dies.
    pub fn topup(&mut self, vm: Option<usize>, pfn: u64, count: u64) -> Expect {
        if !Self::is_run(pfn, count) || vm.is_some_and(|vm| !self.vms.contains_key(&vm)) {
            return Expect::refused(Status::Invalid);
        }
        let count = count.min(CHUNK);
        let reply = self.range(
            count,
            false,
            |model, index| model.judge_free(pfn + index),
            |model, index| {
                model.frames.insert(pfn + index, Frame { state: State::Hyp, owner: vm, ..Frame::HOST });
            },
        );
        Expect { reply, tables: true }
    }

    /// POOL_DRAIN gave this frame back.
    pub fn drained(&mut self, pfn: u64) {
        self.frames.insert(pfn, Frame::HOST);
    }
}
