//! The measurement of a first image: hashed in parts, it is the measurement of what the guest will find.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

mod world;

use std::sync::Arc;

use tenure_abi::flags::{status, vm as vm_flags};
use tenure_abi::{Reply, Status, reply};
use tenure_mm::fake::Event;
use tenure_mm::{Gfn, GuestFault};
use world::{Layout, World};

/// A VM that is not active, with two shared pages at 0 and 1, scrubbed.
fn world() -> World {
    let mut world = World::new(Layout::default());
    world.create(0, vm_flags::PROTECTED);
    world.topup(Some(0), world.frame(0), 8);
    world.set_status(0, 0, 8, status::SHARED);
    world.donate(0, 0, world.frame(8), 2, status::SHARED);
    world
}

/// Entries to EL2 until a page is converted and measured.
fn parts(world: &World) -> usize {
    let vm = world.vm(0).unwrap();
    let convert = || world.mm.host_convert_part(&vm, Gfn(0), 1, status::PRIVATE);
    let parts = (0..100).take_while(|_| convert().is_none()).count();
    assert!(parts < 100, "it ends");
    parts
}

#[test]
fn no_entry_hashes_more_than_a_sixteenth_of_a_page() {
    assert!(parts(&world()) > 16);
}

#[test]
fn an_image_of_many_pages_is_synchronised_for_execution_at_once() {
    let mut world = World::new(Layout::default());
    world.create(0, 0);
    world.topup(Some(0), world.frame(0), 8);
    world.set_status(0, 0, 8, status::SHARED);
    world.donate(0, 0, world.frame(8), 8, status::SHARED);
    (8..16).for_each(|page| assert!(world.host_write(world.frame(page), 0x1a6e)));
    let before = world.fake().counts();
    assert_eq!(world.convert(0, 0, 8, status::PRIVATE), Some(Reply::done(8)));
    let counts = world.fake().counts();
    assert_eq!((counts.icache - before.icache, counts.cleans - before.cleans), (1, 8));
}

#[test]
fn a_vm_is_not_active_before_its_last_page_is_measured() {
    let world = world();
    let vm = world.vm(0).unwrap();
    let frozen = Reply::blocked(Status::Retry, 0, reply::FROZEN);
    let again = |answer: Reply| (answer.status, answer.mask) == (frozen.status, frozen.mask);
    assert_eq!(world.mm.host_convert_part(&vm, Gfn(0), 1, status::PRIVATE), None);
    assert!(again(world.mm.vm_activate(&vm)));
    assert!(again(world.mm.host_convert(&vm, Gfn(1), 1, status::PRIVATE)), "one page at a time");
    assert!(again(world.mm.host_convert(&vm, Gfn(0), 1, status::SHARED)), "and not back");
    assert_eq!(world.mm.host_convert(&vm, Gfn(0), 1, status::PRIVATE), Reply::done(1));
    assert!(world.mm.vm_activate(&vm).is_success());
}

#[test]
fn a_page_that_is_replaced_while_it_is_measured_is_measured_as_what_it_is() {
    let honest = world();
    parts(&honest);
    let mut liar = world();
    let (first, other) = (liar.frame(8), liar.frame(10));
    assert!(liar.host_write(first, 0x1a6e));
    let vm = liar.vm(0).unwrap();
    for _ in 0..5 {
        assert_eq!(liar.mm.host_convert_part(&vm, Gfn(0), 1, status::PRIVATE), None);
    }
    assert_eq!(liar.mm.guest_unmap(&vm, Gfn(0), 1), Reply::done(1));
    assert_eq!(liar.mm.reclaim(&vm, first, 1), Reply::done(1));
    assert_eq!(liar.mm.donate(&vm, Gfn(0), other, 1, status::PRIVATE), Reply::done(1));
    parts(&liar);
    let measured = |world: &World| world.mm.vm_measurement(&world.vm(0).unwrap());
    let told = |other: &World| {
        let vm = other.vm(0).unwrap();
        for _ in 0..5 {
            assert_eq!(other.mm.host_convert_part(&vm, Gfn(0), 1, status::PRIVATE), None);
        }
        assert_eq!(other.mm.guest_unmap(&vm, Gfn(0), 1), Reply::done(1));
        let frame = other.frame(8);
        assert_eq!(other.mm.reclaim(&vm, frame, 1), Reply::done(1));
        assert_eq!(other.mm.donate(&vm, Gfn(0), frame, 1, status::PRIVATE), Reply::done(1));
        parts(other);
    };
    assert_ne!(measured(&liar), measured(&honest), "it was replaced");
    let honest = world();
    told(&honest);
    assert_eq!(measured(&liar), measured(&honest), "zeros, as both guests will find");
}

