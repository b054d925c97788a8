//! Consoles: output only, polled, on a UART that the firmware has set up.
//!
//! The host drives the same UART once it runs. Tenure then writes only to report its own failure, after which the host
//! is gone, or a line now and then, which at worst mixes with the host's. No driver here changes a setting.
//!
//! This file needs unsafe to name device registers by address; each driver's constructor has that contract.
#![allow(unsafe_code)]

use arm_pl011_uart::{PL011Registers, Uart, UniqueMmioPointer};
use core::ptr::NonNull;
use tenure_arch::mmio::Reg32;

/// Polls for room at most so often: a UART that is stuck must not stop the machine.
const PATIENCE: u32 = 1 << 20;

/// A UART that bytes can be written to.
pub enum Console {
    /// Arm PL011 (DDI 0183).
    Pl011(Uart<'static>),
    /// Any with a data register and one bit, somewhere, that says whether there is room.
    Simple {
        /// Where a byte is written.
        data: Reg32,
        /// Where the bit is read.
        status: Reg32,
        /// The bit.
        bit: u32,
        /// What the bit is while there is room.
        ready: bool,
    },
}

/// A simple UART: its `compatible` string, offsets of data and status register, the status bit, and its sense.
struct Layout(&'static str, usize, usize, u32, bool);

/// Full bit of the i.MX test register (UTS), and of the Cadence channel status; empty bit of the BCM2835 line status.
const SIMPLE: [Layout; 6] = [
    Layout("xlnx,xuartps", 0x30, 0x2c, 1 << 4, false),
    Layout("cdns,uart-r1p12", 0x30, 0x2c, 1 << 4, false),
    Layout("fsl,imx8mp-uart", 0x40, 0xb4, 1 << 4, false),
    Layout("fsl,imx6q-uart", 0x40, 0xb4, 1 << 4, false),
    Layout("fsl,imx21-uart", 0x40, 0xb4, 1 << 4, false),
    Layout("brcm,bcm2835-aux-uart", 0x00, 0x14, 1 << 5, true),
];

/// A board whose console is tried when there is no device tree to ask: QEMU's `virt`.
pub const FALLBACK_PL011: usize = 0x0900_0000;

impl Console {
    /// The console for a UART, by what it is compatible with; `None` for a UART that no driver here knows.
    ///
    /// # Safety
    /// If `is` is true of a name, the registers of such a UART must be at `base`, mapped as device memory (or the MMU be
    /// off) whenever the console is used, and nothing else in Tenure may use them.
    pub unsafe fn new(base: usize, is: impl Fn(&str) -> bool) -> Option<Self> {
        if is("arm,pl011") {
            // SAFETY: passed on from the caller.
            return unsafe { Self::pl011(base) };
        }
        let Layout(_, data, status, bit, ready) = SIMPLE.iter().find(|l| is(l.0))?;
        // SAFETY: a register of the UART that the caller vouches for.
        let data = unsafe { Reg32::new(base + data) };
        // SAFETY: as above.
        let status = unsafe { Reg32::new(base + status) };
        Some(Self::Simple { data, status, bit: *bit, ready: *ready })
    }

    /// A PL011.
    ///
    /// # Safety
    /// As [`Console::new`].
    pub unsafe fn pl011(base: usize) -> Option<Self> {
        let registers = NonNull::new(core::ptr::with_exposed_provenance_mut::<PL011Registers>(base))?;
        // SAFETY: the caller vouches for the registers and that nobody else in Tenure uses them.
        let registers = unsafe { UniqueMmioPointer::new(registers) };
        Some(Self::Pl011(Uart::new(registers)))
    }

    /// Writes a byte when there is room for it, or after a million polls in any case.
    pub fn put(&mut self, byte: u8) {
        let mut patience = PATIENCE;
        while !self.has_room() && patience > 0 {
            patience -= 1;
        }
        match self {
            Self::Pl011(uart) => uart.write_word(byte),
            Self::Simple { data, .. } => data.write(u32::from(byte)),
        }
    }

    fn has_room(&self) -> bool {
        match self {
            Self::Pl011(uart) => !uart.is_tx_fifo_full(),
            Self::Simple { status, bit, ready, .. } => (status.read() & bit != 0) == *ready,
        }
    }
}

impl core::fmt::Write for Console {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        for byte in s.bytes() {
            if byte == b'\n' {
                self.put(b'\r');
            }
            self.put(byte);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::fmt::Write;

    #[test]
    fn an_unknown_uart_is_none() {
        // SAFETY: no UART is named, so no register is touched.
        assert!(unsafe { Console::new(0x1000, |_| false) }.is_none());
    }

    #[test]
    fn a_line_feed_is_preceded_by_a_carriage_return() {
        let mut registers = [0u32; 64];
        let base = registers.as_mut_ptr().expose_provenance();
        // SAFETY: the array stands for the registers: reads and writes of it are harmless.
        let mut console = unsafe { Console::new(base, |n| n == "fsl,imx21-uart") }.unwrap();
        console.write_str("\n").unwrap();
        assert_eq!(registers[0x40 / 4], u32::from(b'\n'));
    }

    #[test]
    fn a_stuck_uart_does_not_stop_us() {
        let mut registers = [0u32; 64];
        registers[0xb4 / 4] = 1 << 4;
        let base = registers.as_mut_ptr().expose_provenance();
        // SAFETY: as above.
        let mut console = unsafe { Console::new(base, |n| n == "fsl,imx8mp-uart") }.unwrap();
        console.put(b'x');
        assert_eq!(registers[0x40 / 4], u32::from(b'x'));
    }
}
