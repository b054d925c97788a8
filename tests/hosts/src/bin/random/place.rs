//! Numbers of frames and of guest addresses, by which steps name places.
//!
//! Frames: the arena, then the blocks, which follow it in memory, then the far frames, each in a block of the host's of its own,
//! then the run pages. Addresses: a narrow window over the end of a level-3 table, then a wide one, of some pages and the blocks
//! behind them. The arena runs into the first block of frames as the wide window's first pages do into its blocks, so that one
//! donation can have pages before a block.

use tenure_test_hosts::vm::{FREE_GFN, RAM_GFN};

/// Pages of a block of 2 MiB.
pub const BLOCK: u64 = 512;
/// Frames of the arena.
pub const FRAMES: u64 = 96;
/// Blocks of frames. One is enough to be spoilt by poison: the last.
pub const BLOCKS: u64 = 3;
/// Frames of the arena and the blocks.
pub const ALL: u64 = FRAMES + BLOCKS * BLOCK;
/// Far frames: more blocks than the hypervisor leaves split for a while.
pub const FAR: u64 = 10;
/// Number of the first run page.
pub const RUN: u64 = ALL + FAR;

/// Addresses of the narrow window.
pub const GFNS: u64 = 40;
/// The first of them: a level-3 table ends in the middle of them.
pub const GFN: u64 = (FREE_GFN / BLOCK + 1) * BLOCK - GFNS / 2;
/// Pages of the wide window before its blocks.
pub const AHEAD: u64 = 32;
/// Blocks of addresses.
pub const GFN_BLOCKS: u64 = 4;
/// Addresses of the wide window.
pub const WIDE: u64 = AHEAD + GFN_BLOCKS * BLOCK;
/// The first of them.
pub const WIDE_GFN: u64 = RAM_GFN + 4 * BLOCK - AHEAD;
/// Addresses of both windows.
pub const ALL_GFNS: u64 = GFNS + WIDE;

/// Number of a place in a block of frames.
pub const fn frame_in(block: u64, place: u64) -> u64 {
    FRAMES + block % BLOCKS * BLOCK + place % BLOCK
}

/// Number of a place in a block of addresses.
pub const fn address_in(block: u64, place: u64) -> u64 {
    GFNS + AHEAD + block % GFN_BLOCKS * BLOCK + place % BLOCK
}

/// Whether an address is one of the wide window's.
pub const fn is_wide(number: u64) -> bool {
    number >= GFNS
}

/// The address of a number.
pub const fn address(number: u64) -> u64 {
    if is_wide(number) { WIDE_GFN + (number - GFNS) } else { GFN + number }
}

/// The number of an address, if it is in a window.
pub const fn number_of(gfn: u64) -> Option<u64> {
    if gfn >= GFN && gfn < GFN + GFNS {
        Some(gfn - GFN)
    } else if gfn >= WIDE_GFN && gfn < WIDE_GFN + WIDE {
        Some(GFNS + (gfn - WIDE_GFN))
    } else {
        None
    }
}

/// Addresses from a number on to the end of its window.
pub const fn left(number: u64) -> u64 {
    if is_wide(number) { ALL_GFNS - number } else { GFNS - number }
}
