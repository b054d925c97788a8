//! How often a guest may revoke: each REVOKE is a broadcast invalidation that every CPU of the machine feels.
//!
//! A VM has credit for [`BURST`] of them, and gets one more every `1 / 2^RATE_SHIFT` s (generic cell rate algorithm: one
//! number, the time at which the credit is whole again).

use core::sync::atomic::{AtomicU64, Ordering};

/// Revocations a VM can make at once.
const BURST: u64 = 64;
/// Then one every 2^-12 s, about a quarter of a millisecond.
const RATE_SHIFT: u32 = 12;

/// A VM's credit.
#[derive(Debug)]
pub struct Limit(AtomicU64);

impl Limit {
    /// Full credit.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Full credit again, for a new VM.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Takes one revocation at time `now` of a clock of `frequency` Hz. False: not now.
    pub fn take(&self, now: u64, frequency: u64) -> bool {
        let interval = (frequency >> RATE_SHIFT).max(1);
        let ahead = interval.saturating_mul(BURST - 1);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |whole| {
                let from = whole.max(now);
                (from.saturating_sub(now) <= ahead).then(|| from.saturating_add(interval))
            })
            .is_ok()
    }
}
