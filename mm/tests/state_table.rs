//! The whole table of transitions: state × operation × owner, each cell written down by hand (S1).
//!
//! `.` done or allowed, `D` DENIED, `B` BUSY, `R` RETRY, `P` PENDING, `X` POISONED. Words without references, except
//! that a draining page has the pin that it drains for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what went wrong by failing")]

use tenure_abi::page::{self, State};
use tenure_abi::reply::Status;
use tenure_mm::state::{self, Refusal, UnshareHow};
use tenure_mm::vm::Slot;
use tenure_mm::word::Word;

const ME: Slot = Slot(1);
const OTHER: Slot = Slot(2);

fn word(state: State, owner: Slot) -> Word {
    let owner = match state {
        State::Private | State::Shared | State::Draining => owner,
        _ => Slot::NONE,
    };
    let word = Word::HOST.with_state(state, owner);
    match state {
        State::Draining => word.count_up(page::CPU_PINS).unwrap(),
        _ => word,
    }
}

fn letter<T>(verdict: Result<T, Refusal>) -> char {
    match verdict.map(|_| ()).map_err(|refusal| refusal.status) {
        Ok(()) => '.',
        Err(Status::Denied) => 'D',
        Err(Status::Busy) => 'B',
        Err(Status::Retry) => 'R',
        Err(Status::Pending) => 'P',
        Err(Status::Poisoned) => 'X',
        Err(other) => panic!("unexpected status {other:?}"),
    }
}

fn leaf(word: Word) -> Word {
    word.add_guest_leaf().unwrap()
}

fn row(owner: Slot, verdict: impl Fn(Word) -> char) -> String {
    State::ALL.iter().map(|state| verdict(word(*state, owner))).collect()
}

const PLAIN: UnshareHow = UnshareHow { drain: false, wait: false, revoke: false, consent: false };

