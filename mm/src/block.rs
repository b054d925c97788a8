//! The words of a whole block of 2 MiB: one proof for 512 frozen words.
//!
//! What [`crate::word::Frozen`] is for a page. A frozen word keeps its former value but for the frozen bit, so that
//! there is no list to be kept, and a block costs a few instructions a page.

use crate::addr::Pfn;
use crate::stage2::ENTRIES;
use crate::state::Refusal;
use crate::word::{PageWord, Word};

/// First frame of the block of 2 MiB around a frame.
pub const fn first_of(frame: u64) -> u64 {
    frame & !(ENTRIES - 1)
}

/// Place of a frame in the block of 2 MiB around it.
pub const fn place_of(frame: u64) -> u64 {
    frame & (ENTRIES - 1)
}

/// Proof that this CPU holds the words of consecutive frames frozen. Dropped, it thaws them as they were.
#[must_use = "dropping it thaws the words"]
#[derive(Debug)]
pub struct FrozenBlock<'w> {
    words: &'w [PageWord],
    first: Pfn,
}

impl<'w> FrozenBlock<'w> {
    /// Freezes the words of the frames from `first` on, each of which `permit` must let pass; what `plain` knows at a
    /// glance (never a frozen word) is not judged further.
    ///
    /// # Errors
    /// The place of the first word that was refused or is frozen, and why; no word is left frozen.
    #[inline]
    pub fn freeze(
        words: &'w [PageWord],
        first: Pfn,
        plain: impl Fn(Word) -> bool,
        permit: impl Fn(Word) -> Result<(), Refusal>,
    ) -> Result<Self, (u64, Refusal)> {
        let Some((place, word)) = freeze_plain(words, plain) else { return Ok(Self { words, first }) };
        Self::freeze_judged(words, first, place, word, permit)
    }

    /// Goes on from the word at `place`, which was frozen and found to be `word`, judging each.
    #[cold]
    fn freeze_judged(
        words: &'w [PageWord],
        first: Pfn,
        place: usize,
        mut word: Word,
        permit: impl Fn(Word) -> Result<(), Refusal>,
    ) -> Result<Self, (u64, Refusal)> {
        for (at, cell) in words.iter().enumerate().skip(place) {
            if at > place {
                word = cell.freeze_in_place();
            }
            if let Err(refusal) = judge(cell, word, &permit) {
                let (held, _) = words.split_at(at);
                drop(Self { words: held, first });
                return Err((at as u64, refusal));
            }
        }
        Ok(Self { words, first })
    }

    /// First frame.
    pub fn first(&self) -> Pfn {
        self.first
    }

    /// All frames.
    pub fn frames(&self) -> impl Iterator<Item = Pfn> + Clone + use<> {
        let first = self.first;
        (0..self.words.len() as u64).map(move |place| first.offset(place))
    }

    /// The words as they were before the freeze.
    pub fn before(&self) -> impl Iterator<Item = Word> + use<'w> {
        self.words.iter().map(PageWord::load_frozen)
    }

    /// As [`FrozenBlock::publish`], the first word last, and as `first` makes of it.
    #[inline]
    pub(crate) fn publish_first(self, first: impl Fn(Word) -> Word, next: impl Fn(Word) -> Word) {
        if let Some((cell, rest)) = self.words.split_first() {
            replace_all(rest, next);
            cell.thaw(first(cell.load_frozen()));
        }
        core::mem::forget(self);
    }

    /// Ends the transition: each word becomes what `next` makes of what it was.
    #[inline]
    pub fn publish(self, next: impl Fn(Word) -> Word) {
        replace_all(self.words, next);
        core::mem::forget(self);
    }
}

