//! Off and reset on boards whose firmware does not do it: no PSCI, but a block that can.
//!
//! BCM2835 and its heirs (Raspberry Pi): the power-management block with its watchdog. The register program is the one
//! of Linux's `bcm2835_wdt`: a reset is a watchdog of a few ticks; the firmware, which the reset starts, halts the
//! board for good if it finds the "halt" partition in RSTS.
//!
//! This file needs unsafe to name device registers by address.
#![allow(unsafe_code)]

use tenure_arch::mmio::Reg32;

/// What a block that is known here is compatible with.
pub const COMPATIBLE: [&str; 3] = ["brcm,bcm2835-pm-wdt", "brcm,bcm2835-pm", "brcm,bcm2711-pm"];

const RSTC: usize = 0x1c;
const RSTS: usize = 0x20;
const WDOG: usize = 0x24;
/// Without it in the upper byte a write is lost.
const PASSWORD: u32 = 0x5a << 24;
/// RSTC: what a watchdog does that runs out (bits 4 and 5): a full reset.
const CONFIG_MASK: u32 = 3 << 4;
const FULL_RESET: u32 = 2 << 4;
/// RSTS: partition 63, scattered over the even bits: "halt".
const HALT: u32 = 0x555;
/// 16 µs each: long enough to be set, too short to wait for.
const TICKS: u32 = 10;

/// What is to become of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It goes off.
    Off,
    /// It starts again.
    Reset,
}

/// The block.
#[derive(Clone, Copy, Debug)]
pub struct Power {
    rstc: Reg32,
    rsts: Reg32,
    wdog: Reg32,
}

impl Power {
    /// Bytes of registers that are used.
    pub const SIZE: u64 = 0x28;

    /// The block at `base`.
    ///
    /// # Safety
    /// The registers of a block of [`COMPATIBLE`] must be at `base`, a multiple of 4, mapped as device memory whenever
    /// it is used.
    pub unsafe fn new(base: usize) -> Self {
        // SAFETY: registers of the block that the caller vouches for; they have no effect on memory.
        let register = |offset| unsafe { Reg32::new(base + offset) };
        Self { rstc: register(RSTC), rsts: register(RSTS), wdog: register(WDOG) }
    }

    /// Starts the machine's end, which comes within a millisecond: this function returns first.
    pub fn end(&self, end: End) {
        // The password reads as zero, so what is read can be written back with it.
        let partition = match end {
            End::Off => self.rsts.read() | HALT,
            End::Reset => self.rsts.read() & !HALT,
        };
        self.rsts.write(PASSWORD | partition);
        self.wdog.write(PASSWORD | TICKS);
        self.rstc.write(PASSWORD | (self.rstc.read() & !CONFIG_MASK) | FULL_RESET);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The registers after an end, from what they were.
    fn after(end: End, before: u32) -> [u32; 3] {
        let mut registers = [before; 16];
        let base = registers.as_mut_ptr().expose_provenance();
        // SAFETY: the array stands for the registers.
        unsafe { Power::new(base) }.end(end);
        [RSTC, RSTS, WDOG].map(|at| registers[at / 4])
    }

    #[test]
    fn a_reset_is_a_short_watchdog_of_the_full_kind() {
        assert_eq!(after(End::Reset, 0), [0x5a00_0020, 0x5a00_0000, 0x5a00_000a]);
        assert_eq!(after(End::Reset, 0x0000_0fff)[0], 0x5a00_0fef, "the other bits of RSTC stay");
    }

    #[test]
    fn off_is_a_reset_into_the_halt_partition_and_a_reset_is_not() {
        assert_eq!(after(End::Off, 0), [0x5a00_0020, 0x5a00_0555, 0x5a00_000a]);
        assert_eq!(after(End::Reset, 0x0000_1555)[1], 0x5a00_1000);
    }
}
