//! Cache maintenance by address, and block zeroing (DDI 0487 D7.5).
//!
//! This file needs unsafe for its instructions. Cleaning and "clean and invalidate" cannot change what a coherent
//! observer reads, so those functions are safe for any address that is mapped; [`invalidate_line`] and [`zero_block`]
//! can destroy data and are not.
#![allow(unsafe_code)]

use crate::sysreg;

/// What `CTR_EL0` says about this CPU's caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheType(u64);

impl CacheType {
    /// Wraps a value of `CTR_EL0`.
    pub const fn new(ctr: u64) -> Self {
        Self(ctr)
    }

    /// This CPU's.
    pub fn current() -> Self {
        Self(sysreg::ctr_el0())
    }

    /// Smallest data-cache line in bytes.
    pub const fn data_line(self) -> usize {
        4 << ((self.0 >> 16) & 0xf)
    }

    /// `DIC`: new instructions need no invalidation of the instruction cache.
    pub const fn dic(self) -> bool {
        self.0 & (1 << 29) != 0
    }
}

/// Calls `f` for the start of each cache line of `line` bytes that `start..start + len` touches.
fn each_line(start: usize, len: usize, line: usize, mut f: impl FnMut(usize)) {
    if len == 0 {
        return;
    }
    let last = start.saturating_add(len - 1);
    let mut at = start & !(line - 1);
    loop {
        f(at);
        match at.checked_add(line) {
            Some(next) if next <= last => at = next,
            _ => return,
        }
    }
}

macro_rules! by_address {
    ($($(#[$doc:meta])* $name:ident = $insn:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(addr: usize) {
            #[cfg(target_arch = "aarch64")]
            // SAFETY: the instruction writes back or drops clean copies; no observer reads other data than before.
            unsafe {
                core::arch::asm!(concat!($insn, ", {a}"), a = in(reg) addr, options(nostack, preserves_flags))
            };
            let _ = addr;
        }
    )*};
}

by_address! {
    /// `DC CIVAC`: cleans and invalidates the line of this address to the point of coherency.
    clean_invalidate_line = "dc civac";
}

/// `DC IVAC`: drops the data line of this address.
///
/// # Safety
/// Nothing that was written to the line through the cache may still be needed.
#[inline(always)]
pub unsafe fn invalidate_line(addr: usize) {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the caller answers for the data of the line.
    unsafe {
        core::arch::asm!("dc ivac, {a}", a = in(reg) addr, options(nostack, preserves_flags))
    };
    let _ = addr;
}

/// Bytes that one `DC ZVA` zeroes, or `None` where the instruction is prohibited (`DCZID_EL0.DZP`).
pub fn zero_block_size() -> Option<usize> {
    let id = sysreg::dczid_el0();
    (cfg!(target_arch = "aarch64") && id & 0x10 == 0).then_some(4 << (id & 0xf))
}

/// `DC ZVA`: zeroes the naturally aligned block of [`zero_block_size`] bytes that holds `addr`.
///
/// # Safety
/// The block must be Normal memory that the caller owns alone.
#[inline(always)]
pub unsafe fn zero_block(addr: usize) {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the caller owns the block.
    unsafe {
        core::arch::asm!("dc zva, {a}", a = in(reg) addr, options(nostack, preserves_flags))
    };
    let _ = addr;
}

/// `DC ZVA` for every block of `start..end`, eight to a turn.
///
/// # Safety
/// As for [`zero_block`], for the whole range, which must be a multiple of eight blocks (possibly none).
#[inline(always)]
unsafe fn zero_eights(start: usize, end: usize, block: usize) {
    #[cfg(target_arch = "aarch64")]
    if start < end {
        // SAFETY: the caller owns the range.
        unsafe {
            core::arch::asm!(
                "2:",
                ".rept 8",
                "dc zva, {at}",
                "add {at}, {at}, {block}",
                ".endr",
                "cmp {at}, {end}",
                "b.lo 2b",
                at = inout(reg) start => _,
                block = in(reg) block,
                end = in(reg) end,
                options(nostack)
            )
        };
    }
    let _ = (start, end, block);
}

