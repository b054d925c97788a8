//! Mistakes that are put into the code from outside, to see that the explorer finds them.

use tenure_abi::page;
use tenure_mm::sync::watched::Access;

use super::space::Act;

/// What is wrong with the code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing: the code as it is.
    None,
    /// Each compare-and-swap stores without comparing.
    SwapWithoutCompare,
    /// Freezing does not show in the word.
    FreezeUnseen,
    /// A word is thawed by nobody.
    ThawForgotten,
    /// A leaf is not read again after the word.
    LeafNotReadAgain,
    /// Locks let everybody in.
    LocksIgnored,
    /// TLBIs of a page are left out.
    NoTlbiOfPage,
    /// The DSB after TLBIs is left out.
    NoDsb,
    /// An unpin is told that it is done and has changed nothing.
    UnpinLost,
    /// A dying VM lets callers in.
    DyingVmLetsIn,
    /// Frames change hands without a scrub.
    NoScrub,
}

impl Fault {
    /// What an atomic holds after an access, and what the CPU is told that it held.
    pub fn atomic(self, access: Access, found: u64, next: u64) -> (u64, u64) {
        match (self, access) {
            (Self::SwapWithoutCompare, Access::CompareExchange { from, to }) => (to, from),
            (Self::FreezeUnseen, Access::CompareExchange { from, to })
                if found == from && to & page::FROZEN.mask() != 0 =>
            {
                (to & !page::FROZEN.mask(), found)
            }
            (Self::ThawForgotten, Access::Store(value))
                if found & page::FROZEN.mask() != 0 && found & !page::FROZEN.mask() == value =>
            {
                (found, found)
            }
            (Self::UnpinLost, Access::CompareExchange { from, to })
                if found == from && page::CPU_PINS.get(to) + 1 == page::CPU_PINS.get(from) =>
            {
                (found, found)
            }
            // The gate's DYING bit is not seen by who enters.
            (Self::DyingVmLetsIn, Access::Add(1)) => (next, found & !(1 << 30)),
            _ => (next, found),
        }
    }

    pub fn drops(self, act: &Act) -> bool {
        match self {
            Self::NoTlbiOfPage => matches!(act, Act::TlbiIpa(_) | Act::TlbiRange(..)),
            Self::NoDsb => matches!(act, Act::DsbIsh),
            Self::NoScrub => matches!(act, Act::Scrub(_)),
            _ => false,
        }
    }

    pub fn ignores_locks(self) -> bool {
        self == Self::LocksIgnored
    }

    pub fn keeps_first_reads(self) -> bool {
        self == Self::LeafNotReadAgain
    }
}
