//! Stage-2 translation tables: descriptors, the guest's tables, the host's identity map.
//!
//! 4 KiB granule, three levels (1, 2, 3). A guest's tree has one root page (39 bits); the host's has two
//! concatenated ones (40 bits). Walks take no lock and are hints; the rules for using them stand in
//! [`crate::transition`].

pub mod blocks;
pub mod descriptor;
pub mod guest;
pub mod host;

pub use descriptor::{Attr, Descriptor, HostAttr};

use crate::addr::PAGE_SHIFT;

/// Bits of an address that one level of a table resolves: 4 KiB of entries. (Where the interleavings of whole blocks are
/// explored, `tests/small`, tables have eight entries, and all that is counted in blocks follows.)
pub const TABLE_BITS: u32 = if cfg!(small_tables) { 3 } else { 9 };

/// Bits of a guest physical address in the tables.
pub const GUEST_IPA_BITS: u32 = PAGE_SHIFT + 3 * TABLE_BITS;

/// Guest frames that a guest can use: the upper half of the space is kept for the shared alias of Arm's realm
/// interface.
pub const GUEST_FRAMES: u64 = 1 << (GUEST_IPA_BITS - 1 - PAGE_SHIFT);

/// Bits of a physical address that the host's identity map covers.
pub const HOST_IPA_BITS: u32 = GUEST_IPA_BITS + 1;

/// Entries of a table page.
pub const ENTRIES: u64 = 1 << TABLE_BITS;

/// Lowest level.
pub const LEAF_LEVEL: u32 = 3;

/// First level of both trees.
pub const ROOT_LEVEL: u32 = 1;

/// Frames that one entry of `level` covers: 2^18, 512, 1.
pub const fn frames_per_entry(level: u32) -> u64 {
    1 << (TABLE_BITS * (LEAF_LEVEL.saturating_sub(level)))
}

/// Index of a frame in a table of `level`, for a tree whose root has `root_entries` entries.
pub const fn index(frame: u64, level: u32) -> usize {
    let shifted = frame >> (TABLE_BITS * (LEAF_LEVEL.saturating_sub(level)));
    match level {
        ROOT_LEVEL => (shifted & (2 * ENTRIES - 1)) as usize,
        _ => (shifted & (ENTRIES - 1)) as usize,
    }
}
