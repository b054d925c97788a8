//! The scenarios that others met, by their numbers in the requirements, as far as the manager decides them.
//! What needs a CPU that executes (1 with 8 vCPUs, 30), a driver (22's timers, 24's files) or all interleavings
//! (2, 20; see `loom.rs`) is tested there as well.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tenure_abi::flags::{pin, status, unshare, vm as vm_flags};
use tenure_abi::page::State;
use tenure_abi::{NO_INDEX, Reply, Status, reply};
use tenure_mm::fake::{Access as Kind, Event, on_cpu};
use tenure_mm::model::Touch;
use tenure_mm::{Access, Gfn, GuestFault, HostFault, Ipa, Vmid};
use world::{Layout, World};

const PROTECTED: u64 = vm_flags::PROTECTED | vm_flags::RIGHT_REVOKE;
const PLAIN: u64 = vm_flags::RIGHT_REVOKE;
const READ: Access = Access { write: false, execute: false };

/// Interferes once, as CPU 1, after the `nth` event (from 0) that `wanted` picks.
fn interfere_at(
    world: &World,
    nth: u64,
    wanted: impl Fn(&Event) -> bool + Send + Sync + 'static,
    act: impl Fn() + Send + Sync + 'static,
) -> Arc<AtomicU64> {
    let seen = Arc::new(AtomicU64::new(0));
    let counter = seen.clone();
    world.fake().interfere(Some(Arc::new(move |event: &Event| {
        if wanted(event) && counter.fetch_add(1, Ordering::SeqCst) == nth {
            on_cpu(1, &act);
        }
    })));
    seen
}

fn tlbi(event: &Event) -> bool {
    matches!(event, Event::TlbiIpa { .. } | Event::TlbiAll { .. })
}

fn blocked(status: Status, first: u64, mask: u64) -> Option<Reply> {
    Some(Reply::blocked(status, first, mask))
}

#[test]
fn scenario_01_a_fault_during_a_conversion_changes_no_count() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.share(0, 0, 1);
    world.host_read(page);
    let (mm, handle) = (world.mm, world.handles[&0]);
    let seen = interfere_at(&world, 0, tlbi, move || {
        let vm = mm.vm(handle).unwrap();
        assert_eq!(mm.guest_fault(&vm, Ipa(0)), GuestFault::Resume);
    });
    assert_eq!(world.consent(0, 0, 1, 0), Some(Reply::done(1)));
    assert!(seen.load(Ordering::SeqCst) > 0);
    assert_eq!(world.word(page).guest_leaves(), 1);
}

#[test]
fn scenario_03_pinned_page_is_busy_then_unshares() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.share(0, 0, 1);
    world.guest(0, 0, Some(41)).unwrap();
    assert_eq!(world.host_read(page), Some(41));
    world.pin_cpu(page);
    assert!(world.host_write(page, 42));
    world.host_unmap(page, 1);
    assert_eq!(world.unshare(0, 0, 1, 0), blocked(Status::Busy, 0, reply::CPU_PIN));
    world.unpin_cpu(page);
    assert_eq!(world.unshare(0, 0, 1, 0), Some(Reply::done(1)));
    assert_eq!(world.guest(0, 0, None), Ok(42));
    assert_eq!(world.touch(page, None), (Touch::Abort, None));
}

#[test]
fn scenario_04_revoke_leaves_zeros_under_a_reading_host() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.share(0, 0, 1);
    world.guest(0, 0, Some(0x5ec)).unwrap();
    assert_eq!(world.host_read(page), Some(0x5ec));
    world.pin_cpu(page);
    assert_eq!(world.unshare(0, 0, 1, unshare::REVOKE), Some(Reply::done(1)));
    assert_eq!(world.touch(page, None), (Touch::Scrap, Some(0)));
    assert_eq!(world.guest(0, 0, None), Ok(0x5ec));
    // The driver hears of it and lets go: the address is an abort from then on.
    world.host_unmap(page, 1);
    assert_eq!(world.touch(page, None), (Touch::Abort, None));
    world.unpin_cpu(page);
}

