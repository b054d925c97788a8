//! Atomics and locks: the real ones, or loom's when the interleavings are explored.

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

#[cfg(not(loom))]
mod lock {
    /// A fair spin lock: whoever asks first is next, so a wait is bounded by the number of CPUs times the longest
    /// section, and no section under it waits for anything.
    pub type Lock<T> = spin::mutex::TicketMutex<T>;
    /// Proof that the lock is held.
    pub type Guard<'a, T> = spin::mutex::TicketMutexGuard<'a, T>;

    /// Takes the lock.
    pub fn lock<T>(lock: &Lock<T>) -> Guard<'_, T> {
        lock.lock()
    }
}

#[cfg(loom)]
mod lock {
    /// loom's mutex stands in for the spin lock.
    pub type Lock<T> = loom::sync::Mutex<T>;
    /// Proof that the lock is held.
    pub type Guard<'a, T> = loom::sync::MutexGuard<'a, T>;

    /// Takes the lock.
    pub fn lock<T>(lock: &Lock<T>) -> Guard<'_, T> {
        match lock.lock() {
            Ok(guard) => guard,
            Err(poisoned) => poisoned.into_inner(),
        }
    }
}

pub use lock::{Guard, Lock, lock};
