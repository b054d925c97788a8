//! What would be found if a call were missing: each test drops one sort of call and sees its scenario go red, and sees
//! it green with all calls in place.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

mod world;

use std::cell::Cell;

use tenure_abi::flags::{status, unshare, vm as vm_flags};
use tenure_abi::{Reply, Status};
use tenure_mm::fake::{Mutation, Which};
use tenure_mm::{Access, Gfn, HostFault, Ipa, Pfn, PinKind, Unshare, Vmid};
use world::{Layout, WORD, World};

const PROTECTED: u64 = vm_flags::PROTECTED | vm_flags::RIGHT_REVOKE;
const WRITE: Access = Access { write: true, execute: false };

/// Runs `scenario` on a machine of `layout` as it is and with `mutation`.
fn red_without(mutation: Mutation, prepare: fn() -> World, scenario: fn(&mut World) -> Vec<String>) {
    for mutate in [false, true] {
        let mut world = prepare();
        if mutate {
            world.fake().mutate(mutation, Which::All);
        }
        let mut found = scenario(&mut world);
        found.extend(world.violations());
        if mutate {
            assert!(world.fake().dropped() > 0, "the scenario makes no such call");
            assert!(!found.is_empty(), "{mutation:?} is not found");
        } else {
            assert_eq!(found, Vec::<String>::new(), "the scenario is red by itself");
        }
    }
}

fn guest() -> World {
    World::with_guest(PROTECTED)
}

fn blocks() -> World {
    let mut world = World::new(Layout { frames: 1024, spare: 4, blocks: true });
    world.furnish(0, PROTECTED, 0);
    world
}

/// A protected VM that has not started, with a shared page for its first image at 0.
fn image() -> World {
    let mut world = World::new(Layout::default());
    world.create(0, PROTECTED);
    world.topup(Some(0), world.frame(0), 8);
    world.set_status(0, 0, 4, status::SHARED);
    world.donate(0, 0, world.frame(8), 1, status::SHARED);
    world
}

fn done(reply: Reply) {
    assert_eq!(reply.status, Status::Success, "{reply}");
}

/// The host touches a shared page, then the guest takes it back with the host's consent.
fn take_back(world: &mut World) -> Vec<String> {
    let (mm, vm) = (world.mm, world.vm(0).unwrap());
    let page = world.frame(8);
    done(mm.guest_share(&vm, Gfn(0), 1));
    assert_eq!(mm.host_fault(page.base(), WRITE), HostFault::Resume);
    world.fake().host_write(page, WORD, 1);
    done(mm.consent(&vm, Gfn(0), 1, Unshare::default()));
    vec![]
}

/// The host takes a shared page of the guest away and uses it.
fn punch(world: &mut World) -> Vec<String> {
    let (mm, vm) = (world.mm, world.vm(0).unwrap());
    done(mm.guest_share(&vm, Gfn(0), 1));
    done(mm.guest_unmap(&vm, Gfn(0), 1));
    done(mm.reclaim(&vm, world.frame(8), 1));
    vec![]
}

fn donate(world: &mut World) -> Vec<String> {
    let (mm, vm) = (world.mm, world.vm(0).unwrap());
    world.fake().host_write(world.frame(20), WORD, 0x5ec);
    done(mm.donate(&vm, Gfn(4), world.frame(20), 2, status::PRIVATE));
    vec![]
}

fn die(world: &mut World) -> Vec<String> {
    world.fake().write_at(world.vmid(0), Ipa(0), WORD, 0x5ec);
    let handle = world.handles[&0];
    world.detach(0);
    while !world.mm.vm_destroy(handle).finished {}
    let mut found = vec![];
    // What a host with non-cacheable mappings sees counts too.
    for number in 8..12 {
        if !world.fake().is_scrubbed(world.frame(number)) {
            found.push(format!("frame {number} comes back with contents"));
        }
    }
    found
}

fn place_image(world: &mut World) -> Vec<String> {
    let (mm, vm) = (world.mm, world.vm(0).unwrap());
    let page = world.frame(8);
    assert_eq!(mm.host_fault(page.base(), WRITE), HostFault::Resume);
    world.fake().host_write(page, WORD, 0xc0de);
    done(mm.host_convert(&vm, Gfn(0), 1, status::PRIVATE));
    done(mm.vm_activate(&vm));
    drop(vm);
    // The guest starts with its caches off.
    let seen = world.fake().read_uncached_at(world.vmid(0), Ipa(0), WORD);
    if seen == Some(0xc0de) { vec![] } else { vec![format!("the guest's first image reads {seen:x?}")] }
}

