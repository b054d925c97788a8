//! What a refused call leaves behind, and how far a call goes: each named after what must hold.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

mod world;

use tenure_abi::flags::{pin, query, status, unshare, vm as vm_flags};
use tenure_abi::{Reply, Status, reply};
use tenure_mm::model::Touch;
use tenure_mm::stage2::guest::walk;
use tenure_mm::stage2::host::{FRAMES, Kind};
use tenure_mm::{Access, Gfn, HostFault, Pfn, Unshare, audit};
use world::{Layout, WORD, World};

const PROTECTED: u64 = vm_flags::PROTECTED | vm_flags::RIGHT_REVOKE;

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
    assert_eq!(world.unshare(0, 0, 1, 0), Some(Reply::done(1)));
    assert_eq!(world.mm.pool_info(world.vm(0).as_deref()).0, 1, "nor where there is one");
    assert_eq!(world.topup(Some(0), world.frame(3), 1), Some(Reply::done(1)));
    assert_eq!(world.share(0, 0, 1), Some(Reply::done(1)));
    assert_eq!(world.unshare(0, 0, 1, 0), Some(Reply::done(1)));
    let far = world.mm.query_guest(&world.vm(0).unwrap(), Gfn(1 << 26), query::SHARE);
    assert_eq!(far, Err(Status::Invalid));
    assert_eq!(world.mm.query_guest(&world.vm(0).unwrap(), Gfn(0), query::RECLAIM + 1), Err(Status::Invalid));
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
