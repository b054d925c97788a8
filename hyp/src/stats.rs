//! Figures for INFO that no other part keeps.

use core::sync::atomic::{AtomicU64, Ordering};

static KEPT_BYTES: AtomicU64 = AtomicU64::new(0);
static TLBIS: AtomicU64 = AtomicU64::new(0);
static SMCS_REFUSED: AtomicU64 = AtomicU64::new(0);

/// Notes how much RAM the host does not get. Once, at boot.
pub fn set_kept_bytes(bytes: u64) {
    KEPT_BYTES.store(bytes, Ordering::Relaxed);
}

/// Bytes of RAM that the host does not get.
pub fn kept_bytes() -> u64 {
    KEPT_BYTES.load(Ordering::Relaxed)
}

/// Counts one stage-2 invalidation.
#[inline]
pub fn count_tlbi() {
    TLBIS.fetch_add(1, Ordering::Relaxed);
}

/// Stage-2 invalidations since boot.
pub fn tlbis() -> u64 {
    TLBIS.load(Ordering::Relaxed)
}

/// Counts one call of the host to the firmware that was refused.
pub fn count_refused_smc() {
    SMCS_REFUSED.fetch_add(1, Ordering::Relaxed);
}

/// Calls of the host to the firmware that were refused since boot.
pub fn refused_smcs() -> u64 {
    SMCS_REFUSED.load(Ordering::Relaxed)
}
