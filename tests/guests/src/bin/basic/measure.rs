//! Loops between two readings of the counter.

use tenure_abi::{PAGE_SIZE, guest, smccc};
use tenure_test_protocol::work;
use tenure_test_rt::call::{psci, quick};
use tenure_test_rt::{cpu, probe};

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
        _ => UNKNOWN,
    }
}

#[inline(always)]
fn timed(n: u64, mut step: impl FnMut(u64) -> u64) -> Results {
    let mut answers = 0;
    let start = cpu::counter();
    for index in 0..n {
        answers |= step(index);
        core::hint::black_box(answers);
    }
    let ticks = cpu::counter().wrapping_sub(start);
    [n, ticks, answers, 0, 0]
}
