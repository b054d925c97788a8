//! Reads and writes of frames, as accesses that may fault: the frames belong to no Rust object, and whether the host may touch one
//! is often what a test asks.

use tenure_abi::PAGE_SIZE;
use tenure_test_rt::probe::{self, Outcome};

/// Address of a frame.
pub fn address(pfn: u64) -> u64 {
    pfn * PAGE_SIZE
}

fn words(pfn: u64) -> impl Iterator<Item = u64> {
    (0..PAGE_SIZE / 8).map(move |index| address(pfn) + index * 8)
}

/// Fills a frame; false if a write faulted.
#[must_use]
pub fn fill(pfn: u64, value: u64) -> bool {
    words(pfn).all(|word| !probe::write(word, value).faulted())
}

/// True if every word of the frame can be read and is `value`.
#[must_use]
pub fn is_filled(pfn: u64, value: u64) -> bool {
    words(pfn).all(|word| probe::read(word) == Outcome::Value(value))
}

/// Copies bytes to the start of frame `pfn` and on, zeros behind them up to the end of the last page; false if a write faulted.
#[must_use]
pub fn place(pfn: u64, bytes: &[u8], pages: u64) -> bool {
    let mut chunks = bytes.chunks(8);
    (0..pages * PAGE_SIZE / 8).all(|index| {
        let mut word = [0u8; 8];
        for (to, from) in word.iter_mut().zip(chunks.next().unwrap_or(&[])) {
            *to = *from;
        }
        !probe::write(address(pfn) + index * 8, u64::from_le_bytes(word)).faulted()
    })
}
