//! Atomics and locks that tell an observer before each access, for tests that decide which CPU goes next.
//!
//! The observer stands in for memory: it may do the access, answer from a memory of its own, or unwind and never come
//! back. Without one ([`observe`] is per thread) these are the real atomics and the real lock. All orders are taken
//! for sequentially consistent; what weaker ones allow is loom's to explore.

use core::any::Any;
use core::cell::RefCell;
use core::ops::{Deref, DerefMut};
use std::boxed::Box;
use std::rc::Rc;

use spin::mutex::{TicketMutex, TicketMutexGuard};

pub use core::sync::atomic::Ordering;

/// What is done to one atomic.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "the operations of core's atomics")]
pub enum Access {
    Load,
    Store(u64),
    Add(u64),
    Sub(u64),
    And(u64),
    Or(u64),
    Xor(u64),
    CompareExchange { from: u64, to: u64 },
}

/// Which atomic or lock: its address and its width in bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Place {
    /// Where it is. (Observed objects do not move.)
    pub address: usize,
    /// Bits of its values; 0 for a lock.
    pub bits: u32,
}

/// What a lock guards, as a value that can be copied and compared.
pub trait Guarded: Any {
    /// A copy.
    fn copy(&self) -> Box<dyn Guarded>;
    /// The same value.
    fn same(&self, other: &dyn Guarded) -> bool;
    /// For a downcast.
    fn as_any(&self) -> &dyn Any;
}

