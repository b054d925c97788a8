//! Contents of frames: what the caches show, and what stands in the memory behind.

use std::collections::BTreeMap;

use super::descriptor::garbage;

/// 512 words, stored as a filling and the words that differ from it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Contents {
    pub(super) fill: u64,
    words: BTreeMap<usize, u64>,
}

impl Contents {
    pub(super) fn filled(fill: u64) -> Self {
        Self { fill, words: BTreeMap::new() }
    }

    pub(super) fn get(&self, index: usize) -> u64 {
        self.words.get(&index).copied().unwrap_or(self.fill)
    }

    pub(super) fn set(&mut self, index: usize, value: u64) {
        if value == self.fill {
            self.words.remove(&index);
        } else {
            self.words.insert(index, value);
        }
    }

    pub(super) fn is_zero(&self) -> bool {
        self.fill == 0 && self.words.is_empty()
    }

    /// The words that differ from the filling.
    pub(super) fn entries(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.words.iter().map(|(&index, &value)| (index, value))
    }
}

/// One frame.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Frame {
    /// What coherent readers see.
    pub(super) data: Contents,
    /// What readers with non-cacheable attributes may see: the contents before the last clean that completed.
    pub(super) memory: Contents,
    /// Somebody other than the guest that executes here has written since the last instruction-cache maintenance.
    pub(super) icache_stale: bool,
    /// Whatever is not zero in it was stored by the host since it was zeroed.
    pub(super) hosts_own: bool,
    /// CPU that zeroed the frame and has not executed a DSB since: a walker may still see what was here before.
    pub(super) zeroed_by: Option<usize>,
}

impl Frame {
    pub(super) fn new(pfn: u64) -> Self {
        let contents = Contents::filled(garbage(pfn ^ 1));
        Self {
            data: contents.clone(),
            memory: contents,
            icache_stale: true,
            hosts_own: false,
            zeroed_by: None,
        }
    }

    /// Both views hold nothing but zeroes.
    pub(super) fn is_scrubbed(&self) -> bool {
        self.data.is_zero() && self.memory.is_zero()
    }

    /// Nobody finds anything in it that the host has not stored since it was zeroed.
    pub(super) fn is_fit_for_host(&self) -> bool {
        self.is_scrubbed() || self.hosts_own && self.memory.is_zero()
    }

    /// A dirty line hides different contents in memory.
    pub(super) fn is_dirty(&self) -> bool {
        self.data != self.memory
    }
}

/// A clean to the point of coherency that waits for its DSB.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct PendingClean {
    pub(super) pfn: u64,
    pub(super) contents: Contents,
}
