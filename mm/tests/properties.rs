//! Random histories of the whole manager against the reference model, on the adversarial machine.
//!
//! `TENURE_CASES=20000 cargo test -p tenure-mm --release --test properties` runs the long form. A failure is shrunk to
//! a short history, which is printed as a list of calls.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

mod world;

use proptest::prelude::*;
use tenure_abi::flags::{pin, status, unshare};
use world::history::{Call, GFN, GFNS, furnished, run};
use world::{Layout, World};

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

fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("TENURE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(default);
    ProptestConfig { cases, max_shrink_iters: 4000, failure_persistence: None, ..ProptestConfig::default() }
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
