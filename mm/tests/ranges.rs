//! Calls over ranges: how far they go, what they name, and that they end where they end.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

mod world;

use tenure_abi::flags::{pin, query, status, unshare, vm as vm_flags};
use tenure_abi::page::State;
use tenure_abi::{Reply, Status, reply};
use tenure_mm::model::Touch;
use tenure_mm::{Gfn, Pfn};
use world::{Layout, World};

const PROTECTED: u64 = vm_flags::PROTECTED | vm_flags::RIGHT_REVOKE;
const PLAIN: u64 = vm_flags::RIGHT_REVOKE;

fn blocked(status: Status, first: u64, mask: u64) -> Option<Reply> {
    Some(Reply::blocked(status, first, mask))
}

/// U5.
#[test]
fn a_draining_page_in_a_range_answers_pending_with_its_index() {
    for at in 0..4 {
        let mut world = World::with_guest(PROTECTED);
        world.share(0, 0, 4);
        let page = world.frame(8 + at);
        world.pin_cpu(page);
        world.unshare(0, at, 1, unshare::DRAIN);
        let pending = blocked(Status::Pending, at, reply::CPU_PIN);
        assert_eq!(world.unshare(0, 0, 4, 0), pending);
        assert_eq!(world.consent(0, 0, 4, 0), pending);
        // With DRAIN the others are done, and the index says who is waited for.
        let waits = Reply { status: Status::Pending, done: 4, first: at, mask: reply::CPU_PIN };
        assert_eq!(world.unshare(0, 0, 4, unshare::DRAIN), Some(waits));
        assert_eq!(world.unshare(0, 0, 4, unshare::DRAIN), Some(waits), "again");
        for gfn in 0..4 {
            let state = if gfn == at { State::Draining } else { State::Private };
            assert_eq!(world.state(world.frame(8 + gfn)), state);
        }
        assert_eq!(world.unpin_cpu(page).drained, 1);
        assert_eq!(world.unshare(0, 0, 4, 0), Some(Reply::done(4)), "what is private counts as done");
    }
    // Addresses without a frame before it, and behind it, count.
    let mut world = World::with_guest(PROTECTED);
    world.share(0, 0, 8);
    assert_eq!(world.guest_unmap(0, 0, 2), Some(Reply::done(2)));
    world.pin_cpu(world.frame(8 + 2));
    world.pin_cpu(world.frame(8 + 3));
    let waits = Reply { status: Status::Pending, done: 8, first: 2, mask: reply::CPU_PIN };
    assert_eq!(world.unshare(0, 0, 8, unshare::DRAIN), Some(waits));
}

/// B3: what one entry of a table said of many addresses still holds for those beside the range.
#[test]
fn addresses_beside_a_range_keep_their_status() {
    let mut world = World::new(Layout::default());
    world.create(0, PROTECTED);
    world.topup(Some(0), world.frame(0), 8);
    world.set_status(0, 512, 512, status::PRIVATE);
    world.activate(0);
    assert_eq!(world.share(0, 600, 4), Some(Reply::done(4)));
    let vm = world.vm(0).unwrap();
    let at = |gfn| world.mm.query_guest(&vm, Gfn(gfn), query::SHARE).unwrap().status;
    assert_eq!(
        [599, 600, 603, 604].map(at),
        [status::PRIVATE, status::SHARED, status::SHARED, status::PRIVATE]
    );
}

