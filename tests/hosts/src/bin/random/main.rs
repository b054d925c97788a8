//! The random tester: a host and three guests that do anything at all, beside the reference model (`tenure-mm`'s `model`, the very
//! source that the tests of the build machine use).
//!
//! After each step what can be seen is compared with the model: the answer with done count, blocker and mask, or the exit; every
//! frame's word (state, owner, leaves, pins); what the host's stage-2 table holds at every frame and the guest's at every address,
//! or the address's status; contents as the host and the guests read them; the totals. Of the blocks of 2 MiB this is done for all
//! that the step can have touched and for a part of the rest, and now and then for everything ([`compare`]); where the steps are
//! told, always for everything.
//!
//! With several CPUs half of the steps are rounds: all act at the same time on the same few pages, and some order of their acts must
//! explain every answer and what is left ([`crowd`]).
//!
//! Boot arguments: `seed=` and `steps=` choose the run. A failure names both, and the same seed takes the same steps; each depends
//! on the seed and its number alone, so `only=0-17,40` takes a part of a run (`cargo xtask random` finds the smallest that still
//! fails) and `tell=1` tells each step.
#![no_std]
#![no_main]
#![allow(clippy::result_large_err)] // A failure holds its text.

extern crate alloc;

mod blocks;
mod compare;
mod contents;
mod crew;
mod crowd;
mod dice;
mod guest;
mod host;
mod op;
mod place;
mod tally;
mod world;

use tenure_test_hosts::totals::Totals;
use tenure_test_hosts::{Host, calls, memory};
use tenure_test_rt::harness::{self, TestResult};
use tenure_test_rt::{check, check_eq, cpu, entry, heap, note, println};

use op::Op;
use tally::Tally;
use world::World;

entry!(main);

const DEFAULT_SEED: u64 = 1;
const DEFAULT_STEPS: u64 = 10_000;
/// Steps after which calls by a handle that was never given are tried.
const STALE: u64 = 256;
/// With several CPUs so many steps are one CPU's, and then so many all CPUs'.
const TURN: u64 = 64;
/// Frames of the heap.
const HEAP: usize = 2048;

fn main(dtb: u64) -> ! {
    println!("host-random: device tree at {dtb:#x}");
    let mut host = match Host::new(dtb) {
        Ok(host) => host,
        Err(why) => harness::abandon(why),
    };
    if !host.under_tenure {
        harness::abandon("no Tenure here");
    }
    let Some(pages) = host.frames.take(HEAP, 1) else { harness::abandon("no memory for the heap") };
    heap::give(memory::address(pages), HEAP as u64 * tenure_abi::PAGE_SIZE);
    let seed = host.machine.argument("seed").unwrap_or(DEFAULT_SEED);
    let steps = host.machine.argument("steps").unwrap_or(DEFAULT_STEPS);
    println!("note: seed={seed} steps={steps}");
    harness::run("random", "blocks_can_be_split", || host.split_blocks());
    harness::run("random", "the_machine_and_the_model_agree", || random(host, seed, steps));
    harness::finish()
}

/// The whole run; at its end everything is given back.
fn random(mut host: Host, seed: u64, steps: u64) -> TestResult {
    let tell = host.machine.argument("tell").unwrap_or(0) != 0;
    let only = host.machine.word("only");
    let cpus = host.machine.cpus.len();
    host.top_up()?;
    let before = Totals::read()?;
    let mut world = World::new(host)?;
    let mut tally = Tally::default();
    let mut crew = 1;
    for step in (0..steps).filter(|step| only.is_none_or(|only| names(only, *step))) {
        cpu::mark(step);
        let op = Op::of(seed, step);
        let round = cpus > 1 && step / TURN % 2 == 1;
        if round != (crew > 1) {
            crew = if round { crew::start(&world.host)? } else { crew::stop(&world.host).map(|()| 1)? };
        }
        if tell && !round {
            println!("step {step}: {op:x?}");
        }
        let outcome = if round {
            world.round(seed, step, crew)
        } else {
            take(&mut world, op, step, tell && only.is_some())
        };
        if !round {
            tally.add(op, core::mem::take(&mut world.tally));
        }
        if let Err(failure) = outcome {
            note!("seed={seed} step={step} {op:x?}");
            return Err(failure);
        }
    }
    tally.tell();
    world.tell_blocks();
    world.tell_rounds();
    if crew > 1 {
        crew::stop(&world.host)?;
    }
    let poisoned = world.end()?;
    check!(calls::tenure_answers(), "Tenure is silent");
    let mut after = Totals::read()?;
    // What was poisoned is gone for good.
    let [host, .., lost] = &mut after.states;
    *host += poisoned;
    *lost = lost.saturating_sub(poisoned);
    check_eq!(after, before);
    Ok(())
}

fn take(world: &mut World, op: Op, step: u64, whole: bool) -> TestResult {
    let before = world.model.clone();
    world.take(op)?;
    if step.is_multiple_of(STALE) {
        world.stale()?;
    }
    if whole { world.compare_all() } else { world.compare_step(&before, step) }
}

/// Whether a list like `0-17,40` names this step.
fn names(list: &str, step: u64) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.parse::<u64>(), last.parse::<u64>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&step),
            _ => false,
        }
    })
}
