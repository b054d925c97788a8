//! Lines of the requirements that need a test of their own, each named after what must hold.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tenure_abi::flags::{pin, query, status, unshare, vm as vm_flags};
use tenure_abi::page::{self, State};
use tenure_abi::{Reply, Status, reply};
use tenure_mm::fake::{Access as Kind, Event, on_cpu};
use tenure_mm::model::Touch;
use tenure_mm::{Access, Gfn, GuestFault, HostFault, Ipa, Pfn, Unshare, Vmid, audit};
use world::{Layout, World};

const PROTECTED: u64 = vm_flags::PROTECTED | vm_flags::RIGHT_REVOKE;
const PLAIN: u64 = vm_flags::RIGHT_REVOKE;

fn blocked(status: Status, first: u64, mask: u64) -> Option<Reply> {
    Some(Reply::blocked(status, first, mask))
}

type Lie = fn(&mut World) -> Pfn;

/// S2: an audit that finds nothing must be able to find something.
#[test]
fn the_audit_finds_every_lie_about_leaves() {
    let lies: [(&str, Lie); 6] = [
        ("a guest leaf too many", |world| {
            let page = world.frame(8);
            let cell = world.mm.frames().word(page).unwrap();
            cell.init(cell.load().add_guest_leaf().unwrap());
            page
        }),
        ("a guest leaf too few", |world| {
            let page = world.frame(8);
            let cell = world.mm.frames().word(page).unwrap();
            cell.init(cell.load().remove_guest_leaf().unwrap());
            page
        }),
        ("a host leaf that no word tells of", |world| {
            let page = world.frame(9);
            world.share(0, 1, 1);
            world.host_read(page);
            let cell = world.mm.frames().word(page).unwrap();
            cell.init(cell.load().with_host_leaf(false));
            page
        }),
        ("another owner than the one whose table maps it", |world| {
            let page = world.frame(8);
            let cell = world.mm.frames().word(page).unwrap();
            cell.init(cell.load().with_state(State::Private, tenure_mm::Slot(2)));
            page
        }),
        ("a scrap leaf that no word tells of", |world| {
            let page = world.frame(9);
            world.share(0, 1, 1);
            world.pin_cpu(page);
            world.unshare(0, 1, 1, unshare::REVOKE);
            assert_eq!(world.touch(page, None).0, Touch::Scrap);
            let cell = world.mm.frames().word(page).unwrap();
            cell.init(cell.load().with_redirection(false));
            page
        }),
        ("a word left frozen", |world| {
            let page = world.frame(8);
            let cell = world.mm.frames().word(page).unwrap();
            std::mem::forget(cell.freeze(page, cell.load(), cell.load()).unwrap());
            page
        }),
    ];
    for (what, lie) in lies {
        let mut world = World::with_guest(PROTECTED);
        assert_eq!(audit::audit(world.mm), Vec::<String>::new());
        let page = lie(&mut world);
        let faults = audit::audit(world.mm);
        assert!(faults.iter().any(|fault| fault.contains(&format!("{page:?}"))), "{what}: {faults:?}");
        assert!(!world.violations().is_empty() || what.contains("owner"), "{what}: the machine sees nothing");
    }
}

/// S4: guest leaves, DMA leaves and the hypervisor's pins, as pins of the host.
#[test]
fn every_count_refuses_at_its_limit() {
    let mut world = World::new(Layout { frames: 64, ..Layout::default() });
    world.furnish(0, PLAIN, 0);
    let page = world.frame(60);
    let limit = page::GUEST_LEAVES.max();
    for gfn in 0..limit {
        assert_eq!(world.guest_map(0, 100 + gfn, page, 1), Some(Reply::done(1)));
    }
    assert_eq!(world.guest_map(0, 100 + limit, page, 1), blocked(Status::Busy, 0, reply::COUNT_LIMIT));
    assert_eq!(world.word(page).guest_leaves(), limit);
    // One frame at two addresses: one call for each, and no refusal that would last for ever.
    for gfn in 0..limit {
        assert_eq!(world.guest_unmap(0, 100 + gfn, limit - gfn), Some(Reply::done(1)));
    }
    assert_eq!(world.word(page).guest_leaves(), 0);

    let limit = page::DMA_LEAVES.max();
    (0..limit).for_each(|_| assert!(world.dma_map(page)));
    assert!(!world.dma_map(page));
    assert_eq!(world.word(page).dma_leaves(), limit);
    (0..limit).for_each(|_| assert_eq!(world.dma_unmap(page).reply, Reply::done(1)));
    assert_eq!(world.dma_unmap(page).reply.status, Status::Denied);

    let limit = page::HYP_PINS.max();
    (0..limit).for_each(|_| assert!(world.mm.hyp_pin(page).is_ok()));
    assert!(world.mm.hyp_pin(page).is_err());
    assert_eq!(world.word(page).hyp_pins(), limit);
    (0..limit).for_each(|_| assert!(world.mm.hyp_unpin(page).is_ok()));
    assert!(world.mm.hyp_unpin(page).is_err());
    world.verify("limits");
}

