//! A machine for blocks of 2 MiB.

use tenure_abi::Reply;
use tenure_abi::flags::{status, vm as flags};
use tenure_mm::stage2::guest::walk;
use tenure_mm::{Gfn, Pfn, audit};

use super::{Layout, World};

/// Pages of a block.
pub const BLOCK: u64 = 512;
/// Guest address of the blocks: the second 2 MiB.
pub const GFN: u64 = 512;
/// Scrubs that a call may make at most.
const SCRUBS: u64 = 48;

/// Two blocks of the host, and a tail of 64 frames; VM 0 with two blocks of private addresses, active.
pub fn world() -> World {
    furnished(&World::new, flags::PROTECTED | flags::RIGHT_REVOKE)
}

pub fn furnished(make: &dyn Fn(Layout) -> World, vm_flags: u64) -> World {
    let mut world = make(Layout { frames: 2 * BLOCK + 64, spare: 2, blocks: true });
    world.create(0, vm_flags);
    assert_eq!(world.topup(Some(0), world.frame(2 * BLOCK + 32), 12), Some(Reply::done(12)));
    assert_eq!(world.set_status(0, 0, 4 * BLOCK, status::PRIVATE), Some(Reply::done(4 * BLOCK)));
    assert_eq!(world.activate(0), Some(Reply::done(0)));
    world
}

/// Donates to the end. Returns the calls that it took.
pub fn donate(world: &mut World, vm: usize, gfn: u64, first: Pfn, count: u64) -> u64 {
    let (mut done, mut calls) = (0, 0);
    while done < count {
        let scrubs = world.fake().counts().scrubs;
        let kind = status::PRIVATE;
        let reply = world.donate(vm, gfn + done, first.offset(done), count - done, kind).unwrap();
        assert!(reply.is_success() && reply.done > 0, "{reply}");
        assert!(world.fake().counts().scrubs - scrubs <= SCRUBS, "a call has its bound");
        done += reply.done;
        calls += 1;
    }
    calls
}

pub fn level(world: &World, vm: usize, gfn: u64) -> u32 {
    let root = world.vm(vm).unwrap().root().unwrap();
    walk(world.fake(), root, Gfn(gfn)).level
}

pub fn host_level(world: &World, frame: Pfn) -> u32 {
    audit::host_descriptor(world.mm, frame).1
}
