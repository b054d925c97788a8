//! A host or a guest that tries it on, and limits: each named after what must come of it.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

mod world;

use tenure_abi::flags::{pin, status, unshare, vm as vm_flags};
use tenure_abi::page::{self, State};
use tenure_abi::{Reply, Status, reply};
use tenure_mm::model::Touch;
use tenure_mm::{Gfn, GuestFault, HostFault, Pfn};
use world::{Layout, World};

const PROTECTED: u64 = vm_flags::PROTECTED | vm_flags::RIGHT_REVOKE;
const PLAIN: u64 = vm_flags::RIGHT_REVOKE;

/// Found by the random histories: the pool went home before the frames that no leaf shows.
#[test]
fn a_scrap_frame_goes_home_after_the_last_leaf_of_the_host_that_leads_to_it() {
    let mut world = World::with_guest(PLAIN);
    let page = world.frame(8);
    world.share(0, 0, 1);
    world.host_read(page);
    world.unshare(0, 0, 1, unshare::REVOKE);
    assert_eq!(world.touch(page, None), (Touch::Scrap, Some(0)));
    // A plain VM's private page may lose its guest leaf: nothing in the tables leads to it any more.
    assert_eq!(world.guest_unmap(0, 0, 1), Some(Reply::done(1)));
    world.destroy(0);
    assert_eq!(world.state(page), State::Host);
}

#[test]
fn a_holder_of_a_revoked_page_reads_nothing_of_it_after_the_vms_death() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.share(0, 0, 1);
    world.pin_cpu(page);
    world.unshare(0, 0, 1, unshare::REVOKE);
    world.guest(0, 0, Some(0x5ec)).unwrap();
    world.destroy(0);
    assert_eq!(world.state(page), State::Quarantine);
    assert_eq!(world.touch(page, None), (Touch::Frame, Some(0)));
    assert_eq!(world.unpin_cpu(page).released, 1);
}

#[test]
fn revoke_needs_the_right_and_unknown_flags_are_refused() {
    let mut world = World::with_guest(vm_flags::PROTECTED);
    world.share(0, 0, 1);
    assert_eq!(world.unshare(0, 0, 1, unshare::REVOKE), Some(Reply::refused(Status::Denied)));
    assert_eq!(world.unshare(0, 0, 1, 1 << 9), Some(Reply::refused(Status::Invalid)));
    assert_eq!(world.unshare(0, 0, 0, 0), Some(Reply::refused(Status::Invalid)));
}

#[test]
fn poison_is_final() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(20);
    assert_eq!(world.poison(page), Reply::done(1));
    assert_eq!(world.poison(page).status, Status::Poisoned);
    assert_eq!(world.donate(0, 8, page, 1, status::PRIVATE).unwrap().status, Status::Poisoned);
    assert_eq!(world.topup(Some(0), page, 1).unwrap().status, Status::Poisoned);
    assert_eq!(world.pin_cpu(page).status, Status::Poisoned);
    assert_eq!(world.touch(page, None), (Touch::Abort, None));
}

#[test]
fn counts_refuse_at_their_limit_and_an_unpin_without_a_pin_is_refused() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.share(0, 0, 1);
    for (kind, limit) in [(pin::CPU, page::CPU_PINS.max()), (pin::DMA, page::DMA_PINS.max())] {
        assert_eq!(world.unpin(page, 1, kind).reply.status, Status::Denied);
        (0..limit).for_each(|_| assert_eq!(world.pin(page, 1, kind), Reply::done(1)));
        assert_eq!(world.pin(page, 1, kind), Reply::blocked(Status::Busy, 0, reply::COUNT_LIMIT));
        (0..limit).for_each(|_| assert_eq!(world.unpin(page, 1, kind).reply, Reply::done(1)));
        assert_eq!(world.unpin(page, 1, kind).reply.status, Status::Denied);
    }
    assert_eq!(world.unshare(0, 0, 1, 0), Some(Reply::done(1)));
}

