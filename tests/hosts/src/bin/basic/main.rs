//! The functional and hostile tests of a bare-metal host with one CPU.
//!
//! Tenure starts it in Linux' place. On a machine without Tenure it runs only what needs no hypervisor.
#![no_std]
#![no_main]
#![allow(clippy::result_large_err)] // A failure holds its text: there is no heap.

mod attacks;
mod bare;
mod consent;
mod death;
mod discovery;
mod drain;
mod exits;
mod last;
mod lives;
mod plain;
mod reset;
mod rubbish;
mod sharing;
mod shortage;
mod table;
mod timer;
mod vcpus;
mod vectors;
mod world;

use tenure_test_hosts::Host;
use tenure_test_rt::harness::{self, TestResult};
use tenure_test_rt::{entry, println};

entry!(main);

/// A named test.
pub(crate) type Test = (&'static str, fn(&mut Host) -> TestResult);

/// A table of the named functions.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        /// The tests of this module.
        pub(crate) const TESTS: &[$crate::Test] = &[$((stringify!($name), $name)),*];
    };
}

fn main(dtb: u64) -> ! {
    println!("host-basic: device tree at {dtb:#x}");
    let mut host = match Host::new(dtb) {
        Ok(host) => host,
        Err(why) => harness::abandon(why),
    };
    println!(
        "note: RAM {:x?}, free {:x?}, {} CPUs",
        host.machine.ram,
        host.machine.free,
        host.machine.cpus.len()
    );
    run("bare", bare::TESTS, &mut host);
    if host.under_tenure {
        run("discovery", discovery::TESTS, &mut host);
        harness::run("lives", "blocks_can_be_split", || host.split_blocks());
        run("rubbish", rubbish::TESTS, &mut host);
        run("lives", lives::TESTS, &mut host);
        run("exits", exits::TESTS, &mut host);
        run("vectors", vectors::TESTS, &mut host);
        run("timer", timer::TESTS, &mut host);
        run("sharing", sharing::TESTS, &mut host);
        run("consent", consent::TESTS, &mut host);
        run("drain", drain::TESTS, &mut host);
        run("death", death::TESTS, &mut host);
        run("table", table::TESTS, &mut host);
        run("attacks", attacks::TESTS, &mut host);
        run("world", world::TESTS, &mut host);
        run("vcpus", vcpus::TESTS, &mut host);
        run("plain", plain::TESTS, &mut host);
        run("shortage", shortage::TESTS, &mut host);
        run("reset", reset::TESTS, &mut host);
        run("last", last::TESTS, &mut host);
    } else {
        println!("note: no Tenure here");
    }
    harness::finish()
}

fn run(module: &str, tests: &[Test], host: &mut Host) {
    for (name, test) in tests {
        harness::run(module, name, || test(host));
    }
}
