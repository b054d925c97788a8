//! Histories of one entry, right and wrong.

use super::*;

const ROOT: u64 = 0x5000_0000;
const LEVEL2: u64 = 0x5000_2000;
const LEVEL3: u64 = 0x5000_3000;
/// Of IPA 0x1000.
const ENTRY: u64 = LEVEL3 + 8;
const LEAF: u64 = 0x4100_07ff;
const OTHER: u64 = 0x4200_07ff;
/// TLBI instructions without their register.
const IPAS2E1IS: u32 = 0xd50c_8020;
const VMALLE1IS: u32 = 0xd508_8300;
const VMALLS12E1IS: u32 = 0xd50c_83c0;
/// DSB ISH and ISHST.
const ISH: u64 = 11;
const ISHST: u64 = 10;

fn happen(checker: &mut Checker, kinds: &[Kind]) {
    kinds.iter().for_each(|kind| checker.event(Event { cpu: 0, kind: *kind, pc: 0 }));
}

/// A machine whose VMID 1 is loaded and maps IPA 0x1000.
fn machine() -> Checker {
    let mut checker = Checker::new(0x4020_0000..0x4030_0000);
    let kinds = [
        Kind::Vttbr(1 << 48 | ROOT),
        Kind::Page { page: ROOT, level: 1 },
        Kind::Entry { at: ROOT, value: LEVEL2 | 3 },
        Kind::Page { page: LEVEL2, level: 2 },
        Kind::Entry { at: LEVEL2, value: LEVEL3 | 3 },
        Kind::Page { page: LEVEL3, level: 3 },
        Kind::Entry { at: ENTRY, value: LEAF },
    ];
    happen(&mut checker, &kinds);
    checker
}

fn dsb(option: u64) -> Kind {
    Kind::Dsb { option }
}

fn tlbi(code: u32, value: u64) -> Kind {
    Kind::Tlbi { code, value }
}

fn write(value: u64) -> Kind {
    Kind::Write { at: ENTRY, value }
}

const BY_ADDRESS: [Kind; 5] = [
    Kind::Dsb { option: ISHST },
    Kind::Tlbi { code: IPAS2E1IS, value: 1 },
    Kind::Dsb { option: ISH },
    Kind::Tlbi { code: VMALLE1IS, value: 0 },
    Kind::Dsb { option: ISH },
];

/// The findings of a history that begins with the removal of the leaf and ends with the new one and an exit.
fn remade(between: &[Kind]) -> Vec<String> {
    let mut checker = machine();
    happen(&mut checker, &[write(0)]);
    happen(&mut checker, between);
    happen(&mut checker, &[write(OTHER), Kind::Eret]);
    checker.findings
}

#[test]
fn break_before_make_by_address_passes() {
    assert_eq!(remade(&BY_ADDRESS), [""; 0]);
}

#[test]
fn break_before_make_of_the_whole_vmid_passes() {
    assert_eq!(remade(&[dsb(ISHST), tlbi(VMALLS12E1IS, 0), dsb(ISH)]), [""; 0]);
}

#[test]
fn each_part_of_break_before_make_is_needed() {
    for (index, left_out) in BY_ADDRESS.iter().enumerate() {
        let mut parts = BY_ADDRESS.to_vec();
        parts.remove(index);
        assert_eq!(remade(&parts).len(), 1, "without {left_out:?}");
    }
}

#[test]
fn an_invalidation_of_another_address_or_vmid_is_none() {
    let mut parts = BY_ADDRESS;
    parts[1] = tlbi(IPAS2E1IS, 2);
    assert!(remade(&parts)[0].contains("no TLBI covers it"));
    let mut elsewhere = vec![Kind::Vttbr(2 << 48 | 0x6000_0000)];
    elsewhere.extend(BY_ADDRESS);
    assert!(remade(&elsewhere)[0].contains("no TLBI covers it"));
}

