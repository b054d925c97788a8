//! Who gets which part of memory: one pure decision, from the tree and from where the boot loader has put things.
//!
//! Tenure keeps the image, where it was loaded, and one more stretch ("the store") as near behind it as there is room:
//! the host's root table, the page words, the other CPUs' areas, EL2's table pages, and the first pages of the host's
//! stage-2 pool. Then the host's kernel and device tree are placed. All else of RAM is the host's.
//!
//! What must hold of every layout, and is tested on generated and on real trees:
//! - what is kept or placed lies in RAM that an operating system may use, and touches no reservation, no module, no spin
//!   table, nor anything else that is kept or placed;
//! - each whole page of RAM has exactly one word, and the store has room for all of them;
//! - EL2 maps RAM but for what firmware and devices keep, guard pages and its image (which is mapped already, tighter);
//! - reservations that the host is to place still find a place, where there is one at all.

use arrayvec::ArrayVec;

mod kernel;
mod own;
mod tables;

pub use kernel::KernelHeader;
pub use own::{Own, Store};

use crate::place::{find_free, find_last, without};
use crate::platform::{
    Claim, Gic, MAX_CPUS, MAX_RAM, MAX_RESERVED, MAX_WISHES, MAX_WITHIN, Platform, Region, Reserved, Wish,
};
use crate::refusal::{Refusal, Why};

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// What the host's device tree and kernel start at a multiple of.
pub(crate) const BLOCK: u64 = 2 << 20;
/// What a kernel needs beyond its file, and more (Debian's 6.12: 1 MiB).
const KERNEL_TAIL: u64 = 16 << 20;
/// Ranges that are taken before the host is placed: reservations, spin tables, and what the boot loader and we put there.
const MAX_TAKEN: usize = MAX_RESERVED + MAX_CPUS + 8;
/// Ranges whose frames are the firmware's, and ranges that EL2 maps.
const MAX_PIECES: usize = 2 * (MAX_RESERVED + MAX_CPUS);

/// Who has which part of memory at boot.
#[derive(Clone, Debug)]
pub struct Layout {
    /// RAM, in whole pages, sorted: a word for each.
    pub ram: ArrayVec<Region, MAX_RAM>,
    /// RAM that stays the firmware's or a device's: the host may go on using it as the tree says, nobody donates it.
    pub firmware: ArrayVec<Region, MAX_PIECES>,
    /// What EL2 maps, readable and writable, beside its image.
    pub reach: ArrayVec<Region, MAX_PIECES>,
    /// What Tenure keeps: the image and the store.
    pub kept: [Region; 2],
    /// The parts of the store.
    pub store: Store,
    /// A reservation that the host is to place found no place even before Tenure took its own memory, or finds none now.
    pub crowded: bool,
    taken: ArrayVec<Region, MAX_TAKEN>,
    wishes: ArrayVec<Wish, MAX_WISHES>,
    wished: ArrayVec<Region, MAX_WISHES>,
    ramdisk: Option<Region>,
    /// Behind the kernel's module, where it can run if it has room for its `.bss`: a copy costs time.
    kernel_tail: Region,
}

