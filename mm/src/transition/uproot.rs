//! Guest leaves go: of a range while the VM lives, split where a block is cut; of whole blocks when it dies.

use tenure_abi::MAX_ATOMIC_PAGES;
use tenure_abi::flags::status;

use super::{Held, hold};
use crate::addr::{Gfn, Pa, Pfn};
use crate::block::{FrozenBlock, first_of};
use crate::machine::Machine;
use crate::manager::{Mm, SCRUB_CHUNK};
use crate::stage2::guest::{Cursor, Entry, walk};
use crate::stage2::{Descriptor, ENTRIES, LEAF_LEVEL, ROOT_LEVEL, frames_per_entry};
use crate::state::{self, Refusal};
use crate::tlb::{self, Flush};
use crate::vm::{Inner, Teardown, Vm};

/// Which leaves of a range go, and what their addresses are then.
pub(super) struct Leaving([u8; MAX_ATOMIC_PAGES as usize]);

impl Leaving {
    const STAYS: u8 = u8::MAX;

    /// None goes.
    pub(super) const fn none() -> Self {
        Self([Self::STAYS; MAX_ATOMIC_PAGES as usize])
    }

    /// Page `index` of the range goes and leaves an address of this status.
    pub(super) fn goes(&mut self, index: u64, status: u64) {
        if let Some(after) = self.0.get_mut(index as usize) {
            *after = status as u8;
        }
    }

    fn after(&self, index: u64) -> Option<u64> {
        self.0.get(index as usize).filter(|&&after| after != Self::STAYS).map(|&after| u64::from(after))
    }

    /// The status of a whole block of 2 MiB from page `index` on, if all of it goes and leaves one status.
    fn whole(&self, index: u64) -> Option<u64> {
        let after = self.after(index)?;
        (index..index + ENTRIES).all(|index| self.after(index) == Some(after)).then_some(after)
    }
}

/// One step of the teardown of a block.
pub(super) enum Uprooted {
    /// The block is no leaf any more: its frames come next.
    Block,
    /// A word was frozen.
    Frozen,
}

impl<'a, M: Machine> Mm<'a, M> {
    /// Removes leaves of `count` addresses from `gfn`, whose words are held frozen, and waits.
    ///
    /// # Errors
    /// The VM's pool has no page to split a block with; nothing was changed.
    pub(super) fn drop_guest_leaves(
        &self,
        vm: &Vm,
        inner: &mut Inner,
        root: Pa,
        gfn: Gfn,
        count: u64,
        leaving: &Leaving,
    ) -> Result<(), Refusal> {
        // Blocks that are cut.
        let cuts = || {
            let end = gfn.0 + count;
            let blocks = (first_of(gfn.0)..end).step_by(ENTRIES as usize);
            blocks.filter_map(move |block| {
                let at = block.max(gfn.0);
                if walk(&self.machine, root, Gfn(at)).level == LEAF_LEVEL {
                    return None;
                }
                let (index, to) = (at - gfn.0, end.min(block + ENTRIES) - gfn.0);
                let goes = (index..to).any(|index| leaving.after(index).is_some());
                let whole = to - index == ENTRIES && leaving.whole(index).is_some();
                goes.then_some((Gfn(at), if whole { LEAF_LEVEL - 1 } else { LEAF_LEVEL }))
            })
        };
        let mut tables = self.tables(vm, inner, root);
        let mut needed = 0;
        let mut gigabyte = u64::MAX;
        for (at, level) in cuts() {
            let this = at.0 / frames_per_entry(ROOT_LEVEL);
            // Two pieces of one gigabyte share the first table.
            needed += tables.needed(at, level, this == gigabyte);
            gigabyte = this;
        }
        if tables.pool.free() < needed {
            return Err(Refusal::VM_POOL);
        }
        for (at, level) in cuts() {
            tables.split(at, level).ok_or(Refusal::VM_POOL)?;
        }
        // A block that goes is one entry.
        let leaves = |each: &mut dyn FnMut(Entry, Gfn)| {
            let mut cursor = Cursor::new(root);
            let mut index = 0;
            while index < count {
                let at = gfn.offset(index);
                if leaving.after(index).is_none() {
                    index += 1;
                    continue;
                }
                let entry = cursor.entry(&self.machine, at);
                each(entry, at);
                index += entry.span();
            }
        };
        let mut gone = 0;
        leaves(&mut |entry, at| {
            let after = leaving.after(at.0 - gfn.0).unwrap_or(status::NONE);
            entry.write(&self.machine, Descriptor::status(after));
            gone += 1;
        });
        if gone > 0 {
            let mut flush = Flush::begin(&self.machine, vm.vmid(), gone);
            if !flush.is_whole() {
                leaves(&mut |_, at| flush.page(Pfn(at.0)));
            }
            flush.finish();
        }
        Ok(())
    }

    /// Takes the block at `next` of a dying VM's tables down. Its frames go home in the steps after this one.
    pub(super) fn uproot_block(&self, vm: &Vm, inner: &mut Inner, root: Pa, next: u64) -> Uprooted {
        // What was merged is split without memory: the table was kept.
        let Some(entry) = self.tables(vm, inner, root).split(Gfn(next), LEAF_LEVEL - 1) else {
            return Uprooted::Frozen;
        };
        let first = entry.descriptor.frame();
        let Some(words) = self.frames.run(first, ENTRIES) else { return Uprooted::Frozen };
        let Ok(block) = FrozenBlock::freeze(words, first, |word| !word.is_frozen(), |_| Ok(())) else {
            return Uprooted::Frozen;
        };
        entry.write(&self.machine, Descriptor::INVALID);
        tlb::flush_vmid(&self.machine, vm.vmid());
        let slot = vm.slot();
        block.publish(|word| state::uproot(word, slot));
        inner.teardown = Teardown::Block { first, done: 0, next: first_of(next) + ENTRIES };
        Uprooted::Block
    }

    /// The next frames of a block that was uprooted go home. Returns up to which one, and whether a frozen word stopped
    /// it.
    #[inline(never)]
    pub(super) fn retire_parked(&self, vm: &Vm, first: Pfn, done: u64) -> (u64, bool) {
        let mut held = Held::new();
        let mut place = done;
        let mut frozen = false;
        while place < ENTRIES && (held.len() as u64) < SCRUB_CHUNK {
            let frame = first.offset(place);
            if let Ok(cell) = self.cell(frame) {
                let word = cell.load();
                if state::is_parked_by(word, vm.slot()) && hold(&mut held, cell, frame, word, word).is_err() {
                    frozen = true;
                    break;
                }
            }
            place += 1;
        }
        self.retire(&mut held);
        (place, frozen)
    }
}
