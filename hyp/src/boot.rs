//! From the first instruction to the host's: what happens once.
//!
//! [`early`] runs with the MMU off, maps the image and turns it on; [`start`] does all the rest: read the tree, find a
//! console, plan the memory, build the host's stage 2, place the host, enter it. Other CPUs come in by [`secondary`].
#![allow(unsafe_code)]

use tenure_arch::{cache, cpu, vectors};
use tenure_boards::console::{Console, FALLBACK_PL011, Place};
use tenure_boards::power::{self, Power};
use tenure_dt::{Conduit, Device, Platform, Region, check, read};

use crate::panic::refuse;
use crate::{console, host, percpu, psci, vm};

pub mod bundle;
pub mod head;
pub mod image;
pub mod kernel;
pub mod memory;
pub mod mmu;
pub mod pages;
pub mod spin;
pub mod tree;

/// The only state to start in: EL2, with `HCR_EL2.E2H` = 0.
const AT_EL2: u64 = 2;

/// First Rust code: MMU off, so no atomic instruction, no lock, no log.
///
/// `tree` is what the boot loader left in `x0`; `state` the exception level, or 0x22 where E2H cannot be cleared.
pub extern "C" fn early(tree: u64, state: u64) -> ! {
    match state {
        AT_EL2 => {}
        0x22 => refuse_early(
            tree,
            "this CPU fixes HCR_EL2.E2H to 1 (VHE only), which Tenure does not support yet",
        ),
        1 => {
            refuse_early(tree, "entered at EL1, but a hypervisor needs EL2 (QEMU: -M virt,virtualization=on)")
        }
        _ => refuse_early(tree, "entered at EL3, but EL2 is needed (start it from the firmware)"),
    }
    percpu::set_up_boot_cpu();
    // SAFETY: the per-CPU data was just made current.
    unsafe { vectors::install() };
    let Some(blob) = tree_at(tree) else { refuse_early(tree, "no device tree at the address in x0") };
    match mmu::early(blob) {
        Ok(()) => start(blob),
        Err(_) => refuse_early(tree, "the image and the device tree cannot be mapped (above 512 GiB?)"),
    }
}

/// The memory that a device tree at `address` claims, if there is one.
fn tree_at(address: u64) -> Option<Region> {
    if address == 0 || !address.is_multiple_of(8) {
        return None;
    }
    // A loader that ran with its caches on may have left the tree in them, and they are off here.
    cache::clean_invalidate(address as usize, check::HEADER);
    // SAFETY: the boot loader says that a tree is there; a header's worth of RAM is read.
    let header = unsafe { bytes(Region { base: address, size: check::HEADER as u64 }) };
    let size = check::claimed_size(header).ok()?;
    Region::new(address, size as u64)
}

/// Memory as bytes.
///
/// # Safety
/// The range must be readable, and nobody may write it while the result lives.
pub unsafe fn bytes(range: Region) -> &'static [u8] {
    let start = core::ptr::with_exposed_provenance(range.base as usize);
    // SAFETY: passed on from the caller; a physical address is never 0 here.
    unsafe { core::slice::from_raw_parts(start, range.size as usize) }
}

/// Memory as bytes to write.
///
/// # Safety
/// The range must be writable and the caller's alone while the result lives.
pub unsafe fn bytes_mut(range: Region) -> &'static mut [u8] {
    let start = core::ptr::with_exposed_provenance_mut(range.base as usize);
    // SAFETY: passed on from the caller.
    unsafe { core::slice::from_raw_parts_mut(start, range.size as usize) }
}

/// Says why Tenure cannot start, with nothing set up, on the best console that can be found, and stops.
fn refuse_early(tree: u64, why: &str) -> ! {
    use core::fmt::Write;
    let blob = tree_at(tree).map(|r| {
        cache::clean_invalidate(r.base as usize, r.size as usize);
        // SAFETY: the tree was not changed, and this CPU is alone.
        unsafe { bytes(r) }
    });
    let uart = blob.filter(|b| check::check(b).is_ok()).and_then(read::console);
    // SAFETY: the MMU is off (or was off at EL1), the tree says that the UART is there, and nobody else uses it.
    let named = uart.and_then(|u| unsafe { Console::new(uart_place(&u), |n| u.is(n)) });
    // SAFETY: as above, but on a guess: the one board that gives no clue. This CPU stops here in any case.
    let out = named.or_else(|| unsafe { Console::pl011(FALLBACK_PL011) });
    if let Some(mut out) = out {
        let _ = writeln!(out, "tenure: cannot start: {why}");
    }
    cpu::stop()
}

