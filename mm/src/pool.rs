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

/// The host's pool: pages that the hypervisor kept at boot, which never leave it, and pages that the host lent since.
/// The kept ones are used first, so that what was lent can be given back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostPool {
    kept: Pool,
    lent: Pool,
    /// First of the kept pages and the one past the last; nothing between is ever the host's.
    span: (Pfn, Pfn),
}

impl HostPool {
    /// A pool without pages.
    pub const fn empty() -> Self {
        Self { kept: Pool::empty(), lent: Pool::empty(), span: (Pfn(0), Pfn(0)) }
    }

    /// A page of the hypervisor's own, at boot.
    pub fn keep<M: Machine>(&mut self, machine: &M, page: Pfn) {
        let (first, end) = self.span;
        let next = page.offset(1);
        self.span = if first == end { (page, next) } else { (first.min(page), end.max(next)) };
        self.kept.add(machine, page);
    }

    /// The pages kept at boot.
    pub const fn kept(&mut self) -> &mut Pool {
        &mut self.kept
    }

    /// A page that the host lends.
    pub fn add<M: Machine>(&mut self, machine: &M, page: Pfn) {
        self.lent.add(machine, page);
    }

    fn is_kept(&self, page: Pfn) -> bool {
        (self.span.0..self.span.1).contains(&page)
    }

    /// Takes a page that was kept at boot, in the place of one that the host lent.
    pub fn take_kept_for<M: Machine>(&mut self, machine: &M, lent: Pfn) -> Option<Pfn> {
        if self.is_kept(lent) { None } else { self.kept.take(machine) }
    }

    /// A table comes back.
    pub fn put<M: Machine>(&mut self, machine: &M, page: Pfn) {
        let pool = if self.is_kept(page) { &mut self.kept } else { &mut self.lent };
        pool.put(machine, page);
    }

    /// Takes a page, zeroed.
    pub fn take<M: Machine>(&mut self, machine: &M) -> Option<Pfn> {
        self.kept.take(machine).or_else(|| self.lent.take(machine))
    }

    /// Takes a page that was lent out of the pool for good, as it is.
    pub fn remove<M: Machine>(&mut self, machine: &M) -> Option<Pfn> {
        self.lent.remove(machine)
    }

    /// Pages that can be taken.
    pub const fn free(&self) -> u64 {
        self.kept.free() + self.lent.free()
    }

    /// Pages that belong to the pool, free or in use.
    pub const fn total(&self) -> u64 {
        self.kept.total() + self.lent.total()
    }
}
