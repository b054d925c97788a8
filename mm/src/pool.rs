//! Table memory: a stack of free pages, linked through the pages themselves.
//!
//! A pool never grows by itself. The host gives it pages (and gets them all back); running short is an answer,
//! NO_MEMORY, that a call gives before it has changed anything.

use crate::addr::{Pa, Pfn};
use crate::machine::Machine;

/// Free pages of one owner. Pages on the stack are in state `Hyp`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pool {
    top: Option<Pfn>,
    free: u64,
    total: u64,
}

impl Pool {
    /// A pool without pages.
    pub const fn empty() -> Self {
        Self { top: None, free: 0, total: 0 }
    }

    /// Pages that can be taken.
    pub const fn free(&self) -> u64 {
        self.free
    }

    /// Pages that belong to the pool, free or in use.
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// A new page of the pool.
    pub fn add<M: Machine>(&mut self, machine: &M, page: Pfn) {
        self.total = self.total.saturating_add(1);
        self.put(machine, page);
    }

    /// A page comes back.
    pub fn put<M: Machine>(&mut self, machine: &M, page: Pfn) {
        let link = self.top.map_or(0, |next| next.base().0 | 1);
        machine.write(page.base(), 0, link);
        self.top = Some(page);
        self.free = self.free.saturating_add(1);
    }

    /// Takes a page, zeroed.
    pub fn take<M: Machine>(&mut self, machine: &M) -> Option<Pfn> {
        let page = self.pop(machine)?;
        machine.zero(page);
        Some(page)
    }

    /// Takes a page out of the pool for good, as it is.
    pub fn remove<M: Machine>(&mut self, machine: &M) -> Option<Pfn> {
        let page = self.pop(machine)?;
        self.total = self.total.saturating_sub(1);
        Some(page)
    }

    fn pop<M: Machine>(&mut self, machine: &M) -> Option<Pfn> {
        let page = self.top?;
        let link = machine.read(page.base(), 0);
        self.top = (link & 1 != 0).then(|| Pa(link).frame());
        self.free = self.free.saturating_sub(1);
        Some(page)
    }
}
