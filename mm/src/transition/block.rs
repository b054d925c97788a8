//! Donate by blocks of 2 MiB, in steps of bounded length.
//!
//! The first step takes the whole block, or nothing: it freezes all words, unmaps the block from the host, and *parks*
//! the frames ([`crate::state::park`]). Steps after it scrub, [`GROUP`] frames at a time; the last one finds all
//! scrubbed, gives the guest one block descriptor and makes the frames its own.
//!
//! Nothing is remembered between the steps but the words: a caller goes on by naming the rest of the range, and what it
//! names is checked against them. The first word of each group stands for the group: it owes the scrub until all of it
//! is parked and scrubbed, and again when a frame of the group is taken back ([`Mm::unpark`]); a frame is parked again
//! only with its whole block. All steps hold the VM's lock, under which alone parked words change. Even so they change
//! by compare-and-swap: who wants to freeze a block freezes its words one after the other *before* it looks at them, so
//! that the first of the parked ones may stand frozen for a moment, and is then put back as it was.

use tenure_abi::page::State;
use tenure_abi::reply::Reply;

use super::donate::ADDRESS;
use crate::addr::{Gfn, Pa, Pfn};
use crate::block::{FrozenBlock, first_of, place_of, replace_all};
use crate::machine::Machine;
use crate::manager::Mm;
use crate::stage2::guest::{ensure, tables_needed, walk};
use crate::stage2::{Descriptor, ENTRIES, LEAF_LEVEL};
use crate::state::{self, Refusal};
use crate::sync::Ordering;
use crate::vm::{Inner, Vm};
use crate::word::{PageWord, Word};

/// Frames whose scrub is noted together.
pub const GROUP: u64 = if cfg!(small_tables) { 2 } else { 16 };

/// Groups that a later step scrubs.
const NEXT_GROUPS: u64 = 3;

/// What a donation is to become.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    /// Status that the addresses must have.
    pub(super) kind: u64,
    /// State of the frames.
    pub(super) state: State,
}

/// How much of a range can be donated by blocks.
pub(super) enum Fit {
    /// A block begins here.
    Begin,
    /// A block that is parked goes on here.
    Resume,
    /// Page by page, this many at most.
    Pages(u64),
}

impl<'a, M: Machine> Mm<'a, M> {
    /// How the next step of a donation of `count` pages goes.
    pub(super) fn fit(&self, vm: &Vm, gfn: Gfn, pfn: Pfn, count: u64) -> Fit {
        let place = place_of(pfn.0);
        let pages = |root| walk(&self.machine, root, gfn).level == LEAF_LEVEL;
        if place != place_of(gfn.0) || place == 0 && vm.root().is_some_and(pages) {
            return Fit::Pages(count);
        }
        let left = ENTRIES - place;
        // Up to the block's start, if a whole one follows.
        let ahead = if count >= left + ENTRIES { left } else { count };
        let Some(words) = self.frames.run(Pfn(first_of(pfn.0)), ENTRIES) else { return Fit::Pages(ahead) };
        let parked = words.get(place as usize).is_some_and(|cell| state::is_parked(cell.load(), vm.slot()));
        match place {
            _ if count < left => Fit::Pages(count),
            _ if parked => Fit::Resume,
            0 => Fit::Begin,
            _ => Fit::Pages(ahead),
        }
    }

    /// Takes a block from the host and begins to scrub it. `None` where the guest's table is one of pages.
    #[inline(never)]
    pub(super) fn begin_block(&self, vm: &Vm, gfn: Gfn, first: Pfn, wanted: Wanted) -> Option<Reply> {
        let Some(words) = self.frames.run(first, ENTRIES) else { return Some(Refusal::INVALID.at(0)) };
        let block = match FrozenBlock::freeze(words, first, state::is_free, state::donate) {
            Ok(block) => block,
            Err((place, refusal)) => return Some(refusal.at(place)),
        };
        let mut inner = vm.lock();
        match self.reach_block(vm, &mut inner, gfn, wanted) {
            Ok(Some(_)) => {}
            Ok(None) => return None,
            Err(reply) => return Some(reply),
        }
        if let Err(refusal) = self.unmap_own_block(&block) {
            return Some(refusal.whole());
        }
        // One group: the taking takes half of a step's time. While the words are frozen, so that no one comes between.
        self.machine.scrub_run(first, GROUP);
        self.machine.dsb_ish();
        vm.orphans.fetch_add(ENTRIES as u32, Ordering::Relaxed);
        let slot = vm.slot();
        block.publish_first(|word| state::park(word, slot).with_scrub(false), |word| state::park(word, slot));
        Some(Reply::done(GROUP))
    }

    /// Goes on with a block that is parked for the VM: scrubs, and at its end gives it to the guest.
    #[inline(never)]
    pub(super) fn resume_block(&self, vm: &Vm, gfn: Gfn, pfn: Pfn, wanted: Wanted) -> Reply {
        let mut inner = vm.lock();
        match self.reach_block(vm, &mut inner, Gfn(first_of(gfn.0)), wanted) {
            Ok(Some(root)) => self.scrub_groups(vm, &mut inner, root, gfn, pfn, wanted),
            // The addresses are used page by page since: the caller takes the frames back.
            Ok(None) => ADDRESS.at(0),
            Err(reply) => reply,
        }
    }

