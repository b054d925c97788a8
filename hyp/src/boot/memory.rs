//! The memory plan: what Tenure keeps, and the tables that follow from it.
//!
//! Kept are the image, where the boot loader put it, and one more stretch ("the store") as near behind it as there is
//! room: the other CPUs' stacks, the page words, EL2's table pages, and the first pages of the host's stage-2 pool. All
//! else of RAM is the host's.
#![allow(unsafe_code)]

use arrayvec::ArrayVec;
use core::fmt;
use spin::Once;
use tenure_arch::cache;
use tenure_arch::features::Features;
use tenure_arch::stage1::{Attr, MapError};
use tenure_dt::platform::{Gic, MAX_RAM};
use tenure_dt::{Platform, Region, place};
use tenure_mm::stage2::host::{FRAMES, HostMap, Kind};
use tenure_mm::{Config, Frames, Mm, Pa, PageWord, Pfn, Slot, Vm, Word};

use super::pages::Pages;
use super::{image, mmu};
use crate::machine::{self, El2};
use crate::percpu;

const PAGE: u64 = 4096;
/// Pages of the host's stage-2 pool at boot: room for the first map and for the blocks that first donations split. The
/// driver tops it up as it needs more.
const POOL_PAGES: u64 = 48;
/// EL2's table pages: two levels at both ends of each bank of RAM, and around the holes.
const TABLE_PAGES_PER_HOLE: u64 = 4;

/// Why the machine's memory cannot be used.
#[derive(Debug)]
pub enum NoPlan {
    /// Nowhere in RAM is there room for what Tenure keeps.
    NoRoom(u64),
    /// The image does not lie in RAM that the tree knows.
    NotInRam,
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

impl fmt::Display for NoPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom(size) => write!(f, "no free stretch of {} KiB in RAM", size >> 10),
            Self::NotInRam => write!(f, "the image is not in RAM that the device tree names"),
            Self::Own(why) => write!(f, "EL2's own tables: {why:?}"),
            Self::HostTables => write!(f, "too few pages for the host's stage 2"),
            Self::NoKernel => {
                write!(f, "no kernel: /chosen has no multiboot,kernel module (QEMU: -device guest-loader)")
            }
            Self::NotAnImage => write!(f, "the kernel is not an arm64 Linux Image"),
            Self::Tree(why) => write!(f, "the host's device tree cannot be written: {why:?}"),
        }
    }
}

impl From<MapError> for NoPlan {
    fn from(why: MapError) -> Self {
        Self::Own(why)
    }
}

/// Who has which part of RAM at boot.
#[derive(Debug)]
pub struct Plan {
    /// RAM, in whole pages.
    pub ram: ArrayVec<Region, MAX_RAM>,
    /// What is taken before the host is placed: firmware's, modules, the tree, and Tenure's own.
    pub taken: ArrayVec<Region, 64>,
    /// What Tenure keeps: the image and the store.
    pub kept: [Region; 2],
    store: Store,
}

/// The parts of the store, in order.
#[derive(Debug)]
struct Store {
    cpus: Region,
    words: Region,
    root: Region,
    tables: Region,
    pool: Region,
}

impl Store {
    /// Cuts a stretch that starts at `base` into its parts; 8 KiB alignment of the root comes with that of `base`.
    fn at(base: u64, platform: &Platform<'_>, frames: u64) -> Self {
        let after = |r: Region, size| Region { base: r.end(), size };
        let holes = 2 + platform.ram.len() + platform.reserved.len() + 2 * platform.cpus.len();
        let root = Region { base, size: 2 * PAGE };
        let words = after(root, (frames * 8).next_multiple_of(PAGE));
        let cpus = after(words, percpu::AREA_SIZE * (platform.cpus.len() as u64 - 1));
        let tables = after(cpus, TABLE_PAGES_PER_HOLE * holes as u64 * PAGE);
        let pool = after(tables, POOL_PAGES * PAGE);
        Self { cpus, words, root, tables, pool }
    }

    fn whole(&self) -> Region {
        Region::between(self.root.base, self.pool.end())
    }
}

/// Decides where everything goes.
pub fn plan(platform: &Platform<'_>, tree: Region) -> Result<Plan, NoPlan> {
    let image = image::whole();
    let mut ram: ArrayVec<Region, MAX_RAM> = ArrayVec::new();
    for bank in &platform.ram {
        let inner = Region::between(bank.base.next_multiple_of(PAGE), bank.end() & !(PAGE - 1));
        match ram.last_mut() {
            // Banks that touch are one; banks that overlap would give a frame two words.
            Some(last) if inner.base <= last.end() => last.size = last.end().max(inner.end()) - last.base,
            _ if inner.size > 0 => ram.push(inner),
            _ => {}
        }
    }
    if !ram.iter().any(|bank| bank.contains(image)) {
        return Err(NoPlan::NotInRam);
    }
    let mut taken = ArrayVec::new();
    taken.push(image);
    taken.push(tree.pages());
    taken.extend(platform.kernel.map(Region::pages));
    taken.extend(platform.ramdisk.map(Region::pages));
    taken.extend(platform.reserved.iter().map(|r| r.region.pages()));
    // Secondaries of a spin table wait in pages that nobody may overwrite.
    taken.extend(
        platform.cpus.iter().filter_map(|c| c.release).map(|at| Region { base: at, size: 8 }.pages()),
    );
    let frames = ram.iter().map(|bank| bank.size / PAGE).sum();
    let size = Store::at(0, platform, frames).whole().size;
    let place = place::find_free(&ram, &taken, size, 2 * PAGE, image.end())
        .or_else(|| place::find_free(&ram, &taken, size, 2 * PAGE, 0))
        .ok_or(NoPlan::NoRoom(size))?;
    taken.push(place);
    Ok(Plan { ram, taken, kept: [image, place], store: Store::at(place.base, platform, frames) })
}

