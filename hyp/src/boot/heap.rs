//! A heap for boot only: the library that edits the device tree wants one.
//!
//! It lies in RAM that will be the host's, and is closed before the host gets it. After that every allocation fails:
//! EL2 allocates nothing at run time, it uses the pools of `tenure-mm`.
#![allow(unsafe_code)]

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use buddy_system_allocator::Heap;
use spin::mutex::SpinMutex;
use tenure_dt::Region;

/// Largest block: 2^23 bytes.
const ORDERS: usize = 24;

struct BootHeap(SpinMutex<Heap<ORDERS>>);

#[global_allocator]
static HEAP: BootHeap = BootHeap(SpinMutex::new(Heap::empty()));

// SAFETY: the buddy allocator hands out blocks of the right size and alignment, each once, under a lock.
unsafe impl GlobalAlloc for BootHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().alloc(layout).map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        if let Some(ptr) = NonNull::new(ptr) {
            // SAFETY: the caller gives back what `alloc` gave, with its layout.
            unsafe { self.0.lock().dealloc(ptr, layout) }
        }
    }
}

/// Opens the heap over `region`.
///
/// # Safety
/// The region must be mapped, writable and nobody else's until [`close`].
pub unsafe fn open(region: Region) {
    // SAFETY: passed on from the caller.
    unsafe { HEAP.0.lock().init(region.base as usize, region.size as usize) };
}

/// Closes the heap. False if something is still allocated in it: then the region must not be given away.
pub fn close() -> bool {
    let mut heap = HEAP.0.lock();
    let clean = heap.stats_alloc_actual() == 0;
    *heap = Heap::empty();
    clean
}
