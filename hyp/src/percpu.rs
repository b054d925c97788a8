//! What each physical CPU has of its own: stacks, and [`Cpu`], to which `TPIDR_EL2` points.
//!
//! A CPU's area is one run of pages: guard, stack, guard, crash stack, [`Cpu`]. The guards are never mapped. The boot
//! CPU's is part of the image; the others' are taken from Tenure's memory at boot.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use tenure_arch::features::Features;
use tenure_arch::frame::CpuHead;
use tenure_arch::sysreg;
use tenure_dt::Region;
use tenure_dt::platform::MAX_CPUS;

use crate::vcpu::world::CpuWorld;

/// Bytes of stack.
const STACK_SIZE: usize = 64 << 10;
/// Bytes of the stack that a crash is reported on.
const CRASH_SIZE: usize = 8 << 10;
const GUARD: usize = 4096;

/// A CPU's own data.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Cpu {
    /// What the vectors read; first.
    pub head: CpuHead,
    /// Top of the stack.
    stack_top: AtomicU64,
    /// Place in [`all`]: 0 is the boot CPU.
    pub index: AtomicUsize,
    /// Affinity fields of its MPIDR.
    pub mpidr: AtomicU64,
    /// [`PowerState`], as a number.
    state: AtomicU8,
    /// It is turned off by waiting in EL2, not by the firmware.
    pub parks: AtomicBool,
    /// It has come to EL2 at least once.
    pub arrived: AtomicBool,
    /// Where the host wants it to start, once it is on.
    pub entry: AtomicU64,
    /// `x0` of the host at that place.
    pub context: AtomicU64,
    /// `VTTBR_EL2` to put back when the manager is done with another VMID.
    pub vttbr: AtomicU64,
    /// A crash is being reported on this CPU.
    pub crashing: AtomicBool,
    /// What the CPU has; written once, before the host runs on it.
    features: spin::Once<Features>,
    /// For the switch between the host and guests.
    pub world: CpuWorld,
}

/// Whether a CPU runs the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PowerState {
    /// Parked in EL2, with the firmware, or on the way there.
    Off = 0,
    /// Asked for; where it is to enter is still being written down.
    Claimed = 1,
    /// Asked for, not yet here.
    Pending = 2,
    /// Here.
    On = 3,
}

/// The pages of one CPU.
#[repr(C, align(4096))]
pub struct Area {
    stack_guard: [u8; GUARD],
    stack: UnsafeCell<[u8; STACK_SIZE]>,
    crash_guard: [u8; GUARD],
    crash: UnsafeCell<[u8; CRASH_SIZE]>,
    cpu: Cpu,
}

// SAFETY: the stacks are never reached through a reference; the rest is atomics.
unsafe impl Sync for Area {}

/// The boot CPU's area. All of it is zero, so it lies in `.bss`.
pub static BOOT_CPU: Area = Area {
    stack_guard: [0; GUARD],
    stack: UnsafeCell::new([0; STACK_SIZE]),
    crash_guard: [0; GUARD],
    crash: UnsafeCell::new([0; CRASH_SIZE]),
    cpu: Cpu::new(),
};

/// Offset of the stack's top in an [`Area`].
pub const STACK_TOP: usize = offset_of!(Area, crash_guard);
/// Offset of the stack's top in [`Cpu`], for the assembly.
pub const CPU_STACK: usize = offset_of!(Cpu, stack_top);
/// Offset of the MPIDR in [`Cpu`], for the assembly.
pub const CPU_MPIDR: usize = offset_of!(Cpu, mpidr);
/// Bytes of an area.
pub const AREA_SIZE: u64 = size_of::<Area>() as u64;

/// The CPUs' data, null where there is none.
pub static CPUS: [AtomicPtr<Cpu>; MAX_CPUS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CPUS];

impl Cpu {
    const fn new() -> Self {
        Self {
            head: CpuHead::new(),
            stack_top: AtomicU64::new(0),
            index: AtomicUsize::new(0),
            mpidr: AtomicU64::new(0),
            state: AtomicU8::new(0),
            parks: AtomicBool::new(false),
            arrived: AtomicBool::new(false),
            entry: AtomicU64::new(0),
            context: AtomicU64::new(0),
            vttbr: AtomicU64::new(0),
            crashing: AtomicBool::new(false),
            features: spin::Once::new(),
            world: CpuWorld::new(),
        }
    }

    /// What this CPU has. Read from the ID registers at the first call, which the CPU itself makes.
    pub fn features(&self) -> &Features {
        self.features.call_once(Features::current)
    }

