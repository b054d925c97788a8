//! Consoles: output only, polled, on a UART that the firmware has set up.
//!
//! The host drives the same UART once it runs. Tenure then writes only to report its own failure, after which the host
//! is gone, or a line now and then, which at worst mixes with the host's. No driver here changes a setting, but for a
//! transmitter that nobody has turned on. Which UART it is stands in the tree (`stdout-path`); which driver fits is
//! decided here, by `compatible`.
//!
//! This file needs unsafe to name device registers by address; each driver's constructor has that contract.
#![allow(unsafe_code)]

mod simple;

use arm_pl011_uart::{PL011Registers, Uart, UniqueMmioPointer};
use core::ptr::NonNull;

use simple::Simple;

/// Polls for room at most so often: a UART that is stuck must not stop the machine.
const PATIENCE: u32 = 1 << 20;

/// A board whose console is tried when there is no device tree to ask: QEMU's `virt`.
pub const FALLBACK_PL011: usize = 0x0900_0000;

/// Where a UART is, and how it wants to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Address of the first register.
    pub base: usize,
    /// `reg-shift`, if the tree has one: log2 of the distance between registers.
    pub shift: Option<u32>,
    /// `reg-io-width`, if the tree has one: bytes of an access.
    pub width: Option<u32>,
}

impl Place {
    /// Registers at `base`, of which the tree says nothing special.
    pub const fn at(base: usize) -> Self {
        Self { base, shift: None, width: None }
    }
}

/// A UART that bytes can be written to.
pub struct Console {
    kind: Kind,
    /// It had no room for so long that we no longer wait for it, until it has.
    stuck: bool,
}

enum Kind {
    /// Arm PL011 (DDI 0183), or the subset of it that SBSA names.
    Pl011(Uart<'static>),
    Simple(Simple),
}

impl Console {
    /// The console for a UART, by what it is compatible with; `None` for a UART that no driver here knows.
    ///
    /// # Safety
    /// If `is` is true of a name, the registers of such a UART must be at `place`, mapped as device memory (or the MMU
    /// be off) whenever the console is used, and nothing else in Tenure may use them.
    pub unsafe fn new(place: Place, is: impl Fn(&str) -> bool) -> Option<Self> {
        if is("arm,pl011") || is("arm,sbsa-uart") {
            // SAFETY: passed on from the caller.
            return unsafe { Self::pl011(place.base) };
        }
        // SAFETY: passed on from the caller.
        let simple = unsafe { Simple::new(place, is) }?;
        Some(Self { kind: Kind::Simple(simple), stuck: false })
    }

    /// A PL011.
    ///
    /// # Safety
    /// As [`Console::new`].
    pub unsafe fn pl011(base: usize) -> Option<Self> {
        let registers = NonNull::new(core::ptr::with_exposed_provenance_mut::<PL011Registers>(base))?;
        // SAFETY: the caller vouches for the registers and that nobody else in Tenure uses them.
        let registers = unsafe { UniqueMmioPointer::new(registers) };
        Some(Self { kind: Kind::Pl011(Uart::new(registers)), stuck: false })
    }

    /// Writes a byte when there is room for it, or after a million polls in any case. A UART that has let us wait in
    /// vain once is asked only once a byte from then on: a crash report is a thousand bytes.
    pub fn put(&mut self, byte: u8) {
        self.stuck = !(0..self.patience()).any(|_| self.has_room());
        match &mut self.kind {
            Kind::Pl011(uart) => uart.write_word(byte),
            Kind::Simple(uart) => uart.write(byte),
        }
    }

    /// Waits until all is sent, or a million polls: whoever sets the UART up anew next loses no byte of ours.
    pub fn flush(&mut self) {
        let _late = !(0..self.patience()).any(|_| self.is_idle());
    }

    fn patience(&self) -> u32 {
        if self.stuck { 1 } else { PATIENCE }
    }

    fn has_room(&self) -> bool {
        match &self.kind {
            Kind::Pl011(uart) => !uart.is_tx_fifo_full(),
            Kind::Simple(uart) => uart.has_room(),
        }
    }

