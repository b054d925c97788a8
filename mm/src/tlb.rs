//! The one place that decides how translations are invalidated.
//!
//! Break-before-make, Arm ARM DDI 0487 D8.17: the caller has written invalid descriptors; after [`Flush::finish`] no
//! CPU holds a translation that went through them. Stage-2 TLBIs do not drop combined stage-1-and-2 entries, hence the
//! second TLBI (D8.17.5).

use crate::addr::Pfn;
use crate::machine::{Machine, Vmid};

/// Pages above which one invalidation of the whole VMID is cheaper than one for each page.
const WHOLE_VMID: u64 = 64;

/// An invalidation under way for one VMID: writes are visible, pages are added one by one.
#[must_use = "nothing is invalidated before `finish`"]
pub struct Flush<'m, M: Machine> {
    machine: &'m M,
    former: Vmid,
    whole: bool,
}

impl<'m, M: Machine> Flush<'m, M> {
    /// Begins after the descriptors were written; `pages` is how many will be named.
    pub fn begin(machine: &'m M, vmid: Vmid, pages: u64) -> Self {
        machine.dsb_ishst();
        let former = machine.select_vmid(vmid);
        Self { machine, former, whole: pages > WHOLE_VMID }
    }

    /// Names a page whose descriptor was made invalid.
    pub fn page(&self, frame: Pfn) {
        if !self.whole {
            self.machine.tlbi_ipas2e1is(crate::addr::Ipa(frame.base().0));
        }
    }

    /// Waits until no CPU holds any of the translations.
    pub fn finish(self) {
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
    Flush { machine, former: begin_whole(machine, vmid), whole: true }.finish();
}

fn begin_whole<M: Machine>(machine: &M, vmid: Vmid) -> Vmid {
    machine.dsb_ishst();
    machine.select_vmid(vmid)
}
