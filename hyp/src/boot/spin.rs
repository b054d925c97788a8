//! CPUs that wait in a spin table come to EL2 before the host runs, and are parked there.
//!
//! All of them, and at once: the table lies in memory that the host can write, and a CPU that leaves it starts at EL2.
//! A CPU that does not come therefore stops the boot.
//!
//! Source: Linux, Documentation/arch/arm64/booting.rst; DTSpec 3.8.1 (`cpu-release-addr`).
#![allow(unsafe_code)]

use core::sync::atomic::Ordering;

use tenure_arch::{cache, cpu, sysreg};
use tenure_dt::Platform;

use super::head;
use crate::percpu;

/// Seconds that a CPU has to come; and the polls, should the counter stand still.
const PATIENCE_SECONDS: u64 = 5;
/// See [`PATIENCE_SECONDS`].
const PATIENCE_POLLS: u32 = u32::MAX;
/// A CPU that just went to sleep when the event came is woken by the next, so many polls later.
const POLLS_PER_EVENT: u32 = 1 << 16;

/// Brings in every CPU that has a release address, but for the one that runs this.
///
/// # Errors
/// The MPIDR of one that does not come.
pub fn collect(platform: &Platform<'_>) -> Result<(), u64> {
    let boot = percpu::this().mpidr.load(Ordering::Relaxed);
    let waiting = || platform.cpus.iter().filter(move |c| c.mpidr != boot && c.release.is_some());
    for release in waiting().filter_map(|c| c.release) {
        let address = core::ptr::with_exposed_provenance_mut::<u64>(release as usize);
        // SAFETY: the tree says that the word, which it aligns, is there for us to write; the memory plan has it mapped
        // and keeps everything else away from it.
        unsafe { address.write_volatile(head::secondary_entry()) };
        // The CPU reads it with its caches off.
        cache::clean_invalidate(release as usize, size_of::<u64>());
    }
    for cpu in waiting() {
        let begin = sysreg::cntvct_el0();
        let limit = PATIENCE_SECONDS * sysreg::cntfrq_el0().clamp(1 << 20, 1 << 30);
        let has_come = || percpu::by_mpidr(cpu.mpidr).is_some_and(|c| c.arrived.load(Ordering::Acquire));
        let mut polls = (0..PATIENCE_POLLS).take_while(|_| sysreg::cntvct_el0().wrapping_sub(begin) < limit);
        let came = polls.any(|poll| {
            if poll.is_multiple_of(POLLS_PER_EVENT) {
                cpu::send_event();
            }
            has_come()
        });
        if !came && !has_come() {
            return Err(cpu.mpidr);
        }
    }
    Ok(())
}
