//! The guest-memory manager: who holds each page frame, how, and whether it may change hands.
//!
//! - [`word`]: the page word, one atomic 64-bit value a frame; freeze and publish. [`block`]: 512 of them at once.
//! - [`state`]: the one table of transitions. **Whether a page may be unshared is decided there.**
//! - [`transition`]: the operations, *check, then commit*.
//! - [`stage2`]: translation tables of guests and of the host; [`tlb`] invalidates them, [`pool`] feeds them.
//! - [`vm`]: handles and lifetime. [`manager`]: the whole.
//! - [`machine`]: what the hardware has to offer; `fake` an adversary in its place, `model` the reference, `audit` for tests.
//!   (The model needs a heap and nothing else: the random tester carries it into the machine.)
//!
//! Portable, without unsafe code, globals or instructions; the tests run the same code on a machine that is as nasty
//! as the architecture allows.
#![cfg_attr(not(any(test, feature = "fake")), no_std)]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "model"))]
extern crate alloc;

pub mod addr;
#[cfg(any(test, feature = "fake"))]
pub mod audit;
pub mod block;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod frames;
pub mod machine;
pub mod manager;
#[cfg(any(test, feature = "model"))]
pub mod model;
pub mod pool;
pub mod stage2;
pub mod state;
pub mod sync;
pub mod tlb;
pub mod transition;
pub mod vm;
pub mod word;

pub use addr::{Gfn, Ipa, Pa, Pfn};
pub use frames::{Frames, Region};
pub use machine::{Machine, Vmid};
pub use manager::{Config, Mm, Totals};
pub use state::Refusal;
pub use transition::{Access, GuestFault, HostFault, PinKind, Unpinned, Unshare};
pub use vm::{MAX_VMS, Slot, Vm, VmHandle, VmRef};
pub use word::{PageWord, Word};
