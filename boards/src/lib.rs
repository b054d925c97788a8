//! What differs between boards: very small drivers, chosen by what the device tree says is there.
//!
//! - [`console`]: the UART that a crash and the first messages are written to;
//! - [`power`]: off and reset where no firmware does it.
//!
//! How QEMU runs a board, and how the image is packed for it, is data in `boards/<name>/`.
#![no_std]

pub mod console;
pub mod power;
