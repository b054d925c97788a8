//! Blocks of 2 MiB, on the adversarial machine and beside the model: donated in steps, cut, merged, taken down.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

mod world;

use std::sync::{Arc, Mutex};

use tenure_abi::flags::{pin, status, unshare, vm as flags};
use tenure_abi::page::State;
use tenure_abi::{Reply, Status, reply};
use tenure_mm::fake::Event;
use tenure_mm::model::Touch;
use tenure_mm::stage2::guest::{Cursor, walk};
use tenure_mm::{Access, Gfn, GuestFault, HostFault, Pfn, audit};
use world::blocks::{BLOCK, GFN, donate, furnished, host_level, level, world};
use world::{Layout, World};

#[test]
fn a_block_is_donated_whole_and_stands_as_one() {
    let mut world = world();
    let first = world.frame(0);
    assert_eq!(donate(&mut world, 0, GFN, first, BLOCK), 12);
    assert_eq!(level(&world, 0, GFN + 100), 2);
    assert_eq!(world.guest(0, GFN + 511, Some(7)), Ok(7));
    assert_eq!(world.guest(0, GFN, None), Ok(0));
    // Shared and taken back, it stays one.
    assert_eq!(world.share(0, GFN + 3, 1), Some(Reply::done(1)));
    assert_eq!(world.touch(first.offset(3), Some(5)).0, Touch::Frame);
    assert_eq!(world.guest(0, GFN + 3, None), Ok(5));
    assert_eq!(world.share(0, GFN, BLOCK), Some(Reply::done(BLOCK)));
    assert_eq!(world.unshare(0, GFN, 3, 0), Some(Reply::done(3)));
    assert_eq!(level(&world, 0, GFN + 3), 2);
    world.destroy(0);
}

#[test]
fn a_range_that_begins_before_a_block_takes_pages_up_to_it_then_blocks() {
    let mut world = world();
    let first = world.frame(500);
    donate(&mut world, 0, GFN - 12, first, 12 + BLOCK + 20);
    assert_eq!([level(&world, 0, GFN - 1), level(&world, 0, GFN), level(&world, 0, GFN + BLOCK)], [3, 2, 3]);
    world.destroy(0);
}

#[test]
fn page_by_page_it_comes_to_the_same_and_is_merged_when_it_is_whole() {
    let mut world = world();
    let first = world.frame(0);
    for page in (0..BLOCK).step_by(100) {
        assert_eq!(level(&world, 0, GFN), if page == 0 { 2 } else { 3 });
        donate(&mut world, 0, GFN + page, first.offset(page), (BLOCK - page).min(100));
    }
    assert_eq!(level(&world, 0, GFN), 2);
    let pages = world.word(first.offset(17)).raw();
    let mut other = world::blocks::world();
    let first = other.frame(0);
    donate(&mut other, 0, GFN, first, BLOCK);
    assert_eq!(other.word(first.offset(17)).raw(), pages, "word by word the same");
}

#[test]
fn a_block_that_was_cut_is_merged_again_when_it_is_whole_and_takes_no_table_for_it() {
    let mut world = furnished(&World::new, 0);
    let first = world.frame(0);
    donate(&mut world, 0, GFN, first, BLOCK);
    let mut free = None;
    for _ in 0..3 {
        assert_eq!(world.guest_unmap(0, GFN + 9, 2), Some(Reply::done(2)));
        assert_eq!(level(&world, 0, GFN + 100), 3);
        assert_eq!(world.guest(0, GFN + 9, None), Err(GuestFault::Populate(status::PRIVATE)));
        assert_eq!(world.reclaim(0, first.offset(9), 2), Some(Reply::done(2)));
        // Another frame at the place: no block.
        donate(&mut world, 0, GFN + 10, first.offset(10), 1);
        assert_eq!(level(&world, 0, GFN + 100), 3);
        donate(&mut world, 0, GFN + 9, first.offset(9), 1);
        assert_eq!(level(&world, 0, GFN + 100), 2);
        let vm = world.vm(0).unwrap();
        let now = world.mm.pool_info(Some(&vm)).0;
        assert_eq!(*free.get_or_insert(now), now, "what was kept serves again");
    }
    world.destroy(0);
    assert!(world.model.frames.values().all(|frame| frame.owner.is_none()));
}

