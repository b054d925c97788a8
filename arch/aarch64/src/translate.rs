//! Address translation instructions (DDI 0487 D8.17).
#![allow(unsafe_code)]

use crate::{barrier, sysreg};

/// Translates `va` by EL1's stage 1 as a read by EL1 (`AT S1E1R`): the page that it leads to, or `None` where the walk
/// fails, which it may at any time, since the tables are EL1's to change. `PAR_EL1` is EL1's and is kept.
pub fn stage1_el1(va: u64) -> Option<u64> {
    let kept = sysreg::par_el1();
    #[cfg(target_arch = "aarch64")]
    // SAFETY: walks the tables of EL1 and writes PAR_EL1 only.
    unsafe {
        core::arch::asm!("at s1e1r, {va}", va = in(reg) va, options(nostack, preserves_flags))
    };
    let _ = va;
    barrier::isb();
    let par = sysreg::par_el1();
    // SAFETY: EL1's own value.
    unsafe { sysreg::write_par_el1(kept) };
    (par & 1 == 0).then_some(par & 0x000f_ffff_ffff_f000)
}
