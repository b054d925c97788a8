//! Whether a page may change hands: the one table of transitions.
//!
//! Each function looks at one word and nothing else, and says what is to be done with it, or why not. The callers in
//! [`crate::transition`] find the word, carry the step out and never decide. Nothing here writes.
//!
//! ```text
//!            donate                share                 last unpin
//!   Host ───────────► Private ◄──────────► Shared ◄───┐  of a drain
//!    ▲                   │      unshare      │  ▲     │
//!    │ scrubbed,         │                   │  └─────┴── Draining ──► Private
//!    │ unpinned          ▼ relinquish, death ▼ reclaim     │
//!    └────────────── Quarantine ◄────────────┴─────────────┘
//! ```
//!
//! A frame in `Quarantine` *with an owner* is **parked**: a block is on its way to that VM, or out of it, and is scrubbed
//! over several entries to EL2. Nobody reaches a parked frame, and its word changes under the lock of that VM only (but
//! for counts of pins that are left from before).
//!
//! Every refusal follows one rule: a **pin** is BUSY (its holder must let go), a **leaf** or a frozen word is RETRY
//! (it will pass), a wrong owner, state or status is DENIED.

use tenure_abi::flags::status;
use tenure_abi::page::{self, Field, State};
use tenure_abi::reply::{self, Mask, Status};

use crate::vm::Slot;
use crate::word::{Frozen, Word};

/// Why a page may not change: the status of the call and what blocks the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Verdict.
    pub status: Status,
    /// What blocks.
    pub mask: Mask,
}

impl Refusal {
    /// A transition is in flight on another CPU.
    pub const FROZEN: Self = Self { status: Status::Retry, mask: reply::FROZEN };
    /// Wrong owner or state.
    pub const STATE: Self = Self { status: Status::Denied, mask: reply::STATE };
    /// No frame stands at the address.
    pub const UNPOPULATED: Self = Self { status: Status::Denied, mask: reply::UNPOPULATED };
    /// The VM's pool is short of table memory.
    pub const VM_POOL: Self = Self { status: Status::NoMemory, mask: reply::VM_POOL };
    /// The host's pool is short of table memory.
    pub const HOST_POOL: Self = Self { status: Status::NoMemory, mask: reply::HOST_POOL };
    /// A count is full: some holder must let go.
    pub const LIMIT: Self = Self { status: Status::Busy, mask: reply::COUNT_LIMIT };
    /// The frame is broken.
    pub const POISONED: Self = Self { status: Status::Poisoned, mask: reply::STATE };
    /// An argument makes no sense.
    pub const INVALID: Self = Self { status: Status::Invalid, mask: 0 };

    /// The answer that page `index` of a range is to blame for.
    pub const fn at(self, index: u64) -> reply::Reply {
        reply::Reply::blocked(self.status, index, self.mask)
    }
}

type Verdict<T> = Result<T, Refusal>;

/// What a guest's share of one page needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Share {
    /// Nothing: it is shared.
    Already,
    /// One compare-and-swap to this word.
    Swap(Word),
    /// The host's redirection to scrap is to be removed on the way to this word.
    DropScrap(Word),
}

/// What taking one page back needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unshare {
    /// Nothing: it is private.
    Already,
    /// One compare-and-swap to this word.
    Swap(Word),
    /// The host's leaf is to be removed on the way to this word.
    DropHostLeaf(Word),
    /// One compare-and-swap to this word, which drains.
    Drain(Word),
}

/// How a page is taken back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UnshareHow {
    /// Begin to drain where a pin stands in the way.
    pub drain: bool,
    /// A vCPU will wait for the end of the drain.
    pub wait: bool,
    /// In spite of CPU pins and host leaves, leaving scrap behind.
    pub revoke: bool,
    /// The host agrees to lose its leaf.
    pub consent: bool,
}