/// S7, scenario 1 with eight vCPUs: seven of them and the host only look.
#[test]
fn scenario_01_eight_vcpus_that_look_never_make_a_conversion_fail() {
    let world = World::with_guest(PROTECTED);
    let (mm, handle, page) = (world.mm, world.handles[&0], world.frame(8));
    let (stop, looks) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for cpu in 1..8usize {
            let (stop, looks) = (&stop, &looks);
            scope.spawn(move || {
                on_cpu(cpu, || {
                    let vm = mm.vm(handle).unwrap();
                    while !stop.load(Ordering::Relaxed) {
                        assert_eq!(mm.guest_fault(&vm, Ipa(0)), GuestFault::Resume);
                        let seen = mm.query_guest(&vm, Gfn(0), query::UNSHARE).unwrap();
                        assert!(matches!(seen.reply.status, Status::Success | Status::Retry));
                        assert_eq!(mm.query(page).unwrap().guest_leaves(), 1);
                        looks.fetch_add(1, Ordering::Relaxed);
                    }
                });
            });
        }
        let vm = mm.vm(handle).unwrap();
        for round in 0.. {
            assert_eq!(mm.guest_share(&vm, Gfn(0), 4), Reply::done(4), "round {round}");
            assert_eq!(mm.guest_unshare(&vm, Gfn(0), 4, Unshare::default()), Reply::done(4), "round {round}");
            if round >= 300 && looks.load(Ordering::Relaxed) > 2000 {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(world.violations(), Vec::<String>::new());
}

/// U4: the first 512 pages or none, then the rest; the lowest page that blocks is named, with its own index.
#[test]
fn a_range_beyond_512_pages_is_done_in_calls_of_512() {
    let mut world = World::new(Layout { frames: 700, ..Layout::default() });
    world.create(0, PROTECTED);
    world.topup(Some(0), world.frame(0), 8);
    world.set_status(0, 0, 640, status::PRIVATE);
    for at in (0..640).step_by(32) {
        assert_eq!(world.donate(0, at, world.frame(40 + at), 32, status::PRIVATE), Some(Reply::done(32)));
    }
    world.activate(0);
    assert_eq!(world.share(0, 0, 640), Some(Reply::done(512)));
    assert_eq!(world.state(world.frame(40 + 511)), State::Shared);
    assert_eq!(world.state(world.frame(40 + 512)), State::Private);
    assert_eq!(world.share(0, 512, 128), Some(Reply::done(128)));
    // Blocked beyond the first 512: they are done, and the next call names the page.
    world.pin_cpu(world.frame(40 + 600));
    assert_eq!(world.unshare(0, 0, 640, 0), Some(Reply::done(512)));
    assert_eq!(world.unshare(0, 512, 128, 0), blocked(Status::Busy, 88, reply::CPU_PIN));
    // Blocked at the last of them: some before it are done, or none if that is the whole range.
    world.share(0, 0, 512);
    world.pin_cpu(world.frame(40 + 511));
    assert_eq!(world.unshare(0, 0, 512, 0), blocked(Status::Busy, 511, reply::CPU_PIN));
    assert_eq!(world.state(world.frame(40)), State::Shared);
    assert_eq!(world.unshare(0, 0, 640, 0), Some(Reply::done(64)));
    assert_eq!([63, 64].map(|at| world.state(world.frame(40 + at))), [State::Private, State::Shared]);
    // With two in the way, up to the lower; and nothing where that is the first.
    world.share(0, 0, 64);
    world.host_read(world.frame(40 + 7));
    assert_eq!(world.unshare(0, 0, 640, 0), Some(Reply::done(7)));
    assert_eq!(world.unshare(0, 7, 633, 0), blocked(Status::Retry, 0, reply::HOST_LEAF));
}

/// U4, B1: what is before the page in the way may need a table, and says so.
#[test]
fn a_long_range_that_can_be_begun_asks_for_the_memory_to_begin_with() {
    let mut world = World::new(Layout::default());
    world.create(0, PROTECTED);
    world.topup(Some(0), world.frame(0), 4);
    world.set_status(0, 512, 512, status::PRIVATE);
    world.activate(0);
    let free = |world: &World| world.mm.pool_info(world.vm(0).as_deref()).0;
    while free(&world) > 0 {
        world.drain_pool(Some(0), 1);
    }
    let short = Reply { mask: reply::VM_POOL, ..Reply::refused(Status::NoMemory) };
    assert_eq!(world.mm.guest_share(&world.vm(0).unwrap(), Gfn(1002), 640), short);
    world.topup(Some(0), world.frame(8), 4);
    assert_eq!(world.share(0, 1002, 640), Some(Reply::done(22)));
    assert_eq!(world.share(0, 1024, 618), blocked(Status::Denied, 0, reply::UNPOPULATED));
}

/// U6.
#[test]
fn a_draining_page_takes_a_dma_leaf_only_under_a_dma_pin() {
    for (kind, may) in [(pin::CPU, false), (pin::DMA, true)] {
        let mut world = World::with_guest(PROTECTED);
        let page = world.frame(8);
        world.share(0, 0, 1);
        world.pin(page, 1, kind);
        world.unshare(0, 0, 1, unshare::DRAIN);
        assert_eq!(world.dma_map(page), may);
        let last = world.unpin(page, 1, kind);
        // What is left of the device's use keeps it draining; its end ends the drain.
        assert_eq!(last.drained, u64::from(!may));
        if may {
            assert_eq!(world.state(page), State::Draining);
            assert_eq!(world.dma_unmap(page).drained, 1);
        }
        assert_eq!(world.state(page), State::Private);
    }
}

/// U6: a drain under way, and DRAIN with REVOKE, which drains; a later REVOKE revokes.
#[test]
fn drain_with_revoke_drains_and_a_later_revoke_revokes() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.share(0, 0, 1);
    world.guest(0, 0, Some(0x5ec)).unwrap();
    world.pin_cpu(page);
    let both = unshare::DRAIN | unshare::REVOKE;
    assert_eq!(world.unshare(0, 0, 1, both).unwrap().status, Status::Pending);
    assert_eq!(world.touch(page, None), (Touch::Frame, Some(0x5ec)));
    assert_eq!(world.unshare(0, 0, 1, unshare::REVOKE), Some(Reply::done(1)));
    assert_eq!(world.touch(page, None), (Touch::Scrap, Some(0)));
    let late = world.unpin_cpu(page);
    assert_eq!((late.reply, late.drained), (Reply::done(1), 0), "the drain has ended once");
}

/// U9: scrap stands in for a page that is private, and goes before the page is shared again.
#[test]
fn a_share_ends_the_redirection_to_scrap_before_the_host_gets_the_page() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    world.share(0, 0, 1);
    world.pin_cpu(page);
    world.unshare(0, 0, 1, unshare::REVOKE);
    assert_eq!(world.touch(page, Some(0xbad)), (Touch::Scrap, Some(0xbad)));
    world.guest(0, 0, Some(7)).unwrap();
    assert_eq!(world.share(0, 0, 1), Some(Reply::done(1)));
    assert_eq!(world.fake().reachable(Vmid::HOST, Ipa(page.base().0), Kind::Read), vec![]);
    assert_eq!(world.touch(page, None), (Touch::Frame, Some(7)));
}

