//! Loops between two readings of the counter.

use tenure_abi::flags::unshare;
use tenure_abi::{PAGE_SIZE, Status, guest, smccc};
use tenure_test_protocol::work;
use tenure_test_rt::call::{psci, quick};
use tenure_test_rt::{cpu, probe, window};

use crate::{Results, UNKNOWN};

/// Repeats `what` for `n` calls or pages from `ipa` on.
pub fn run(what: u64, ipa: u64, n: u64) -> Results {
    match what {
        work::EMPTY => timed(n, |_| 0),
        work::PSCI_VERSION => timed(n, |_| quick(psci::VERSION, 0, 0, 0)),
        work::SHARE => timed(n, |index| quick(guest::SHARE, ipa + index * PAGE_SIZE, 1, 0)),
        work::UNSHARE => timed(n, |index| quick(guest::UNSHARE, ipa + index * PAGE_SIZE, 1, 0)),
        work::PAIR => timed(n, |_| quick(guest::SHARE, ipa, 1, 0) | quick(guest::UNSHARE, ipa, 1, 0)),
        work::SHARE_RANGE => timed(1, |_| quick(guest::SHARE, ipa, n, 0)),
        work::UNSHARE_RANGE => timed(1, |_| quick(guest::UNSHARE, ipa, n, 0)),
        work::STOCK_SHARE => timed(n, |index| quick(smccc::KVM_MEM_SHARE, ipa + index * PAGE_SIZE, 0, 0)),
        work::HOST_CALL => timed(n, |_| quick(guest::HOST_CALL, 0, 0, 0)),
        work::TOUCH => timed(n, |index| u64::from(probe::read(ipa + index * PAGE_SIZE).faulted())),
        work::SECRETS => secrets(ipa, n, 0),
        work::SECRETS_DRAIN => secrets(ipa, n, unshare::DRAIN | unshare::WAIT),
        _ => UNKNOWN,
    }
}

/// Shares what is public and takes it back before it is secret. Results: n, n done, the answer that ended it, refusals.
fn secrets(ipa: u64, n: u64, flags: u64) -> Results {
    let mut refusals = 0;
    for done in 0..n {
        probe::write(ipa, work::PUBLIC);
        let answer = quick(guest::SHARE, ipa, 1, 0);
        if answer != 0 {
            return [n, done, answer, refusals, 0];
        }
        cpu::spin(200);
        loop {
            match Status::from_raw(quick(guest::UNSHARE, ipa, 1, flags)) {
                Some(Status::Success) => break,
                Some(Status::Busy | Status::Retry | Status::Pending) => refusals += 1,
                other => {
                    return [n, done, other.map_or(u64::MAX, |status| status as i64 as u64), refusals, 0];
                }
            }
        }
        probe::write(ipa, work::SECRET);
        cpu::spin(200);
    }
    [n, n, 0, refusals, 0]
}

#[inline(always)]
fn timed(n: u64, mut step: impl FnMut(u64) -> u64) -> Results {
    let mut answers = 0;
    window::open();
    let start = cpu::counter();
    for index in 0..n {
        answers |= step(index);
        core::hint::black_box(answers);
    }
    let ticks = cpu::counter().wrapping_sub(start);
    window::close();
    [n, ticks, answers, 0, 0]
}
