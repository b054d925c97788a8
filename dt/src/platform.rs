//! What Tenure wants to know of a board: the tree, read once into plain types.

use arrayvec::ArrayVec;

/// CPUs that are managed; more in the tree are left off.
pub const MAX_CPUS: usize = 16;
/// Ranges of RAM that are read.
pub const MAX_RAM: usize = 16;
/// Reserved ranges that are read.
pub const MAX_RESERVED: usize = 48;

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

/// A range of RAM that is not free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Where.
    pub region: Region,
    /// The firmware says that no kernel may map it.
    pub no_map: bool,
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
        self.compatible.split(|&b| b == 0).any(|c| c == name.as_bytes())
    }
}

/// The board.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Platform<'a> {
    /// RAM (`/memory`).
    pub ram: ArrayVec<Region, MAX_RAM>,
    /// Ranges of RAM that somebody has a claim on (`/reserved-memory`, the reservation block).
    pub reserved: ArrayVec<Reserved, MAX_RESERVED>,
    /// CPUs, the boot CPU first where the tree has it so.
    pub cpus: ArrayVec<Cpu, MAX_CPUS>,
    /// How the board's own PSCI is called; `None`: it has none.
    pub psci: Option<Conduit>,
    /// The interrupt controller.
    pub gic: Gic,
    /// The console.
    pub console: Option<Device<'a>>,
    /// The host's kernel image (`multiboot,kernel`).
    pub kernel: Option<Region>,
    /// Its command line, as a string of the tree without the NUL.
    pub bootargs: Option<&'a str>,
    /// The host's initial RAM disk (`multiboot,ramdisk`, or `linux,initrd-start`).
    pub ramdisk: Option<Region>,
}
