//! EL2's own tables: made in two steps, never changed after boot.
//!
//! With the MMU off, [`early`] maps just the image (W^X, guards left out) and the device tree from a few pages of
//! `.bss`. With it on, boot maps the console and, when the memory plan stands, all RAM. Everything is mapped to itself.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

use tenure_arch::stage1::{self, Attr, MapError, Tables};
use tenure_arch::{cache, tlb};
use tenure_dt::Region;

use super::image;
use super::pages::Pages;
use crate::percpu;

/// Table pages in `.bss`, the root among them: enough for the image, the device tree and a console anywhere.
const EARLY_PAGES: usize = 12;

/// A page of descriptors.
#[repr(C, align(4096))]
pub struct Page(UnsafeCell<[u64; 512]>);

// SAFETY: written by the boot CPU only, before the others start; read by the walkers.
unsafe impl Sync for Page {}

/// The root table.
pub static ROOT: Page = Page(UnsafeCell::new([0; 512]));
static EARLY: [Page; EARLY_PAGES] = [const { Page(UnsafeCell::new([0; 512])) }; EARLY_PAGES];
static USED: AtomicUsize = AtomicUsize::new(0);

fn root() -> u64 {
    (&raw const ROOT) as u64
}

/// Reaches table pages by their addresses: with the MMU off, or mapped to themselves.
struct Own<'a> {
    /// More pages, once there are any.
    more: Option<&'a mut Pages>,
}

impl Tables for Own<'_> {
    fn alloc(&mut self) -> Option<u64> {
        // Plain load and store: one CPU, and with the MMU off no exclusives.
        let used = USED.load(Ordering::Relaxed);
        if let Some(page) = EARLY.get(used) {
            USED.store(used + 1, Ordering::Relaxed);
            return Some(page as *const Page as u64);
        }
        self.more.as_deref_mut()?.take_zeroed()
    }

    fn read(&self, table: u64, index: usize) -> u64 {
        // SAFETY: a table of ours: 512 entries, mapped.
        unsafe { entry(table, index).read_volatile() }
    }

    fn write(&mut self, table: u64, index: usize, value: u64) {
        // SAFETY: as above; only the boot CPU writes.
        unsafe { entry(table, index).write_volatile(value) }
    }
}

fn entry(table: u64, index: usize) -> *mut u64 {
    core::ptr::with_exposed_provenance_mut(table as usize + (index % 512) * 8)
}

/// Maps the image and the device tree, with the MMU off, and turns it on.
pub fn early(tree: Region) -> Result<(), MapError> {
    let mut t = Own { more: None };
    let mut add = |r: Region, attr| stage1::map(&mut t, root(), r.base, r.end(), attr);
    add(image::text(), Attr::Text)?;
    add(image::rodata(), Attr::ReadOnly)?;
    around_guards(image::data(), |r| add(r, Attr::Data))?;
    add(tree.pages(), Attr::ReadOnly)?;
    // What was written with the cache off must not be hidden by lines that were fetched meanwhile.
    let data = image::data();
    let line = cache::CacheType::current().data_line();
    for at in (data.base as usize..data.end() as usize).step_by(line) {
        // SAFETY: the cache is off: nothing was written through it.
        unsafe { cache::invalidate_line(at) };
    }
    tenure_arch::barrier::dsb_sy();
    // SAFETY: the tables map the image with its stack; code, stack and data keep their addresses.
    unsafe { super::head::mmu_on(root()) };
    Ok(())
}

/// Calls `f` for the parts of `range` that are not guard pages of the boot CPU.
fn around_guards(range: Region, mut f: impl FnMut(Region) -> Result<(), MapError>) -> Result<(), MapError> {
    let mut at = range.base;
    for guard in percpu::guards(percpu::boot_area()) {
        let part = Region::between(at, guard.base);
        if part.size > 0 {
            f(part)?;
        }
        at = guard.end();
    }
    let rest = Region::between(at, range.end());
    if rest.size > 0 { f(rest) } else { Ok(()) }
}

/// Maps more, with the MMU on; tables come from `pages` once those of `.bss` are used up.
pub fn map(range: Region, attr: Attr, pages: Option<&mut Pages>) -> Result<(), MapError> {
    let mut t = Own { more: pages };
    stage1::map(&mut t, root(), range.base, range.end(), attr)?;
    tlb::flush_el2();
    Ok(())
}

/// Whether EL2 can read at `va`.
pub fn is_readable(va: u64) -> bool {
    stage1::is_readable(&Own { more: None }, root(), va)
}
