//! What Tenure wants to know of a board: the tree, read once into plain types.

use arrayvec::ArrayVec;

/// CPUs that are managed; more in the tree are left off.
pub const MAX_CPUS: usize = 16;
/// Ranges of RAM that are read, and that are left when those that touch are one.
pub const MAX_RAM: usize = 32;
/// Reserved ranges that are read.
pub const MAX_RESERVED: usize = 64;
/// Reservations that the operating system is to place itself.
pub const MAX_WISHES: usize = 16;
/// Ranges that one of those may go to.
pub const MAX_WITHIN: usize = 4;
/// One past the highest address of RAM that Tenure manages: EL2's own map has 39 bits.
pub const LIMIT: u64 = 1 << 39;

/// A range of physical addresses, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Region {
    /// First address.
    pub base: u64,
    /// Bytes; `base + size` does not wrap.
    pub size: u64,
}

impl Region {
    /// A region, or `None` where it would wrap.
    pub const fn new(base: u64, size: u64) -> Option<Self> {
        match base.checked_add(size) {
            Some(_) => Some(Self { base, size }),
            None => None,
        }
    }

    /// From `start` to before `end`; empty where they cross.
    pub const fn between(start: u64, end: u64) -> Self {
        Self { base: start, size: end.saturating_sub(start) }
    }

    /// One past the last address.
    pub const fn end(self) -> u64 {
        self.base + self.size
    }

    /// Whether the two share a byte.
    pub const fn overlaps(self, other: Self) -> bool {
        self.base < other.end() && other.base < self.end()
    }

    /// Whether `other` lies wholly inside.
    pub const fn contains(self, other: Self) -> bool {
        self.base <= other.base && other.end() <= self.end()
    }

    /// The whole pages inside it.
    pub const fn whole_pages(self) -> Self {
        let base = self.base.saturating_add(0xfff) & !0xfff;
        Self::between(base, self.end() & !0xfff)
    }

    /// What the two share; empty where they share nothing.
    pub fn common(self, other: Self) -> Self {
        Self::between(self.base.max(other.base), self.end().min(other.end()))
    }

    /// The smallest whole pages that cover it.
    pub const fn pages(self) -> Self {
        let base = self.base & !0xfff;
        let end = self.end().saturating_add(0xfff) & !0xfff;
        Self::between(base, end)
    }
}

/// How the firmware, or Tenure, is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// `SMC #0`.
    Smc,
    /// `HVC #0`.
    Hvc,
}

/// A CPU of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Affinity fields of its MPIDR (`reg`).
    pub mpidr: u64,
    /// Where its spin table waits for an entry point, if it is started that way.
    pub release: Option<u64>,
}

/// The interrupt controller, as far as memory is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gic {
    /// None that is known: guests cannot be offered interrupts.
    #[default]
    None,
    /// GICv2, with the frames that the host may not touch.
    V2 {
        /// Hypervisor control interface.
        gich: Option<Region>,
        /// Virtual CPU interface.
        gicv: Option<Region>,
    },
    /// GICv3 or later.
    V3,
}

/// What a reservation says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// No kernel may map it (`no-map`).
    NoMap,
    /// A device's or the firmware's own (`reg` alone).
    Kept,
    /// The operating system may use it until the device wants it (`reusable`): Linux's CMA.
    Reusable,
    /// The reservation block lists it (`/memreserve/`): a spin table, or what the boot loader has put there.
    Listed,
    /// RAM that `linux,usable-memory` or `linux,usable-memory-range` leaves out: a crashed kernel's, for instance.
    Unusable,
}

/// A range of memory that is not free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved<'a> {
    /// Where.
    pub region: Region,
    /// Whose, and how.
    pub claim: Claim,
    /// The node that says so, for messages.
    pub node: &'a str,
}

/// A reservation without a place: `size`, and where it may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Bytes.
    pub size: u64,
    /// Alignment in bytes, a power of two.
    pub align: u64,
    /// `alloc-ranges`; empty: anywhere.
    pub within: ArrayVec<Region, MAX_WITHIN>,
}

/// A device of which Tenure has a driver: the UART that `stdout-path` names, say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device<'a> {
    /// Its `compatible` strings, as they stand (separated by NULs).
    pub compatible: &'a [u8],
    /// Its first range of registers, as the CPU sees it.
    pub registers: Region,
    /// `reg-shift`: log2 of the distance between registers.
    pub shift: Option<u32>,
    /// `reg-io-width`: bytes of an access.
    pub width: Option<u32>,
}

impl Device<'_> {
    /// Whether it is compatible with `name`.
    pub fn is(&self, name: &str) -> bool {
        lists(self.compatible, name)
    }
}

/// Whether a list of strings, as it stands in a property, holds `name`.
fn lists(list: &[u8], name: &str) -> bool {
    list.split(|&b| b == 0).any(|c| c == name.as_bytes())
}

impl Platform<'_> {
    /// Whether the board is compatible with `name`.
    pub fn is(&self, name: &str) -> bool {
        lists(self.compatible, name)
    }
}

/// The board.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Platform<'a> {
    /// The root's `compatible` strings, as they stand (separated by NULs): which board it is.
    pub compatible: &'a [u8],
    /// RAM (`/memory`): whole pages, sorted, none touching another.
    pub ram: ArrayVec<Region, MAX_RAM>,
    /// Ranges that somebody has a claim on (`/reserved-memory`, the reservation block), in RAM or not.
    pub reserved: ArrayVec<Reserved<'a>, MAX_RESERVED>,
    /// Reservations that the operating system places.
    pub wishes: ArrayVec<Wish, MAX_WISHES>,
    /// CPUs, the boot CPU first where the tree has it so.
    pub cpus: ArrayVec<Cpu, MAX_CPUS>,
    /// How the board's own PSCI is called; `None`: it has none.
    pub psci: Option<Conduit>,
    /// The interrupt controller.
    pub gic: Gic,
    /// What the first IOMMU that works is compatible with.
    pub iommu: Option<&'a str>,
    /// The console.
    pub console: Option<Device<'a>>,
    /// The host's kernel image (`multiboot,kernel`).
    pub kernel: Option<Region>,
    /// Its command line, as a string of the tree without the NUL.
    pub bootargs: Option<&'a str>,
    /// The host's initial RAM disk (`multiboot,ramdisk`, or `linux,initrd-start`).
    pub ramdisk: Option<Region>,
}