/// Builds EL2's map of all RAM, the CPUs' areas, the page words, and the host's stage 2.
pub fn build(platform: &Platform<'_>, plan: &Plan) -> Result<(), NoPlan> {
    let store = &plan.store;
    // The free pages first, by early tables; then everything, by them.
    let free = Region::between(store.tables.base, store.pool.end());
    mmu::map(free, Attr::Data, None)?;
    // SAFETY: a part of the store that was just mapped; nothing else uses it.
    let mut pages = unsafe { Pages::new(free) };
    map_ram(platform, plan, &mut pages)?;
    for (index, cpu) in platform.cpus.iter().filter(|c| c.mpidr != boot_mpidr()).enumerate() {
        let base = store.cpus.base + index as u64 * percpu::AREA_SIZE;
        if base + percpu::AREA_SIZE <= store.cpus.end() {
            // SAFETY: a part of the store that is the CPU's alone, mapped but for its guards.
            unsafe { percpu::set_up_at(base, index + 1, cpu.mpidr) };
        }
    }
    let frames = page_words(plan);
    for kept in plan.kept {
        set_words(&frames, kept, Word::hyp(Slot::NONE));
    }
    for reserved in &platform.reserved {
        set_words(&frames, reserved.region.pages(), Word::FIRMWARE);
    }
    host_stage2(platform, plan, frames, pages)
}

fn boot_mpidr() -> u64 {
    percpu::this().mpidr.load(core::sync::atomic::Ordering::Relaxed)
}

/// Maps all RAM to itself, but for guard pages, the image (mapped already, tighter), and what firmware keeps.
fn map_ram(platform: &Platform<'_>, plan: &Plan, pages: &mut Pages) -> Result<(), MapError> {
    let mut holes: ArrayVec<Region, 96> = ArrayVec::new();
    holes.push(image::whole());
    holes.extend(platform.reserved.iter().filter(|r| r.no_map).map(|r| r.region.pages()));
    let cpus = plan.store.cpus;
    for base in (cpus.base..cpus.end()).step_by(percpu::AREA_SIZE as usize) {
        holes.extend(percpu::guards(base));
    }
    holes.sort_unstable();
    for bank in &plan.ram {
        let mut at = bank.base;
        for hole in holes.iter().filter(|h| h.overlaps(*bank)) {
            if hole.base > at {
                mmu::map(Region::between(at, hole.base), Attr::Data, Some(pages))?;
            }
            at = at.max(hole.end());
        }
        if at < bank.end() {
            mmu::map(Region::between(at, bank.end()), Attr::Data, Some(pages))?;
        }
    }
    // A spin table may lie in memory that is never to be mapped otherwise, or outside RAM.
    for release in platform.cpus.iter().filter_map(|c| c.release) {
        if !mmu::is_readable(release) {
            mmu::map(Region { base: release, size: 8 }.pages(), Attr::Data, Some(pages))?;
        }
    }
    Ok(())
}

/// Makes a zeroed word for every RAM frame: all of it is the host's.
fn page_words(plan: &Plan) -> Frames<'static> {
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
    plan: &Plan,
    frames: Frames<'static>,
    mut spare: Pages,
) -> Result<(), NoPlan> {
    static VMS: [Vm; tenure_mm::MAX_VMS] = tenure_mm::vm::slots();
    let root = plan.store.root;
    // SAFETY: a part of the store, mapped, used for nothing else.
    unsafe { cache::zero(root.base as usize, root.size as usize) };
    let config = Config { fwb: Features::current().s2fwb };
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
    if let Gic::V2 { gich, gicv } = platform.gic {
        for frame in [gich, gicv].into_iter().flatten() {
            map(range(frame.pages()), Kind::Hidden)?;
        }
    }
    mm.boot_finish().map_err(|_| NoPlan::HostTables)
}

/// Bytes of RAM that the host does not get.
pub fn kept_bytes(plan: &Plan) -> u64 {
    plan.kept.iter().map(|r| r.size).sum()
}

/// Says how much of RAM Tenure keeps.
pub fn report(platform: &Platform<'_>, plan: &Plan) {
    crate::stats::set_kept_bytes(kept_bytes(plan));
    let kept = kept_bytes(plan) >> 10;
    let total = platform.ram.iter().map(|r| r.size).sum::<u64>().max(1);
    // Thousandths of a percent, rounded up.
    let share = (kept_bytes(plan) * 100_000).div_ceil(total);
    log::info!("no IOMMU is driven: devices can reach every page of RAM, private ones too");
    log::info!("memory kept {kept} KiB of {} MiB ({}.{:03} %)", total >> 20, share / 1000, share % 1000);
}
