//! Share and unshare: the guest's calls, the host's consent to them, and conversions by the host where it may.

use core::ops::Range;

use tenure_abi::MAX_ATOMIC_PAGES;
use tenure_abi::flags::{status, unshare as flags};
use tenure_abi::reply::{Reply, Status};

use super::plan::{Common, Contents, Convert, Plan, Step};
use super::{Held, PageRun, Seen, hold};
use crate::addr::{Gfn, Pa, Pfn, checked_end};
use crate::machine::Machine;
use crate::manager::{Mm, SCRUB_CHUNK};
use crate::stage2::guest::{Cursor, tables_needed};
use crate::stage2::{Descriptor, GUEST_FRAMES, LEAF_LEVEL};
use crate::state::{self, Quick, Refusal, UnshareHow};
use crate::tlb::WHOLE_VMID;
use crate::vm::{Inner, Vm};
use crate::word::Frozen;

/// Pages that one entry to EL2 makes private as an image: each is cleaned to the point of coherency.
const IMAGE_CHUNK: u64 = 32;

/// Pages before the first that is in the way, of a range of more than one call, that are converted in the time that is
/// left.
const PART: u64 = 64;

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

impl<'a, M: Machine> Mm<'a, M> {
    /// The guest shares `count` pages from `gfn`. All of up to 512, or none; beyond that some, see `done`.
    pub fn guest_share(&self, vm: &Vm, gfn: Gfn, count: u64) -> Reply {
        if checked_end(gfn.0, count, GUEST_FRAMES).is_none() {
            return Reply::refused(Status::Invalid);
        }
        if count == 1
            && let Some(reply) = self.swap_one(vm, gfn, Convert::Share)
        {
            return reply;
        }
        self.convert_range(vm, gfn, count, MAX_ATOMIC_PAGES, Convert::Share)
    }

