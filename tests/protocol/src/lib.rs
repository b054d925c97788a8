//! How the bare-metal test guest is loaded, and the command loop by which its host drives it.
//!
//! The guest knows nothing of the test: it asks for a command, carries it out and reports what came back, so that
//! one payload serves the bare-metal hosts and the story on Linux. Everything goes through the guest call
//! HOST_CALL (`a1..a6` out, one `u64` back), which the host sees as a HYPERCALL exit with `args` and answers in
//! the run page's `data` (KVM API: KVM_EXIT_HYPERCALL, `hypercall.args[0..6]` and `hypercall.ret`). `a1` is one of [`op`]:
//!
//! 1. NEXT(r0, r1, r2, r3, r4): the results of the command before (zeros the first time); the answer is the next
//!    command, one of [`command`].
//! 2. ARG(i): for each argument of that command, in order; the answer is its value.
//!
//! Text goes, byte by byte, to the device address [`CONSOLE`] as one-byte MMIO writes. An exception that no command expected
//! is told there, and the guest powers off.
//!
//! Constants only, for the guest, for hosts in Rust and, as `protocol.h`, for hosts in C.
#![no_std]
#![forbid(unsafe_code)]

/// One `#define` of `protocol.h`.
#[derive(Clone, Copy, Debug)]
pub struct Constant {
    /// C name.
    pub name: &'static str,
    /// Value.
    pub value: u64,
    /// Documentation.
    pub doc: &'static str,
}

