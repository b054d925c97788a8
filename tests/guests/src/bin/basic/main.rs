//! The guest that does what its host orders: see `tenure-test-protocol`.
#![no_std]
#![no_main]

use tenure_abi::{guest, smccc};
use tenure_test_protocol::{command, op, outcome, sysreg};
use tenure_test_rt::call::{self, Regs};
use tenure_test_rt::probe::{self, Outcome, Road};
use tenure_test_rt::{cpu, entry, println, vectors};

mod measure;

entry!(main);

/// What a command gives back: r0 to r4.
pub(crate) type Results = [u64; 5];

const NOTHING: Results = [0; 5];
pub(crate) const UNKNOWN: Results = [outcome::UNKNOWN, 0, 0, 0, 0];

fn main(ram_bytes: u64) -> ! {
    println!("guest: {} KiB of RAM", ram_bytes >> 10);
    serve()
}

/// What every vCPU does.
fn serve() -> ! {
    let mut last = Regs([0; 18]);
    let mut results = NOTHING;
    loop {
        let [r0, r1, r2, r3, r4] = results;
        let order = call::hvc(guest::HOST_CALL, &[op::NEXT, r0, r1, r2, r3, r4]).x(0);
        results = match command::arguments(order) {
            Some(count) => {
                let mut a = [0; 6];
                for (index, slot) in (0u64..).zip(a.iter_mut().take(count)) {
                    *slot = call::hvc(guest::HOST_CALL, &[op::ARG, index]).x(0);
                }
                obey(order, a, &mut last)
            }
            None => UNKNOWN,
        };
    }
}

fn obey(order: u64, a: [u64; 6], last: &mut Regs) -> Results {
    let mut reply = |regs: Regs| {
        *last = regs;
        [regs.x(0), regs.x(1), regs.x(2), regs.x(3), regs.x(4)]
    };
    match order {
        command::NOP => NOTHING,
        command::SHARE => reply(call::hvc(guest::SHARE, &a[..2])),
        command::UNSHARE => reply(call::hvc(guest::UNSHARE, &a[..3])),
        command::RELINQUISH => reply(call::hvc(guest::RELINQUISH, &a[..2])),
        command::QUERY => reply(call::hvc(guest::QUERY, &a[..1])),
        command::STOCK_SHARE => reply(call::hvc(smccc::KVM_MEM_SHARE, &a[..1])),
        command::STOCK_UNSHARE => reply(call::hvc(smccc::KVM_MEM_UNSHARE, &a[..1])),
        command::HVC => reply(call::hvc(a[0], &a[1..])),
        command::SMC => reply(call::smc(a[0], &a[1..])),
        command::MORE => [last.x(5), last.x(6), last.x(7), last.x(8), last.x(9)],
        command::READ => told(probe::read(a[0]), 0),
        command::WRITE => told(probe::write(a[0], a[1]), 0),
        command::FILL => fill(a[0], a[1], a[2]),
        command::CHECK => check(a[0], a[1], a[2]),
        command::TOUCH => touch(a[0], a[1]),
        command::LOAD => access(Road::Read, a[0], a[1], 0),
        command::STORE => access(Road::Write, a[0], a[1], a[2]),
        command::EXECUTE => told(probe::touch(Road::Execute, a[0], 0), 0),
        command::PRINT => {
            println!("guest: hello");
            NOTHING
        }
        command::SPIN => {
            cpu::spin(a[0] / 2);
            NOTHING
        }
        command::WFI => {
            cpu::wait_for_interrupt();
            NOTHING
        }
        command::SERRORS => [vectors::take_serrors(), 0, 0, 0, 0],
        command::SYSREG => register(a[0]),
        command::FP_SWAP => [cpu::swap_fp(a[0]), 0, 0, 0, 0],
        command::LOOP => measure::run(a[0], a[1], a[2]),
        command::OFF => call::power_off(),
        command::START => start(a[0], a[1], a[2]),
        _ => UNKNOWN,
    }
}

/// Starts another vCPU, whose start block lies at the bottom of its stack.
fn start(mpidr: u64, area: u64, bytes: u64) -> Results {
    extern "C" fn second(_: u64) {
        serve()
    }
    let block = [area + bytes, second as *const () as u64, 0];
    for (address, word) in (area..).step_by(8).zip(block) {
        let what = probe::write(address, word);
        if what.faulted() {
            return told(what, 0);
        }
    }
    let answer = call::hvc(call::psci::CPU_ON, &[mpidr, tenure_test_rt::start::secondary_entry(), area]);
    [answer.x(0), 0, 0, 0, 0]
}

/// A probe's outcome as results; `done` pages went before it.
fn told(what: Outcome, done: u64) -> Results {
    match what {
        Outcome::Value(value) => [outcome::OK, value, 0, 0, done],
        Outcome::Fault { esr, far } => [outcome::FAULT, 0, esr, far, done],
    }
}

const PAGE: u64 = tenure_abi::PAGE_SIZE;

/// Addresses of the 64-bit words of one page.
fn words(page: u64) -> impl Iterator<Item = u64> {
    (0..PAGE / 8).map(move |word| page.wrapping_add(word * 8))
}

/// Addresses of `count` pages from `start`, with their index.
fn pages(start: u64, count: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..count).map(move |index| (index, start.wrapping_add(index.wrapping_mul(PAGE))))
}

fn fill(start: u64, count: u64, value: u64) -> Results {
    for (index, page) in pages(start, count) {
        for word in words(page) {
            let what = probe::write(word, value);
            if what.faulted() {
                return told(what, index);
            }
        }
    }
    [outcome::OK, value, 0, 0, count]
}

fn check(start: u64, count: u64, value: u64) -> Results {
    let mut different = 0;
    for (index, page) in pages(start, count) {
        for word in words(page) {
            match probe::read(word) {
                Outcome::Value(found) => different += u64::from(found != value),
                fault => return told(fault, index),
            }
        }
    }
    [outcome::OK, different, 0, 0, count]
}

fn touch(start: u64, count: u64) -> Results {
    for (index, page) in pages(start, count) {
        let what = probe::read(page);
        if what.faulted() {
            return told(what, index);
        }
    }
    [outcome::OK, 0, 0, 0, count]
}

fn access(road: fn(u64) -> Road, address: u64, width: u64, value: u64) -> Results {
    match width {
        1 | 2 | 4 | 8 => told(probe::touch(road(width), address, value), 0),
        _ => UNKNOWN,
    }
}

fn register(which: u64) -> Results {
    let road = match which {
        sysreg::MIDR => Road::Midr,
        sysreg::MPIDR => Road::Mpidr,
        sysreg::PFR0 => Road::Pfr0,
        sysreg::DFR0 => Road::Dfr0,
        sysreg::CNTVCT => Road::CounterVirtual,
        sysreg::PMCR => Road::Pmcr,
        sysreg::MDSCR => Road::Mdscr,
        sysreg::CNTPCT => Road::CounterPhysical,
        _ => return UNKNOWN,
    };
    told(probe::touch(road, 0, 0), 0)
}
