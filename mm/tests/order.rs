//! In which order a call does what it does, seen by another CPU at each of its steps.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tenure_abi::flags::{pin, status, unshare, vm as vm_flags};
use tenure_abi::page::State;
use tenure_abi::{Reply, Status, reply};
use tenure_mm::fake::{Access as Kind, Event, on_cpu};
use tenure_mm::{Access, Gfn, HostFault, Ipa, Pfn, PinKind, Vmid};
use world::World;

const PROTECTED: u64 = vm_flags::PROTECTED | vm_flags::RIGHT_REVOKE;
const PLAIN: u64 = vm_flags::RIGHT_REVOKE;

/// Calls `look` as CPU 1 after each event of `act`, reads of tables left out. Returns how often.
fn at_each_step(
    world: &mut World,
    look: impl Fn(&Event) + Send + Sync + 'static,
    act: impl FnOnce(&mut World),
) -> u64 {
    let steps = Arc::new(AtomicU64::new(0));
    let counter = steps.clone();
    world.fake().interfere(Some(Arc::new(move |event: &Event| {
        if !matches!(event, Event::Read { .. }) {
            counter.fetch_add(1, Ordering::SeqCst);
            on_cpu(1, || look(event));
        }
    })));
    act(world);
    world.fake().interfere(None);
    steps.load(Ordering::SeqCst)
}

/// U1: frozen against all others first; the host's leaves go, the invalidation is waited for; then the page is private, and
/// then comes the answer.
#[test]
fn an_unshare_freezes_first_and_is_private_when_no_way_of_the_host_is_left() {
    // All three mapped by the host; one of them not; with a page that is private already and an address without one.
    let ranges = [(3, 0..0), (3, 1..2), (5, 0..0), (5, 1..2)];
    let flags = [(0, true), (unshare::ZERO, true), (unshare::REVOKE, false)];
    for ((count, unmapped), (flags, consent)) in
        ranges.into_iter().flat_map(|range| flags.map(|flags| (range.clone(), flags)))
    {
        let mut world = World::with_guest(PROTECTED);
        world.share(0, 0, 3);
        for page in (0..3).filter(|page| !unmapped.contains(page)) {
            world.host_read(world.frame(8 + page));
        }
        let (mm, handle, first) = (world.mm, world.handles[&0], world.frame(8));
        let look = move |event: &Event| {
            let frozen = Reply::blocked(Status::Retry, 0, reply::FROZEN);
            let vm = mm.vm(handle).unwrap();
            for page in 0..3 {
                let frame = first.offset(page);
                let word = mm.query(frame).unwrap();
                let reach = [Kind::Read, Kind::Write, Kind::Exec];
                let reach =
                    reach.into_iter().any(|kind| !ways(mm.machine(), Vmid::HOST, frame, kind).is_empty());
                if !word.is_frozen() {
                    assert!(word.state() == State::Private && !reach, "{event:?}: {word:?}");
                    continue;
                }
                assert!(word.state() == State::Shared, "{event:?}: {word:?}");
                assert_eq!(word.has_host_leaf(), !unmapped.contains(&page), "{event:?}: {word:?}");
                // No new pin, no new map, no other conversion.
                assert_eq!(mm.pin(frame, 1, PinKind::Cpu), frozen);
                assert_eq!(mm.pin(frame, 1, PinKind::Dma), frozen);
                assert_eq!(mm.host_map(frame, 1), frozen);
                assert_eq!(mm.host_unmap(frame, 1), frozen);
                assert!(mm.dma_map(frame).is_err());
                assert_eq!(mm.guest_share(&vm, Gfn(page), 1), frozen);
                if !reach {
                    assert_eq!(mm.host_fault(frame.base(), Access::default()), HostFault::Resume);
                    assert!(
                        ways(mm.machine(), Vmid::HOST, frame, Kind::Read).is_empty(),
                        "made after it was dropped"
                    );
                }
                if let Event::Scrub { .. } = event {
                    assert!(!reach, "the host may write to what is being zeroed");
                }
            }
        };
        let steps = at_each_step(&mut world, look, |world| {
            let reply = match consent {
                true => world.consent(0, 0, count, flags),
                false => world.unshare(0, 0, count, flags),
            };
            assert_eq!(reply, Some(Reply::done(count)));
        });
        assert!(steps >= 8, "writes, TLBIs and DSBs, not {steps} steps");
    }
}

