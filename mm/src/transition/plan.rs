//! What a conversion makes of the pages of its range.
//!
//! The verdict on a word depends on its kind ([`state::kind`]), and so do the bits that change. So each kind is judged
//! once, and what is kept of a page is a number of a few changes: to publish it costs as little as the common case.

use core::ops::Range;

use arrayvec::ArrayVec;
use tenure_abi::MAX_ATOMIC_PAGES;
use tenure_abi::flags::status;
use tenure_abi::page::State;
use tenure_abi::reply::Mask;

use super::Held;
use crate::state::{self, KINDS, Quick, Refusal, Share, UnshareHow};
use crate::vm::Slot;
use crate::word::Word;

/// A conversion of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Convert {
    Share,
    Unshare { how: UnshareHow, contents: Contents },
}

/// What happens to the contents of a page that becomes private.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Contents {
    /// They stay.
    Keep,
    /// They are zeroed.
    Zero,
    /// They stay, and a guest with its caches off may read and run them: what the host wrote as an image.
    Image,
}

/// What one word needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Publish(Word),
    DropHostLeaf(Word),
    Drain(Word),
}

/// A common case, known at a glance.
#[derive(Clone, Copy)]
pub(super) struct Common {
    pub(super) quick: Quick,
    /// The host's leaf goes.
    pub(super) drops: bool,
}

impl Convert {
    pub(super) fn step(self, word: Word, slot: Slot) -> Result<Step, Refusal> {
        Ok(match self {
            Self::Share => match state::share(word, slot)? {
                Share::Already => Step::Publish(word),
                Share::Swap(next) => Step::Publish(next),
                Share::DropScrap(next) => Step::DropHostLeaf(next),
            },
            Self::Unshare { how, .. } => match state::unshare(word, slot, how)? {
                state::Unshare::Already => Step::Publish(word),
                state::Unshare::Swap(next) => Step::Publish(next),
                state::Unshare::DropHostLeaf(next) if word.has_host_leaf() => Step::DropHostLeaf(next),
                state::Unshare::DropHostLeaf(next) => Step::Publish(next),
                state::Unshare::Drain(next) => Step::Drain(next),
            },
        })
    }

    pub(super) fn contents(self) -> Contents {
        match self {
            Self::Share => Contents::Keep,
            Self::Unshare { contents, .. } => contents,
        }
    }

    /// The status that an unpopulated address has afterwards.
    pub(super) fn address_status(self, before: u64) -> Result<u64, Refusal> {
        match (self, before) {
            (Self::Share, status::PRIVATE | status::SHARED | status::RELINQUISHED) => Ok(status::SHARED),
            (Self::Unshare { .. }, status::SHARED | status::PRIVATE) => Ok(status::PRIVATE),
            (Self::Unshare { .. }, status::RELINQUISHED) => Ok(status::RELINQUISHED),
            _ => Err(Refusal::UNPOPULATED),
        }
    }

    /// The common cases: pages that the conversion changes, and, where a call is made again when the host has consented,
    /// pages that it has changed.
    pub(super) fn common(self, slot: Slot) -> [Common; 2] {
        let (quick, drops, to) = match self {
            Self::Share => (Quick::share(slot), false, State::Shared),
            Self::Unshare { how, .. } => {
                (Quick::unshare(slot, how), how.revoke || how.consent, State::Private)
            }
        };
        [Common { quick, drops }, Common { quick: Quick::already(slot, to), drops: false }]
    }
}

/// Changes that one conversion can make: a test counts them.
const CHANGES: usize = 32;

/// Pages of one call.
const PAGES: usize = MAX_ATOMIC_PAGES as usize;

/// What becomes of a word: the number of the bits that change, and two flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Change(u8);

impl Change {
    const NUMBER: u8 = CHANGES as u8 - 1;
    /// The host's leaf goes.
    const DROPS: u8 = 1 << 6;
    /// The page drains.
    const DRAINS: u8 = 1 << 5;
    const KNOWN: u8 = 1 << 7;

    const UNKNOWN: Self = Self(0);

    const fn new(number: usize, drops: bool, drains: bool) -> Self {
        let drops = if drops { Self::DROPS } else { 0 };
        Self(Self::KNOWN | number as u8 | drops | if drains { Self::DRAINS } else { 0 })
    }

    /// The host's leaf goes.
    #[inline(always)]
    pub(super) const fn drops(self) -> bool {
        self.0 & Self::DROPS != 0
    }

    const fn drains(self) -> bool {
        self.0 & Self::DRAINS != 0
    }
}

/// A conversion of pages of several kinds under way. A page that is held has a *place* among those that are.
pub(super) struct Plan {
    op: Convert,
    slot: Slot,
    /// Bits that each change turns round, by its number.
    flips: [u64; CHANGES],
    numbers: usize,
    /// All changes together.
    all: u8,
    /// Of each kind that was judged, its change.
    known: [Change; KINDS],
    /// Of each page that is held, its change.
    of: [Change; PAGES],
    /// Pages of the range without a frame, in runs: a page with one stands between two of them.
    empty: ArrayVec<(u32, u32), { PAGES.div_ceil(2) }>,
    /// Status of the last one's address.
    status: u64,
}

impl Plan {
    /// A plan in which every page that is held by now is of one common case.
    pub(super) fn new(op: Convert, slot: Slot, common: Common) -> Self {
        let mut flips = [0; CHANGES];
        flips[0] = common.quick.flip();
        let first = Change::new(0, common.drops, false);
        Self {
            op,
            slot,
            flips,
            numbers: 1,
            all: first.0,
            known: [Change::UNKNOWN; KINDS],
            of: [first; PAGES],
            empty: ArrayVec::new(),
            status: u64::MAX,
        }
    }