/// The common case of a verdict, as a comparison: a word that `mask` cuts down to `want` becomes `word ^ flip`.
///
/// It says what [`share`] and [`unshare`] say, in three instructions; whatever does not match is theirs to judge. A test
/// compares the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quick {
    mask: u64,
    want: u64,
    flip: u64,
}

impl Quick {
    const BETWEEN: u64 = State::Private as u64 ^ State::Shared as u64;
    const WHOSE: u64 = page::STATE.mask() | page::FROZEN.mask() | page::OWNER.mask() | page::WAITER.mask();

    /// A private page that is not redirected is shared.
    pub const fn share(vm: Slot) -> Self {
        let want = page::OWNER.set(State::Private as u64, vm.0 as u64);
        Self { mask: Self::WHOSE | page::SCRAP.mask(), want, flip: Self::BETWEEN }
    }

    /// A shared page is taken back: one with a host leaf where `how` lets that go, else one without. It has no pins, but
    /// for CPU pins that REVOKE alone overrides.
    pub const fn unshare(vm: Slot, how: UnshareHow) -> Self {
        let cpu_pins = if how.revoke && !how.drain { 0 } else { page::CPU_PINS.mask() };
        let pins = cpu_pins | page::DMA_PINS.mask() | page::HYP_PINS.mask();
        let leaves = page::DMA_LEAVES.mask() | page::HOST_LEAF.mask();
        let scrap = if how.revoke { page::SCRAP.mask() } else { 0 };
        let leaf = if how.revoke || how.consent { page::HOST_LEAF.mask() } else { 0 };
        let want = page::OWNER.set(State::Shared as u64, vm.0 as u64) | leaf;
        Self { mask: Self::WHOSE | pins | leaves | scrap, want, flip: Self::BETWEEN | leaf | scrap }
    }

    /// A page that is in `state` already, where a call is made again: it stays as it is.
    pub const fn already(vm: Slot, state: State) -> Self {
        let mask = page::STATE.mask() | page::FROZEN.mask() | page::OWNER.mask();
        Self { mask, want: page::OWNER.set(state as u64, vm.0 as u64), flip: 0 }
    }

    /// The word is the common case; then it is not frozen.
    #[inline(always)]
    pub const fn matches(self, word: Word) -> bool {
        word.raw() & self.mask == self.want
    }

    /// What a word that matches becomes.
    #[inline(always)]
    pub const fn next(self, word: Word) -> Word {
        word.flipped(self.flip)
    }

    /// The bits that change.
    pub const fn flip(self) -> u64 {
        self.flip
    }

    /// Carries that change out.
    #[inline(always)]
    pub(crate) fn publish(self, page: Frozen<'_>) {
        page.publish_flipped(self.flip);
    }
}

/// Numbers that [`kind`] gives: less than this.
pub const KINDS: usize = 1 << 8;

/// What the verdict on a conversion ([`share`], [`unshare`]) depends on, as a number: what a conversion changes in one
/// word of a kind, it changes in all. `None` for words that are judged one by one: another VM's, frozen ones, and those
/// with references that a page of a guest rarely has.
///
/// A test compares it with the verdicts.
#[inline(always)]
pub const fn kind(word: Word, vm: Slot) -> Option<usize> {
    let rare = page::FROZEN.mask() | page::SCRUB.mask() | page::FIRMWARE.mask();
    let rare = rare | page::OWNER.mask() | page::DMA_LEAVES.mask() | page::HYP_PINS.mask();
    if word.raw() & rare != page::OWNER.set(0, vm.0 as u64) {
        return None;
    }
    let flags = page::STATE.mask() | page::WAITER.mask() | page::HOST_LEAF.mask() | page::SCRAP.mask();
    // In the places of two flags that are not set.
    let cpu = (word.cpu_pins() > 0) as u64 * page::FROZEN.mask();
    let dma = (word.dma_pins() > 0) as u64 * page::SCRUB.mask();
    Some((word.raw() & flags | cpu | dma) as usize)
}

