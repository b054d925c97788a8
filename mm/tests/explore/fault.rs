//! Mistakes that are put into the code from outside, to see that the explorer finds them.

use tenure_abi::page::{self, State};
use tenure_mm::stage2::Descriptor;
use tenure_mm::sync::watched::Access;

use super::calls::Call;
use super::case::Case;
use super::explorer::Explorer;
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
    /// The freezing of a block does not show in its words.
    BlockFreezeUnseen,
    /// A parked word that is to owe a scrub again does not.
    ScrubForgiven,
    /// A parked word is changed though another CPU has it frozen.
    FrozenOverwritten,
    /// An entry is replaced without a break.
    NoBreak,
    /// A broken entry does not say that it is being replaced.
    BreakUnsaid,
}

/// What an entry says that is being replaced.
const MOVING: u64 = Descriptor::MOVING.0;

/// In quarantine, on the way to or from a VM, and not frozen.
fn is_parked(word: u64) -> bool {
    let parked = State::of(word) == Some(State::Quarantine) && page::OWNER.get(word) != 0;
    parked && page::FROZEN.get(word) == 0
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
            (Self::BlockFreezeUnseen, Access::Or(bits)) if bits == page::FROZEN.mask() => (found, found),
            (Self::ScrubForgiven, Access::CompareExchange { from, to })
                if found == from && is_parked(from) && to == from | page::SCRUB.mask() =>
            {
                (found, found)
            }
            (Self::FrozenOverwritten, Access::CompareExchange { from, to })
                if found == from | page::FROZEN.mask() && is_parked(from) && is_parked(to) =>
            {
                (to, from)
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
            Self::NoBreak => matches!(act, Act::Write(_, _, MOVING)),
            _ => false,
        }
    }

    /// What is asked of the machine instead.
    pub fn act(self, act: Act) -> Act {
        match (self, act) {
            (Self::BreakUnsaid, Act::Write(table, index, MOVING)) => Act::Write(table, index, 0),
            _ => act,
        }
    }

    pub fn ignores_locks(self) -> bool {
        self == Self::LocksIgnored
    }

    pub fn keeps_first_reads(self) -> bool {
        self == Self::LeafNotReadAgain
    }
}

/// Sees that the case goes wrong with the mistake and only with it; what was said then.
pub fn found(mistake: Fault, first: &[Call], programs: &[&[Call]]) -> String {
    let programs = programs.iter().map(|program| program.to_vec()).collect();
    let case = Case { first: first.to_vec(), programs };
    if let Err(violation) = Explorer::new(1, Fault::None).explore(&case) {
        panic!("without a mistake: {}", violation.0);
    }
    match Explorer::new(1, mistake).explore(&case) {
        Ok(seen) => panic!("{mistake:?} is not found: {seen}"),
        Err(violation) => violation.0,
    }
}