#[test]
fn scenario_05_and_06_a_host_fault_during_a_conversion_is_refused_afterwards() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.share(0, 0, 1);
    world.guest(0, 0, Some(77)).unwrap();
    world.host_read(page);
    let mm = world.mm;
    let seen = interfere_at(&world, 0, tlbi, move || {
        // Another CPU of the host: back to its instruction, and nothing made.
        assert_eq!(mm.host_fault(page.base(), READ), HostFault::Resume);
        assert!(mm.query(page).unwrap().is_frozen());
    });
    assert_eq!(world.consent(0, 0, 1, 0), Some(Reply::done(1)));
    assert!(seen.load(Ordering::SeqCst) > 0);
    assert_eq!(world.touch(page, None), (Touch::Abort, None));
}

#[test]
fn scenario_05_a_converter_meets_a_fault_under_way() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.share(0, 0, 1);
    let (mm, handle) = (world.mm, world.handles[&0]);
    let write = |event: &Event| matches!(event, Event::Write { .. });
    let seen = interfere_at(&world, 0, write, move || {
        let vm = mm.vm(handle).unwrap();
        let reply = mm.guest_share(&vm, Gfn(0), 1);
        assert_eq!(reply, Reply::blocked(Status::Retry, 0, reply::FROZEN));
    });
    assert_eq!(world.host_read(page), Some(0));
    assert_eq!(seen.load(Ordering::SeqCst), 1);
    assert_eq!(world.unshare(0, 0, 1, 0), blocked(Status::Retry, 0, reply::HOST_LEAF));
}

#[test]
fn scenario_07_and_08_reclaim_against_faults_and_maps() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.share(0, 0, 1);
    world.guest(0, 0, Some(9)).unwrap();
    assert_eq!(world.reclaim(0, page, 1), blocked(Status::Retry, 0, reply::GUEST_LEAF));
    let (mm, handle) = (world.mm, world.handles[&0]);
    // While the leaf goes a fault sees no frame, and nobody can put one there.
    let seen = interfere_at(&world, 0, tlbi, move || {
        let vm = mm.vm(handle).unwrap();
        assert_eq!(mm.guest_fault(&vm, Ipa(0)), GuestFault::Populate(status::SHARED));
        assert_eq!(mm.reclaim(&vm, page, 1).mask, reply::FROZEN);
        assert_eq!(mm.guest_map(&vm, Gfn(0), page, 1).mask, reply::FROZEN);
    });
    assert_eq!(world.guest_unmap(0, 0, 1), Some(Reply::done(1)));
    assert_eq!(seen.load(Ordering::SeqCst), 1);
    world.fake().interfere(None);
    assert_eq!(world.reclaim(0, page, 1), Some(Reply::done(1)));
    // The status is kept, the new page is zero.
    assert_eq!(world.guest(0, 0, None), Err(GuestFault::Populate(status::SHARED)));
    assert!(world.host_write(page, 0xbad));
    assert_eq!(world.donate(0, 0, page, 1, status::PRIVATE).unwrap().status, Status::Denied);
    assert_eq!(world.donate(0, 0, page, 1, status::SHARED), Some(Reply::done(1)));
    assert_eq!(world.guest(0, 0, None), Ok(0));
}

#[test]
fn scenario_09_a_dead_vms_pinned_page_comes_back_at_its_last_unpin() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.share(0, 0, 1);
    world.guest(0, 0, Some(5)).unwrap();
    world.pin_cpu(page);
    world.pin(page, 1, pin::DMA);
    world.destroy(0);
    assert_eq!(world.state(page), State::Quarantine);
    assert_eq!(world.touch(page, Some(6)), (Touch::Frame, Some(6)));
    assert_eq!(world.pin_cpu(page).status, Status::Denied);
    world.create(1, PROTECTED);
    assert_eq!(world.topup(Some(1), page, 1).unwrap().status, Status::Denied);
    world.unpin_cpu(page);
    assert_eq!(world.state(page), State::Quarantine);
    let last = world.unpin(page, 1, pin::DMA);
    assert_eq!((last.released, last.drained, last.wake), (1, 0, None));
    assert_eq!(world.host_read(page), Some(0));
}

