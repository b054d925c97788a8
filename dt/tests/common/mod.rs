//! A tree put through everything: checked, read, laid out, edited for the host, and looked at again by the two libraries.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, dead_code)]

use tenure_dt::edit::{GROWTH, HostView, host_tree};
use tenure_dt::layout::{KernelHeader, Own};
use tenure_dt::place::{find_free, find_last};
use tenure_dt::{Claim, Layout, Platform, Region, check, read};

pub const PAGE: u64 = 4096;
pub const MIB: u64 = 1 << 20;
/// What Debian's kernel needs.
pub const KERNEL: KernelHeader = KernelHeader { text_offset: 0, image_size: 0x223_0000 };
/// Bytes of a CPU's area, near enough to the real one.
const CPU_AREA: u64 = 0x1_5000;

/// Where a tree's machine ended up.
pub struct Placed {
    pub layout: Layout,
    pub own: Own,
    /// `None`: the tree names no kernel.
    pub kernel: Option<Region>,
    pub tree: Region,
    /// The host's tree.
    pub host: Vec<u8>,
}

/// Where a boot loader that knows the tree puts an image of 2 MiB.
pub fn load_image(p: &Platform<'_>) -> Option<Region> {
    let mut taken: Vec<Region> = p.reserved.iter().map(|r| r.region.pages()).collect();
    taken.extend(p.cpus.iter().filter_map(|c| Region::new(c.release?, 8)).map(Region::pages));
    taken.extend(p.kernel.into_iter().chain(p.ramdisk).map(Region::pages));
    find_free(&p.ram, &taken, 2 * MIB, 2 * MIB, PAGE)
}

pub fn own(image: Region, tree: &[u8]) -> Own {
    // The tree itself is in no one's way: in flash, say.
    let tree = Region { base: 0xff_f000_0000, size: tree.len() as u64 };
    let guard = |base| Region { base, size: PAGE };
    Own { image, tree, cpu_area: CPU_AREA, cpu_guards: [guard(0), guard(0x1_1000)] }
}

/// Everything that boot does with a tree. An error is a refusal, in the words that a person would read.
pub fn boot(tree: &[u8], p: &Platform<'_>, own: Own) -> Result<Placed, String> {
    let mut layout = Layout::new(p, &own).map_err(|refusal| refusal.to_string())?;
    let kernel = p.kernel.map(|module| layout.place_kernel(module, KERNEL)).transpose();
    let kernel = kernel.map_err(|refusal| refusal.to_string())?;
    let place = layout.place_tree((tree.len() + GROWTH) as u64).map_err(|refusal| refusal.to_string())?;
    let view = HostView { hidden: &layout.kept, ramdisk: p.ramdisk, interrupt: None };
    let mut host = vec![0xaa; tree.len() + GROWTH];
    let len = host_tree(tree, p, &view, &mut host).map_err(|why| why.to_string())?;
    host.truncate(len);
    let tree = Region { base: place.base, size: len as u64 };
    Ok(Placed { layout, own, kernel, tree, host })
}

fn overlaps_any(region: Region, others: impl IntoIterator<Item = Region>) -> Option<Region> {
    others.into_iter().find(|other| other.size > 0 && other.overlaps(region))
}

/// What must hold of every layout; `None` if it does.
pub fn wrong(p: &Platform<'_>, placed: &Placed) -> Option<String> {
    let Placed { layout, own, kernel, tree, .. } = placed;
    let [image, store] = layout.kept;
    let reserved: Vec<Region> = p.reserved.iter().map(|r| r.region).collect();
    let releases: Vec<Region> = p.cpus.iter().filter_map(|c| Region::new(c.release?, 8)).collect();
    let modules: Vec<Region> = p.kernel.into_iter().chain(p.ramdisk).collect();
    if image != own.image {
        return Some("the image is not kept".into());
    }
    let ours: Vec<Region> = [image, store, *tree].into_iter().chain(*kernel).collect();
    for region in &ours[1..] {
        // A kernel that stays where it is lies over its own module.
        let stays = p.kernel.filter(|module| *kernel == Some(*region) && module.base == region.base);
        let modules = modules.iter().copied().filter(|m| Some(*m) != stays);
        let more = ours.iter().copied().filter(|other| other != region);
        let others = more.chain(reserved.clone()).chain(releases.clone()).chain(modules);
        if let Some(other) = overlaps_any(*region, others) {
            return Some(format!("{region:x?} lies over {other:x?}"));
        }
        if region.base == 0 || !p.ram.iter().any(|bank| bank.contains(*region)) {
            return Some(format!("{region:x?} is not in RAM"));
        }
    }
    if kernel.is_some_and(|kernel| !kernel.base.is_multiple_of(2 * MIB))
        || !tree.base.is_multiple_of(2 * MIB)
        || !store.base.is_multiple_of(2 * PAGE)
    {
        return Some("alignment".into());
    }
    let frames: u64 = layout.ram.iter().map(|bank| bank.size / PAGE).sum();
    let parts = layout.store;
    if parts.words.size < frames * 8 || parts.cpus.size < CPU_AREA * (p.cpus.len() as u64 - 1) {
        return Some("the store is too small".into());
    }
    let order = [parts.root, parts.words, parts.cpus, parts.tables, parts.pool];
    if order.windows(2).any(|w| w[0].end() != w[1].base)
        || order[0].base != store.base
        || parts.pool.end() != store.end()
    {
        return Some("the parts of the store do not follow one another".into());
    }
    wrong_banks(p, layout).or_else(|| wrong_host(p, placed))
}