fn ways(machine: &tenure_mm::fake::FakeMachine, vmid: Vmid, at: Pfn, kind: Kind) -> Vec<Pfn> {
    let ipa = Ipa(at.base().0);
    machine.reachable(vmid, ipa, kind).iter().filter_map(|found| found.frame_of(ipa.0)).collect()
}

/// S8: whoever can be reached is counted, frozen or not.
#[test]
fn a_leaf_is_counted_before_it_can_be_used_and_until_its_invalidation_is_over() {
    type Act = fn(&mut World);
    let acts: [(&str, Act); 11] = [
        ("DONATE", |world| {
            assert_eq!(world.donate(0, 4, world.frame(20), 3, status::PRIVATE), Some(Reply::done(3)))
        }),
        ("GUEST_MAP", |world| assert_eq!(world.guest_map(0, 100, world.frame(30), 3), Some(Reply::done(3)))),
        ("GUEST_UNMAP", |world| assert_eq!(world.guest_unmap(0, 0, 4), Some(Reply::done(4)))),
        ("GUEST_UNMAP of the host's", |world| assert_eq!(world.guest_unmap(0, 50, 1), Some(Reply::done(1)))),
        ("RELINQUISH", |world| assert_eq!(world.relinquish(0, 0, 4), Some(Reply::done(4)))),
        ("a touch", |world| assert_eq!(world.host_read(world.frame(9)), Some(0))),
        ("HOST_MAP", |world| assert_eq!(world.host_map(world.frame(9), 1), Reply::done(1))),
        ("HOST_UNMAP", |world| assert_eq!(world.host_unmap(world.frame(8), 1), Reply::done(1))),
        ("CONVERT", |world| assert_eq!(world.convert(0, 0, 4, status::PRIVATE), Some(Reply::done(4)))),
        ("the end of a drain", |world| assert_eq!(world.unpin(world.frame(10), 1, pin::CPU).drained, 1)),
        ("VM_DESTROY", |world| world.destroy(0)),
    ];
    for (what, act) in acts {
        let mut world = World::with_guest(PLAIN);
        world.share(0, 0, 3);
        world.host_read(world.frame(8));
        world.host_read(world.frame(10));
        world.pin_cpu(world.frame(10));
        world.unshare(0, 2, 1, unshare::DRAIN);
        world.guest_map(0, 50, world.frame(40), 1);
        if what != "the end of a drain" {
            world.unpin_cpu(world.frame(10));
        }
        let (mm, vmid) = (world.mm, world.vmid(0));
        let (first, end) = (world.frame(0), world.end());
        let look = move |event: &Event| {
            let mut leaves = std::collections::BTreeMap::<Pfn, u64>::new();
            for gfn in (0..8).chain(48..52).chain(100..104) {
                for frame in ways(mm.machine(), vmid, Pfn(gfn), Kind::Read) {
                    *leaves.entry(frame).or_default() += 1;
                }
            }
            for (frame, count) in leaves {
                let word = mm.query(frame).unwrap();
                assert!(
                    count <= word.guest_leaves(),
                    "{what}, {event:?}: {count} ways to {frame:?}, {word:?}"
                );
            }
            for frame in (first.0..end).map(Pfn) {
                let word = mm.query(frame).unwrap();
                let own = ways(mm.machine(), Vmid::HOST, frame, Kind::Read).contains(&frame);
                // A frame of the host counts as mapped, frozen or not.
                let counted = word.state() == State::Host || word.has_host_leaf();
                assert!(!own || counted, "{what}, {event:?}: the host reaches {frame:?}, {word:?}");
            }
        };
        assert!(at_each_step(&mut world, look, act) > 0, "{what} does nothing");
    }
}
