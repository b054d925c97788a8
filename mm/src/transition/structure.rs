//! The structure of the host's map under the operations: split before a page leaves, merged when a block is whole.
//!
//! Merging is lazy: the blocks that frames came back to most recently stay split, since a donor that goes page by page
//! comes back to them. What has waited through [`RECENT`] others is looked at once, by a call that has the time.

use arrayvec::ArrayVec;
use tenure_abi::page::State;

use crate::addr::Pfn;
use crate::block::{FrozenBlock, first_of};
use crate::machine::{Machine, Vmid};
use crate::manager::Mm;
use crate::stage2::host::RESERVE;
use crate::stage2::{Descriptor, ENTRIES, LEAF_LEVEL};
use crate::state::{self, Refusal};
use crate::sync::lock;
use crate::tlb::Flush;
use crate::word::Word;

/// Blocks that stay split for now.
pub const RECENT: usize = 8;

/// Blocks of 2 MiB that frames came back to, the last one last.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recent {
    blocks: ArrayVec<u64, RECENT>,
    due: Option<u64>,
}

impl Recent {
    /// No blocks.
    pub const fn new() -> Self {
        Self { blocks: ArrayVec::new_const(), due: None }
    }

    fn note(&mut self, block: u64) {
        if let Some(place) = self.blocks.iter().position(|&noted| noted == block) {
            self.blocks.remove(place);
        }
        if self.blocks.is_full() {
            self.due = self.blocks.pop_at(0);
        }
        let _ = self.blocks.try_push(block);
    }
}

impl<'a, M: Machine> Mm<'a, M> {
    /// Gives every one of `count` frames from `first` an entry of level 3 in the host's map, leaving `reserve` pages in
    /// its pool. The caller holds the words of the frames frozen, so that what is there stays.
    pub(crate) fn reach_host_leaves(&self, first: Pfn, count: u64, reserve: u64) -> Result<(), Refusal> {
        let needed = self.host.tables_needed(&self.machine, first, count);
        if needed == 0 {
            return Ok(());
        }
        if self.host_pool().free() < needed.saturating_add(reserve) {
            return Err(Refusal::HOST_POOL);
        }
        let end = first.0.saturating_add(count);
        let mut at = first.0;
        while at < end {
            let _structure = self.structure.lock(Pfn(at));
            let take = || self.take_host_table(reserve);
            self.host.split(&self.machine, take, Pfn(at), LEAF_LEVEL).ok_or(Refusal::HOST_POOL)?;
            at = first_of(at).saturating_add(ENTRIES);
        }
        Ok(())
    }

    fn take_host_table(&self, reserve: u64) -> Option<Pfn> {
        let mut pool = self.host_pool();
        if pool.free() > reserve { pool.take(&self.machine) } else { None }
    }

    /// Removes the host's mapping of frozen frames that are the host's, and waits. Their entries are of level 3
    /// ([`Mm::reach_host_leaves`]).
    pub(crate) fn unmap_own(&self, frames: impl Iterator<Item = Pfn> + Clone) {
        let mut cursor = self.host.cursor();
        let leaf = |frame| cursor.leaf(&self.machine, frame);
        let mapped = frames.clone().filter_map(leaf).filter(|entry| entry.descriptor.is_valid()).count();
        if mapped > 0 {
            self.drop_host_leaves(frames, mapped as u64);
        }
    }

    /// Removes the host's mapping of a frozen block of 2 MiB that is the host's, and waits. Its level-3 table stays or
    /// comes, empty, so that no later fault on a page of it allocates.
    pub(crate) fn unmap_own_block(&self, block: &FrozenBlock<'_>) -> Result<(), Refusal> {
        let first = block.first();
        if let Some(leaf) = self.host.leaf(&self.machine, first) {
            self.host.empty_table(&self.machine, first, leaf.table.frame());
            return Ok(());
        }
        let needed = self.host.tables_needed(&self.machine, first, ENTRIES);
        if self.host_pool().free() < needed.saturating_add(RESERVE) {
            return Err(Refusal::HOST_POOL);
        }
        let _structure = self.structure.lock(first);
        let take = || self.take_host_table(RESERVE);
        let entry = self.host.split(&self.machine, take, first, LEAF_LEVEL - 1).ok_or(Refusal::HOST_POOL)?;
        let table = take().ok_or(Refusal::HOST_POOL)?;
        self.host.empty_block(&self.machine, entry, first, table);
        Ok(())
    }

