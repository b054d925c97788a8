//! Every interleaving of a few CPUs on two pages, on the real code and the adversarial machine.
//!
//! - [`tape`]: the real manager, run one CPU at a time, told what its accesses find.
//! - [`space`]: memories and machines as numbered values, and what each step makes of them.
//! - [`explorer`]: the tree of histories of each call; [`conflicts`]: which accesses conflict.
//! - [`search`]: all orders of conflicting accesses, each state once; [`judge`]: whether an end may be.
//! - [`case`]: what is explored; [`calls`]: the world and the calls; [`reference`]: the model beside them;
//!   [`fault`]: mistakes put in from outside.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

pub mod books;
pub mod calls;
pub mod case;
pub mod conflicts;
pub mod explorer;
pub mod fault;
pub mod judge;
pub mod reference;
pub mod search;
pub mod space;
pub mod tape;