/// What a fault of the host, or its wish to map, needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostMap {
    /// The identity leaf with all rights: the frame is the host's.
    Own,
    /// A leaf without execute permission, counted by this word.
    Leaf(Word),
    /// A leaf to the owner's scrap frame.
    Scrap,
}

/// What dropping the host's leaf of a frame needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostUnmap {
    /// There is none.
    Already,
    /// The leaf is to be removed on the way to this word.
    Drop(Word),
}

/// What an unpin leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unpin {
    /// One compare-and-swap to this word.
    Swap(Word),
    /// The last pin of a draining page: its host leaf goes, and this word is published.
    Drained(Word),
    /// The last pin of a quarantined page: it is scrubbed and goes back to the host as this word.
    Released(Word),
}

/// What the reset of the host's world makes of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forget {
    /// Nothing of the host that ends is left here.
    Already,
    /// One compare-and-swap to this word.
    Swap(Word),
    /// The host's leaf, which leads to scrap, is to be removed on the way to this word.
    DropScrap(Word),
    /// A quarantined frame: it is scrubbed and goes back to the host as this word.
    Release(Word),
}

const fn stands(word: Word) -> Verdict<Word> {
    if word.is_frozen() {
        return Err(Refusal::FROZEN);
    }
    match word.state() {
        State::Poison => Err(Refusal::POISONED),
        _ => Ok(word),
    }
}

fn held_by(word: Word, vm: Slot) -> Verdict<State> {
    let word = stands(word)?;
    match word.state() {
        state @ (State::Private | State::Shared | State::Draining) if word.owner() == vm => Ok(state),
        _ => Err(Refusal::STATE),
    }
}

/// The pins of a word, as a mask of what blocks.
pub const fn pins_mask(word: Word) -> Mask {
    let mut mask = 0;
    if word.cpu_pins() > 0 {
        mask |= reply::CPU_PIN;
    }
    if word.dma_pins() > 0 {
        mask |= reply::DMA_PIN;
    }
    if word.hyp_pins() > 0 {
        mask |= reply::HYP_PIN;
    }
    mask
}

/// What a page that drains waits for.
pub const fn uses_mask(word: Word) -> Mask {
    pins_mask(word) | if word.dma_leaves() > 0 { reply::DMA_LEAF } else { 0 }
}

/// BUSY if `pins`, else RETRY if `leaves`, else free; both are named.
const fn refuse(pins: Mask, leaves: Mask) -> Verdict<()> {
    match (pins, leaves) {
        (0, 0) => Ok(()),
        (0, _) => Err(Refusal { status: Status::Retry, mask: leaves }),
        _ => Err(Refusal { status: Status::Busy, mask: pins | leaves }),
    }
}

/// A guest shares its page.
pub fn share(word: Word, vm: Slot) -> Verdict<Share> {
    match held_by(word, vm)? {
        State::Shared => Ok(Share::Already),
        State::Private if word.is_redirected() => {
            Ok(Share::DropScrap(word.with_state(State::Shared, vm).with_redirection(false)))
        }
        _ => Ok(Share::Swap(word.with_state(State::Shared, vm).with_waiter(false))),
    }
}

