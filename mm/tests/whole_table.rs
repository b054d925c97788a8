//! S1 at the manager: every call by every caller on a frame in every state, beside the reference model.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

mod world;

use tenure_abi::flags::{pin, status, unshare, vm as vm_flags};
use tenure_abi::{Reply, Status};
use tenure_mm::Pfn;
use world::{Layout, World};

const PROTECTED: u64 = vm_flags::PROTECTED | vm_flags::RIGHT_REVOKE;
const PLAIN: u64 = vm_flags::RIGHT_REVOKE;

type Preparation = fn(&mut World) -> Pfn;

/// What a frame can be, and the VM that has to do with it: 0 is protected and active, 1 is plain.
const STATES: [(&str, Preparation); 17] = [
    ("Host", |world| world.frame(60)),
    ("Host, pinned", |world| with(world, 60, |world, page| world.pin_cpu(page))),
    ("Host, pinned by a device", |world| with(world, 60, |world, page| world.pin(page, 1, pin::DMA))),
    ("Host, in use by EL2", |world| with(world, 60, |world, page| assert!(world.hyp_pin(page, true)))),
    ("Host, mapped by a plain VM", |world| with(world, 60, |world, page| world.guest_map(1, 100, page, 1))),
    ("Host, with a DMA leaf", |world| with(world, 60, |world, page| assert!(world.dma_map(page)))),
    ("Private", |world| world.frame(8)),
    ("Private, redirected", |world| with_shared(world, |world, _| world.unshare(0, 0, 1, unshare::REVOKE))),
    ("Shared", |world| with_shared(world, |_, _| ())),
    ("Shared, mapped by the host", |world| with_shared(world, |world, page| world.host_read(page))),
    ("Shared and pinned", |world| with_shared(world, |world, page| world.pin_cpu(page))),
    ("Shared, without a guest leaf", |world| with_shared(world, |world, _| world.guest_unmap(0, 0, 1))),
    ("Draining", |world| {
        with_shared(world, |world, page| {
            world.pin_cpu(page);
            world.unshare(0, 0, 1, unshare::DRAIN);
        })
    }),
    ("Quarantine", |world| {
        with_shared(world, |world, page| {
            world.pin_cpu(page);
            world.relinquish(0, 0, 1);
        })
    }),
    ("Hyp", |world| world.frame(0)),
    ("Poison", |world| with(world, 60, |world, page| world.poison(page))),
    ("the plain VM's", |world| world.frame(32)),
];

fn with<R>(world: &mut World, number: u64, act: impl FnOnce(&mut World, Pfn) -> R) -> Pfn {
    let page = world.frame(number);
    act(world, page);
    page
}

fn with_shared<R>(world: &mut World, act: impl FnOnce(&mut World, Pfn) -> R) -> Pfn {
    world.share(0, 0, 1);
    with(world, 8, act)
}

type Operation = fn(&mut World, usize, u64, Pfn) -> Option<Reply>;