/// Freezes words while they are `plain`. Returns the first that is not, frozen as well (by whomever), and its place.
#[inline(always)]
fn freeze_plain(words: &[PageWord], plain: impl Fn(Word) -> bool) -> Option<(usize, Word)> {
    // By fours: half of such a loop would be counting.
    let (fours, rest) = words.as_chunks::<4>();
    for (turn, four) in fours.iter().enumerate() {
        for (at, cell) in four.iter().enumerate() {
            let word = cell.freeze_in_place();
            if !plain(word) {
                return Some((4 * turn + at, word));
            }
        }
    }
    let looked = rest.iter().map(PageWord::freeze_in_place).enumerate();
    looked.map(|(at, word)| (4 * fours.len() + at, word)).find(|(_, word)| !plain(*word))
}

/// A word that was just frozen is looked at: it is thawed again if it is refused, or left alone if another CPU holds it.
fn judge(cell: &PageWord, word: Word, permit: impl Fn(Word) -> Result<(), Refusal>) -> Result<(), Refusal> {
    if word.is_frozen() {
        return Err(Refusal::FROZEN);
    }
    permit(word).inspect_err(|_| cell.thaw(word))
}

/// Changes words that are this CPU's: frozen in place, or parked under its lock, behind a first word that it froze.
#[inline]
pub(crate) fn replace_all(words: &[PageWord], next: impl Fn(Word) -> Word) {
    let replace = |cell: &PageWord| cell.thaw(next(cell.load_frozen()));
    let (fours, rest) = words.as_chunks::<4>();
    fours.iter().for_each(|four| four.iter().for_each(replace));
    rest.iter().for_each(replace);
}

impl Drop for FrozenBlock<'_> {
    fn drop(&mut self) {
        for cell in self.words {
            cell.thaw(cell.load_frozen());
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::state;
    use crate::vm::Slot;

    fn words() -> Vec<PageWord> {
        (0..512).map(|_| PageWord::new(Word::HOST)).collect()
    }

    #[test]
    fn one_refused_word_leaves_no_trace_in_the_others() {
        let words = words();
        words[300].init(Word::FIRMWARE);
        let refused = FrozenBlock::freeze(&words, Pfn(512), state::is_free, state::donate).err();
        assert_eq!(refused, Some((300, Refusal::STATE)));
        assert!(words.iter().all(|cell| !cell.load().is_frozen()));
        words[300].init(Word::HOST);
        drop(FrozenBlock::freeze(&words, Pfn(512), state::is_free, state::donate).unwrap());
        assert!(words.iter().all(|cell| cell.load() == Word::HOST));
    }

    #[test]
    fn a_word_that_is_let_pass_hides_none_behind_it() {
        let words = words();
        let pinned = Word::HOST.count_up(tenure_abi::page::CPU_PINS).unwrap();
        words[100].init(pinned);
        words[300].init(state::park(Word::HOST, Slot(3)));
        let hosts = |word: Word| match word.state() {
            tenure_abi::page::State::Host => Ok(()),
            _ => Err(Refusal::STATE),
        };
        let refused = FrozenBlock::freeze(&words, Pfn(512), state::is_free, hosts).err();
        assert_eq!(refused, Some((300, Refusal::STATE)));
        assert!(words.iter().all(|cell| !cell.load().is_frozen()));
        words[300].init(Word::HOST);
        let block = FrozenBlock::freeze(&words, Pfn(512), state::is_free, hosts).unwrap();
        assert!(words.iter().all(|cell| cell.load().is_frozen()));
        drop(block);
        assert_eq!(words[100].load(), pinned);
    }

    #[test]
    fn a_block_is_published_from_what_each_word_was() {
        let words = words();
        let block = FrozenBlock::freeze(&words, Pfn(512), state::is_free, state::donate).unwrap();
        assert!(words.iter().all(|cell| cell.load().is_frozen()));
        assert_eq!(block.frames().last(), Some(Pfn(1023)));
        block.publish(|word| state::park(word, Slot(3)));
        assert!(words.iter().all(|cell| state::is_parked(cell.load(), Slot(3))));
    }
}