#[test]
fn a_dsb_for_stores_completes_no_invalidation() {
    let findings = remade(&[dsb(ISHST), tlbi(VMALLS12E1IS, 0), dsb(ISHST)]);
    assert!(findings[0].contains("no DSB has completed"), "{findings:?}");
}

#[test]
fn a_leaf_that_is_replaced_in_one_store_is_found() {
    let mut checker = machine();
    happen(&mut checker, &[write(OTHER)]);
    assert!(checker.findings[0].contains("without break"), "{:?}", checker.findings);
}

#[test]
fn the_same_leaf_may_come_back_at_once() {
    let mut checker = machine();
    happen(&mut checker, &[write(0), write(LEAF), Kind::Eret]);
    assert_eq!(checker.findings, [""; 0]);
}

#[test]
fn rights_may_change_in_place_but_less_of_them_needs_an_invalidation() {
    let mut checker = machine();
    happen(&mut checker, &[write(LEAF & !(2 << 6)), Kind::Eret]);
    assert!(checker.findings[0].contains("EL2 is left"), "{:?}", checker.findings);
    let mut checker = machine();
    happen(&mut checker, &[write(LEAF & !(2 << 6))]);
    happen(&mut checker, &BY_ADDRESS);
    happen(&mut checker, &[Kind::Eret, write(LEAF), Kind::Eret]);
    assert_eq!(checker.findings, [""; 0]);
}

#[test]
fn el2_is_not_left_before_an_invalidation_is_complete() {
    let mut checker = machine();
    happen(&mut checker, &[Kind::Step(7), write(0), dsb(ISHST), Kind::Eret]);
    assert!(checker.findings[0].starts_with("step 7: EL2 is left"), "{:?}", checker.findings);
}

#[test]
fn a_frame_is_not_given_on_while_its_former_owner_may_reach_it() {
    let mut checker = machine();
    let other = [
        write(0),
        Kind::Vttbr(2 << 48 | 0x6000_0000),
        Kind::Page { page: 0x6000_0000, level: 1 },
        Kind::Entry { at: 0x6000_0000, value: 0x6000_1003 },
        Kind::Page { page: 0x6000_1000, level: 2 },
        // A block that holds the frame.
        Kind::Write { at: 0x6000_1000, value: 0x4100_07fd },
    ];
    happen(&mut checker, &other);
    assert!(
        checker.findings[0].contains("is mapped while VMID 1 may still reach it"),
        "{:?}",
        checker.findings
    );
}

#[test]
fn a_table_that_is_taken_out_needs_an_invalidation_of_every_leaf_below() {
    let unlink = Kind::Write { at: LEVEL2, value: 0 };
    let mut checker = machine();
    happen(
        &mut checker,
        &[unlink, dsb(ISHST), tlbi(IPAS2E1IS, 0), dsb(ISH), tlbi(VMALLE1IS, 0), dsb(ISH), Kind::Eret],
    );
    assert_eq!(checker.findings.len(), 1);
    let mut checker = machine();
    happen(&mut checker, &[unlink]);
    happen(&mut checker, &BY_ADDRESS);
    // The page may be anything now.
    happen(&mut checker, &[Kind::Eret, write(OTHER), write(LEAF), Kind::Eret]);
    assert_eq!(checker.findings, [""; 0]);
}

#[test]
fn a_vmid_is_used_again_after_its_invalidation_only() {
    let other = Kind::Vttbr(1 << 48 | 0x6000_0000);
    let mut checker = machine();
    happen(&mut checker, &[other]);
    assert!(checker.findings[0].contains("goes from root"), "{:?}", checker.findings);
    let mut checker = machine();
    let nothing = Kind::Vttbr(1 << 48 | 0x4028_0000);
    happen(&mut checker, &[nothing, tlbi(VMALLS12E1IS, 0), dsb(ISH), other]);
    assert_eq!(checker.findings, [""; 0]);
}

#[test]
fn a_store_that_the_log_lacks_is_found() {
    let mut checker = machine();
    happen(&mut checker, &[Kind::Same { page: LEVEL3 }, Kind::Entry { at: ENTRY, value: OTHER }, Kind::Eret]);
    assert!(checker.findings[0].contains("written unseen"), "{:?}", checker.findings);
}

