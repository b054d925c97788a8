//! What the memory manager needs of the hardware.
//!
//! `hyp` implements [`Machine`] with instructions; tests implement it with an adversary that keeps every TLB entry,
//! table write and dirty cache line alive for as long as the architecture allows. The manager therefore spells out
//! each barrier and each invalidation: nothing here implies a barrier that its name does not say.

use crate::addr::{Ipa, Pa, Pfn};

/// Hardware tag of a stage-2 translation regime in the TLB (VTTBR_EL2.VMID).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct Vmid(pub u16);

impl Vmid {
    /// The host's.
    pub const HOST: Self = Self(0);
}

/// Index of an entry in a translation table, 0..512.
pub type Index = usize;

/// The hardware under the manager. All addresses of tables and frames are RAM that the hypervisor may touch.
pub trait Machine: Sync {
    /// Reads entry `index` of the table page at `table`: single-copy atomic, with acquire order.
    fn read(&self, table: Pa, index: Index) -> u64;

    /// Writes entry `index` of the table page at `table`: single-copy atomic, with release order. Walkers see it
    /// after [`Machine::dsb_ishst`] at the latest.
    fn write(&self, table: Pa, index: Index, descriptor: u64);

    /// Zeroes a frame for use as a table or as the hypervisor's own page (no cache maintenance).
    fn zero(&self, frame: Pfn);

    /// Zeroes a frame and cleans and invalidates it to the point of coherency, so that no cached or stale
    /// content of it can be seen by anybody, with any memory attributes. Completes at the next [`Machine::dsb_ish`].
    fn scrub(&self, frame: Pfn);

    /// As [`Machine::scrub`], for `count` frames from `first` on.
    fn scrub_run(&self, first: Pfn, count: u64) {
        (0..count).for_each(|index| self.scrub(first.offset(index)));
    }

    /// Cleans and invalidates a frame to the point of coherency, keeping its contents (before a guest with its
    /// caches off reads what was written through caches). Completes at the next [`Machine::dsb_ish`].
    fn clean_to_poc(&self, frame: Pfn);

    /// Drops stale instructions of frames that were scrubbed or cleaned to the point of coherency (and that a DSB has
    /// completed), on all CPUs, where CTR_EL0 asks for it. Ends with DSB. One for any number of frames.
    fn drop_instructions(&self);

    /// Reads 32 words of a frame, from word `first` on. Others may write to it meanwhile.
    fn read_words(&self, frame: Pfn, first: usize) -> [u64; 32];

    /// DSB ISHST: earlier writes to tables are visible to all walkers.
    fn dsb_ishst(&self);

    /// DSB ISH: earlier TLB and cache maintenance is complete on all CPUs.
    fn dsb_ish(&self);

    /// ISB.
    fn isb(&self);

    /// Makes `vmid` the one that the TLBI instructions below act on, and returns the one before.
    /// Must be followed by a call that selects the former one again before EL2 is left.
    fn select_vmid(&self, vmid: Vmid) -> Vmid;

    /// TLBI IPAS2E1IS: stage-2 entries for one page of the selected VMID. Combined (stage 1 + 2) entries stay until
    /// [`Machine::tlbi_vmalle1is`].
    fn tlbi_ipas2e1is(&self, ipa: Ipa);

    /// The CPUs have FEAT_TLBIRANGE, all of them.
    fn has_range_tlbi(&self) -> bool;

    /// TLBI RIPAS2E1IS: as [`Machine::tlbi_ipas2e1is`] for `pages` pages. Only where [`Machine::has_range_tlbi`].
    fn tlbi_ripas2e1is(&self, first: Ipa, pages: u64);

    /// TLBI VMALLE1IS: all stage-1 and combined entries of the selected VMID.
    fn tlbi_vmalle1is(&self);

    /// TLBI VMALLS12E1IS: everything of the selected VMID.
    fn tlbi_vmalls12e1is(&self);

    /// True when the CPU has something better to do (a physical interrupt is pending): long work stops at its next
    /// resumable point.
    fn attention(&self) -> bool;
}