/// A pin of the hypervisor is not lost to a CPU that holds the word for longer than EL2 waits: it ends with a later call.
#[test]
fn a_pin_of_the_hypervisor_that_meets_a_frozen_word_ends_later() {
    let world = World::new(Layout::default());
    let (page, other) = (world.frame(3), world.frame(4));
    assert!(world.mm.hyp_pin(page).is_ok());
    let cell = world.mm.frames().word(page).unwrap();
    let held = cell.freeze(page, cell.load(), cell.load()).unwrap();
    assert!(world.mm.hyp_unpin(page).is_ok());
    assert!(world.mm.hyp_pin(other).is_ok());
    assert_eq!(cell.load().hyp_pins(), 1, "frozen all the time");
    drop(held);
    assert!(world.mm.hyp_unpin(other).is_ok());
    assert_eq!(cell.load().hyp_pins(), 0);
    assert!(world.mm.hyp_unpin(page).is_err(), "it is ended once");
}

/// U7: the host may not choose how a page that it shares is cached, and may again when the page is its own.
#[test]
fn the_host_decides_about_the_memory_type_of_its_own_frames_only() {
    let mut world = World::with_guest(PROTECTED);
    let pages = [world.frame(8), world.frame(9)];
    let types = |world: &World, page: Pfn| -> Vec<u8> {
        let found = world.fake().reachable(Vmid::HOST, Ipa(page.base().0), Kind::Read);
        found.iter().map(|translation| translation.attr).collect()
    };
    world.share(0, 0, 2);
    for page in pages {
        assert_eq!(world.touch(page, None).0, Touch::Frame);
        assert_eq!(types(&world, page), vec![0b110]);
    }
    world.pin_cpu(pages[1]);
    world.destroy(0);
    assert_eq!(types(&world, pages[0]), vec![]);
    assert_eq!(types(&world, pages[1]), vec![0b110], "its holder's until the unpin");
    assert_eq!(world.unpin_cpu(pages[1]).released, 1);
    for page in pages {
        assert_eq!(types(&world, page), vec![]);
        assert_eq!(world.touch(page, None).0, Touch::Frame);
        assert_eq!(types(&world, page), vec![0b111]);
    }
}

