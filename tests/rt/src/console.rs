//! Text out: one byte at a time to the PL011 of QEMU's `virt` machine, or to the device that a test guest's host emulates
//! at the same address.
#![allow(unsafe_code)] // One MMIO store.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

/// UARTDR of the PL011 on `virt`; the guest's console of `tenure-test-protocol`.
const DATA: u64 = 0x0900_0000;

/// Writes one byte.
pub fn put(byte: u8) {
    // SAFETY: the address is a device's transmit register, mapped as Device memory; a byte written there does nothing
    // to memory. The PL011 that QEMU models takes a byte at any time.
    unsafe { (DATA as *mut u8).write_volatile(byte) };
}

struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                put(b'\r');
            }
            put(byte);
        }
        Ok(())
    }
}

static BUSY: AtomicBool = AtomicBool::new(false);

/// What `print!` and `println!` expand to. One CPU writes at a time; one that crashed while it wrote is not waited for long.
pub fn print(arguments: fmt::Arguments<'_>) {
    let mut tries = 0u32;
    while BUSY.swap(true, Ordering::Acquire) && tries < 1_000_000 {
        tries += 1;
        crate::cpu::relax();
    }
    // The console never fails.
    let _ = Console.write_fmt(arguments);
    BUSY.store(false, Ordering::Release);
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    () => { $crate::console::print(format_args!("\n")) };
    ($($arg:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($arg)*))) };
}

/// Prints without an end of line.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::console::print(format_args!($($arg)*)) };
}
