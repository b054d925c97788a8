//! Share and unshare: the guest's calls, the host's consent to them, and conversions by the host where it may.

use tenure_abi::MAX_ATOMIC_PAGES;
use tenure_abi::flags::{status, unshare as flags};
use tenure_abi::page::State;
use tenure_abi::reply::{Reply, Status};

use super::{Held, Seen, hold};
use crate::addr::{Gfn, checked_end};
use crate::machine::Machine;
use crate::manager::{Mm, SCRUB_CHUNK};
use crate::stage2::guest::{Cursor, Entry, ensure, tables_needed, walk};
use crate::stage2::{Descriptor, GUEST_FRAMES, LEAF_LEVEL};
use crate::state::{self, Quick, Refusal, Share, UnshareHow};
use crate::vm::{Slot, Vm};
use crate::word::{Frozen, Word};

/// Checked flags of an unshare.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Unshare {
    how: UnshareHow,
    zero: bool,
}

impl Unshare {
    /// Reads the guest's flags.
    ///
    /// # Errors
    /// INVALID: unknown flags, WAIT without DRAIN, or ZERO with DRAIN. DENIED: REVOKE without the right.
    pub fn from_flags(vm: &Vm, raw: u64) -> Result<Self, Status> {
        let has = |flag| raw & flag != 0;
        if raw & !flags::ALL != 0
            || has(flags::WAIT) && !has(flags::DRAIN)
            || has(flags::ZERO) && has(flags::DRAIN)
        {
            return Err(Status::Invalid);
        }
        if has(flags::REVOKE) && !vm.may_revoke() {
            return Err(Status::Denied);
        }
        let how = UnshareHow {
            drain: has(flags::DRAIN),
            wait: has(flags::WAIT),
            revoke: has(flags::REVOKE),
            consent: false,
        };
        Ok(Self { how, zero: has(flags::ZERO) })
    }
}

/// A conversion of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Convert {
    Share,
    Unshare { how: UnshareHow, contents: Contents },
}

/// What happens to the contents of a page that becomes private.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Contents {
    /// They stay.
    Keep,
    /// They are zeroed.
    Zero,
    /// They stay, and a guest with its caches off may read and run them: what the host wrote as an image.
    Image,
}

/// What one word needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Publish(Word),
    DropHostLeaf(Word),
    Drain(Word),
}

/// A common case and what it needs.
#[derive(Clone, Copy)]
struct Run {
    quick: Quick,
    /// The host's leaves go.
    drops: bool,
    /// The contents go.
    zero: bool,
}

impl Convert {
    fn step(self, word: Word, vm: &Vm) -> Result<Step, Refusal> {
        Ok(match self {
            Self::Share => match state::share(word, vm.slot())? {
                Share::Already => Step::Publish(word),
                Share::Swap(next) => Step::Publish(next),
                Share::DropScrap(next) => Step::DropHostLeaf(next),
            },
            Self::Unshare { how, .. } => match state::unshare(word, vm.slot(), how)? {
                state::Unshare::Already => Step::Publish(word),
                state::Unshare::Swap(next) => Step::Publish(next),
                state::Unshare::DropHostLeaf(next) if word.has_host_leaf() => Step::DropHostLeaf(next),
                state::Unshare::DropHostLeaf(next) => Step::Publish(next),
                state::Unshare::Drain(next) => Step::Drain(next),
            },
        })
    }

    fn contents(self) -> Contents {
        match self {
            Self::Share => Contents::Keep,
            Self::Unshare { contents, .. } => contents,
        }
    }

    /// The common cases of this conversion, the most common first: pages that it changes, and, for a call that is made
    /// again when the host has consented, pages that have changed.
    fn runs(self, vm: &Vm) -> [Option<Run>; 3] {
        let slot = vm.slot();
        let run = |quick| Some(Run { quick, drops: false, zero: false });
        match self {
            Self::Share => [run(Quick::share(slot)), run(Quick::already(slot, State::Shared)), None],
            Self::Unshare { how, contents } => {
                let already = run(Quick::already(slot, State::Private));
                let zero = contents == Contents::Zero;
                let both = |quick: fn(Slot, bool) -> Quick| {
                    let with_leaf = Run { quick: quick(slot, true), drops: true, zero };
                    [Some(with_leaf), Some(Run { quick: quick(slot, false), drops: false, zero }), already]
                };
                match how {
                    _ if contents == Contents::Image => [already, None, None],
                    UnshareHow { revoke: true, drain: true, .. } => [already, None, None],
                    UnshareHow { revoke: true, .. } => both(Quick::revoke),
                    UnshareHow { consent: true, .. } => both(Quick::unshare),
                    _ => {
                        let plain = Run { quick: Quick::unshare(slot, false), drops: false, zero };
                        [Some(plain), already, None]
                    }
                }
            }
        }
    }