    /// Makes the host's level-3 entries of frozen frames invalid, and waits until no CPU holds their translations.
    pub(crate) fn drop_host_leaves(&self, frames: impl Iterator<Item = Pfn> + Clone, count: u64) {
        let mut cursor = self.host.cursor();
        for frame in frames.clone() {
            if let Some(entry) = cursor.leaf(&self.machine, frame) {
                entry.write(&self.machine, Descriptor::INVALID);
            }
        }
        let mut flush = Flush::begin(&self.machine, Vmid::HOST, count);
        if !flush.is_whole() {
            frames.for_each(|frame| flush.page(frame));
        }
        flush.finish();
    }

    /// Notes that frames came back to the host.
    pub(crate) fn came_home(&self, frames: impl Iterator<Item = Pfn>) {
        let mut last = u64::MAX;
        for frame in frames {
            let block = first_of(frame.0);
            if block != last {
                lock(&self.recent).note(block);
                last = block;
            }
        }
    }

    /// Merges the host's block that has waited longest, if its turn has come (with `now`, in any case) and all its
    /// frames are the host's. True if it looked at one, which takes the time of a call.
    pub(crate) fn tidy(&self, now: bool) -> bool {
        let block = {
            let mut recent = lock(&self.recent);
            match recent.due.take() {
                None if now => recent.blocks.pop_at(0),
                due => due,
            }
        };
        let Some(block) = block else { return false };
        let _ = self.merge_host_block(Pfn(block));
        true
    }

    /// Merges the host's block of 2 MiB at `first`.
    ///
    /// # Errors
    /// A frame of it is not the host's, or a transition is in flight.
    pub(super) fn merge_host_block(&self, first: Pfn) -> Result<(), Refusal> {
        let words = self.frames.run(first, ENTRIES).ok_or(Refusal::STATE)?;
        let free = |word: Word| {
            let whole = word.state() == State::Host && !word.is_firmware();
            if whole { Ok(()) } else { Err(Refusal::STATE) }
        };
        let block =
            FrozenBlock::freeze(words, first, state::is_free, free).map_err(|(_, refusal)| refusal)?;
        let _structure = self.structure.lock(first);
        if let Some(table) = self.host.merge(&self.machine, first, self.host_attr.ram) {
            self.host_pool().put(&self.machine, table);
        }
        drop(block);
        Ok(())
    }

    /// Where a page that the host lent serves as the level-3 table at `first`, one that was kept at boot takes its place,
    /// if there is one to spare.
    ///
    /// # Errors
    /// A transition is in flight.
    pub(super) fn free_lent_table(&self, first: Pfn) -> Result<(), Refusal> {
        let Some(words) = self.frames.run(first, ENTRIES) else { return Ok(()) };
        // The leaves of a table change under the words of their frames only.
        let block = FrozenBlock::freeze(words, first, |word| !word.is_frozen(), |_| Ok(()))
            .map_err(|(_, refusal)| refusal)?;
        let _structure = self.structure.lock(first);
        let table = self.host.leaf(&self.machine, first).map(|leaf| leaf.table.frame());
        let spare = table.and_then(|table| self.host_pool().take_kept_for(&self.machine, table));
        if let Some(spare) = spare
            && let Some(table) = self.host.renew_table(&self.machine, first, spare)
        {
            self.host_pool().put(&self.machine, table);
        }
        drop(block);
        Ok(())
    }
}
