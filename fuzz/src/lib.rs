//! Fuzz targets. Each is a function over bytes that panics where a promise is broken.
//!
//! - [`calls`]: any registers, taken apart as the hypervisor does, to the manager on the adversarial machine;
//! - [`actions`]: a list of calls and accesses, to the manager and to the reference model;
//! - [`tree`]: any bytes as a device tree.
//!
//! `cargo xtask fuzz` runs them under libFuzzer; an ordinary test replays `corpus` and some random bytes.

pub mod actions;
pub mod bytes;
pub mod calls;
pub mod tree;
#[allow(missing_docs, reason = "the world of the manager's own tests")]
#[path = "../../mm/tests/world/mod.rs"]
pub mod world;

/// A target and its name, that of its corpus too.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 3] = [("calls", calls::run), ("actions", actions::run), ("tree", tree::run)];
