//! Blocks of 2 MiB whose VM dies, of which two CPUs make one, of memory that is only lent; and what is left of it all.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tenure_abi::flags::{status, unshare, vm as flags};
use tenure_abi::page::State;
use tenure_abi::{Reply, Status, reply};
use tenure_mm::fake::{Event, on_cpu};
use tenure_mm::model::Touch;
use tenure_mm::{Access, Gfn, HostFault, Pfn, PinKind, audit};
use world::blocks::{BLOCK, GFN, donate, furnished, host_level, level, world};
use world::{Layout, WORD, World};

/// U9, F4: whoever holds a page, or touches one that was revoked, falls into no hole while the block dies around it.
#[test]
fn a_holder_finds_its_page_or_its_scrap_at_every_step_of_a_death() {
    let mut world = world();
    let first = world.frame(0);
    donate(&mut world, 0, GFN, first, BLOCK);
    assert_eq!(world.share(0, GFN, 8), Some(Reply::done(8)));
    for page in 0..8 {
        world.guest(0, GFN + page, Some(0x5ec)).unwrap();
    }
    // Pinned, pinned and draining, pinned and revoked, revoked alone: each touched before and not.
    for (page, pinned, flags) in
        [(0, true, 0), (2, true, unshare::DRAIN), (4, true, unshare::REVOKE), (6, false, unshare::REVOKE)]
    {
        for page in [page, page + 1] {
            if pinned {
                assert_eq!(world.pin_cpu(first.offset(page)), Reply::done(1));
            }
            if flags != 0 {
                world.unshare(0, GFN + page, 1, flags);
            }
        }
        world.touch(first.offset(page), None);
    }
    let (mm, handle) = (world.mm, world.handles[&0]);
    world.detach(0);
    for step in 0.. {
        assert!(step < 4096, "it does not end");
        let finished = mm.vm_destroy(handle).finished;
        for page in 0..8 {
            let frame = first.offset(page);
            let reads = |_| {
                let fault = || {
                    assert_eq!(
                        mm.host_fault(frame.base(), Access::default()),
                        HostFault::Resume,
                        "step {step}, page {page}: {:?}",
                        mm.query(frame)
                    )
                };
                world.fake().host_read(frame, WORD).or_else(|| {
                    fault();
                    None
                })
            };
            let read = (0..4).find_map(reads);
            let expected = if page < 4 { 0x5ec } else { 0 };
            assert_eq!(read, Some(expected), "step {step}, page {page}");
        }
        assert_eq!(audit::audit(mm), Vec::<String>::new(), "step {step}");
        if finished {
            break;
        }
    }
}

/// F4: the last pin of a page that is parked does not send it home: the scrap that stands in for it has to go first.
#[test]
fn a_page_that_is_parked_goes_home_by_its_vms_death_and_not_by_its_last_unpin() {
    let mut world = world();
    let first = world.frame(0);
    donate(&mut world, 0, GFN, first, BLOCK);
    let page = first.offset(400);
    world.share(0, GFN + 400, 1);
    world.pin_cpu(page);
    world.unshare(0, GFN + 400, 1, unshare::REVOKE);
    assert_eq!(world.touch(page, None), (Touch::Scrap, Some(0)));
    let (mm, handle) = (world.mm, world.handles[&0]);
    world.detach(0);
    while mm.query(page).unwrap().state() == State::Private {
        assert!(!mm.vm_destroy(handle).finished);
    }
    let unpinned = mm.unpin(page, 1, PinKind::Cpu);
    assert_eq!((unpinned.reply, unpinned.released), (Reply::done(1), 0));
    assert_eq!(mm.query(page).unwrap().state(), State::Quarantine);
    assert!((0..4096).any(|_| mm.vm_destroy(handle).finished));
    assert_eq!(mm.query(page).unwrap().state(), State::Host);
    assert_eq!(world.fake().host_read(page, WORD), None, "no leaf of scrap is left");
    assert_eq!(mm.host_fault(page.base(), Access::default()), HostFault::Resume);
    assert!(world.fake().host_write(page, WORD, 7) && world.fake().peek(page, WORD) == 7);
    assert_eq!(world.violations(), Vec::<String>::new());
}

/// Scenario 19: while one CPU takes a block from the host, the other is told to try again.
#[test]
fn scenario_19_a_block_that_is_being_taken_is_answered_retry() {
    let mut world = world();
    let (mm, handle, first) = (world.mm, world.handles[&0], world.frame(0));
    let asked = Arc::new(AtomicU64::new(0));
    let counter = asked.clone();
    world.fake().interfere(Some(Arc::new(move |_: &Event| {
        if mm.query(first).unwrap().is_frozen() {
            let vm = mm.vm(handle).unwrap();
            let again = || mm.donate(&vm, Gfn(GFN), first, BLOCK, status::PRIVATE);
            assert_eq!(on_cpu(1, again), Reply::blocked(Status::Retry, 0, reply::FROZEN));
            counter.fetch_add(1, Ordering::SeqCst);
        }
    })));
    let begun = world.donate(0, GFN, first, BLOCK, status::PRIVATE);
    world.fake().interfere(None);
    assert_eq!(begun, Some(Reply::done(16)));
    assert!(asked.load(Ordering::SeqCst) > 4);
    donate(&mut world, 0, GFN + 16, first.offset(16), BLOCK - 16);
    assert_eq!(level(&world, 0, GFN), 2);
}