#[test]
fn scenario_10_dma_leaves_are_asked_for_and_dma_pins_refuse() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.share(0, 0, 1);
    assert!(world.dma_map(page));
    assert_eq!(world.unshare(0, 0, 1, 0), blocked(Status::Retry, 0, reply::DMA_LEAF));
    assert_eq!(world.unshare(0, 0, 1, unshare::REVOKE), blocked(Status::Retry, 0, reply::DMA_LEAF));
    world.dma_unmap(page);
    world.pin(page, 1, pin::DMA);
    assert_eq!(world.unshare(0, 0, 1, 0), blocked(Status::Busy, 0, reply::DMA_PIN));
    assert_eq!(world.unshare(0, 0, 1, unshare::REVOKE), blocked(Status::Busy, 0, reply::DMA_PIN));
    world.unpin(page, 1, pin::DMA);
    assert_eq!(world.unshare(0, 0, 1, 0), Some(Reply::done(1)));
    assert!(!world.dma_map(page), "no DMA leaf of a private page");
}

#[test]
fn scenario_11_a_bulk_unshare_with_one_page_pinned_changes_nothing() {
    let mut world = World::with_guest(PROTECTED);
    world.share(0, 0, 4);
    let pinned = world.frame(10);
    world.pin_cpu(pinned);
    let before = world.model.clone();
    assert_eq!(world.unshare(0, 0, 4, 0), blocked(Status::Busy, 2, reply::CPU_PIN));
    assert_eq!(world.model, before);
    for gfn in [0, 1, 3] {
        assert_eq!(world.unshare(0, gfn, 1, 0), Some(Reply::done(1)));
    }
    assert_eq!(world.unshare(0, 2, 1, 0), blocked(Status::Busy, 0, reply::CPU_PIN));
    world.unpin_cpu(pinned);
    assert_eq!(world.unshare(0, 0, 4, 0), Some(Reply::done(4)));
}

#[test]
fn scenario_12_a_conversion_before_population_holds_at_the_first_fault() {
    let mut world = World::with_guest(PROTECTED);
    let free = world.frame(30);
    assert_eq!(world.share(0, 5, 1), Some(Reply::done(1)));
    assert_eq!(world.guest(0, 5, None), Err(GuestFault::Populate(status::SHARED)));
    assert_eq!(world.donate(0, 5, free, 1, status::PRIVATE).unwrap().status, Status::Denied);
    assert_eq!(world.unshare(0, 5, 1, 0), Some(Reply::done(1)));
    assert_eq!(world.donate(0, 5, free, 1, status::SHARED).unwrap().status, Status::Denied);
    assert_eq!(world.donate(0, 5, free, 1, status::PRIVATE), Some(Reply::done(1)));
    // The host may not, once the VM is active; on a plain VM it may.
    assert_eq!(world.set_status(0, 6, 1, status::SHARED).unwrap().status, Status::Denied);
    assert_eq!(world.convert(0, 6, 1, status::SHARED).unwrap().status, Status::Denied);
    world.furnish(1, PLAIN, 12);
    assert_eq!(world.convert(1, 6, 1, status::SHARED), Some(Reply::done(1)));
    assert_eq!(world.guest(1, 6, None), Err(GuestFault::Populate(status::SHARED)));
}

#[test]
fn scenario_13_every_cpu_of_the_host_faults_after_unshare() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.share(0, 0, 1);
    for cpu in 0..4 {
        on_cpu(cpu, || assert_eq!(world.host_read(page), Some(0)));
    }
    assert_eq!(world.consent(0, 0, 1, 0), Some(Reply::done(1)));
    for kind in [Kind::Read, Kind::Write, Kind::Exec] {
        assert_eq!(world.fake().reachable(Vmid::HOST, Ipa(page.base().0), kind), vec![]);
    }
}

#[test]
fn scenario_14_a_failed_conversion_leaves_everything_usable() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(9);
    world.share(0, 0, 2);
    assert!(world.host_write(page, 3));
    assert_eq!(world.unshare(0, 0, 2, 0), blocked(Status::Retry, 1, reply::HOST_LEAF));
    assert_eq!(world.fake().walks_to(Vmid::HOST, Ipa(page.base().0)).unwrap().pa, page.base().0);
    assert_eq!(world.guest(0, 1, None), Ok(3));
    world.guest(0, 1, Some(4)).unwrap();
    assert_eq!(world.host_read(page), Some(4));
}

