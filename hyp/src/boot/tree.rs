//! The host's device tree, written into the host's RAM.
#![allow(unsafe_code)]

use tenure_arch::cache;
use tenure_dt::edit::{self, HostView};
use tenure_dt::{Layout, Platform};

use super::memory::NoPlan;
use super::{bytes_mut, kernel};

/// Where the host starts.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its first instruction.
    pub pc: u64,
    /// Its device tree, for `x0`.
    pub tree: u64,
}

/// Puts the kernel and its tree in place.
pub fn place_host(tree: &[u8], platform: &Platform<'_>, plan: &mut Layout) -> Result<Entry, NoPlan<'static>> {
    let module = platform.kernel.ok_or(NoPlan::NoKernel)?;
    let kernel = kernel::place(module, plan)?;
    let free = plan.place_tree(used_bytes(tree) + edit::GROWTH as u64)?;
    let view = HostView { hidden: &plan.kept, ramdisk: platform.ramdisk, interrupt: None };
    // SAFETY: free RAM by the plan, mapped, which the host has not got yet.
    let out = unsafe { bytes_mut(free) };
    let written = edit::host_tree(tree, platform, &view, out).map_err(NoPlan::Tree)?;
    // The host reads it with its caches off.
    cache::clean_invalidate(free.base as usize, written);
    Ok(Entry { pc: kernel.base, tree: free.base })
}

/// Header, reservations, structure and strings of a blob, without the padding behind them.
fn used_bytes(tree: &[u8]) -> u64 {
    let word = |at: usize| {
        tree.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, |b| u64::from(u32::from_be_bytes(b)))
    };
    // At least what lies before the structure, and both blocks.
    word(8) + word(32) + word(36)
}
