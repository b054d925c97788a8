//! From the layout of memory, which [`tenure_dt::layout`] decides, to what the hardware and the manager need: EL2's map,
//! the CPUs' areas, the page words, and the host's stage 2.
#![allow(unsafe_code)]

use arrayvec::ArrayVec;
use core::fmt;
use spin::Once;
use tenure_arch::cache;
use tenure_arch::stage1::{Attr, MapError};
use tenure_dt::layout::{Own, hidden_frames};
use tenure_dt::platform::MAX_RAM;
use tenure_dt::{Layout, Platform, Refusal, Region};
use tenure_mm::stage2::host::{FRAMES, HostMap, Kind};
use tenure_mm::{Config, Frames, Mm, Pa, PageWord, Pfn, Slot, Vm, Word};

use super::pages::Pages;
use super::{bundle, image, mmu};
use crate::machine::{self, El2};
use crate::percpu;

const PAGE: u64 = 4096;
/// RAM may begin at address 0. That frame stays the host's for good: no reference of Tenure's may be null.
const NULL_PAGE: Region = Region { base: 0, size: PAGE };

/// Why the machine's memory cannot be used.
#[derive(Debug)]
pub enum NoPlan<'a> {
    /// What the device tree says leaves no room, or does not fit together.
    Layout(Refusal<'a>),
    /// EL2's own tables.
    Own(MapError),
    /// The host's stage 2 needs more pages than were planned.
    HostTables,
    /// No kernel in `/chosen`.
    NoKernel,
    /// The kernel is not an arm64 Linux `Image`.
    NotAnImage,
    /// The host's device tree could not be written.
    Tree(tenure_dt::edit::CannotEdit),
}

impl fmt::Display for NoPlan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layout(refusal) => write!(f, "the device tree cannot be used: {refusal}"),
            Self::Own(why) => write!(f, "EL2's own tables: {why:?}"),
            Self::HostTables => write!(f, "too few pages for the host's stage 2"),
            Self::NoKernel => {
                write!(f, "no kernel: neither a bundle nor a multiboot,kernel module in /chosen names one")
            }
            Self::NotAnImage => write!(f, "the kernel is not an arm64 Linux Image"),
            Self::Tree(why) => write!(f, "the host's device tree cannot be written: {why}"),
        }
    }
}

impl From<MapError> for NoPlan<'_> {
    fn from(why: MapError) -> Self {
        Self::Own(why)
    }
}

impl<'a> From<Refusal<'a>> for NoPlan<'a> {
    fn from(refusal: Refusal<'a>) -> Self {
        Self::Layout(refusal)
    }
}

/// Decides where everything goes, for the image as it runs and the tree that the boot loader handed over.
pub fn plan<'a>(
    platform: &Platform<'a>,
    tree: Region,
    bundle: Option<bundle::Found>,
) -> Result<Layout, NoPlan<'a>> {
    let cpu_guards = percpu::guards(0);
    // A bundle's header, with the host's command line in it, is the page behind the image, and stays with it.
    let end = bundle.map_or(image::whole().end(), |found| found.page().end());
    let image = Region::between(image::whole().base, end);
    let own = Own { image, tree, cpu_area: percpu::AREA_SIZE, cpu_guards };
    Ok(Layout::new(platform, &own)?)
}

