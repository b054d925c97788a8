//! What somebody may do in one step.
//!
//! A step is chosen by its number alone and names places, not things: frame 17 of the arena, address 3 of VM 1. What is there
//! when it is taken decides what comes of it, so a run still makes sense when steps are left out of it (which is how a
//! failing run is made short).

use tenure_abi::flags::{inject, pin, status, unshare};

use crate::dice::Dice;
use crate::place::{self, AHEAD, ALL, BLOCK, BLOCKS, FAR, FRAMES, GFN_BLOCKS, GFNS};
use crate::world::VMS;

/// A step. `vm` counts VMs; `frame` and `gfn` are the numbers of [`crate::place`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the fields are the arguments of the calls")]
pub enum Op {
    Create {
        vm: usize,
        flags: u64,
    },
    Activate {
        vm: usize,
    },
    Destroy {
        vm: usize,
    },
    Reset,
    Topup {
        vm: Option<usize>,
        frame: u64,
        count: u64,
    },
    Drain {
        vm: Option<usize>,
        max: u64,
    },
    SetStatus {
        vm: usize,
        gfn: u64,
        count: u64,
        to: u64,
    },
    /// Without a `kind` it is what the first address's status says.
    Donate {
        vm: usize,
        gfn: u64,
        frame: u64,
        count: u64,
        kind: Option<u64>,
    },
    Reclaim {
        vm: usize,
        frame: u64,
        count: u64,
    },
    Convert {
        vm: usize,
        gfn: u64,
        count: u64,
        to: u64,
    },
    GuestMap {
        vm: usize,
        gfn: u64,
        frame: u64,
        count: u64,
    },
    GuestUnmap {
        vm: usize,
        gfn: u64,
        count: u64,
    },
    HostMap {
        frame: u64,
        count: u64,
    },
    HostUnmap {
        frame: u64,
        count: u64,
    },
    Pin {
        frame: u64,
        count: u64,
        kind: u64,
    },
    Unpin {
        frame: u64,
        count: u64,
        kind: u64,
    },
    Poison {
        frame: u64,
    },
    Query {
        vm: usize,
        gfn: u64,
        op: u64,
    },
    Touch {
        frame: u64,
        touch: Touch,
    },
    Guest {
        vm: usize,
        order: Order,
    },
    /// So many calls that bring a block of a VM's addresses nearer to being whole, or take one back that is half way.
    Furnish {
        vm: usize,
        furnish: Furnish,
    },
    /// A block of frames is made free, as far as the host can.
    Clear {
        block: u64,
    },
    /// A pool gives back all that it can.
    Dry {
        vm: Option<usize>,
    },
    /// The far frames go to a pool.
    Rove {
        vm: usize,
    },
    /// The host answers the exit that a guest waits at: a frame for a touched page, consent, an abort.
    Answer {
        vm: usize,
        frame: u64,
        how: u64,
    },
    Consent {
        vm: usize,
        off: u64,
    },
    Refuse {
        vm: usize,
        off: u64,
    },
    Inject {
        vm: usize,
        what: u64,
    },
}

/// How a block of addresses is furnished.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Furnish {
    /// The block of addresses.
    pub to: u64,
    /// The block of frames, where the addresses do not say which.
    pub from: u64,
    /// Calls.
    pub calls: u64,
    /// Pages that a call takes at most, where it goes page by page.
    pub most: u64,
    /// It is the host's own memory that is mapped, where the VM is a plain one.
    pub own: bool,
    /// If the block is whole: where a part of it goes, if one does.
    pub cut: Option<u64>,
}

/// How the host touches a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Touch {
    /// Load of 1, 2, 4 or 8 bytes of this word.
    Read(u64, u64),
    /// Load of a pair.
    Pair,
    /// Load exclusive.
    Exclusive,
    /// Store of this value to this word.
    Write(u64, u64),
    /// LDADD of this value to this word.
    Add(u64, u64),
    /// DC ZVA of the first bytes.
    Zero,
    /// Stores all over the page.
    Fill(u64),
    /// Stores to a word of every page of a block, a different one each.
    Litter(u64),
    /// Jump to it.
    Execute,
}