/// `DC CIVAC` for every line of `start..end`, eight to a turn; the range is a multiple of eight lines.
#[inline(always)]
fn clean_invalidate_eights(start: usize, end: usize, line: usize) {
    #[cfg(target_arch = "aarch64")]
    if start < end {
        // SAFETY: the instruction writes lines back and drops clean copies; no observer reads other data than before.
        unsafe {
            core::arch::asm!(
                "2:",
                ".rept 8",
                "dc civac, {at}",
                "add {at}, {at}, {line}",
                ".endr",
                "cmp {at}, {end}",
                "b.lo 2b",
                at = inout(reg) start => _,
                line = in(reg) line,
                end = in(reg) end,
                options(nostack)
            )
        };
    }
    let _ = (start, end, line);
}

/// Zeroes `len` bytes at `addr`, by `DC ZVA` where that is allowed.
///
/// # Safety
/// The range must be mapped Normal and writable, and the caller's alone. Both numbers must be multiples of 8.
pub unsafe fn zero(addr: usize, len: usize) {
    let end = addr + len;
    let mut at = addr;
    let block = zero_block_size().filter(|&b| addr.is_multiple_of(b) && len.is_multiple_of(b));
    if let Some(block) = block {
        // Eight at a time: page words and scrubs are long.
        let eights = (end - at) & !(8 * block - 1);
        // SAFETY: inside the range that is the caller's, in whole blocks.
        unsafe { zero_eights(at, at + eights, block) };
        at += eights;
        while at < end {
            // SAFETY: `at` is inside the range that is the caller's.
            unsafe { zero_block(at) };
            at += block;
        }
        return;
    }
    while at < end {
        // SAFETY: in range, aligned to 8, and the caller's alone.
        unsafe { core::ptr::write_volatile(core::ptr::with_exposed_provenance_mut::<u64>(at), 0) };
        at += 8;
    }
}

/// Cleans and invalidates a range of data to the point of coherency. Complete at the next DSB.
pub fn clean_invalidate_lines(start: usize, len: usize) {
    let line = CacheType::current().data_line();
    // Whole frames, eight lines at a time: this is half of every scrub.
    if (start | len).is_multiple_of(8 * line) {
        return clean_invalidate_eights(start, start.saturating_add(len), line);
    }
    each_line(start, len, line, clean_invalidate_line);
}

/// As [`clean_invalidate_lines`], and waits.
pub fn clean_invalidate(start: usize, len: usize) {
    clean_invalidate_lines(start, len);
    crate::barrier::dsb_sy();
}

/// `IC IALLUIS`: invalidates all instruction caches of the inner shareable domain, and waits.
pub fn invalidate_all_instructions() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: drops clean copies only.
    unsafe {
        core::arch::asm!("ic ialluis", options(nostack, preserves_flags))
    };
    crate::barrier::dsb_ish();
    crate::barrier::isb();
}

/// `IC IALLU`: invalidates the instruction caches of this CPU, and waits.
pub fn invalidate_local_instructions() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: drops clean copies only.
    unsafe {
        core::arch::asm!("ic iallu", options(nostack, preserves_flags))
    };
    crate::barrier::dsb_nsh();
    crate::barrier::isb();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn line_sizes_come_from_ctr() {
        let a53 = CacheType::new(0x8444_8004);
        assert_eq!(a53.data_line(), 64);
        assert!(!a53.dic());
    }

    #[test]
    fn every_touched_line_is_visited_once() {
        let mut seen = Vec::new();
        each_line(0x1030, 0x60, 64, |a| seen.push(a));
        assert_eq!(seen, [0x1000, 0x1040, 0x1080]);
    }

    #[test]
    fn the_last_line_of_the_address_space_ends_the_walk() {
        let mut seen = Vec::new();
        each_line(usize::MAX - 63, 64, 64, |a| seen.push(a));
        assert_eq!(seen, [usize::MAX - 63]);
    }

    #[test]
    fn an_empty_range_visits_nothing() {
        each_line(0x1000, 0, 64, |_| panic!("visited"));
    }
}
