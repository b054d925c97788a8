//! The page word: owner, state and every count of one frame in one atomic 64-bit value.
//!
//! The layout is [`tenure_abi::page`]. A word changes in one of two ways only:
//! - a transition that touches no table is one compare-and-swap, [`PageWord::swap`];
//! - one that does is [`PageWord::freeze`] → write tables, invalidate, wait → [`Frozen::publish`].
//!
//! [`Frozen`] is the proof that this CPU froze the word. Dropping it puts the former word back, so that an early
//! return anywhere before the first table write leaves no trace; after it the code must publish.
//!
//! Invariants: a leaf bit or count is set no later than in the frozen word before the table write, and is cleared
//! only by a publish after the DSB of the invalidation. Freezing never waits: a frozen word is a refusal.

use core::fmt;

use tenure_abi::page::{self, Field, State};

use crate::addr::Pfn;
use crate::sync::{Ordering, WordCell};
use crate::vm::Slot;

/// Value of a page word at one moment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Word(u64);

/// A count of the word that cannot go further in the direction asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CountLimit;

impl Word {
    /// A frame of the host without any reference.
    pub const HOST: Self = Self(0);

    /// A frame of the host that firmware uses: never donated.
    pub const FIRMWARE: Self = Self(page::FIRMWARE.mask());

    /// A frame of the hypervisor; `owner` is the VM whose pool it came from, if any.
    pub const fn hyp(owner: Slot) -> Self {
        Self(page::OWNER.set(page::STATE.set(0, State::Hyp as u64), owner.0 as u64))
    }

    /// The raw value, as QUERY shows it.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The state. The one unused encoding cannot be stored by this crate; it reads as `Poison`, which permits nothing.
    pub const fn state(self) -> State {
        match State::of(self.0) {
            Some(state) => state,
            None => State::Poison,
        }
    }

    /// The VM that owns the frame.
    pub const fn owner(self) -> Slot {
        Slot(page::OWNER.get(self.0) as u8)
    }

    /// A transition is under way.
    pub const fn is_frozen(self) -> bool {
        self.flag(page::FROZEN)
    }

    /// A vCPU waits for the end of a drain.
    pub const fn has_waiter(self) -> bool {
        self.flag(page::WAITER)
    }

    /// The host may have a leaf (outside state `Host`).
    pub const fn has_host_leaf(self) -> bool {
        self.flag(page::HOST_LEAF)
    }

    /// The host may have a leaf to a scrap frame here.
    pub const fn is_redirected(self) -> bool {
        self.flag(page::SCRAP)
    }

    /// Firmware's.
    pub const fn is_firmware(self) -> bool {
        self.flag(page::FIRMWARE)
    }

    /// Guest leaves.
    pub const fn guest_leaves(self) -> u64 {
        page::GUEST_LEAVES.get(self.0)
    }

    /// DMA leaves.
    pub const fn dma_leaves(self) -> u64 {
        page::DMA_LEAVES.get(self.0)
    }

    /// CPU pins.
    pub const fn cpu_pins(self) -> u64 {
        page::CPU_PINS.get(self.0)
    }

    /// DMA pins.
    pub const fn dma_pins(self) -> u64 {
        page::DMA_PINS.get(self.0)
    }

    /// Pins of the hypervisor.
    pub const fn hyp_pins(self) -> u64 {
        page::HYP_PINS.get(self.0)
    }

    /// True while the host holds a pin of any kind.
    pub const fn is_host_pinned(self) -> bool {
        self.0 & (page::CPU_PINS.mask() | page::DMA_PINS.mask()) != 0
    }

    /// Without pins of the host.
    pub const fn without_host_pins(self) -> Self {
        Self(self.0 & !(page::CPU_PINS.mask() | page::DMA_PINS.mask()))
    }

    /// In `state`, owned by `owner`, thawed, and without any reference; a scrub may be owed.
    #[inline(always)]
    pub const fn is_only(self, state: State, owner: Slot) -> bool {
        let free = page::VERSION.mask() | page::SCRUB.mask();
        self.0 & !free == page::OWNER.set(state as u64, owner.0 as u64)
    }

    /// A word of this state and owner without any reference, of the same version as this one.
    #[inline(always)]
    pub const fn fresh(self, state: State, owner: Slot) -> Self {
        Self(self.0 & page::VERSION.mask() | page::OWNER.set(state as u64, owner.0 as u64))
    }

    /// As [`Word::fresh`], with a first guest leaf.
    #[inline(always)]
    pub const fn fresh_with_leaf(self, state: State, owner: Slot) -> Self {
        let word = page::GUEST_LEAVES.set(self.next_version().fresh(state, owner).0, 1);
        Self(word)
    }

    /// In `state`, owned by `owner`, thawed, with one guest leaf and no other reference.
    #[inline(always)]
    pub const fn is_sole(self, state: State, owner: Slot) -> bool {
        let leaf = page::GUEST_LEAVES.set(0, 1);
        self.0 & !page::VERSION.mask() == page::OWNER.set(state as u64, owner.0 as u64) | leaf
    }

