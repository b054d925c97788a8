//! What differs between boards: very small drivers, chosen by what the device tree says is there.
//!
//! - [`bundle`]: one file of hypervisor, kernel and RAM disk, for firmware that loads one file;
//! - [`console`]: the UART that a crash and the first messages are written to;
//! - [`power`]: off and reset where no firmware does it;
//! - [`smc`]: the vendor's calls to the firmware that the host may make.
//!
//! How QEMU runs a board, and how the image is packed for it, is data in `boards/<name>/`.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod bundle;
pub mod console;
pub mod power;
pub mod smc;
