//! Loading a vCPU's world onto a CPU and taking it off again.
//!
//! Order on the way in: the host's state is saved; monitors stop; the guest's traps, stage 2 and EL1 registers are loaded
//! while EL1 can make no walk; local translations of a sibling vCPU are dropped. On the way out: the guest's state is saved,
//! an SError of its making is taken while it can still be told from the host's, and the host's world is loaded the
//! same way.
#![allow(unsafe_code)] // The switch of worlds: every register write below is unsafe by contract.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU8, Ordering};

use tenure_arch::el1::El1State;
use tenure_arch::features::Features;
use tenure_arch::fp::{self, HostFp};
use tenure_arch::guest::{GuestRegs, Monitors, World as GuestWorld};
use tenure_arch::host::{HostRegs, hcr};
use tenure_arch::{cache, switch, sysreg, tlb};
use tenure_mm::MAX_VMS;

use super::context::Context;
use crate::percpu;

/// What a CPU keeps for the switch.
#[derive(Debug)]
pub struct CpuWorld {
    regs: spin::Once<GuestRegs>,
    /// For each VM slot: index + 1 of the vCPU that ran here last.
    last: [AtomicU8; MAX_VMS + 1],
    /// The host's vector registers, while a guest has the CPU's.
    fp: UnsafeCell<HostFp>,
}

// SAFETY: `fp` is touched by the CPU that it belongs to only, between `load` and `unload`; the rest is atomic.
unsafe impl Sync for CpuWorld {}

impl CpuWorld {
    /// Nothing ran here.
    pub const fn new() -> Self {
        Self {
            regs: spin::Once::new(),
            last: [const { AtomicU8::new(0) }; MAX_VMS + 1],
            fp: UnsafeCell::new(HostFp::EMPTY),
        }
    }
}

/// A guest's world, loaded on this CPU.
pub struct World {
    regs: GuestRegs,
    features: &'static Features,
    cpu: &'static percpu::Cpu,
    host: El1State,
    host_elr: u64,
    host_spsr: u64,
    monitors: Monitors,
}

/// What taking a world off showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Left {
    /// The guest's virtual timer had fired, with its interrupt unmasked.
    pub timer_fired: bool,
}

impl World {
    /// Loads the world of `context`, whose VM has the root table at `root`.
    ///
    /// # Safety
    /// The host's world must be loaded on this CPU, `context` held by it, its VM active and kept by a `VmRef`, and
    /// [`World::unload`] must follow before the host runs.
    pub unsafe fn load(context: &mut Context, root: u64) -> Self {
        let cpu = percpu::this();
        let features = cpu.features();
        let host = || HostRegs::current(percpu::forced_types());
        let regs = *cpu.world.regs.call_once(|| GuestRegs::new(features, &host()));
        let mut host = El1State::default();
        host.save();
        let (host_elr, host_spsr) = (sysreg::elr_el2(), sysreg::spsr_el2());
        // SAFETY: the host's world is loaded; `unload` resumes them.
        let monitors = unsafe { Monitors::stop(features) };
        // SAFETY: FEAT_SME is there, and the host's CPTR_EL2 allows it.
        let streaming = features.sme && unsafe { fp::streaming() };
        let guest = GuestWorld {
            vttbr: u64::from(context.vm.vmid().0) << 48 | root,
            vmpidr: context.mpidr(),
            cntvoff: 0,
            hcr: context.hcr,
        };
        // SAFETY: the host's state is saved; the root is the VM's own stage 2.
        let between = || unsafe { regs.load(&guest) };
        // SAFETY: the state of the vCPU that `switch::enter` will enter.
        unsafe { context.el1.load(between) };
        if features.ras && context.hcr & hcr::VSE != 0 {
            // SAFETY: the syndrome of the virtual SError: uncategorised.
            unsafe { sysreg::write_vsesr_el2(0) };
        }
        let slot = usize::from(context.vm.slot().0);
        if let Some(last) = cpu.world.last.get(slot)
            && last.swap(context.index + 1, Ordering::Relaxed) != context.index + 1
        {
            tlb::vmalle1();
            cache::invalidate_local_instructions();
        }
        let world = Self { regs, features, cpu, host, host_elr, host_spsr, monitors };
        if streaming {
            world.give_fp(context);
        }
        world
    }