/// U7.
#[test]
fn what_is_shared_with_the_host_is_never_executable_for_it() {
    let mut world = World::with_guest(PROTECTED);
    let page = world.frame(8);
    let fetches = |world: &World| world.fake().reachable(Vmid::HOST, Ipa(page.base().0), Kind::Exec);
    world.share(0, 0, 1);
    let fetch = Access { write: false, execute: true };
    assert_eq!(world.mm.host_fault(page.base(), fetch), HostFault::Abort);
    for by_touch in [true, false] {
        if by_touch {
            assert_eq!(world.touch(page, None).0, Touch::Frame);
        } else {
            assert_eq!(world.host_map(page, 1), Reply::done(1));
        }
        assert!(world.word(page).has_host_leaf());
        assert_eq!(fetches(&world), vec![]);
        assert_eq!(world.mm.host_fault(page.base(), fetch), HostFault::Abort);
        assert_eq!(world.host_unmap(page, 1), Reply::done(1));
    }
    // Nor is the scrap that stands in for it, nor what stays with a holder when the guest has left.
    world.pin_cpu(page);
    world.unshare(0, 0, 1, unshare::REVOKE);
    assert_eq!(world.touch(page, None).0, Touch::Scrap);
    assert_eq!(fetches(&world), vec![]);
    world.relinquish(0, 0, 1);
    assert_eq!(world.touch(page, None).0, Touch::Frame);
    assert_eq!(fetches(&world), vec![]);
    world.unpin_cpu(page);
    // It is the host's again, to run what it likes.
    assert_eq!(world.mm.host_fault(page.base(), fetch), HostFault::Resume);
    assert!(!fetches(&world).is_empty());
}

/// U8: every way out, and ZERO, to those who see memory and to those who see it behind the caches.
#[test]
fn zero_is_honoured_and_every_way_out_of_a_guest_scrubs() {
    let secret = |world: &mut World, gfn| {
        world.guest(0, gfn, Some(0x5ec)).unwrap();
    };
    for mapped in [false, true] {
        let mut world = World::with_guest(PROTECTED);
        world.share(0, 0, 4);
        for gfn in 0..4 {
            secret(&mut world, gfn);
        }
        if mapped {
            assert_eq!(world.host_read(world.frame(8)), Some(0x5ec));
            assert_eq!(world.consent(0, 0, 4, unshare::ZERO), Some(Reply::done(4)));
        } else {
            assert_eq!(world.unshare(0, 0, 4, unshare::ZERO), Some(Reply::done(4)));
        }
        assert!((8..12).all(|number| world.fake().is_scrubbed(world.frame(number))));
        // A page that was private already keeps what the guest has in it.
        secret(&mut world, 0);
        assert_eq!(world.unshare(0, 0, 1, unshare::ZERO), Some(Reply::done(1)));
        assert_eq!(world.guest(0, 0, None), Ok(0x5ec));
        // Relinquish, private and shared; reclaim.
        secret(&mut world, 1);
        world.share(0, 1, 1);
        secret(&mut world, 1);
        assert_eq!(world.relinquish(0, 0, 2), Some(Reply::done(2)));
        world.share(0, 2, 1);
        secret(&mut world, 2);
        world.guest_unmap(0, 2, 1);
        assert_eq!(world.reclaim(0, world.frame(10), 1), Some(Reply::done(1)));
        for number in 8..11 {
            assert!(world.fake().is_scrubbed(world.frame(number)), "frame {number}");
            assert_eq!(world.host_read(world.frame(number)), Some(0));
        }
    }
}