    /// As [`Word::fresh`], after the guest leaf has gone.
    #[inline(always)]
    pub const fn fresh_without_leaf(self, state: State, owner: Slot) -> Self {
        self.next_version().fresh(state, owner)
    }

    /// A scrub is owed.
    pub const fn owes_scrub(self) -> bool {
        self.flag(page::SCRUB)
    }

    /// The frame in `state`, owned by `owner`.
    pub const fn with_state(self, state: State, owner: Slot) -> Self {
        Self(page::OWNER.set(page::STATE.set(self.0, state as u64), owner.0 as u64))
    }

    /// With or without a host leaf.
    pub const fn with_host_leaf(self, on: bool) -> Self {
        self.with_flag(page::HOST_LEAF, on)
    }

    /// With or without a redirection to scrap.
    pub const fn with_redirection(self, on: bool) -> Self {
        self.with_flag(page::SCRAP, on)
    }

    /// With or without a waiting vCPU.
    pub const fn with_waiter(self, on: bool) -> Self {
        self.with_flag(page::WAITER, on)
    }

    /// With or without a scrub that is owed.
    pub const fn with_scrub(self, on: bool) -> Self {
        self.with_flag(page::SCRUB, on)
    }

    /// One more guest leaf, and a new version.
    ///
    /// # Errors
    /// The count is at its limit.
    pub const fn add_guest_leaf(self) -> Result<Self, CountLimit> {
        match self.count_up(page::GUEST_LEAVES) {
            Ok(word) => Ok(word.next_version()),
            Err(limit) => Err(limit),
        }
    }

    /// One guest leaf less, and a new version.
    ///
    /// # Errors
    /// There is none.
    pub const fn remove_guest_leaf(self) -> Result<Self, CountLimit> {
        match self.count_down(page::GUEST_LEAVES) {
            Ok(word) => Ok(word.next_version()),
            Err(limit) => Err(limit),
        }
    }

    /// Adds one to a count.
    ///
    /// # Errors
    /// The count is at its limit.
    pub const fn count_up(self, field: Field) -> Result<Self, CountLimit> {
        let count = field.get(self.0);
        if count == field.max() { Err(CountLimit) } else { Ok(Self(field.set(self.0, count + 1))) }
    }

    /// Takes one from a count.
    ///
    /// # Errors
    /// The count is zero.
    pub const fn count_down(self, field: Field) -> Result<Self, CountLimit> {
        match field.get(self.0) {
            0 => Err(CountLimit),
            count => Ok(Self(field.set(self.0, count - 1))),
        }
    }

    /// With the bits of `flip` the other way round.
    #[inline(always)]
    pub(crate) const fn flipped(self, flip: u64) -> Self {
        Self(self.0 ^ flip)
    }

    /// A word of any bits, for tests of verdicts.
    #[cfg(any(test, feature = "fake"))]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    const fn next_version(self) -> Self {
        // The version stands on top, and wraps there.
        Self(self.0.wrapping_add(1 << page::VERSION.shift))
    }

    const fn flag(self, field: Field) -> bool {
        self.0 & field.mask() != 0
    }

    const fn with_flag(self, field: Field, on: bool) -> Self {
        Self(if on { self.0 | field.mask() } else { self.0 & !field.mask() })
    }

    const fn frozen(self) -> Self {
        self.with_flag(page::FROZEN, true)
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.state())?;
        for (name, field) in page::FIELDS.iter().skip(1) {
            match field.get(self.0) {
                0 => {}
                1 if field.bits == 1 => write!(f, " {name}")?,
                value => write!(f, " {name}={value}")?,
            }
        }
        Ok(())
    }
}

/// The word of one frame.
#[derive(Debug)]
#[repr(transparent)]
pub struct PageWord(WordCell);

impl PageWord {
    /// A word with a first value.
    #[cfg(not(loom))]
    pub const fn new(word: Word) -> Self {
        Self(WordCell::new(word.0))
    }

    /// A word with a first value.
    #[cfg(loom)]
    pub fn new(word: Word) -> Self {
        Self(WordCell::new(word.0))
    }

    /// Sets the first value, before any CPU but the one that boots uses the word.
    pub fn init(&self, word: Word) {
        self.0.store(word.0, Ordering::Release);
    }

    /// Reads the word.
    #[inline]
    pub fn load(&self) -> Word {
        Word(self.0.load(Ordering::Acquire))
    }

