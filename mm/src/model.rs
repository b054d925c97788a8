//! The small reference model: what every call must answer and leave behind, as sets and maps.
//!
//! It is written from the requirements (S, U, F, C, B and the scenarios) and knows nothing of words, tables,
//! freezing or the manager's transition table: tests drive it beside the real manager and compare. Where it says
//! "§", the section of the design is meant.
//!
//! One thing is outside it: how much table memory a pool holds. A call that may need some says so
//! ([`Expect::tables`]), and the test then accepts NO_MEMORY from a pool that is short, if nothing has changed.

mod block;
mod guest;
mod host;
mod map;
mod pins;
mod view;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use tenure_abi::flags::{self, status};
use tenure_abi::page::State;
use tenure_abi::{MAX_ATOMIC_PAGES, Mask, Reply, Status, reply};

pub use map::Map;
pub use pins::{Freed, Touch};
pub use view::View;

/// Pages of a longer range that are converted before the first that blocks, at most.
const PART: u64 = 64;

/// Pages that one entry to EL2 scrubs at most.
const CHUNK: u64 = if cfg!(small_tables) { 4 } else { 32 };

/// Pages of a block of 2 MiB.
const BLOCK: u64 = if cfg!(small_tables) { 8 } else { 512 };

/// A frame as the requirements see it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the fields are the words of the design")]
pub struct Frame {
    pub state: State,
    /// VM, by the number that the test gave it.
    pub owner: Option<usize>,
    /// The host may reach the frame (outside state `Host`).
    pub host_leaf: bool,
    /// The host's address of the frame leads to scrap.
    pub scrap: bool,
    pub guest_leaves: u64,
    pub dma_leaves: u64,
    pub cpu_pins: u64,
    pub dma_pins: u64,
    pub hyp_pins: u64,
    /// A vCPU waits for the end of the drain.
    pub waiter: bool,
    pub firmware: bool,
    /// Parked, and not scrubbed yet.
    pub owes_scrub: bool,
}

impl Frame {
    const HOST: Self = Self {
        state: State::Host,
        owner: None,
        host_leaf: false,
        scrap: false,
        guest_leaves: 0,
        dma_leaves: 0,
        cpu_pins: 0,
        dma_pins: 0,
        hyp_pins: 0,
        waiter: false,
        firmware: false,
        owes_scrub: false,
    };

    fn pins(&self) -> u64 {
        self.cpu_pins + self.dma_pins
    }

    /// What the host holds of the frame, leaves and pins.
    fn held(&self) -> Mask {
        let bit = |on: bool, bit: Mask| if on { bit } else { 0 };
        bit(self.host_leaf, reply::HOST_LEAF)
            | bit(self.dma_leaves > 0, reply::DMA_LEAF)
            | bit(self.cpu_pins > 0, reply::CPU_PIN)
            | bit(self.dma_pins > 0, reply::DMA_PIN)
    }
}

/// A guest address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Address {
    /// `TENURE_ADDR_*`; of a populated address, what it falls back to when its frame is reclaimed.
    pub status: u64,
    /// Frame that stands here.
    pub frame: Option<u64>,
}

/// A virtual machine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "the fields are the words of the design")]
pub struct Vm {
    pub protected: bool,
    pub may_revoke: bool,
    pub active: bool,
    pub addresses: Map<Address>,
}

impl Vm {
    /// Only the guest decides what is shared (U10).
    pub fn is_sealed(&self) -> bool {
        self.protected && self.active
    }

    fn address(&self, gfn: u64) -> Address {
        self.addresses.get(&gfn).cloned().unwrap_or_default()
    }
}

/// What a call must answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expect {
    /// Status, done, first and mask.
    pub reply: Reply,
    /// The call may be short of table memory, and then answers NO_MEMORY and changes nothing.
    pub tables: bool,
}

impl Expect {
    /// This answer, of a call that takes no table memory.
    pub fn plain(reply: Reply) -> Self {
        Self { reply, tables: false }
    }

    fn whole(status: Status, mask: Mask) -> Self {
        Self::plain(Reply { mask, ..Reply::refused(status) })
    }

    fn refused(status: Status) -> Self {
        Self::plain(Reply::refused(status))
    }
}

/// Why a page cannot be done.
type Block = (Status, Mask);

/// The world: every frame and every VM.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Model {
    /// RAM.
    pub frames: Map<Frame>,
    /// VMs that live, by the number that the test gave them.
    pub vms: BTreeMap<usize, Vm>,
}

impl Model {
    /// A machine whose frames are all the host's.
    pub fn new(frames: impl IntoIterator<Item = u64>) -> Self {
        let frames = frames.into_iter().map(|pfn| (pfn, Frame::HOST)).collect();
        Self { frames, vms: BTreeMap::new() }
    }

    /// Declares frames that never belong to the host: the hypervisor's own.
    pub fn take_for_hypervisor(&mut self, pfns: impl IntoIterator<Item = u64>) {
        for pfn in pfns {
            self.frames.insert(pfn, Frame { state: State::Hyp, ..Frame::HOST });
        }
    }

