//! The device tree: checked, read once into types of our own, and edited for the host.
//!
//! A tree comes from firmware that Tenure trusts to mean well, not to be well-formed. Four steps, each pure and tested
//! on the build machine:
//!
//! 1. [`mod@check`]: a small validator refuses whatever is not well-formed;
//! 2. [`read`]: one walk over the checked [`tokens`], into [`Platform`];
//! 3. [`layout`]: who gets which part of memory, or a [`Refusal`] that names node and property;
//! 4. [`edit`]: a pass over the tokens writes the tree that the host gets.
//!
//! Source: Devicetree Specification 0.4 (`DTSpec` below).
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod check;
pub mod edit;
pub mod layout;
pub mod place;
pub mod platform;
pub mod read;
pub mod refusal;
#[cfg(test)]
mod sample;
pub mod tokens;
pub mod write;

pub use check::{Malformed, check};
pub use layout::Layout;
pub use platform::{Claim, Conduit, Cpu, Device, Gic, Platform, Region, Reserved};
pub use refusal::{Refusal, Why};
