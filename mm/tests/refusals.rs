//! What a refused call leaves behind, and how far a call goes: each named after what must hold.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

mod world;

use tenure_abi::flags::{pin, query, status, unshare, vm as vm_flags};
use tenure_abi::page::State;
use tenure_abi::{Reply, Status, reply};
use tenure_mm::model::Touch;
use tenure_mm::stage2::guest::walk;
use tenure_mm::stage2::host::{FRAMES, Kind};
use tenure_mm::{Access, Gfn, HostFault, Pfn, Unshare, audit};
use world::{Layout, WORD, World};

const PROTECTED: u64 = vm_flags::PROTECTED | vm_flags::RIGHT_REVOKE;
const PLAIN: u64 = vm_flags::RIGHT_REVOKE;

fn blocked(status: Status, first: u64, mask: u64) -> Option<Reply> {
    Some(Reply::blocked(status, first, mask))
}

/// All that a refused conversion of guest frames 0 to 3 may not change: words, contents, the guest's entries, the host's.
fn seen(world: &World) -> Vec<(u64, u64, u64, u64)> {
    let root = world.vm(0).unwrap().root().unwrap();
    let page = |gfn: u64| {
        let frame = world.frame(8 + gfn);
        let guest = walk(world.fake(), root, Gfn(gfn)).descriptor.0;
        let host = audit::host_descriptor(world.mm, frame).2.0;
        (world.word(frame).raw(), world.fake().peek(frame, WORD), guest, host)
    };
    (0..4).map(page).collect()
}

type Step = fn(&mut World, Pfn);
type Attempt = fn(&mut World) -> Option<Reply>;

const UNSHARE: Attempt = |world| world.unshare(0, 0, 4, 0);
const CONSENT: Attempt = |world| world.consent(0, 0, 4, 0);
const REVOKE: Attempt = |world| world.unshare(0, 0, 4, unshare::REVOKE);
const CPU_PIN: Step = |world, page| assert_eq!(world.pin_cpu(page), Reply::done(1));
const DMA_PIN: Step = |world, page| assert_eq!(world.pin(page, 1, pin::DMA), Reply::done(1));
const DMA_LEAF: Step = |world, page| assert!(world.dma_map(page));
const DRAINING: Step = |world, page| {
    world.pin(page, 1, pin::DMA);
    world.unshare(0, 3, 1, unshare::DRAIN);
};