#[test]
fn while_a_page_is_cut_out_the_others_stay_in_reach() {
    let mut world = furnished(&World::new, 0);
    let first = world.frame(0);
    donate(&mut world, 0, GFN, first, BLOCK);
    assert_eq!(world.guest(0, GFN + 5, Some(55)), Ok(55));
    // At every step of the cut the guest finds the page, or is told to look again.
    let (mm, vm) = (world.mm, world.handles[&0]);
    world.fake().interfere(Some(Arc::new(move |_: &Event| {
        let vm = mm.vm(vm).unwrap();
        let entry = walk(mm.machine(), vm.root().unwrap(), Gfn(GFN + 5));
        let here = entry.is_leaf() && entry.frame_of(Gfn(GFN + 5)) == first.offset(5);
        assert!(here || entry.descriptor.is_moving());
        if !here {
            assert_eq!(mm.guest_fault(&vm, Gfn(GFN + 5).base()), GuestFault::Resume);
            assert_eq!(mm.guest_share(&vm, Gfn(GFN + 5), 1).mask, reply::FROZEN);
        }
    })));
    assert_eq!(world.guest_unmap(0, GFN + 9, 1), Some(Reply::done(1)));
    world.fake().interfere(None);
    assert_eq!(world.guest(0, GFN + 5, None), Ok(55));
}

/// What another CPU does that wants the block for itself (a donation to another VM, a merge): it freezes the word, finds
/// it parked, and puts back what it found, at some moment of the call.
fn looked_at_during<R>(world: &mut World, word: Pfn, call: impl FnOnce(&mut World) -> R) -> R {
    let held = Arc::new(Mutex::new(None));
    let (mm, hand) = (world.mm, held.clone());
    world.fake().unwatch();
    world.fake().interfere(Some(Arc::new(move |event: &Event| {
        let cell = mm.frames().word(word).unwrap();
        let now = cell.load();
        let late = matches!(event, Event::IcacheAll { .. } | Event::Scrub { .. });
        if late && !now.is_frozen() && now.state() == State::Quarantine {
            hand.lock().unwrap().get_or_insert_with(|| cell.freeze(word, now, now).unwrap());
        }
    })));
    let answer = call(world);
    world.fake().interfere(None);
    assert!(held.lock().unwrap().take().is_some(), "the other CPU was there");
    answer
}

#[test]
fn who_looks_at_a_parked_block_of_another_vm_cannot_undo_its_adoption() {
    let mut world = world();
    let first = world.frame(0);
    let (mm, handle) = (world.mm, world.handles[&0]);
    let donate = |from: u64| {
        mm.donate(&mm.vm(handle).unwrap(), Gfn(GFN + from), first.offset(from), BLOCK - from, status::PRIVATE)
    };
    let mut done = 0;
    while done < BLOCK - 16 {
        done += donate(done).done;
    }
    let refused = looked_at_during(&mut world, first, |_| donate(done));
    assert_eq!((refused.status, refused.mask), (Status::Retry, reply::FROZEN));
    assert_eq!(world.state(first), State::Quarantine);
    assert!(donate(done).is_success());
    assert!(mm.query(first).unwrap().state() == State::Private);
    // The host cannot take back what the guest has.
    assert_eq!(mm.reclaim(&mm.vm(handle).unwrap(), first, 1).status, Status::Denied);
    assert_eq!(audit::audit(mm), Vec::<String>::new());
}

