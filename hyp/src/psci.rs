//! PSCI for the host (DEN0022), on every board: the board's firmware underneath, or Tenure itself.
//!
//! A CPU that the host turns on comes to EL2 first, where every register is set again, and only then to the host. The
//! firmware is called only where the board's own tree offered PSCI by SMC; without firmware at EL3 an SMC never returns.
//! Elsewhere a CPU that is off waits in EL2 ([`park`]), and the board's own power block ends the machine.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::Once;
use tenure_arch::{barrier, cpu, smc, sysreg};
use tenure_boards::power::{End, Power};
use tenure_dt::{Conduit, Platform};

use crate::boot::head;
use crate::percpu::{self, Cpu, PowerState};
use crate::{calls, console, host};

/// Function ids of the 32-bit convention; the 64-bit ones have bit 30 set too. Guests are answered by the same numbers.
#[allow(missing_docs, reason = "named as in DEN0022")]
pub mod id {
    pub const VERSION: u32 = 0x8400_0000;
    pub const CPU_SUSPEND: u32 = 0x8400_0001;
    pub const CPU_OFF: u32 = 0x8400_0002;
    pub const CPU_ON: u32 = 0x8400_0003;
    pub const AFFINITY_INFO: u32 = 0x8400_0004;
    pub const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
    pub const SYSTEM_OFF: u32 = 0x8400_0008;
    pub const SYSTEM_RESET: u32 = 0x8400_0009;
    pub const FEATURES: u32 = 0x8400_000a;
    pub const SMCCC_VERSION: u32 = 0x8000_0000;
    /// The bit that makes an id one of the 64-bit convention.
    pub const SMC64: u32 = 0x4000_0000;
}

/// Results, sign-extended.
#[allow(missing_docs, reason = "named as in DEN0022")]
pub mod result {
    pub const SUCCESS: u64 = 0;
    pub const NOT_SUPPORTED: u64 = -1i64 as u64;
    pub const INVALID_PARAMETERS: u64 = -2i64 as u64;
    pub const ALREADY_ON: u64 = -4i64 as u64;
    pub const ON_PENDING: u64 = -5i64 as u64;
    pub const INTERNAL_FAILURE: u64 = -6i64 as u64;
    pub const NOT_PRESENT: u64 = -7i64 as u64;
    pub const INVALID_ADDRESS: u64 = -9i64 as u64;
}

/// Answers of AFFINITY_INFO.
#[allow(missing_docs, reason = "named as in DEN0022")]
pub mod affinity {
    pub const ON: u64 = 0;
    pub const OFF: u64 = 1;
    pub const ON_PENDING: u64 = 2;
}

/// PSCI 1.1.
pub const VERSION_1_1: u64 = 0x1_0001;
/// MIGRATE_INFO_TYPE: no trusted OS that would have to migrate.
pub const NO_TRUSTED_OS: u64 = 2;
/// The power state asks for a power-down (bit 16 of the original format, bit 30 of the extended one).
const POWER_DOWN: u64 = 1 << 16;
const POWER_DOWN_EXTENDED: u64 = 1 << 30;

/// The board has firmware that can be called by SMC.
static FIRMWARE: AtomicBool = AtomicBool::new(false);
/// CPU_SUSPEND's flags, as the firmware tells them.
static SUSPEND_FEATURES: AtomicU64 = AtomicU64::new(result::NOT_SUPPORTED);

/// The board's own way to end, where the firmware has none.
static POWER: Once<Power> = Once::new();

/// Polls that a power block has to do its work after it was told to.
const POWER_PATIENCE: u32 = 1 << 26;

/// Notes what the board offers. `power` is its own power block.
pub fn set_up(platform: &Platform<'_>, power: Option<Power>) {
    let firmware_starts_cpus = platform.psci == Some(Conduit::Smc);
    for cpu in &platform.cpus {
        if let Some(ours) = percpu::by_mpidr(cpu.mpidr) {
            ours.parks.store(cpu.release.is_some() || !firmware_starts_cpus, Ordering::Relaxed);
        }
    }
    if let Some(power) = power {
        POWER.call_once(|| power);
    }
    if !firmware_starts_cpus {
        return;
    }
    FIRMWARE.store(true, Ordering::Relaxed);
    let [flags, ..] = firmware([u64::from(id::FEATURES), u64::from(id::CPU_SUSPEND), 0, 0, 0, 0, 0, 0]);
    SUSPEND_FEATURES.store(flags as u32 as i32 as u64, Ordering::Relaxed);
}

