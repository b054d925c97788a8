//! Races: up to four CPUs of the host at work on the same pages, VMs and vCPUs.
//!
//! CPU 0 runs the tests; the others wait for a job, do it and say how it went. Each CPU has frames of its own, so that what they
//! meet in is what a test makes them share.
#![no_std]
#![no_main]
#![allow(clippy::result_large_err)] // A failure holds its text: there is no heap.

mod crew;
mod power;
mod races;

use tenure_test_hosts::Host;
use tenure_test_rt::harness::{self, TestResult};
use tenure_test_rt::{entry, println};

entry!(main);

/// A named test of the first CPU.
pub(crate) type Test = (&'static str, fn(&mut Host) -> TestResult);

fn main(dtb: u64) -> ! {
    println!("host-smp: device tree at {dtb:#x}");
    let mut host = match Host::new(dtb) {
        Ok(host) => host,
        Err(why) => harness::abandon(why),
    };
    println!("note: {} CPUs", host.machine.cpus.len());
    if !host.under_tenure {
        harness::abandon("no Tenure here");
    }
    harness::run("races", "blocks_can_be_split", || host.split_blocks());
    host.frames = host.frames.part(0, crew::PARTS);
    for (name, test) in power::TESTS {
        harness::run("power", name, || test(&mut host));
    }
    crew::DEVICE_TREE.store(dtb, core::sync::atomic::Ordering::Release);
    harness::run("power", "crew_starts", || crew::start(&host));
    for (name, test) in races::TESTS {
        harness::run("races", name, || test(&mut host));
    }
    harness::finish()
}
