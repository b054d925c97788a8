//! [`Mm`]: the manager itself, what it is made of and what it can tell.
//!
//! All calls take `&self` and may run on all CPUs at once. The operations stand in [`crate::transition`], one file a
//! family.

use arrayvec::ArrayVec;
use tenure_abi::flags::vm as flags;
use tenure_abi::page::State;
use tenure_abi::reply::{Reply, Status};

use crate::addr::Pfn;
use crate::frames::Frames;
use crate::machine::Machine;
use crate::pool::HostPool;
use crate::stage2::host::{HostMap, Kind, Structure};
use crate::stage2::{Attr, HostAttr};
use crate::state::Refusal;
use crate::sync::{AtomicBool, AtomicU64, Guard, Lock, Ordering, lock, rank};
use crate::tlb;
use crate::transition::{MAX_OWED, Recent};
use crate::vm::{Slot, Vm, VmHandle, VmRef};
use crate::word::{PageWord, Word};

/// Frames that one entry to EL2 scrubs at most.
pub const SCRUB_CHUNK: u64 = if cfg!(small_tables) { 4 } else { 32 };

/// Words that one entry to EL2 reads at most.
pub const SCAN_CHUNK: u64 = 768;

/// Frames that one call counts.
pub const COUNT_CHUNK: u64 = 384;

/// Leaves that one call of the host makes for itself.
pub const MAP_CHUNK: u64 = 128;

/// What the machine offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// The CPUs have FEAT_S2FWB: the host and guests run with HCR_EL2.FWB.
    pub fwb: bool,
}

/// Events that are counted.
#[derive(Debug)]
pub struct Stats {
    /// Accesses of the host that were refused.
    pub host_aborts: AtomicU64,
    /// Accesses of the host that were led to a scrap frame.
    pub scrap_touches: AtomicU64,
}

/// The guest-memory manager of a machine.
#[derive(Debug)]
pub struct Mm<'a, M: Machine> {
    pub(crate) machine: M,
    pub(crate) frames: Frames<'a>,
    pub(crate) host: HostMap,
    pub(crate) guest_attr: Attr,
    pub(crate) host_attr: HostAttr,
    vms: &'a [Vm],
    /// Locks of the host map's structure.
    pub(crate) structure: Structure,
    /// Blocks of the host that may be merged.
    pub(crate) recent: Lock<Recent, { rank::RECENT }>,
    host_pool: Lock<HostPool, { rank::POOL }>,
    /// Frames whose pin of the hypervisor is to end when their words let it.
    pub(crate) owed: Lock<ArrayVec<Pfn, MAX_OWED>, { rank::OWED }>,
    panic_mode: AtomicBool,
    panic_scrap: AtomicU64,
    /// Counters.
    pub stats: Stats,
}

impl<'a, M: Machine> Mm<'a, M> {
    /// A manager over `frames` with the host's root tables at `host` and VM slots `vms` (numbered from 1 in order).
    pub fn new(machine: M, frames: Frames<'a>, host: HostMap, vms: &'a [Vm], config: Config) -> Self {
        Self {
            machine,
            frames,
            host,
            guest_attr: if config.fwb { Attr::GUEST_FWB } else { Attr::GUEST },
            host_attr: HostAttr::new(config.fwb),
            vms,
            structure: Structure::new(),
            recent: Lock::new(Recent::new()),
            host_pool: Lock::new(HostPool::empty()),
            owed: Lock::new(ArrayVec::new()),
            panic_mode: AtomicBool::new(false),
            panic_scrap: AtomicU64::new(0),
            stats: Stats { host_aborts: AtomicU64::new(0), scrap_touches: AtomicU64::new(0) },
        }
    }

    /// Adds a page of the hypervisor's own (its word says `Hyp`) to the host's pool, at boot.
    pub fn boot_add_page(&self, page: Pfn) {
        lock(&self.host_pool).keep(&self.machine, page);
    }

    /// Maps frames for the host, at boot, before any CPU runs the host.
    ///
    /// # Errors
    /// The pool is short.
    pub fn boot_map(&self, frames: core::ops::Range<u64>, kind: Kind) -> Result<(), Refusal> {
        let attr = match kind {
            Kind::Ram => Some(self.host_attr.ram),
            Kind::Other => Some(self.host_attr.other),
            Kind::Hidden => None,
        };
        let mut pool = lock(&self.host_pool);
        let built = self.host.build(&self.machine, pool.kept(), frames, attr);
        if built { Ok(()) } else { Err(Refusal::HOST_POOL) }
    }

    /// Ends the boot: keeps a zeroed page back for panic mode.
    ///
    /// # Errors
    /// The pool is short.
    pub fn boot_finish(&self) -> Result<(), Refusal> {
        let page = self.host_pool().take(&self.machine).ok_or(Refusal::HOST_POOL)?;
        self.panic_scrap.store(page.0, Ordering::Release);
        Ok(())
    }

