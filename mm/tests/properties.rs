//! Random histories of the whole manager against the reference model, on the adversarial machine.
//!
//! `TENURE_CASES=20000 cargo test -p tenure-mm --release --test properties` runs the long form. A failure is shrunk to
//! a short history, which is printed as a list of calls.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

mod world;

use proptest::prelude::*;
use tenure_abi::flags::{pin, status, unshare};
use tenure_mm::fake::on_cpu;
use world::{Layout, World};

/// First guest frame that is used: ranges from here cross from one level-3 table to the next.
const GFN: u64 = 508;
/// Guest frames that are used.
const GFNS: u64 = 10;

#[derive(Clone, Debug)]
enum Call {
    Create(usize, u64),
    Activate(usize),
    Destroy(usize),
    Topup(Option<usize>, u64, u64),
    DrainPool(Option<usize>, u64),
    SetStatus(usize, u64, u64, u64),
    Donate(usize, u64, u64, u64, u64),
    Reclaim(usize, u64, u64),
    Convert(usize, u64, u64, u64),
    GuestMap(usize, u64, u64, u64),
    GuestUnmap(usize, u64, u64),
    Share(usize, u64, u64),
    Unshare(usize, u64, u64, u64),
    Consent(usize, u64, u64, u64),
    Relinquish(usize, u64, u64),
    Guest(usize, u64, Option<u64>),
    Host(u64, Option<u64>),
    HostMap(u64, u64),
    HostUnmap(u64, u64),
    Pin(u64, u64, u64),
    Unpin(u64, u64, u64),
    Poison(u64),
    DmaMap(u64),
    DmaUnmap(u64),
    HypPin(u64, bool),
}

fn count() -> impl Strategy<Value = u64> {
    prop_oneof![6 => Just(1u64), 4 => 2u64..5, 1 => Just(0u64), 1 => 5u64..40, 1 => Just(u64::MAX)]
}

/// Counts that a model of single addresses can follow.
fn few() -> impl Strategy<Value = u64> {
    prop_oneof![40 => Just(1u64), 30 => 2u64..9, 1 => Just(0u64), 1 => Just(u64::MAX)]
}

fn unshare_flags() -> impl Strategy<Value = u64> {
    let drain = unshare::DRAIN;
    prop_oneof![
        4 => Just(0u64),
        2 => Just(drain),
        1 => Just(drain | unshare::WAIT),
        2 => Just(unshare::REVOKE),
        1 => Just(unshare::ZERO),
        1 => 0u64..32,
    ]
}