    fn is_idle(&self) -> bool {
        match &self.kind {
            Kind::Pl011(uart) => !uart.is_busy(),
            Kind::Simple(uart) => uart.is_idle(),
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

    /// Registers in memory: reads and writes of them are harmless.
    struct Fake([u32; 64]);

    impl Fake {
        fn console(&mut self, name: &str) -> Option<Console> {
            self.console_at(Place::at(0), name)
        }

        fn console_at(&mut self, place: Place, name: &str) -> Option<Console> {
            let base = self.0.as_mut_ptr().expose_provenance();
            // SAFETY: the array stands for the registers.
            unsafe { Console::new(Place { base, ..place }, |n| n == name) }
        }
    }

    #[test]
    fn an_unknown_uart_is_none() {
        assert!(Fake([0; 64]).console("nobody,knows-uart").is_none());
    }

    #[test]
    fn each_kind_writes_where_its_data_register_is() {
        let kinds = [
            ("arm,pl011", 0x00, 0x18, 0),
            ("xlnx,xuartps", 0x30, 0x2c, 0),
            ("fsl,imx8mp-uart", 0x40, 0xb4, 0),
            ("brcm,bcm2835-aux-uart", 0x00, 0x14, 1 << 5),
            ("snps,dw-apb-uart", 0x00, 0x14, 1 << 5),
        ];
        for (name, data, status, ready) in kinds {
            let mut registers = Fake([0; 64]);
            registers.0[status / 4] = ready;
            let mut console = registers.console(name).unwrap();
            console.put(b'x');
            assert!(!console.stuck, "{name} has room");
            assert_eq!(registers.0[data / 4], u32::from(b'x'), "{name}");
        }
    }

    #[test]
    fn a_transmitter_that_is_off_is_turned_on_and_else_left_alone() {
        let control = |before| {
            let mut registers = Fake([before; 64]);
            registers.console("xlnx,xuartps").unwrap();
            registers.0[0]
        };
        assert_eq!(control(0x128), 0x118, "the state after a reset");
        assert_eq!(control(0x114), 0x114);
    }

    #[test]
    fn each_kind_knows_when_it_is_full() {
        let kinds = [
            ("arm,pl011", 0x18, 1 << 5),
            ("cdns,uart-r1p12", 0x2c, 1 << 4),
            ("fsl,imx21-uart", 0xb4, 1 << 4),
            ("ns16550", 0x04, 0),
        ];
        for (name, status, full) in kinds {
            let mut registers = Fake([0; 64]);
            registers.0[status / 4] = full;
            assert!(!registers.console(name).unwrap().has_room(), "{name}");
        }
    }

    #[test]
    fn each_kind_knows_when_all_is_sent() {
        let kinds = [
            ("arm,pl011", 0x18, 0, 1 << 3),
            ("cdns,uart-r1p8", 0x2c, 1 << 3, 0),
            ("fsl,imx6q-uart", 0xb4, 1 << 6, 0),
            ("snps,dw-apb-uart", 0x14, 1 << 6, 1 << 5),
        ];
        for (name, status, idle, busy) in kinds {
            for (value, is_idle) in [(idle, true), (busy, false)] {
                let mut registers = Fake([0; 64]);
                registers.0[status / 4] = value;
                assert_eq!(registers.console(name).unwrap().is_idle(), is_idle, "{name} with {value:#x}");
            }
        }
    }

    #[test]
    fn the_tree_says_how_far_apart_registers_are_and_how_wide() {
        let mut registers = Fake([0; 64]);
        // Bytes, next to each other: line status is byte 5.
        registers.0[1] = 0x2000;
        let mut console = registers.console("ns16550a").unwrap();
        assert!(console.has_room());
        console.put(b'a');
        assert_eq!(registers.0[0], u32::from(b'a'), "one byte was written");

        let mut registers = Fake([0xffff_ffff; 64]);
        registers.0[5] = 1 << 5;
        let place = Place { base: 0, shift: Some(2), width: Some(4) };
        let mut console = registers.console_at(place, "ns16550a").unwrap();
        console.put(b'a');
        assert_eq!(registers.0[0], u32::from(b'a'), "a word was written");
    }

    #[test]
    fn a_width_or_a_distance_that_makes_no_sense_is_none() {
        for (shift, width) in [(None, Some(3)), (Some(64), None), (Some(1), Some(4))] {
            let place = Place { base: 0, shift, width };
            assert!(Fake([0; 64]).console_at(place, "ns16550a").is_none(), "{shift:?} {width:?}");
        }
    }

    #[test]
    fn a_line_feed_is_preceded_by_a_carriage_return() {
        let mut registers = Fake([0; 64]);
        let mut console = registers.console("fsl,imx21-uart").unwrap();
        console.write_str("\n").unwrap();
        assert_eq!(registers.0[0x40 / 4], u32::from(b'\n'));
    }

    #[test]
    fn a_stuck_uart_does_not_stop_us_and_is_waited_for_once_only() {
        let mut registers = Fake([0; 64]);
        registers.0[0xb4 / 4] = 1 << 4;
        let mut console = registers.console("fsl,imx8mp-uart").unwrap();
        console.put(b'x');
        assert!(console.stuck);
        assert_eq!(console.patience(), 1);
        console.flush();
        registers.0[0xb4 / 4] = 0;
        console.put(b'y');
        assert!(!console.stuck, "it has room again");
        assert_eq!(registers.0[0x40 / 4], u32::from(b'y'));
    }
}