/// F3: each thing that can stand in the way of a punched hole, by its own name; the status of the address survives.
#[test]
fn reclaim_of_a_live_guests_page_names_what_blocks_it_and_keeps_the_status() {
    for shared in [true, false] {
        let mut world = World::with_guest(PROTECTED);
        let page = world.frame(8);
        if !shared {
            assert_eq!(world.reclaim(0, page, 1), blocked(Status::Denied, 0, reply::STATE));
            assert_eq!(world.guest_unmap(0, 0, 1), blocked(Status::Denied, 0, reply::STATE));
            continue;
        }
        world.share(0, 0, 1);
        assert_eq!(world.reclaim(0, page, 1), blocked(Status::Retry, 0, reply::GUEST_LEAF));
        world.guest_unmap(0, 0, 1);
        assert!(world.dma_map(page));
        assert_eq!(world.reclaim(0, page, 1), blocked(Status::Retry, 0, reply::DMA_LEAF));
        world.dma_unmap(page);
        for (kind, mask) in [(pin::CPU, reply::CPU_PIN), (pin::DMA, reply::DMA_PIN)] {
            world.pin(page, 1, kind);
            assert_eq!(world.reclaim(0, page, 1), blocked(Status::Busy, 0, mask));
            world.unpin(page, 1, kind);
        }
        // The host's own leaf does not keep it from itself.
        assert_eq!(world.host_read(page), Some(0));
        assert_eq!(world.reclaim(0, page, 1), Some(Reply::done(1)));
        assert_eq!(world.guest(0, 0, None), Err(GuestFault::Populate(status::SHARED)));
    }
    // Of a plain VM, private memory too; its address stays private.
    let mut world = World::with_guest(PLAIN);
    world.guest_unmap(0, 0, 1);
    assert_eq!(world.reclaim(0, world.frame(8), 1), Some(Reply::done(1)));
    assert_eq!(world.guest(0, 0, None), Err(GuestFault::Populate(status::PRIVATE)));
}

/// F6: in this order, at every step of it: the host's way is gone, the frame is scrubbed, the guest's leaf appears.
#[test]
fn the_hosts_mapping_is_gone_before_the_guests_appears() {
    let mut world = World::with_guest(PROTECTED);
    let (mm, page) = (world.mm, world.frame(20));
    assert!(world.host_write(page, 0x5ec));
    let (scrubs, leaves) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (seen_scrubs, seen_leaves) = (scrubs.clone(), leaves.clone());
    world.fake().interfere(Some(Arc::new(move |event: &Event| {
        let gone = || {
            let ways = [Kind::Read, Kind::Write, Kind::Exec];
            ways.iter().all(|kind| mm.machine().reachable(Vmid::HOST, Ipa(page.base().0), *kind).is_empty())
        };
        match *event {
            Event::Scrub { frame, .. } if frame == page => {
                assert!(gone(), "the host may still write to what is being scrubbed");
                scrubs.fetch_add(1, Ordering::SeqCst);
            }
            Event::Write { new, .. } if new & 1 == 1 && new & 0xffff_ffff_f000 == page.base().0 => {
                assert!(gone(), "host and guest have the page at the same time");
                assert_eq!(scrubs.load(Ordering::SeqCst), 1, "the guest's leaf comes before the scrub");
                leaves.fetch_add(1, Ordering::SeqCst);
            }
            _ => (),
        }
    })));
    let reply = world.donate(0, 8, page, 1, status::PRIVATE);
    world.fake().interfere(None);
    assert_eq!(reply, Some(Reply::done(1)));
    assert_eq!((seen_scrubs.load(Ordering::SeqCst), seen_leaves.load(Ordering::SeqCst)), (1, 1));
    assert_eq!(world.guest(0, 8, None), Ok(0));
}

