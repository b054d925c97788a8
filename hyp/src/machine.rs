//! [`tenure_mm::Machine`] with instructions: tables and frames are reached by their physical addresses, which EL2 maps
//! to themselves.
//!
//! Unsafe is needed to reach memory by number. Its common ground: `mm` names only frames of RAM and tables that it
//! owns, EL2 maps all RAM that firmware does not keep, and whoever calls holds the frame (frozen word, pool, lock).
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use spin::Once;
use tenure_arch::features::Features;
use tenure_arch::{barrier, cache, sysreg, tlb};
use tenure_mm::machine::{Index, Vmid};
use tenure_mm::{Ipa, Machine, Mm, Pa, Pfn};

use crate::{percpu, stats};

const PAGE: usize = 4096;
const VMID_SHIFT: u32 = 48;

/// The hardware, as the manager uses it.
#[derive(Debug)]
pub struct El2 {
    /// `VTTBR_EL2` of a regime that maps nothing: what stands there while only its VMID is meant, so that no walk can
    /// fill a TLB under a foreign VMID meanwhile.
    nothing: u64,
    /// FEAT_TLBIRANGE.
    range_tlbi: bool,
}

/// Two empty root tables, aligned as the host's (8 KiB): nothing is mapped in any format that is in use.
#[repr(C, align(8192))]
struct Nothing([AtomicU64; 1024]);
static NOTHING: Nothing = Nothing([const { AtomicU64::new(0) }; 1024]);

static MM: Once<Mm<'static, El2>> = Once::new();

/// Makes the manager the one that [`mm`] answers. Once, at boot.
pub fn install(mm: Mm<'static, El2>) -> &'static Mm<'static, El2> {
    MM.call_once(|| mm)
}

/// The manager of the machine.
#[inline]
pub fn mm() -> &'static Mm<'static, El2> {
    match MM.get() {
        Some(mm) => mm,
        // Boot installs it before any CPU enters the host, and only a host or guest can get anyone to ask.
        None => crate::panic::refuse(format_args!("the memory manager is not there yet")),
    }
}

impl El2 {
    /// The hardware.
    pub fn new() -> Self {
        Self { nothing: (&raw const NOTHING) as u64, range_tlbi: Features::current().tlbi_range }
    }
}

/// A table entry, or another word of a frame, as an atomic.
#[inline(always)]
fn entry(table: Pa, index: Index) -> &'static AtomicU64 {
    debug_assert!(index < 512);
    // A table is a page: its address and the offset have no bit in common.
    let address = table.0 as usize | (index % 512 * 8);
    // SAFETY: an aligned word of a table page, which is mapped, lives for ever and is only ever reached as an atomic.
    unsafe { &*core::ptr::with_exposed_provenance::<AtomicU64>(address) }
}

fn address(frame: Pfn) -> usize {
    frame.base().0 as usize
}

impl Machine for El2 {
    #[inline(always)]
    fn read(&self, table: Pa, index: Index) -> u64 {
        entry(table, index).load(Ordering::Acquire)
    }

    #[inline(always)]
    fn write(&self, table: Pa, index: Index, descriptor: u64) {
        entry(table, index).store(descriptor, Ordering::Release);
    }

    fn zero(&self, frame: Pfn) {
        // SAFETY: a frame of RAM that the caller holds, so nobody else reads or writes it.
        unsafe { cache::zero(address(frame), PAGE) };
    }

    fn scrub(&self, frame: Pfn) {
        self.zero(frame);
        cache::clean_invalidate_lines(address(frame), PAGE);
    }

    fn scrub_run(&self, first: Pfn, count: u64) {
        let length = count as usize * PAGE;
        // SAFETY: frames of RAM that the caller holds, so nobody else reads or writes them.
        unsafe { cache::zero(address(first), length) };
        cache::clean_invalidate_lines(address(first), length);
    }

    fn clean_to_poc(&self, frame: Pfn) {
        cache::clean_invalidate_lines(address(frame), PAGE);
    }

    fn drop_instructions(&self) {
        if !cache::CacheType::current().dic() {
            cache::invalidate_all_instructions();
        }
    }

    fn read_words(&self, frame: Pfn, first: usize) -> [u64; 32] {
        core::array::from_fn(|index| entry(frame.base(), first + index).load(Ordering::Relaxed))
    }

    fn dsb_ishst(&self) {
        barrier::dsb_ishst();
    }

    fn dsb_ish(&self) {
        tlb::complete();
    }

    fn isb(&self) {
        barrier::isb();
    }

    fn select_vmid(&self, vmid: Vmid) -> Vmid {
        let current = sysreg::vttbr_el2();
        let former = Vmid((current >> VMID_SHIFT) as u16);
        if former == vmid {
            return former;
        }
        let saved = &percpu::this().vttbr;
        // What has a table of its own is kept, to be put back whole; what stands for a VMID only is not.
        if current & ((1 << VMID_SHIFT) - 1) != self.nothing {
            saved.store(current, Ordering::Relaxed);
        }
        let kept = saved.load(Ordering::Relaxed);
        let next = if Vmid((kept >> VMID_SHIFT) as u16) == vmid {
            kept
        } else {
            u64::from(vmid.0) << VMID_SHIFT | self.nothing
        };
        // SAFETY: either the regime that was there before, or one that maps nothing.
        unsafe { sysreg::write_vttbr_el2(next) };
        barrier::isb();
        former
    }

    fn tlbi_ipas2e1is(&self, ipa: Ipa) {
        stats::count_tlbi();
        tlb::ipas2e1is(ipa.0 >> 12);
    }

    fn has_range_tlbi(&self) -> bool {
        self.range_tlbi
    }

    fn tlbi_ripas2e1is(&self, first: Ipa, pages: u64) {
        stats::count_tlbi();
        tlb::ripas2e1is(first.0, pages);
    }

    fn tlbi_vmalle1is(&self) {
        stats::count_tlbi();
        tlb::vmalle1is();
    }

    fn tlbi_vmalls12e1is(&self) {
        stats::count_tlbi();
        tlb::vmalls12e1is();
    }

    fn attention(&self) -> bool {
        sysreg::isr_el1() != 0
    }
}