/// Calls the firmware; NOT_SUPPORTED where there is none. Callers pass only calls that can name no memory of Tenure's.
pub fn firmware(arguments: [u64; 8]) -> [u64; 4] {
    if !FIRMWARE.load(Ordering::Relaxed) {
        return [result::NOT_SUPPORTED, 0, 0, 0];
    }
    // SAFETY: the board's tree says that firmware answers SMCs; the callers answer for the call.
    unsafe { smc::smc(arguments) }
}

/// A PSCI call of the host.
pub fn call(function: u32, [a, b, c]: [u64; 3]) -> u64 {
    let wide = function & id::SMC64 != 0;
    // Arguments of a 32-bit call are 32 bits.
    let cut = |v: u64| if wide { v } else { v as u32 as u64 };
    match function & !id::SMC64 {
        id::VERSION if !wide => VERSION_1_1,
        id::FEATURES if !wide => features(a as u32),
        id::CPU_ON => cpu_on(cut(a), cut(b), cut(c)),
        id::CPU_OFF if !wide => cpu_off(),
        id::CPU_SUSPEND => cpu_suspend(function, cut(a), cut(b), cut(c)),
        id::AFFINITY_INFO => affinity_info(cut(a), cut(b)),
        id::MIGRATE_INFO_TYPE if !wide => NO_TRUSTED_OS,
        id::SYSTEM_OFF | id::SYSTEM_RESET if !wide => system(function),
        _ => result::NOT_SUPPORTED,
    }
}

/// PSCI_FEATURES.
fn features(asked: u32) -> u64 {
    let wide_too = [id::CPU_ON, id::AFFINITY_INFO];
    let narrow = [
        id::VERSION,
        id::CPU_OFF,
        id::MIGRATE_INFO_TYPE,
        id::SYSTEM_OFF,
        id::SYSTEM_RESET,
        id::FEATURES,
        id::SMCCC_VERSION,
    ];
    if asked & !id::SMC64 == id::CPU_SUSPEND {
        return SUSPEND_FEATURES.load(Ordering::Relaxed);
    }
    if wide_too.contains(&(asked & !id::SMC64)) || narrow.contains(&asked) {
        result::SUCCESS
    } else {
        result::NOT_SUPPORTED
    }
}

/// The host may start a CPU at an address of its RAM only: anything else would fault there for ever.
fn is_entry(address: u64) -> bool {
    crate::machine::mm().frames().word(tenure_mm::Pa(address).frame()).is_some() && address.is_multiple_of(4)
}

/// CPU_ON: the CPU comes to us, and from there to the host's entry point.
fn cpu_on(mpidr: u64, entry: u64, context: u64) -> u64 {
    let Some(cpu) = percpu::by_mpidr(mpidr) else { return result::INVALID_PARAMETERS };
    if !is_entry(entry) {
        return result::INVALID_ADDRESS;
    }
    let parks = cpu.parks.load(Ordering::Relaxed);
    if parks && !cpu.arrived.load(Ordering::Acquire) {
        return result::NOT_PRESENT;
    }
    if !cpu.change_state(PowerState::Off, PowerState::Claimed) {
        return if cpu.state() == PowerState::On { result::ALREADY_ON } else { result::ON_PENDING };
    }
    cpu.entry.store(entry, Ordering::Relaxed);
    cpu.context.store(context, Ordering::Relaxed);
    cpu.set_state(PowerState::Pending);
    if parks {
        // The state is to be seen by whoever wakes.
        barrier::dsb_ish();
        cpu::send_event();
        return result::SUCCESS;
    }
    let on = u64::from(id::CPU_ON | id::SMC64);
    let [status, ..] = firmware([on, mpidr, head::secondary_entry(), 0, 0, 0, 0, 0]);
    if status != result::SUCCESS {
        cpu.set_state(PowerState::Off);
    }
    status
}

/// A CPU of ours has come: from a spin table, where it waits for the host's wish; from CPU_ON or a power-down: on to the
/// host.
pub fn arrived(cpu: &'static Cpu) -> ! {
    if !cpu.does_what_the_first_does() {
        // Nothing that runs here could be trusted to see what the manager does to its tables.
        console::line(format_args!(
            "CPU {:#x} lacks what the first one has (FEAT_S2FWB or FEAT_TLBIRANGE): not used",
            cpu.mpidr.load(Ordering::Relaxed)
        ));
        cpu.set_state(PowerState::Off);
        loop {
            cpu::wait_for_event();
        }
    }
    if !cpu.arrived.swap(true, Ordering::AcqRel) && cpu.parks.load(Ordering::Relaxed) {
        park(cpu)
    }
    enter(cpu)
}