/// Scenario 19: two CPUs populate one block of addresses, from the same frames or from others: one block comes of it, and
/// what the loser gave goes back to the host.
#[test]
fn scenario_19_two_cpus_populate_one_block_and_there_is_one() {
    for from in [[0, 0], [0, BLOCK]] {
        let world = world();
        world.fake().unwatch();
        let (mm, handle) = (world.mm, world.handles[&0]);
        let frames = from.map(|number| world.frame(number));
        let populate = |cpu: usize| {
            on_cpu(cpu, || {
                let vm = mm.vm(handle).unwrap();
                let mut done = 0;
                while done < BLOCK {
                    let at = frames[cpu].offset(done);
                    let reply = mm.donate(&vm, Gfn(GFN + done), at, BLOCK - done, status::PRIVATE);
                    match reply.status {
                        Status::Success => done += reply.done,
                        Status::Retry => std::thread::yield_now(),
                        Status::Denied => return false,
                        _ => panic!("{reply}"),
                    }
                }
                true
            })
        };
        let won = std::thread::scope(|scope| {
            let others = scope.spawn(|| populate(1));
            [populate(0), others.join().unwrap()]
        });
        assert!(won[0] || won[1]);
        assert_eq!(level(&world, 0, GFN), 2);
        let stands = |first: Pfn| {
            (0..BLOCK).all(|page| {
                let word = world.word(first.offset(page));
                word.state() == State::Private && word.guest_leaves() == 1
            })
        };
        if from[0] != from[1] {
            assert_ne!(won[0], won[1], "both have the same addresses");
            let (winner, loser) = if won[0] { (frames[0], frames[1]) } else { (frames[1], frames[0]) };
            assert!(stands(winner));
            let vm = world.vm(0).unwrap();
            for page in (0..BLOCK).step_by(8) {
                let _ = mm.reclaim(&vm, loser.offset(page), 8);
            }
            assert!((0..BLOCK).all(|page| world.state(loser.offset(page)) == State::Host));
        } else {
            assert!(stands(frames[0]));
        }
        assert_eq!(world.violations(), Vec::<String>::new());
        assert_eq!(audit::audit(mm), Vec::<String>::new());
    }
}

/// B6: blocks and pages, pins that outlive their VM, drains, scrap; and the same free pages and tables as at the start.
#[test]
fn after_any_number_of_lives_every_pool_is_as_full_as_before() {
    let mut world = World::new(Layout { frames: 2 * BLOCK + 64, spare: 2, blocks: true });
    let (before, home) = (world.mm.pool_info(None), world.model.totals());
    let first = world.frame(0);
    for life in 0..3 {
        world.create(0, flags::PROTECTED | flags::RIGHT_REVOKE);
        assert_eq!(world.topup(Some(0), world.frame(2 * BLOCK + 32), 12), Some(Reply::done(12)));
        world.set_status(0, 0, 4 * BLOCK, status::PRIVATE);
        world.activate(0);
        donate(&mut world, 0, GFN, first, BLOCK);
        donate(&mut world, 0, 7, first.offset(BLOCK + life), 3);
        world.share(0, GFN, 16);
        world.touch(first.offset(1), None);
        world.pin_cpu(first.offset(2));
        world.pin_cpu(first.offset(3));
        world.unshare(0, GFN + 2, 1, unshare::DRAIN);
        world.unshare(0, GFN + 3, 1, unshare::REVOKE);
        world.touch(first.offset(3), None);
        world.relinquish(0, GFN + 5, 2);
        world.destroy(0);
        world.unpin_cpu(first.offset(2));
        world.unpin_cpu(first.offset(3));
        assert_eq!(world.model.totals(), home, "frames, life {life}");
        for _ in 0..16 {
            let _ = world.mm.pool_drain(None, 1);
        }
        assert_eq!(world.mm.pool_info(None), before, "life {life}");
        assert_eq!(
            [host_level(&world, first), host_level(&world, first.offset(BLOCK))],
            [2, 2],
            "life {life}"
        );
    }
}