#[test]
fn scenario_15_two_vms_against_each_other_from_two_cpus_do_not_deadlock() {
    let mut world = World::new(Layout { frames: 64, ..Layout::default() });
    world.furnish(0, PROTECTED, 0);
    world.furnish(1, PROTECTED, 12);
    let (mm, handles) = (world.mm, [world.handles[&0], world.handles[&1]]);
    let pages: Vec<_> = (24..32).map(|number| world.frame(number)).collect();
    let pages = &pages;
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for cpu in 0..2usize {
            let done = &done;
            scope.spawn(move || {
                on_cpu(cpu, || {
                    for round in 0..200u64 {
                        let vm = mm.vm(handles[(cpu + round as usize) % 2]).unwrap();
                        for step in 0..8u64 {
                            // One CPU goes up, the other down, through the same frames and addresses.
                            let step = if cpu == 0 { step } else { 7 - step };
                            mm.donate(&vm, Gfn(4 + step), pages[step as usize], 1, status::PRIVATE);
                            mm.guest_share(&vm, Gfn(0), 4);
                            mm.guest_relinquish(&vm, Gfn(4 + (7 - step)), 1);
                            mm.host_fault(pages[step as usize].base(), READ);
                            mm.guest_unshare(&vm, Gfn(0), 4, Default::default());
                        }
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                });
            });
        }
    });
    assert_eq!(done.load(Ordering::SeqCst), 2);
    assert_eq!(world.violations(), Vec::<String>::new());
    assert_eq!(tenure_mm::audit::audit(mm), Vec::<String>::new());
}

#[test]
fn scenario_16_an_invalidation_over_nothing_leaves_faults_as_they_were() {
    let mut world = World::with_guest(PROTECTED);
    assert_eq!(world.guest_unmap(0, 8, 8), Some(Reply::done(8)));
    assert_eq!(world.host_unmap(world.frame(8), 4), Reply::done(4));
    assert_eq!(world.guest(0, 0, None), Ok(0));
    assert_eq!(world.guest(0, 8, None), Err(GuestFault::Populate(status::PRIVATE)));
    assert_eq!(world.donate(0, 8, world.frame(20), 1, status::PRIVATE), Some(Reply::done(1)));
}

#[test]
fn scenario_17_running_short_in_the_middle_of_a_range_leaves_no_trace() {
    // Address 0, and a range over three level-3 tables, with every size of pool from nothing up.
    for pages in 0..12 {
        let mut world = World::new(Layout { frames: 64, ..Layout::default() });
        world.create(0, 0);
        if pages > 0 {
            world.topup(Some(0), world.frame(0), pages);
        }
        let before = world.model.clone();
        let declared = world.set_status(0, 0, 1 << 18, status::PRIVATE).unwrap();
        if declared.status == Status::NoMemory {
            assert_eq!((pages, &world.model), (0, &before), "one root page is enough");
            continue;
        }
        let free = |world: &World| world.mm.pool_info(world.vm(0).as_deref()).0;
        for (gfn, count) in [(0, 2), (510, 4), (1022, 4)] {
            let had = free(&world);
            let page = world.frame(16 + 8 * (gfn / 512));
            let reply = world.donate(0, gfn, page, count, status::PRIVATE).unwrap();
            if reply.status == Status::NoMemory {
                assert_eq!(reply.mask, reply::VM_POOL);
                assert_eq!(free(&world), had, "a page is lost");
                world.topup(Some(0), world.frame(40 + 4 * (gfn / 512)), 4);
                assert_eq!(world.donate(0, gfn, page, count, status::PRIVATE), Some(Reply::done(count)));
            }
        }
        world.destroy(0);
        assert_eq!(world.model.totals()[&(State::Host as u8)], 64);
    }
}

#[test]
fn scenario_18_conversion_keeps_contents_and_teardown_scrubs() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.guest(0, 0, Some(11)).unwrap();
    world.share(0, 0, 1);
    assert_eq!(world.host_read(page), Some(11));
    assert!(world.host_write(page, 12));
    world.consent(0, 0, 1, 0);
    assert_eq!(world.guest(0, 0, None), Ok(12));
    world.guest(0, 1, Some(13)).unwrap();
    world.destroy(0);
    for number in 8..12 {
        assert_eq!(world.host_read(world.frame(number)), Some(0));
        assert_eq!(world.fake().read_uncached_at(Vmid::HOST, Ipa(world.frame(number).base().0), 7), Some(0));
    }
}