    /// The guest takes `count` pages from `gfn` back. All of up to 512 (the first 32 with ZERO), or none; beyond that some,
    /// see `done`.
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
            status::SHARED => self.convert_range(vm, gfn, count, MAX_ATOMIC_PAGES, Convert::Share),
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
        if contents == Contents::Keep
            && count == 1
            && let Some(reply) = self.swap_one(vm, gfn, op)
        {
            return reply;
        }
        let most = match contents {
            Contents::Keep => MAX_ATOMIC_PAGES,
            Contents::Zero => SCRUB_CHUNK,
            Contents::Image => IMAGE_CHUNK,
        };
        self.convert_range(vm, gfn, count, most, op)
    }

    /// All of the first `most` pages, or none; of a range beyond what one call may do at once at least some, unless the
    /// first page is in the way: the caller comes again for the rest.
    fn convert_range(&self, vm: &Vm, gfn: Gfn, count: u64, most: u64, op: Convert) -> Reply {
        let reply = self.convert(vm, gfn, count.min(most), op);
        if count <= MAX_ATOMIC_PAGES || reply.done > 0 || !(1..most).contains(&reply.first) {
            return reply;
        }
        self.convert(vm, gfn, reply.first.min(PART), op)
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
            Convert::Unshare { how, .. } => {
                (!how.revoke).then(|| Quick::unshare(vm.slot(), UnshareHow::default()))
            }
        };
        if let Some(quick) = quick.filter(|quick| quick.matches(word)) {
            let swapped = cell.swap(word, quick.next(word));
            return Some(if swapped.is_ok() { Reply::done(1) } else { Refusal::FROZEN.at(0) });
        }
        let (next, reply) = match op.step(word, vm.slot()) {
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
        let mut held = Held::new();
        let mut cursor = Cursor::new(root);
        let [mut common, already] = op.common(vm.slot());
        let mut run = |Common { quick, .. }| {
            self.freeze_run(&mut cursor, gfn, count, &mut held, move |_, word| quick.matches(word))
        };
        let mut frozen = run(common);
        if frozen == 0 {
            common = already;
            frozen = run(common);
        }
        if frozen < count {
            return self.convert_mixed(vm, gfn, count, op, common, &mut cursor, &mut held);
        }
        if common.drops {
            self.drop_host_leaves(held.iter().map(Frozen::frame), count);
        }
        if common.quick.flip() != 0 {
            self.commit_contents(op, held.iter().map(Frozen::frame));
        }
        for page in held.drain(..) {
            common.quick.publish(page);
        }
        Reply::done(count)
    }

    /// Goes on behind the pages of a common case that are held.
    #[allow(clippy::too_many_arguments, reason = "the parts of one transition")]
    #[inline(never)]
    fn convert_mixed(
        &self,
        vm: &Vm,
        gfn: Gfn,
        count: u64,
        op: Convert,
        common: Common,
        cursor: &mut Cursor,
        held: &mut Held<'a>,
    ) -> Reply {
        let mut plan = Plan::new(op, vm.slot(), common);
        let mut near = PageRun::new(&self.frames);
        let mut index = held.len() as u64;
        while index < count {
            let at = gfn.offset(index);
            let entry = cursor.entry(&self.machine, at);
            let place = held.len();
            let mut pages = 1;
            let frozen = match entry.is_leaf() {
                true => self.freeze_leaf(&mut near, entry, at, |word| plan.judge(place, word).is_ok()),
                false => None,
            };
            let verdict = match frozen {
                Some(page) => held.try_push(page).map_err(|_| Refusal::INVALID),
                None if entry.is_status() => {
                    pages = entry.rest(at).min(count - index);
                    plan.judge_addresses(index, pages, entry.descriptor.address_status())
                }
                None => self.hold_moved(cursor, at, index, &mut plan, held),
            };
            if let Err(refusal) = verdict {
                return refusal.at(index);
            }
            index += pages;
        }
        let draining = plan.draining(held);
        if plan.empty().len() == 0 {
            self.commit(&plan, held);
        } else if let Err(reply) = self.convert_with_addresses(vm, gfn, count, &plan, held) {
            return reply;
        }
        match draining {
            Some((first, mask)) => Reply { status: Status::Pending, done: count, first, mask },
            None => Reply::done(count),
        }
    }

    /// Freezes a page that is not admitted, or does not stand still, or says why not.
    #[inline(never)]
    fn hold_moved(
        &self,
        cursor: &mut Cursor,
        at: Gfn,
        index: u64,
        plan: &mut Plan,
        held: &mut Held<'a>,
    ) -> Result<(), Refusal> {
        match self.look(cursor, at)? {
            Seen::Frame { cell, word, frame } => {
                plan.judge(held.len(), word)?;
                hold(held, cell, frame, word, word)
            }
            Seen::Empty(entry) => plan.judge_addresses(index, 1, entry.descriptor.address_status()),
        }
    }

    /// As [`Mm::commit`], for a range with addresses that have no frame: their status changes as well.
    fn convert_with_addresses(
        &self,
        vm: &Vm,
        gfn: Gfn,
        count: u64,
        plan: &Plan,
        held: &mut Held<'_>,
    ) -> Result<(), Reply> {
        let mut inner = vm.lock();
        let Some(root) = vm.root() else { return Err(Refusal::UNPOPULATED.at(0)) };
        let op = plan.op();
        let mut cursor = Cursor::new(root);
        let range = (gfn, count);
        let changes = self.check_addresses(&inner, root, &mut cursor, range, op, plan.empty())?;
        self.commit(plan, held);
        if changes {
            let mut last = (None, Descriptor::INVALID);
            for index in plan.empty().flatten() {
                let Some(entry) = cursor.ensure(&self.machine, &mut inner.pool, gfn.offset(index)) else {
                    break;
                };
                if last.0 != Some(entry.descriptor) {
                    let before = entry.descriptor.address_status();
                    let after = op.address_status(before).unwrap_or(before);
                    last = (Some(entry.descriptor), Descriptor::status(after));
                }
                entry.write(&self.machine, last.1);
            }
            self.machine.dsb_ishst();
        }
        Ok(())
    }

    /// Sees that the pages of a range that are `empty` have no frame and an address whose status `op` may change, and that
    /// the pool has the tables for it. True if one of them changes.
    fn check_addresses(
        &self,
        inner: &Inner,
        root: Pa,
        cursor: &mut Cursor,
        (gfn, count): (Gfn, u64),
        op: Convert,
        empty: impl Iterator<Item = Range<u64>>,
    ) -> Result<bool, Reply> {
        let mut changes = false;
        // Neighbours have one status as a rule.
        let mut last = None;
        for Range { start: mut index, end } in empty {
            while index < end {
                let at = gfn.offset(index);
                let entry = cursor.entry(&self.machine, at);
                // A frame that came since is a transition in flight. (Those that were there stand still, frozen.)
                if !entry.is_status() {
                    return Err(Refusal::FROZEN.at(index));
                }
                if last != Some(entry.descriptor) {
                    let before = entry.descriptor.address_status();
                    changes |= op.address_status(before).map_err(|refusal| refusal.at(index))? != before;
                    last = Some(entry.descriptor);
                }
                index += entry.rest(at);
            }
        }
        if changes && inner.pool.free() < tables_needed(&self.machine, root, gfn, count, LEAF_LEVEL) {
            return Err(Refusal::VM_POOL.whole());
        }
        Ok(changes)
    }

    /// What a share, or an unshare without flags, of one address without a frame would answer now.
    pub(super) fn query_empty(&self, vm: &Vm, root: Pa, gfn: Gfn, share: bool) -> Reply {
        let unshare = Convert::Unshare { how: UnshareHow::default(), contents: Contents::Keep };
        let op = if share { Convert::Share } else { unshare };
        let mut cursor = Cursor::new(root);
        let one = core::iter::once(0..1);
        match self.check_addresses(&vm.lock(), root, &mut cursor, (gfn, 1), op, one) {
            Ok(_) => Reply::done(1),
            Err(reply) => reply,
        }
    }

    fn commit(&self, plan: &Plan, held: &mut Held<'_>) {
        let changes = || held.iter().zip(plan.changes());
        if plan.drops_any() {
            let dropping = changes().filter(|(_, change)| change.drops()).map(|(page, _)| page.frame());
            // More would make no difference.
            let leaves = dropping.clone().take(WHOLE_VMID as usize + 1).count() as u64;
            if leaves > 0 {
                self.drop_host_leaves(dropping, leaves);
            }
        }
        let changed = changes().filter(|(_, change)| plan.flip(*change) != 0);
        self.commit_contents(plan.op(), changed.map(|(page, _)| page.frame()));
        for (page, change) in held.drain(..).zip(plan.changes()) {
            page.publish_flipped(plan.flip(change));
        }
    }

    /// What the contents of pages that become private need.
    fn commit_contents(&self, op: Convert, fresh: impl Iterator<Item = Pfn>) {
        match op.contents() {
            Contents::Keep => {}
            Contents::Zero => self.scrub_all(fresh),
            Contents::Image => {
                fresh.for_each(|frame| self.machine.clean_to_poc(frame));
                self.machine.dsb_ish();
                self.machine.drop_instructions();
            }
        }
    }
}