fn wrong_banks(p: &Platform<'_>, layout: &Layout) -> Option<String> {
    let aligned = |r: &Region| r.base.is_multiple_of(PAGE) && r.size.is_multiple_of(PAGE) && r.size > 0;
    if !layout.ram.iter().all(aligned) || layout.ram.windows(2).any(|w| w[0].end() >= w[1].base) {
        return Some(format!("banks {:x?}", layout.ram));
    }
    // EL2 maps nothing that firmware keeps, but for spin tables.
    let is_release = |r: Region| {
        p.cpus.iter().any(|c| c.release.is_some_and(|at| r.contains(Region { base: at, size: 8 })))
    };
    for keep in layout.firmware.iter().filter(|f| !is_release(**f)) {
        let reach = layout.reach.iter().copied().filter(|r| !(r.size == PAGE && is_release(*r)));
        if let Some(reach) = overlaps_any(*keep, reach) {
            return Some(format!("EL2 maps {reach:x?} over the firmware's {keep:x?}"));
        }
    }
    if let Some(reach) = overlaps_any(layout.kept[0], layout.reach.iter().copied()) {
        return Some(format!("EL2 maps {reach:x?} over its image"));
    }
    None
}

/// The host's tree, seen by our own reader and by the two libraries.
fn wrong_host(p: &Platform<'_>, placed: &Placed) -> Option<String> {
    let host = &placed.host;
    if let Err(why) = check(host) {
        return Some(format!("the host's tree is malformed: {why:?}"));
    }
    let q = match read::read(host) {
        Ok(q) => q,
        Err(why) => return Some(format!("the host's tree cannot be read: {why}")),
    };
    for kept in placed.layout.kept {
        if !q.reserved.iter().any(|r| r.region == kept && r.claim == Claim::NoMap) {
            return Some(format!("the host is not told to leave {kept:x?} alone"));
        }
    }
    if q.ram != p.ram || q.cpus.len() != p.cpus.len() || q.wishes != p.wishes || q.psci.is_none() {
        return Some("the host's tree says something else of RAM, CPUs, or PSCI".into());
    }
    if !placed.layout.crowded
        && let Some(wish) = unplaced(&q, placed)
    {
        return Some(format!("no place left for a reservation of {wish:#x} bytes"));
    }
    match fdt::Fdt::new(host) {
        Err(why) => Some(format!("fdt: {why}")),
        Ok(other) if other.find_node("/hypervisor").is_none() => Some("fdt: no /hypervisor".into()),
        Ok(_) => None,
    }
}

/// The size of a reservation that the host would find no place for.
fn unplaced(q: &Platform<'_>, placed: &Placed) -> Option<u64> {
    let mut taken: Vec<Region> = q.reserved.iter().map(|r| r.region).collect();
    taken.extend(q.ramdisk.into_iter().chain(placed.kernel).chain([placed.tree]));
    for wish in &q.wishes {
        let within = |bank: &Region| match &wish.within[..] {
            [] => vec![*bank],
            ranges => ranges.iter().map(|r| r.common(*bank)).filter(|r| r.size > 0).collect(),
        };
        let banks: Vec<Region> = q.ram.iter().flat_map(within).collect();
        match find_last(&banks, &taken, wish.size, wish.align) {
            Some(place) => taken.push(place),
            None => return Some(wish.size),
        }
    }
    None
}
