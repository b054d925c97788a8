//! Accesses of CPUs in the host or in a guest: each goes through if anything that is walkable or stale permits it.

use super::FakeMachine;
use super::memory::Contents;
use super::tlb::Translation;
use crate::{Ipa, Pfn, Vmid};

/// Kind of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Exec,
}

impl FakeMachine {
    /// Everything that `vmid` may find at `ipa`, the stalest first.
    pub fn reachable(&self, vmid: Vmid, ipa: Ipa, access: Access) -> Vec<Translation> {
        let mut found = self.lock().tlb.overlapping(vmid, ipa.0, ipa.0 + 1);
        found.sort_by_key(|(_, life)| life.walkable);
        let permits = |translation: &Translation| match access {
            Access::Read => translation.perms.read,
            Access::Write => translation.perms.write,
            Access::Exec => translation.perms.exec,
        };
        found.into_iter().map(|(translation, _)| translation).filter(permits).collect()
    }

    /// The one translation that walks of the tables give at `ipa` (some of them may still find nothing there).
    pub fn walks_to(&self, vmid: Vmid, ipa: Ipa) -> Option<Translation> {
        let found = self.lock().tlb.overlapping(vmid, ipa.0, ipa.0 + 1);
        let mut walkable = found.iter().filter(|(_, life)| life.walkable);
        match (walkable.next(), walkable.next()) {
            (Some((translation, _)), None) => Some(*translation),
            _ => None,
        }
    }

    /// A load of word `index` of the page at `ipa`; `None` if it faults for certain.
    pub fn read_at(&self, vmid: Vmid, ipa: Ipa, index: usize) -> Option<u64> {
        let target = self.target(vmid, ipa, Access::Read)?;
        self.lock().frame(target.0).map(|frame| frame.data.get(index))
    }

    /// A load with non-cacheable attributes: sees what stands in memory behind dirty lines.
    pub fn read_uncached_at(&self, vmid: Vmid, ipa: Ipa, index: usize) -> Option<u64> {
        let target = self.target(vmid, ipa, Access::Read)?;
        self.lock().frame(target.0).map(|frame| frame.memory.get(index))
    }

    /// A store to word `index` of the page at `ipa`; false if it faults for certain.
    pub fn write_at(&self, vmid: Vmid, ipa: Ipa, index: usize, value: u64) -> bool {
        let Some(target) = self.target(vmid, ipa, Access::Write) else { return false };
        let mut inner = self.lock();
        if let Some(frame) = inner.frame_mut(target.0) {
            frame.data.set(index, value);
            frame.hosts_own &= vmid == Vmid::HOST;
            // A guest that writes its own code cleans up after itself.
            frame.icache_stale |= vmid == Vmid::HOST;
        }
        true
    }

    fn target(&self, vmid: Vmid, ipa: Ipa, access: Access) -> Option<Pfn> {
        self.reachable(vmid, ipa, access).first()?.frame_of(ipa.0)
    }

    /// The host's load at a physical address.
    pub fn host_read(&self, pfn: Pfn, index: usize) -> Option<u64> {
        self.read_at(Vmid::HOST, Ipa(pfn.base().0), index)
    }

    /// The host's store at a physical address.
    pub fn host_write(&self, pfn: Pfn, index: usize, value: u64) -> bool {
        self.write_at(Vmid::HOST, Ipa(pfn.base().0), index, value)
    }

    /// The host's store of data that no guest takes for instructions: both may do what they like with a shared page.
    pub fn host_write_data(&self, pfn: Pfn, index: usize, value: u64) -> bool {
        let stale = self.is_icache_stale(pfn);
        let stored = self.host_write(pfn, index, value);
        if let Some(frame) = self.lock().frame_mut(pfn.0) {
            frame.icache_stale = stale;
        }
        stored
    }

    /// What a frame holds, as the hypervisor itself reads it.
    pub fn peek(&self, pfn: Pfn, index: usize) -> u64 {
        self.lock().frame(pfn.0).map_or(0, |frame| frame.data.get(index))
    }

    /// True if memory behind the caches differs from what coherent readers see.
    pub fn is_dirty(&self, pfn: Pfn) -> bool {
        self.lock().frame(pfn.0).is_some_and(|frame| frame.is_dirty())
    }

    /// True if instruction fetch may see older contents than loads do.
    pub fn is_icache_stale(&self, pfn: Pfn) -> bool {
        self.lock().frame(pfn.0).is_some_and(|frame| frame.icache_stale)
    }

    /// True if neither coherent nor non-coherent readers see anything but zeroes.
    pub fn is_scrubbed(&self, pfn: Pfn) -> bool {
        self.lock().frame(pfn.0).is_some_and(|frame| frame.is_scrubbed())
    }

    /// Fills a frame as the boot loader would have: the host's data before there was a hypervisor.
    pub fn preload(&self, pfn: Pfn, fill: u64) {
        if let Some(frame) = self.lock().frame_mut(pfn.0) {
            frame.data = Contents::filled(fill);
            frame.memory = Contents::filled(fill);
        }
    }

    /// Loads `vmid` on the current CPU, as an entry to a guest does: it must be selected when EL2 is left.
    pub fn load(&self, vmid: Vmid) {
        let cpu = super::current_cpu();
        let mut inner = self.lock();
        inner.cpus[cpu].loaded = vmid;
        inner.cpus[cpu].selected = vmid;
    }
}