fn call(frames: u64) -> impl Strategy<Value = Call> {
    let vm = || 0usize..3;
    let gfn = || GFN..GFN + GFNS;
    let pfn = move || 0..frames + 1;
    let to = || prop_oneof![3 => Just(status::PRIVATE), 2 => Just(status::SHARED), 1 => 0u64..7];
    let kind = || prop_oneof![4 => Just(pin::CPU), 1 => Just(pin::DMA)];
    let value = || prop::option::of(1u64..1000);
    prop_oneof![
        2 => (vm(), 0u64..4).prop_map(|(vm, flags)| Call::Create(vm, flags)),
        2 => vm().prop_map(Call::Activate),
        1 => vm().prop_map(Call::Destroy),
        3 => (prop::option::weighted(0.8, vm()), pfn(), 1u64..5).prop_map(|(vm, pfn, n)| Call::Topup(vm, pfn, n)),
        1 => (prop::option::of(vm()), 1u64..9).prop_map(|(vm, max)| Call::DrainPool(vm, max)),
        3 => (vm(), gfn(), few(), to()).prop_map(|(vm, gfn, n, to)| Call::SetStatus(vm, gfn, n, to)),
        9 => (vm(), gfn(), pfn(), few(), to()).prop_map(|(vm, gfn, pfn, n, to)| Call::Donate(vm, gfn, pfn, n, to)),
        3 => (vm(), pfn(), count()).prop_map(|(vm, pfn, n)| Call::Reclaim(vm, pfn, n)),
        2 => (vm(), gfn(), few(), to()).prop_map(|(vm, gfn, n, to)| Call::Convert(vm, gfn, n, to)),
        3 => (vm(), gfn(), pfn(), few()).prop_map(|(vm, gfn, pfn, n)| Call::GuestMap(vm, gfn, pfn, n)),
        3 => (vm(), gfn(), few()).prop_map(|(vm, gfn, n)| Call::GuestUnmap(vm, gfn, n)),
        9 => (vm(), gfn(), few()).prop_map(|(vm, gfn, n)| Call::Share(vm, gfn, n)),
        9 => (vm(), gfn(), few(), unshare_flags()).prop_map(|(vm, gfn, n, how)| Call::Unshare(vm, gfn, n, how)),
        3 => (vm(), gfn(), few(), unshare_flags()).prop_map(|(vm, gfn, n, how)| Call::Consent(vm, gfn, n, how)),
        3 => (vm(), gfn(), few()).prop_map(|(vm, gfn, n)| Call::Relinquish(vm, gfn, n)),
        5 => (vm(), gfn(), value()).prop_map(|(vm, gfn, value)| Call::Guest(vm, gfn, value)),
        9 => (pfn(), value()).prop_map(|(pfn, value)| Call::Host(pfn, value)),
        2 => (pfn(), count()).prop_map(|(pfn, n)| Call::HostMap(pfn, n)),
        3 => (pfn(), count()).prop_map(|(pfn, n)| Call::HostUnmap(pfn, n)),
        5 => (pfn(), count(), kind()).prop_map(|(pfn, n, kind)| Call::Pin(pfn, n, kind)),
        5 => (pfn(), count(), kind()).prop_map(|(pfn, n, kind)| Call::Unpin(pfn, n, kind)),
        1 => pfn().prop_map(Call::Poison),
        2 => pfn().prop_map(Call::DmaMap),
        2 => pfn().prop_map(Call::DmaUnmap),
        1 => (pfn(), any::<bool>()).prop_map(|(pfn, on)| Call::HypPin(pfn, on)),
    ]
}

fn make(world: &mut World, call: &Call) {
    match *call {
        Call::Create(vm, flags) => world.create(vm, flags),
        Call::Activate(vm) => {
            let _ = world.activate(vm);
        }
        Call::Destroy(vm) => world.destroy(vm),
        Call::Topup(vm, pfn, count) => {
            let _ = world.topup(vm, world.frame(pfn), count);
        }
        Call::DrainPool(vm, max) => {
            let _ = world.drain_pool(vm, max);
        }
        Call::SetStatus(vm, gfn, count, to) => {
            let _ = world.set_status(vm, gfn, count, to);
        }
        Call::Donate(vm, gfn, pfn, count, kind) => {
            let _ = world.donate(vm, gfn, world.frame(pfn), count, kind);
        }
        Call::Reclaim(vm, pfn, count) => {
            let _ = world.reclaim(vm, world.frame(pfn), count);
        }
        Call::Convert(vm, gfn, count, to) => {
            let _ = world.convert(vm, gfn, count, to);
        }
        Call::GuestMap(vm, gfn, pfn, count) => {
            let _ = world.guest_map(vm, gfn, world.frame(pfn), count);
        }
        Call::GuestUnmap(vm, gfn, count) => {
            let _ = world.guest_unmap(vm, gfn, count);
        }
        Call::Share(vm, gfn, count) => {
            let _ = world.share(vm, gfn, count);
        }
        Call::Unshare(vm, gfn, count, flags) => {
            let _ = world.unshare(vm, gfn, count, flags);
        }
        Call::Consent(vm, gfn, count, flags) => {
            let _ = world.consent(vm, gfn, count, flags);
        }
        Call::Relinquish(vm, gfn, count) => {
            let _ = world.relinquish(vm, gfn, count);
        }
        Call::Guest(vm, gfn, value) => {
            if world.handles.contains_key(&vm) {
                let _ = world.guest(vm, gfn, value);
            }
        }
        Call::Host(pfn, value) => {
            let _ = world.touch(world.frame(pfn), value);
        }
        Call::HostMap(pfn, count) => {
            let _ = world.host_map(world.frame(pfn), count);
        }
        Call::HostUnmap(pfn, count) => {
            let _ = world.host_unmap(world.frame(pfn), count);
        }
        Call::Pin(pfn, count, kind) => {
            let _ = world.pin(world.frame(pfn), count, kind);
        }
        Call::Unpin(pfn, count, kind) => {
            let _ = world.unpin(world.frame(pfn), count, kind);
        }
        Call::Poison(pfn) => {
            let _ = world.poison(world.frame(pfn));
        }
        Call::DmaMap(pfn) => {
            let _ = world.dma_map(world.frame(pfn));
        }
        Call::DmaUnmap(pfn) => {
            let _ = world.dma_unmap(world.frame(pfn));
        }
        Call::HypPin(pfn, on) => {
            let _ = world.hyp_pin(world.frame(pfn), on);
        }
    }
}

