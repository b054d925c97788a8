//! The memory side of a virtual machine: its slot, handle, tables and pool.
//!
//! A slot's *gate* says whether the VM lives and how many CPUs use it. A call enters by handle and leaves by dropping
//! the [`VmRef`]; a dying VM lets nobody in, and its teardown begins when the last user is out. The slot number is
//! the VMID and the owner in page words, so a slot is used again only when no word names it.
//!
//! Lock: [`Vm::inner`] guards the structure of the guest's stage 2 and the pool. Order: page words (which never wait)
//! → `Vm::inner` → the host's structure.

use tenure_abi::flags::vm as flags;

use crate::addr::{Pa, Pfn};
use crate::machine::Vmid;
use crate::pool::Pool;
use crate::stage2::blocks::Kept;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Guard, Lock, Ordering, lock, rank};
use crate::transition::Measuring;

/// VMs at one time.
pub const MAX_VMS: usize = 64;

/// Number of a VM, from 1; 0 stands for none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct Slot(pub u8);

impl Slot {
    /// Nobody's.
    pub const NONE: Self = Self(0);

    /// The VM's hardware tag.
    pub const fn vmid(self) -> Vmid {
        Vmid(self.0 as u16)
    }
}

/// Name of a VM for its host: the slot and a generation that is never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct VmHandle(pub u64);

impl VmHandle {
    const fn new(generation: u32, slot: Slot) -> Self {
        Self((generation as u64) << 8 | slot.0 as u64)
    }

    /// The slot that the handle points at; it may be stale.
    pub const fn slot(self) -> Slot {
        Slot(self.0 as u8)
    }

    const fn generation(self) -> u64 {
        self.0 >> 8
    }
}

const LIVE: u64 = 1 << 31;
const DYING: u64 = 1 << 30;
const USERS: u64 = DYING - 1;

/// State behind the VM's lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inner {
    /// Table memory of the VM.
    pub pool: Pool,
    /// Tables of its merged blocks.
    pub kept: Kept,
    /// SHA-256 chain over what was placed before activation.
    pub measurement: [u8; 32],
    /// The page that is being converted and measured.
    pub measuring: Option<Measuring>,
    /// Where a resumable teardown stands.
    pub teardown: Teardown,
}

impl Inner {
    const EMPTY: Self = Self {
        pool: Pool::empty(),
        kept: Kept::EMPTY,
        measurement: [0; 32],
        measuring: None,
        teardown: Teardown::Leaves(0),
    };
}

/// All slots of a machine, empty.
#[cfg(not(loom))]
pub const fn slots() -> [Vm; MAX_VMS] {
    let mut vms = [const { Vm::new(Slot::NONE) }; MAX_VMS];
    let mut index = 0;
    while index < MAX_VMS {
        vms[index].slot = Slot(index as u8 + 1);
        index += 1;
    }
    vms
}

/// Progress of a teardown: the phase it is in, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Teardown {
    /// Leaves go; the next guest frame to look at.
    Leaves(u64),
    /// The frames of a block, which has lost its leaf, go home.
    Block {
        /// Its first frame.
        first: Pfn,
        /// Frames of it that have gone.
        done: u64,
        /// Where the leaves go on.
        next: u64,
    },
    /// Nobody walks the tree at `root` any more, its tables go back to the pool; the next guest frame.
    Tables {
        /// The root table.
        root: Pa,
        /// Next guest frame whose tables are to go.
        next: u64,
    },
    /// As `Tables`, of the tree of kept tables.
    Kept {
        /// Its root.
        root: Pa,
        /// Next place in it, in guest frames.
        next: u64,
    },
    /// Frames without a leaf are looked for among the words; the next RAM frame, counted over all regions.
    Orphans(u64),
    /// Pool pages go home.
    Pages,
    /// Pages of the VM that are in nobody's list are looked for among the words.
    Strays(u64),
}

/// One VM slot.
#[derive(Debug)]
pub struct Vm {
    slot: Slot,
    /// generation << 32 | LIVE | DYING | users.
    gate: AtomicU64,
    flags: AtomicU64,
    active: AtomicBool,
    root: AtomicU64,
    scrap: AtomicU64,
    /// Frames that the VM owns without a guest leaf.
    pub(crate) orphans: AtomicU32,
    inner: Lock<Inner, { rank::VM }>,
}

impl Vm {
    /// An empty slot.
    #[cfg(not(loom))]
    pub const fn new(slot: Slot) -> Self {
        Self {
            slot,
            gate: AtomicU64::new(0),
            flags: AtomicU64::new(0),
            active: AtomicBool::new(false),
            root: AtomicU64::new(0),
            scrap: AtomicU64::new(0),
            orphans: AtomicU32::new(0),
            inner: Lock::new(Inner::EMPTY),
        }
    }

    /// An empty slot.
    #[cfg(loom)]
    pub fn new(slot: Slot) -> Self {
        Self {
            slot,
            gate: AtomicU64::new(0),
            flags: AtomicU64::new(0),
            active: AtomicBool::new(false),
            root: AtomicU64::new(0),
            scrap: AtomicU64::new(0),
            orphans: AtomicU32::new(0),
            inner: Lock::new(Inner::EMPTY),
        }
    }