/// Frames leave a block of the host.
fn split(world: &mut World) -> Vec<String> {
    let (mm, vm) = (world.mm, world.vm(0).unwrap());
    done(mm.donate(&vm, Gfn(4), Pfn(world.frame(512).0), 1, status::PRIVATE));
    vec![]
}

/// A plain VM with a root table and a full pool.
fn plain() -> World {
    let mut world = World::new(Layout::default());
    world.create(0, 0);
    world.topup(Some(0), world.frame(0), 8);
    world.set_status(0, 0, 4, status::PRIVATE);
    world
}

/// A part of the guest's space that has no tables yet.
fn new_tables(world: &mut World) -> Vec<String> {
    let (mm, vm) = (world.mm, world.vm(0).unwrap());
    mm.set_status(&vm, Gfn(1 << 20), 4, status::PRIVATE);
    mm.donate(&vm, Gfn(1 << 20), world.frame(30), 1, status::PRIVATE);
    vec![]
}

thread_local! {
    /// The call of `life` in which something was dropped.
    static DROPPED_IN: Cell<&'static str> = const { Cell::new("") };
}

/// A bit of everything, on any machine.
fn life(world: &mut World) -> Vec<String> {
    let mut found = vec![];
    let mm = world.mm;
    // All must be well whenever EL2 is left.
    macro_rules! step {
        ($call:expr) => {{
            let before = world.fake().dropped();
            let result = $call;
            if world.fake().dropped() > before {
                DROPPED_IN.set(stringify!($call));
            }
            found.extend(world.violations());
            if !found.is_empty() {
                return found;
            }
            result
        }};
    }
    // A guest's own call enters EL2 with the guest's VMID in VTTBR_EL2.
    macro_rules! guest {
        ($vm:expr, $call:expr) => {{
            world.fake().load($vm.vmid());
            step!($call);
            world.fake().load(Vmid::HOST);
        }};
    }
    for vm in [0, 1] {
        let flags = if vm == 0 { PROTECTED } else { 0 };
        let Ok(handle) = step!(mm.vm_create(flags)) else { continue };
        world.handles.insert(vm, handle);
        let vm_ref = world.vm(vm).unwrap();
        let first = world.frame(24 * vm as u64);
        let frame = |number: u64| first.offset(number);
        for number in 8..24 {
            world.fake().host_write(frame(number), WORD, 0x0b5e);
        }
        step!(mm.pool_topup(Some(&vm_ref), frame(0), 6));
        step!(mm.set_status(&vm_ref, Gfn(508), 12, status::SHARED));
        drop(vm_ref);
        world.attach_guests();
        let vm_ref = world.vm(vm).unwrap();
        step!(mm.donate(&vm_ref, Gfn(510), frame(8), 4, status::SHARED));
        step!(mm.host_fault(frame(8).base(), WRITE));
        world.fake().host_write(frame(8), WORD, 0xc0de);
        step!(mm.host_convert(&vm_ref, Gfn(510), 1, status::PRIVATE));
        if world.fake().read_uncached_at(vm_ref.vmid(), Ipa(510 << 12), WORD) != Some(0xc0de) {
            found.push(format!(
                "the first image of {vm}: {:x?}",
                world.fake().read_at(vm_ref.vmid(), Ipa(510 << 12), WORD)
            ));
        }
        if world.fake().is_icache_stale(frame(8)) {
            found.push(format!("old instructions in the first image of {vm}"));
        }
        if vm == 1 {
            world.fake().host_write(frame(16), WORD, 0xda7a);
            world.fake().host_write(frame(17), WORD, 0xda7a);
            step!(mm.guest_map(&vm_ref, Gfn(600), frame(16), 2));
            let sees = |gfn: u64| world.fake().read_uncached_at(vm_ref.vmid(), Ipa(gfn << 12), WORD);
            if [600, 601].map(sees) != [Some(0xda7a); 2] {
                found.push("what a plain guest finds".into());
            }
            step!(mm.guest_unmap(&vm_ref, Gfn(600), 1));
        }
        step!(mm.vm_activate(&vm_ref));
        guest!(vm_ref, mm.guest_share(&vm_ref, Gfn(510), 1));
        world.fake().write_at(vm_ref.vmid(), Ipa(510 << 12), WORD, 0x5ec);
        world.fake().write_at(vm_ref.vmid(), Ipa(511 << 12), WORD, 0x5ec);
        step!(mm.host_fault(frame(9).base(), WRITE));
        guest!(vm_ref, mm.guest_unshare(&vm_ref, Gfn(511), 1, Unshare::default()));
        step!(mm.host_unmap(frame(9), 1));
        let zero = Unshare::from_flags(&vm_ref, unshare::ZERO).unwrap();
        guest!(vm_ref, mm.guest_unshare(&vm_ref, Gfn(511), 1, zero));
        if !world.fake().is_scrubbed(frame(9)) {
            found.push("ZERO".into());
        }
        step!(mm.host_fault(frame(10).base(), WRITE));
        step!(mm.pin(frame(10), 1, PinKind::Cpu));
        if let Ok(revoke) = Unshare::from_flags(&vm_ref, unshare::REVOKE) {
            guest!(vm_ref, mm.guest_unshare(&vm_ref, Gfn(512), 1, revoke));
        }
        step!(mm.host_fault(frame(10).base(), WRITE));
        if vm == 0 && world.fake().read_uncached_at(Vmid::HOST, Ipa(frame(10).base().0), WORD) != Some(0) {
            found.push("what stands behind the scrap frame".into());
        }
        guest!(vm_ref, mm.guest_share(&vm_ref, Gfn(512), 1));
        step!(mm.host_fault(frame(10).base(), WRITE));
        let drain = Unshare::from_flags(&vm_ref, unshare::DRAIN).unwrap();
        guest!(vm_ref, mm.guest_unshare(&vm_ref, Gfn(512), 1, drain));
        step!(mm.unpin(frame(10), 1, PinKind::Cpu));
        step!(mm.host_fault(frame(10).base(), WRITE));
        if world.fake().read_uncached_at(Vmid::HOST, Ipa(frame(10).base().0), WORD) != Some(0) {
            found.push("what stands behind the scrap frame of a drained page".into());
        }
        for gfn in 511..514 {
            world.fake().write_at(vm_ref.vmid(), Ipa(gfn << 12), WORD, 0x5ec);
        }
        step!(mm.guest_unmap(&vm_ref, Gfn(513), 1));
        step!(mm.reclaim(&vm_ref, frame(11), 1));
        guest!(vm_ref, mm.guest_relinquish(&vm_ref, Gfn(511), 1));
        guest!(vm_ref, mm.guest_share(&vm_ref, Gfn(514), 2));
        step!(mm.pool_drain(Some(&vm_ref), 1));
        step!(mm.poison(frame(20)));
        step!(mm.host_fault(frame(16).base(), Access { write: false, execute: true }));
        drop(vm_ref);
        world.detach(vm);
        while !step!(mm.vm_destroy(handle)).finished {}
        world.handles.remove(&vm);
        for number in 8..16 {
            step!(mm.host_fault(frame(number).base(), WRITE));
            if world.fake().read_at(Vmid::HOST, Ipa(frame(number).base().0), WORD).is_none() {
                found.push(format!("frame {number} did not come back"));
            }
        }
    }
    found
}

