//! The host's device tree: made with the boot heap, put into the host's RAM.
#![allow(unsafe_code)]

use tenure_arch::cache;
use tenure_dt::edit::{self, HostView};
use tenure_dt::{Platform, Region, place};

use super::memory::{NoPlan, Plan};
use super::{bytes_mut, heap, kernel};

/// Bytes of the boot heap for each byte of the tree, and at least.
const HEAP_FACTOR: u64 = 48;
const HEAP_MIN: u64 = 1 << 20;

/// Where the host starts.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its first instruction.
    pub pc: u64,
    /// Its device tree, for `x0`.
    pub tree: u64,
}

/// Puts the kernel and its tree in place.
pub fn place_host(tree: &[u8], platform: &Platform<'_>, plan: &Plan) -> Result<Entry, NoPlan> {
    let module = platform.kernel.ok_or(NoPlan::NoKernel)?;
    let kernel = kernel::place(module, plan)?;
    let mut taken = plan.taken.clone();
    // The boot loader's copy stays taken: the tree that is being read may lie anywhere near.
    if taken.try_push(kernel.pages()).is_err() {
        return Err(NoPlan::NoRoom(kernel.size));
    }
    // Bytes that are in use, not those that the blob's padding claims.
    let used = used_bytes(tree);
    let size = (used * HEAP_FACTOR).max(HEAP_MIN).next_power_of_two();
    let room = place::find_free(&plan.ram, &taken, size, 4096, 0).ok_or(NoPlan::NoRoom(size))?;
    // SAFETY: free RAM by the plan, mapped, and not the host's before the heap is closed.
    unsafe { heap::open(room) };
    if taken.try_push(room).is_err() {
        return Err(NoPlan::NoRoom(size));
    }
    let written = write_tree(tree, platform, plan, &taken);
    if !heap::close() {
        return Err(NoPlan::Heap);
    }
    Ok(Entry { pc: kernel.base, tree: written? })
}

/// Header, structure and strings of a blob, without what lies behind them.
fn used_bytes(tree: &[u8]) -> u64 {
    let word = |at: usize| {
        tree.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, |b| u64::from(u32::from_be_bytes(b)))
    };
    40 + word(32) + word(36)
}

/// Makes the host's tree and copies it out of the heap; returns its address.
fn write_tree(tree: &[u8], platform: &Platform<'_>, plan: &Plan, taken: &[Region]) -> Result<u64, NoPlan> {
    let view = HostView { hidden: &plan.kept, ramdisk: platform.ramdisk, interrupt: None };
    let blob = edit::host_tree(tree, platform, &view).map_err(NoPlan::Tree)?;
    let size = blob.len() as u64;
    // At the start of 2 MiB of its own, as the boot protocol likes it best.
    let free = place::find_free(&plan.ram, taken, size, 2 << 20, 0).ok_or(NoPlan::NoRoom(size))?;
    // SAFETY: free RAM by the plan, which the host has not got yet.
    unsafe { bytes_mut(free) }.copy_from_slice(&blob);
    cache::clean_invalidate(free.base as usize, free.size as usize);
    Ok(free.base)
}