    /// The status that an unpopulated address has afterwards.
    fn address_status(self, before: u64) -> Result<u64, Refusal> {
        match (self, before) {
            (Self::Share, status::PRIVATE | status::SHARED | status::RELINQUISHED) => Ok(status::SHARED),
            (Self::Unshare { .. }, status::SHARED | status::PRIVATE) => Ok(status::PRIVATE),
            (Self::Unshare { .. }, status::RELINQUISHED) => Ok(status::RELINQUISHED),
            _ => Err(Refusal::UNPOPULATED),
        }
    }
}

impl<'a, M: Machine> Mm<'a, M> {
    /// The guest shares `count` pages from `gfn`. All of the first 512, or none.
    pub fn guest_share(&self, vm: &Vm, gfn: Gfn, count: u64) -> Reply {
        if checked_end(gfn.0, count, GUEST_FRAMES).is_none() {
            return Reply::refused(Status::Invalid);
        }
        if count == 1
            && let Some(reply) = self.swap_one(vm, gfn, Convert::Share)
        {
            return reply;
        }
        self.convert(vm, gfn, count, Convert::Share)
    }

    /// The guest takes `count` pages from `gfn` back. All of the first 512 (32 with ZERO), or none.
    ///
    /// RETRY with a host leaf in the mask means: ask the host, see [`Mm::consent`].
    pub fn guest_unshare(&self, vm: &Vm, gfn: Gfn, count: u64, how: Unshare) -> Reply {
        self.unshare(vm, gfn, count, how.how, if how.zero { Contents::Zero } else { Contents::Keep })
    }

    /// The host agrees to a request that the guest made: as the guest's own call, but host leaves are dropped.
    /// Everything is checked again.
    pub fn consent(&self, vm: &Vm, gfn: Gfn, count: u64, how: Unshare) -> Reply {
        let contents = if how.zero { Contents::Zero } else { Contents::Keep };
        self.unshare(vm, gfn, count, UnshareHow { consent: true, ..how.how }, contents)
    }

    /// The host converts, contents kept: before activation, or memory of a plain VM. Of a protected VM one page.
    pub fn host_convert(&self, vm: &Vm, gfn: Gfn, count: u64, to: u64) -> Reply {
        loop {
            if let Some(reply) = self.host_convert_part(vm, gfn, count, to) {
                return reply;
            }
        }
    }

    /// As [`Mm::host_convert`], or a part of it: `None` asks for the same call again.
    pub fn host_convert_part(&self, vm: &Vm, gfn: Gfn, count: u64, to: u64) -> Option<Reply> {
        if vm.is_sealed() {
            return Some(Refusal::STATE.whole());
        }
        if checked_end(gfn.0, count, GUEST_FRAMES).is_none() {
            return Some(Reply::refused(Status::Invalid));
        }
        let convert = |count| match to {
            status::SHARED => self.convert(vm, gfn, count, Convert::Share),
            status::PRIVATE => {
                let how = UnshareHow { consent: true, ..UnshareHow::default() };
                self.unshare(vm, gfn, count, how, Contents::Image)
            }
            _ => Reply::refused(Status::Invalid),
        };
        if vm.is_protected() {
            self.convert_measured(vm, gfn, to, || convert(1))
        } else {
            Some(convert(count))
        }
    }

