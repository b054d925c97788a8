//! The host's kernel: put where the layout wants it.
#![allow(unsafe_code)]

use tenure_arch::cache;
use tenure_dt::layout::KernelHeader;
use tenure_dt::{Layout, Region};

use super::memory::NoPlan;
use super::{bytes, bytes_mut};

/// Puts the kernel of `module` in place: left where it is if it may run there, else copied. Returns its memory; its
/// first byte is its entry point.
pub fn place(module: Region, plan: &mut Layout) -> Result<Region, NoPlan<'static>> {
    // SAFETY: a module that the boot loader put in RAM; nobody writes it.
    let image = unsafe { bytes(module) };
    let header = KernelHeader::parse(image).ok_or(NoPlan::NotAnImage)?;
    let target = plan.place_kernel(module, header)?;
    if target.base != module.base {
        let file = Region { base: target.base, size: module.size };
        // SAFETY: free RAM by the plan, which the host has not got yet.
        unsafe { bytes_mut(file) }.copy_from_slice(image);
        // The kernel starts with its caches off.
        cache::clean_invalidate(file.base as usize, file.size as usize);
    }
    Ok(target)
}