#[test]
fn scenario_19_two_cpus_populate_one_address_and_one_wins() {
    let mut world = World::with_guest(PROTECTED);
    let (first, second) = (world.frame(20), world.frame(21));
    let (mm, handle) = (world.mm, world.handles[&0]);
    let scrub = |event: &Event| matches!(event, Event::Read { .. });
    let answer = Arc::new(AtomicU64::new(0));
    let result = answer.clone();
    interfere_at(&world, 0, scrub, move || {
        let vm = mm.vm(handle).unwrap();
        // The loser of the frame: it is frozen by the winner.
        let reply = mm.donate(&vm, Gfn(6), first, 1, status::PRIVATE);
        result.store(u64::from(reply == Reply::blocked(Status::Retry, 0, reply::FROZEN)), Ordering::SeqCst);
    });
    // A read of a table before the frame is frozen would let the other win; either way there is one leaf.
    let reply = world.donate(0, 6, first, 1, status::PRIVATE);
    world.fake().interfere(None);
    assert_eq!((reply, answer.load(Ordering::SeqCst)), (Some(Reply::done(1)), 1));
    assert_eq!(world.donate(0, 6, second, 1, status::PRIVATE), blocked(Status::Denied, 0, reply::STATE));
    assert_eq!(world.word(first).guest_leaves(), 1);
}

#[test]
fn scenario_20_a_share_in_the_middle_of_an_unshare_is_answered_retry() {
    let mut world = World::with_guest(PROTECTED);
    world.share(0, 0, 1);
    world.host_read(world.frame(8));
    let (mm, handle) = (world.mm, world.handles[&0]);
    interfere_at(&world, 0, tlbi, move || {
        let vm = mm.vm(handle).unwrap();
        assert_eq!(mm.guest_share(&vm, Gfn(0), 1), Reply::blocked(Status::Retry, 0, reply::FROZEN));
    });
    assert_eq!(world.consent(0, 0, 1, 0), Some(Reply::done(1)));
    assert_eq!(world.state(world.frame(8)), State::Private);
}

#[test]
fn scenario_21_a_guest_that_drains_gets_through_a_host_that_pins_in_a_loop() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.share(0, 0, 1);
    world.pin_cpu(page);
    world.pin_cpu(page);
    let wait = unshare::DRAIN | unshare::WAIT;
    let pending = Reply { status: Status::Pending, done: 1, first: 0, mask: reply::CPU_PIN };
    assert_eq!(world.unshare(0, 0, 1, wait), Some(pending));
    for _ in 0..3 {
        assert_eq!(world.pin_cpu(page).status, Status::Denied, "no new pin");
        assert_eq!(world.pin(page, 1, pin::DMA).status, Status::Denied);
        assert_eq!(world.unshare(0, 0, 1, 0), blocked(Status::Pending, 0, reply::CPU_PIN));
    }
    assert_eq!(world.unpin_cpu(page).drained, 0);
    let last = world.unpin_cpu(page);
    assert_eq!((last.drained, last.wake), (1, Some(world.handles[&0])));
    assert_eq!(world.unshare(0, 0, 1, wait), Some(Reply::done(1)));
    assert_eq!(world.unpin_cpu(page).reply.status, Status::Denied, "it finishes once");
}

#[test]
fn scenario_21_a_new_share_cancels_a_drain() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.share(0, 0, 1);
    world.pin_cpu(page);
    world.unshare(0, 0, 1, unshare::DRAIN | unshare::WAIT);
    assert_eq!(world.share(0, 0, 1), Some(Reply::done(1)));
    let last = world.unpin_cpu(page);
    assert_eq!((last.drained, last.wake), (0, None));
    assert_eq!(world.state(page), State::Shared);
}

#[test]
fn scenario_22_leaves_are_retry_and_pins_are_busy() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.share(0, 0, 1);
    world.host_read(page);
    assert_eq!(world.unshare(0, 0, 1, 0), blocked(Status::Retry, 0, reply::HOST_LEAF));
    world.pin_cpu(page);
    assert_eq!(world.unshare(0, 0, 1, 0), blocked(Status::Busy, 0, reply::HOST_LEAF | reply::CPU_PIN));
    world.unpin_cpu(page);
    assert_eq!(world.consent(0, 0, 1, 0), Some(Reply::done(1)));
}

