//! Mistakes put into the code from outside: each must turn up in an interleaving that is right without it.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

mod explore;

use explore::calls::Call::*;
use explore::calls::{DRAIN, REVOKE};
use explore::fault::{Fault as Mistake, found};

#[test]
fn a_swap_that_does_not_compare_is_found() {
    found(Mistake::SwapWithoutCompare, &[], &[&[Pin(0, 1)], &[Pin(0, 1)]]);
    found(Mistake::SwapWithoutCompare, &[], &[&[Unshare(0, 1, 0)], &[Pin(0, 1)]]);
}

#[test]
fn a_freeze_that_nobody_sees_is_found() {
    found(Mistake::FreezeUnseen, &[Fault(0)], &[&[Fault(0), Store(0)], &[Unshare(0, 1, REVOKE)]]);
}

#[test]
fn a_word_that_stays_frozen_is_found() {
    // The range thaws its first page when its second refuses.
    found(Mistake::ThawForgotten, &[Pin(1, 1)], &[&[Unshare(0, 2, 0)], &[Pin(0, 1)]]);
}

#[test]
fn a_leaf_that_is_not_read_again_is_found() {
    let moves = &[Relinquish(0), Donate(0, 2)];
    found(Mistake::LeafNotReadAgain, &[Unshare(0, 2, 0)], &[moves, &[Share(0, 1)]]);
}

#[test]
fn a_lock_that_lets_everybody_in_is_found() {
    let first = &[Unshare(0, 2, 0), Relinquish(0), Relinquish(1)];
    found(Mistake::LocksIgnored, first, &[&[Donate(0, 2)], &[Donate(1, 2)]]);
}

#[test]
fn a_missing_tlbi_is_found() {
    found(Mistake::NoTlbiOfPage, &[Fault(0)], &[&[Unshare(0, 1, REVOKE)], &[Store(0)]]);
}

#[test]
fn a_missing_dsb_is_found() {
    found(Mistake::NoDsb, &[Fault(0)], &[&[Unshare(0, 1, REVOKE)], &[Store(0)]]);
}

#[test]
fn an_unpin_that_gets_lost_is_found() {
    found(Mistake::UnpinLost, &[Pin(0, 1)], &[&[Unpin(0)], &[Unshare(0, 1, DRAIN)]]);
}

#[test]
fn a_dying_vm_that_lets_callers_in_is_found() {
    found(Mistake::DyingVmLetsIn, &[], &[&[Destroy], &[Donate(2, 2)]]);
}

#[test]
fn a_missing_scrub_is_found() {
    found(Mistake::NoScrub, &[Unshare(0, 2, 0)], &[&[Relinquish(0)], &[Fault(0), Store(0)]]);
}
