//! Barriers: DMB, DSB, ISB (DDI 0487 B2.3.12). All are safe: they order, and touch nothing.
use aarch64_cpu::asm::barrier as b;

/// Makes the context changes before it (system registers, tables) visible to the instructions after it.
#[inline(always)]
pub fn isb() {
    if cfg!(target_arch = "aarch64") {
        b::isb(b::SY);
    }
}

/// Waits for all accesses and maintenance before it, in the inner shareable domain.
#[inline(always)]
pub fn dsb_ish() {
    if cfg!(target_arch = "aarch64") {
        b::dsb(b::ISH);
    }
}

/// Waits for all *stores* before it, in the inner shareable domain: what a table write needs before a walker may see it.
#[inline(always)]
pub fn dsb_ishst() {
    if cfg!(target_arch = "aarch64") {
        b::dsb(b::ISHST);
    }
}

/// As [`dsb_ish`], for this CPU only: enough after a local TLB invalidation.
#[inline(always)]
pub fn dsb_nsh() {
    if cfg!(target_arch = "aarch64") {
        b::dsb(b::NSH);
    }
}

/// Waits for everything, in the full system: what cache maintenance to the point of coherency needs.
#[inline(always)]
pub fn dsb_sy() {
    if cfg!(target_arch = "aarch64") {
        b::dsb(b::SY);
    }
}

/// Orders accesses before it with those after it, in the inner shareable domain.
#[inline(always)]
pub fn dmb_ish() {
    if cfg!(target_arch = "aarch64") {
        b::dmb(b::ISH);
    }
}
