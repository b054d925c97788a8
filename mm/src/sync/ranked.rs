//! Locks with a rank, which is part of their type: a CPU takes them upwards only, one of each rank at a time.
//!
//! Every test build asserts that (the fake machine, loom, the explored interleavings: wherever there is a `std` to
//! remember what a thread holds); elsewhere the rank costs nothing. A page word may be frozen at any rank: that never
//! waits.

use super::raw;
pub use super::raw::Value;

/// Ranks, in the order in which a CPU takes locks (`docs/memory-model.md`, "Lock order").
pub mod rank {
    /// Who may make and dismantle the vCPUs of a VM: the hypervisor's, around calls of the manager.
    pub const GATE: u8 = 0;
    /// Structure of a guest's stage 2, and the VM's pool.
    pub const VM: u8 = 1;
    /// Structure of the host's stage 2, by the gigabyte.
    pub const HOST: u8 = 2;
    /// The host's pool.
    pub const POOL: u8 = 3;
    /// Blocks of the host that may be merged: noted when frames come home, those of the pool included.
    pub const RECENT: u8 = 4;
    /// Pins of the hypervisor that are still to end.
    pub const OWED: u8 = 5;
}

/// A fair lock.
#[derive(Debug)]
pub struct Lock<T, const RANK: u8>(raw::Lock<T>);

impl<T, const RANK: u8> Lock<T, RANK> {
    /// A free lock.
    #[cfg(not(loom))]
    pub const fn new(value: T) -> Self {
        Self(raw::Lock::new(value))
    }

    /// A free lock.
    #[cfg(loom)]
    pub fn new(value: T) -> Self {
        Self(raw::Lock::new(value))
    }
}

#[cfg(not(any(test, feature = "fake")))]
mod taking {
    pub use super::raw::Guard;
    use super::{Lock, Value, raw};

    /// Takes the lock.
    pub fn lock<T: Value, const RANK: u8>(lock: &Lock<T, RANK>) -> Guard<'_, T> {
        raw::lock(&lock.0)
    }
}

#[cfg(any(test, feature = "fake"))]
mod taking {
    use core::cell::RefCell;
    use core::ops::{Deref, DerefMut};
    use std::vec::Vec;

    #[cfg(loom)]
    use loom::thread_local;
    #[cfg(not(loom))]
    use std::thread_local;

    use super::{Lock, Value, raw};

    thread_local! {
        /// Ranks of the locks that this thread holds.
        static HELD: RefCell<Vec<u8>> = RefCell::default();
    }

    /// One of the ranks that the thread holds.
    struct Held(u8);

    impl Held {
        fn take(rank: u8) -> Self {
            HELD.with(|held| {
                let mut held = held.borrow_mut();
                let above = held.iter().all(|&other| other < rank);
                assert!(above, "order of locks: one of rank {rank} is taken under {held:?}");
                held.push(rank);
            });
            Self(rank)
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            HELD.with(|held| held.borrow_mut().retain(|&rank| rank != self.0));
        }
    }

    /// Proof that a lock is held.
    pub struct Guard<'a, T: Value> {
        guard: raw::Guard<'a, T>,
        _held: Held,
    }

    impl<T: Value> Deref for Guard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            &self.guard
        }
    }

    impl<T: Value> DerefMut for Guard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            &mut self.guard
        }
    }

    /// Takes the lock, which must stand above all that this thread holds.
    pub fn lock<T: Value, const RANK: u8>(lock: &Lock<T, RANK>) -> Guard<'_, T> {
        let held = Held::take(RANK);
        Guard { guard: raw::lock(&lock.0), _held: held }
    }
}

pub use taking::{Guard, lock};

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const fn vm() -> Lock<(), { rank::VM }> {
        Lock::new(())
    }

    const fn host() -> Lock<(), { rank::HOST }> {
        Lock::new(())
    }

    #[test]
    fn locks_are_taken_upwards_and_given_back_in_any_order() {
        let (vm, host, pool) = (vm(), host(), Lock::<(), { rank::POOL }>::new(()));
        for _ in 0..2 {
            let first = lock(&vm);
            let second = lock(&host);
            drop(first);
            drop(lock(&pool));
            drop(second);
        }
    }

    #[test]
    #[should_panic(expected = "order of locks: one of rank 1 is taken under [2]")]
    fn a_lock_below_one_that_is_held_is_refused() {
        let (vm, host) = (vm(), host());
        let _host = lock(&host);
        drop(lock(&vm));
    }

    #[test]
    #[should_panic(expected = "order of locks: one of rank 1 is taken under [1]")]
    fn two_locks_of_one_rank_are_refused() {
        let (one, other) = (vm(), vm());
        let _one = lock(&one);
        drop(lock(&other));
    }
}
