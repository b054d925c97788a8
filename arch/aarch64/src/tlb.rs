//! TLB invalidation: the one place that issues TLBI (DDI 0487 D8.16).
//!
//! Each function issues only the invalidation; completion needs a DSB, and the functions that say "and waits" do it.
//! Invalidating too much is always safe, so all are safe functions. Operations on stage 2 work on the VMID in
//! `VTTBR_EL2` at the time of the call.
#![allow(unsafe_code)]

use crate::barrier;
use crate::errata::{self, Workaround};

macro_rules! tlbi {
    ($($(#[$doc:meta])* $name:ident = $op:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() {
            #[cfg(target_arch = "aarch64")]
            // SAFETY: removes cached translations; the tables stay what they are.
            unsafe {
                core::arch::asm!(concat!("tlbi ", $op), options(nostack, preserves_flags))
            };
        }
    )*};
}

macro_rules! tlbi_arg {
    ($($(#[$doc:meta])* $name:ident = $op:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(arg: u64) {
            #[cfg(target_arch = "aarch64")]
            // SAFETY: removes cached translations; the tables stay what they are.
            unsafe {
                core::arch::asm!(concat!("tlbi ", $op, ", {a}"), a = in(reg) arg, options(nostack, preserves_flags))
            };
            let _ = arg;
        }
    )*};
}

tlbi! {
    /// All stage 1 and 2 translations of EL1&0, every VMID, this CPU.
    alle1 = "alle1";
    /// All stage 1 and 2 translations of EL1&0, every VMID, all CPUs.
    alle1is = "alle1is";
    /// All stage 1 and 2 translations of the current VMID, this CPU.
    vmalls12e1 = "vmalls12e1";
    /// All stage 1 and 2 translations of the current VMID, all CPUs.
    vmalls12e1is = "vmalls12e1is";
    /// All stage 1 translations of the current VMID, this CPU.
    vmalle1 = "vmalle1";
    /// All stage 1 translations of the current VMID, all CPUs.
    vmalle1is = "vmalle1is";
    /// All translations of EL2, this CPU.
    alle2 = "alle2";
    /// All translations of EL2, all CPUs.
    alle2is = "alle2is";
}

tlbi_arg! {
    /// Stage 2 of one address, current VMID, all CPUs. The argument is `ipa >> 12`.
    ipas2e1is = "ipas2e1is";
    /// Last level of stage 2 of one address, current VMID, all CPUs. The argument is `ipa >> 12`.
    ipas2le1is = "ipas2le1is";
    /// Stage 1 of EL2 of one address, all CPUs. The argument is `va >> 12`.
    vae2is = "vae2is";
}

/// Stage 2 of `pages` pages from `ipa` on, current VMID, all CPUs. Needs FEAT_TLBIRANGE.
pub fn ripas2e1is(ipa: u64, pages: u64) {
    ranges(ipa >> 12, pages, range_op);
}

/// TLBI RIPAS2E1IS, which assemblers name from Armv8.4 on only.
#[inline(always)]
fn range_op(operand: u64) {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: removes cached translations; the tables stay what they are.
    unsafe {
        core::arch::asm!("sys #4, c8, c0, #2, {a}", a = in(reg) operand, options(nostack, preserves_flags))
    };
    let _ = operand;
}

/// Cuts a run of 4 KiB pages into operands of range TLBIs (DDI 0487 C5.5, "TLBI RIPAS2E1IS"): (NUM + 1) ·
/// 2^(5 · SCALE + 1) pages each, so that an odd page is covered by a pair.
fn ranges(first: u64, pages: u64, mut each: impl FnMut(u64)) {
    const GRANULE_4K: u64 = 1 << 46;
    const BASE: u64 = (1 << 37) - 1;
    let (mut at, mut left) = (first, pages);
    for scale in (0..4u64).rev() {
        let unit = 5 * scale + 1;
        // What is left after the larger units, rounded up at the smallest.
        let mut units = if scale == 0 { left.div_ceil(2) } else { left >> unit };
        while units > 0 {
            let now = units.min(32);
            each(at & BASE | (now - 1) << 39 | scale << 44 | GRANULE_4K);
            at += now << unit;
            left = left.saturating_sub(now << unit);
            units -= now;
        }
    }
}

/// Waits until earlier invalidations are complete on all CPUs, twice over where a CPU of the machine needs that
/// ([`crate::errata`]): the second invalidation may be of anything, so one of an address that EL2 never maps is used.
#[inline]
pub fn complete() {
    barrier::dsb_ish();
    if errata::machine_needs(Workaround::REPEAT_TLBI) {
        vae2is(0);
        barrier::dsb_ish();
    }
}

/// Invalidates all translations of EL2 on every CPU, and waits.
pub fn flush_el2() {
    barrier::dsb_ishst();
    alle2is();
    barrier::dsb_ish();
    barrier::isb();
}

/// Invalidates all that this CPU may hold of EL1&0, of every VMID, and waits: for a CPU that comes from reset.
pub fn flush_local_el1() {
    barrier::dsb_nsh();
    alle1();
    vmalls12e1();
    barrier::dsb_nsh();
    barrier::isb();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages that an operand covers, as the architecture reads it.
    fn covered(operand: u64) -> core::ops::Range<u64> {
        assert_eq!(operand >> 46, 1, "granule of 4 KiB, no ASID");
        let (base, num, scale) = (operand & ((1 << 37) - 1), operand >> 39 & 31, operand >> 44 & 3);
        assert_eq!(operand >> 37 & 3, 0, "no level is claimed");
        base..base + ((num + 1) << (5 * scale + 1))
    }

    #[test]
    fn ranges_cover_every_page_once_and_at_most_one_more() {
        for pages in [1, 2, 3, 63, 64, 65, 512, 2047, 2048, 262_144, 1_000_003] {
            let mut at = 0x40001;
            let mut count = 0;
            ranges(at, pages, |operand| {
                let run = covered(operand);
                assert_eq!(run.start, at);
                at = run.end;
                count += 1;
            });
            assert!(at - 0x40001 - pages <= 1, "{pages}");
            assert!(count <= 4 + pages / (32 << 16), "{pages}: {count}");
        }
    }
}