    fn unshare(&self, vm: &Vm, gfn: Gfn, count: u64, how: UnshareHow, contents: Contents) -> Reply {
        if checked_end(gfn.0, count, GUEST_FRAMES).is_none() {
            return Reply::refused(Status::Invalid);
        }
        let op = Convert::Unshare { how, contents };
        match contents {
            Contents::Keep => {
                if count == 1
                    && let Some(reply) = self.swap_one(vm, gfn, op)
                {
                    return reply;
                }
                self.convert(vm, gfn, count, op)
            }
            Contents::Zero => self.convert(vm, gfn, count.min(SCRUB_CHUNK), op),
            Contents::Image => self.convert(vm, gfn, count, op),
        }
    }

    /// The fast path: one populated page that needs no table write. One walk, one compare-and-swap.
    #[inline]
    fn swap_one(&self, vm: &Vm, gfn: Gfn, op: Convert) -> Option<Reply> {
        let mut cursor = Cursor::new(vm.root()?);
        let (cell, word) = match self.look(&mut cursor, gfn) {
            Ok(Seen::Frame { cell, word, .. }) => (cell, word),
            Ok(Seen::Empty(_)) => return None,
            Err(refusal) => return Some(refusal.at(0)),
        };
        let quick = match op {
            Convert::Share => Some(Quick::share(vm.slot())),
            // REVOKE leaves scrap behind.
            Convert::Unshare { how, .. } => (!how.revoke).then(|| Quick::unshare(vm.slot(), false)),
        };
        if let Some(quick) = quick.filter(|quick| quick.matches(word)) {
            let swapped = cell.swap(word, quick.next(word));
            return Some(if swapped.is_ok() { Reply::done(1) } else { Refusal::FROZEN.at(0) });
        }
        let (next, reply) = match op.step(word, vm) {
            Ok(Step::Publish(next)) => (next, Reply::done(1)),
            Ok(Step::Drain(next)) => {
                let mask = state::uses_mask(word);
                (next, Reply { status: Status::Pending, done: 1, first: 0, mask })
            }
            Ok(Step::DropHostLeaf(_)) => return None,
            Err(refusal) => return Some(refusal.at(0)),
        };
        if next != word && cell.swap(word, next).is_err() {
            return Some(Refusal::FROZEN.at(0));
        }
        Some(reply)
    }

    #[inline(never)]
    fn convert(&self, vm: &Vm, gfn: Gfn, count: u64, op: Convert) -> Reply {
        let count = count.min(MAX_ATOMIC_PAGES);
        let Some(root) = vm.root() else { return Refusal::UNPOPULATED.at(0) };
        let mut cursor = Cursor::new(root);
        let mut held = Held::new();
        let mut empty = 0u64;
        let mut leaves = 0u64;
        let mut drain = None;
        let mut quick_pages = 0;
        let runs = op.runs(vm);
        loop {
            let before = quick_pages;
            for run in runs.iter().flatten() {
                let rest = count - quick_pages;
                let frozen = self.freeze_run(vm, gfn.offset(quick_pages), rest, run.quick, &mut held);
                leaves += if run.drops { frozen } else { 0 };
                quick_pages += frozen;
                if frozen == count {
                    self.publish_run(run.quick, run.drops, run.zero, &mut held);
                    return Reply::done(count);
                }
                if quick_pages == count {
                    self.publish_mixed(&runs, leaves, &mut held);
                    return Reply::done(count);
                }
            }
            if quick_pages == before {
                break;
            }
        }
        for index in quick_pages..count {
            let seen = match self.look(&mut cursor, gfn.offset(index)) {
                Ok(seen) => seen,
                Err(refusal) => return refusal.at(index),
            };
            let verdict = match seen {
                Seen::Frame { cell, word, frame } => op.step(word, vm).and_then(|step| {
                    match step {
                        Step::Publish(_) => {}
                        Step::DropHostLeaf(_) => leaves += 1,
                        Step::Drain(_) => drain = drain.or(Some((index, state::uses_mask(word)))),
                    }
                    hold(&mut held, cell, frame, word, word)
                }),
                Seen::Empty(entry) => {
                    empty += 1;
                    op.address_status(entry.descriptor.address_status()).map(|_| ())
                }
            };
            if let Err(refusal) = verdict {
                return refusal.at(index);
            }
        }
        if empty == 0 {
            self.commit(vm, op, &mut held, leaves);
        } else if let Err(reply) = self.convert_with_addresses(vm, gfn, count, op, empty, &mut held, leaves) {
            return reply;
        }
        match drain {
            Some((first, mask)) => Reply { status: Status::Pending, done: count, first, mask },
            None => Reply::done(count),
        }
    }