/// U3: whatever stands in the way of the last of four pages, the first of which the host maps, the second is redirected
/// and the third only shared.
#[test]
fn a_refused_conversion_leaves_words_contents_and_both_mappings_as_they_were() {
    let cases: [(&str, Step, Attempt, Option<Reply>); 12] = [
        ("a host leaf", |_, _| (), UNSHARE, blocked(Status::Retry, 0, reply::HOST_LEAF)),
        ("a CPU pin, consent", CPU_PIN, CONSENT, blocked(Status::Busy, 3, reply::CPU_PIN)),
        ("a DMA pin, consent", DMA_PIN, CONSENT, blocked(Status::Busy, 3, reply::DMA_PIN)),
        ("a DMA pin, REVOKE", DMA_PIN, REVOKE, blocked(Status::Busy, 3, reply::DMA_PIN)),
        ("a DMA leaf, consent", DMA_LEAF, CONSENT, blocked(Status::Retry, 3, reply::DMA_LEAF)),
        ("a DMA leaf, REVOKE", DMA_LEAF, REVOKE, blocked(Status::Retry, 3, reply::DMA_LEAF)),
        ("a drain, consent", DRAINING, CONSENT, blocked(Status::Pending, 3, reply::DMA_PIN)),
        ("a drain for a device, REVOKE", DRAINING, REVOKE, blocked(Status::Busy, 3, reply::DMA_PIN)),
        (
            "an address that is nothing, consent",
            |_, _| (),
            |world| world.consent(0, 0, 17, 0),
            blocked(Status::Denied, 16, reply::UNPOPULATED),
        ),
        (
            "an address that is nothing, REVOKE",
            |_, _| (),
            |world| world.unshare(0, 0, 17, unshare::REVOKE),
            blocked(Status::Denied, 16, reply::UNPOPULATED),
        ),
        (
            "an address that is nothing, SHARE",
            |_, _| (),
            |world| world.share(0, 0, 17),
            blocked(Status::Denied, 16, reply::UNPOPULATED),
        ),
        (
            "a DMA pin, consent with ZERO",
            DMA_PIN,
            |world| world.consent(0, 0, 4, unshare::ZERO),
            blocked(Status::Busy, 3, reply::DMA_PIN),
        ),
    ];
    for (what, prepare, attempt, expected) in cases {
        let mut world = World::with_guest(PROTECTED);
        for gfn in 0..4 {
            world.guest(0, gfn, Some(0x100 + gfn)).unwrap();
        }
        world.share(0, 0, 4);
        assert_eq!(world.host_read(world.frame(8)), Some(0x100));
        world.unshare(0, 1, 1, unshare::REVOKE);
        assert_eq!(world.touch(world.frame(9), None), (Touch::Scrap, Some(0)));
        let last = world.frame(11);
        prepare(&mut world, last);
        let before = seen(&world);
        world.fake().reset_log();
        assert_eq!(attempt(&mut world), expected, "{what}");
        assert_eq!(seen(&world), before, "{what}");
        let counts = world.fake().counts();
        assert_eq!((counts.writes, counts.tlbis, counts.scrubs), (0, 0, 0), "{what}");
        // Both sides go on where they were.
        for gfn in 0..4 {
            assert_eq!(world.guest(0, gfn, None), Ok(0x100 + gfn), "{what}");
        }
        assert_eq!(world.touch(world.frame(8), None), (Touch::Frame, Some(0x100)), "{what}");
        assert_eq!(world.touch(world.frame(9), None), (Touch::Scrap, Some(0)), "{what}");
        assert_eq!(world.touch(world.frame(10), None), (Touch::Frame, Some(0x102)), "{what}");
    }
}

/// U3, with a page that another CPU has in hand.
#[test]
fn a_conversion_that_meets_a_frozen_page_thaws_what_it_holds() {
    let mut world = World::with_guest(PROTECTED);
    world.share(0, 0, 4);
    world.host_read(world.frame(8));
    let (mm, vm) = (world.mm, world.vm(0).unwrap());
    let cell = mm.frames().word(world.frame(11)).unwrap();
    let held = cell.freeze(world.frame(11), cell.load(), cell.load()).unwrap();
    let before = seen(&world);
    world.fake().reset_log();
    let how = |flags| Unshare::from_flags(&vm, flags).unwrap();
    let frozen = Reply::blocked(Status::Retry, 3, reply::FROZEN);
    assert_eq!(mm.guest_share(&vm, Gfn(0), 4), frozen);
    assert_eq!(mm.consent(&vm, Gfn(0), 4, how(0)), frozen);
    assert_eq!(mm.consent(&vm, Gfn(0), 4, how(unshare::ZERO)), frozen);
    assert_eq!(mm.guest_unshare(&vm, Gfn(0), 4, how(unshare::REVOKE)), frozen);
    assert_eq!(mm.guest_unshare(&vm, Gfn(1), 3, how(unshare::DRAIN)), Reply { first: 2, ..frozen });
    assert_eq!(mm.guest_relinquish(&vm, Gfn(0), 4), frozen);
    assert_eq!(mm.guest_unmap(&vm, Gfn(0), 4), frozen);
    assert_eq!(mm.pin(world.frame(8), 4, tenure_mm::PinKind::Cpu), frozen);
    assert_eq!(mm.host_unmap(world.frame(8), 4), frozen);
    assert_eq!(seen(&world), before);
    let counts = world.fake().counts();
    assert_eq!((counts.writes, counts.tlbis, counts.scrubs), (0, 0, 0));
    drop(held);
    drop(vm);
    assert_eq!(world.consent(0, 0, 4, 0), Some(Reply::done(4)));
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
}

