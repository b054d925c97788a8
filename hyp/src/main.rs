//! Tenure at EL2: the binary.
//!
//! - [`boot`]: from the first instruction to the host's;
//! - [`host`]: the host's world and its ways back into EL2; [`psci`], [`calls`]: what it can ask for;
//! - [`vm`], [`vcpu`]: what a VM has beside its memory, and how a vCPU is run; [`guest`]: what brings it back;
//! - [`machine`]: the hardware under the memory manager of `tenure-mm`, which decides about pages;
//! - [`percpu`], [`console`], [`ring`], [`mod@panic`]: what everything stands on.
#![no_std]
#![no_main]

mod boot;
mod calls;
mod console;
mod dma;
mod guest;
mod host;
mod machine;
mod panic;
mod percpu;
mod psci;
mod revoke;
mod ring;
mod stats;
mod trace;
mod vcpu;
mod vm;
