//! The hypervisor's own free pages at boot, behind a wrapped `buddy_system_allocator`.
//!
//! The allocator keeps its lists inside the free pages, so it is fed only pages that are the hypervisor's and mapped. EL2's
//! tables come from here; what is left when they are built goes to the host's stage-2 pool (`mm::pool`), page by page.
//! Nothing is allocated afterwards: EL2 has no heap while the host runs.
#![allow(unsafe_code)]

use core::alloc::Layout;

use buddy_system_allocator::Heap;
use tenure_arch::{cache, stage1};
use tenure_dt::Region;

/// One more than the largest order: 2^31 bytes, far beyond what boot keeps.
const ORDERS: usize = 32;
const PAGE: usize = stage1::PAGE as usize;

/// Free pages.
pub struct Pages(Heap<ORDERS>);

impl Pages {
    /// The pages of `region`.
    ///
    /// # Safety
    /// Whole pages, mapped Normal and writable, the caller's to give and nobody else's.
    pub unsafe fn new(region: Region) -> Self {
        let mut heap = Heap::empty();
        // SAFETY: the allocator writes into the free pages, which are its own by the caller's word.
        unsafe { heap.add_to_heap(region.base as usize, region.end() as usize) };
        Self(heap)
    }

    /// A page, as the allocator left it.
    pub fn take(&mut self) -> Option<u64> {
        let layout = Layout::from_size_align(PAGE, PAGE).ok()?;
        self.0.alloc(layout).ok().map(|page| page.as_ptr().expose_provenance() as u64)
    }

    /// A page, zeroed.
    pub fn take_zeroed(&mut self) -> Option<u64> {
        let page = self.take()?;
        // SAFETY: just taken from the free pages, so mapped and nobody else's.
        unsafe { cache::zero(page as usize, PAGE) };
        Some(page)
    }
}
