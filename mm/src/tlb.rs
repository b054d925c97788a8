//! The one place that decides how translations are invalidated.
//!
//! Break-before-make, Arm ARM DDI 0487 D8.17: the caller has written invalid descriptors; after [`Flush::finish`] no
//! CPU holds a translation that went through them. Stage-2 TLBIs do not drop combined stage-1-and-2 entries, hence the
//! second TLBI (D8.17.5). The repeat that some CPUs need is in [`Machine::dsb_ish`].

use crate::addr::{Ipa, Pfn};
use crate::machine::{Machine, Vmid};

/// TLBIs above which one invalidation of the whole VMID is cheaper than one for each page: each is a message to all
/// CPUs that EL2 pays for at once (5 instructions and a broadcast), while a refill is paid for by whoever needs it.
pub const WHOLE_VMID: u64 = 64;

/// An invalidation under way for one VMID: writes are visible, pages are added one by one.
#[must_use = "nothing is invalidated before `finish`"]
pub struct Flush<'m, M: Machine> {
    machine: &'m M,
    former: Vmid,
    whole: bool,
    /// TLBIs of single addresses or ranges so far.
    issued: u64,
    /// Consecutive pages that were named and not yet invalidated.
    first: u64,
    pages: u64,
}

impl<'m, M: Machine> Flush<'m, M> {
    /// Begins after the descriptors were written; `pages` is how many entries will be named.
    pub fn begin(machine: &'m M, vmid: Vmid, pages: u64) -> Self {
        let whole = pages > WHOLE_VMID && !machine.has_range_tlbi();
        machine.dsb_ishst();
        let former = machine.select_vmid(vmid);
        Self { machine, former, whole, issued: 0, first: 0, pages: 0 }
    }

    /// Everything of the VMID goes: no page need be named.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Names a page, or the first page of a block, whose descriptor was made invalid.
    pub fn page(&mut self, frame: Pfn) {
        self.run(frame, 1);
    }

    /// Names `pages` pages, each of which had a descriptor of its own.
    pub fn run(&mut self, frame: Pfn, pages: u64) {
        if self.whole {
            return;
        }
        if frame.0 == self.first.wrapping_add(self.pages) && self.pages > 0 {
            self.pages += pages;
            return;
        }
        self.issue();
        (self.first, self.pages) = (frame.0, pages);
    }

    fn issue(&mut self) {
        if self.whole || self.pages == 0 {
            return;
        }
        let range = self.machine.has_range_tlbi();
        self.issued += if range { 1 } else { self.pages };
        self.whole = self.issued > WHOLE_VMID;
        if self.whole {
            return;
        }
        let first = Ipa(Pfn(self.first).base().0);
        if range && self.pages > 1 {
            self.machine.tlbi_ripas2e1is(first, self.pages);
        } else {
            for page in 0..self.pages {
                self.machine.tlbi_ipas2e1is(Ipa(Pfn(self.first).offset(page).base().0));
            }
        }
    }

    /// Waits until no CPU holds any of the translations.
    pub fn finish(mut self) {
        self.issue();
        if self.whole {
            self.machine.tlbi_vmalls12e1is();
        } else {
            self.machine.dsb_ish();
            self.machine.tlbi_vmalle1is();
        }
        self.machine.dsb_ish();
        self.machine.isb();
        self.machine.select_vmid(self.former);
    }
}

/// Invalidates everything of a VMID: before it is used for the first time, and at teardown.
pub fn flush_vmid<M: Machine>(machine: &M, vmid: Vmid) {
    let mut flush = Flush::begin(machine, vmid, 0);
    flush.whole = true;
    flush.finish();
}