/// B1: with pools of every size from nothing up, each call is done or answers NO_MEMORY without a trace (the world
/// compares); topped up by what it lacks, the same call succeeds.
#[test]
fn a_failed_allocation_at_each_site_leaves_no_trace_and_the_same_call_succeeds_later() {
    let mut shortages = 0;
    for (pages, spare, blocks) in
        (0..8).map(|pages| (pages, 4, false)).chain((0..6).map(|spare| (16, spare, true)))
    {
        let frames = if blocks { 1536 } else { 128 };
        let mut world = World::new(Layout { frames, spare, blocks });
        let base = if blocks { 1024 } else { 64 };
        world.create(0, PROTECTED);
        let mut next = 0;
        // Tops up whichever pool is short, a page at a time.
        let mut insist = |world: &mut World, what: &str, act: &dyn Fn(&mut World) -> Option<Reply>| {
            for _ in 0..12 {
                let reply = act(world).unwrap();
                if reply.status != Status::NoMemory {
                    assert_eq!(reply.status, Status::Success, "{what} with {pages} pages: {reply}");
                    return;
                }
                shortages += 1;
                let vm = (reply.mask & reply::VM_POOL != 0).then_some(0);
                let page = world.frame(next);
                next += 1;
                let topup = world.topup(vm, page, 1).unwrap();
                if topup.status == Status::NoMemory {
                    // The host's own pool is short: its reserve is for this.
                    let page = world.frame(next);
                    next += 1;
                    assert_eq!(world.topup(None, page, 1), Some(Reply::done(1)));
                }
            }
            panic!("{what} with {pages} pages never succeeds");
        };
        for _ in 0..pages {
            insist(&mut world, "POOL_TOPUP", &|world| {
                let free = (32..64).map(|number| world.frame(number));
                let page = free.into_iter().find(|page| world.state(*page) == State::Host).unwrap();
                world.topup(Some(0), page, 1)
            });
        }
        insist(&mut world, "SET_STATUS", &|world| world.set_status(0, 500, 24, status::SHARED));
        insist(&mut world, "DONATE", &|world| world.donate(0, 508, world.frame(base), 8, status::SHARED));
        insist(&mut world, "CONVERT", &|world| world.convert(0, 508, 1, status::PRIVATE));
        insist(&mut world, "CONVERT of an empty page", &|world| world.convert(0, 501, 1, status::PRIVATE));
        insist(&mut world, "VM_ACTIVATE", &|world| world.activate(0));
        insist(&mut world, "UNSHARE", &|world| world.unshare(0, 508, 8, 0));
        insist(&mut world, "UNSHARE of empty pages", &|world| world.unshare(0, 516, 4, 0));
        insist(&mut world, "POISON", &|world| Some(world.poison(world.frame(base + 40))));
        world.destroy(0);
        let kept = world.model.totals()[&(State::Hyp as u8)];
        let host_pool = world.mm.pool_info(None).1;
        assert!(kept >= world.boot_pages && host_pool <= kept, "{kept} kept, {host_pool} in the host's pool");
    }
    assert!(shortages > 10, "only {shortages} shortages");
}

/// B1: with its pool spent on broken blocks, the host can still give it a page, out of a block that is whole.
#[test]
fn the_host_can_always_feed_its_own_pool() {
    let mut world = World::new(Layout { frames: 8 * 512, spare: 1, blocks: true });
    while world.drain_pool(None, 8).is_some_and(|pages| !pages.is_empty()) {}
    world.create(0, PROTECTED);
    assert_eq!(world.topup(Some(0), world.frame(0), 8), Some(Reply::done(8)));
    world.set_status(0, 0, 16, status::PRIVATE);
    let mut short = 0;
    for block in 1..7 {
        let page = world.frame(512 * block);
        let donate = |world: &mut World| world.donate(0, block, page, 1, status::PRIVATE).unwrap();
        let first = donate(&mut world);
        if first.status == Status::NoMemory {
            short += 1;
            assert_eq!(first.mask, reply::HOST_POOL);
            let from_whole_block = world.frame(512 * 7 + block);
            assert_eq!(world.topup(None, from_whole_block, 1), Some(Reply::done(1)), "block {block}");
            while donate(&mut world).status == Status::NoMemory {
                let next = world.frame(512 * 7 + 16 + short);
                assert_eq!(world.topup(None, next, 1), Some(Reply::done(1)), "block {block}");
                short += 1;
            }
        }
        assert_eq!(world.state(page), State::Private);
    }
    assert!(short > 1, "the pool was never short");
}

/// B5: after a panic of the host its crash kernel may look at all of RAM: zeros, read-only, and nothing is lost.
#[test]
fn after_a_panic_foreign_ram_reads_zero_and_nothing_can_be_written() {
    let mut world = World::with_guest(PROTECTED);
    world.guest(0, 0, Some(0x5ec)).unwrap();
    world.share(0, 1, 1);
    world.guest(0, 1, Some(0x0de)).unwrap();
    let (private, shared, pool) = (world.frame(8), world.frame(9), world.frame(0));
    world.create(1, PROTECTED);
    world.topup(Some(1), world.frame(20), 4);
    world.set_status(1, 0, 4, status::PRIVATE);
    let early = world.frame(30);
    assert_eq!(world.donate(1, 0, early, 1, status::PRIVATE), Some(Reply::done(1)));
    world.mm.enter_panic_mode();
    for page in [private, pool] {
        let look = Access { write: false, execute: false };
        assert_eq!(world.mm.host_fault(page.base(), look), HostFault::Resume);
        assert_eq!(world.fake().host_read(page, world::WORD), Some(0), "{page:?}");
        assert!(!world.fake().host_write(page, world::WORD, 1));
        let fetch = Access { write: false, execute: true };
        assert_eq!(world.mm.host_fault(page.base(), fetch), HostFault::Abort);
    }
    assert_eq!(world.mm.host_fault(shared.base(), Access::default()), HostFault::Resume);
    let dumped = world.fake().host_read(shared, world::WORD);
    assert_eq!(dumped, Some(0x0de), "what is shared is the host's to dump");
    assert_eq!(world.fake().peek(private, world::WORD), 0x5ec);
    assert_eq!(audit::audit(world.mm), Vec::<String>::new());
    // Nor of a VM that never started, and has no scrap of its own.
    assert_eq!(world.mm.host_fault(early.base(), Access::default()), HostFault::Resume);
    assert_eq!(world.fake().host_read(early, world::WORD), Some(0));
    let store = Access { write: true, execute: false };
    assert_eq!(world.mm.host_fault(early.base(), store), HostFault::Abort);
    // A reset after it brings every page home, scrubbed.
    let handle = world.handles[&0];
    world.detach(0);
    assert!((0..4096).any(|_| world.mm.vm_destroy(handle).finished));
    assert!((0..12).all(|number| world.state(world.frame(number)) == State::Host));
    assert!((8..12).all(|number| world.fake().is_scrubbed(world.frame(number))));
}