/// U6: the host's leaf may still be made while CPU pins last. A device has no use for one.
#[test]
fn a_draining_page_that_only_a_device_holds_gives_the_host_no_new_leaf() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.share(0, 0, 1);
    world.pin_cpu(page);
    world.pin(page, 1, pin::DMA);
    world.unshare(0, 0, 1, unshare::DRAIN);
    assert_eq!(world.unpin_cpu(page).drained, 0);
    assert_eq!(world.touch(page, None), (Touch::Abort, None));
    assert_eq!(world.host_map(page, 1), Reply::blocked(Status::Denied, 0, reply::STATE));
    assert_eq!(world.unpin(page, 1, pin::DMA).drained, 1);
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
    with_rest(&mut world, &|world, at, count| world.convert(0, at, count, status::PRIVATE), 512);
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

/// F3: each obstacle is named, a pin before a leaf; a page that drains is not taken away either.
#[test]
fn reclaim_under_a_pin_and_a_leaf_is_busy_and_names_both() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.share(0, 0, 1);
    world.pin_cpu(page);
    let both = reply::CPU_PIN | reply::GUEST_LEAF;
    assert_eq!(world.reclaim(0, page, 1), blocked(Status::Busy, 0, both));
    world.unshare(0, 0, 1, unshare::DRAIN);
    assert_eq!(world.reclaim(0, page, 1), blocked(Status::Busy, 0, reply::CPU_PIN));
    assert_eq!(world.guest_unmap(0, 0, 1), blocked(Status::Busy, 0, reply::CPU_PIN));
    assert_eq!(world.guest(0, 0, None), Ok(0), "the guest has it all the while");
    assert_eq!(world.unpin_cpu(page).drained, 1);
    assert_eq!(world.reclaim(0, page, 1), blocked(Status::Denied, 0, reply::STATE), "private now");
}