#[test]
fn scenario_23_a_late_or_repeated_consent_is_checked_again() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.share(0, 0, 1);
    world.host_read(page);
    // The host consents but has unmapped nothing: its leaf is dropped for it.
    assert_eq!(world.consent(0, 0, 1, 0), Some(Reply::done(1)));
    assert_eq!(world.consent(0, 0, 1, 0), Some(Reply::done(1)), "twice: it is private already");
    // Pinned since it was asked: refused, and the host's leaf stays.
    world.share(0, 0, 1);
    world.host_read(page);
    world.pin_cpu(page);
    assert_eq!(world.consent(0, 0, 1, 0), blocked(Status::Busy, 0, reply::CPU_PIN));
    assert!(world.word(page).has_host_leaf());
    // The VM has died.
    let handle = world.handles[&0];
    world.destroy(0);
    assert!(world.mm.vm(handle).is_err());
}

#[test]
fn scenario_24_every_position_of_a_four_page_range() {
    for position in 0..4u64 {
        for (pinned, mapped) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut world = World::with_guest(PROTECTED);
            let page = world.frame(8 + position);
            world.share(0, 0, 4);
            if mapped {
                world.host_read(page);
            }
            if pinned {
                world.pin_cpu(page);
            }
            let reply = world.unshare(0, 0, 4, 0).unwrap();
            let expected = match (pinned, mapped) {
                (false, false) => Reply::done(4),
                (false, true) => Reply::blocked(Status::Retry, position, reply::HOST_LEAF),
                (true, false) => Reply::blocked(Status::Busy, position, reply::CPU_PIN),
                (true, true) => Reply::blocked(Status::Busy, position, reply::CPU_PIN | reply::HOST_LEAF),
            };
            assert_eq!(reply, expected);
        }
    }
    // From the start, shared or private, populated or not; a range over both kinds.
    let mut world = World::new(Layout::default());
    world.create(0, 0);
    world.topup(Some(0), world.frame(0), 8);
    world.set_status(0, 0, 4, status::PRIVATE);
    world.donate(0, 1, world.frame(9), 1, status::PRIVATE);
    assert_eq!(world.convert(0, 0, 4, status::SHARED), Some(Reply::done(4)));
    assert_eq!(world.donate(0, 3, world.frame(10), 1, status::SHARED), Some(Reply::done(1)));
    world.host_read(world.frame(10));
    assert_eq!(world.convert(0, 0, 4, status::PRIVATE), Some(Reply::done(4)));
    assert_eq!(world.convert(0, 0, 5, status::PRIVATE), blocked(Status::Denied, 4, reply::UNPOPULATED));
}

#[test]
fn scenario_25_a_share_whose_frame_moves_meanwhile_fails_or_takes_the_right_page() {
    // Reads of the walk and its check: interfere after each of them.
    for nth in 0..8 {
        let world = World::with_guest(PROTECTED);
        let page = world.frame(8);
        let (mm, handle) = (world.mm, world.handles[&0]);
        let read = |event: &Event| matches!(event, Event::Read { cpu: 0, .. });
        let seen = interfere_at(&world, nth, read, move || {
            let vm = mm.vm(handle).unwrap();
            assert_eq!(mm.guest_relinquish(&vm, Gfn(0), 1), Reply::done(1));
            assert_eq!(mm.donate(&vm, Gfn(9), page, 1, status::PRIVATE), Reply::done(1));
        });
        let reply = mm.guest_share(&mm.vm(handle).unwrap(), Gfn(0), 1);
        world.fake().interfere(None);
        let moved = seen.load(Ordering::SeqCst) > nth;
        let word = world.word(page);
        match reply.status {
            Status::Retry => {
                assert_eq!(word.state(), State::Private, "the page at another address is untouched")
            }
            Status::Success if moved => {
                assert_eq!(word.state(), State::Private, "the empty address was shared")
            }
            Status::Success => assert_eq!(word.state(), State::Shared),
            status => panic!("{status:?} after read {nth}"),
        }
        assert_eq!(tenure_mm::audit::audit(mm), Vec::<String>::new());
        if !moved {
            assert!(nth >= 4, "the walk has three levels and a second look");
            break;
        }
    }
}