/// Scenario 24: many slots and many vCPUs convert at once, each its own four pages; forked holders are two pins.
#[test]
fn scenario_24_many_cpus_convert_many_slots_and_forked_holders_are_counted() {
    let mut world = World::new(Layout { frames: 64, ..Layout::default() });
    world.create(0, PLAIN);
    world.topup(Some(0), world.frame(0), 8);
    world.set_status(0, 0, 32, status::SHARED);
    world.donate(0, 0, world.frame(16), 16, status::SHARED);
    world.activate(0);
    let (mm, handle, first) = (world.mm, world.handles[&0], world.frame(16));
    std::thread::scope(|scope| {
        for cpu in 0..4u64 {
            scope.spawn(move || {
                on_cpu(cpu as usize, || {
                    let vm = mm.vm(handle).unwrap();
                    let slot = cpu * 4;
                    for round in 0..100 {
                        let page = first.offset(slot + round % 4);
                        assert_ne!(mm.host_fault(page.base(), Access::default()), HostFault::Abort);
                        let reply = mm.host_convert(&vm, Gfn(slot), 4, status::PRIVATE);
                        assert_eq!(reply, Reply::done(4), "slot {cpu}, round {round}");
                        assert_eq!(mm.host_fault(page.base(), Access::default()), HostFault::Abort);
                        assert_eq!(mm.host_convert(&vm, Gfn(slot), 4, status::SHARED), Reply::done(4));
                    }
                });
            });
        }
    });
    assert_eq!(world.violations(), Vec::<String>::new());
    assert_eq!(audit::audit(mm), Vec::<String>::new());
    // A holder forks: the page has two pins then, and each must go.
    for position in 0..4 {
        let mut world = World::with_guest(PLAIN);
        let page = world.frame(8 + position);
        world.share(0, 0, 4);
        world.pin_cpu(page);
        world.pin_cpu(page);
        for _ in 0..2 {
            let refused = blocked(Status::Busy, position, reply::CPU_PIN);
            assert_eq!(world.convert(0, 0, 4, status::PRIVATE), refused);
            assert_eq!(world.state(page), State::Shared);
            world.unpin_cpu(page);
        }
        assert_eq!(world.convert(0, 0, 4, status::PRIVATE), Some(Reply::done(4)));
        // Truncated and touched again: a new page, of the kind that the status says.
        world.guest_unmap(0, position, 1);
        assert_eq!(world.reclaim(0, page, 1), Some(Reply::done(1)));
        assert_eq!(world.guest(0, position, None), Err(GuestFault::Populate(status::PRIVATE)));
        assert_eq!(world.donate(0, position, page, 1, status::PRIVATE), Some(Reply::done(1)));
    }
}

/// Scenario 24 on a protected VM before its activation: the same conversions by the host, and none after it.
#[test]
fn scenario_24_a_protected_vm_is_converted_by_its_host_until_it_is_active() {
    for position in 0..4 {
        let mut world = World::new(Layout::default());
        world.create(0, PROTECTED);
        world.topup(Some(0), world.frame(0), 8);
        world.set_status(0, 0, 8, status::SHARED);
        world.donate(0, 0, world.frame(8), 4, status::SHARED);
        let page = world.frame(8 + position);
        assert!(world.host_write(page, 0x1a6e));
        world.pin_cpu(page);
        assert_eq!(
            world.mm.host_convert(&world.vm(0).unwrap(), Gfn(position), 1, status::PRIVATE),
            Reply::blocked(Status::Busy, 0, reply::CPU_PIN)
        );
        world.unpin_cpu(page);
        assert_eq!(world.convert(0, position, 1, status::PRIVATE), Some(Reply::done(1)));
        assert_eq!(world.guest(0, position, None), Ok(0x1a6e), "the image is kept");
        assert_eq!(world.touch(page, None).0, Touch::Abort);
        assert_eq!(world.convert(0, 6, 1, status::PRIVATE), Some(Reply::done(1)), "an empty page");
        assert_eq!(world.convert(0, position, 1, status::SHARED), Some(Reply::done(1)), "and back");
        world.convert(0, position, 1, status::PRIVATE);
        world.activate(0);
        for to in [status::SHARED, status::PRIVATE] {
            assert_eq!(world.convert(0, position, 1, to).unwrap().status, Status::Denied);
            assert_eq!(world.convert(0, 6, 1, to).unwrap().status, Status::Denied);
        }
        assert_eq!(world.guest(0, position, None), Ok(0x1a6e));
    }
}