/// What a guest does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the fields are the arguments of the calls")]
pub enum Order {
    Share {
        gfn: u64,
        count: u64,
    },
    Unshare {
        gfn: u64,
        count: u64,
        flags: u64,
    },
    Relinquish {
        gfn: u64,
        count: u64,
    },
    StockShare {
        gfn: u64,
    },
    StockUnshare {
        gfn: u64,
    },
    Query {
        gfn: u64,
    },
    Read {
        gfn: u64,
        word: u64,
    },
    Write {
        gfn: u64,
        word: u64,
        value: u64,
    },
    Fill {
        gfn: u64,
        value: u64,
    },
    /// The value of most words is put in when the order is given.
    Check {
        gfn: u64,
        count: u64,
        value: u64,
    },
}

/// Mostly one or a few pages; now and then none, or more than there are.
fn count(dice: &mut Dice) -> u64 {
    match dice.below(40) {
        0..20 => 1,
        20..34 => 2 + dice.below(4),
        34..38 => 5 + dice.below(40),
        38 => 0,
        _ => u64::MAX,
    }
}

/// No more than `most`; what no call takes stays.
fn some(count: u64, most: u64) -> u64 {
    if count == u64::MAX { count } else { count.min(most) }
}

/// A frame and an address of the blocks, mostly at the same place of a block, and how many pages: often up to the block's end.
fn wide(dice: &mut Dice) -> (u64, u64, u64) {
    let place = match dice.below(8) {
        0 => 0,
        1 => BLOCK - 1 - dice.below(40),
        2 | 3 => dice.below(BLOCK / 16) * 16,
        _ => dice.below(BLOCK),
    };
    let other = if dice.once_in(4) { dice.below(BLOCK) } else { place };
    let count = match dice.below(32) {
        0..18 => count(dice),
        18..23 => 8 + dice.below(56),
        23..29 => BLOCK - place,
        29 => BLOCK,
        _ => 2 * BLOCK,
    };
    if dice.once_in(16) {
        // Some pages before a block, and the block.
        let ahead = 1 + dice.below(AHEAD - 1);
        return (FRAMES - ahead, GFNS + AHEAD - ahead, ahead + dice.below(2) * BLOCK);
    }
    // Most blocks of addresses stay clear of single pages: only there a block can be given whole.
    let (from, to) = (dice.below(BLOCKS), if dice.once_in(8) { dice.below(GFN_BLOCKS) } else { 0 });
    (place::frame_in(from, place), place::address_in(to, other), count)
}

fn unshare_flags(dice: &mut Dice) -> u64 {
    match dice.below(12) {
        0..4 => 0,
        4 | 5 => unshare::DRAIN,
        6 => unshare::DRAIN | unshare::WAIT,
        7 | 8 => unshare::REVOKE,
        9 => unshare::ZERO,
        10 => unshare::DRAIN | unshare::REVOKE,
        _ => dice.below(32),
    }
}