/// Two VMs that have started, so that short histories get somewhere: 0 is protected and active, 1 is plain.
fn furnished(layout: Layout) -> World {
    let mut world = World::new(layout);
    for (vm, flags) in [(0, 3), (1, 2)] {
        world.create(vm, flags);
        world.topup(Some(vm), world.frame(vm as u64 * 6), 6);
        world.set_status(vm, GFN, GFNS, status::PRIVATE);
        world.donate(vm, GFN, world.frame(12 + vm as u64 * 4), 4, status::PRIVATE);
        world.activate(vm);
        world.share(vm, GFN, 3);
    }
    world
}

fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("TENURE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(default);
    ProptestConfig { cases, max_shrink_iters: 4000, failure_persistence: None, ..ProptestConfig::default() }
}

fn run(mut world: World, history: &[(usize, Call)]) {
    for (cpu, call) in history {
        on_cpu(*cpu, || make(&mut world, call));
    }
    // After any number of lives every page is back (B6): whatever is still pinned is let go.
    for vm in 0..3 {
        world.destroy(vm);
    }
    let pinned: Vec<_> = world.model.frames.iter().map(|(&pfn, frame)| (pfn, frame.clone())).collect();
    for (pfn, frame) in pinned {
        let pfn = tenure_mm::Pfn(pfn);
        (0..frame.dma_leaves).for_each(|_| {
            let _ = world.dma_unmap(pfn);
        });
        (0..frame.cpu_pins).for_each(|_| {
            let _ = world.unpin(pfn, 1, pin::CPU);
        });
        (0..frame.dma_pins).for_each(|_| {
            let _ = world.unpin(pfn, 1, pin::DMA);
        });
    }
    while world.drain_pool(None, 8).is_some_and(|pages| !pages.is_empty()) {}
    let kept = world.model.totals();
    let firmware_and_host = kept.get(&0).copied().unwrap_or(0);
    let poisoned = kept.get(&6).copied().unwrap_or(0);
    assert_eq!(
        firmware_and_host + poisoned + world.boot_pages,
        kept.values().sum::<u64>(),
        "pages are missing"
    );
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn histories_of_furnished_vms(history in prop::collection::vec((0usize..4, call(32)), 1..60)) {
        run(furnished(Layout { frames: 32, ..Layout::default() }), &history);
    }

    #[test]
    fn histories_from_nothing_with_short_pools(history in prop::collection::vec((0usize..4, call(20)), 1..120)) {
        run(World::new(Layout { frames: 20, spare: 0, blocks: false }), &history);
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn histories_over_host_blocks(history in prop::collection::vec((0usize..4, call(48)), 1..40)) {
        run(furnished(Layout { frames: 1024, spare: 1, blocks: true }), &history);
    }
}