/// B5: after the reset no pin is left, what they kept is scrubbed and the host's, and so is every page that it lent; an entry
/// of an IOMMU table is EL2's and stays.
#[test]
fn a_reset_leaves_nothing_that_the_next_kernel_trips_over() {
    let mut world = World::with_guest(PROTECTED);
    world.share(0, 0, 4);
    let pages: Vec<_> = (8..12).map(|number| world.frame(number)).collect();
    for page in &pages[..3] {
        assert!(world.host_write(*page, 0x401d));
        assert_eq!(world.pin_cpu(*page), Reply::done(1));
    }
    assert_eq!(world.pin(pages[0], 1, pin::DMA), Reply::done(1));
    assert!(world.dma_map(pages[2]));
    world.unshare(0, 1, 1, unshare::DRAIN);
    world.destroy(0);
    assert!(pages[..3].iter().all(|page| world.state(*page) == State::Quarantine));
    let mine = world.frame(20);
    assert_eq!(world.pin(mine, 3, pin::CPU), Reply::done(3));
    assert_eq!(world.topup(None, world.frame(30), 4), Some(Reply::done(4)));
    world.reset();
    assert_eq!(world.lent(), 0);
    assert_eq!((world.state(pages[0]), world.state(pages[1])), (State::Host, State::Host));
    assert!(!world.word(mine).is_host_pinned());
    // The last leaf is what ends the third.
    assert_eq!(world.state(pages[2]), State::Quarantine);
    assert_eq!(world.dma_unmap(pages[2]).released, 1);
    // All of it can be given away again.
    world.furnish(0, PROTECTED, 8);
    world.furnish(1, PROTECTED, 20);
}

/// The same where tables of the host's map are pages that it lent, to one another's blocks, and one block can never be whole.
#[test]
fn a_reset_brings_home_what_serves_as_a_table() {
    let mut world = World::new(Layout { frames: 2048, spare: 0, blocks: true });
    // Two pages are left from boot: one splits the block of the lent pages, one the next.
    assert_eq!(world.topup(None, world.frame(0), 8), Some(Reply::done(8)));
    world.create(0, 0);
    for block in 1..3 {
        assert_eq!(world.topup(Some(0), world.frame(block * 512), 1), Some(Reply::done(1)));
    }
    assert_eq!(world.poison(world.frame(3 * 512)), Reply::done(1));
    let total = world.mm.pool_info(None).1;
    world.reset();
    assert_eq!((world.lent(), world.mm.pool_info(None).1), (0, total - 8));
    // The broken frame's block is the only one that is split still.
    let level = |number| world.mm.host_entry(world.frame(number)).1;
    assert_eq!([level(0), level(512), level(1024), level(1536)], [2, 2, 2, 3]);
    assert_eq!(world.state(world.frame(1536)), State::Poison);
}

/// What was shown as scrap after a panic is refused again, and the scrap itself belongs to nobody's address any more.
#[test]
fn a_reset_ends_panic_mode() {
    let mut world = World::new(Layout::default());
    let pooled = world.frame(30);
    assert_eq!(world.topup(None, pooled, 1), Some(Reply::done(1)));
    let own = Pfn(world::BASE + 2);
    world.mm.enter_panic_mode();
    let look = Access::default();
    for page in [pooled, own] {
        assert_eq!(world.mm.host_fault(page.base(), look), HostFault::Resume);
        assert!(world.word(page).is_redirected());
    }
    world.mm.leave_panic_mode();
    let mut next = 0;
    let finished = (0..64).any(|_| {
        let step = world.mm.host_reset(next);
        next = step.next;
        step.finished
    });
    assert!(finished);
    assert_eq!(world.mm.host_fault(own.base(), look), HostFault::Abort);
    assert!(!world.word(own).is_redirected());
    assert_eq!(world.state(pooled), State::Host);
}