    /// Takes an empty slot for a new VM with `flags`; `None` if it is taken.
    pub(crate) fn claim(&self, flags: u64) -> Option<VmHandle> {
        let gate = self.gate.load(Ordering::Acquire);
        if gate & (LIVE | DYING) != 0 {
            return None;
        }
        let generation = (gate >> 32).wrapping_add(1) & u64::from(u32::MAX);
        let taken = generation << 32 | DYING | gate & USERS;
        self.gate.compare_exchange(gate, taken, Ordering::AcqRel, Ordering::Acquire).ok()?;
        self.flags.store(flags, Ordering::Relaxed);
        self.active.store(false, Ordering::Relaxed);
        self.root.store(0, Ordering::Relaxed);
        self.scrap.store(0, Ordering::Relaxed);
        self.orphans.store(0, Ordering::Relaxed);
        *lock(&self.inner) = Inner::EMPTY;
        self.gate.fetch_xor(DYING | LIVE, Ordering::AcqRel);
        Some(VmHandle::new(generation as u32, self.slot))
    }

    /// Closes the gate of the VM that `handle` names. True if it is dying now.
    pub(crate) fn condemn(&self, handle: VmHandle) -> bool {
        let gate = self.gate.load(Ordering::Acquire);
        if gate >> 32 != handle.generation() || gate & LIVE == 0 {
            return false;
        }
        gate & DYING != 0 || self.gate.fetch_or(DYING, Ordering::AcqRel) >> 32 == handle.generation()
    }

    /// The dead VM's slot may be used again; its generation never.
    pub(crate) fn free(&self) {
        self.gate.fetch_and(!(LIVE | DYING), Ordering::AcqRel);
    }

    /// The present VM's handle, if one lives (or dies) here.
    pub fn handle(&self) -> Option<VmHandle> {
        let gate = self.gate.load(Ordering::Acquire);
        (gate & LIVE != 0).then(|| VmHandle::new((gate >> 32) as u32, self.slot))
    }

    /// True while a call or a loaded vCPU uses the VM.
    pub(crate) fn is_used(&self) -> bool {
        self.gate.load(Ordering::Acquire) & USERS != 0
    }

    fn enter(&self, handle: VmHandle) -> bool {
        let gate = self.gate.fetch_add(1, Ordering::AcqRel);
        if gate >> 32 == handle.generation() && gate & (LIVE | DYING) == LIVE {
            return true;
        }
        self.leave();
        false
    }

    fn leave(&self) {
        self.gate.fetch_sub(1, Ordering::AcqRel);
    }

    /// The slot.
    pub const fn slot(&self) -> Slot {
        self.slot
    }

    /// Hardware tag.
    pub const fn vmid(&self) -> Vmid {
        self.slot.vmid()
    }

    /// The guest is protected.
    pub fn is_protected(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & flags::PROTECTED != 0
    }

    /// The guest may revoke.
    pub fn may_revoke(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & flags::RIGHT_REVOKE != 0
    }

    /// The VM has been activated.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// Only the guest decides what is shared: the VM is protected and active.
    pub fn is_sealed(&self) -> bool {
        self.is_protected() && self.is_active()
    }

    pub(crate) fn set_rights(&self, rights: u64) {
        let flags = self.flags.load(Ordering::Relaxed) & flags::PROTECTED;
        self.flags.store(flags | rights & flags::RIGHT_REVOKE, Ordering::Relaxed);
    }

    pub(crate) fn set_active(&self) {
        self.active.store(true, Ordering::Release);
    }

    /// Root table of the guest's stage 2, for VTTBR_EL2.
    pub fn root(&self) -> Option<Pa> {
        match self.root.load(Ordering::Acquire) {
            0 => None,
            root => Some(Pa(root)),
        }
    }

    pub(crate) fn set_root(&self, root: Option<Pa>) {
        self.root.store(root.map_or(0, |pa| pa.0), Ordering::Release);
    }

    /// The frame that stands in for pages taken from under the host.
    pub fn scrap(&self) -> Option<Pfn> {
        match self.scrap.load(Ordering::Acquire) {
            0 => None,
            scrap => Some(Pfn(scrap)),
        }
    }

    pub(crate) fn set_scrap(&self, scrap: Option<Pfn>) {
        self.scrap.store(scrap.map_or(0, |frame| frame.0), Ordering::Release);
    }

    pub(crate) fn lock(&self) -> Guard<'_, Inner> {
        lock(&self.inner)
    }
}

/// A live VM, kept alive while this exists.
#[derive(Debug)]
pub struct VmRef<'m> {
    vm: &'m Vm,
}

impl<'m> VmRef<'m> {
    /// Enters the VM that `handle` names, if it lives.
    pub(crate) fn enter(vm: &'m Vm, handle: VmHandle) -> Option<Self> {
        vm.enter(handle).then(|| Self { vm })
    }
}

impl core::ops::Deref for VmRef<'_> {
    type Target = Vm;
    fn deref(&self) -> &Vm {
        self.vm
    }
}

impl Drop for VmRef<'_> {
    fn drop(&mut self) {
        self.vm.leave();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_handle_dies_with_its_vm() {
        let vm = Vm::new(Slot(1));
        let first = vm.claim(0).unwrap();
        assert!(vm.claim(0).is_none());
        let user = VmRef::enter(&vm, first).unwrap();
        assert!(vm.condemn(first) && vm.is_used());
        assert!(VmRef::enter(&vm, first).is_none());
        drop(user);
        assert!(!vm.is_used());
        vm.free();
        let second = vm.claim(0).unwrap();
        assert_ne!(first, second);
        assert!(VmRef::enter(&vm, first).is_none());
        assert!(!vm.condemn(first));
        assert!(!vm.is_used());
    }
}