/// Memory that a plain VM only maps stays the host's: its block goes with the VM, the pages and what is in them stay.
#[test]
fn a_block_of_lent_memory_outlives_its_vm_with_its_contents() {
    let mut world = furnished(&World::new, 0);
    let first = world.frame(0);
    assert_eq!(world.set_status(0, GFN, BLOCK, status::NONE), Some(Reply::done(BLOCK)));
    world.pin_cpu(first.offset(3));
    for page in (0..BLOCK).step_by(30) {
        let count = (BLOCK - page).min(30);
        assert_eq!(world.guest_map(0, GFN + page, first.offset(page), count), Some(Reply::done(count)));
    }
    assert_eq!(level(&world, 0, GFN), 2, "one leaf");
    for page in [0, 3, 511] {
        world.guest(0, GFN + page, Some(0x100 + page)).unwrap();
    }
    world.fake().reset_log();
    world.destroy(0);
    for page in [0, 3, 511] {
        assert_eq!(world.state(first.offset(page)), State::Host);
        assert_eq!(world.touch(first.offset(page), None), (Touch::Frame, Some(0x100 + page)), "page {page}");
    }
    assert_eq!(world.word(first.offset(3)).cpu_pins(), 1);
    assert_eq!(host_level(&world, first), 2, "the host's block was never broken");
    world.unpin_cpu(first.offset(3));
}

/// B1: what a block takes tables for, with pools of every size: the host's, to give it away; the VM's, to have it, to cut it,
/// and to note what a merge keeps.
#[test]
fn a_shortage_at_each_site_of_a_block_leaves_no_trace_and_the_same_call_succeeds_later() {
    let (mut of_vm, mut of_host) = (0, 0);
    for (spare, pages) in [(0, 1), (1, 2), (2, 3), (0, 5)] {
        let mut world = World::new(Layout { frames: 3 * BLOCK, spare, blocks: true });
        world.audit_every = 8;
        let (first, mut next) = (world.frame(0), 2 * BLOCK);
        let mut insist = |world: &mut World, what: &str, act: &dyn Fn(&mut World) -> Option<Reply>| {
            // Nothing is left in stock: whoever needs a page is short of it.
            world.drain_pool(Some(0), 8);
            while world.drain_pool(None, 8).is_some_and(|pages| !pages.is_empty()) {}
            for _ in 0..12 {
                let books = |world: &World| {
                    let vm = world.mm.pool_info(world.vm(0).as_deref());
                    (vm, world.mm.pool_info(None), host_level(world, first))
                };
                let before = books(world);
                let reply = act(world).unwrap();
                if reply.status != Status::NoMemory {
                    assert_eq!(reply.status, Status::Success, "{what}: {reply}");
                    return reply.done;
                }
                // A declaration keeps the tables that it has made so far.
                assert!(books(world) == before || what.starts_with("SET_STATUS"), "{what}");
                let vm = (reply.mask & reply::VM_POOL != 0).then_some(0);
                *(if vm.is_some() { &mut of_vm } else { &mut of_host }) += 1;
                let page = world.frame(next);
                next += 1;
                if world.topup(vm, page, 1).unwrap().status == Status::NoMemory {
                    assert_eq!(world.topup(None, page, 1), Some(Reply::done(1)));
                }
            }
            panic!("{what} never succeeds");
        };
        world.create(0, flags::RIGHT_REVOKE);
        insist(&mut world, "POOL_TOPUP", &|world| world.topup(Some(0), world.frame(2 * BLOCK + 100), pages));
        insist(&mut world, "VM_ACTIVATE", &|world| world.activate(0));
        for from in [0, 2 * BLOCK] {
            insist(&mut world, "SET_STATUS", &|world| world.set_status(0, from, 2 * BLOCK, status::PRIVATE));
        }
        let mut done = 0;
        while done < BLOCK {
            let donate = |world: &mut World| {
                world.donate(0, GFN + done, first.offset(done), BLOCK - done, status::PRIVATE)
            };
            done += insist(&mut world, "DONATE", &donate);
        }
        assert_eq!(level(&world, 0, GFN), 2);
        insist(&mut world, "SHARE", &|world| world.share(0, GFN, BLOCK));
        for gfn in [GFN + 9, GFN + 300] {
            insist(&mut world, "GUEST_UNMAP", &|world| world.guest_unmap(0, gfn, 1));
            let frame = first.offset(gfn - GFN);
            insist(&mut world, "GUEST_MAP", &|world| world.guest_map(0, gfn, frame, 1));
        }
        insist(&mut world, "RELINQUISH", &|world| world.relinquish(0, GFN + 77, 2));
        insist(&mut world, "SHARE of an empty page", &|world| world.share(0, 3 * BLOCK + 5, 1));
        insist(&mut world, "UNSHARE of empty pages", &|world| world.unshare(0, 3 * BLOCK, 8, 0));
        insist(&mut world, "SET_STATUS of a page", &|world| {
            world.set_status(0, 1000 * BLOCK, 1, status::NONE)
        });
        insist(&mut world, "GUEST_MAP of lent memory", &|world| {
            world.guest_map(0, 1000 * BLOCK, first.offset(BLOCK), 1)
        });
        world.destroy(0);
        assert!((0..2 * BLOCK).all(|page| world.state(first.offset(page)) == State::Host));
    }
    assert!(of_vm > 4 && of_host > 0, "{of_vm} shortages of the VM's pool, {of_host} of the host's");
}