#[test]
fn every_operation_on_every_state_answers_as_the_table_says() {
    // Columns: Host Private Shared Draining Quarantine Hyp Poison. First the caller's own frames, then another VM's.
    type Op = fn(Word) -> char;
    let table: &[(&str, Op, &str, &str)] = &[
        ("share", |w| letter(state::share(w, ME)), "D...DDX", "DDDDDDX"),
        ("unshare", |w| letter(state::unshare(w, ME, PLAIN)), "D..PDDX", "DDDDDDX"),
        (
            "unshare, drain",
            |w| letter(state::unshare(w, ME, UnshareHow { drain: true, ..PLAIN })),
            "D...DDX",
            "DDDDDDX",
        ),
        (
            "unshare, revoke",
            |w| letter(state::unshare(w, ME, UnshareHow { revoke: true, ..PLAIN })),
            "D...DDX",
            "DDDDDDX",
        ),
        (
            "unshare, consent",
            |w| letter(state::unshare(w, ME, UnshareHow { consent: true, ..PLAIN })),
            "D..PDDX",
            "DDDDDDX",
        ),
        ("relinquish", |w| letter(state::leave(w, ME)), "D...DDX", "DDDDDDX"),
        ("donate", |w| letter(state::donate(w)), ".DDDDDX", ".DDDDDX"),
        ("reclaim, sealed", |w| letter(state::reclaim(w, ME, true)), "DD.BDDX", "DDDDDDX"),
        ("reclaim, open", |w| letter(state::reclaim(w, ME, false)), "D..BDDX", "DDDDDDX"),
        ("map guest, protected", |w| letter(state::map_guest(w, ME, true)), "DD.DDDX", "DDDDDDX"),
        ("map guest, plain", |w| letter(state::map_guest(w, ME, false)), ".D.DDDX", ".DDDDDX"),
        ("unmap guest, sealed", |w| letter(state::unmap_guest(leaf(w), ME, true)), ".D.BDDX", ".DDDDDX"),
        ("unmap guest, open", |w| letter(state::unmap_guest(leaf(w), ME, false)), "...BDDX", ".DDDDDX"),
        ("unmap guest, no leaf", |w| letter(state::unmap_guest(w, ME, false)), "DDDBDDX", "DDDDDDX"),
        ("pin", |w| letter(state::pin(w, page::CPU_PINS)), ".D.DDDX", ".D.DDDX"),
        ("dma map", |w| letter(state::dma_map(w)), ".D.DDDX", ".D.DDDX"),
        ("hyp pin", |w| letter(state::hyp_pin(w)), ".DDDDDX", ".DDDDDX"),
        ("host touch", |w| letter(state::host_map(w, false)), ".D...DX", ".D...DX"),
        ("host fetch", |w| letter(state::host_map(w, true)), ".DDDDDX", ".DDDDDX"),
        ("host unmap", |w| letter(state::host_unmap(w)), "D....DX", "D....DX"),
        ("poison", |w| letter(state::poison(w)), ".DDDDDX", ".DDDDDX"),
    ];
    let mut wrong = Vec::new();
    for (name, op, own, foreign) in table {
        for (owner, expected) in [(ME, own), (OTHER, foreign)] {
            let found = row(owner, op);
            if found != **expected {
                wrong.push(format!("{name} by {ME:?} on {owner:?}: {found}, expected {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_frozen_word_is_retry_for_everyone() {
    let cell = tenure_mm::PageWord::new(word(State::Shared, ME));
    let held = cell.freeze(tenure_mm::Pfn(1), cell.load(), cell.load()).unwrap();
    let frozen = cell.load();
    let verdicts = [
        letter(state::share(frozen, ME)),
        letter(state::unshare(frozen, ME, PLAIN)),
        letter(state::leave(frozen, ME)),
        letter(state::donate(frozen)),
        letter(state::reclaim(frozen, ME, false)),
        letter(state::unmap_guest(frozen, ME, false)),
        letter(state::map_guest(frozen, ME, false)),
        letter(state::pin(frozen, page::CPU_PINS)),
        letter(state::unpin(frozen, page::CPU_PINS)),
        letter(state::hyp_pin(frozen)),
        letter(state::host_map(frozen, false)),
        letter(state::host_unmap(frozen)),
        letter(state::poison(frozen)),
        letter(state::dma_map(frozen)),
    ];
    assert!(verdicts.iter().all(|verdict| *verdict == 'R'), "{verdicts:?}");
    drop(held);
}

#[test]
fn a_pin_is_busy_and_a_leaf_is_retry_never_the_other_way() {
    let shared = word(State::Shared, ME);
    let leaf = shared.with_host_leaf(true);
    let cpu = shared.count_up(page::CPU_PINS).unwrap();
    let dma = shared.count_up(page::DMA_PINS).unwrap();
    let unshare = |word, how| state::unshare(word, ME, how);
    let refusal = |word, how| unshare(word, how).unwrap_err();
    assert_eq!(refusal(leaf, PLAIN).status, Status::Retry);
    assert_eq!(refusal(leaf, PLAIN).mask, tenure_abi::reply::HOST_LEAF);
    assert_eq!(refusal(cpu, PLAIN).status, Status::Busy);
    assert_eq!(
        refusal(dma.with_host_leaf(true), PLAIN).mask,
        tenure_abi::reply::DMA_PIN | tenure_abi::reply::HOST_LEAF
    );
    let consent = UnshareHow { consent: true, ..PLAIN };
    assert!(unshare(leaf, consent).is_ok());
    assert_eq!(refusal(cpu.with_host_leaf(true), consent).status, Status::Busy);
}

#[test]
fn revoke_takes_cpu_pins_but_not_device_pins_and_drain_comes_first() {
    let shared = word(State::Shared, ME).with_host_leaf(true);
    let cpu = shared.count_up(page::CPU_PINS).unwrap();
    let dma = shared.count_up(page::DMA_PINS).unwrap();
    let revoke = UnshareHow { revoke: true, ..PLAIN };
    match state::unshare(cpu, ME, revoke) {
        Ok(state::Unshare::DropHostLeaf(next)) => {
            assert!(next.is_redirected() && !next.has_host_leaf());
            assert_eq!(next.cpu_pins(), 1, "the pin is still the holder's to end");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(state::unshare(dma, ME, revoke).unwrap_err().status, Status::Busy);
    let both = UnshareHow { drain: true, ..revoke };
    assert!(matches!(state::unshare(cpu, ME, both), Ok(state::Unshare::Drain(_))));
}

#[test]
fn a_pinned_or_firmware_frame_is_not_donated() {
    for field in [page::CPU_PINS, page::DMA_PINS, page::HYP_PINS] {
        let pinned = Word::HOST.count_up(field).unwrap();
        assert_eq!(state::donate(pinned).unwrap_err().status, Status::Busy);
    }
    assert_eq!(state::donate(Word::HOST.add_guest_leaf().unwrap()).unwrap_err().status, Status::Retry);
    assert_eq!(state::donate(Word::FIRMWARE).unwrap_err().status, Status::Denied);
    // EL2 does not map it, so it must never be asked to write a reply there.
    assert_eq!(state::hyp_pin(Word::FIRMWARE).unwrap_err().status, Status::Denied);
    assert!(state::hyp_pin(Word::HOST).is_ok());
}

#[test]
fn the_last_unpin_ends_a_drain_once() {
    let two = word(State::Draining, ME).count_up(page::DMA_PINS).unwrap().with_waiter(true);
    let Ok(state::Unpin::Swap(one)) = state::unpin(two, page::DMA_PINS) else { panic!() };
    assert_eq!(one.state(), State::Draining);
    let Ok(state::Unpin::Drained(done)) = state::unpin(one, page::CPU_PINS) else { panic!() };
    assert_eq!(done.state(), State::Private);
    assert!(!done.has_waiter() && done.is_redirected());
    assert_eq!(state::unpin(done, page::CPU_PINS).unwrap_err().status, Status::Denied);
}

/// Every combination of flags, of states and owners, and of counts that are empty or not.
fn every_word() -> impl Iterator<Item = Word> {
    let mut words = vec![0u64];
    for (_, field) in page::FIELDS {
        let values: Vec<u64> = match field.bits {
            3 => (0..7).collect(),
            8 if *field == page::OWNER => vec![0, 1, 2],
            _ => vec![0, 1],
        };
        words = words.iter().flat_map(|word| values.iter().map(|value| field.set(*word, *value))).collect();
    }
    words.into_iter().map(Word::from_raw)
}

/// Every way to take a page back, by number.
fn how(bits: usize) -> UnshareHow {
    let has = |bit: u32| bits >> bit & 1 != 0;
    UnshareHow { drain: has(0), wait: has(1), revoke: has(2), consent: has(3) }
}

#[test]
fn the_quick_verdict_is_the_verdict() {
    let (mut shared, mut taken, mut done) = (0, [0; 16], 0);
    for word in every_word() {
        let is_shared = state::Quick::already(ME, State::Shared);
        if is_shared.matches(word) {
            done += 1;
            assert_eq!(state::share(word, ME), Ok(state::Share::Already), "{word:?}");
        }
        let is_private = state::Quick::already(ME, State::Private);
        for bits in (0..16).filter(|_| is_private.matches(word)) {
            done += 1;
            assert_eq!(state::unshare(word, ME, how(bits)), Ok(state::Unshare::Already), "{word:?}");
        }
        assert_eq!((is_shared.next(word), is_private.next(word)), (word, word));
        let quick = state::Quick::share(ME);
        if quick.matches(word) {
            shared += 1;
            assert_eq!(state::share(word, ME), Ok(state::Share::Swap(quick.next(word))), "{word:?}");
        }
        for (bits, taken) in taken.iter_mut().enumerate() {
            let how = how(bits);
            let quick = state::Quick::unshare(ME, how);
            if quick.matches(word) {
                *taken += 1;
                let next = quick.next(word);
                let verdict = match how.revoke || how.consent {
                    true => state::Unshare::DropHostLeaf(next),
                    false => state::Unshare::Swap(next),
                };
                assert_eq!(state::unshare(word, ME, how), Ok(verdict), "{how:?} {word:?}");
            }
        }
    }
    assert!(shared > 0 && done > 0 && taken.iter().all(|&count| count > 0));
}

#[test]
fn words_of_one_kind_change_alike() {
    let change = |word: Word, bits: usize| {
        let next = match bits {
            16 => match state::share(word, ME)? {
                state::Share::Already => (word, false),
                state::Share::Swap(next) => (next, false),
                state::Share::DropScrap(next) => (next, true),
            },
            _ => match state::unshare(word, ME, how(bits))? {
                state::Unshare::Already => (word, false),
                state::Unshare::Swap(next) | state::Unshare::Drain(next) => (next, false),
                state::Unshare::DropHostLeaf(next) => (next, true),
            },
        };
        Ok::<_, state::Refusal>((word.raw() ^ next.0.raw(), next.1))
    };
    let mut seen = std::collections::BTreeMap::new();
    let mut kinds = std::collections::BTreeSet::new();
    for word in every_word() {
        let Some(kind) = state::kind(word, ME) else { continue };
        assert!(kind < state::KINDS);
        kinds.insert(kind);
        for bits in 0..=16 {
            let change = change(word, bits).ok();
            assert_eq!(*seen.entry((kind, bits)).or_insert(change), change, "{word:?} {bits:#x}");
        }
    }
    // Seven states, three flags, two sorts of pins.
    assert_eq!(kinds.len(), 7 * 8 * 4);
}

/// What the fast paths are for: were one never taken, every verdict would still be right, and late.
#[test]
fn the_common_cases_are_known_at_a_glance() {
    let moved = Word::HOST.add_guest_leaf().unwrap().remove_guest_leaf().unwrap();
    assert!(state::is_free(Word::HOST) && state::is_free(moved));
    assert!(state::is_parked(state::park(moved, ME), ME) && !state::is_parked(state::park(moved, ME), OTHER));
    let private = state::adopt(state::park(moved, ME), ME, State::Private);
    assert!(private.is_sole(State::Private, ME) && !private.is_sole(State::Private, OTHER));
    assert!(!private.add_guest_leaf().unwrap().is_sole(State::Private, ME));
    let shared = private.with_state(State::Shared, ME);
    let mapped = shared.with_host_leaf(true);
    let pinned = |word: Word| word.count_up(page::CPU_PINS).unwrap();
    let consent = UnshareHow { consent: true, ..PLAIN };
    let revoke = UnshareHow { revoke: true, ..PLAIN };
    let quick: [(state::Quick, &[Word]); 6] = [
        // A pin that a REVOKE has outlived is no hindrance, nor is a lost guest leaf.
        (state::Quick::share(ME), &[private, pinned(private), private.remove_guest_leaf().unwrap()]),
        (state::Quick::unshare(ME, PLAIN), &[shared]),
        (state::Quick::unshare(ME, consent), &[mapped]),
        (state::Quick::unshare(ME, revoke), &[mapped, pinned(mapped)]),
        (
            state::Quick::already(ME, State::Private),
            &[private, pinned(private), private.with_redirection(true)],
        ),
        (state::Quick::already(ME, State::Shared), &[shared, mapped, pinned(mapped)]),
    ];
    for (quick, words) in quick {
        assert!(words.iter().all(|word| quick.matches(*word)), "{quick:?}");
    }
}