/// C3, also when the call would be short of table memory (the world compares each verdict with the attempt).
#[test]
fn a_query_gives_the_verdict_of_an_attempt_when_a_pool_is_short_too() {
    let mut world = World::new(Layout { frames: 64, ..Layout::default() });
    world.create(0, PROTECTED);
    let ask = |world: &World, op| world.mm.query_guest(&world.vm(0).unwrap(), Gfn(0), op).unwrap().reply;
    let nothing = Reply::blocked(Status::Denied, 0, reply::UNPOPULATED);
    for op in [query::SHARE, query::UNSHARE, query::RECLAIM] {
        assert_eq!(ask(&world, op), nothing, "before there is a table");
    }
    assert_eq!(world.share(0, 0, 1), Some(nothing));
    assert_eq!(world.topup(Some(0), world.frame(0), 2), Some(Reply::done(2)));
    let vm = world.vm(0).unwrap();
    // One entry of the root declares a gigabyte: to change a page of it takes two tables.
    assert_eq!(world.mm.set_status(&vm, Gfn(0), 1 << 18, status::PRIVATE), Reply::done(1 << 18));
    drop(vm);
    for gfn in 0..8 {
        world.model.vms.get_mut(&0).unwrap().addresses.entry(gfn).or_default().status = status::PRIVATE;
    }
    world.activate(0);
    let short = Reply { mask: reply::VM_POOL, ..Reply::refused(Status::NoMemory) };
    assert_eq!(world.share(0, 0, 1), Some(short));
    assert_eq!(ask(&world, query::SHARE), short);
    // It is private: to take it back changes nothing and takes no table.
    assert_eq!(world.unshare(0, 0, 1, 0), Some(Reply::done(1)));
    assert_eq!(world.topup(Some(0), world.frame(2), 1), Some(Reply::done(1)));
    assert_eq!(world.share(0, 0, 1), Some(short), "one of two");
    assert_eq!(world.topup(Some(0), world.frame(3), 1), Some(Reply::done(1)));
    assert_eq!(world.share(0, 0, 1), Some(Reply::done(1)));
    assert_eq!(world.unshare(0, 0, 1, 0), Some(Reply::done(1)));
    let far = world.mm.query_guest(&world.vm(0).unwrap(), Gfn(1 << 26), query::SHARE);
    assert_eq!(far, Err(Status::Invalid));
    assert_eq!(world.mm.query_guest(&world.vm(0).unwrap(), Gfn(0), query::RECLAIM + 1), Err(Status::Invalid));
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

/// F1 where no RAM is: what is mapped, or in the middle of a split, is looked at again; what is hidden is an abort.
#[test]
fn a_fault_of_the_host_outside_ram_is_an_abort_only_where_nothing_is_mapped_for_it() {
    let world = World::new(Layout::default());
    let gigabyte = 1 << 18;
    world.mm.boot_map(0..gigabyte, Kind::Other).unwrap();
    world.mm.boot_map(5..6, Kind::Hidden).unwrap();
    let fault =
        |frame: u64, write, execute| world.mm.host_fault(Pfn(frame).base(), Access { write, execute });
    let aborts = || world.mm.stats.host_aborts.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(
        [fault(4, false, false), fault(4, true, false)],
        [HostFault::Resume; 2],
        "a page of a split block"
    );
    assert_eq!([fault(600, false, false), fault(600, true, false)], [HostFault::Resume; 2], "a block");
    assert_eq!(fault(8 * gigabyte, false, false), HostFault::Resume, "an entry between break and make");
    assert_eq!(aborts(), 0);
    assert_eq!(
        [fault(4, false, true), fault(600, false, true)],
        [HostFault::Abort; 2],
        "a device runs nothing"
    );
    assert_eq!([fault(5, false, false), fault(5, true, false)], [HostFault::Abort; 2], "hidden");
    assert_eq!(
        [fault(FRAMES, false, false), fault(u64::MAX >> 12, false, false)],
        [HostFault::Abort; 2],
        "beyond"
    );
    assert_eq!(aborts(), 6, "each is counted");
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

/// The end of a drain costs an invalidation where the host has a leaf, and nothing where it has none.
#[test]
fn a_drain_ends_without_an_invalidation_where_the_host_has_no_leaf() {
    for mapped in [false, true] {
        let mut world = World::with_guest(PROTECTED);
        let page = world.frame(8);
        world.share(0, 0, 1);
        world.pin_cpu(page);
        if mapped {
            world.host_read(page);
        }
        world.unshare(0, 0, 1, unshare::DRAIN);
        world.fake().reset_log();
        assert_eq!(world.unpin_cpu(page).drained, 1);
        let counts = world.fake().counts();
        assert_eq!((counts.writes, counts.tlbis), if mapped { (1, 2) } else { (0, 0) });
    }
}

/// What the guest gave back is private already: to take it back changes nothing, and a share declares it shared.
#[test]
fn an_address_that_was_relinquished_is_private_already_and_may_be_shared() {
    let mut world = World::with_guest(PROTECTED);
    assert_eq!(world.relinquish(0, 0, 2), Some(Reply::done(2)));
    assert_eq!(world.unshare(0, 0, 4, 0), Some(Reply::done(4)));
    let seen =
        |world: &World| world.mm.query_guest(&world.vm(0).unwrap(), Gfn(0), query::UNSHARE).unwrap().status;
    assert_eq!(seen(&world), status::RELINQUISHED);
    assert_eq!(world.share(0, 0, 1), Some(Reply::done(1)));
    assert_eq!(seen(&world), status::SHARED);
    assert_eq!(world.unshare(0, 0, 1, 0), Some(Reply::done(1)));
    assert_eq!(seen(&world), status::PRIVATE);
}
