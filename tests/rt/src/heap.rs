//! A heap for tests that keep sets and maps: empty until it is given memory.
#![allow(unsafe_code)] // Memory that the test took for itself becomes the allocator's.

use buddy_system_allocator::LockedHeap;

/// One more than the largest order of a block, in powers of two bytes.
const ORDERS: usize = 32;

#[global_allocator]
static HEAP: LockedHeap<ORDERS> = LockedHeap::new();

/// Gives RAM to the heap, for good. Nothing may be allocated before.
///
/// `base` and `bytes` name RAM of the program's own, mapped and unused: frames of `Frames`, which no Rust object occupies.
pub fn give(base: u64, bytes: u64) {
    // SAFETY: the caller's frames, which it uses for nothing else from now on.
    unsafe { HEAP.lock().init(base as usize, bytes as usize) };
}