/// A guest takes its page back, or the host does it on the guest's behalf (`how.consent`).
pub fn unshare(word: Word, vm: Slot, how: UnshareHow) -> Verdict<Unshare> {
    match held_by(word, vm)? {
        State::Private => return Ok(Unshare::Already),
        State::Draining if how.drain => {
            return Ok(Unshare::Drain(word.with_waiter(word.has_waiter() || how.wait)));
        }
        State::Draining if !how.revoke => {
            return Err(Refusal { status: Status::Pending, mask: uses_mask(word) });
        }
        _ => {}
    }
    let pins = pins_mask(word);
    if pins != 0 && how.drain {
        return Ok(Unshare::Drain(word.with_state(State::Draining, vm).with_waiter(how.wait)));
    }
    let dma_leaves = if word.dma_leaves() > 0 { reply::DMA_LEAF } else { 0 };
    let private = word.with_state(State::Private, vm).with_host_leaf(false).with_waiter(false);
    if how.revoke {
        // CPU pins hold nothing that stage 2 cannot take; a device's use is beyond it.
        refuse(pins & !reply::CPU_PIN, dma_leaves)?;
        return Ok(Unshare::DropHostLeaf(private.with_redirection(true)));
    }
    let host_leaf = if word.has_host_leaf() { reply::HOST_LEAF } else { 0 };
    if how.consent && word.has_host_leaf() {
        refuse(pins, dma_leaves)?;
        return Ok(Unshare::DropHostLeaf(private));
    }
    refuse(pins, dma_leaves | host_leaf)?;
    Ok(Unshare::Swap(private))
}

/// The host gives a frame away (to a guest or to a pool): its leaf must go first.
pub fn donate(word: Word) -> Verdict<()> {
    let word = stands(word)?;
    if word.state() != State::Host || word.is_firmware() {
        return Err(Refusal::STATE);
    }
    refuse(pins_mask(word), leaves_mask(word))
}

/// Kind of frame that an unpopulated address of this status takes: private or shared; anything else takes none.
pub const fn kind_of(address: u64) -> u64 {
    match address {
        status::PRIVATE | status::RELINQUISHED => status::PRIVATE,
        other => other,
    }
}

/// What [`donate`] lets go, at a glance.
#[inline(always)]
pub const fn is_free(word: Word) -> bool {
    word.is_only(State::Host, Slot::NONE) && !word.owes_scrub()
}

/// A frame that [`donate`] lets go (nothing refers to it) is parked for the VM while the block that it is part of is
/// scrubbed.
#[inline(always)]
pub const fn park(word: Word, vm: Slot) -> Word {
    word.fresh(State::Quarantine, vm).with_scrub(true)
}

/// Parked for `vm`, and nobody holds anything of it.
#[inline(always)]
pub const fn is_parked(word: Word, vm: Slot) -> bool {
    word.is_only(State::Quarantine, vm)
}

/// Parked by `vm`, perhaps with pins and leaves of the host that are left from before.
pub fn is_parked_by(word: Word, vm: Slot) -> bool {
    word.state() == State::Quarantine && word.owner() == vm
}

/// A parked and scrubbed frame becomes the VM's, in `state`, with its guest leaf.
#[inline(always)]
pub const fn adopt(word: Word, vm: Slot, state: State) -> Word {
    word.fresh_with_leaf(state, vm)
}

/// A frame of a dying VM, or one that a plain VM only mapped, loses its leaf with the whole block around it: what it is
/// until its own turn comes. One that the host holds pinned cannot be parked: its holder must find it.
pub fn uproot(word: Word, vm: Slot) -> Word {
    if word.is_sole(State::Private, vm) {
        return word.fresh_without_leaf(State::Quarantine, vm).with_scrub(true);
    }
    let bare = word.remove_guest_leaf().unwrap_or(word);
    match word.state() {
        State::Host => bare,
        State::Private => bare.with_state(State::Quarantine, vm).with_scrub(true).with_waiter(false),
        _ if word.is_host_pinned() => quarantine(bare),
        _ => bare.with_state(State::Quarantine, vm).with_scrub(true).with_waiter(false),
    }
}

/// The host takes back a frame that has lost its guest leaf. `sealed`: the VM is protected and active.
pub fn reclaim(word: Word, vm: Slot, sealed: bool) -> Verdict<()> {
    if !word.is_frozen() && is_parked(word, vm) {
        return Ok(());
    }
    match held_by(word, vm)? {
        State::Draining => return Err(Refusal { status: Status::Busy, mask: uses_mask(word) }),
        State::Private if sealed => return Err(Refusal::STATE),
        _ => {}
    }
    refuse(pins_mask(word), leaves_mask(word))
}

