//! What the machine may look up while it judges what can be reached: words, owners, scrap frames.

use tenure_mm::fake::Book;
use tenure_mm::{Pfn, Vmid};

/// The books of one memory.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Ledger {
    /// Frame of the first word.
    pub base: u64,
    /// The page words.
    pub words: Vec<u64>,
    /// VMIDs that live.
    pub live: Vec<Vmid>,
    /// Their scrap frames.
    pub scraps: Vec<Pfn>,
}

impl Book for Ledger {
    fn word(&self, pfn: Pfn) -> Option<u64> {
        self.words.get(usize::try_from(pfn.0.checked_sub(self.base)?).ok()?).copied()
    }

    fn slot_of(&self, vmid: Vmid) -> Option<u64> {
        self.live.contains(&vmid).then_some(u64::from(vmid.0))
    }

    fn is_scrap(&self, pfn: Pfn) -> bool {
        self.scraps.contains(&pfn)
    }
}
