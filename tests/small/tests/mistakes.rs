//! Mistakes put into the code of blocks from outside: each must turn up in an interleaving that is right without it.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

#[path = "../../../mm/tests/explore/mod.rs"]
mod explore;

use explore::calls::Call::{self, *};
use explore::calls::REVOKE;
use explore::fault::{Fault as Mistake, found};

/// The entries that donate a block.
const ENTRIES: [Call; 3] = [DonateFrom(0), DonateFrom(2), DonateFrom(6)];
/// The guest's block, shared.
const SHARED: [Call; 4] = [DonateFrom(0), DonateFrom(2), DonateFrom(6), Share(0, 8)];

#[test]
fn a_block_whose_freeze_nobody_sees_is_found() {
    found(Mistake::BlockFreezeUnseen, &[], &[&[ENTRIES[0]], &[Pin(5, 1)]]);
}

#[test]
fn a_block_that_stays_frozen_when_it_is_refused_is_found() {
    found(Mistake::ThawForgotten, &[Pin(5, 1)], &[&[ENTRIES[0]], &[Pin(1, 1)]]);
}

#[test]
fn a_block_of_the_host_that_is_not_invalidated_is_found() {
    found(Mistake::NoTlbiOfPage, &[], &[&[ENTRIES[0]], &[Store(5)]]);
    found(Mistake::NoDsb, &[], &[&[ENTRIES[0]], &[Store(5)]]);
}

#[test]
fn a_group_that_is_given_without_a_scrub_is_found() {
    found(Mistake::NoScrub, &[], &[&ENTRIES, &[Fault(5), Store(5)]]);
}

#[test]
fn a_page_taken_back_that_its_group_does_not_note_is_found() {
    found(Mistake::ScrubForgiven, &ENTRIES[..2], &[&[Reclaim(1), ENTRIES[2]], &[Fault(1), Store(1)]]);
}

#[test]
fn a_parked_word_changed_while_another_cpu_has_it_frozen_is_found() {
    let back: Vec<Call> = (0..8).map(Reclaim).collect();
    let first = [&ENTRIES[..1], &back, &ENTRIES[..2]].concat();
    found(Mistake::FrozenOverwritten, &first, &[&[Reclaim(1), ENTRIES[2]], &[Tidy]]);
}

#[test]
fn a_lock_that_lets_everybody_in_is_found() {
    found(Mistake::LocksIgnored, &ENTRIES[..2], &[&[ENTRIES[2]], &[Reclaim(1)]]);
}

#[test]
fn a_block_that_is_cut_without_a_break_is_found() {
    found(Mistake::NoBreak, &SHARED, &[&[GuestUnmap(1)], &[GuestFault(5)]]);
}

#[test]
fn a_broken_entry_that_looks_empty_is_found() {
    found(Mistake::BreakUnsaid, &SHARED, &[&[GuestUnmap(1)], &[Unshare(5, 1, REVOKE)]]);
}