fn enter(cpu: &'static Cpu) -> ! {
    let entry = cpu.entry.load(Ordering::Relaxed);
    let context = cpu.context.load(Ordering::Relaxed);
    cpu.set_state(PowerState::On);
    host::enter(entry, context)
}

/// Waits in EL2, out of the host's reach, until the host wants this CPU (again).
///
/// Interrupts stay masked, so what is pending neither is taken nor ends the wait.
fn park(cpu: &'static Cpu) -> ! {
    while cpu.state() != PowerState::Pending {
        cpu::wait_for_event();
    }
    enter(cpu)
}

/// CPU_OFF: returns only if the firmware refuses.
fn cpu_off() -> u64 {
    let cpu = percpu::this();
    calls::leave_cpu();
    cpu.set_state(PowerState::Off);
    if cpu.parks.load(Ordering::Relaxed) {
        park(cpu)
    }
    let [status, ..] = firmware([u64::from(id::CPU_OFF), 0, 0, 0, 0, 0, 0, 0]);
    cpu.set_state(PowerState::On);
    status
}

/// CPU_SUSPEND: a standby comes back here; a power-down comes back by [`arrived`], where everything is set again.
fn cpu_suspend(function: u32, power_state: u64, entry: u64, context: u64) -> u64 {
    let extended = SUSPEND_FEATURES.load(Ordering::Relaxed) & 2 != 0;
    let down = power_state & (if extended { POWER_DOWN_EXTENDED } else { POWER_DOWN }) != 0;
    if !down {
        let [status, ..] = firmware([u64::from(function), power_state, 0, 0, 0, 0, 0, 0]);
        return status;
    }
    if !is_entry(entry) {
        return result::INVALID_ADDRESS;
    }
    let cpu = percpu::this();
    calls::leave_cpu();
    cpu.entry.store(entry, Ordering::Relaxed);
    cpu.context.store(context, Ordering::Release);
    let suspend = u64::from(id::CPU_SUSPEND | id::SMC64);
    let [status, ..] = firmware([suspend, power_state, head::secondary_entry(), 0, 0, 0, 0, 0]);
    status
}

/// AFFINITY_INFO of one CPU (level 0); PSCI 1.0 need not know other levels.
fn affinity_info(mpidr: u64, level: u64) -> u64 {
    match percpu::by_mpidr(mpidr) {
        Some(_) if level != 0 => result::INVALID_PARAMETERS,
        None => result::INVALID_PARAMETERS,
        Some(cpu) if matches!(cpu.state(), PowerState::Claimed | PowerState::Pending) => affinity::ON_PENDING,
        Some(cpu) if cpu.parks.load(Ordering::Relaxed) => match cpu.state() {
            PowerState::On => affinity::ON,
            _ => affinity::OFF,
        },
        // The firmware knows when a CPU is really off.
        Some(_) => firmware([u64::from(id::AFFINITY_INFO | id::SMC64), mpidr, 0, 0, 0, 0, 0, 0])[0],
    }
}

/// SYSTEM_OFF and SYSTEM_RESET do not return, unless a guest cannot be ended first.
fn system(function: u32) -> u64 {
    calls::end_machine(|| power_down(function)).unwrap_or_else(|| {
        log::warn!("the host may not go: a vCPU does not come back");
        result::INTERNAL_FAILURE
    })
}

/// The end of the machine itself; returns if it does not come.
fn power_down(function: u32) -> u64 {
    if let Some(power) = POWER.get() {
        power.end(if function == id::SYSTEM_OFF { End::Off } else { End::Reset });
        for _ in 0..POWER_PATIENCE {
            core::hint::spin_loop();
        }
        return result::INTERNAL_FAILURE;
    }
    let [status, ..] = firmware([u64::from(function), 0, 0, 0, 0, 0, 0, 0]);
    if status == result::SUCCESS { result::INTERNAL_FAILURE } else { status }
}

const _: () = assert!(sysreg::MPIDR_AFFINITY == 0xff_00ff_ffff);
