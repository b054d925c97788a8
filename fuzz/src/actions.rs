//! Lists of actions: calls, faults and accesses, to the manager and to the reference model; all is compared after each.
//!
//! The first byte chooses the machine; then an action begins with its number and the CPU that takes it.

use tenure_abi::flags::{pin, status};

use crate::bytes::Bytes;
use crate::world::history::{Call, GFN, GFNS, furnished, run as play};
use crate::world::{Layout, World};

/// Actions of one list at most: a failure that needs more is found by fewer.
const LONGEST: usize = 80;

/// Plays a list.
///
/// # Panics
/// If the manager and the model differ, or a promise is broken.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let (frames, world): (u64, fn() -> World) = match bytes.below(4) {
        0 => (32, || furnished(Layout { frames: 32, ..Layout::default() })),
        1 => (20, || World::new(Layout { frames: 20, spare: 0, blocks: false })),
        2 => (32, || furnished(Layout { frames: 32, spare: 0, blocks: false })),
        _ => (48, || furnished(Layout { frames: 48, spare: 1, blocks: true })),
    };
    let mut history = Vec::new();
    while !bytes.is_empty() && history.len() < LONGEST {
        let cpu = bytes.below(4) as usize;
        history.push((cpu, call(&mut bytes, frames)));
    }
    if !history.is_empty() {
        let mut world = world();
        world.audit_every = 8;
        play(world, &history);
    }
}

fn count(bytes: &mut Bytes<'_>) -> u64 {
    match bytes.byte() {
        0 => 0,
        255 => u64::MAX,
        byte @ 240.. => u64::from(byte - 240) * 3,
        byte => u64::from(byte % 4) + 1,
    }
}

fn few(bytes: &mut Bytes<'_>) -> u64 {
    match bytes.byte() {
        0 => 0,
        255 => u64::MAX,
        byte => u64::from(byte % 8) + 1,
    }
}

fn to(bytes: &mut Bytes<'_>) -> u64 {
    match bytes.byte() % 8 {
        0..4 => status::PRIVATE,
        4..6 => status::SHARED,
        _ => bytes.below(7),
    }
}

fn call(bytes: &mut Bytes<'_>, frames: u64) -> Call {
    let number = bytes.below(28);
    let vm = |bytes: &mut Bytes<'_>| bytes.below(3) as usize;
    let gfn = |bytes: &mut Bytes<'_>| GFN + bytes.below(GFNS);
    let pfn = |bytes: &mut Bytes<'_>| bytes.below(frames + 1);
    let kind = |bytes: &mut Bytes<'_>| if bytes.byte().is_multiple_of(5) { pin::DMA } else { pin::CPU };
    let pool = |bytes: &mut Bytes<'_>| match bytes.below(4) {
        3 => None,
        vm => Some(vm as usize),
    };
    let value = |bytes: &mut Bytes<'_>| match bytes.byte() {
        0 => None,
        value => Some(u64::from(value)),
    };
    let b = bytes;
    match number {
        0 => Call::Create(vm(b), b.below(4)),
        1 => Call::Activate(vm(b)),
        2 => match b.below(4) {
            0 => Call::Rights(vm(b), b.below(5)),
            1 => Call::DestroyWhile(vm(b), pfn(b), b.below(6)),
            _ => Call::Destroy(vm(b)),
        },
        3 => Call::Topup(pool(b), pfn(b), b.below(4) + 1),
        4 => Call::DrainPool(pool(b), b.below(8) + 1),
        5 => Call::SetStatus(vm(b), gfn(b), few(b), to(b)),
        6 | 7 => Call::Donate(vm(b), gfn(b), pfn(b), few(b), to(b)),
        8 => Call::Reclaim(vm(b), pfn(b), count(b)),
        9 => Call::Convert(vm(b), gfn(b), few(b), to(b)),
        10 => Call::GuestMap(vm(b), gfn(b), pfn(b), few(b)),
        11 => Call::GuestUnmap(vm(b), gfn(b), few(b)),
        12 | 13 => Call::Share(vm(b), gfn(b), few(b)),
        14 | 15 => Call::Unshare(vm(b), gfn(b), few(b), b.below(32)),
        16 => Call::Consent(vm(b), gfn(b), few(b), b.below(32)),
        17 => Call::Relinquish(vm(b), gfn(b), few(b)),
        18 => Call::Guest(vm(b), gfn(b), value(b)),
        19 | 20 => Call::Host(pfn(b), value(b)),
        21 => Call::HostMap(pfn(b), count(b)),
        22 => Call::HostUnmap(pfn(b), count(b)),
        23 => Call::Pin(pfn(b), count(b), kind(b)),
        24 => Call::Unpin(pfn(b), count(b), kind(b)),
        25 => match b.below(4) {
            0 => Call::Poison(pfn(b)),
            on => Call::HypPin(pfn(b), on > 1),
        },
        26 => Call::DmaMap(pfn(b)),
        _ => Call::DmaUnmap(pfn(b)),
    }
}