#[test]
fn a_page_that_was_measured_does_not_go_in_silence() {
    let measured = |world: &World| world.mm.vm_measurement(&world.vm(0).unwrap());
    let world = world();
    let (vm, frame) = (world.vm(0).unwrap(), world.frame(8));
    assert_eq!(world.mm.host_convert(&vm, Gfn(0), 1, status::PRIVATE), Reply::done(1));
    let complete = measured(&world);
    // What is still shared is no part of the image.
    assert_eq!(world.mm.guest_unmap(&vm, Gfn(1), 1), Reply::done(1));
    assert_eq!(measured(&world), complete);
    // Zeros in its place would be what the guest finds.
    assert_eq!(world.mm.guest_unmap(&vm, Gfn(0), 1), Reply::done(1));
    assert_eq!(world.mm.reclaim(&vm, frame, 1), Reply::done(1));
    assert_eq!(world.mm.donate(&vm, Gfn(0), frame, 1, status::PRIVATE), Reply::done(1));
    assert_ne!(measured(&world), complete);
}

#[test]
fn an_unmap_that_began_before_the_activation_takes_nothing_after_it() {
    let world = World::with_guest(vm_flags::PROTECTED);
    let mm = world.mm;
    let handle = mm.vm_create(vm_flags::PROTECTED).unwrap();
    let vm = mm.vm(handle).unwrap();
    let spare = world.frame(16);
    assert_eq!(mm.pool_topup(Some(&vm), spare, 8), Reply::done(8));
    assert!(mm.set_status(&vm, Gfn(0), 8, status::PRIVATE).is_success());
    let frame = world.frame(24);
    assert_eq!(mm.donate(&vm, Gfn(0), frame, 1, status::PRIVATE), Reply::done(1));
    // The guest's page has been judged, and another CPU runs the VM for the first time.
    world.fake().unwatch();
    world.fake().interfere(Some(Arc::new(move |event: &Event| {
        let vm = mm.vm(handle).unwrap();
        let judged = mm.query(frame).unwrap().is_frozen();
        if matches!(event, Event::Read { .. }) && judged && !vm.is_active() {
            assert!(mm.vm_activate(&vm).is_success());
        }
    })));
    let refused = mm.guest_unmap(&vm, Gfn(0), 2);
    world.fake().interfere(None);
    assert!(vm.is_active());
    assert_ne!(refused.status, Status::Success);
    assert_eq!(mm.guest_fault(&vm, Gfn(0).base()), GuestFault::Resume, "the page is where it was");
    assert_eq!(mm.guest_unmap(&vm, Gfn(0), 1).status, Status::Denied);
}

#[test]
fn what_comes_after_the_activation_is_not_measured_and_must_not_be() {
    let world = world();
    let vm = world.vm(0).unwrap();
    let before = world.mm.vm_measurement(&vm);
    assert!(world.mm.measure(&vm, &[b"reg"]));
    let measured = world.mm.vm_measurement(&vm);
    assert_ne!(measured, before);
    assert!(world.mm.vm_activate(&vm).is_success());
    assert!(!world.mm.measure(&vm, &[b"reg"]));
    assert_eq!(world.mm.vm_measurement(&vm), measured);
}

#[test]
fn contents_and_addresses_are_in_the_measurement() {
    let measured = |world: &World, gfn, to| {
        let vm = world.vm(0).unwrap();
        assert_eq!(world.mm.host_convert(&vm, Gfn(gfn), 1, to), Reply::done(1));
        world.mm.vm_measurement(&vm)
    };
    let plain = measured(&world(), 0, status::PRIVATE);
    assert_eq!(measured(&world(), 0, status::PRIVATE), plain);
    assert_ne!(measured(&world(), 1, status::PRIVATE), plain);
    let mut other = world();
    let page = other.frame(8);
    assert!(other.host_write(page, 1));
    assert_ne!(measured(&other, 0, status::PRIVATE), plain);
}