/// A guest's leaf of the frame goes because the host asks. `sealed`: the VM is protected and active.
pub fn unmap_guest(word: Word, vm: Slot, sealed: bool) -> Verdict<Word> {
    let word = stands(word)?;
    match word.state() {
        State::Host => {}
        State::Shared | State::Private if word.owner() == vm => {
            if sealed && word.state() == State::Private {
                return Err(Refusal::STATE);
            }
        }
        State::Draining if word.owner() == vm => {
            return Err(Refusal { status: Status::Busy, mask: uses_mask(word) });
        }
        _ => return Err(Refusal::STATE),
    }
    word.remove_guest_leaf().map_err(|_| Refusal::STATE)
}

/// A plain VM maps a frame that stays the host's, or a VM maps one again that it shares already.
pub fn map_guest(word: Word, vm: Slot, protected: bool) -> Verdict<Word> {
    let word = stands(word)?;
    match word.state() {
        State::Host if !protected && !word.is_firmware() => {}
        State::Shared if word.owner() == vm && word.guest_leaves() == 0 => {}
        _ => return Err(Refusal::STATE),
    }
    word.add_guest_leaf().map_err(|_| Refusal::LIMIT)
}

/// A guest gives its page back: pins only decide where the page goes.
pub fn leave(word: Word, vm: Slot) -> Verdict<()> {
    held_by(word, vm)?;
    match word.dma_leaves() {
        0 => Ok(()),
        _ => Err(Refusal { status: Status::Retry, mask: reply::DMA_LEAF }),
    }
}

/// The frame leaves its VM for good (relinquish, death): what it is until its last pin goes.
pub fn quarantine(word: Word) -> Word {
    word.with_state(State::Quarantine, Slot::NONE).with_waiter(false).with_redirection(false).with_scrub(true)
}

/// The frame after its scrub, if no pin is left.
pub fn release(word: Word) -> Option<Word> {
    if word.is_host_pinned() || word.dma_leaves() > 0 {
        return None;
    }
    let host = word.with_state(State::Host, Slot::NONE);
    Some(host.with_host_leaf(false).with_redirection(false).with_waiter(false).with_scrub(false))
}

/// The host declares a use.
pub fn pin(word: Word, kind: Field) -> Verdict<Word> {
    let word = stands(word)?;
    match word.state() {
        State::Host | State::Shared => word.count_up(kind).map_err(|_| Refusal::LIMIT),
        _ => Err(Refusal::STATE),
    }
}

/// A use ends: a pin of the host, or an IOMMU entry. Works in every state: a use outlives what happened to its page.
pub fn unpin(word: Word, kind: Field) -> Verdict<Unpin> {
    if word.is_frozen() {
        return Err(Refusal::FROZEN);
    }
    let next = word.count_down(kind).map_err(|_| Refusal::STATE)?;
    match next.state() {
        State::Draining if !next.is_host_pinned() && next.dma_leaves() == 0 => {
            let private = next.with_state(State::Private, next.owner());
            Ok(Unpin::Drained(private.with_host_leaf(false).with_waiter(false).with_redirection(true)))
        }
        // A parked frame is released by who parked it.
        State::Quarantine if next.owner() == Slot::NONE => Ok(match release(next) {
            Some(host) => Unpin::Released(host),
            None => Unpin::Swap(next),
        }),
        _ => Ok(Unpin::Swap(next)),
    }
}

/// Nothing but a state that a reset leaves alone: `Host`, without a pin that was declared.
#[inline(always)]
pub const fn is_forgotten(word: Word) -> bool {
    word.is_only(State::Host, Slot::NONE)
}