    /// Gives the guest its FP/SIMD registers, at its first touch.
    pub fn give_fp(&self, context: &mut Context) {
        if context.fp_loaded {
            return;
        }
        // SAFETY: `open_fp` or `unload` sets CPTR_EL2 before any world is entered.
        unsafe { self.regs.open_fp_for_el2() };
        let room = self.cpu.world.fp.get();
        // SAFETY: this CPU's own, and no other reference to it lives.
        let room = unsafe { &mut *room };
        // SAFETY: EL2 may touch the registers.
        unsafe { room.save(self.features) };
        // SAFETY: what was in them was just saved.
        unsafe { context.fp.load() };
        context.fp_loaded = true;
        // SAFETY: the registers hold the guest's values.
        unsafe { self.regs.open_fp() };
    }

    /// Sets and clears `HCR_EL2` bits of the vCPU, from the next entry on.
    pub fn change_hcr(&self, context: &mut Context, set: u64, clear: u64) {
        context.hcr = taken_back(context.hcr) & !clear | set;
        // SAFETY: the guest's value with bits that only trap or inject.
        unsafe { sysreg::write_hcr_el2(self.regs.hcr | context.hcr) };
    }

    /// Takes the world off and gives the CPU back to the host.
    pub fn unload(self, context: &mut Context) -> Left {
        context.el1.save();
        context.hcr = taken_back(context.hcr);
        // SAFETY: all of the guest's state that it destroys is saved.
        if unsafe { switch::take_serror() } {
            context.hcr |= hcr::VSE;
        }
        if context.fp_loaded {
            // SAFETY: `regs.unload` sets CPTR_EL2 below.
            unsafe { self.regs.open_fp_for_el2() };
            // SAFETY: EL2 may touch the registers.
            unsafe { context.fp.save() };
            let room = self.cpu.world.fp.get();
            // SAFETY: this CPU's own, and no other reference to it lives.
            let room = unsafe { &*room };
            // SAFETY: `give_fp` filled it, and the guest's values are saved.
            unsafe { room.load(self.features) };
            context.fp_loaded = false;
        }
        // SAFETY: the guest's state is saved; the host's stage 2 is what it always is.
        let between = || unsafe { self.regs.unload(crate::host::vttbr()) };
        // SAFETY: the host's own state, saved when its world was left.
        unsafe { self.host.load(between) };
        // SAFETY: the host's controls are loaded.
        unsafe { self.monitors.resume(self.features) };
        // SAFETY: where the host called from, as it was.
        unsafe { sysreg::write_elr_el2(self.host_elr) };
        // SAFETY: the state it called from, EL1.
        unsafe { sysreg::write_spsr_el2(self.host_spsr) };
        Left { timer_fired: timer::fired(context.el1.cntv_ctl_el0) }
    }
}

/// The vCPU's `HCR_EL2` bits as they are now: a virtual SError that the guest has taken is gone from the register.
fn taken_back(bits: u64) -> u64 {
    bits & !hcr::VSE | sysreg::hcr_el2() & hcr::VSE
}

/// `CNTV_CTL_EL0` (DDI 0487 D24.10.20).
pub mod timer {
    const ENABLE: u64 = 1 << 0;
    /// The interrupt is masked.
    pub const IMASK: u64 = 1 << 1;
    const ISTATUS: u64 = 1 << 2;

    /// The timer's condition is met and its interrupt would be signalled.
    pub const fn fired(ctl: u64) -> bool {
        ctl & (ENABLE | IMASK | ISTATUS) == ENABLE | ISTATUS
    }
}
