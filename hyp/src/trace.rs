//! The event trace: the last [`RECORDS`] calls and refusals, for TRACE_READ.
//!
//! A writer takes its place with one atomic addition and never waits. It clears the time of its record first and sets it
//! last, so that a reader skips what is being written.

use core::sync::atomic::{AtomicU64, Ordering};

use tenure_abi::trace::Record;
use tenure_abi::{Reply, call};
use tenure_arch::sysreg;

/// Records that are kept.
pub const RECORDS: u64 = 256;

struct Slot([AtomicU64; 4]);

static SLOTS: [Slot; RECORDS as usize] = [const { Slot([const { AtomicU64::new(0) }; 4]) }; RECORDS as usize];
/// Records ever written.
static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// Appends a record.
pub fn note(event: u64, a: u64, b: u64) {
    let place = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let Some(Slot(words)) = SLOTS.get((place % RECORDS) as usize) else { return };
    let [time, rest @ ..] = words;
    time.store(0, Ordering::Release);
    for (word, value) in rest.iter().zip([event, a, b]) {
        word.store(value, Ordering::Relaxed);
    }
    time.store(sysreg::cntvct_el0().max(1), Ordering::Release);
}

/// Notes a call of the host that changes something, with its answer.
pub fn call(id: u64, [a, b]: [u64; 2], reply: &Reply) {
    // What only looks is left out: it would push out what matters.
    let looks = matches!(
        id,
        call::VERSION
            | call::FEATURES
            | call::INFO
            | call::COUNT
            | call::LOG_READ
            | call::TRACE_READ
            | call::REG_GET
            | call::REG_SET
            | call::QUERY
            | call::QUERY_GUEST
            | call::POOL_INFO
    );
    if !looks {
        let status = reply.status as i64 as u64;
        note(status << 32 | id & 0xffff_ffff, a, b);
    }
}

/// The records from number `from` on (what has been overwritten is skipped), at most as many as `out` holds. Returns how
/// many were copied and the number to go on from.
pub fn read(from: u64, out: &mut [Record]) -> (usize, u64) {
    let end = WRITTEN.load(Ordering::Acquire);
    let mut next = from.clamp(end.saturating_sub(RECORDS), end);
    let mut copied = 0;
    while next < end && copied < out.len() {
        let found = SLOTS.get((next % RECORDS) as usize).and_then(|slot| {
            let [time, event, a, b] = &slot.0;
            let before = time.load(Ordering::Acquire);
            let [event, a, b] = [event, a, b].map(|word| word.load(Ordering::Acquire));
            let whole = before != 0 && time.load(Ordering::Acquire) == before;
            whole.then_some(Record { time: before, event, a, b })
        });
        if let (Some(record), Some(place)) = (found, out.get_mut(copied)) {
            *place = record;
            copied += 1;
        }
        next += 1;
    }
    (copied, next)
}
