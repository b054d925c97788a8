//! The host's own stage 2: its faults, and its wish to map or unmap what is shared with it.

use tenure_abi::MAX_ATOMIC_PAGES;
use tenure_abi::page::State;
use tenure_abi::reply::{Reply, Status};

use super::{Held, hold};
use crate::addr::{Pa, Pfn, checked_end};
use crate::machine::Machine;
use crate::manager::{MAP_CHUNK, Mm};
use crate::stage2::host::{Entry, FRAMES};
use crate::stage2::{Descriptor, LEAF_LEVEL};
use crate::state::{self, HostMap, HostUnmap, Refusal};
use crate::sync::Ordering;
use crate::vm::Vm;
use crate::word::{Frozen, PageWord, Word};

/// What an access wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Access {
    /// It writes.
    pub write: bool,
    /// It fetches an instruction.
    pub execute: bool,
}

/// What a fault of the host leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostFault {
    /// Return to the instruction: the mapping is there now, or a transition is in flight.
    Resume,
    /// The host may not do this: it gets an abort.
    Abort,
}

impl<'a, M: Machine> Mm<'a, M> {
    /// The host faulted in its stage 2 at `pa`. Never allocates.
    pub fn host_fault(&self, pa: Pa, access: Access) -> HostFault {
        let frame = pa.frame();
        if frame.0 >= FRAMES {
            return self.refuse_host();
        }
        let entry = self.host.walk(&self.machine, frame);
        let Some(cell) = self.frames.word(frame) else {
            // Not RAM: it is mapped, or in the middle of a split, or none of the host's business.
            let resume = entry.descriptor.permits(access.write, access.execute)
                || entry.level < LEAF_LEVEL && !entry.descriptor.is_valid();
            return if resume { HostFault::Resume } else { self.refuse_host() };
        };
        let word = cell.load();
        match state::host_map(word, access.execute) {
            Err(Refusal::FROZEN) => HostFault::Resume,
            Err(_) => self.host_foreign(cell, frame, word, entry, access),
            // A block is whole, or another CPU is splitting it.
            Ok(HostMap::Own) if entry.level < LEAF_LEVEL => HostFault::Resume,
            Ok(_) if entry.level < LEAF_LEVEL => self.refuse_host(),
            Ok(_) if entry.descriptor.permits(access.write, access.execute) => HostFault::Resume,
            Ok(HostMap::Own) => {
                self.set_host_leaf(cell, frame, word, word, Descriptor::page(frame, self.host_attr.ram));
                HostFault::Resume
            }
            Ok(HostMap::Leaf(next)) => {
                self.set_host_leaf(cell, frame, word, next, self.borrowed(frame));
                HostFault::Resume
            }
            Ok(HostMap::Scrap) => match self.slot(word.owner()).and_then(|vm| vm.scrap()) {
                Some(scrap) => {
                    self.stats.scrap_touches.fetch_add(1, Ordering::Relaxed);
                    self.set_host_leaf(cell, frame, word, word, self.borrowed(scrap));
                    HostFault::Resume
                }
                // The VM has died since, and the frame is the host's again.
                None if cell.load() != word => HostFault::Resume,
                None => self.refuse_host(),
            },
        }
    }

    /// The host asks for its leaves of frames that are shared with it. Stops at the first that is refused, and after 128.
    pub fn host_map(&self, pfn: Pfn, count: u64) -> Reply {
        if checked_end(pfn.0, count, FRAMES).is_none() {
            return Reply::refused(Status::Invalid);
        }
        let count = count.min(MAP_CHUNK);
        for index in 0..count {
            if let Err(refusal) = self.host_map_one(pfn.offset(index)) {
                return Reply { done: index, ..refusal.at(index) };
            }
        }
        Reply::done(count)
    }

    fn host_map_one(&self, frame: Pfn) -> Result<(), Refusal> {
        let cell = self.cell(frame)?;
        let word = cell.load();
        match state::host_map(word, false)? {
            HostMap::Own => Ok(()),
            HostMap::Leaf(next) if next == word => Ok(()),
            HostMap::Leaf(next) => {
                let made = self.set_host_leaf(cell, frame, word, next, self.borrowed(frame));
                if made { Ok(()) } else { Err(Refusal::FROZEN) }
            }
            HostMap::Scrap => Err(Refusal::STATE),
        }
    }

    /// The host gives up its leaves of frames that are not its own (and the scrap that stands for them). All of the
    /// first 512, or none.
    #[inline(never)]
    pub fn host_unmap(&self, pfn: Pfn, count: u64) -> Reply {
        if checked_end(pfn.0, count, FRAMES).is_none() {
            return Reply::refused(Status::Invalid);
        }
        let count = count.min(MAX_ATOMIC_PAGES);
        let mut held = Held::new();
        for index in 0..count {
            let frame = pfn.offset(index);
            let verdict = self.cell(frame).and_then(|cell| {
                let word = cell.load();
                match state::host_unmap(word)? {
                    HostUnmap::Already => Ok(()),
                    HostUnmap::Drop(_) => hold(&mut held, cell, frame, word, word),
                }
            });
            if let Err(refusal) = verdict {
                return refusal.at(index);
            }
        }
        if !held.is_empty() {
            self.drop_host_leaves(held.iter().map(Frozen::frame), held.len() as u64);
        }
        for page in held.drain(..) {
            match state::host_unmap(page.before()) {
                Ok(HostUnmap::Drop(next)) => page.publish(next),
                _ => drop(page),
            }
        }
        Reply::done(count)
    }

    /// Makes or replaces the host's leaf of a frame, showing and then publishing `next`. False if the word moved.
    fn set_host_leaf(&self, cell: &PageWord, frame: Pfn, word: Word, next: Word, leaf: Descriptor) -> bool {
        let Ok(page) = cell.freeze(frame, word, next) else { return false };
        let Some(entry) = self.host.leaf(&self.machine, frame) else { return false };
        if entry.descriptor.is_valid() {
            self.drop_host_leaves(core::iter::once(frame), 1);
        }
        entry.write(&self.machine, leaf);
        self.machine.dsb_ishst();
        page.publish(next);
        true
    }

    /// The host's leaf of a frame that is not its own.
    fn borrowed(&self, frame: Pfn) -> Descriptor {
        Descriptor::page(frame, self.host_attr.borrowed)
    }

    /// A frame that is not for the host: an abort, or after a host panic a page of zeros to read.
    fn host_foreign(
        &self,
        cell: &PageWord,
        frame: Pfn,
        word: Word,
        entry: Entry,
        access: Access,
    ) -> HostFault {
        match self.panic_scrap() {
            Some(scrap) if !access.write && !access.execute && entry.level == LEAF_LEVEL => {
                if !entry.descriptor.permits(false, false) {
                    // A parked word changes under the lock of its VM only.
                    let parked = word.state() == State::Quarantine;
                    let _parked = self.slot(word.owner()).filter(|_| parked).map(Vm::lock);
                    let leaf = Descriptor::page(scrap, self.host_attr.read_only);
                    self.set_host_leaf(cell, frame, word, word.with_redirection(true), leaf);
                }
                HostFault::Resume
            }
            _ => self.refuse_host(),
        }
    }

    fn refuse_host(&self) -> HostFault {
        self.stats.host_aborts.fetch_add(1, Ordering::Relaxed);
        HostFault::Abort
    }
}
