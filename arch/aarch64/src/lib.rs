//! The Arm A-profile machine, as Tenure sees it at EL2 (AArch64, `HCR_EL2.E2H` = 0).
//!
//! Instructions, registers, vectors, exception decode and exception entry: how the machine is spoken to, never what is
//! said. Policy lives in `tenure-mm` and in the EL2 binary.
//!
//! Everything compiles on the build machine too, so that the pure parts (syndrome decode, exception entry, table
//! formats, feature sets) are unit-tested there; the instructions themselves are compiled out: reads give 0, writes
//! and barriers do nothing.
//!
//! Sources are cited as `DDI 0487 <section>` (Arm ARM for A-profile), `DEN0022` (PSCI), `DEN0028` (SMCCC).
#![no_std]

#[cfg(test)]
extern crate std;

pub mod barrier;
pub mod cache;
pub mod cpu;
pub mod el1;
pub mod emulate;
pub mod errata;
pub mod esr;
pub mod features;
pub mod fp;
pub mod frame;
pub mod guest;
pub mod host;
pub mod idregs;
pub mod inject;
pub mod mmio;
pub mod smc;
pub mod stage1;
pub mod switch;
pub mod sysreg;
pub mod tlb;
pub mod translate;
pub mod trap;
pub mod vectors;
