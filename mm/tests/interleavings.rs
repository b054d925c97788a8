//! Three CPUs on two pages, in every interleaving of the real code on the adversarial machine: see
//! `docs/interleavings.md`. `TENURE_CASES` (any value) runs the long forms.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

mod explore;

use std::time::Instant;

use explore::calls::Call::{self, *};
use explore::calls::{Answer, DRAIN, REVOKE};
use explore::case::{Case, Seen};
use explore::explorer::Explorer;
use explore::fault::Fault as Mistake;
use explore::judge::Made;

/// What one CPU does.
type Program = Vec<Call>;

/// The ten operations on one page. A fault of the host is followed by its store, a fault of the guest by the host's
/// answer to it, and a reclaim comes after the unmap that it needs.
fn operations_on(page: u64) -> Vec<Program> {
    vec![
        vec![Destroy],
        vec![Share(page, 1)],
        vec![Unshare(page, 1, 0)],
        vec![Unshare(page, 1, DRAIN)],
        vec![Unshare(page, 1, REVOKE)],
        vec![Fault(page), Store(page)],
        vec![GuestFault(page), GuestMap(page)],
        vec![Pin(page, 1)],
        vec![Unpin(page)],
        vec![GuestUnmap(page), Reclaim(page)],
    ]
}

/// The ten operations on each of two pages.
fn operations() -> Vec<Program> {
    let mut operations = operations_on(0);
    operations.extend(operations_on(1).into_iter().skip(1));
    operations
}

/// Operations beyond the ten: the host's consent and unmap, the guest's relinquish, and both pages in one call.
fn further_operations() -> Vec<Program> {
    vec![
        vec![Consent(0, 1)],
        vec![HostUnmap(0)],
        vec![Relinquish(0)],
        vec![Share(0, 2)],
        vec![Unshare(0, 2, 0)],
        vec![Unshare(0, 2, DRAIN)],
        vec![Unshare(0, 2, REVOKE)],
        vec![Consent(0, 2)],
        vec![Pin(0, 2)],
    ]
}

/// States from which all begins: what was done before, with both pages shared.
fn states() -> Vec<Program> {
    vec![
        vec![],
        vec![Fault(0)],
        vec![Pin(0, 1)],
        vec![Fault(0), Pin(0, 1)],
        vec![Fault(0), Pin(0, 1), Unshare(0, 1, DRAIN)],
        vec![Fault(0), Pin(0, 1), Unshare(0, 1, REVOKE)],
        vec![Unshare(0, 2, 0)],
        vec![GuestUnmap(0)],
    ]
}

/// Explores all cases; stops at the first interleaving that goes wrong.
fn explore(what: &str, cases: impl IntoIterator<Item = Case>) -> Seen {
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
    seen
}

/// All choices of `count` of the programs, each as often as one likes, with at most one death.
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
    let named = |chosen: Vec<usize>| chosen.into_iter().map(|one| programs[one].clone()).collect();
    all.into_iter().filter(alive).map(named).collect()
}

fn from(first: Program, programs: Vec<Vec<Program>>) -> impl Iterator<Item = Case> {
    programs.into_iter().map(move |programs| Case { first: first.clone(), programs })
}

fn is_long() -> bool {
    std::env::var_os("TENURE_CASES").is_some()
}

/// Explores one case in which what the calls come to must be `wanted`.
fn wanted(vms: u8, first: &[Call], programs: &[&[Call]], wanted: impl Fn(&[Made]) -> bool) {
    let programs = programs.iter().map(|program| program.to_vec()).collect();
    let case = Case { first: first.to_vec(), programs };
    match Explorer::new(vms, Mistake::None).explore_for(&case, &wanted) {
        Ok(seen) => println!("{case:?}: {seen}"),
        Err(violation) => panic!("{}", violation.0),
    }
}

/// Answers to calls like `call`, to the first page.
fn succeeded(made: &[Made], call: Call) -> bool {
    made.iter()
        .any(|made| made.call == call && matches!(made.answer, Answer::Reply(reply) if reply.is_success()))
}

#[test]
fn two_cpus_on_two_pages_every_pair_from_every_state() {
    let programs = choices(&operations(), 2);
    explore("pairs", states().into_iter().flat_map(|first| from(first, programs.clone())));
    let programs = choices(&[operations(), further_operations()].concat(), 2);
    let states = if is_long() { states() } else { vec![vec![], vec![Fault(0), Pin(0, 1)]] };
    explore("further pairs", states.into_iter().flat_map(|first| from(first, programs.clone())));
}

#[test]
fn three_cpus_on_one_page_every_triple() {
    let mut programs = choices(&operations_on(0), 3);
    // Those that are left out here come in the next, long one. A death beside calls that take the VM's lock is most of the work.
    let heavy = [vec![GuestFault(0), GuestMap(0)], vec![GuestUnmap(0), Reclaim(0)]];
    programs.retain(|programs| {
        !programs.contains(&vec![Destroy]) || !programs.iter().any(|program| heavy.contains(program))
    });
    let states = [vec![], vec![Fault(0), Pin(0, 1)]];
    explore("triples on one page", states.into_iter().flat_map(|first| from(first, programs.clone())));
}

/// The long form of all.
#[test]
fn three_cpus_on_two_pages_every_triple_from_every_state() {
    if !is_long() {
        return;
    }
    let programs = choices(&operations(), 3);
    for first in states() {
        explore(&format!("triples after {first:?}"), from(first, programs.clone()));
    }
}