#[test]
fn a_look_at_the_word_of_a_group_costs_a_scrub_at_most() {
    let mut world = world();
    let first = world.frame(0);
    let (mm, handle) = (world.mm, world.handles[&0]);
    let donate = |from: u64| {
        mm.donate(&mm.vm(handle).unwrap(), Gfn(GFN + from), first.offset(from), BLOCK - from, status::PRIVATE)
    };
    assert_eq!(donate(0).done, 16);
    let leader = first.offset(16);
    let refused = looked_at_during(&mut world, leader, |_| donate(16));
    assert_eq!((refused.status, refused.mask, refused.done), (Status::Retry, reply::FROZEN, 0));
    assert!(world.word(leader).owes_scrub());
    assert_eq!(donate(16).done, 48);
    // A frame goes while the word of its group is looked at: it does not.
    let cell = mm.frames().word(leader).unwrap();
    let looked = cell.freeze(leader, cell.load(), cell.load()).unwrap();
    let vm = mm.vm(handle).unwrap();
    let refused = mm.reclaim(&vm, first.offset(20), 1);
    assert_eq!((refused.status, refused.mask), (Status::Retry, reply::FROZEN));
    drop(looked);
    assert!(!world.word(leader).owes_scrub());
    assert_eq!(mm.reclaim(&vm, first.offset(20), 1), Reply::done(1));
    assert!(world.word(leader).owes_scrub());
}

#[test]
fn while_the_hosts_block_is_split_or_merged_its_pages_never_abort() {
    let mut world = world();
    let (mm, first) = (world.mm, world.frame(0));
    let look = move |page: u64| {
        move |_: &Event| {
            let access = Access { write: true, execute: false };
            assert_eq!(mm.host_fault(first.offset(page).base(), access), HostFault::Resume);
        }
    };
    world.fake().interfere(Some(Arc::new(look(5))));
    donate(&mut world, 0, 7, first.offset(9), 1);
    assert_eq!(host_level(&world, first), 3);
    world.relinquish(0, 7, 1);
    for _ in 0..4 {
        let _ = mm.pool_drain(None, 1);
    }
    world.fake().interfere(None);
    assert_eq!(host_level(&world, first), 2);
    assert_eq!(world.touch(first.offset(5), Some(1)).0, Touch::Frame);
}

#[test]
fn one_page_that_is_in_use_refuses_the_block_and_nothing_has_changed() {
    let mut world = world();
    let first = world.frame(0);
    world.pin(first.offset(300), 1, pin::CPU);
    let refused = world.donate(0, GFN, first, BLOCK, status::PRIVATE).unwrap();
    assert_eq!((refused.status, refused.first, refused.mask), (Status::Busy, 300, reply::CPU_PIN));
    assert_eq!(host_level(&world, first), 2, "not even the host's block");
    assert_eq!(world.touch(first.offset(5), Some(1)).0, Touch::Frame);
}

#[test]
fn no_table_memory_changes_nothing_and_the_same_call_then_succeeds() {
    let mut world = World::new(Layout { frames: 2 * BLOCK + 64, spare: 0, blocks: true });
    world.create(0, 0);
    // A root table, and no more: one entry of it declares a gigabyte.
    assert_eq!(world.topup(Some(0), world.frame(2 * BLOCK), 1), Some(Reply::done(1)));
    let vm = world.vm(0).unwrap();
    assert_eq!(world.mm.set_status(&vm, Gfn(0), 1 << 18, status::PRIVATE), Reply::done(1 << 18));
    drop(vm);
    for gfn in 0..2 * BLOCK {
        world.model.vms.get_mut(&0).unwrap().addresses.entry(gfn).or_default().status = status::PRIVATE;
    }
    let first = world.frame(0);
    let refused = world.donate(0, GFN, first, BLOCK, status::PRIVATE).unwrap();
    assert_eq!((refused.status, refused.mask), (Status::NoMemory, reply::VM_POOL));
    assert_eq!(host_level(&world, first), 2, "not even the host's block");
    assert_eq!(world.topup(Some(0), world.frame(2 * BLOCK + 1), 1), Some(Reply::done(1)));
    donate(&mut world, 0, GFN, first, BLOCK);
    // To cut the block takes another.
    let refused = world.guest_unmap(0, GFN + 3, 1).unwrap();
    assert_eq!((refused.status, refused.mask), (Status::NoMemory, reply::VM_POOL));
    assert_eq!(level(&world, 0, GFN), 2);
    assert_eq!(world.topup(Some(0), world.frame(2 * BLOCK + 2), 1), Some(Reply::done(1)));
    assert_eq!(world.guest_unmap(0, GFN + 3, 1), Some(Reply::done(1)));
    world.destroy(0);
}

