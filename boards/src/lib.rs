//! What differs between boards: data and very small drivers.
//!
//! - [`console`]: the UART that a crash and the first messages are written to.
#![no_std]

pub mod console;
