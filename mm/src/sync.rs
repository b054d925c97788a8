//! Atomics and locks: the real ones, loom's, or ones that tell an observer before each access (feature `explore`).

mod ranked;
#[cfg(all(feature = "explore", not(loom)))]
pub mod watched;

pub use ranked::{Guard, Lock, lock, rank};
#[cfg(all(feature = "explore", not(loom)))]
use watched as raw;
#[cfg(all(feature = "explore", not(loom)))]
pub use watched::{AtomicBool, AtomicU32, AtomicU64, Ordering};

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

#[cfg(not(any(loom, feature = "explore")))]
pub use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

#[cfg(loom)]
pub use explored::WordCell;

/// The atomic that holds a page word.
#[cfg(not(loom))]
pub type WordCell = AtomicU64;

#[cfg(loom)]
mod explored {
    use super::{AtomicU64, Ordering};

    /// loom's atomic with loads and stores that are read-modify-writes. loom (0.7) remembers only the last access to an
    /// object, so that of two loads and a store after them it would try one order only.
    #[derive(Debug)]
    pub struct WordCell(AtomicU64);

    impl WordCell {
        /// A cell with a first value.
        pub fn new(value: u64) -> Self {
            Self(AtomicU64::new(value))
        }

        /// As in `core`.
        pub fn load(&self, order: Ordering) -> u64 {
            self.0.fetch_or(0, order)
        }

        /// As in `core`.
        pub fn store(&self, value: u64, order: Ordering) {
            self.0.swap(value, order);
        }

        /// As in `core`.
        pub fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
            self.0.fetch_or(value, order)
        }

        /// As in `core`.
        ///
        /// # Errors
        /// The value that was found instead.
        pub fn compare_exchange(
            &self,
            from: u64,
            to: u64,
            done: Ordering,
            failed: Ordering,
        ) -> Result<u64, u64> {
            self.0.compare_exchange(from, to, done, failed)
        }
    }
}

#[cfg(not(any(loom, feature = "explore")))]
mod raw {
    /// A fair spin lock: whoever asks first is next, so a wait is bounded by the number of CPUs times the longest
    /// section, and no section under it waits for anything.
    pub type Lock<T> = spin::mutex::TicketMutex<T>;
    /// Proof that the lock is held.
    pub type Guard<'a, T> = spin::mutex::TicketMutexGuard<'a, T>;

    /// What a lock may guard: anything.
    pub trait Value {}
    impl<T> Value for T {}

    /// Takes the lock.
    pub fn lock<T>(lock: &Lock<T>) -> Guard<'_, T> {
        lock.lock()
    }
}

#[cfg(loom)]
mod raw {
    /// loom's mutex stands in for the spin lock.
    pub type Lock<T> = loom::sync::Mutex<T>;
    /// Proof that the lock is held.
    pub type Guard<'a, T> = loom::sync::MutexGuard<'a, T>;

    /// What a lock may guard: anything.
    pub trait Value {}
    impl<T> Value for T {}

    /// Takes the lock.
    pub fn lock<T>(lock: &Lock<T>) -> Guard<'_, T> {
        match lock.lock() {
            Ok(guard) => guard,
            Err(poisoned) => poisoned.into_inner(),
        }
    }
}