    /// One compare-and-swap.
    ///
    /// # Errors
    /// The word that stands there instead of `from`.
    #[inline]
    pub fn swap(&self, from: Word, to: Word) -> Result<(), Word> {
        match self.0.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(other) => Err(Word(other)),
        }
    }

    /// Freezes the word, showing `during` to all others meanwhile: `from` with the leaf that is about to be made.
    ///
    /// # Errors
    /// The word that stands there instead of `from`. A frozen `from` never succeeds.
    #[inline]
    pub fn freeze(&self, frame: Pfn, from: Word, during: Word) -> Result<Frozen<'_>, Word> {
        if from.is_frozen() {
            return Err(from);
        }
        self.swap(from, during.frozen())?;
        Ok(Frozen { cell: self, before: from, frame })
    }

    /// As [`PageWord::freeze`], for a `from` that a comparison of the caller's has shown not to be frozen.
    ///
    /// # Errors
    /// The word that stands there instead of `from`.
    #[inline(always)]
    pub(crate) fn freeze_thawed(&self, frame: Pfn, from: Word) -> Result<Frozen<'_>, Word> {
        debug_assert!(!from.is_frozen());
        self.swap(from, from.frozen())?;
        Ok(Frozen { cell: self, before: from, frame })
    }

    /// Freezes whatever stands here, for [`crate::block::FrozenBlock`], which is the proof. A word that comes back frozen
    /// is another CPU's, and stays so.
    #[inline(always)]
    pub(crate) fn freeze_in_place(&self) -> Word {
        Word(self.0.fetch_or(page::FROZEN.mask(), Ordering::AcqRel))
    }

    /// What a word that this CPU has frozen in place was before. (Nobody else writes it.)
    #[inline(always)]
    pub(crate) fn load_frozen(&self) -> Word {
        Word(self.0.load(Ordering::Relaxed) & !page::FROZEN.mask())
    }

    /// Ends what [`PageWord::freeze_in_place`] began, or changes a parked word that no other CPU gets to.
    #[inline(always)]
    pub(crate) fn thaw(&self, word: Word) {
        self.0.store(word.0 & !page::FROZEN.mask(), Ordering::Release);
    }
}

/// Proof that this CPU holds a frame's word frozen. Dropped, it puts the former word back.
///
/// A transition ends once:
///
/// ```compile_fail,E0382
/// use tenure_mm::{PageWord, Pfn, Word};
/// let cell = PageWord::new(Word::HOST);
/// let page = cell.freeze(Pfn(1), Word::HOST, Word::HOST).unwrap();
/// page.publish(Word::HOST);
/// page.publish(Word::FIRMWARE);
/// ```
///
/// Nobody makes one without freezing:
///
/// ```compile_fail,E0451
/// use tenure_mm::word::{Frozen, PageWord, Word};
/// let cell = PageWord::new(Word::HOST);
/// let page = Frozen { cell: &cell, before: Word::HOST, frame: tenure_mm::Pfn(1) };
/// ```
#[must_use = "dropping it thaws the word"]
#[derive(Debug)]
pub struct Frozen<'w> {
    cell: &'w PageWord,
    before: Word,
    frame: Pfn,
}

impl Frozen<'_> {
    /// The word as it was before the freeze.
    #[inline]
    pub fn before(&self) -> Word {
        self.before
    }

    /// The frame.
    #[inline]
    pub fn frame(&self) -> Pfn {
        self.frame
    }

    /// Ends the transition with its result.
    #[inline]
    pub fn publish(self, word: Word) {
        self.cell.0.store(word.0 & !page::FROZEN.mask(), Ordering::Release);
        core::mem::forget(self);
    }

    /// Ends the transition with the former word, the bits of `flip` the other way round. `flip` leaves the frozen bit alone.
    #[inline(always)]
    pub(crate) fn publish_flipped(self, flip: u64) {
        debug_assert!(flip & page::FROZEN.mask() == 0);
        self.cell.0.store(self.before.0 ^ flip, Ordering::Release);
        core::mem::forget(self);
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.cell.0.store(self.before.0, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn counts_refuse_at_both_ends() {
        let mut word = Word::HOST;
        assert_eq!(word.count_down(page::CPU_PINS), Err(CountLimit));
        for _ in 0..page::CPU_PINS.max() {
            word = word.count_up(page::CPU_PINS).unwrap();
        }
        assert_eq!(word.count_up(page::CPU_PINS), Err(CountLimit));
        assert_eq!(word.cpu_pins(), page::CPU_PINS.max());
        assert_eq!(word.dma_pins(), 0);
    }

    #[test]
    fn a_leaf_made_or_removed_moves_the_version() {
        let made = Word::HOST.add_guest_leaf().unwrap();
        let removed = made.remove_guest_leaf().unwrap();
        assert_eq!(removed.guest_leaves(), 0);
        assert_ne!(removed, Word::HOST);
    }

    #[test]
    fn a_dropped_freeze_leaves_no_trace() {
        let cell = PageWord::new(Word::HOST);
        let held = cell.freeze(Pfn(1), Word::HOST, Word::HOST.with_host_leaf(true)).unwrap();
        assert!(cell.load().is_frozen() && cell.load().has_host_leaf());
        assert!(cell.freeze(Pfn(1), cell.load(), cell.load()).is_err());
        drop(held);
        assert_eq!(cell.load(), Word::HOST);
    }

    #[test]
    fn publish_thaws() {
        let cell = PageWord::new(Word::HOST);
        let held = cell.freeze(Pfn(1), Word::HOST, Word::HOST).unwrap();
        held.publish(Word::HOST.with_state(State::Private, Slot(3)));
        assert_eq!(cell.load().state(), State::Private);
        assert_eq!(cell.load().owner(), Slot(3));
        assert!(!cell.load().is_frozen());
    }
}