#[test]
fn what_is_parked_is_in_nobodys_reach_and_comes_back_when_it_is_asked_for() {
    let mut world = world();
    let first = world.frame(0);
    let begun = world.donate(0, GFN, first, BLOCK, status::PRIVATE).unwrap();
    assert_eq!(begun, Reply::done(16));
    assert_eq!(world.state(first.offset(400)), State::Quarantine);
    assert_eq!(world.touch(first.offset(400), Some(1)).0, Touch::Abort);
    assert_eq!(world.guest(0, GFN, None), Err(GuestFault::Populate(status::PRIVATE)));
    world.pin(first, 1, pin::CPU);
    world.host_map(first, 1);
    world.host_unmap(first, BLOCK);
    world.poison(first);
    for page in (0..BLOCK).step_by(32) {
        assert_eq!(world.reclaim(0, first.offset(page), 32), Some(Reply::done(32)));
    }
    assert_eq!(world.state(first.offset(400)), State::Host);
    donate(&mut world, 0, GFN, first, BLOCK);
}

#[test]
fn a_vm_that_dies_with_parked_frames_leaves_none_behind() {
    let mut world = world();
    let first = world.frame(0);
    assert_eq!(world.donate(0, GFN, first, BLOCK, status::PRIVATE), Some(Reply::done(16)));
    world.destroy(0);
    assert!((0..BLOCK).all(|page| world.state(first.offset(page)) == State::Host));
}

#[test]
fn a_hostile_host_cannot_give_a_block_that_was_not_scrubbed_or_is_not_whole() {
    let mut world = world();
    let first = world.frame(0);
    let private = status::PRIVATE;
    world.touch(first.offset(200), Some(0xbad));
    assert_eq!(world.donate(0, GFN, first, BLOCK, private), Some(Reply::done(16)));
    // It skips the middle.
    let skipped = world.donate(0, GFN + 496, first.offset(496), 16, private).unwrap();
    assert_eq!((skipped.status, skipped.mask), (Status::Denied, reply::STATE));
    // It begins again, with another address, kind, or VM.
    assert_eq!(world.donate(0, GFN, first, BLOCK, private).unwrap().status, Status::Success);
    let shared = world.donate(0, GFN + 16, first.offset(16), 496, status::SHARED).unwrap();
    assert_eq!(shared.status, Status::Denied);
    // It takes a page back, writes to it, and goes on.
    assert_eq!(world.reclaim(0, first.offset(20), 1), Some(Reply::done(1)));
    assert_eq!(world.touch(first.offset(20), Some(0xbad)).0, Touch::Frame);
    let holed = world.donate(0, GFN + 16, first.offset(16), 496, private).unwrap();
    assert_eq!((holed.status, holed.first), (Status::Denied, 0));
    let alone = world.donate(0, GFN + 20, first.offset(20), 1, private).unwrap();
    assert!(alone.is_success(), "a page of its own, scrubbed");
    let end = world.donate(0, GFN + 496, first.offset(496), 16, private).unwrap();
    assert_eq!(end.status, Status::Denied);
    world.destroy(0);
}