/// All of the boot that runs with the MMU on.
fn start(blob: Region) -> ! {
    // SAFETY: mapped by `mmu::early`; nobody writes it.
    let data = unsafe { bytes(blob) };
    let tree = match check::check(data) {
        Ok(tree) => tree,
        Err(why) => {
            guess_console();
            refuse(format_args!("the device tree is malformed: {why:?}"))
        }
    };
    let mut platform = match read::read(tree) {
        Ok(platform) => platform,
        Err(why) => {
            use_console(read::console(tree));
            refuse(format_args!("the device tree cannot be used: {why}"))
        }
    };
    use_console(platform.console);
    log::info!("Tenure {} at {:#x}", env!("CARGO_PKG_VERSION"), image::whole().base);
    let bundle = match find_bundle(&mut platform) {
        Ok(bundle) => bundle,
        Err(why) => refuse(format_args!("{why}")),
    };
    let mut plan = match memory::plan(&platform, blob, bundle) {
        Ok(plan) => plan,
        Err(why) => refuse(format_args!("{why}")),
    };
    let power = power_block(tree, &platform);
    if let Err(why) = memory::build(&platform, &plan) {
        refuse(format_args!("{why}"))
    }
    if let Some(Err(why)) = bundle.map(|found| found.check()) {
        refuse(format_args!("{why}"))
    }
    vm::set_up(&platform);
    psci::set_up(&platform, power);
    host::call::set_up(&platform);
    if let Err(mpidr) = spin::collect(&platform) {
        refuse(format_args!("the CPU with MPIDR {mpidr:#x} does not come out of its spin table"))
    }
    let entry = match tree::place_host(tree, &platform, &mut plan) {
        Ok(entry) => entry,
        Err(why) => refuse(format_args!("{why}")),
    };
    memory::report(&platform, &plan);
    log::info!(
        "{} CPUs, host enters at {:#x} with its device tree at {:#x}",
        platform.cpus.len(),
        entry.pc,
        entry.tree
    );
    console::hand_over();
    host::enter(entry.pc, entry.tree)
}

/// Finds a bundle behind the image, and lets it say what the host is.
fn find_bundle(platform: &mut Platform<'static>) -> Result<Option<bundle::Found>, bundle::NoBundle> {
    let found = bundle::find()?;
    if let Some(found) = found {
        found.offer(platform)?;
        log::info!("the host's kernel is bundled: {} KiB behind the image", found.size() >> 10);
    }
    Ok(found)
}

/// Maps the console that the tree names, and writes to it from here on.
fn use_console(uart: Option<Device<'_>>) {
    let mapped = uart.filter(|u| map_registers(u.registers));
    // SAFETY: the tree says so, the registers are mapped as device memory, and only `console` has them.
    console::set_up(mapped.and_then(|u| unsafe { Console::new(uart_place(&u), |n| u.is(n)) }));
}

/// Without a tree to ask: as [`use_console`], for the one board that gives no clue.
fn guess_console() {
    let mapped = map_registers(Region { base: FALLBACK_PL011 as u64, size: 0x1000 });
    // SAFETY: a guess, as in `refuse_early`: this CPU stops in any case.
    console::set_up(mapped.then(|| unsafe { Console::pl011(FALLBACK_PL011) }).flatten());
}

fn map_registers(registers: Region) -> bool {
    mmu::map(registers.pages(), tenure_arch::stage1::Attr::Device, None).is_ok()
}

fn uart_place(uart: &Device<'_>) -> Place {
    Place { base: uart.registers.base as usize, shift: uart.shift, width: uart.width }
}

/// The board's own power block, where its firmware offers no PSCI: found in the tree, and mapped.
fn power_block(tree: &[u8], platform: &Platform<'_>) -> Option<Power> {
    if platform.psci == Some(Conduit::Smc) {
        return None;
    }
    let block = read::find(tree, &power::COMPATIBLE)?.registers;
    if block.size < Power::SIZE || !map_registers(block) {
        return None;
    }
    // SAFETY: the tree says so, and the registers are mapped as device memory.
    Some(unsafe { Power::new(block.base as usize) })
}

/// Another CPU: its MMU is on, its stack set; `cpu` is its data.
pub extern "C" fn secondary(cpu: &'static percpu::Cpu) -> ! {
    percpu::make_current(cpu);
    // SAFETY: the per-CPU data was just made current.
    unsafe { vectors::install() };
    psci::arrived(cpu)
}