macro_rules! constants {
    ($prefix:literal; $( $(#[doc = $doc:literal])+ $name:ident = $value:expr; )+) => {
        $( $(#[doc = $doc])+ pub const $name: u64 = $value; )+

        /// Every constant of this module, for the C header.
        pub const TABLE: &[$crate::Constant] = &[
            $( $crate::Constant {
                name: concat!($prefix, stringify!($name)),
                value: $name,
                doc: concat!($($doc),+),
            }, )+
        ];
    };
}

constants! { "GUEST_";
    /// Where RAM starts and the flat binary is loaded; its first byte is the entry point. (The image is
    /// position-independent: any 4 KiB-aligned address in the same GiB works.)
    ENTRY = 0x4000_0000;
    /// Bytes at ENTRY that the image, its stack and its page tables take: all of them private RAM, the host's to
    /// fill from the file and zero behind it before activation.
    IMAGE_BYTES = 0x1_0000;
    /// First address that no part of the payload uses: memory for the host's experiments.
    FREE = 0x4010_0000;
    /// Device address (one page, status DEVICE): each byte written to it is a character of the guest's console.
    CONSOLE = 0x0900_0000;
    /// Value of x0 at entry: bytes of RAM from ENTRY; x1.. are zero.
    DEFAULT_RAM_BYTES = 0x100_0000;
}

/// What the guest asks by HOST_CALL: a1.
pub mod op {
    constants! { "GUEST_OP_";
        /// (r0, r1, r2, r3, r4): results of the last command; the answer is the next command.
        NEXT = 0x100;
        /// (i): the answer is argument i of the command.
        ARG = 0x101;
    }
}

/// What the host can order. "Reply" means r0..r4 = x0..x4 of the call that was made; MORE gives x5 up.
pub mod command {
    constants! { "GUEST_CMD_";
        /// () -> r0 = 0: nothing.
        NOP = 0;
        /// (ipa, count) -> reply of TENURE_GUEST_SHARE.
        SHARE = 1;
        /// (ipa, count, flags) -> reply of TENURE_GUEST_UNSHARE.
        UNSHARE = 2;
        /// (ipa, count) -> reply of TENURE_GUEST_RELINQUISH.
        RELINQUISH = 3;
        /// (ipa) -> reply of TENURE_GUEST_QUERY.
        QUERY = 4;
        /// (ipa) -> r0 = KVM_MEM_SHARE's answer, as a stock guest makes it.
        STOCK_SHARE = 5;
        /// (ipa) -> r0 = KVM_MEM_UNSHARE's answer, as a stock guest makes it.
        STOCK_UNSHARE = 6;
        /// (id, x1, x2, x3, x4, x5) -> reply of HVC with these registers: every other call, PSCI too.
        HVC = 7;
        /// (id, x1, x2, x3, x4, x5) -> reply of SMC with these registers.
        SMC = 8;
        /// () -> r0..r4 = x5..x9 of the last call.
        MORE = 9;
        /// (address) -> r0 = OUTCOME_*, r1 = the 64-bit value, r2 = ESR, r3 = FAR if it faulted.
        READ = 10;
        /// (address, value) -> as READ: writes 64 bits.
        WRITE = 11;
        /// (address, pages, value) -> as READ, r4 = pages done: fills whole pages with a 64-bit value.
        FILL = 12;
        /// (address, pages, value) -> r0 = OUTCOME_*, r1 = number of 64-bit words that differ, r2.. as READ, r4 = pages done.
        CHECK = 13;
        /// (address, pages) -> as READ, r4 = pages done: reads one word of each page.
        TOUCH = 14;
        /// (address, width) -> as READ: one access of 1, 2, 4 or 8 bytes.
        LOAD = 15;
        /// (address, width, value) -> as READ: one access of 1, 2, 4 or 8 bytes.
        STORE = 16;
        /// (address) -> as READ: jumps there (link register set; a RET comes back).
        EXECUTE = 17;
        /// () -> r0 = OUTCOME_*: prints a line on the guest's console.
        PRINT = 18;
        /// (n) -> r0 = 0: executes about n instructions.
        SPIN = 19;
        /// () -> r0 = OUTCOME_*: executes WFI.
        WFI = 20;
        /// () -> r0 = times an SError was taken since the last such command.
        SERRORS = 21;
        /// (which) -> r0 = OUTCOME_*, r1 = value: TENURE test register number, see `sysreg`.
        SYSREG = 22;
        /// (value) -> r0 = number of FP/SIMD registers v0..v31 that were not zero before; all are set to the value.
        FP_SWAP = 23;
        /// (what, ipa, n) -> r0 = n, r1 = CNTVCT ticks, r2 = all answers (x0) together by OR: a loop of `work` for measuring.
        LOOP = 24;
        /// () : PSCI SYSTEM_OFF.
        OFF = 25;
        /// (mpidr, address, bytes) -> r0 = PSCI CPU_ON's answer: that vCPU, its stack in this memory, asks for commands too.
        START = 26;
    }

    /// Every command with the number of its arguments.
    pub const ARGUMENTS: &[(u64, usize)] = &[
        (NOP, 0),
        (SHARE, 2),
        (UNSHARE, 3),
        (RELINQUISH, 2),
        (QUERY, 1),
        (STOCK_SHARE, 1),
        (STOCK_UNSHARE, 1),
        (HVC, 6),
        (SMC, 6),
        (MORE, 0),
        (READ, 1),
        (WRITE, 2),
        (FILL, 3),
        (CHECK, 3),
        (TOUCH, 2),
        (LOAD, 2),
        (STORE, 3),
        (EXECUTE, 1),
        (PRINT, 0),
        (SPIN, 1),
        (WFI, 0),
        (SERRORS, 0),
        (SYSREG, 1),
        (FP_SWAP, 1),
        (LOOP, 3),
        (OFF, 0),
        (START, 3),
    ];

    /// Number of arguments of a command; `None` if there is no such command.
    pub fn arguments(command: u64) -> Option<usize> {
        ARGUMENTS.iter().find(|(id, _)| *id == command).map(|(_, n)| *n)
    }
}

/// r0 of commands that touch memory or registers.
pub mod outcome {
    constants! { "GUEST_OUTCOME_";
        /// It went through.
        OK = 0;
        /// It ended in an exception, which r2 (ESR_EL1) and r3 (FAR_EL1) describe.
        FAULT = 1;
        /// No such command, register or width.
        UNKNOWN = 2;
    }
}

/// What [`command::LOOP`] repeats: n calls, or n pages.
pub mod work {
    constants! { "GUEST_WORK_";
        /// Nothing: what the loop itself costs.
        EMPTY = 0;
        /// PSCI_VERSION.
        PSCI_VERSION = 1;
        /// SHARE of page after page.
        SHARE = 2;
        /// UNSHARE of page after page.
        UNSHARE = 3;
        /// SHARE and UNSHARE of the one page.
        PAIR = 4;
        /// SHARE of the n pages in one call, n up to 512.
        SHARE_RANGE = 5;
        /// UNSHARE of the n pages in one call, n up to 512.
        UNSHARE_RANGE = 6;
        /// KVM's MEM_SHARE of page after page.
        STOCK_SHARE = 7;
        /// HOST_CALL with a1 = 0, which the host must answer n times: a whole exit and entry.
        HOST_CALL = 8;
        /// A one-word read of page after page, each of which the host must populate.
        TOUCH = 9;
        /// n times: writes PUBLIC to the page, shares it, takes it back (again while BUSY or RETRY), writes SECRET;
        /// r3 = refusals.
        SECRETS = 10;
        /// As SECRETS, taking it back with DRAIN and WAIT.
        SECRETS_DRAIN = 11;
        /// What a page holds while it is shared.
        PUBLIC = 0x0b1c_0b1c_0b1c_0b1c;
        /// What a page holds while it is private: the host must never read it.
        SECRET = 0x5ec7_e75e_c7e7_5ec7;
    }
}

/// Argument of [`command::SYSREG`].
pub mod sysreg {
    constants! { "GUEST_SYSREG_";
        /// MIDR_EL1.
        MIDR = 0;
        /// MPIDR_EL1.
        MPIDR = 1;
        /// ID_AA64PFR0_EL1.
        PFR0 = 2;
        /// ID_AA64DFR0_EL1.
        DFR0 = 3;
        /// CNTVCT_EL0.
        CNTVCT = 4;
        /// PMCR_EL0 (hidden from guests: a fault is expected).
        PMCR = 5;
        /// MDSCR_EL1.
        MDSCR = 6;
        /// CNTPCT_EL0.
        CNTPCT = 7;
    }
}

/// Writes `protocol.h`.
///
/// # Errors
/// Only those of `out`.
pub fn write_header(out: &mut dyn core::fmt::Write) -> core::fmt::Result {
    writeln!(out, "/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */")?;
    writeln!(
        out,
        "/* Generated from the crate tenure-test-protocol, whose test compares it: do not edit. */"
    )?;
    writeln!(out, "#ifndef TENURE_TEST_PROTOCOL_H\n#define TENURE_TEST_PROTOCOL_H")?;
    let tables = [TABLE, op::TABLE, command::TABLE, outcome::TABLE, work::TABLE, sysreg::TABLE];
    for table in tables {
        writeln!(out)?;
        for constant in table {
            writeln!(out, "/*{} */", constant.doc)?;
            writeln!(out, "#define {} {:#x}UL", constant.name, constant.value)?;
        }
    }
    writeln!(out, "\n#endif")
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::String;

    #[test]
    fn every_command_tells_its_arguments() {
        for constant in super::command::TABLE {
            assert!(super::command::arguments(constant.value).is_some(), "{}", constant.name);
        }
    }

    #[test]
    fn the_c_header_is_the_one_in_the_tree() {
        let mut header = String::new();
        super::write_header(&mut header).unwrap();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/protocol.h");
        if std::env::var_os("TENURE_BLESS").is_some() {
            std::fs::write(path, &header).unwrap();
        }
        assert_eq!(header, std::fs::read_to_string(path).unwrap(), "run the test with TENURE_BLESS=1");
    }
}