impl<T: Clone + PartialEq + 'static> Guarded for T {
    fn copy(&self) -> Box<dyn Guarded> {
        Box::new(self.clone())
    }
    fn same(&self, other: &dyn Guarded) -> bool {
        other.as_any().downcast_ref::<T>() == Some(self)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Who decides what an access finds.
pub trait Observer {
    /// An access to an atomic whose real value is `real`. The value before it.
    fn atomic(&self, place: Place, access: Access, real: &mut dyn FnMut(Access) -> u64) -> u64;
    /// Takes a lock and gives what it guards; `None`: take the real one.
    fn lock(&self, place: Place, real: &mut dyn FnMut() -> Box<dyn Guarded>) -> Option<Box<dyn Guarded>>;
    /// Gives a lock back that [`Observer::lock`] took, with what it guards by now.
    fn unlock(&self, place: Place, value: &dyn Guarded);
    /// The real lock is about to be tried again, after it was found taken.
    fn wait(&self, place: Place);
}

std::thread_local! {
    static OBSERVER: RefCell<Option<Rc<dyn Observer>>> = const { RefCell::new(None) };
}

/// Runs `body` with all accesses of this thread observed.
pub fn observe<R>(observer: Rc<dyn Observer>, body: impl FnOnce() -> R) -> R {
    struct Former(Option<Rc<dyn Observer>>);
    impl Drop for Former {
        fn drop(&mut self) {
            OBSERVER.set(self.0.take());
        }
    }
    let _former = Former(OBSERVER.replace(Some(observer)));
    body()
}

fn observer() -> Option<Rc<dyn Observer>> {
    OBSERVER.with_borrow(Clone::clone)
}

macro_rules! atomics {
    ($($(#[doc = $doc:literal])+ $name:ident, $value:ty, $bits:literal, $from:expr, $to:expr;)+) => { $(
        $(#[doc = $doc])+
        #[derive(Debug)]
        pub struct $name(core::sync::atomic::$name);

        #[allow(missing_docs, reason = "as in core")]
        impl $name {
            pub const fn new(value: $value) -> Self {
                Self(core::sync::atomic::$name::new(value))
            }

            fn access(&self, access: Access) -> $value {
                let mut real = |access| ($from)(self.real(access));
                let value = match observer() {
                    None => real(access),
                    Some(observer) => {
                        let place = Place { address: core::ptr::from_ref(self).addr(), bits: $bits };
                        observer.atomic(place, access, &mut real)
                    }
                };
                ($to)(value)
            }

            pub fn load(&self, _: Ordering) -> $value {
                self.access(Access::Load)
            }

            pub fn store(&self, value: $value, _: Ordering) {
                self.access(Access::Store(($from)(value)));
            }

            /// # Errors
            /// As in core.
            pub fn compare_exchange(
                &self,
                from: $value,
                to: $value,
                _: Ordering,
                _: Ordering,
            ) -> Result<$value, $value> {
                let access = Access::CompareExchange { from: ($from)(from), to: ($from)(to) };
                let found = self.access(access);
                if found == from { Ok(found) } else { Err(found) }
            }
        }
    )+ };
}

macro_rules! arithmetic {
    ($($name:ident, $value:ty;)+) => { $(
        #[allow(missing_docs, reason = "as in core")]
        impl $name {
            fn real(&self, access: Access) -> $value {
                use Ordering::SeqCst;
                match access {
                    Access::Load => self.0.load(SeqCst),
                    Access::Store(value) => self.0.swap(value as $value, SeqCst),
                    Access::Add(value) => self.0.fetch_add(value as $value, SeqCst),
                    Access::Sub(value) => self.0.fetch_sub(value as $value, SeqCst),
                    Access::And(value) => self.0.fetch_and(value as $value, SeqCst),
                    Access::Or(value) => self.0.fetch_or(value as $value, SeqCst),
                    Access::Xor(value) => self.0.fetch_xor(value as $value, SeqCst),
                    Access::CompareExchange { from, to } => {
                        match self.0.compare_exchange(from as $value, to as $value, SeqCst, SeqCst) {
                            Ok(found) | Err(found) => found,
                        }
                    }
                }
            }

            pub fn swap(&self, value: $value, _: Ordering) -> $value {
                self.access(Access::Store(u64::from(value)))
            }
            pub fn fetch_add(&self, value: $value, _: Ordering) -> $value {
                self.access(Access::Add(u64::from(value)))
            }
            pub fn fetch_sub(&self, value: $value, _: Ordering) -> $value {
                self.access(Access::Sub(u64::from(value)))
            }
            pub fn fetch_and(&self, value: $value, _: Ordering) -> $value {
                self.access(Access::And(u64::from(value)))
            }
            pub fn fetch_or(&self, value: $value, _: Ordering) -> $value {
                self.access(Access::Or(u64::from(value)))
            }
            pub fn fetch_xor(&self, value: $value, _: Ordering) -> $value {
                self.access(Access::Xor(u64::from(value)))
            }
        }
    )+ };
}

atomics! {
    /// A word of 64 bits.
    AtomicU64, u64, 64, u64::from, |value: u64| value;
    /// A word of 32 bits.
    AtomicU32, u32, 32, u64::from, |value: u64| value as u32;
    /// A flag.
    AtomicBool, bool, 1, u64::from, |value: u64| value != 0;
}

arithmetic! {
    AtomicU64, u64;
    AtomicU32, u32;
}

impl AtomicBool {
    fn real(&self, access: Access) -> bool {
        use Ordering::SeqCst;
        match access {
            Access::Load | Access::Add(_) | Access::Sub(_) => self.0.load(SeqCst),
            Access::Store(value) => self.0.swap(value != 0, SeqCst),
            Access::And(value) => self.0.fetch_and(value != 0, SeqCst),
            Access::Or(value) => self.0.fetch_or(value != 0, SeqCst),
            Access::Xor(value) => self.0.fetch_xor(value != 0, SeqCst),
            Access::CompareExchange { from, to } => {
                match self.0.compare_exchange(from != 0, to != 0, SeqCst, SeqCst) {
                    Ok(found) | Err(found) => found,
                }
            }
        }
    }
}

/// What a lock may guard: what an observer can copy and compare.
pub trait Value: Clone + PartialEq + 'static {}
impl<T: Clone + PartialEq + 'static> Value for T {}

/// The spin lock, or the observer's idea of it.
#[derive(Debug)]
pub struct Lock<T>(TicketMutex<T>);

impl<T> Lock<T> {
    /// A free lock.
    pub const fn new(value: T) -> Self {
        Self(TicketMutex::new(value))
    }
}

/// Proof that a lock is held.
pub enum Guard<'a, T: Value> {
    /// The real lock.
    Real(TicketMutexGuard<'a, T>),
    /// The observer's, with a copy of what it guards.
    Observed {
        /// Whose.
        observer: Rc<dyn Observer>,
        /// Which.
        place: Place,
        /// What it guards.
        value: T,
    },
}

/// Takes the lock.
pub fn lock<T: Value>(lock: &Lock<T>) -> Guard<'_, T> {
    let Some(observer) = observer() else { return Guard::Real(lock.0.lock()) };
    let place = Place { address: core::ptr::from_ref(lock).addr(), bits: 0 };
    let taken = observer.lock(place, &mut || lock.0.lock().copy());
    match taken.as_deref().and_then(|value| value.as_any().downcast_ref::<T>()) {
        Some(value) => Guard::Observed { observer, place, value: value.clone() },
        None => loop {
            match lock.0.try_lock() {
                Some(guard) => return Guard::Real(guard),
                None => observer.wait(place),
            }
        },
    }
}

impl<T: Value> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        match self {
            Self::Real(guard) => guard,
            Self::Observed { value, .. } => value,
        }
    }
}

impl<T: Value> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        match self {
            Self::Real(guard) => guard,
            Self::Observed { value, .. } => value,
        }
    }
}

impl<T: Value> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        if let Self::Observed { observer, place, value } = self {
            observer.unlock(*place, value);
        }
    }
}
