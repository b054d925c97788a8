//! Operations on pages: find the words, ask [`crate::state`], carry the step out.
//!
//! All follow one pattern, *check, then commit*:
//! 1. **Freeze** every word of the range from the very value that the verdict was made of. A frozen or refused word
//!    ends the call: dropping what is held thaws it, nothing was changed.
//! 2. **Reserve**: under the structure locks, see that all table memory is there.
//! 3. **Commit**, which cannot fail: write tables, invalidate once, wait, scrub, publish.
//!
//! A frame is found through a guest address by *leaf, word, leaf again*: the second read shows that the leaf stood
//! when the word was read, and the freeze from that very word (whose version moves with each leaf made or removed)
//! shows that it still stands.
//!
//! Lock order: page words (frozen, never waited for) → the VM's structure → the host's structure.

mod block;
mod convert;
mod donate;
mod host;
mod map;
mod measure;
mod pin;
mod plan;
mod pools;
mod reclaim;
mod reset;
mod run;
mod status;
mod structure;
mod teardown;
mod uproot;

use arrayvec::ArrayVec;
use tenure_abi::MAX_ATOMIC_PAGES;

use crate::addr::{Gfn, Pa, Pfn};
use crate::frames::{Frames, Region};
use crate::machine::Machine;
use crate::manager::Mm;
use crate::pool::Pool;
use crate::stage2::blocks::Tables;
use crate::stage2::guest::{Cursor, Entry};
use crate::state::Refusal;
use crate::vm::{Inner, Vm};
use crate::word::{Frozen, PageWord, Word};

pub use convert::Unshare;
pub use host::{Access, HostFault};
pub use map::GuestFault;
pub(crate) use measure::Measuring;
pub(crate) use pin::MAX_OWED;
pub use pin::{PinKind, Unpinned};
pub use pools::Returned;
pub use reset::Swept;
pub use status::GuestQuery;
pub(crate) use structure::Recent;
pub use teardown::Destroyed;

/// Words that one call holds frozen.
///
/// 12 KiB of a stack of 32: a function that owns one is never inlined, so that a call inside a call (a guest's within
/// VCPU_RUN) pays for its own only.
pub(crate) type Held<'w> = ArrayVec<Frozen<'w>, { MAX_ATOMIC_PAGES as usize }>;

/// Looks words up near one another: remembers the region of the last frame.
pub(crate) struct PageRun<'a> {
    frames: &'a [Region<'a>],
    near: Region<'a>,
}

impl<'a> PageRun<'a> {
    pub(crate) fn new(frames: &Frames<'a>) -> Self {
        let nothing = Region { first: Pfn(0), words: &[] };
        Self { frames: frames.regions(), near: frames.regions().first().copied().unwrap_or(nothing) }
    }

    /// As [`Frames::word`].
    #[inline(always)]
    pub(crate) fn word(&mut self, frame: Pfn) -> Option<&'a PageWord> {
        match self.near.word(frame) {
            Some(word) => Some(word),
            None => self.elsewhere(frame),
        }
    }

    #[cold]
    fn elsewhere(&mut self, frame: Pfn) -> Option<&'a PageWord> {
        self.near = *self.frames.iter().find(|region| region.word(frame).is_some())?;
        self.near.word(frame)
    }
}

/// What stands at a guest address.
pub(crate) enum Seen<'w> {
    /// A frame: its cell, and the word as it was while the leaf stood.
    Frame { cell: &'w PageWord, word: Word, frame: Pfn },
    /// No frame: the entry that keeps the status.
    Empty(Entry),
}

impl<'a, M: Machine> Mm<'a, M> {
    /// Looks at a guest address without taking anything.
    #[inline]
    pub(crate) fn look(&self, cursor: &mut Cursor, gfn: Gfn) -> Result<Seen<'a>, Refusal> {
        let entry = cursor.entry(&self.machine, gfn);
        // A walk ends at a leaf, or at nothing.
        if !entry.descriptor.is_valid() {
            return if entry.descriptor.is_moving() { Err(Refusal::FROZEN) } else { Ok(Seen::Empty(entry)) };
        }
        let frame = entry.frame_of(gfn);
        let cell = self.cell(frame)?;
        let word = cell.load();
        if entry.reread(&self.machine) != entry.descriptor {
            return Err(Refusal::FROZEN);
        }
        // A leaf that stands is counted: this one went and came back around the look at the word.
        if word.guest_leaves() == 0 {
            return Err(Refusal::FROZEN);
        }
        Ok(Seen::Frame { cell, word, frame })
    }

    /// The VM's root table, made if there is none.
    pub(crate) fn ensure_root(&self, vm: &Vm, pool: &mut Pool) -> Result<Pa, Refusal> {
        if let Some(root) = vm.root() {
            return Ok(root);
        }
        let root = pool.take(&self.machine).ok_or(Refusal::VM_POOL)?.base();
        self.machine.dsb_ishst();
        vm.set_root(Some(root));
        Ok(root)
    }

    /// The VM's tables, for changes of their structure.
    pub(crate) fn tables<'t>(&'t self, vm: &Vm, inner: &'t mut Inner, root: Pa) -> Tables<'t, M> {
        let Inner { pool, kept, .. } = inner;
        Tables { machine: &self.machine, vmid: vm.vmid(), root, frames: self.frames, pool, kept }
    }

    /// Scrubs frames and waits.
    pub(crate) fn scrub_all(&self, frames: impl Iterator<Item = Pfn>) {
        let (mut first, mut count) = (Pfn(0), 0);
        for frame in frames {
            if count > 0 && frame != first.offset(count) {
                self.machine.scrub_run(first, core::mem::take(&mut count));
            }
            if count == 0 {
                first = frame;
            }
            count += 1;
        }
        if count > 0 {
            self.machine.scrub_run(first, count);
        }
        self.machine.dsb_ish();
    }
}

/// Freezes one more word.
pub(crate) fn hold<'w>(
    held: &mut Held<'w>,
    cell: &'w PageWord,
    frame: Pfn,
    word: Word,
    during: Word,
) -> Result<(), Refusal> {
    let page = cell.freeze(frame, word, during).map_err(|_| Refusal::FROZEN)?;
    held.try_push(page).map_err(|_| Refusal::INVALID)
}