    /// This CPU, which asks, has the features that the memory manager was told of at boot, from the first CPU's registers.
    pub fn does_what_the_first_does(&self) -> bool {
        let ours = self.features();
        all().next().is_none_or(|first| {
            let first = first.features();
            (ours.s2fwb || !first.s2fwb) && (ours.tlbi_range || !first.tlbi_range)
        })
    }

    /// Top of its stack.
    pub fn stack_top(&self) -> u64 {
        self.stack_top.load(Ordering::Relaxed)
    }

    /// Its power state.
    pub fn state(&self) -> PowerState {
        match self.state.load(Ordering::Acquire) {
            0 => PowerState::Off,
            1 => PowerState::Claimed,
            2 => PowerState::Pending,
            _ => PowerState::On,
        }
    }

    /// Sets its power state.
    pub fn set_state(&self, state: PowerState) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// Sets its power state if it is `from`; says whether it was.
    pub fn change_state(&self, from: PowerState, to: PowerState) -> bool {
        self.state.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl Area {
    /// Fills in a zeroed area.
    fn set_up(&'static self, index: usize, mpidr: u64) -> &'static Cpu {
        let cpu = &self.cpu;
        let base = self as *const Self as u64;
        cpu.stack_top.store(base + STACK_TOP as u64, Ordering::Relaxed);
        cpu.head.crash_stack.store(base + offset_of!(Self, cpu) as u64, Ordering::Relaxed);
        cpu.index.store(index, Ordering::Relaxed);
        cpu.mpidr.store(mpidr, Ordering::Relaxed);
        if let Some(slot) = CPUS.get(index) {
            slot.store((cpu as *const Cpu).cast_mut(), Ordering::Release);
        }
        cpu
    }
}

/// Guard pages of the area at `base`: to be left unmapped.
pub fn guards(base: u64) -> [Region; 2] {
    let page = |offset: usize| Region { base: base + offset as u64, size: GUARD as u64 };
    [page(offset_of!(Area, stack_guard)), page(offset_of!(Area, crash_guard))]
}

/// Address of the boot CPU's area.
pub fn boot_area() -> u64 {
    (&raw const BOOT_CPU) as u64
}

/// Makes the boot CPU's data usable. Called with the MMU off: plain stores only.
pub fn set_up_boot_cpu() {
    let cpu = BOOT_CPU.set_up(0, sysreg::mpidr_el1() & sysreg::MPIDR_AFFINITY);
    make_current(cpu);
    // Others look at them later, who must not read their own instead.
    cpu.features();
    cpu.arrived.store(true, Ordering::Relaxed);
    cpu.set_state(PowerState::On);
}

/// Makes a CPU's data of `AREA_SIZE` bytes at `base`.
///
/// # Safety
/// The range must be memory that is Tenure's for good and used for nothing else, page-aligned, and mapped but for its
/// guards.
pub unsafe fn set_up_at(base: u64, index: usize, mpidr: u64) {
    let area = core::ptr::with_exposed_provenance_mut::<Area>(base as usize);
    // SAFETY: the field lies inside the range that the caller gives.
    let cpu = unsafe { &raw mut (*area).cpu };
    // SAFETY: as above; nothing refers to it yet.
    unsafe { cpu.write(Cpu::new()) };
    // SAFETY: the stacks are bytes in cells, of which any value is valid; the `Cpu` was just written.
    let area = unsafe { &*area };
    area.set_up(index, mpidr);
}

/// Makes `cpu` the one that [`this`] answers on the CPU that runs this.
pub fn make_current(cpu: &'static Cpu) {
    // SAFETY: the register is read by the vectors and `this` only, and a `Cpu` begins with a `CpuHead`.
    unsafe { sysreg::write_tpidr_el2(cpu as *const Cpu as u64) };
}

/// The CPU that runs this.
pub fn this() -> &'static Cpu {
    // SAFETY: set by `make_current` before any Rust code that asks, to a `Cpu` that lives for ever.
    unsafe { &*core::ptr::with_exposed_provenance::<Cpu>(sysreg::tpidr_el2() as usize) }
}

/// All CPUs that were set up, in order of their index.
pub fn all() -> impl Iterator<Item = &'static Cpu> {
    // SAFETY: a pointer in the table is null or a `Cpu` that lives for ever.
    CPUS.iter().filter_map(|slot| unsafe { slot.load(Ordering::Acquire).as_ref() })
}

/// HCR_EL2.FWB is set for the host and guests, and all tables are made for it: FEAT_S2FWB of the boot CPU decides.
pub fn forced_types() -> bool {
    all().next().is_some_and(|cpu| cpu.features().s2fwb)
}

/// The CPU with these affinity fields.
pub fn by_mpidr(mpidr: u64) -> Option<&'static Cpu> {
    all().find(|c| c.mpidr.load(Ordering::Relaxed) == mpidr)
}