    /// Sees that a block may stand at `gfn`, and that its table is there. `None` where level-3 entries are.
    fn reach_block(&self, vm: &Vm, inner: &mut Inner, gfn: Gfn, wanted: Wanted) -> Result<Option<Pa>, Reply> {
        let root = self.ensure_root(vm, &mut inner.pool).map_err(Refusal::whole)?;
        let entry = walk(&self.machine, root, gfn);
        if entry.level == LEAF_LEVEL {
            return Ok(None);
        }
        if entry.descriptor.is_valid() || state::kind_of(entry.descriptor.address_status()) != wanted.kind {
            return Err(ADDRESS.at(0));
        }
        if inner.pool.free() < tables_needed(&self.machine, root, gfn, 1, LEAF_LEVEL - 1) {
            return Err(Refusal::VM_POOL.whole());
        }
        match ensure(&self.machine, &mut inner.pool, root, gfn, LEAF_LEVEL - 1) {
            Some(_) => Ok(Some(root)),
            None => Err(Refusal::VM_POOL.whole()),
        }
    }

    /// Scrubs up to [`NEXT_GROUPS`] groups from `pfn` on, fewer if the CPU is wanted, and adopts the block after its last.
    #[allow(clippy::too_many_arguments, reason = "the parts of one step")]
    fn scrub_groups(
        &self,
        vm: &Vm,
        inner: &mut Inner,
        root: Pa,
        gfn: Gfn,
        pfn: Pfn,
        wanted: Wanted,
    ) -> Reply {
        let first = Pfn(first_of(pfn.0));
        let Some(words) = self.frames.run(first, ENTRIES) else { return Refusal::INVALID.at(0) };
        let start = place_of(pfn.0);
        let mut place = start;
        for _ in 0..NEXT_GROUPS {
            let end = (place / GROUP + 1) * GROUP;
            if let Err(refusal) = self.scrub_group(vm, words, first, end - GROUP) {
                // What will pass is met again by the next call.
                if refusal == Refusal::FROZEN && place > start {
                    break;
                }
                return Reply { done: place - start, ..refusal.at(place - start) };
            }
            place = end;
            // The last group comes with the adoption, which takes half of a step's time.
            let last = place == ENTRIES - GROUP && place - start > GROUP;
            if place == ENTRIES || last || self.machine.attention() {
                break;
            }
        }
        if place == ENTRIES
            && let Err(refusal) =
                self.adopt_block(vm, inner, root, Gfn(first_of(gfn.0)), first, words, wanted)
        {
            return refusal.at(0);
        }
        Reply::done(place - start)
    }

    /// Scrubs the parked frames of one group, unless that was done.
    fn scrub_group(&self, vm: &Vm, words: &[PageWord], first: Pfn, group: u64) -> Result<(), Refusal> {
        let range = group as usize..(group + GROUP) as usize;
        let Some((leader, words)) = words.get(range).and_then(|words| Some((words.first()?, words))) else {
            return Err(Refusal::INVALID);
        };
        let slot = vm.slot();
        if let Some(other) = words.iter().map(PageWord::load).find(|word| !state::is_parked(*word, slot)) {
            return Err(if other.is_frozen() { Refusal::FROZEN } else { Refusal::STATE });
        }
        let word = leader.load();
        if word.owes_scrub() {
            self.machine.scrub_run(first.offset(group), GROUP);
            self.machine.dsb_ish();
            leader.swap(word, word.with_scrub(false)).map_err(|_| Refusal::FROZEN)?;
        }
        Ok(())
    }

    /// A parked frame is about to be taken back, under the VM's lock, with the others from `taken` on, which are held
    /// frozen: its group is not whole any more.
    ///
    /// # Errors
    /// The word that has to say so is frozen; nothing was changed.
    pub(super) fn unpark(&self, vm: &Vm, taken: Pfn, frame: Pfn) -> Result<(), Refusal> {
        let leader = Pfn(frame.0 & !(GROUP - 1));
        if leader >= taken {
            return Ok(()); // it goes as well
        }
        let cell = self.cell(leader)?;
        let word = cell.load();
        if word.is_frozen() {
            return Err(Refusal::FROZEN);
        }
        if state::is_parked(word, vm.slot()) {
            cell.swap(word, word.with_scrub(true)).map_err(|_| Refusal::FROZEN)?;
        }
        Ok(())
    }

    /// All frames of the block become the VM's, at `gfn`, if all are parked and scrubbed.
    #[allow(clippy::too_many_arguments, reason = "the parts of one step")]
    fn adopt_block(
        &self,
        vm: &Vm,
        inner: &mut Inner,
        root: Pa,
        gfn: Gfn,
        first: Pfn,
        words: &[PageWord],
        wanted: Wanted,
    ) -> Result<(), Refusal> {
        // Whoever wants the block begins with its first word, and finds it frozen.
        let Some((cell, rest)) = words.split_first() else { return Err(Refusal::INVALID) };
        let leader = cell.load();
        let held = cell.freeze(first, leader, leader).map_err(|_| Refusal::FROZEN)?;
        let is_ready = |word: Word| state::is_parked(word, vm.slot()) && !word.owes_scrub();
        let mut others = words.iter().step_by(GROUP as usize).skip(1);
        let ready = is_ready(leader) && others.all(|cell| is_ready(cell.load()));
        if !ready || self.panic_scrap().is_some() {
            return Err(Refusal::STATE);
        }
        let entry = walk(&self.machine, root, gfn);
        self.machine.drop_instructions();
        vm.orphans.fetch_sub(ENTRIES as u32, Ordering::Relaxed);
        // The words first: who finds the leaf finds the page owned.
        let slot = vm.slot();
        replace_all(rest, |word| state::adopt(word, slot, wanted.state));
        held.publish(state::adopt(leader, slot, wanted.state));
        entry.write(&self.machine, Descriptor::leaf(entry.level, first, self.guest_attr));
        self.machine.dsb_ishst();
        self.tables(vm, inner, root).merge(gfn);
        Ok(())
    }
}