/// The host ends, and with it every use that it ever declared: pins of both kinds, of whatever is no VM's.
///
/// A DMA pin too: it is the host's word that a device uses the page, and guards the host alone. A DMA *leaf* is an entry
/// that EL2 made; it stays until that is gone.
pub fn forget(word: Word) -> Verdict<Forget> {
    if word.is_frozen() {
        return Err(Refusal::FROZEN);
    }
    let free = word.without_host_pins();
    Ok(match word.state() {
        State::Quarantine if word.owner() == Slot::NONE => match release(free) {
            Some(host) => Forget::Release(host),
            None if free == word => Forget::Already,
            None => Forget::Swap(free),
        },
        // After a panic scrap was shown in their place.
        State::Hyp | State::Poison if word.is_redirected() => Forget::DropScrap(free.with_redirection(false)),
        State::Host | State::Poison if free != word => Forget::Swap(free),
        _ => Forget::Already,
    })
}

/// The hypervisor is about to read or write a frame of the host. (What firmware keeps EL2 does not even map.)
pub fn hyp_pin(word: Word) -> Verdict<Word> {
    let word = stands(word)?;
    match word.state() {
        State::Host if !word.is_firmware() => word.count_up(page::HYP_PINS).map_err(|_| Refusal::LIMIT),
        _ => Err(Refusal::STATE),
    }
}

/// The host touches, or asks to map, a frame. `execute`: it wants to fetch from it.
pub fn host_map(word: Word, execute: bool) -> Verdict<HostMap> {
    let word = stands(word)?;
    let leaf = Ok(HostMap::Leaf(word.with_host_leaf(true)));
    match word.state() {
        State::Host => Ok(HostMap::Own),
        // Also when its VM is dying and the page is parked: whoever was led to scrap stays there until it goes home.
        State::Private | State::Quarantine if word.is_redirected() && !execute => Ok(HostMap::Scrap),
        State::Shared if !execute => leaf,
        // Else what is parked is in nobody's reach.
        State::Quarantine if !execute && word.owner() == Slot::NONE => leaf,
        // A holder of a CPU pin may not have touched the page yet.
        State::Draining if !execute && (word.cpu_pins() > 0 || word.has_host_leaf()) => leaf,
        _ => Err(Refusal::STATE),
    }
}

/// The host gives up its leaf of a frame that is not its own, or the scrap that stands for it.
pub fn host_unmap(word: Word) -> Verdict<HostUnmap> {
    let word = stands(word)?;
    match word.state() {
        State::Shared | State::Draining | State::Quarantine | State::Private => {}
        State::Host | State::Hyp | State::Poison => return Err(Refusal::STATE),
    }
    if word.has_host_leaf() || word.is_redirected() {
        Ok(HostUnmap::Drop(word.with_host_leaf(false).with_redirection(false)))
    } else {
        Ok(HostUnmap::Already)
    }
}

/// The host reports a broken frame of its own.
pub fn poison(word: Word) -> Verdict<Word> {
    let word = stands(word)?;
    if word.state() != State::Host {
        return Err(Refusal::STATE);
    }
    let leaves = leaves_mask(word);
    let hyp = if word.hyp_pins() > 0 { reply::HYP_PIN } else { 0 };
    refuse(hyp, leaves)?;
    Ok(word.with_state(State::Poison, Slot::NONE))
}

/// An entry of an IOMMU table is about to be made.
pub fn dma_map(word: Word) -> Verdict<Word> {
    let word = stands(word)?;
    match word.state() {
        State::Host | State::Shared => {}
        State::Draining if word.dma_pins() > 0 => {}
        _ => return Err(Refusal::STATE),
    }
    word.count_up(page::DMA_LEAVES).map_err(|_| Refusal::LIMIT)
}

const fn leaves_mask(word: Word) -> Mask {
    let mut mask = 0;
    if word.guest_leaves() > 0 {
        mask |= reply::GUEST_LEAF;
    }
    if word.dma_leaves() > 0 {
        mask |= reply::DMA_LEAF;
    }
    mask
}
