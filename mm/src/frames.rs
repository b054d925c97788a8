//! The page database: a word for every RAM frame of the machine.

use crate::addr::Pfn;
use crate::word::PageWord;

/// Words of one contiguous region of RAM.
#[derive(Clone, Copy, Debug)]
pub struct Region<'a> {
    /// First frame.
    pub first: Pfn,
    /// One word a frame.
    pub words: &'a [PageWord],
}

impl<'a> Region<'a> {
    /// The word of a frame of this region.
    #[inline(always)]
    pub fn word(&self, frame: Pfn) -> Option<&'a PageWord> {
        self.words.get(frame.0.wrapping_sub(self.first.0) as usize)
    }
}

/// All regions, in ascending order, without overlap.
#[derive(Clone, Copy, Debug)]
pub struct Frames<'a> {
    regions: &'a [Region<'a>],
}

impl<'a> Frames<'a> {
    /// The database over `regions`.
    pub const fn new(regions: &'a [Region<'a>]) -> Self {
        Self { regions }
    }

    /// The word of a frame, or `None` where there is no RAM.
    #[inline]
    pub fn word(&self, frame: Pfn) -> Option<&'a PageWord> {
        for region in self.regions {
            if let Some(word) = region.word(frame) {
                return Some(word);
            }
        }
        None
    }

    /// The words of the `count` frames from `first`, or `None` where not all of them are RAM of one region.
    pub fn run(&self, first: Pfn, count: u64) -> Option<&'a [PageWord]> {
        let region = self.regions.iter().find(|region| region.word(first).is_some())?;
        let start = (first.0 - region.first.0) as usize;
        region.words.get(start..start.checked_add(count as usize)?)
    }

    /// All regions.
    pub const fn regions(&self) -> &'a [Region<'a>] {
        self.regions
    }

    /// Number of RAM frames.
    pub fn len(&self) -> u64 {
        self.regions.iter().map(|region| region.words.len() as u64).sum()
    }

    /// True for a machine without RAM.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// First RAM frame and the one past the last.
    pub fn span(&self) -> (Pfn, Pfn) {
        let first = self.regions.first().map_or(Pfn(0), |region| region.first);
        let end = self.regions.last().map_or(Pfn(0), |region| region.first.offset(region.words.len() as u64));
        (first, end)
    }
}