#[test]
fn repeated_faults_and_maps_change_no_count() {
    let mut world = World::with_guest(PLAIN);
    let (page, own) = (world.frame(8), world.frame(30));
    world.share(0, 0, 1);
    let word = |world: &mut World, pfn: Pfn| {
        assert_eq!(world.mm.host_fault(pfn.base(), Default::default()), HostFault::Resume);
        world.word(pfn)
    };
    let first = word(&mut world, page);
    world.touch(page, None);
    // Nothing is made anew, which would cost every CPU its translation.
    world.fake().reset_log();
    assert_eq!(word(&mut world, page), first);
    assert_eq!(world.host_map(page, 1), Reply::done(1));
    assert_eq!(word(&mut world, own), tenure_mm::Word::HOST);
    let vm = world.vm(0).unwrap();
    assert_eq!(world.mm.guest_fault(&vm, Gfn(0).base()), GuestFault::Resume);
    drop(vm);
    let counts = world.fake().counts();
    assert_eq!((counts.writes, counts.tlbis), (0, 0));
    assert_eq!(world.word(page), first);
    assert_eq!(world.guest_map(0, 100, own, 1), Some(Reply::done(1)));
    assert_eq!(world.guest_map(0, 100, own, 1).unwrap().status, Status::Denied);
    assert_eq!(world.word(own).guest_leaves(), 1);
    assert_eq!(world.donate(0, 8, own, 1, status::PRIVATE).unwrap().mask, reply::GUEST_LEAF);
}

#[test]
fn share_and_unshare_without_a_host_leaf_write_no_table_and_invalidate_nothing() {
    let mut world = World::with_guest(PROTECTED);
    world.fake().reset_log();
    world.share(0, 0, 1);
    world.unshare(0, 0, 1, 0);
    world.share(0, 0, 4);
    world.unshare(0, 0, 4, 0);
    let counts = world.fake().counts();
    assert_eq!((counts.writes, counts.tlbis, counts.dsbs, counts.scrubs), (0, 0, 0, 0));
}

#[test]
fn the_host_leaves_of_a_range_are_dropped_by_one_batch() {
    let mut world = World::with_guest(PROTECTED);
    world.share(0, 0, 4);
    (8..12).for_each(|number| assert_eq!(world.host_read(world.frame(number)), Some(0)));
    world.fake().reset_log();
    world.consent(0, 0, 4, 0);
    let counts = world.fake().counts();
    assert_eq!((counts.writes, counts.tlbis, counts.dsbs), (4, 5, 3));
}

#[test]
fn a_range_of_a_block_ends_as_the_same_range_page_by_page() {
    let run = |step: u64| {
        let mut world = World::new(Layout { frames: 1024, spare: 2, blocks: true });
        world.create(0, PROTECTED);
        world.topup(Some(0), world.frame(0), 4);
        world.set_status(0, 0, 64, status::PRIVATE);
        for at in (0..32).step_by(step as usize) {
            let reply = world.donate(0, at, world.frame(512 + at), step, status::PRIVATE);
            assert_eq!(reply, Some(Reply::done(step)));
        }
        world.activate(0);
        for at in (0..32).step_by(step as usize) {
            assert_eq!(world.share(0, at, step), Some(Reply::done(step)));
        }
        // Nothing outside the range was unmapped.
        assert_eq!(world.touch(world.frame(511), None).0, Touch::Frame);
        assert_eq!(world.touch(world.frame(544), None).0, Touch::Frame);
        let words = (0..1024).map(|number| world.word(world.frame(number))).collect::<Vec<_>>();
        world.destroy(0);
        words
    };
    assert_eq!(run(32), run(1));
}

#[test]
fn a_dead_vms_handle_is_never_valid_again() {
    let mut world = World::with_guest(PROTECTED);
    let dead = world.handles[&0];
    world.destroy(0);
    for round in 0..8 {
        world.create(round, PROTECTED);
        assert!(world.mm.vm(dead).is_err());
        assert_eq!(world.mm.vm_destroy(dead).reply.status, Status::Invalid);
        world.destroy(round);
    }
}