/// Builds EL2's map of RAM, the CPUs' areas, the page words, and the host's stage 2.
pub fn build(platform: &Platform<'_>, plan: &Layout) -> Result<(), NoPlan<'static>> {
    let store = &plan.store;
    // The free pages first, by early tables; then everything, by them.
    let free = Region::between(store.tables.base, store.pool.end());
    mmu::map(free, Attr::Data, None)?;
    // SAFETY: a part of the store that was just mapped; nothing else uses it.
    let mut pages = unsafe { Pages::new(free) };
    for range in &plan.reach {
        mmu::map(*range, Attr::Data, Some(&mut pages))?;
    }
    for (index, cpu) in platform.cpus.iter().filter(|c| c.mpidr != boot_mpidr()).enumerate() {
        let base = store.cpus.base + index as u64 * percpu::AREA_SIZE;
        if base + percpu::AREA_SIZE <= store.cpus.end() {
            // SAFETY: a part of the store that is the CPU's alone, mapped but for its guards.
            unsafe { percpu::set_up_at(base, index + 1, cpu.mpidr) };
        }
    }
    let frames = page_words(plan);
    for range in plan.firmware.iter().chain([&NULL_PAGE]) {
        set_words(&frames, *range, Word::FIRMWARE);
    }
    // After the firmware's: what a boot loader has listed as reserved because Tenure is there is Tenure's.
    for kept in plan.kept {
        set_words(&frames, kept, Word::hyp(Slot::NONE));
    }
    host_stage2(platform, plan, frames, pages)
}

fn boot_mpidr() -> u64 {
    percpu::this().mpidr.load(core::sync::atomic::Ordering::Relaxed)
}

/// Makes a zeroed word for every RAM frame: all of it is the host's.
fn page_words(plan: &Layout) -> Frames<'static> {
    static REGIONS: Once<ArrayVec<tenure_mm::Region<'static>, MAX_RAM>> = Once::new();
    let words = plan.store.words;
    // SAFETY: a part of the store, mapped, used for nothing else.
    unsafe { cache::zero(words.base as usize, words.size as usize) };
    let regions = REGIONS.call_once(|| {
        let mut at = words.base as usize;
        let mut regions = ArrayVec::new();
        for bank in &plan.ram {
            let count = (bank.size / PAGE) as usize;
            let first = core::ptr::with_exposed_provenance::<PageWord>(at);
            // SAFETY: zeroed words of the store (a `PageWord` is an atomic word), for ever the manager's.
            let words = unsafe { core::slice::from_raw_parts(first, count) };
            at += count * size_of::<PageWord>();
            regions.push(tenure_mm::Region { first: Pa(bank.base).frame(), words });
        }
        regions
    });
    Frames::new(regions)
}

fn set_words(frames: &Frames<'_>, region: Region, word: Word) {
    for frame in region.base / PAGE..region.end() / PAGE {
        if let Some(cell) = frames.word(Pfn(frame)) {
            cell.init(word);
        }
    }
}

/// Builds the host's stage 2 and installs the manager. `spare`: the pages that neither EL2's tables nor anything else
/// has used, for the pool.
fn host_stage2(
    platform: &Platform<'_>,
    plan: &Layout,
    frames: Frames<'static>,
    mut spare: Pages,
) -> Result<(), NoPlan<'static>> {
    static VMS: [Vm; tenure_mm::MAX_VMS] = tenure_mm::vm::slots();
    let root = plan.store.root;
    // SAFETY: a part of the store, mapped, used for nothing else.
    unsafe { cache::zero(root.base as usize, root.size as usize) };
    let config = Config { fwb: percpu::forced_types() };
    let mm = Mm::new(El2::new(), frames, HostMap::new(Pa(root.base)), &VMS, config);
    let mm = machine::install(mm);
    while let Some(page) = spare.take() {
        mm.boot_add_page(Pa(page).frame());
    }
    let range = |r: Region| r.base / PAGE..r.end() / PAGE;
    let map = |frames, kind| mm.boot_map(frames, kind).map_err(|_| NoPlan::HostTables);
    map(0..FRAMES, Kind::Other)?;
    for bank in &plan.ram {
        map(range(*bank), Kind::Ram)?;
    }
    for kept in plan.kept {
        map(range(kept), Kind::Hidden)?;
    }
    for frame in hidden_frames(platform.gic) {
        map(range(frame), Kind::Hidden)?;
    }
    mm.boot_finish().map_err(|_| NoPlan::HostTables)
}

/// Bytes of RAM that the host does not get.
pub fn kept_bytes(plan: &Layout) -> u64 {
    plan.kept.iter().map(|r| r.size).sum()
}

/// Says how much of RAM Tenure keeps.
pub fn report(platform: &Platform<'_>, plan: &Layout) {
    crate::stats::set_kept_bytes(kept_bytes(plan));
    let kept = kept_bytes(plan) >> 10;
    let total = platform.ram.iter().map(|r| r.size).sum::<u64>().max(1);
    // Thousandths of a percent, rounded up.
    let share = (kept_bytes(plan) * 100_000).div_ceil(total);
    if plan.crowded {
        log::warn!("a reservation that the host is to place itself finds no room");
    }
    crate::dma::report(platform);
    log::info!("memory kept {kept} KiB of {} MiB ({}.{:03} %)", total >> 20, share / 1000, share % 1000);
}