impl Layout {
    /// Decides where Tenure's own memory is.
    ///
    /// # Errors
    /// What stands in the way: the node and the property that say so.
    pub fn new<'a>(platform: &Platform<'a>, own: &Own) -> Result<Self, Refusal<'a>> {
        check_loaded(platform, own)?;
        let mut taken: ArrayVec<Region, MAX_TAKEN> = ArrayVec::new();
        let loaded = [Some(own.image), Some(own.tree), platform.kernel, platform.ramdisk];
        let claimed = platform.reserved.iter().map(|r| r.region).chain(releases(platform));
        for region in loaded.into_iter().flatten().chain(claimed) {
            taken.try_push(region.pages()).map_err(|_| too_many())?;
        }
        let wished = wished(&platform.ram, &platform.wishes, &taken);
        let firmware = firmware(platform)?;
        let mut layout = Self {
            ram: platform.ram.clone(),
            firmware,
            reach: ArrayVec::new(),
            kept: [own.image, own.image],
            store: Store::default(),
            crowded: wished.len() < platform.wishes.len(),
            taken,
            wishes: platform.wishes.clone(),
            wished,
            ramdisk: platform.ramdisk,
            kernel_tail: platform
                .kernel
                .map_or(Region::default(), |k| Region { base: k.end(), size: KERNEL_TAIL }),
        };
        layout.place_store(platform, own)?;
        Ok(layout)
    }

    /// Cuts the store out of RAM, behind the image if there is room.
    fn place_store<'a>(&mut self, platform: &Platform<'a>, own: &Own) -> Result<(), Refusal<'a>> {
        // How many tables there must be depends on what is mapped, which depends a little on where the store is: with
        // the greatest number that any place can need, the size is known first.
        let size = Store::at(0, platform, own, &self.firmware).whole().size;
        let place = self.free(size, 2 * PAGE, own.image.end()).or_else(|| self.free(size, 2 * PAGE, 0));
        let place = place.ok_or(Refusal::new("memory", "reg", Why::NoRoom(size)))?;
        self.take(place)?;
        self.kept = [own.image, place];
        self.store = Store::at(place.base, platform, own, &self.firmware);
        self.map(platform, own)
    }

    /// What EL2 maps.
    fn map<'a>(&mut self, platform: &Platform<'a>, own: &Own) -> Result<(), Refusal<'a>> {
        let mut holes: ArrayVec<Region, { MAX_PIECES + 2 * MAX_CPUS + 1 }> = ArrayVec::new();
        // As many as there is room for, by the sizes of the types.
        holes.extend(self.firmware.iter().copied());
        holes.push(own.image);
        for base in (self.store.cpus.base..self.store.cpus.end()).step_by(own.cpu_area.max(1) as usize) {
            for guard in own.cpu_guards {
                holes.try_push(Region { base: base + guard.base, ..guard }).map_err(|_| too_many())?;
            }
        }
        for bank in &self.ram {
            without(*bank, &holes, &mut self.reach).map_err(|_| too_many())?;
        }
        // The CPUs of a spin table are let go through these, wherever they are.
        for page in releases(platform).map(Region::pages) {
            if !self.reach.iter().any(|r| r.contains(page)) {
                self.reach.try_push(page).map_err(|_| too_many())?;
            }
        }
        Ok(())
    }

    /// A free stretch; rather one where neither the kernel's `.bss` nor the host's own reservations want to go.
    fn free(&mut self, size: u64, align: u64, from: u64) -> Option<Region> {
        // Page 0 is not used: an address of 0 means "none" in too many places.
        let from = from.max(PAGE);
        let mut avoid: ArrayVec<Region, { MAX_TAKEN + MAX_WISHES + 1 }> =
            self.taken.iter().copied().collect();
        avoid.extend(self.wished.iter().copied());
        let beside_wishes = avoid.len();
        avoid.push(self.kernel_tail);
        for avoid in [&avoid[..], &avoid[..beside_wishes]] {
            if let Some(place) = find_free(&self.ram, avoid, size, align, from) {
                return Some(place);
            }
        }
        let place = find_free(&self.ram, &self.taken, size, align, from);
        self.crowded |= place.is_some();
        place
    }

    /// Whether the host's own reservations would find as much room with `region` taken; they are moved then.
    fn fits_beside_wishes(&mut self, region: Region) -> bool {
        let mut taken: ArrayVec<Region, { MAX_TAKEN + 1 }> = self.taken.iter().copied().collect();
        taken.push(region);
        let wished = wished(&self.ram, &self.wishes, &taken);
        let fits = wished.len() >= self.wished.len();
        if fits {
            self.wished = wished;
        }
        fits
    }

    fn take<'a>(&mut self, region: Region) -> Result<(), Refusal<'a>> {
        self.taken.try_push(region.pages()).map_err(|_| too_many())
    }

    /// Decides where the host's device tree of `size` bytes goes: the start of 2 MiB of its own, as the boot protocol
    /// likes it best.
    ///
    /// # Errors
    /// There is no room, or it is longer than Linux would map (2 MiB).
    pub fn place_tree<'a>(&mut self, size: u64) -> Result<Region, Refusal<'a>> {
        let no_room = Refusal::new("memory", "reg", Why::NoRoom(size));
        let place = self.free(size, BLOCK, 0).filter(|_| size <= BLOCK).ok_or(no_room)?;
        self.take(place)?;
        Ok(place)
    }
}

fn too_many<'a>() -> Refusal<'a> {
    Refusal::new("reserved-memory", "reg", Why::TooMany)
}

/// Where the CPUs of spin tables look for their entry point.
fn releases(platform: &Platform<'_>) -> impl Iterator<Item = Region> {
    platform.cpus.iter().filter_map(|cpu| Region::new(cpu.release?, 8))
}

