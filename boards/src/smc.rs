//! Calls of a board's vendor that its kernel may make to the firmware at EL3.
//!
//! EL3 firmware is trusted, but it does as it is told: a call that names memory reads or writes what EL2 has taken from
//! the host, one that names an entry point starts a CPU outside of EL2's control. So every vendor call is refused but for
//! those listed here, by the root's `compatible`, each with the reason why it can name neither. In every listed call the
//! arguments are numbers (of nodes, clocks, pins, resets), never addresses.
//!
//! **Traced** (Debian's 6.12, full flavour, QEMU 10, every SMC from the first instruction to power-off): besides PSCI,
//! `imx8mp-evk` and `virt` make no vendor call, the Raspberry Pis have no firmware to call. QEMU's `zcu102` disables the
//! firmware's node, so there is none there either; with the node left on, the kernel asks for the version and for one
//! feature and, unanswered, gives up. What it goes on to with the real firmware is taken from the interface in the same
//! kernel (`include/linux/firmware/xlnx-zynqmp.h`) and was not seen in a trace.

use core::fmt;

/// What stands in bits 63:32 of the first argument, where only some values may.
#[derive(Clone, Copy, Debug)]
pub struct Sub(&'static [u32]);

/// A call that is let through.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Function id.
    pub id: u32,
    /// The vendor's name for it.
    pub name: &'static str,
    /// Why it can name neither memory nor an entry point.
    pub why: &'static str,
    /// Sub-functions that are let through; `None`: it has none.
    only: Option<Sub>,
}

/// A list in one line: names and ids.
#[derive(Clone, Copy, Debug)]
pub struct List(pub &'static [Call]);

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(calls) = self;
        for (index, call) in calls.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{} {:#x}", call.name, call.id)?;
        }
        if calls.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

/// A board's list.
#[derive(Debug)]
struct Board {
    /// The root is compatible with this.
    root: &'static str,
    calls: &'static [Call],
}

const fn call(id: u32, name: &'static str, why: &'static str) -> Call {
    Call { id, name, why, only: None }
}

/// Arguments that a call lets through: the registers `x1` to `x3`.
pub const ARGUMENTS: usize = 3;

static BOARDS: [Board; 1] = [Board { root: "xlnx,zynqmp", calls: &ZYNQMP }];

const NO_ARGUMENT: &str = "it has no argument";
const NODE: &str = "its arguments are a node of the power tree and how much of it is wanted";
const CLOCK: &str = "its arguments are a clock's number, and a divider or a parent's number";
const PIN: &str = "its arguments are a pin's number and a setting";

/// Zynq UltraScale+: the platform management of Xilinx's firmware (EEMI, UG1200), as SiP calls of 64 bits.
///
/// Without clocks, pins, resets and power nodes the kernel drives no device of this chip. Refused with all others, and
/// why: SET_CONFIGURATION (2), MMIO_WRITE (19), MMIO_READ (20), FPGA_LOAD (22), SECURE_SHA (26), SECURE_RSA (27),
/// SECURE_IMAGE (45), FPGA_READ (46), SECURE_AES (47), REGISTER_ACCESS (52) and EFUSE_ACCESS (53) name memory or a
/// register; SELF_SUSPEND (7) and REQUEST_WAKEUP (10) name an entry point; FORCE_POWERDOWN (8) and SYSTEM_SHUTDOWN (12)
/// would end a CPU or the machine before guests are ended and scrubbed: PSCI is there for both.
static ZYNQMP: [Call; 26] = [
    call(0xc200_0001, "GET_API_VERSION", NO_ARGUMENT),
    call(0xc200_0005, "REGISTER_NOTIFIER", "its arguments are a node, an event and two flags"),
    call(0xc200_000d, "REQUEST_NODE", NODE),
    call(0xc200_000e, "RELEASE_NODE", NODE),
    call(0xc200_000f, "SET_REQUIREMENT", NODE),
    call(0xc200_0011, "RESET_ASSERT", "its arguments are a reset line's number and its level"),
    call(0xc200_0012, "RESET_GET_STATUS", "its argument is a reset line's number"),
    call(0xc200_0015, "PM_INIT_FINALIZE", NO_ARGUMENT),
    call(0xc200_0017, "FPGA_GET_STATUS", NO_ARGUMENT),
    call(0xc200_0018, "GET_CHIPID", NO_ARGUMENT),
    call(0xc200_001c, "PINCTRL_REQUEST", PIN),
    call(0xc200_001d, "PINCTRL_RELEASE", PIN),
    call(0xc200_001f, "PINCTRL_SET_FUNCTION", PIN),
    call(0xc200_0020, "PINCTRL_CONFIG_PARAM_GET", PIN),
    call(0xc200_0021, "PINCTRL_CONFIG_PARAM_SET", PIN),
    Call {
        id: 0xc200_0022,
        name: "IOCTL",
        why: "only those that set delays of the SD card's clock, fractions of PLLs, and modes of SD and Ethernet, by \
              number; those of the real-time cores (a boot address among them) and of registers that outlive a reset \
              are not let through",
        only: Some(Sub(&[4, 6, 7, 8, 9, 10, 11, 30, 31])),
    },
    call(
        0xc200_0023,
        "QUERY_DATA",
        "its arguments are the number of a question and of a clock or pin; answers come in registers",
    ),
    call(0xc200_0024, "CLOCK_ENABLE", CLOCK),
    call(0xc200_0025, "CLOCK_DISABLE", CLOCK),
    call(0xc200_0026, "CLOCK_GETSTATE", CLOCK),
    call(0xc200_0027, "CLOCK_SETDIVIDER", CLOCK),
    call(0xc200_0028, "CLOCK_GETDIVIDER", CLOCK),
    call(0xc200_002b, "CLOCK_SETPARENT", CLOCK),
    call(0xc200_002c, "CLOCK_GETPARENT", CLOCK),
    call(0xc200_003f, "FEATURE_CHECK", "its argument is the number of a call"),
    call(0xc200_0a03, "GET_TRUSTZONE_VERSION", NO_ARGUMENT),
];

/// The calls that are let through on the board whose root is compatible with what `is` says; none on others.
pub fn of_board(is: impl Fn(&str) -> bool) -> &'static [Call] {
    BOARDS.iter().find(|board| is(board.root)).map_or(&[], |board| board.calls)
}

