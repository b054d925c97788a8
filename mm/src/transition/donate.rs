//! Donate: frames of the host become a guest's, scrubbed. By blocks of 2 MiB where the range has them
//! ([`super::block`]), else page by page.

use tenure_abi::flags::status;
use tenure_abi::page::State;
use tenure_abi::reply::{self, Reply, Status};

use super::block::{Fit, Wanted};
use super::{Held, PageRun, hold};
use crate::addr::{Gfn, Pfn, checked_end};
use crate::machine::Machine;
use crate::manager::{Mm, SCRUB_CHUNK};
use crate::stage2::guest::{Cursor, tables_needed};
use crate::stage2::host::{FRAMES, RESERVE};
use crate::stage2::{Descriptor, GUEST_FRAMES, LEAF_LEVEL};
use crate::state::{self, Refusal};
use crate::vm::Vm;
use crate::word::Frozen;

/// The address expects another kind, or has a frame already.
pub(super) const ADDRESS: Refusal = Refusal { status: Status::Denied, mask: reply::STATE };

impl<'a, M: Machine> Mm<'a, M> {
    /// Gives the frames from `pfn` to the VM at `gfn`, as `kind` (`TENURE_ADDR_PRIVATE` or `_SHARED`), which must be
    /// what the guest's addresses say. `done` says how many were dealt with; the caller goes on with the rest.
    ///
    /// Where both addresses are at the same place of a block of 2 MiB that the range covers to its end, the block is
    /// taken from the host whole, or not at all, and is the guest's after its last page: until then its frames are
    /// parked, `done` or not, and [`Mm::reclaim`] gives them back. Else the first 32 pages, or none.
    pub fn donate(&self, vm: &Vm, gfn: Gfn, pfn: Pfn, count: u64, kind: u64) -> Reply {
        if checked_end(gfn.0, count, GUEST_FRAMES).is_none() || checked_end(pfn.0, count, FRAMES).is_none() {
            return Reply::refused(Status::Invalid);
        }
        let state = match kind {
            status::PRIVATE => State::Private,
            status::SHARED => State::Shared,
            _ => return Reply::refused(Status::Invalid),
        };
        let wanted = Wanted { kind, state };
        match self.fit(vm, gfn, pfn, count) {
            Fit::Resume => self.resume_block(vm, gfn, pfn, wanted),
            Fit::Begin => match self.begin_block(vm, gfn, pfn, wanted) {
                Some(reply) => reply,
                None => self.donate_pages(vm, gfn, pfn, count.min(SCRUB_CHUNK), wanted),
            },
            Fit::Pages(count) => self.donate_pages(vm, gfn, pfn, count.min(SCRUB_CHUNK), wanted),
        }
    }

    #[inline(never)]
    fn donate_pages(&self, vm: &Vm, gfn: Gfn, pfn: Pfn, count: u64, wanted: Wanted) -> Reply {
        let mut held = Held::new();
        if let Err(reply) = self.freeze_donation(&mut held, pfn, count, true) {
            return reply;
        }
        let mut inner = vm.lock();
        let root = match self.ensure_root(vm, &mut inner.pool) {
            Ok(root) => root,
            Err(refusal) => return refusal.whole(),
        };
        let mut cursor = Cursor::new(root);
        for index in 0..count {
            let entry = cursor.entry(&self.machine, gfn.offset(index));
            let expected = state::kind_of(entry.descriptor.address_status());
            if entry.descriptor.is_valid() || expected != wanted.kind {
                return ADDRESS.at(index);
            }
        }
        if inner.pool.free() < tables_needed(&self.machine, root, gfn, count, LEAF_LEVEL) {
            return Refusal::VM_POOL.whole();
        }
        if let Err(refusal) = self.reach_host_leaves(pfn, count, RESERVE) {
            return refusal.whole();
        }
        self.unmap_own(held.iter().map(Frozen::frame));
        self.scrub_all(held.iter().map(Frozen::frame));
        self.machine.drop_instructions();
        let mut cursor = Cursor::new(root);
        for (index, page) in (0..).zip(&held) {
            // Reserved above: the entry is there.
            if let Some(entry) = cursor.ensure(&self.machine, &mut inner.pool, gfn.offset(index)) {
                entry.write(&self.machine, Descriptor::page(page.frame(), self.guest_attr));
            }
        }
        self.machine.dsb_ishst();
        for page in held.drain(..) {
            let word = page.before().with_state(wanted.state, vm.slot()).with_host_leaf(false);
            page.publish(word.add_guest_leaf().unwrap_or(word));
        }
        // After a full chunk there is no time left to merge: the next call in this table may.
        if count < SCRUB_CHUNK {
            self.tables(vm, &mut inner, root).merge(gfn.offset(count - 1));
        }
        Reply::done(count)
    }

    /// Freezes frames that the host may give away. With `leaf`, the frozen word already counts the guest's leaf.
    pub(crate) fn freeze_donation<'w>(
        &'w self,
        held: &mut Held<'w>,
        pfn: Pfn,
        count: u64,
        leaf: bool,
    ) -> Result<(), Reply> {
        let mut near = PageRun::new(&self.frames);
        for index in 0..count {
            let frame = pfn.offset(index);
            let cell = near.word(frame).ok_or(Refusal::INVALID.at(index))?;
            let word = cell.load();
            let during = match (state::donate(word), leaf) {
                (Ok(()), true) => word.add_guest_leaf().map_err(|_| Refusal::LIMIT.at(index))?,
                (Ok(()), false) => word,
                (Err(refusal), _) => return Err(refusal.at(index)),
            };
            hold(held, cell, frame, word, during).map_err(|refusal| refusal.at(index))?;
        }
        Ok(())
    }
}
