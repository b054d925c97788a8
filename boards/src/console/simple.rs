//! UARTs of which only two registers matter here: one takes a byte, one says whether there is room and whether all is
//! sent. One row of a table each.
//!
//! Why not a crate: `uart_16550` waits for room without a limit and wants to set the UART up; for the others there is
//! none that is kept. A table of offsets is all that output needs.
//!
//! Unsafe is needed to name registers by address.
#![allow(unsafe_code)]

use tenure_arch::mmio::{Reg8, Reg32};

use super::Place;

/// What is known of a kind of UART: offsets are in registers of `1 << shift` bytes.
#[derive(Debug)]
pub struct Layout {
    /// A `compatible` string.
    name: &'static str,
    /// Register that a byte is written to.
    data: usize,
    /// Register that is read for the two bits below.
    status: usize,
    /// The bit that tells of room in the FIFO.
    room: u32,
    /// What that bit is while there is room.
    room_is: bool,
    /// The bit that is set when all is sent.
    idle: u32,
    /// log2 of a register's bytes, where the tree does not say (`reg-shift`).
    shift: u32,
    /// Bytes of an access, where the tree does not say (`reg-io-width`).
    width: u32,
    /// The transmitter's switch, where a boot loader may have left it off.
    switch: Option<Switch>,
}

/// A transmitter that is off: a register, the bits that turn it on, the bits that keep it off.
#[derive(Debug)]
struct Switch {
    register: usize,
    on: u32,
    off: u32,
}

/// A 16550: line status THRE (bit 5) and TEMT (bit 6).
const fn ns16550(name: &'static str, shift: u32, width: u32) -> Layout {
    Layout { name, data: 0, status: 5, room: 1 << 5, room_is: true, idle: 1 << 6, shift, width, switch: None }
}

/// i.MX: UTXD at 0x40; UTS at 0xb4 with TXFULL (bit 4) and TXEMPTY (bit 6) (IMX8MPRM 16.2).
const fn imx(name: &'static str) -> Layout {
    let switch = None;
    Layout {
        name,
        data: 0x10,
        status: 0x2d,
        room: 1 << 4,
        room_is: false,
        idle: 1 << 6,
        shift: 2,
        width: 4,
        switch,
    }
}

/// Cadence: FIFO at 0x30; channel status at 0x2c with TXFULL (bit 4) and TXEMPTY (bit 3); control at 0 with TXEN (bit
/// 4) and TXDIS (bit 5), which its reset leaves off and QEMU's does too (UG1087, UART).
const fn cadence(name: &'static str) -> Layout {
    let switch = Some(Switch { register: 0, on: 1 << 4, off: 1 << 5 });
    Layout {
        name,
        data: 0xc,
        status: 0xb,
        room: 1 << 4,
        room_is: false,
        idle: 1 << 3,
        shift: 2,
        width: 4,
        switch,
    }
}

/// The mini UART of the BCM2835 and its heirs lays its registers out as a 16550 does, in words (BCM2835 ARM
/// Peripherals, 2.2).
const LAYOUTS: [Layout; 11] = [
    cadence("xlnx,zynqmp-uart"),
    cadence("xlnx,xuartps"),
    cadence("cdns,uart-r1p12"),
    cadence("cdns,uart-r1p8"),
    imx("fsl,imx8mp-uart"),
    imx("fsl,imx6q-uart"),
    imx("fsl,imx21-uart"),
    ns16550("brcm,bcm2835-aux-uart", 2, 4),
    ns16550("snps,dw-apb-uart", 2, 4),
    ns16550("ns16550a", 0, 1),
    ns16550("ns16550", 0, 1),
];

/// A register of the width that the bus wants.
#[derive(Clone, Copy, Debug)]
enum Register {
    Byte(Reg8),
    Word(Reg32),
}

impl Register {
    fn read(self) -> u32 {
        match self {
            Self::Byte(r) => u32::from(r.read()),
            Self::Word(r) => r.read(),
        }
    }

    fn write(self, value: u32) {
        match self {
            Self::Byte(r) => r.write(value as u8),
            Self::Word(r) => r.write(value),
        }
    }
}

/// A UART of the table.
#[derive(Debug)]
pub struct Simple {
    data: Register,
    status: Register,
    layout: &'static Layout,
}

impl Simple {
    /// The UART at `place`, if the table has one of the names for which `is` holds. Nor is there one for an
    /// access width or a distance that no such UART has.
    ///
    /// # Safety
    /// As [`super::Console::new`].
    pub unsafe fn new(place: Place, is: impl Fn(&str) -> bool) -> Option<Self> {
        let layout = LAYOUTS.iter().find(|l| is(l.name))?;
        let shift = place.shift.unwrap_or(layout.shift);
        if shift > 3 {
            return None;
        }
        let register = |n: usize| -> Option<Register> {
            let address = place.base.checked_add(n << shift)?;
            match place.width.unwrap_or(layout.width) {
                // SAFETY: a register of the UART that the caller vouches for.
                1 => Some(Register::Byte(unsafe { Reg8::new(address) })),
                // SAFETY: as above, and aligned.
                4 if address.is_multiple_of(4) => Some(Register::Word(unsafe { Reg32::new(address) })),
                _ => None,
            }
        };
        if let Some(switch) = &layout.switch {
            let control = register(switch.register)?;
            let now = control.read();
            if now & (switch.on | switch.off) != switch.on {
                control.write(now & !switch.off | switch.on);
            }
        }
        Some(Self { data: register(layout.data)?, status: register(layout.status)?, layout })
    }

    /// Whether a byte can be written.
    pub fn has_room(&self) -> bool {
        (self.status.read() & self.layout.room != 0) == self.layout.room_is
    }

    /// Whether all that was written has been sent.
    pub fn is_idle(&self) -> bool {
        self.status.read() & self.layout.idle != 0
    }

    /// Writes a byte.
    pub fn write(&self, byte: u8) {
        self.data.write(u32::from(byte));
    }
}
