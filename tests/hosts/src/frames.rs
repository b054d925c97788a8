//! Free frames of the host: a bitmap over the largest free stretch of RAM.

use core::ops::Range;

use tenure_abi::PAGE_SIZE;

/// Frames that the map can hold: 64 MiB.
const LIMIT: usize = 16384;

/// Free frames, given out lowest first.
#[derive(Debug)]
pub struct Frames {
    first: u64,
    count: usize,
    used: [u64; LIMIT / 64],
}

impl Frames {
    /// All frames of a range of addresses, up to the map's limit.
    pub fn new(range: Range<u64>) -> Self {
        let first = range.start.div_ceil(PAGE_SIZE);
        let count = (range.end / PAGE_SIZE).saturating_sub(first);
        Self { first, count: (count as usize).min(LIMIT), used: [0; LIMIT / 64] }
    }

    fn is_used(&self, index: usize) -> bool {
        self.used[index / 64] & (1 << (index % 64)) != 0
    }

    /// Takes `count` frames in a row, the first of them a multiple of `align` frames.
    pub fn take(&mut self, count: usize, align: usize) -> Option<u64> {
        let mut at = 0;
        while at + count <= self.count {
            let frame = self.first + at as u64;
            if !frame.is_multiple_of(align as u64) {
                at += 1;
                continue;
            }
            if let Some(taken) = (at..at + count).find(|index| self.is_used(*index)) {
                at = taken + 1;
                continue;
            }
            for index in at..at + count {
                self.used[index / 64] |= 1 << (index % 64);
            }
            return Some(frame);
        }
        None
    }

    /// Gives frames back.
    pub fn give(&mut self, pfn: u64, count: usize) {
        for frame in pfn..pfn + count as u64 {
            let index = frame.wrapping_sub(self.first) as usize;
            if index < self.count {
                self.used[index / 64] &= !(1 << (index % 64));
            }
        }
    }

    /// Part `index` of `parts` equal parts, all free: for CPUs that each take their own.
    pub fn part(&self, index: usize, parts: usize) -> Self {
        let count = self.count / parts / 512 * 512;
        Self { first: self.first + (index * count) as u64, count, used: [0; LIMIT / 64] }
    }

    /// All frames, used or not.
    pub fn range(&self) -> Range<u64> {
        self.first..self.first + self.count as u64
    }
}