/// Whether `id` with this first argument is among `calls`.
pub fn is_listed(calls: &[Call], id: u32, x1: u64) -> bool {
    calls.iter().any(|call| {
        call.id == id
            && call.only.is_none_or(|Sub(allowed)| allowed.iter().any(|sub| u64::from(*sub) == x1 >> 32))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zynqmp() -> &'static [Call] {
        of_board(|name| name == "xlnx,zynqmp")
    }

    #[test]
    fn a_board_that_is_not_listed_has_no_vendor_calls() {
        for root in ["linux,dummy-virt", "fsl,imx8mp", "raspberrypi,4-model-b", "brcm,bcm2837"] {
            assert!(of_board(|name| name == root).is_empty(), "{root}");
        }
        assert!(!is_listed(&[], 0xc200_0001, 0));
        assert_eq!(std::format!("{}", List(&[])), "none");
        assert!(std::format!("{}", List(zynqmp())).starts_with("GET_API_VERSION 0xc2000001, "));
    }

    #[test]
    fn what_names_memory_or_an_entry_point_is_not_listed() {
        for api in [2, 7, 8, 10, 12, 19, 20, 22, 26, 27, 45, 46, 47, 52, 53] {
            assert!(!is_listed(zynqmp(), 0xc200_0000 | api, 0), "{api}");
        }
        assert!(is_listed(zynqmp(), 0xc200_0001, u64::MAX) && is_listed(zynqmp(), 0xc200_0024, 3));
        // The same function by another owner or convention is another call.
        for id in [0x8200_0001, 0xc300_0001, 0xc400_0001, 1] {
            assert!(!is_listed(zynqmp(), id, 0), "{id:#x}");
        }
    }

    #[test]
    fn of_the_ioctls_only_the_listed_are() {
        let ioctl = |sub: u64| is_listed(zynqmp(), 0xc200_0022, sub << 32 | 7);
        let listed: std::vec::Vec<u64> = (0..64).filter(|sub| ioctl(*sub)).collect();
        assert_eq!(listed, [4, 6, 7, 8, 9, 10, 11, 30, 31]);
        assert!(!ioctl(0x100_0004));
    }

    #[test]
    fn every_call_is_a_vendors_fast_call_listed_once_with_a_reason() {
        for board in &BOARDS {
            for (index, call) in board.calls.iter().enumerate() {
                assert_eq!(call.id >> 24 & 0xbf, 0x82, "{}: SiP calls only", call.name);
                assert!(!call.why.is_empty(), "{}", call.name);
                assert!(board.calls[..index].iter().all(|other| other.id != call.id), "{} twice", call.name);
            }
        }
    }
}