/// Why it is well if one such call in this place is missing.
fn spare(mutation: Mutation, place: &str) -> Option<&'static str> {
    use Mutation::*;
    let call = place.trim_start_matches("mm.").split('(').next().unwrap();
    Some(match (mutation, call) {
        (SkipTlbiAll | SkipSelectVmid | SkipDsbIshst | SkipDsbIsh, "vm_create") => {
            "the former VM's end did it"
        }
        (SkipTlbiAll | SkipSelectVmid, "vm_destroy") => {
            "the last of several, for the walk caches of dead tables"
        }
        (SkipDsbIshst | SkipDsbIsh, "vm_destroy") => {
            "nobody walks a dead VM's tables, and the scrub's DSB follows"
        }
        (SkipBreak, "vm_destroy") => "nobody walks a dead VM's tables",
        (SkipScrub | SkipScrubClean, "vm_destroy") => "the scrap frame is zero unless the host wrote to it",
        (SkipDsbIsh, "donate" | "host_convert") => "the DSB of the instruction caches follows",
        (SkipDsbIsh, "guest_relinquish") => "the DSB of the scrub follows before the page changes hands",
        (SkipDsbIshst, "set_status") => "no CPU has loaded the new root yet",
        (SkipZero, "vm_activate" | "pool_drain") => "a scrub follows",
        (SkipScrub, "vm_activate") => "zeroed before: only the clean counts",
        (SkipRestoreVmid, _) => "the VMID was selected before",
        _ => return None,
    })
}