/// A block of 2 MiB in place of the machine's level-3 table, and one entry of a level-3 table that maps the same.
const BLOCK: u64 = 0x4120_07fd;
const MOVING: u64 = 1 << 5;
/// TLBI of all that a block covers, by one of its addresses or by a range of 512 pages (D8.17.6: SCALE 1, NUM 7).
const RIPAS2E1IS: u32 = 0xd50c_8040;

fn entry_of_block(value: u64) -> Kind {
    Kind::Write { at: LEVEL2, value }
}

/// The level-3 table as it is sent: the pages of the block, but those that `change` says.
fn table_of_block(change: impl Fn(u64) -> u64) -> Vec<Kind> {
    let entries =
        (0..512).map(|slot| Kind::Entry { at: LEVEL3 + 8 * slot, value: change((BLOCK | 2) + slot * PAGE) });
    [Kind::Page { page: LEVEL3, level: 3 }].into_iter().chain(entries).collect()
}

/// Invalidation of the block's whole range.
fn invalidation() -> Vec<Kind> {
    let range = 1 << 44 | 7 << 39;
    [dsb(ISHST), tlbi(RIPAS2E1IS, range), dsb(ISH), tlbi(VMALLE1IS, 0), dsb(ISH)].to_vec()
}

/// A machine whose VMID 1 maps a block.
fn block_machine() -> Checker {
    let mut checker = Checker::new(0x4020_0000..0x4030_0000);
    let kinds = [
        Kind::Vttbr(1 << 48 | ROOT),
        Kind::Page { page: ROOT, level: 1 },
        Kind::Entry { at: ROOT, value: LEVEL2 | 3 },
        Kind::Page { page: LEVEL2, level: 2 },
        Kind::Entry { at: LEVEL2, value: BLOCK },
    ];
    happen(&mut checker, &kinds);
    checker
}

/// The block is split by `between` its break and its make, into a table of these pages; and then merged again by `after`.
fn split_and_merged(between: &[Kind], pages: &[Kind], after: &[Kind], block: u64) -> Checker {
    let mut checker = block_machine();
    happen(&mut checker, &[entry_of_block(MOVING)]);
    happen(&mut checker, between);
    happen(&mut checker, &[entry_of_block(LEVEL3 | 3)]);
    happen(&mut checker, pages);
    happen(&mut checker, &[Kind::Eret, entry_of_block(MOVING)]);
    let out_of_use = (0..512).map(|slot| Kind::Write { at: LEVEL3 + 8 * slot, value: MOVING });
    happen(&mut checker, &out_of_use.collect::<Vec<_>>());
    happen(&mut checker, after);
    happen(&mut checker, &[entry_of_block(block), dsb(ISHST), Kind::Eret]);
    checker
}

#[test]
fn a_block_that_is_split_and_merged_with_break_before_make_passes() {
    let checker = split_and_merged(&BY_ADDRESS_0, &table_of_block(|page| page), &invalidation(), BLOCK);
    assert_eq!(checker.findings, [""; 0]);
    assert_eq!((checker.counts.blocks.split, checker.counts.blocks.merged), ([0, 1], [0, 1]));
    // The kept table serves again: what it says is read anew.
    let mut checker = checker;
    happen(&mut checker, &[entry_of_block(MOVING)]);
    happen(&mut checker, &BY_ADDRESS_0);
    happen(&mut checker, &[entry_of_block(LEVEL3 | 3)]);
    happen(&mut checker, &table_of_block(|page| page));
    happen(&mut checker, &[Kind::Eret]);
    assert_eq!(checker.findings, [""; 0]);
    assert_eq!(checker.counts.blocks.split, [0, 2]);
}