impl Op {
    /// The step of this number in the run of this seed.
    pub fn of(seed: u64, step: u64) -> Self {
        let dice = &mut Dice::new(seed, step);
        let vm = dice.below(VMS as u64) as usize;
        let other = if dice.once_in(3) { None } else { Some(vm) };
        let (frame, gfn, count) = if dice.once_in(4) {
            wide(dice)
        } else {
            // The run pages, which the hypervisor uses, and the far frames.
            let frame = match dice.below(16) {
                0 => ALL + dice.below(FAR + VMS as u64),
                _ => dice.below(FRAMES),
            };
            (frame, dice.below(GFNS), count(dice))
        };
        let kind = if dice.once_in(3) { pin::DMA } else { pin::CPU };
        let to = match dice.below(16) {
            0..8 => status::PRIVATE,
            8..15 => status::SHARED,
            _ => dice.below(8),
        };
        match dice.below(256) {
            0..6 => Self::Create { vm, flags: dice.below(4) },
            6 => Self::Activate { vm },
            7 if dice.once_in(16) => Self::Reset,
            7 => Self::Destroy { vm },
            8 => Self::Clear { block: dice.below(BLOCKS) },
            9..12 => {
                Self::Topup { vm: other, frame, count: if frame < FRAMES { count } else { some(count, 2) } }
            }
            12..15 => Self::Drain { vm: other, max: dice.below(10) },
            15..19 => Self::SetStatus { vm, gfn, count, to },
            19..43 => {
                let kind = if dice.once_in(4) { Some(to) } else { None };
                Self::Donate { vm, gfn, frame, count, kind }
            }
            43..51 => Self::Reclaim { vm, frame, count },
            51..58 => Self::Convert { vm, gfn, count, to },
            58..68 => Self::GuestMap { vm, gfn, frame, count },
            68..76 => Self::GuestUnmap { vm, gfn, count },
            76..80 => Self::HostMap { frame, count },
            80 => Self::Rove { vm },
            81 => Self::Dry { vm: other },
            82..90 => Self::HostUnmap { frame, count },
            90..99 => Self::Pin { frame, count: some(count, 40), kind },
            99..116 => Self::Unpin { frame, count, kind },
            116 => Self::Poison { frame },
            117..121 => Self::Query { vm, gfn, op: dice.below(4) },
            121..125 => Self::Clear { block: dice.below(BLOCKS) },
            125..137 => Self::Furnish { vm, furnish: Furnish::any(dice) },
            137..144 => Self::Touch { frame, touch: Touch::any(dice) },
            144..164 => Self::Answer { vm, frame, how: dice.below(8) },
            164..168 => Self::Consent { vm, off: dice.below(3) },
            168..170 => Self::Refuse { vm, off: dice.below(3) },
            170 => Self::Inject { vm, what: if dice.once_in(4) { 1 } else { inject::DATA_ABORT } },
            _ => Self::Guest { vm, order: Order::any(dice, gfn, count) },
        }
    }
}

impl Furnish {
    fn any(dice: &mut Dice) -> Self {
        Self {
            to: dice.below(GFN_BLOCKS),
            from: dice.below(BLOCKS),
            calls: 1 + if dice.once_in(2) { dice.below(40) } else { dice.below(6) },
            most: match dice.below(8) {
                0 => 1 + dice.below(32),
                1 | 2 => 31,
                _ => BLOCK,
            },
            own: dice.once_in(3),
            cut: dice.once_in(2).then(|| dice.below(BLOCK)),
        }
    }
}

impl Touch {
    fn any(dice: &mut Dice) -> Self {
        let word = dice.below(8);
        let value = dice.below(1 << 32) | 1 << 40;
        match dice.below(17) {
            16 => Self::Litter(value),
            0..5 => Self::Read(word, 1 << dice.below(4)),
            5 => Self::Pair,
            6 => Self::Exclusive,
            7..11 => Self::Write(word, value),
            11 => Self::Add(word, value),
            12 => Self::Zero,
            13 | 14 => Self::Fill(value),
            _ => Self::Execute,
        }
    }
}

impl Order {
    fn any(dice: &mut Dice, gfn: u64, count: u64) -> Self {
        let word = dice.below(8);
        let value = dice.below(1 << 32) | 1 << 41;
        match dice.below(32) {
            0..8 => Self::Share { gfn, count },
            8..16 => Self::Unshare { gfn, count, flags: unshare_flags(dice) },
            16 | 17 => Self::Relinquish { gfn, count },
            18 => Self::StockShare { gfn },
            19 | 20 => Self::StockUnshare { gfn },
            21 => Self::Query { gfn },
            22..25 => Self::Read { gfn, word },
            25..28 => Self::Write { gfn, word, value },
            28 | 29 => Self::Fill { gfn, value },
            _ => Self::Check { gfn, count, value: 0 },
        }
    }
}