/// What a caller can do to a frame, or to the address at which it stands.
const OPERATIONS: [(&str, Operation); 26] = [
    ("SHARE", |world, vm, gfn, _| world.share(vm, gfn, 1)),
    ("UNSHARE", |world, vm, gfn, _| world.unshare(vm, gfn, 1, 0)),
    ("UNSHARE, DRAIN", |world, vm, gfn, _| world.unshare(vm, gfn, 1, unshare::DRAIN)),
    ("UNSHARE, REVOKE", |world, vm, gfn, _| world.unshare(vm, gfn, 1, unshare::REVOKE)),
    ("UNSHARE, ZERO", |world, vm, gfn, _| world.unshare(vm, gfn, 1, unshare::ZERO)),
    ("consent", |world, vm, gfn, _| world.consent(vm, gfn, 1, 0)),
    ("RELINQUISH", |world, vm, gfn, _| world.relinquish(vm, gfn, 1)),
    ("DONATE, private", |world, vm, _, page| world.donate(vm, 8, page, 1, status::PRIVATE)),
    ("DONATE, shared", |world, vm, _, page| world.donate(vm, 12, page, 1, status::SHARED)),
    ("DONATE, in its place", |world, vm, gfn, page| world.donate(vm, gfn, page, 1, status::PRIVATE)),
    ("RECLAIM", |world, vm, _, page| world.reclaim(vm, page, 1)),
    ("GUEST_MAP", |world, vm, _, page| world.guest_map(vm, 200, page, 1)),
    ("GUEST_MAP, in its place", |world, vm, gfn, page| world.guest_map(vm, gfn, page, 1)),
    ("GUEST_UNMAP", |world, vm, gfn, _| world.guest_unmap(vm, gfn, 1)),
    ("CONVERT, private", |world, vm, gfn, _| world.convert(vm, gfn, 1, status::PRIVATE)),
    ("CONVERT, shared", |world, vm, gfn, _| world.convert(vm, gfn, 1, status::SHARED)),
    ("SET_STATUS", |world, vm, gfn, _| world.set_status(vm, gfn, 1, status::SHARED)),
    ("POOL_TOPUP of a VM", |world, vm, _, page| world.topup(Some(vm), page, 1)),
    ("POOL_TOPUP of the host", |world, _, _, page| world.topup(None, page, 1)),
    ("PIN", |world, _, _, page| Some(world.pin_cpu(page))),
    ("PIN, DMA", |world, _, _, page| Some(world.pin(page, 1, pin::DMA))),
    ("UNPIN", |world, _, _, page| Some(world.unpin_cpu(page).reply)),
    ("UNPIN, DMA", |world, _, _, page| Some(world.unpin(page, 1, pin::DMA).reply)),
    ("HOST_MAP", |world, _, _, page| Some(world.host_map(page, 1))),
    ("HOST_UNMAP", |world, _, _, page| Some(world.host_unmap(page, 1))),
    ("POISON", |world, _, _, page| Some(world.poison(page))),
];

/// The answers are the model's (the world compares), and what is refused leaves no trace: no word, no
/// table, no translation, no contents. That a frame is somebody else's is one of the states.
#[test]
fn every_call_by_every_caller_on_every_state_succeeds_or_changes_nothing() {
    let fresh = || {
        let mut world = World::new(Layout { frames: 64, ..Layout::default() });
        world.furnish(0, PROTECTED, 0);
        world.furnish(1, PLAIN, 24);
        world.share(0, 12, 1);
        world.share(1, 12, 1);
        world
    };
    let (mut refused, mut done) = (0, 0);
    for (state, prepare) in STATES {
        let mut world = fresh();
        let mut page = prepare(&mut world);
        for (operation, act) in OPERATIONS {
            for vm in 0..2 {
                let words = |world: &World| -> Vec<u64> {
                    world.model.frames.keys().map(|pfn| world.word(Pfn(*pfn)).raw()).collect()
                };
                let (before, model) = (words(&world), world.model.clone());
                world.fake().reset_log();
                let reply = act(&mut world, vm, 0, page).unwrap();
                if matches!(reply.status, Status::Success | Status::Pending) && reply.done > 0 {
                    done += 1;
                    world = fresh();
                    page = prepare(&mut world);
                    continue;
                }
                refused += 1;
                let what = format!("{operation} by VM {vm} on {state}: {reply}");
                let known = [Status::Denied, Status::Busy, Status::Retry, Status::Pending, Status::Poisoned];
                assert!(known.contains(&reply.status), "{what}");
                assert_eq!((words(&world), &world.model), (before, &model), "{what}");
                let counts = world.fake().counts();
                assert_eq!((counts.writes, counts.tlbis, counts.scrubs), (0, 0, 0), "{what}");
            }
        }
    }
    assert!(refused > 400 && done > 150, "{refused} refused, {done} done");
}
