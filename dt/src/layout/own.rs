//! What of Tenure itself the layout depends on, and the parts of the store.

use super::{PAGE, hidden_frames, releases, tables};
use crate::platform::{Platform, Region};

/// Pages of the host's stage-2 pool beyond its first map: for the blocks that first donations split. The driver tops
/// the pool up as it needs more.
const POOL_PAGES: u64 = 32;
/// Bytes of a page word.
const WORD: u64 = 8;

/// Tenure itself, as the boot loader left it.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    /// The running image with its `.bss`, in whole pages.
    pub image: Region,
    /// The board's device tree.
    pub tree: Region,
    /// Bytes of a CPU's area: stacks and data.
    pub cpu_area: u64,
    /// Pages of an area that are never mapped, relative to its start.
    pub cpu_guards: [Region; 2],
}

/// The parts of the store, in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Store {
    /// The host's root table, 8 KiB aligned.
    pub root: Region,
    /// The page words.
    pub words: Region,
    /// The areas of all CPUs but the boot CPU.
    pub cpus: Region,
    /// EL2's table pages.
    pub tables: Region,
    /// The first pages of the host's stage-2 pool.
    pub pool: Region,
}

impl Store {
    /// Cuts a stretch that starts at `base` into its parts; 8 KiB alignment of the root comes with that of `base`.
    pub(super) fn at(base: u64, platform: &Platform<'_>, own: &Own, firmware: &[Region]) -> Self {
        let after = |r: Region, size| Region { base: r.end(), size };
        let frames: u64 = platform.ram.iter().map(|bank| bank.size / PAGE).sum();
        let root = Region { base, size: 2 * PAGE };
        let words = after(root, (frames * WORD).next_multiple_of(PAGE));
        let cpus = after(words, own.cpu_area * (platform.cpus.len() as u64).saturating_sub(1));
        // Firmware's pieces, spin tables and the guards cut what EL2 maps, and the store has an early map of its own.
        let guards = 2 * platform.cpus.len() as u64;
        let holes = firmware.iter().chain(&platform.ram).chain([&own.image]).copied();
        let el2 = tables::for_edges(holes.chain(releases(platform).map(Region::pages))) + 4 * (guards + 1);
        let tables = after(cpus, el2 * PAGE);
        let so_far = Region::between(root.base, tables.end() + POOL_PAGES * PAGE);
        let hidden = [own.image, so_far].into_iter().chain(hidden_frames(platform.gic));
        let host = tables::for_edges(platform.ram.iter().copied()) + tables::for_pages(hidden);
        let pool = after(tables, (POOL_PAGES + host) * PAGE);
        Self { root, words, cpus, tables, pool }
    }

    /// From the first part to the last.
    pub fn whole(&self) -> Region {
        Region::between(self.root.base, self.pool.end())
    }
}
