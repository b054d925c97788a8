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