    /// The next page to be held, at `place`, has this word. (One that moved before it was frozen is judged again.)
    ///
    /// # Errors
    /// Why it cannot be converted.
    #[inline(always)]
    pub(super) fn judge(&mut self, place: usize, word: Word) -> Result<(), Refusal> {
        let known = state::kind(word, self.slot).and_then(|kind| self.known.get(kind));
        let change = match known {
            Some(&change) if change != Change::UNKNOWN => change,
            _ => self.learn(word)?,
        };
        if let Some(of) = self.of.get_mut(place) {
            *of = change;
        }
        Ok(())
    }

    /// Judges a word, and with it all of its kind.
    #[inline(never)]
    fn learn(&mut self, word: Word) -> Result<Change, Refusal> {
        let step = self.op.step(word, self.slot)?;
        let (Step::Publish(next) | Step::DropHostLeaf(next) | Step::Drain(next)) = step;
        let flip = word.raw() ^ next.raw();
        let number = match self.flips.iter().take(self.numbers).position(|known| *known == flip) {
            Some(number) => number,
            None => {
                *self.flips.get_mut(self.numbers).ok_or(Refusal::LIMIT)? = flip;
                self.numbers += 1;
                self.numbers - 1
            }
        };
        let drops = matches!(step, Step::DropHostLeaf(_));
        let change = Change::new(number, drops, matches!(step, Step::Drain(_)));
        self.all |= change.0;
        if let Some(known) = state::kind(word, self.slot).and_then(|kind| self.known.get_mut(kind)) {
            *known = change;
        }
        Ok(change)
    }

    /// `count` pages of the range from `index` on have no frame, their addresses this status.
    ///
    /// # Errors
    /// Why that cannot be converted.
    #[inline]
    pub(super) fn judge_addresses(&mut self, index: u64, count: u64, status: u64) -> Result<(), Refusal> {
        if self.status != status {
            self.op.address_status(status)?;
            self.status = status;
        }
        match self.empty.last_mut() {
            Some((_, end)) if u64::from(*end) == index => *end = (index + count) as u32,
            _ => {
                let run = (index as u32, (index + count) as u32);
                self.empty.try_push(run).map_err(|_| Refusal::INVALID)?;
            }
        }
        Ok(())
    }

    pub(super) fn op(&self) -> Convert {
        self.op
    }

    /// Pages of the range without a frame, in runs.
    pub(super) fn empty(&self) -> impl ExactSizeIterator<Item = Range<u64>> {
        self.empty.iter().map(|(first, end)| u64::from(*first)..u64::from(*end))
    }

    /// What becomes of the pages that are held, in order.
    pub(super) fn changes(&self) -> impl Iterator<Item = Change> + Clone {
        self.of.iter().copied()
    }

    /// Some page may lose its host leaf.
    pub(super) fn drops_any(&self) -> bool {
        Change(self.all).drops()
    }

    /// Bits of a word that a change turns round.
    #[inline(always)]
    pub(super) fn flip(&self, change: Change) -> u64 {
        self.flips[usize::from(change.0 & Change::NUMBER)]
    }

    /// The lowest page of the range that drains, and what it waits for.
    pub(super) fn draining(&self, held: &Held<'_>) -> Option<(u64, Mask)> {
        if !Change(self.all).drains() {
            return None;
        }
        let (place, page) = (0..).zip(held).zip(self.changes()).find(|(_, change)| change.drains())?.0;
        // Behind so many addresses without a frame.
        let behind =
            |index, run: Range<u64>| if run.start <= index { index + run.end - run.start } else { index };
        let index = self.empty().fold(place, behind);
        Some((index, state::uses_mask(page.before())))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use tenure_abi::page;

    use super::*;

    /// Words of VM 1 with every combination of state, flags and references.
    fn words() -> impl Iterator<Item = Word> {
        (0u64..7 << 8).map(|bits| {
            let has = |bit: u32| bits >> bit & 1;
            let counts = [page::DMA_LEAVES, page::CPU_PINS, page::DMA_PINS, page::HYP_PINS];
            let flags = [page::WAITER, page::HOST_LEAF, page::SCRAP, page::SCRUB];
            let fields = (0..).zip(counts.into_iter().chain(flags));
            let word = fields.fold(0, |word, (bit, field)| field.set(word, has(bit)));
            Word::from_raw(page::OWNER.set(page::STATE.set(word, bits >> 8), 1))
        })
    }

    #[test]
    fn no_conversion_makes_more_changes_than_a_plan_holds() {
        let hows = (0..16).map(|bits| {
            let has = |bit: u32| bits >> bit & 1 != 0;
            let how = UnshareHow { drain: has(0), wait: has(1), revoke: has(2), consent: has(3) };
            Convert::Unshare { how, contents: Contents::Keep }
        });
        for op in hows.chain([Convert::Share]) {
            let mut plan = Plan::new(op, Slot(1), op.common(Slot(1))[0]);
            for word in words() {
                let step = op.step(word, Slot(1));
                match plan.judge(0, word) {
                    Err(refusal) => assert_eq!(step, Err(refusal), "{op:?} {word:?}"),
                    Ok(()) => {
                        let change = plan.of[0];
                        let drops = matches!(step, Ok(Step::DropHostLeaf(_)));
                        let drains = matches!(step, Ok(Step::Drain(_)));
                        assert_eq!((change.drops(), change.drains()), (drops, drains), "{op:?} {word:?}");
                        let Ok(Step::Publish(next) | Step::DropHostLeaf(next) | Step::Drain(next)) = step
                        else {
                            panic!("{op:?} of {word:?} is refused by the verdict alone");
                        };
                        assert_eq!(word.raw() ^ plan.flip(change), next.raw(), "{op:?} {word:?}");
                    }
                }
            }
        }
    }
}
