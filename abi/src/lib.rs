//! The interface of Tenure: call numbers, arguments, results and the shared run page.
//!
//! Everything that crosses a privilege boundary is defined here and nowhere else; the C header of the Linux
//! driver is generated from the same tables ([`header`]). The crate holds definitions only: no policy, no unsafe,
//! no dependency, and it builds for the hypervisor, for guests and for the build machine.
//!
//! Calls follow the SMC Calling Convention (Arm DEN 0028) by `HVC #0`: the function id in `w0`, arguments from
//! `x1`, results from `x0`. Every Tenure call answers in one shape, see [`Reply`].
#![no_std]
#![forbid(unsafe_code)]

#[macro_use]
mod table;

pub mod call;
pub mod exit;
pub mod flags;
pub mod guest;
pub mod header;
pub mod info;
pub mod page;
pub mod reg;
pub mod reply;
pub mod run;
pub mod smccc;
pub mod trace;

pub use reply::{Mask, NO_INDEX, Reply, Status};
pub use run::RunPage;

/// Bytes of a page frame: the granule of every call that counts pages.
pub const PAGE_SIZE: u64 = 4096;

/// Pages that one all-or-nothing call converts at most; a longer range is done in steps of this size.
pub const MAX_ATOMIC_PAGES: u64 = 512;

/// Version of this interface: major in bits 31:16 (incompatible changes), minor in bits 15:0 (additions).
pub const ABI_VERSION: u64 = 0x0001_0000;