/// The reservations that the host is to place, placed as Linux does it: from the top.
fn wished(ram: &[Region], wishes: &[Wish], taken: &[Region]) -> ArrayVec<Region, MAX_WISHES> {
    let mut all: ArrayVec<Region, { MAX_TAKEN + MAX_WISHES }> = taken.iter().copied().collect();
    let mut placed = ArrayVec::new();
    for wish in wishes {
        let mut banks: ArrayVec<Region, { MAX_WITHIN * MAX_RAM }> = ArrayVec::new();
        for bank in ram {
            if wish.within.is_empty() {
                banks.push(*bank);
            }
            banks.extend(wish.within.iter().map(|range| range.common(*bank)).filter(|r| r.size > 0));
        }
        if let Some(place) = find_last(&banks, &all, wish.size, wish.align) {
            // One for each wish at the most.
            placed.push(place);
            all.push(place);
        }
    }
    placed
}

/// RAM that stays the firmware's or a device's. Modules that the boot loader has listed as reserved are the host's
/// nevertheless: it frees them when it has read them.
fn firmware<'a>(platform: &Platform<'a>) -> Result<ArrayVec<Region, MAX_PIECES>, Refusal<'a>> {
    let modules: ArrayVec<Region, 2> =
        [platform.kernel, platform.ramdisk].into_iter().flatten().map(Region::pages).collect();
    let mut pieces = ArrayVec::new();
    for reserved in platform.reserved.iter().filter(|r| r.claim != Claim::Reusable) {
        for bank in &platform.ram {
            let part = reserved.region.pages().common(*bank);
            without(part, &modules, &mut pieces).map_err(|_| too_many())?;
        }
    }
    for release in releases(platform).map(Region::pages) {
        if platform.ram.iter().any(|bank| bank.contains(release)) && !pieces.contains(&release) {
            pieces.try_push(release).map_err(|_| too_many())?;
        }
    }
    Ok(pieces)
}

/// What the boot loader has put in memory must lie in usable RAM, and nothing over anything else.
fn check_loaded<'a>(platform: &Platform<'a>, own: &Own) -> Result<(), Refusal<'a>> {
    let is_ram = |region: Region| {
        let lies = |r: &Reserved<'_>| r.region.overlaps(region);
        let forbidden = |r: &&Reserved<'_>| matches!(r.claim, Claim::NoMap | Claim::Unusable);
        // Page 0 would be a null pointer.
        region.base >= PAGE
            && platform.ram.iter().any(|bank| bank.contains(region))
            && !platform.reserved.iter().filter(forbidden).any(lies)
    };
    if !platform.ram.iter().any(|bank| bank.contains(own.image)) {
        return Err(Refusal::new("memory", "reg", Why::NotInRam(own.image.base)));
    }
    // What the reservation block lists may be the boot loader's own list of what it has loaded.
    let claims = platform.reserved.iter().filter(|r| r.claim != Claim::Listed);
    if let Some(claim) = claims.clone().find(|r| r.region.overlaps(own.image)) {
        return Err(Refusal::new(claim.node, "reg", Why::Overlaps("Tenure's image")));
    }
    let modules = [
        ("multiboot,kernel", "reg", platform.kernel),
        ("multiboot,ramdisk or linux,initrd-start", "reg", platform.ramdisk),
    ];
    let mut others: ArrayVec<(Region, &'static str), 3> = ArrayVec::new();
    others.push((own.image, "Tenure's image"));
    for (node, property, region) in modules {
        let Some(region) = region else { continue };
        if !is_ram(region) {
            return Err(Refusal::new(node, property, Why::NotInRam(region.base)));
        }
        if let Some((_, what)) = others.iter().find(|(other, _)| other.overlaps(region)) {
            return Err(Refusal::new(node, property, Why::Overlaps(what)));
        }
        others.push((region, "the kernel"));
    }
    if own.image.overlaps(own.tree) {
        return Err(Refusal::new("/", "", Why::Overlaps("Tenure's image")));
    }
    if releases(platform).any(|release| release.overlaps(own.image)) {
        return Err(Refusal::new("cpu", "cpu-release-addr", Why::Overlaps("Tenure's image")));
    }
    Ok(())
}

/// Frames of a GICv2 that the host loses.
pub fn hidden_frames(gic: Gic) -> impl Iterator<Item = Region> {
    let frames = match gic {
        Gic::V2 { gich, gicv } => [gich, gicv],
        Gic::V3 | Gic::None => [None, None],
    };
    frames.into_iter().flatten().map(Region::pages)
}
