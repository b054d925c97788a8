//! The guest-memory manager: who holds each page frame, how, and whether it may change hands.
#![cfg_attr(not(any(test, feature = "fake")), no_std)]
#![forbid(unsafe_code)]

pub mod addr;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod machine;

pub use addr::{Gfn, Ipa, Pa, Pfn};
pub use machine::{Machine, Vmid};