#[test]
fn a_parked_block_goes_to_one_address_only() {
    let mut world = world();
    let first = world.frame(0);
    assert_eq!(world.donate(0, GFN, first, BLOCK, status::PRIVATE), Some(Reply::done(16)));
    // Half of the steps name one block of addresses, the others another: the last one decides.
    let half = world.donate(0, GFN + 16, first.offset(16), BLOCK - 16, status::PRIVATE);
    assert_eq!(half, Some(Reply::done(48)));
    donate(&mut world, 0, 2 * BLOCK + 64, first.offset(64), BLOCK - 64);
    assert_eq!([level(&world, 0, 2 * BLOCK), level(&world, 0, GFN)], [2, 2]);
    assert_eq!(world.guest(0, GFN, None), Err(GuestFault::Populate(status::PRIVATE)));
    assert_eq!(world.guest(0, 2 * BLOCK, None), Ok(0));
}

#[test]
fn two_vms_cannot_have_one_block() {
    let mut world = world();
    world.create(1, flags::PROTECTED);
    assert_eq!(world.topup(Some(1), world.frame(2 * BLOCK + 48), 8), Some(Reply::done(8)));
    world.set_status(1, 0, 2 * BLOCK, status::PRIVATE);
    let first = world.frame(0);
    assert_eq!(world.donate(0, GFN, first, BLOCK, status::PRIVATE), Some(Reply::done(16)));
    let other = world.donate(1, GFN + 16, first.offset(16), 496, status::PRIVATE).unwrap();
    assert_eq!(other.status, Status::Denied);
    assert_eq!(world.reclaim(1, first, 1).unwrap().status, Status::Denied);
    donate(&mut world, 0, GFN + 16, first.offset(16), BLOCK - 16);
}

#[test]
fn a_pending_interrupt_ends_a_step_early() {
    let mut world = world();
    let first = world.frame(0);
    assert_eq!(world.donate(0, GFN, first, BLOCK, status::PRIVATE), Some(Reply::done(16)));
    world.fake().want_attention(1);
    let vm = world.vm(0).unwrap();
    let reply = world.mm.donate(&vm, Gfn(GFN + 16), first.offset(16), BLOCK - 16, status::PRIVATE);
    assert_eq!(reply, Reply::done(16));
}

#[test]
fn a_block_dies_with_every_kind_of_page_in_it() {
    let mut world = world();
    let first = world.frame(0);
    donate(&mut world, 0, GFN, first, BLOCK);
    assert_eq!(world.share(0, GFN, 100), Some(Reply::done(100)));
    for page in 0..40 {
        world.touch(first.offset(page), Some(page));
    }
    world.pin(first.offset(20), 10, pin::CPU);
    world.pin(first.offset(50), 1, pin::DMA);
    assert_eq!(world.unshare(0, GFN + 25, 1, unshare::DRAIN).unwrap().status, Status::Pending);
    assert_eq!(world.unshare(0, GFN + 26, 1, unshare::REVOKE), Some(Reply::done(1)));
    world.touch(first.offset(26), None);
    world.destroy(0);
    assert_eq!(world.state(first.offset(21)), State::Quarantine);
    assert_eq!(world.touch(first.offset(21), None).0, Touch::Frame);
    world.unpin(first.offset(20), 10, pin::CPU);
    world.unpin(first.offset(50), 1, pin::DMA);
    assert!((0..BLOCK).all(|page| world.state(first.offset(page)) == State::Host));
}

#[test]
fn the_hosts_blocks_come_back_lazily() {
    let mut world = world();
    let first = world.frame(0);
    donate(&mut world, 0, GFN, first, BLOCK);
    world.destroy(0);
    assert_eq!(host_level(&world, first), 3, "it may be wanted again at once");
    let free = world.mm.pool_info(None).0;
    // A host that asks for its tables gets them: what is whole is merged.
    for _ in 0..4 {
        let _ = world.mm.pool_drain(None, 1);
    }
    assert_eq!(host_level(&world, first), 2);
    assert!(world.mm.pool_info(None).0 >= free);
    assert_eq!(world.touch(first.offset(7), Some(1)).0, Touch::Frame);
    world.verify("merged");
}