/// U4: all of 512 pages or none where nothing is scrubbed, 32 where something is; the lowest page that blocks is named. What
/// goes page by page says how far it came: nothing was done only if the first page blocks.
#[test]
fn every_range_call_goes_a_fixed_number_of_pages_and_then_says_how_far() {
    const PAGES: u64 = 520;
    let mut world = World::new(Layout { frames: 600, ..Layout::default() });
    world.audit_every = 16;
    world.create(0, PLAIN);
    let first = world.frame(40);
    let done = |pages| Some(Reply::done(pages));
    assert_eq!(world.topup(Some(0), world.frame(0), 33), done(32));
    assert_eq!(world.set_status(0, 0, PAGES, status::PRIVATE), done(PAGES));
    for at in (0..PAGES).step_by(32) {
        let count = (PAGES - at).min(32);
        assert_eq!(world.donate(0, at, first.offset(at), PAGES - at, status::PRIVATE), done(count));
    }
    world.activate(0);
    let with_rest = |world: &mut World, call: &dyn Fn(&mut World, u64, u64) -> Option<Reply>, chunk: u64| {
        let mut at = 0;
        while at < PAGES {
            let expected = (PAGES - at).min(chunk);
            assert_eq!(call(world, at, PAGES - at), done(expected), "from {at}");
            at += expected;
        }
    };
    with_rest(&mut world, &|world, at, count| world.share(0, at, count), 512);
    with_rest(&mut world, &|world, at, count| Some(world.host_map(first.offset(at), count)), 128);
    with_rest(&mut world, &|world, at, count| Some(world.pin(first.offset(at), count, pin::CPU)), 512);
    // Page by page: what was done before the one that blocks stays done, and nothing only if it is the first.
    world.unpin_cpu(first.offset(5));
    let partly = |at| Reply { done: at, ..Reply::blocked(Status::Denied, at, reply::STATE) };
    assert_eq!(world.unpin(first, PAGES, pin::CPU).reply, partly(5));
    assert_eq!(world.unpin(first.offset(5), PAGES - 5, pin::CPU).reply, partly(0));
    assert_eq!(world.unpin(first.offset(6), PAGES - 6, pin::CPU).reply, Reply::done(512));
    world.unpin(first.offset(518), 2, pin::CPU);
    with_rest(&mut world, &|world, at, count| Some(world.host_unmap(first.offset(at), count)), 512);
    // Drains that end are scrapped one by one: 32 of them a call.
    world.pin(first, 64, pin::CPU);
    let pending = Reply { status: Status::Pending, done: 64, first: 0, mask: reply::CPU_PIN };
    assert_eq!(world.unshare(0, 0, 64, unshare::DRAIN), Some(pending));
    let drained = world.unpin(first, 64, pin::CPU);
    assert_eq!((drained.reply, drained.drained), (Reply::done(32), 32));
    assert_eq!(world.unpin(first.offset(32), 32, pin::CPU).drained, 32);
    assert_eq!(world.share(0, 0, 64), done(64));
    with_rest(&mut world, &|world, at, count| world.unshare(0, at, count, unshare::ZERO), 32);
    with_rest(&mut world, &|world, at, count| world.convert(0, at, count, status::SHARED), 512);
    with_rest(&mut world, &|world, at, count| world.convert(0, at, count, status::PRIVATE), 32);
    with_rest(&mut world, &|world, at, count| world.guest_unmap(0, at, count), 512);
    with_rest(&mut world, &|world, at, count| world.reclaim(0, first.offset(at), count), 32);
    assert_eq!(world.set_status(0, 600, 64, status::NONE), done(64));
    assert_eq!(world.guest_map(0, 600, first, 64), done(32));
    assert_eq!(world.donate(0, 0, first.offset(100), 64, status::PRIVATE), done(32));
    assert_eq!(world.relinquish(0, 0, 64), done(32));
    // A declaration stops at a page that stands there, and says so.
    let stopped = Reply { done: 8, ..Reply::blocked(Status::Denied, 8, reply::STATE) };
    assert_eq!(world.set_status(0, 592, 64, status::NONE), Some(stopped));
    let at_once = Reply::blocked(Status::Denied, 0, reply::STATE);
    assert_eq!(world.set_status(0, 600, 64, status::NONE), Some(at_once));
}

