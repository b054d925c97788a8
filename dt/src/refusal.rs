//! Why a board cannot be used: which node, which property, what is wrong with it.

use core::fmt;

/// A clear answer to "why does it not start?": the node and the property to look at, and the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal<'a> {
    /// The node's name, as in the tree; `/` for the root.
    pub node: &'a str,
    /// The property.
    pub property: &'static str,
    /// The reason.
    pub why: Why,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The structure could not be read again.
    Unreadable,
    /// An address or a size in a number of cells that is neither 1 nor 2, or a value that is not whole entries.
    Cells,
    /// A range that goes beyond the end of the address space.
    Wraps,
    /// Not aligned, or beyond all memory.
    Address,
    /// A bus above has no `ranges` entry for it.
    Untranslated,
    /// Above what Tenure manages ([`LIMIT`](crate::platform::LIMIT)).
    TooHigh(u64),
    /// More entries than there is room for.
    TooMany,
    /// There is none that is enabled and not empty.
    Missing,
    /// Not wholly in RAM that the operating system may use.
    NotInRam(u64),
    /// It lies over something else that has to stay.
    Overlaps(&'static str),
    /// No free stretch of so many bytes.
    NoRoom(u64),
}

impl<'a> Refusal<'a> {
    pub(crate) const fn new(node: &'a str, property: &'static str, why: Why) -> Self {
        Self { node, property, why }
    }
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.node, self.property, self.why)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable => write!(f, "unreadable"),
            Self::Cells => write!(f, "not whole entries of one or two cells"),
            Self::Wraps => write!(f, "wraps around the address space"),
            Self::Address => write!(f, "misaligned, or beyond all memory"),
            Self::Untranslated => write!(f, "no bus translates this address"),
            Self::TooHigh(end) => write!(f, "ends at {end:#x}, above the 512 GiB that Tenure maps"),
            Self::TooMany => write!(f, "more entries than Tenure has room for"),
            Self::Missing => write!(f, "there is none that is enabled and not empty"),
            Self::NotInRam(base) => write!(f, "{base:#x} is not in RAM that an operating system may use"),
            Self::Overlaps(what) => write!(f, "lies over {what}"),
            Self::NoRoom(size) => write!(f, "no free stretch of {} KiB", size.div_ceil(1024)),
        }
    }
}
