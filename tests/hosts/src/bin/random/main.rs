//! The random tester: a host and two guests that do anything at all, and what must hold after each step.
//!
//! `seed=` and `steps=` among the boot arguments choose the run; a failure names both, and the same seed takes the same steps. One
//! CPU, so that nothing but the seed decides. It knows no right answers of calls: it knows what the page words, the host's own
//! accesses, its ledger of pins, and the contents must be like whatever was answered.
#![no_std]
#![no_main]
#![allow(clippy::result_large_err)] // A failure holds its text: there is no heap.

mod arena;
mod party;
mod steps;

use tenure_test_hosts::totals::Totals;
use tenure_test_hosts::{Host, calls};
use tenure_test_rt::harness::{self, TestResult};
use tenure_test_rt::{check_eq, entry, note, println};

use arena::Arena;
use party::Party;
use steps::Dice;

entry!(main);

const DEFAULT_SEED: u64 = 1;
const DEFAULT_STEPS: u64 = 10_000;

fn main(dtb: u64) -> ! {
    println!("host-random: device tree at {dtb:#x}");
    let mut host = match Host::new(dtb) {
        Ok(host) => host,
        Err(why) => harness::abandon(why),
    };
    if !host.under_tenure {
        harness::abandon("no Tenure here");
    }
    let seed = host.machine.argument("seed").unwrap_or(DEFAULT_SEED);
    let steps = host.machine.argument("steps").unwrap_or(DEFAULT_STEPS);
    println!("note: seed={seed} steps={steps}");
    harness::run("random", "blocks_can_be_split", || host.split_blocks());
    harness::run("random", "nothing_forbidden_happens", || random(&mut host, seed, steps));
    harness::finish()
}

/// The whole run; at its end everything is given back.
fn random(host: &mut Host, seed: u64, steps: u64) -> TestResult {
    let before = Totals::read()?;
    let mut arena = Arena::new(host)?;
    let mut parties = [Party::new(host, true)?, Party::new(host, false)?];
    let mut dice = Dice::new(seed);
    for step in 0..steps {
        let outcome =
            steps::take(host, &mut arena, &mut parties, &mut dice).and_then(|()| arena.audit(&mut dice));
        if let Err(failure) = outcome {
            note!("seed={seed} step={step}");
            return Err(failure);
        }
    }
    note!("{} calls succeeded, {} were refused", dice.succeeded, dice.refused);
    for party in &mut parties {
        note!("exits of the last guest by reason {:?}", party.vm.exits);
        party.vm.destroy(host)?;
    }
    arena.end(host)?;
    check_eq!(calls::tenure_answers(), true);
    check_eq!(Totals::read()?, before);
    Ok(())
}