/// As [`BY_ADDRESS`], for the block's first address.
const BY_ADDRESS_0: [Kind; 5] = [
    Kind::Dsb { option: ISHST },
    Kind::Tlbi { code: IPAS2E1IS, value: 0 },
    Kind::Dsb { option: ISH },
    Kind::Tlbi { code: VMALLE1IS, value: 0 },
    Kind::Dsb { option: ISH },
];

#[test]
fn each_part_of_a_split_and_of_a_merge_is_needed() {
    for index in 0..5 {
        let (mut less, whole) = (BY_ADDRESS_0.to_vec(), invalidation());
        less.remove(index);
        let checker = split_and_merged(&less, &table_of_block(|page| page), &whole, BLOCK);
        assert!(checker.findings[0].contains("is made while"), "split, {index}: {:?}", checker.findings);
        let mut less = invalidation();
        less.remove(index);
        let checker = split_and_merged(&BY_ADDRESS_0, &table_of_block(|page| page), &less, BLOCK);
        assert!(!checker.findings.is_empty(), "merge, {index}");
    }
    // One page of the table is not one block.
    let checker = split_and_merged(&BY_ADDRESS_0, &table_of_block(|page| page), &BY_ADDRESS_0, BLOCK);
    assert!(checker.findings[0].contains("no TLBI covers it"), "{:?}", checker.findings);
}

#[test]
fn a_table_and_a_block_in_place_of_one_another_translate_the_same() {
    let moved = |page: u64| if page == (BLOCK | 2) + 7 * PAGE { page + PAGE } else { page };
    let checker = split_and_merged(&BY_ADDRESS_0, &table_of_block(moved), &invalidation(), BLOCK);
    assert!(
        checker.findings[0].contains("split into a table that translates otherwise"),
        "{:?}",
        checker.findings
    );
    assert!(
        checker.findings[1].contains("made of a table that translates otherwise"),
        "{:?}",
        checker.findings
    );
    let executable = |page: u64| if page == BLOCK | 2 { page | NEVER_EXECUTE } else { page };
    let checker = split_and_merged(&BY_ADDRESS_0, &table_of_block(executable), &invalidation(), BLOCK);
    assert_eq!(checker.findings.len(), 2, "{:?}", checker.findings);
}

#[test]
fn an_entry_does_not_say_moving_when_el2_is_left() {
    let mut checker = block_machine();
    happen(&mut checker, &[entry_of_block(MOVING)]);
    happen(&mut checker, &BY_ADDRESS_0);
    happen(&mut checker, &[Kind::Eret]);
    assert!(checker.findings[0].contains("says MOVING"), "{:?}", checker.findings);
}

#[test]
fn what_was_taken_out_with_a_table_is_given_to_nobody_before_its_invalidation() {
    let mut checker = machine();
    let other = [
        Kind::Write { at: LEVEL2, value: 0 },
        Kind::Vttbr(2 << 48 | 0x6000_0000),
        Kind::Page { page: 0x6000_0000, level: 1 },
        Kind::Entry { at: 0x6000_0000, value: 0x6000_1003 },
        Kind::Page { page: 0x6000_1000, level: 2 },
        // The block around the table's one frame.
        Kind::Write { at: 0x6000_1000, value: 0x4100_07fd },
    ];
    happen(&mut checker, &other);
    assert!(
        checker.findings[0].contains("is mapped while VMID 1 may still reach it"),
        "{:?}",
        checker.findings
    );
}

#[test]
fn a_block_of_the_host_stands_for_itself() {
    for (block, findings) in [(0x4120_07fd, 0), (0x4140_07fd, 1)] {
        let mut checker = Checker::new(0x4020_0000..0x4030_0000);
        let kinds = [
            Kind::Vttbr(ROOT),
            Kind::Page { page: ROOT, level: 1 },
            Kind::Entry { at: ROOT + 8, value: LEVEL2 | 3 },
            Kind::Page { page: LEVEL2, level: 2 },
            Kind::Write { at: LEVEL2 + 8 * 9, value: block },
        ];
        happen(&mut checker, &kinds);
        assert_eq!(checker.findings.len(), findings, "{:?}", checker.findings);
    }
}