#[test]
fn each_single_call_of_a_whole_life_is_needed_or_excused() {
    let mutations = [
        Mutation::SkipTlbiIpa,
        Mutation::SkipTlbiStage1,
        Mutation::SkipTlbiAll,
        Mutation::SkipDsbIsh,
        Mutation::SkipDsbIshst,
        Mutation::SkipScrub,
        Mutation::SkipScrubClean,
        Mutation::SkipCleanPoc,
        Mutation::SkipIcache,
        Mutation::SkipZero,
        Mutation::SkipSelectVmid,
        Mutation::SkipRestoreVmid,
        Mutation::SkipBreak,
    ];
    let mut world = World::new(Layout::default());
    assert_eq!(life(&mut world), Vec::<String>::new(), "a life is red by itself");
    let mut unexcused = vec![];
    for mutation in mutations {
        let mut found = 0;
        for nth in 0.. {
            let mut world = World::new(Layout::default());
            world.fake().mutate(mutation, Which::Nth(nth));
            let red = !life(&mut world).is_empty();
            if world.fake().dropped() == 0 {
                break;
            }
            found += u64::from(red);
            if !red && spare(mutation, DROPPED_IN.get()).is_none() {
                unexcused.push((mutation, nth, DROPPED_IN.get()));
            }
        }
        assert!(found > 0, "{mutation:?} is never found");
    }
    assert!(unexcused.is_empty(), "not found, and no reason known: {unexcused:#?}");
}

#[test]
fn without_tlbi_of_the_page_the_host_keeps_its_translation() {
    red_without(Mutation::SkipTlbiIpa, guest, take_back);
}

#[test]
fn without_tlbi_of_combined_entries_the_host_keeps_its_translation() {
    red_without(Mutation::SkipTlbiStage1, guest, take_back);
}

#[test]
fn without_dsb_after_the_tlbi_the_host_keeps_its_translation() {
    red_without(Mutation::SkipDsbIsh, guest, take_back);
}

#[test]
fn without_dsb_before_the_tlbi_the_host_walks_the_old_leaf() {
    red_without(Mutation::SkipDsbIshst, guest, take_back);
}

#[test]
fn without_break_the_host_keeps_its_leaf() {
    red_without(Mutation::SkipBreak, guest, take_back);
}

#[test]
fn without_selecting_the_guests_vmid_its_translation_outlives_a_reclaim() {
    red_without(Mutation::SkipSelectVmid, guest, punch);
}

#[test]
fn without_selecting_the_former_vmid_el2_is_left_with_the_wrong_one() {
    red_without(Mutation::SkipRestoreVmid, guest, punch);
}

#[test]
fn without_tlbi_of_the_page_a_guest_keeps_what_the_host_took_back() {
    red_without(Mutation::SkipTlbiIpa, guest, punch);
}

#[test]
fn without_tlbi_of_the_vmid_a_dead_guest_reaches_its_former_pages() {
    red_without(Mutation::SkipTlbiAll, guest, die);
}

#[test]
fn without_scrub_a_guest_finds_the_hosts_data() {
    red_without(Mutation::SkipScrub, guest, donate);
}

#[test]
fn without_scrub_the_host_finds_a_dead_guests_data() {
    red_without(Mutation::SkipScrub, guest, die);
}

#[test]
fn without_the_clean_of_a_scrub_old_data_stands_behind_the_caches() {
    red_without(Mutation::SkipScrubClean, guest, donate);
    red_without(Mutation::SkipScrubClean, guest, die);
}

#[test]
fn without_clean_to_poc_the_first_image_is_not_what_the_guest_runs() {
    red_without(Mutation::SkipCleanPoc, image, place_image);
}

#[test]
fn without_icache_maintenance_a_guest_may_run_stale_instructions() {
    red_without(Mutation::SkipIcache, guest, donate);
}

#[test]
fn without_icache_maintenance_the_first_image_may_run_stale() {
    red_without(Mutation::SkipIcache, image, |world| {
        let mut found = place_image(world);
        if world.fake().is_icache_stale(world.frame(8)) {
            found.push("the first image was not made visible to instruction fetch".into());
        }
        found
    });
}

#[test]
fn without_zeroing_a_new_table_maps_garbage() {
    red_without(Mutation::SkipZero, plain, new_tables);
}

#[test]
fn without_dsb_a_new_table_is_walked_before_it_is_filled() {
    red_without(Mutation::SkipDsbIshst, plain, new_tables);
}

#[test]
fn without_break_a_block_and_its_pages_are_in_one_tlb() {
    red_without(Mutation::SkipBreak, blocks, split);
}

#[test]
fn without_tlbi_of_the_block_a_block_and_its_pages_are_in_one_tlb() {
    red_without(Mutation::SkipTlbiIpa, blocks, split);
    red_without(Mutation::SkipTlbiStage1, blocks, split);
}
