//! The adversary itself: that it keeps what the architecture lets it keep, and no longer.

use super::*;
use crate::{Ipa, Machine, Pa};

const BASE: Pfn = Pfn(0x40000);
const GUEST: Vmid = Vmid(1);
const IPA: Ipa = Ipa(0x20_0000);
const RW: u64 = 0x7fd | 1 << 54;

fn frame(number: u64) -> Pfn {
    BASE.offset(number)
}

fn page(number: u64) -> u64 {
    frame(number).base().0 | RW | 0b10
}

fn table(number: u64) -> u64 {
    frame(number).base().0 | 0b11
}

/// Root in frame 0, level 2 in frame 1, level 3 in frame 2; `IPA` maps frame 8.
fn machine() -> FakeMachine {
    let machine = FakeMachine::new(BASE, 16);
    for number in 0..3 {
        machine.zero(frame(number));
    }
    machine.write(frame(2).base(), 0, page(8));
    machine.write(frame(1).base(), 1, table(2));
    machine.write(frame(0).base(), 0, table(1));
    machine.dsb_ishst();
    machine.attach(GUEST, frame(0), 1);
    assert_eq!(machine.violations(), Vec::<String>::new());
    machine
}

fn reaches(machine: &FakeMachine) -> bool {
    !machine.reachable(GUEST, IPA, Access::Read).is_empty()
}

fn leaf(machine: &FakeMachine, value: u64) {
    machine.write(frame(2).base(), 0, value);
}

fn in_guest_regime(machine: &FakeMachine, body: impl FnOnce()) {
    let former = machine.select_vmid(GUEST);
    body();
    machine.select_vmid(former);
}

#[test]
fn a_translation_lives_until_tlbi_and_dsb() {
    let machine = machine();
    leaf(&machine, 0);
    machine.dsb_ishst();
    assert!(reaches(&machine));
    in_guest_regime(&machine, || machine.tlbi_vmalls12e1is());
    assert!(reaches(&machine));
    machine.dsb_ish();
    assert!(!reaches(&machine));
}

#[test]
fn a_tlbi_before_the_write_is_visible_is_in_vain() {
    let machine = machine();
    leaf(&machine, 0);
    in_guest_regime(&machine, || machine.tlbi_vmalls12e1is());
    machine.dsb_ish();
    assert!(reaches(&machine));
}

#[test]
fn combined_entries_outlive_the_tlbi_of_stage_2() {
    let machine = machine();
    leaf(&machine, 0);
    machine.dsb_ishst();
    in_guest_regime(&machine, || {
        machine.tlbi_ipas2e1is(IPA);
        machine.tlbi_vmalle1is();
        machine.dsb_ish();
        assert!(reaches(&machine), "the second TLBI ran beside the first");
        machine.tlbi_vmalle1is();
        machine.dsb_ish();
    });
    assert!(!reaches(&machine));
}

#[test]
fn a_tlbi_for_another_vmid_page_or_cpu_does_nothing() {
    let machine = machine();
    leaf(&machine, 0);
    machine.dsb_ishst();
    machine.tlbi_vmalls12e1is();
    in_guest_regime(&machine, || machine.tlbi_ipas2e1is(Ipa(IPA.0 + 0x1000)));
    machine.dsb_ish();
    assert!(reaches(&machine));
    in_guest_regime(&machine, || machine.tlbi_vmalls12e1is());
    on_cpu(1, || machine.dsb_ish());
    assert!(reaches(&machine), "another CPU's DSB completes nothing of mine");
}

#[test]
fn change_without_break_is_a_violation() {
    let machine = machine();
    leaf(&machine, page(9));
    assert_eq!(machine.violations().len(), 1);
}

#[test]
fn break_without_invalidation_is_a_violation() {
    let machine = machine();
    leaf(&machine, 0);
    machine.dsb_ishst();
    leaf(&machine, page(9));
    assert_eq!(machine.violations().len(), 1);
}

#[test]
fn break_invalidate_make_is_none() {
    let machine = machine();
    leaf(&machine, 0);
    machine.dsb_ishst();
    in_guest_regime(&machine, || machine.tlbi_vmalls12e1is());
    machine.dsb_ish();
    leaf(&machine, page(9));
    assert_eq!(machine.violations(), Vec::<String>::new());
    machine.dsb_ishst();
    assert_eq!(machine.walks_to(GUEST, IPA).unwrap().frame_of(IPA.0), Some(frame(9)));
}

#[test]
fn an_unlinked_table_lives_on_in_walk_caches() {
    let machine = machine();
    machine.write(frame(1).base(), 1, 0);
    machine.dsb_ish();
    leaf(&machine, 0);
    machine.write(frame(2).base(), 3, page(9));
    machine.dsb_ishst();
    let third = Ipa(IPA.0 + 0x3000);
    assert!(!machine.reachable(GUEST, third, Access::Read).is_empty());
    in_guest_regime(&machine, || machine.tlbi_ipas2e1is(IPA));
    machine.dsb_ish();
    machine.write(frame(2).base(), 4, page(10));
    assert!(machine.reachable(GUEST, Ipa(IPA.0 + 0x4000), Access::Read).is_empty());
}

#[test]
fn a_table_that_was_not_zeroed_or_not_yet_visible_is_a_violation() {
    let machine = machine();
    machine.write(frame(1).base(), 2, table(5));
    assert!(machine.violations().iter().any(|text| text.contains("never zeroed")));
    let machine = self::machine();
    machine.zero(frame(5));
    machine.write(frame(1).base(), 2, table(5));
    assert!(machine.violations().iter().any(|text| text.contains("before its zeroes")));
}

#[test]
fn a_scrub_reaches_memory_at_the_dsb() {
    let machine = machine();
    machine.preload(frame(8), 0xbad);
    machine.scrub(frame(8));
    assert_eq!(machine.read_at(GUEST, IPA, 7), Some(0));
    assert_eq!(machine.read_uncached_at(GUEST, IPA, 7), Some(0xbad));
    machine.dsb_ish();
    assert!(machine.is_scrubbed(frame(8)));
    assert!(machine.write_at(GUEST, IPA, 7, 1));
    assert!(machine.is_dirty(frame(8)));
}

#[test]
fn a_recycled_vmid_with_live_translations_is_a_violation() {
    let machine = machine();
    machine.detach(GUEST);
    assert!(reaches(&machine));
    machine.attach(GUEST, frame(0), 1);
    assert_eq!(machine.violations().len(), 1);
}

#[test]
fn a_dropped_call_is_counted_and_does_nothing() {
    let machine = machine();
    machine.mutate(Mutation::SkipTlbiAll, Which::Nth(0));
    leaf(&machine, 0);
    machine.dsb_ishst();
    for alive in [true, false] {
        in_guest_regime(&machine, || machine.tlbi_vmalls12e1is());
        machine.dsb_ish();
        assert_eq!(reaches(&machine), alive);
    }
    assert_eq!((machine.dropped(), machine.counts().tlbis), (1, 2));
}

#[test]
fn entries_are_read_back_as_written() {
    let machine = machine();
    assert_eq!(machine.read(Pa(frame(2).base().0), 0), page(8));
    assert_eq!(machine.read(frame(2).base(), 1), 0);
}
