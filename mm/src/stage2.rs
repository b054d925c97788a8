//! Stage-2 translation tables: descriptors, the guest's tables, the host's identity map.
//!
//! 4 KiB granule, three levels (1, 2, 3). A guest's tree has one root page (39 bits); the host's has two
//! concatenated ones (40 bits). Walks take no lock and are hints; the rules for using them stand in
//! [`crate::transition`].

pub mod blocks;
pub mod descriptor;
pub mod guest;
pub mod host;

pub use descriptor::{Attr, Descriptor};

/// Bits of a guest physical address in the tables.
pub const GUEST_IPA_BITS: u32 = 39;

/// Guest frames that a guest can use: the upper half of the space is kept for the shared alias of Arm's realm
/// interface.
pub const GUEST_FRAMES: u64 = 1 << (GUEST_IPA_BITS - 1 - 12);

/// Bits of a physical address that the host's identity map covers.
pub const HOST_IPA_BITS: u32 = 40;

/// Entries of a table page.
pub const ENTRIES: u64 = 512;

/// Lowest level.
pub const LEAF_LEVEL: u32 = 3;

/// First level of both trees.
pub const ROOT_LEVEL: u32 = 1;

/// Frames that one entry of `level` covers: 2^18, 512, 1.
pub const fn frames_per_entry(level: u32) -> u64 {
    1 << (9 * (LEAF_LEVEL.saturating_sub(level)))
}

/// Index of a frame in a table of `level`, for a tree whose root has `root_entries` entries.
pub const fn index(frame: u64, level: u32) -> usize {
    let shifted = frame >> (9 * (LEAF_LEVEL.saturating_sub(level)));
    match level {
        ROOT_LEVEL => (shifted & 1023) as usize,
        _ => (shifted & 511) as usize,
    }
}
