//! HVC and SMC with the registers of the SMC Calling Convention (DEN 0028).
#![allow(unsafe_code)] // The two instructions.

use core::arch::asm;

use tenure_abi::{NO_INDEX, Reply, Status};

/// x0 to x17 after a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Regs(pub [u64; 18]);

impl Regs {
    /// Register `n`; 0 for one that no call returns.
    pub fn x(&self, n: usize) -> u64 {
        self.0.get(n).copied().unwrap_or(0)
    }

    /// x0 to x3 as Tenure's answer; a status that Tenure does not define reads as [`Status::NotSupported`] with the raw x0 in
    /// `mask`, so that no caller takes it for a success.
    pub fn reply(&self) -> Reply {
        Reply::from_regs([self.0[0], self.0[1], self.0[2], self.0[3]]).unwrap_or(Reply {
            status: Status::NotSupported,
            done: 0,
            first: NO_INDEX,
            mask: self.0[0],
        })
    }

    /// True where x0 is a status that Tenure defines.
    pub fn has_status(&self) -> bool {
        Status::from_raw(self.0[0]).is_some()
    }
}

macro_rules! conduit {
    ($(#[doc = $doc:literal])+ $name:ident, $instruction:literal) => {
        $(#[doc = $doc])+
        ///
        /// `arguments` go to x1 up (at most 17), the rest is zero.
        pub fn $name(id: u64, arguments: &[u64]) -> Regs {
            let mut r = [0u64; 18];
            r[0] = id;
            for (register, value) in r.iter_mut().skip(1).zip(arguments) {
                *register = *value;
            }
            // SAFETY: the callee changes x0 to x17 only (SMCCC 1.2, section 2.6), and all of them are outputs. A call that
            // takes memory away is made for pages of the test's own, which no Rust object occupies.
            unsafe {
                asm!($instruction,
                    inout("x0") r[0], inout("x1") r[1], inout("x2") r[2], inout("x3") r[3],
                    inout("x4") r[4], inout("x5") r[5], inout("x6") r[6], inout("x7") r[7],
                    inout("x8") r[8], inout("x9") r[9], inout("x10") r[10], inout("x11") r[11],
                    inout("x12") r[12], inout("x13") r[13], inout("x14") r[14], inout("x15") r[15],
                    inout("x16") r[16], inout("x17") r[17], options(nostack));
            }
            Regs(r)
        }
    };
}

conduit! {
    /// Calls the hypervisor.
    hvc, "hvc #0"
}
conduit! {
    /// Calls the firmware; under Tenure the hypervisor answers.
    smc, "smc #0"
}

/// HVC with three arguments and one result, in as few instructions as there can be: for loops that are measured.
#[inline(always)]
pub fn quick(id: u64, x1: u64, x2: u64, x3: u64) -> u64 {
    let result;
    // SAFETY: as in `hvc`.
    unsafe {
        asm!("hvc #0", inout("x0") id => result, inout("x1") x1 => _, inout("x2") x2 => _, inout("x3") x3 => _,
            out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _,
            out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _, options(nostack));
    }
    result
}

/// PSCI functions (DEN 0022) that tests use.
pub mod psci {
    /// PSCI_VERSION.
    pub const VERSION: u64 = 0x8400_0000;
    /// CPU_OFF.
    pub const CPU_OFF: u64 = 0x8400_0002;
    /// CPU_ON, 64-bit.
    pub const CPU_ON: u64 = 0xC400_0003;
    /// AFFINITY_INFO, 64-bit.
    pub const AFFINITY_INFO: u64 = 0xC400_0004;
    /// SYSTEM_OFF.
    pub const SYSTEM_OFF: u64 = 0x8400_0008;
    /// SYSTEM_RESET.
    pub const SYSTEM_RESET: u64 = 0x8400_0009;
    /// PSCI_FEATURES.
    pub const FEATURES: u64 = 0x8400_000A;
}

/// Powers the machine or the VM off by HVC, then, where that came back, by SMC; stops if neither exists.
///
/// On a bare `virt` machine without EL2 QEMU answers HVC; with Tenure both are answered.
pub fn power_off() -> ! {
    hvc(psci::SYSTEM_OFF, &[]);
    smc(psci::SYSTEM_OFF, &[]);
    loop {
        crate::cpu::wait_for_interrupt();
    }
}