#[test]
fn with_range_tlbi_a_long_run_is_one_invalidation() {
    let mut world = world();
    world.fake().give_range_tlbi();
    let first = world.frame(0);
    donate(&mut world, 0, GFN, first, BLOCK);
    assert_eq!(world.share(0, GFN, BLOCK), Some(Reply::done(BLOCK)));
    for page in 0..BLOCK {
        world.touch(first.offset(page), Some(page));
    }
    let before = world.fake().counts().tlbis;
    assert_eq!(world.consent(0, GFN, BLOCK, 0), Some(Reply::done(BLOCK)));
    assert_eq!(world.fake().counts().tlbis - before, 2, "one range, and the combined entries");
    world.destroy(0);
}

#[test]
fn the_hosts_block_is_not_merged_over_a_guests_page() {
    let mut world = world();
    let first = world.frame(0);
    donate(&mut world, 0, 0, first.offset(5), 1);
    donate(&mut world, 0, 1, first.offset(6), 1);
    assert_eq!(world.relinquish(0, 1, 1), Some(Reply::done(1)));
    for _ in 0..4 {
        let _ = world.mm.pool_drain(None, 1);
    }
    world.verify("looked at");
    assert_eq!(host_level(&world, first), 3);
}

#[test]
fn a_walk_that_holds_a_merged_table_starts_again() {
    let mut world = world();
    let first = world.frame(0);
    donate(&mut world, 0, GFN, first, 250);
    let mut cursor = Cursor::new(world.vm(0).unwrap().root().unwrap());
    assert!(cursor.entry(world.fake(), Gfn(GFN + 3)).is_leaf());
    donate(&mut world, 0, GFN + 250, first.offset(250), 262);
    assert_eq!(level(&world, 0, GFN), 2);
    assert!(cursor.entry(world.fake(), Gfn(GFN + 3)).descriptor.is_moving());
}

#[test]
fn a_page_taken_back_after_its_scrub_keeps_the_block_from_being_given() {
    let mut world = world();
    let first = world.frame(0);
    let mut done = 0;
    while done < BLOCK - 16 {
        let kind = status::PRIVATE;
        let reply = world.donate(0, GFN + done, first.offset(done), BLOCK - done, kind).unwrap();
        done += reply.done;
    }
    assert_eq!(done, BLOCK - 16);
    assert_eq!(world.reclaim(0, first.offset(20), 1), Some(Reply::done(1)));
    let last = world.donate(0, GFN + done, first.offset(done), 16, status::PRIVATE).unwrap();
    assert_eq!((last.status, last.mask), (Status::Denied, reply::STATE));
    assert_eq!(world.touch(first.offset(20), Some(3)).0, Touch::Frame);
    world.destroy(0);
}

#[test]
fn every_step_of_a_death_leaves_the_books_in_order() {
    let mut world = world();
    let first = world.frame(0);
    donate(&mut world, 0, GFN, first, BLOCK);
    donate(&mut world, 0, 0, first.offset(BLOCK), 40);
    assert_eq!(world.share(0, GFN + 7, 3), Some(Reply::done(3)));
    world.touch(first.offset(7), Some(1));
    let handle = world.handles[&0];
    for step in 0.. {
        assert!(step < 4096, "it does not end");
        let finished = world.mm.vm_destroy(handle).finished;
        assert_eq!(tenure_mm::audit::audit(world.mm), Vec::<String>::new(), "step {step}");
        if finished {
            break;
        }
    }
    assert!((0..BLOCK).all(|page| world.state(first.offset(page)) == State::Host));
}