    /// VM_CREATE.
    pub fn create(&mut self, vm: usize, protected: bool, may_revoke: bool) {
        self.vms.insert(vm, Vm { protected, may_revoke, ..Vm::default() });
    }

    /// VM_SET_RIGHTS: before activation only.
    pub fn set_rights(&mut self, vm: usize, rights: u64) -> Status {
        let Some(vm) = self.vms.get_mut(&vm) else { return Status::Invalid };
        match (rights & !flags::vm::RIGHT_REVOKE, vm.active) {
            (0, false) => {
                vm.may_revoke = rights & flags::vm::RIGHT_REVOKE != 0;
                Status::Success
            }
            (0, true) => Status::Denied,
            _ => Status::Invalid,
        }
    }

    /// VM_ACTIVATE; also the first run.
    pub fn activate(&mut self, vm: usize) {
        if let Some(vm) = self.vms.get_mut(&vm) {
            vm.active = true;
        }
    }

    /// VM_DESTROY to its end: every frame goes to quarantine, and on to the host unless it is pinned (F4).
    pub fn destroy(&mut self, vm: usize) {
        let Some(dead) = self.vms.remove(&vm) else { return };
        for pfn in self.owned(vm) {
            self.quarantine(pfn);
        }
        // What a plain VM mapped of the host's own memory loses its leaves.
        for pfn in dead.addresses.values().filter_map(|address| address.frame) {
            if let Some(frame) = self.frames.get_mut(&pfn)
                && frame.state == State::Host
                && frame.owner.is_none()
            {
                frame.guest_leaves = frame.guest_leaves.saturating_sub(1);
            }
        }
    }

    /// HOST_RESET to its end (B5): every VM is dead, the host uses nothing any more, and what its pins alone kept is its own
    /// again. What it lent to its own pool comes home too ([`Model::drained`]). Entries of an IOMMU table are EL2's.
    pub fn reset(&mut self) {
        for vm in self.vms.keys().copied().collect::<Vec<_>>() {
            self.destroy(vm);
        }
        for frame in self.frames.values_mut() {
            (frame.cpu_pins, frame.dma_pins) = (0, 0);
            if frame.state == State::Quarantine && frame.dma_leaves == 0 {
                *frame = Frame::HOST;
            }
        }
    }

    /// Frames that `vm` owns.
    pub fn owned(&self, vm: usize) -> Vec<u64> {
        self.frames.iter().filter(|(_, frame)| frame.owner == Some(vm)).map(|(&pfn, _)| pfn).collect()
    }

    /// Frames in each state (B4).
    pub fn totals(&self) -> BTreeMap<u8, u64> {
        let mut totals = BTreeMap::new();
        for frame in self.frames.values() {
            *totals.entry(frame.state as u8).or_default() += 1;
        }
        totals
    }

    /// Out of a VM: scrubbed and the host's, at once or at the last unpin.
    pub fn quarantine(&mut self, pfn: u64) {
        let Some(frame) = self.frames.get_mut(&pfn) else { return };
        // What was private is scrubbed before a holder of an old pin may see it.
        let kept = Frame {
            host_leaf: frame.host_leaf,
            dma_leaves: frame.dma_leaves,
            cpu_pins: frame.cpu_pins,
            dma_pins: frame.dma_pins,
            ..Frame::HOST
        };
        let state = if frame.pins() == 0 && frame.dma_leaves == 0 { State::Host } else { State::Quarantine };
        *frame = Frame { state, host_leaf: kept.host_leaf && state != State::Host, ..kept };
    }

    /// True for a run of guest frames that is not empty and stays below 2^38 bytes, the guest's half of the space (C4).
    fn is_guest_run(gfn: u64, count: u64) -> bool {
        count > 0 && gfn.checked_add(count).is_some_and(|end| end <= 1 << 26)
    }

    /// The one rule of ranges (U4): all or nothing, the lowest page that blocks is named; of a range that is longer than one
    /// call (`part`) at least some, unless the first page blocks.
    fn range(
        &mut self,
        count: u64,
        part: bool,
        judge: impl Fn(&Self, u64) -> Result<(), Block>,
        commit: impl Fn(&mut Self, u64),
    ) -> Reply {
        let mut count = count.min(MAX_ATOMIC_PAGES);
        for index in 0..count {
            match judge(self, index) {
                Ok(()) => {}
                Err((status, mask)) if index == 0 || !part => return Reply::blocked(status, index, mask),
                Err(_) => {
                    count = index.min(PART);
                    break;
                }
            }
        }
        for index in 0..count {
            commit(self, index);
        }
        Reply::done(count)
    }

    /// A frame named twice in one call would be judged wrongly; callers of the model avoid it.
    pub fn distinct(pfns: &[u64]) -> bool {
        pfns.iter().collect::<BTreeSet<_>>().len() == pfns.len()
    }
}

/// Kind of frame that an address of this status takes: private or shared RAM.
fn kind_of(status: u64) -> Option<u64> {
    match status {
        status::PRIVATE | status::RELINQUISHED => Some(status::PRIVATE),
        status::SHARED => Some(status::SHARED),
        _ => None,
    }
}
