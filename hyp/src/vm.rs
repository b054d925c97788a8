//! What the EL2 binary keeps of a VM beside its memory: its vCPUs and what they share.
//!
//! `tenure-mm` owns the VM's life (handle, gate, teardown). Here each of its slots has an array of vCPUs. A call that uses
//! them holds the manager's [`VmRef`](tenure_mm::VmRef), so the slot cannot be given to another VM meanwhile.

use core::sync::atomic::{AtomicBool, Ordering};

use tenure_dt::{Gic, Platform};
use tenure_mm::sync::{Lock, lock, rank};
use tenure_mm::{MAX_VMS, Slot, VmHandle};

use crate::revoke::Limit;
use crate::vcpu::slot::{Slot as VcpuSlot, Taken};

/// vCPUs of one VM.
pub const MAX_VCPUS: usize = 8;

/// The CPU side of one VM slot.
pub struct Cpus {
    gate: Lock<Gate, { rank::GATE }>,
    vcpus: [VcpuSlot; MAX_VCPUS],
    /// How often the guest may revoke.
    pub revoke: Limit,
}

/// Whether vCPUs can be made, and for whom.
struct Gate {
    handle: u64,
    closed: bool,
}

/// See [`are_offered`].
static OFFERED: AtomicBool = AtomicBool::new(false);

/// Notes whether this board can have VMs, and says so if it cannot.
pub fn set_up(platform: &Platform<'_>) {
    let offered = platform.gic != Gic::None;
    OFFERED.store(offered, Ordering::Relaxed);
    if !offered {
        log::info!("no GIC: interrupts are the host's alone, and there are no guests on this board");
    }
}

/// Whether VMs can be created on this board. Without a GIC they cannot: a guest's timer that has fired could not be held
/// off by the controller while the guest handles it, nor could a virtual interface ever stand in for one.
pub fn are_offered() -> bool {
    OFFERED.load(Ordering::Relaxed)
}

static VMS: [Cpus; MAX_VMS] = [const { Cpus::new() }; MAX_VMS];

/// The CPU side of a VM slot.
pub fn cpus(slot: Slot) -> Option<&'static Cpus> {
    VMS.get(usize::from(slot.0).checked_sub(1)?)
}

/// Why a vCPU cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closed {
    /// The VM is being taken apart.
    Dying,
    /// There is one with this index, or the index is too high.
    Exists,
}

impl Cpus {
    const fn new() -> Self {
        Self {
            gate: Lock::new(Gate { handle: 0, closed: false }),
            vcpus: [const { VcpuSlot::new() }; MAX_VCPUS],
            revoke: Limit::new(),
        }
    }

    /// The vCPU's place; whether there is one is for the place to tell.
    pub fn vcpu(&self, index: u64) -> Option<&VcpuSlot> {
        self.vcpus.get(usize::try_from(index).ok()?)
    }

    /// Runs `make` for the empty place of a new vCPU while the VM cannot be taken apart. The caller holds the `VmRef`.
    ///
    /// # Errors
    /// The VM is dying or the place is taken: `make` was not run. Else what `make` said.
    pub fn create<E: From<Closed>>(
        &self,
        handle: VmHandle,
        index: u64,
        make: impl FnOnce(&VcpuSlot) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut gate = lock(&self.gate);
        if gate.handle != handle.0 {
            // The first vCPU of a new VM in this slot; the one before is gone with all of its own.
            *gate = Gate { handle: handle.0, closed: false };
            self.revoke.reset();
        }
        if gate.closed {
            return Err(Closed::Dying.into());
        }
        match self.vcpu(index) {
            Some(vcpu) if vcpu.is_empty() => make(vcpu),
            _ => Err(Closed::Exists.into()),
        }
    }

    /// Takes all vCPUs of the VM apart, and lets no new one be made. `undo` gives back what a vCPU had; if it says false,
    /// that vCPU stays. Returns true when none is left; `None` if `lives` says that the slot is another VM's by now.
    pub fn dismantle(
        &self,
        handle: VmHandle,
        lives: impl FnOnce() -> bool,
        mut undo: impl FnMut(Taken) -> bool,
    ) -> Option<bool> {
        let mut gate = lock(&self.gate);
        // Asked under the lock that a vCPU is made under: no vCPU of a later VM can be here yet.
        if !lives() {
            return None;
        }
        *gate = Gate { handle: handle.0, closed: true };
        let mut all = true;
        for vcpu in &self.vcpus {
            all &= vcpu.take_apart(&mut undo);
        }
        Some(all)
    }
}