/// C4: a range is judged before anything else is looked at, in the guest's space and in the physical one.
#[test]
fn ranges_that_are_empty_wrap_or_leave_their_space_are_refused_by_every_call() {
    let mut world = World::with_guest(PLAIN);
    let page = world.frame(8);
    world.share(0, 0, 1);
    world.pin_cpu(page);
    let invalid = Reply::refused(Status::Invalid);
    let ends = |space: u64| {
        [(0, 0), (1, 0), (space, 1), (space - 1, 2), (1, u64::MAX), (u64::MAX, 1), (u64::MAX, u64::MAX)]
    };
    for (gfn, count) in ends(1 << 26) {
        let private = status::PRIVATE;
        let replies = [
            world.share(0, gfn, count),
            world.unshare(0, gfn, count, 0),
            world.unshare(0, gfn, count, unshare::ZERO),
            world.consent(0, gfn, count, 0),
            world.relinquish(0, gfn, count),
            world.convert(0, gfn, count, private),
            world.convert(0, gfn, count, status::SHARED),
            world.set_status(0, gfn, count, private),
            world.guest_unmap(0, gfn, count),
            world.guest_map(0, gfn, world.frame(30), count),
            world.donate(0, gfn, world.frame(30), count, private),
        ];
        assert_eq!(replies, [Some(invalid); 11], "{count:#x} pages from {gfn:#x}");
    }
    for (pfn, count) in ends(1 << 28) {
        let pfn = Pfn(pfn);
        let replies = [
            world.pin(pfn, count, pin::CPU),
            world.pin(pfn, count, pin::DMA),
            world.unpin(pfn, count, pin::CPU).reply,
            world.host_map(pfn, count),
            world.host_unmap(pfn, count),
            world.topup(Some(0), pfn, count).unwrap(),
            world.topup(None, pfn, count).unwrap(),
            world.reclaim(0, pfn, count).unwrap(),
            world.guest_map(0, 100, pfn, count).unwrap(),
            world.donate(0, 8, pfn, count, status::PRIVATE).unwrap(),
        ];
        assert_eq!(replies, [invalid; 10], "{count:#x} frames from {pfn:?}");
    }
    // What is in the space and no RAM is refused page by page.
    let nowhere = Reply::blocked(Status::Invalid, 0, 0);
    let far = Pfn((1 << 28) - 1);
    assert_eq!(world.pin_cpu(far), nowhere);
    assert_eq!(world.unpin_cpu(far).reply, nowhere);
    assert_eq!(world.host_map(far, 1), nowhere);
    assert_eq!(world.host_unmap(far, 1), nowhere);
    assert_eq!(world.poison(far), nowhere);
    for max in [0, 9, u64::MAX] {
        assert_eq!(world.mm.pool_drain(None, max).0, invalid);
    }
    // Unknown kinds and statuses.
    assert_eq!(world.set_status(0, 8, 1, status::DEVICE + 1), Some(invalid));
    assert_eq!(world.convert(0, 8, 1, status::DEVICE), Some(invalid));
    assert_eq!(world.donate(0, 8, world.frame(30), 1, status::RELINQUISHED), Some(invalid));
}

/// U4, B3: a range of pages of several kinds ends where it ends, whatever stands behind it.
#[test]
fn a_range_of_mixed_pages_touches_nothing_behind_it() {
    for count in 1..4 {
        for private in 0..count {
            let mut world = World::with_guest(PROTECTED);
            world.share(0, 0, 4);
            world.unshare(0, private, 1, 0);
            world.fake().reset_log();
            assert_eq!(world.unshare(0, 0, count, 0), Some(Reply::done(count)));
            let states = |world: &World| [8, 9, 10, 11].map(|page| world.state(world.frame(page)));
            let expected =
                |done: State, rest: State| [0, 1, 2, 3].map(|page| if page < count { done } else { rest });
            assert_eq!(states(&world), expected(State::Private, State::Shared));
            world.unshare(0, 0, 4, 0);
            world.share(0, private, 1);
            assert_eq!(world.share(0, 0, count), Some(Reply::done(count)));
            assert_eq!(states(&world), expected(State::Shared, State::Private));
            // None of them was mapped by the host: nothing to write, nothing to invalidate.
            let counts = world.fake().counts();
            assert_eq!((counts.writes, counts.tlbis, counts.scrubs), (0, 0, 0));
        }
    }
}

/// U9: scrap is under every page of a range that was revoked, mapped by the host or not; each access of it is counted.
#[test]
fn a_revoked_range_leaves_scrap_under_all_of_it() {
    let touches = |world: &World| world.mm.stats.scrap_touches.load(std::sync::atomic::Ordering::Relaxed);
    for mapped in [0..0, 0..4, 1..3] {
        let mut world = World::with_guest(PROTECTED);
        world.share(0, 0, 4);
        for page in 0..4 {
            world.guest(0, page, Some(0x5ec)).unwrap();
            if mapped.contains(&page) {
                world.host_read(world.frame(8 + page));
            }
        }
        assert_eq!(world.unshare(0, 0, 4, unshare::REVOKE), Some(Reply::done(4)));
        for page in 0..4 {
            let before = touches(&world);
            let frame = world.frame(8 + page);
            assert_eq!(world.touch(frame, None), (Touch::Scrap, Some(0)), "page {page}");
            assert_eq!(touches(&world), before + 1);
            assert_eq!(world.guest(0, page, None), Ok(0x5ec));
        }
    }
}

/// U8: ZERO, in a range of which one address has no frame.
#[test]
fn zero_is_honoured_beside_an_address_without_a_frame() {
    let mut world = World::with_guest(PROTECTED);
    assert_eq!(world.share(0, 0, 5), Some(Reply::done(5)));
    for gfn in 0..4 {
        world.guest(0, gfn, Some(0x5ec)).unwrap();
    }
    assert_eq!(world.unshare(0, 0, 5, unshare::ZERO), Some(Reply::done(5)));
    assert!((8..12).all(|page| world.fake().is_scrubbed(world.frame(page))));
}
