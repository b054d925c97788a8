//! Random histories of the whole manager against the reference model, on the adversarial machine.
//!
//! `TENURE_CASES=20000 cargo test -p tenure-mm --release --test properties` runs the long form. A failure is shrunk to
//! a short history, which is printed as a list of calls.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

mod world;

use proptest::prelude::*;
use tenure_abi::flags::{pin, status, unshare};
use tenure_abi::page::State;
use world::history::{Call, GFN, GFNS, end, end_by_reset, furnished, play, run};
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
        1 => (vm(), pfn(), 0u64..6).prop_map(|(vm, pfn, n)| Call::DestroyWhile(vm, pfn, n)),
        1 => (vm(), 0u64..5).prop_map(|(vm, rights)| Call::Rights(vm, rights)),
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
        1 => Just(Call::Reset),
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

proptest! {
    #![proptest_config(cases(60))]

    /// B5: whatever came before, the host's reset leaves no frame that the next kernel trips over.
    #[test]
    fn a_reset_after_any_history_brings_every_page_home(
        history in prop::collection::vec((0usize..4, call(32)), 1..80)
    ) {
        let mut world = furnished(Layout { frames: 32, ..Layout::default() });
        play(&mut world, &history);
        end_by_reset(world);
    }

    #[test]
    fn a_reset_over_blocks_makes_the_hosts_map_whole(
        history in prop::collection::vec((0usize..4, call(48)), 1..30)
    ) {
        let mut world = furnished(Layout { frames: 1024, spare: 1, blocks: true });
        play(&mut world, &history);
        end_by_reset(world);
    }
}

/// What the host alone can do to an active guest and its frames.
fn host_call(frames: u64) -> impl Strategy<Value = Call> {
    let of_the_host = |call: &Call| {
        !matches!(
            call,
            Call::Share(..)
                | Call::Unshare(..)
                | Call::Consent(..)
                | Call::Relinquish(..)
                | Call::Guest(..)
                | Call::Destroy(..)
                | Call::DestroyWhile(..)
                | Call::Reset
        )
    };
    call(frames).prop_filter("a call of the host", of_the_host)
}

proptest! {
    #![proptest_config(cases(100))]

    /// U10, in any order: what the guest has private stays so, with its contents; what it shares it shares alone.
    #[test]
    fn no_history_of_host_calls_opens_an_active_guest(
        history in prop::collection::vec((0usize..4, host_call(32)), 1..60)
    ) {
        let mut world = furnished(Layout { frames: 32, ..Layout::default() });
        // The guest has 508 to 511; the first three are shared.
        let secret = GFN + 3;
        world.guest(0, secret, Some(0x5ec)).unwrap();
        let before = world.model.vms[&0].clone();
        play(&mut world, &history);
        let after = &world.model.vms[&0];
        for (gfn, address) in &before.addresses {
            let now = &after.addresses[gfn];
            prop_assert_eq!(address.status, now.status, "{:#x}", gfn);
            if address.status == status::PRIVATE {
                prop_assert!(address.frame.is_none() || address.frame == now.frame, "{:#x}", gfn);
            }
        }
        prop_assert_eq!(world.guest(0, secret, None), Ok(0x5ec));
        end(world);
    }

    /// B5: after any history the host panics, and its crash kernel reads all of RAM: what is the host's or shared with it, and
    /// zeros for all else. The next kernel finds every page at home.
    #[test]
    fn a_panic_after_any_history_shows_no_secret_and_loses_no_page(
        history in prop::collection::vec((0usize..4, call(32)), 1..60)
    ) {
        let mut world = furnished(Layout { frames: 32, ..Layout::default() });
        play(&mut world, &history);
        let secrets: Vec<_> = world.model.frames.iter()
            .filter(|(_, frame)| frame.state == State::Private && frame.guest_leaves > 0)
            .map(|(pfn, _)| tenure_mm::Pfn(*pfn)).collect();
        let of: Vec<(usize, u64)> = world.model.vms.iter()
            .flat_map(|(vm, of)| of.addresses.iter().map(move |(gfn, at)| (*vm, *gfn, at.frame)))
            .filter(|(_, _, frame)| frame.is_some_and(|pfn| secrets.contains(&tenure_mm::Pfn(pfn))))
            .map(|(vm, gfn, _)| (vm, gfn)).collect();
        for (vm, gfn) in of {
            world.guest(vm, gfn, Some(0x5ec)).unwrap();
        }
        world.mm.enter_panic_mode();
        for number in 0..32 {
            let page = world.frame(number);
            let look = tenure_mm::Access::default();
            let seen = (0..4).find_map(|_| {
                world.fake().host_read(page, world::WORD).or_else(|| {
                    world.mm.host_fault(page.base(), look);
                    None
                })
            });
            prop_assert!(seen.is_some(), "{:?} cannot be dumped", page);
            // Scrap keeps what the host itself has written to it (ADR 0004), and no more.
            let scrap = world.word(page).is_redirected() && seen != Some(0x5ec);
            prop_assert!(!secrets.contains(&page) || seen == Some(0) || scrap, "{:?} shows {:?}", page, seen);
        }
        for vm in world.mm.vms() {
            let Some(handle) = vm.handle() else { continue };
            if let Some((&number, _)) = world.handles.iter().find(|(_, other)| **other == handle) {
                world.detach(number);
            }
            prop_assert!((0..4096).any(|_| world.mm.vm_destroy(handle).finished));
        }
        for number in 0..32 {
            let word = world.word(world.frame(number));
            let kept = word.is_host_pinned() || word.dma_leaves() > 0 || word.state() == State::Poison;
            let pool = word.state() == State::Hyp && word.owner().0 == 0;
            prop_assert!(word.state() == State::Host || kept || pool, "{:?}", word);
        }
        prop_assert_eq!(tenure_mm::audit::audit(world.mm), Vec::<String>::new());
    }
}