#[test]
fn scenario_01_faults_of_two_vcpus_cannot_refuse_a_conversion() {
    let unshare = Unshare(0, 1, 0);
    wanted(1, &[], &[&[GuestFault(0)], &[GuestFault(0)], &[unshare]], |made| succeeded(made, unshare));
    // Here the host answers the faults: one of them, and the conversion goes through beside it or before or after.
    wanted(
        1,
        &[GuestUnmap(0)],
        &[&[GuestFault(0), GuestMap(0)], &[GuestFault(0), GuestMap(0)], &[unshare]],
        |made| {
            let maps = made.iter().filter(|made| made.call == GuestMap(0));
            maps.filter(|made| matches!(made.answer, Answer::Reply(reply) if reply.is_success())).count() <= 1
        },
    );
}

#[test]
fn scenario_02_no_half_step_of_a_reference_is_seen() {
    wanted(1, &[], &[&[Pin(0, 1), Unpin(0)], &[Pin(0, 1), Unpin(0)], &[Unshare(0, 1, 0)]], |_| true);
    wanted(1, &[Fault(0)], &[&[HostUnmap(0), Pin(0, 1)], &[Unshare(0, 1, 0)], &[Consent(0, 1)]], |_| true);
}

#[test]
fn scenario_05_and_06_faults_of_the_host_while_a_page_is_converted() {
    for conversion in [Unshare(0, 1, 0), Unshare(0, 1, REVOKE), Consent(0, 1)] {
        for first in [&[][..], &[Fault(0)]] {
            wanted(1, first, &[&[Fault(0), Store(0)], &[Fault(0), Store(0)], &[conversion]], |_| true);
        }
    }
}

#[test]
fn scenario_07_and_08_a_reclaim_against_faults() {
    let reclaim = &[Reclaim(0)];
    wanted(
        1,
        &[GuestUnmap(0)],
        &[&[GuestFault(0), GuestMap(0)], &[GuestFault(0), GuestMap(0)], reclaim],
        |_| true,
    );
    wanted(1, &[GuestUnmap(0)], &[&[GuestFault(0), GuestMap(0)], &[Fault(0), Store(0)], reclaim], |made| {
        // Not both: a frame that has gone is not mapped.
        !(succeeded(made, Reclaim(0)) && succeeded(made, GuestMap(0)))
    });
}

#[test]
fn scenario_15_two_vms_swap_pages() {
    let there = &[Relinquish(0), Donate(0, 4)];
    let back = &[Relinquish(2), Donate(2, 1)];
    let first = &[Unshare(0, 2, 0), Unshare(2, 2, 0), Relinquish(1)];
    wanted(2, first, &[there, back], |_| true);
    wanted(2, first, &[there, back, &[Fault(0), Pin(2, 1)]], |_| true);
}

#[test]
fn scenario_19_one_of_two_donations_of_a_frame_wins() {
    wanted(1, &[], &[&[Donate(2, 2)], &[Donate(2, 2)], &[Fault(2), Store(2)]], |made| {
        let done = |made: &&Made| matches!(made.answer, Answer::Reply(reply) if reply.is_success());
        made.iter().filter(done).count() == 1
    });
}

#[test]
fn scenario_20_shares_against_unshares() {
    for first in [&[][..], &[Unshare(0, 1, 0)]] {
        wanted(1, first, &[&[Share(0, 1)], &[Unshare(0, 1, 0)], &[Share(0, 1), Unshare(0, 1, 0)]], |_| true);
    }
}

#[test]
fn scenario_21_a_drain_gets_through_a_loop_of_pins() {
    let pins = &[Pin(0, 1), Unpin(0), Pin(0, 1), Unpin(0), Pin(0, 1), Unpin(0)];
    wanted(1, &[], &[pins, &[Unshare(0, 1, DRAIN), Unshare(0, 1, DRAIN)]], |made| {
        let begins = |made: &Made| {
            let drains = made.call == Unshare(0, 1, DRAIN);
            drains && matches!(made.answer, Answer::Reply(reply) if reply.done == 1)
        };
        // Once it drains, nobody pins it any more.
        let Some(drain) = made.iter().position(begins) else { return true };
        let later = made.iter().filter(|made| made.before >> drain & 1 == 1 && made.call == Pin(0, 1));
        later.filter(|made| matches!(made.answer, Answer::Reply(reply) if reply.is_success())).count() == 0
    });
}

#[test]
fn scenario_25_a_frame_that_moves_between_a_walk_and_its_swap() {
    let moves = &[Relinquish(0), Donate(0, 2)];
    wanted(1, &[Unshare(0, 2, 0)], &[moves, &[Share(0, 1)], &[Share(2, 1)]], |_| true);
    wanted(1, &[Unshare(0, 2, 0)], &[&[Relinquish(0), Donate(0, 0)], &[Share(0, 1)], &[Share(0, 2)]], |_| {
        true
    });
}

#[test]
fn four_vms_convert_on_four_cpus_without_meeting() {
    let programs: Vec<Program> =
        (0..4).map(|vm| vec![Unshare(2 * vm, 2, REVOKE), Share(2 * vm, 1)]).collect();
    let programs: Vec<&[Call]> = programs.iter().map(Vec::as_slice).collect();
    let first: Vec<Call> = (0..4).map(|vm| Fault(2 * vm)).collect();
    wanted(4, &first, &programs, |made| {
        made.iter().all(|made| matches!(made.answer, Answer::Reply(reply) if reply.is_success()))
    });
}