    /// The hardware.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// The page database.
    pub fn frames(&self) -> &Frames<'a> {
        &self.frames
    }

    /// The host's stage 2.
    pub fn host_map_root(&self) -> &HostMap {
        &self.host
    }

    /// Slots of all VMs.
    pub fn vms(&self) -> &'a [Vm] {
        self.vms
    }

    pub(crate) fn host_pool(&self) -> Guard<'_, HostPool> {
        lock(&self.host_pool)
    }

    pub(crate) fn panic_scrap(&self) -> Option<Pfn> {
        self.panic_mode.load(Ordering::Acquire).then(|| Pfn(self.panic_scrap.load(Ordering::Acquire)))
    }

    #[inline]
    pub(crate) fn cell(&self, frame: Pfn) -> Result<&'a PageWord, Refusal> {
        self.frames.word(frame).ok_or(Refusal::INVALID)
    }

    /// The VM in `slot`, whatever its state.
    pub(crate) fn slot(&self, slot: Slot) -> Option<&'a Vm> {
        self.vms.get(usize::from(slot.0).checked_sub(1)?)
    }

    /// Enters a live VM; it cannot be torn down before the result is dropped.
    ///
    /// # Errors
    /// INVALID: the handle is stale or never was.
    pub fn vm(&self, handle: VmHandle) -> Result<VmRef<'a>, Status> {
        let vm = self.slot(handle.slot()).ok_or(Status::Invalid)?;
        VmRef::enter(vm, handle).ok_or(Status::Invalid)
    }

    /// Makes a VM without memory.
    ///
    /// # Errors
    /// INVALID: unknown flags. NO_MEMORY: all slots are taken.
    pub fn vm_create(&self, vm_flags: u64) -> Result<VmHandle, Status> {
        if vm_flags & !flags::ALL != 0 {
            return Err(Status::Invalid);
        }
        for vm in self.vms {
            if let Some(handle) = vm.claim(vm_flags) {
                // The VMID may have been another VM's.
                tlb::flush_vmid(&self.machine, vm.vmid());
                return Ok(handle);
            }
        }
        Err(Status::NoMemory)
    }

    /// Sets what the guest may do, before activation.
    ///
    /// # Errors
    /// INVALID: not a right. DENIED: the VM is active.
    pub fn vm_set_rights(&self, vm: &Vm, rights: u64) -> Result<(), Status> {
        if rights & !flags::RIGHT_REVOKE != 0 {
            return Err(Status::Invalid);
        }
        if vm.is_active() {
            return Err(Status::Denied);
        }
        vm.set_rights(rights);
        Ok(())
    }

    /// From now on only the guest decides about its pages. Does nothing the second time.
    ///
    /// # Errors
    /// NO_MEMORY: the VM's pool has no page for the root table and the scrap frame.
    pub fn vm_activate(&self, vm: &Vm) -> Reply {
        let mut inner = vm.lock();
        if vm.is_active() {
            return Reply::done(0);
        }
        // The first image is complete when its last page is measured.
        if inner.measuring.is_some() {
            return Refusal::FROZEN.whole();
        }
        if inner.pool.free() < u64::from(vm.root().is_none()) + 1 {
            return Refusal::VM_POOL.whole();
        }
        if let Err(refusal) = self.ensure_root(vm, &mut inner.pool) {
            return refusal.whole();
        }
        let Some(scrap) = inner.pool.take(&self.machine) else { return Refusal::VM_POOL.whole() };
        self.machine.scrub(scrap);
        self.machine.dsb_ish();
        vm.set_scrap(Some(scrap));
        vm.set_active();
        Reply::done(0)
    }

    /// Takes a zeroed page of the VM's pool for the hypervisor's own use; it comes back by [`Mm::vm_put_page`] or at
    /// the VM's end.
    pub fn vm_take_page(&self, vm: &Vm) -> Option<Pfn> {
        vm.lock().pool.take(&self.machine)
    }

    /// Gives a page back to the VM's pool.
    pub fn vm_put_page(&self, vm: &Vm, page: Pfn) {
        vm.lock().pool.put(&self.machine, page);
    }

    /// SHA-256 over what was placed before activation, in order.
    pub fn vm_measurement(&self, vm: &Vm) -> [u8; 32] {
        vm.lock().measurement
    }

    /// Foreign RAM reads as scrap from now on, so that a crash kernel can dump.
    pub fn enter_panic_mode(&self) {
        self.panic_mode.store(true, Ordering::Release);
    }

    /// Ends panic mode: what was shown as scrap stays so until [`Mm::host_reset`] has passed it.
    pub fn leave_panic_mode(&self) {
        self.panic_mode.store(false, Ordering::Release);
    }

    /// The word of a frame.
    ///
    /// # Errors
    /// INVALID: no RAM.
    pub fn query(&self, frame: Pfn) -> Result<Word, Refusal> {
        Ok(self.cell(frame)?.load())
    }

    /// The stage-2 entry that decides about the host's access to a frame, and its level: for audits.
    pub fn host_entry(&self, frame: Pfn) -> (u64, u32) {
        let entry = self.host.walk(&self.machine, frame);
        (entry.descriptor.0, entry.level)
    }

    /// Counts frames by state over at most [`COUNT_CHUNK`] frames from `first` (frames that are no RAM are skipped).
    pub fn count(&self, first: Pfn, count: u64) -> (u64, Totals) {
        let count = count.min(COUNT_CHUNK);
        let mut totals = Totals::default();
        for index in 0..count {
            if let Some(cell) = self.frames.word(first.offset(index)) {
                totals.add(cell.load());
            }
        }
        (count, totals)
    }
}

/// Sums over page words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Frames in each state, by number of the state.
    pub states: [u64; State::ALL.len()],
    /// CPU pins.
    pub cpu_pins: u64,
    /// DMA pins.
    pub dma_pins: u64,
}

impl Totals {
    /// Adds one frame.
    pub fn add(&mut self, word: Word) {
        if let Some(count) = self.states.get_mut(word.state() as usize) {
            *count += 1;
        }
        self.cpu_pins += word.cpu_pins();
        self.dma_pins += word.dma_pins();
    }
}

impl Refusal {
    /// The answer of a call that no single page is to blame for.
    pub const fn whole(self) -> Reply {
        Reply { mask: self.mask, ..Reply::refused(self.status) }
    }
}