    /// Publishes a range in which every page is one of the common cases, `leaves` of them with a host leaf that goes.
    #[inline(never)]
    fn publish_mixed(&self, runs: &[Option<Run>; 3], leaves: u64, held: &mut Held<'_>) {
        let run_of = |page: &Frozen<'_>| runs.iter().flatten().find(|run| run.quick.matches(page.before()));
        if leaves > 0 {
            let dropping = held.iter().filter(|page| run_of(page).is_some_and(|run| run.drops));
            self.drop_host_leaves(dropping.map(Frozen::frame), leaves);
        }
        let zeroed = held.iter().filter(|page| run_of(page).is_some_and(|run| run.zero)).map(Frozen::frame);
        if zeroed.clone().next().is_some() {
            self.scrub_all(zeroed);
        }
        for page in held.drain(..) {
            match run_of(&page) {
                Some(run) => run.quick.publish(page),
                // It was frozen because one matched.
                None => drop(page),
            }
        }
    }

    /// As [`Mm::commit`], for a range of which `empty` addresses have no frame: their status changes as well.
    #[allow(clippy::too_many_arguments, reason = "the parts of one transition")]
    fn convert_with_addresses(
        &self,
        vm: &Vm,
        gfn: Gfn,
        count: u64,
        op: Convert,
        empty: u64,
        held: &mut Held<'_>,
        leaves: u64,
    ) -> Result<(), Reply> {
        let mut inner = vm.lock();
        let Some(root) = vm.root() else { return Err(Refusal::UNPOPULATED.at(0)) };
        let mut changes = false;
        let mut still_empty = 0u64;
        for index in 0..count {
            let entry = walk(&self.machine, root, gfn.offset(index));
            if entry.is_leaf() {
                continue;
            }
            still_empty += 1;
            let before = entry.descriptor.address_status();
            changes |= op.address_status(before).map_err(|refusal| refusal.at(index))? != before;
        }
        // Frames that were there are frozen and stand still; one that came since is a transition in flight.
        if still_empty != empty {
            return Err(Refusal::FROZEN.at(0));
        }
        if changes && inner.pool.free() < tables_needed(&self.machine, root, gfn, count, LEAF_LEVEL) {
            return Err(Refusal::VM_POOL.whole());
        }
        self.commit(vm, op, held, leaves);
        if changes {
            for index in 0..count {
                let at = gfn.offset(index);
                let Some(entry) = ensure(&self.machine, &mut inner.pool, root, at, LEAF_LEVEL) else { break };
                rewrite(&self.machine, entry, op);
            }
            self.machine.dsb_ishst();
        }
        Ok(())
    }

    fn commit(&self, vm: &Vm, op: Convert, held: &mut Held<'_>, leaves: u64) {
        let contents = op.contents();
        if leaves > 0 {
            let dropping = held
                .iter()
                .filter(|page| matches!(op.step(page.before(), vm), Ok(Step::DropHostLeaf(_))))
                .map(Frozen::frame);
            self.drop_host_leaves(dropping, leaves);
        }
        if contents != Contents::Keep {
            let fresh =
                held.iter().filter(|page| op.step(page.before(), vm) != Ok(Step::Publish(page.before())));
            match contents {
                Contents::Zero => self.scrub_all(fresh.map(Frozen::frame)),
                _ => fresh.for_each(|page| {
                    self.machine.clean_to_poc(page.frame());
                    self.machine.sync_icache(page.frame());
                }),
            }
        }
        for page in held.drain(..) {
            match op.step(page.before(), vm) {
                Ok(Step::Publish(next) | Step::DropHostLeaf(next) | Step::Drain(next)) => page.publish(next),
                // The verdict is a function of the word, which was frozen: it was not a refusal before.
                Err(_) => drop(page),
            }
        }
    }
}

fn rewrite<M: Machine>(machine: &M, entry: Entry, op: Convert) {
    if !entry.descriptor.is_valid()
        && let Ok(after) = op.address_status(entry.descriptor.address_status())
    {
        entry.write(machine, Descriptor::status(after));
    }
}