#[test]
fn scenario_26_a_holder_that_has_not_touched_yet_can_when_the_drain_begins() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.guest(0, 0, Some(8)).unwrap();
    world.share(0, 0, 1);
    world.pin_cpu(page);
    world.unshare(0, 0, 1, unshare::DRAIN);
    assert_eq!(world.touch(page, None), (Touch::Frame, Some(8)));
    assert_eq!(world.touch(page, Some(9)), (Touch::Frame, Some(9)));
    world.unpin_cpu(page);
    assert_eq!(world.touch(page, None), (Touch::Scrap, Some(0)));
    assert_eq!(world.guest(0, 0, None), Ok(9));
}

#[test]
fn scenario_27_share_and_touch_work_with_empty_pools() {
    let mut world = World::new(Layout { frames: 1024, spare: 1, blocks: true });
    world.create(0, PROTECTED);
    world.topup(Some(0), world.frame(0), 3);
    // The whole of the second 2 MiB block, in steps; the host's pool is down to its reserve then.
    world.set_status(0, 0, 512, status::PRIVATE);
    for step in 0..16 {
        let frame = world.frame(512 + step * 32);
        let reply = world.donate(0, step * 32, frame, 32, status::PRIVATE).unwrap();
        assert_eq!(reply, Reply::done(32));
    }
    while world.drain_pool(None, 8).is_some_and(|pages| !pages.is_empty()) {}
    assert_eq!(world.mm.pool_info(world.vm(0).as_deref()).0, 0, "the VM's pool is empty");
    world.fake().reset_log();
    assert_eq!(world.share(0, 100, 1), Some(Reply::done(1)));
    let counts = world.fake().counts();
    assert_eq!((counts.writes, counts.tlbis, counts.dsbs), (0, 0, 0), "one compare-and-swap");
    assert_eq!(world.touch(world.frame(612), None), (Touch::Frame, Some(0)));
    assert_eq!(world.fake().counts().zeroes, 0, "a fault never allocates");
}

#[test]
fn scenario_28_the_host_may_not_choose_what_is_shared() {
    let mut world = World::with_guest(PROTECTED);
    let (page, other) = (world.frame(8), world.frame(30));
    world.guest(0, 0, Some(1)).unwrap();
    let denied = |reply: Option<Reply>| assert_eq!(reply.unwrap().status, Status::Denied);
    denied(world.donate(0, 8, other, 1, status::SHARED));
    denied(world.donate(0, 0, other, 1, status::PRIVATE));
    denied(world.reclaim(0, page, 1));
    denied(world.guest_unmap(0, 0, 1));
    denied(world.convert(0, 0, 1, status::SHARED));
    denied(world.set_status(0, 8, 1, status::SHARED));
    denied(world.guest_map(0, 8, other, 1));
    assert_eq!(world.host_map(page, 1).status, Status::Denied);
    assert_eq!(world.pin_cpu(page).status, Status::Denied);
    assert_eq!(world.poison(page).status, Status::Denied);
    assert_eq!(world.topup(Some(0), page, 1).unwrap().status, Status::Denied);
    // An older copy: a shared page that lost its leaf does not come back where the guest expects a private one.
    world.share(0, 1, 1);
    let old = world.frame(9);
    world.guest_unmap(0, 1, 1);
    assert!(world.host_write(old, 0xbad));
    world.unshare(0, 1, 1, 0);
    denied(world.guest_map(0, 1, old, 1));
    denied(world.guest_map(0, 8, old, 1));
    assert_eq!(world.guest(0, 1, None), Err(GuestFault::Populate(status::PRIVATE)));
    assert_eq!(world.guest(0, 0, None), Ok(1));
}

#[test]
fn scenario_29_a_page_that_el2_uses_cannot_be_donated() {
    let mut world = World::with_guest(PROTECTED);
    let run_page = world.frame(30);
    assert!(world.hyp_pin(run_page, true));
    assert_eq!(world.donate(0, 8, run_page, 1, status::PRIVATE), blocked(Status::Busy, 0, reply::HYP_PIN));
    assert_eq!(world.topup(Some(0), run_page, 1), blocked(Status::Busy, 0, reply::HYP_PIN));
    assert_eq!(world.poison(run_page), Reply::blocked(Status::Busy, 0, reply::HYP_PIN));
    assert!(world.hyp_pin(run_page, false));
    assert_eq!(world.donate(0, 8, run_page, 1, status::PRIVATE), Some(Reply::done(1)));
    assert!(!world.hyp_pin(run_page, true), "nor can EL2 be made to use a guest's page");
    assert_eq!(NO_INDEX, u64::MAX);
}
