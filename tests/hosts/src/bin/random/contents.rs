//! What frames must hold, as far as it is known.

use tenure_abi::page::State;
use tenure_mm::model::{Frame, Map, Model};

/// Words at a page's start that are written one by one; all others are only ever filled.
pub const WORDS: u64 = 8;

/// A page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page {
    /// The first words.
    pub first: [u64; WORDS as usize],
    /// Every other word.
    pub rest: u64,
}

impl Page {
    /// Zeros.
    pub const ZERO: Self = Self::filled(0);

    /// The same word all over.
    pub const fn filled(value: u64) -> Self {
        Self { first: [value; WORDS as usize], rest: value }
    }

    /// Word `index` of the page.
    pub fn word(&self, index: u64) -> u64 {
        self.first.get(index as usize).copied().unwrap_or(self.rest)
    }

    /// Words from first to last.
    pub fn words(&self) -> impl Iterator<Item = u64> {
        (0..tenure_abi::PAGE_SIZE / 8).map(|index| self.word(index))
    }
}

/// Contents by frame; a frame that is missing may hold anything.
#[derive(Clone, Default, Debug)]
pub struct Contents(Map<Page>);

impl Contents {
    /// What a frame must hold.
    pub fn of(&self, pfn: u64) -> Option<&Page> {
        self.0.get(&pfn)
    }

    /// A word was stored.
    pub fn store(&mut self, pfn: u64, index: u64, value: u64) {
        if let Some(slot) = self.0.get_mut(&pfn).and_then(|page| page.first.get_mut(index as usize)) {
            *slot = value;
        }
    }

    /// A whole page was stored.
    pub fn fill(&mut self, pfn: u64, page: Page) {
        self.0.insert(pfn, page);
    }

    /// Nothing is known of a frame any more.
    pub fn forget(&mut self, pfn: u64) {
        self.0.remove(&pfn);
    }

    /// What the way from `before` to `now` did to contents: donate, reclaim, relinquish and death scrub (U8).
    pub fn age(&mut self, before: &Model, now: &Model) {
        for (pfn, was, frame) in now.frames.since(&before.frames) {
            let Some(was) = was.filter(|was| was.state != frame.state) else { continue };
            match (was.state, frame.state) {
                (_, State::Hyp | State::Poison) => self.forget(pfn),
                // It is scrubbed now, or later.
                _ if is_parked(frame) => self.forget(pfn),
                (_, State::Host) | (State::Host, _) | (State::Private, State::Quarantine) => {
                    self.fill(pfn, Page::ZERO);
                }
                _ if is_parked(was) => self.fill(pfn, Page::ZERO),
                _ => {}
            }
        }
    }
}

/// On its way to a VM as a part of a block.
pub fn is_parked(frame: &Frame) -> bool {
    frame.state == State::Quarantine && frame.owner.is_some()
}
