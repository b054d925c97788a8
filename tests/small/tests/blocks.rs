//! Operations on a block, its every entry, against the word operations on its pages and against one another, from two
//! and three CPUs, in every interleaving of the real code on the adversarial machine: see `docs/interleavings.md`.
//! A block has eight pages here. `TENURE_CASES` (any value) runs the long forms.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

#[path = "../../../mm/tests/explore/mod.rs"]
mod explore;

use std::time::Instant;

use explore::calls::Call::{self, *};
use explore::calls::{DRAIN, REVOKE};
use explore::case::{Case, Seen};
use explore::explorer::Explorer;
use explore::fault::Fault as Mistake;

/// What one CPU does.
type Program = Vec<Call>;

/// The entries that donate a block: the first takes it, the others scrub, the last one gives it.
const ENTRIES: [Call; 3] = [DonateFrom(0), DonateFrom(2), DonateFrom(6)];
const BLOCK: u64 = 8;

/// What was done before, and what CPUs do then.
struct Stage {
    first: Program,
    programs: Vec<Program>,
}

fn after(first: &[&[Call]], programs: &[&[Call]]) -> Stage {
    Stage { first: first.concat(), programs: programs.iter().map(|program| program.to_vec()).collect() }
}

/// The life of a block, from the host's whole block to its end, and at each stage what can be done to it.
fn stages() -> Vec<Stage> {
    let given: &[Call] = &[ENTRIES[0], ENTRIES[1], ENTRIES[2], GuestStore(1), GuestStore(5)];
    let shared = &[given, &[Share(0, BLOCK)]].concat();
    let cut = &[shared, &[GuestUnmap(1), Reclaim(1)][..]].concat();
    let back: &[Call] = &(0..BLOCK).map(Reclaim).collect::<Vec<_>>();
    let word: &[&[Call]] = &[
        &[Share(1, 1)],
        &[Unshare(1, 1, 0)],
        &[Unshare(1, 1, DRAIN)],
        &[Unshare(0, 2, REVOKE)],
        &[Fault(1), Store(1)],
        &[GuestFault(1)],
        &[Pin(1, 1)],
        &[Pin(5, 1)],
    ];
    let with = |programs: &[&'static [Call]]| [programs, word].concat();
    vec![
        // The host's block: one page of it is used, given, or faulted on, while it is taken.
        after(
            &[],
            &with(&[
                &[Destroy],
                &[DonateFrom(0)],
                &[DonateFrom(0), DonateFrom(2), DonateFrom(6)],
                &[Donate(1, 1)],
                &[Tidy],
            ]),
        ),
        // Parked, a part scrubbed.
        after(
            &[&ENTRIES[..1]],
            &with(&[
                &[Destroy],
                &[DonateFrom(2)],
                &[DonateFrom(2), DonateFrom(6)],
                &[Reclaim(0)],
                &[Reclaim(1), Donate(1, 1)],
                &[Reclaim(5)],
                &[HostUnmap(1)],
            ]),
        ),
        // Parked, all but the last group scrubbed.
        after(
            &[&ENTRIES[..2]],
            &with(&[
                &[Destroy],
                &[DonateFrom(6)],
                &[DonateFrom(2)],
                &[Reclaim(1)],
                &[Reclaim(1), Donate(1, 1)],
                &[Reclaim(7)],
            ]),
        ),
        // The guest's block, private.
        after(
            &[given],
            &with(&[&[Destroy], &[Relinquish(1)], &[Relinquish(5)], &[Relinquish(1), Donate(1, 1)]]),
        ),
        // Shared: the host may have leaves and pins, and cuts it by an unmap.
        after(
            &[shared],
            &with(&[
                &[Destroy],
                &[Relinquish(5)],
                &[GuestUnmap(1)],
                &[GuestUnmap(1), Reclaim(1)],
                &[GuestUnmap(1), GuestMap(1)],
                &[HostUnmap(1)],
            ]),
        ),
        after(
            &[shared, &[Fault(1), Pin(5, 1)]],
            &with(&[
                &[Destroy],
                &[GuestUnmap(1), Reclaim(1)],
                &[Relinquish(5)],
                &[Unpin(5)],
                &[HostUnmap(1)],
            ]),
        ),
        // Cut: a refill merges it.
        after(&[cut], &with(&[&[Destroy], &[Donate(1, 1)], &[GuestUnmap(5)], &[Relinquish(5)]])),
        // Parked, and among those that the host's map would merge: another CPU freezes what it finds whole.
        after(
            &[&ENTRIES[..1], back, &ENTRIES[..2]],
            &with(&[&[Tidy], &[DonateFrom(6)], &[Reclaim(1), DonateFrom(6)], &[Reclaim(0)], &[Reclaim(7)]]),
        ),
        // Given back page by page: the host's block is merged.
        after(&[&ENTRIES[..1], back], &with(&[&[Destroy], &[Tidy], &[DonateFrom(0)], &[Donate(1, 1)]])),
    ]
}

/// All choices of `count` of the programs, each as often as one likes, with at most one death, and with at least one
/// that is about the block as a whole.
fn choices(programs: &[Program], count: usize) -> Vec<Vec<Program>> {
    let mut all = vec![vec![]];
    for _ in 0..count {
        let longer = |chosen: &Vec<usize>| -> Vec<Vec<usize>> {
            let from = chosen.last().copied().unwrap_or(0);
            (from..programs.len()).map(|next| [chosen.as_slice(), &[next]].concat()).collect()
        };
        all = all.iter().flat_map(longer).collect();
    }
    let alive = |chosen: &Vec<usize>| chosen.iter().filter(|&&one| programs[one] == [Destroy]).count() <= 1;
    all.into_iter()
        .filter(alive)
        .map(|chosen| chosen.into_iter().map(|one| programs[one].clone()).collect())
        .filter(|programs: &Vec<Program>| programs.iter().any(|program| is_structural(program)))
        .collect()
}

/// The call changes the structure of a table, or a block's frames together.
fn is_structural(program: &[Call]) -> bool {
    program.iter().any(|call| {
        matches!(
            call,
            DonateFrom(_) | Donate(..) | Relinquish(_) | GuestUnmap(_) | Reclaim(_) | Destroy | Tidy
        )
    })
}

fn explore(what: &str, cases: impl IntoIterator<Item = Case>) {
    let begin = Instant::now();
    let mut explorer = Explorer::new(1, Mistake::None);
    let mut seen = Seen::default();
    for case in cases {
        match explorer.explore(&case) {
            Ok(more) => seen.add(more),
            Err(violation) => panic!("{}", violation.0),
        }
    }
    println!("{what}: {seen}, {} in {:.1?}", explorer.figures(), begin.elapsed());
}

fn is_long() -> bool {
    std::env::var_os("TENURE_CASES").is_some()
}

#[test]
fn two_cpus_on_one_block_every_pair_at_every_stage() {
    for Stage { first, programs } in stages() {
        let cases = choices(&programs, 2).into_iter().map(|programs| Case { first: first.clone(), programs });
        explore(&format!("pairs after {first:?}"), cases);
    }
}

/// Explores one case, which must hold.
fn holds(first: &[Call], programs: &[&[Call]]) {
    let programs = programs.iter().map(|program| program.to_vec()).collect();
    let case = Case { first: first.to_vec(), programs };
    match Explorer::new(1, Mistake::None).explore(&case) {
        Ok(seen) => println!("{case:?}: {seen}"),
        Err(violation) => panic!("{}", violation.0),
    }
}

#[test]
fn a_page_that_is_taken_back_while_another_cpu_looks_at_the_block_is_missed_at_its_end() {
    // The block is among those that the host's map would merge, so that another CPU freezes its first word.
    let back: Vec<Call> = (0..BLOCK).map(Reclaim).collect();
    let first = [&ENTRIES[..1], &back, &ENTRIES[..2]].concat();
    holds(&first, &[&[Reclaim(1), ENTRIES[2]], &[Tidy]]);
    holds(&first, &[&[Reclaim(1), Fault(1), Store(1), ENTRIES[2]], &[Tidy]]);
}

#[test]
fn two_donations_of_one_block_never_take_it_and_refuse() {
    holds(&[], &[&[ENTRIES[0]], &[ENTRIES[0]]]);
    holds(&ENTRIES[..2], &[&[ENTRIES[2]], &[ENTRIES[2]]]);
}

/// The short form: a block that is parked, and calls that change its structure.
#[test]
fn three_cpus_on_one_block_every_triple_at_every_stage() {
    for Stage { first, mut programs } in stages() {
        if !is_long() {
            if !first.last().is_some_and(|call| matches!(call, DonateFrom(0 | 2))) {
                continue;
            }
            programs.retain(|program| is_structural(program) && *program != [Destroy]);
        }
        let cases = choices(&programs, 3).into_iter().map(|programs| Case { first: first.clone(), programs });
        explore(&format!("triples after {first:?}"), cases);
    }
}
