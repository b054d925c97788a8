//! Stage-2 descriptors (Arm ARM DDI 0487 D8.3) and what Tenure keeps in invalid ones.

use tenure_abi::flags::status;

use crate::addr::{Pa, Pfn};

const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 2;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const STATUS_SHIFT: u32 = 2;
const STATUS_MASK: u64 = 7;

/// In an invalid entry: a change of structure is under way, or the table is out of use.
const MOVING: u64 = 1 << 5;

/// MemAttr without HCR_EL2.FWB: Normal write-back, with which stage 1 can only be combined to something weaker.
const MEMATTR_NORMAL_WB: u64 = 0xf << 2;
/// MemAttr with HCR_EL2.FWB: Normal write-back, whatever stage 1 says.
const MEMATTR_FWB_NORMAL_WB: u64 = 0x6 << 2;
/// MemAttr with HCR_EL2.FWB: what stage 1 says.
const MEMATTR_FWB_STAGE_1: u64 = 0x7 << 2;
const S2AP_READ: u64 = 1 << 6;
const S2AP_WRITE: u64 = 2 << 6;
const SH_INNER: u64 = 3 << 8;
const AF: u64 = 1 << 10;
const XN: u64 = 1 << 54;

/// Attributes of a leaf: memory type, permissions, shareability, access flag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr(u64);

impl Attr {
    /// A guest's RAM without FEAT_S2FWB.
    pub const GUEST: Self = Self::writable(MEMATTR_NORMAL_WB);
    /// A guest's RAM with FEAT_S2FWB: write-back whatever the guest's stage 1 says.
    pub const GUEST_FWB: Self = Self::writable(MEMATTR_FWB_NORMAL_WB);

    const fn writable(memory_type: u64) -> Self {
        Self(memory_type | SH_INNER | AF | S2AP_READ | S2AP_WRITE)
    }

    const fn never_executable(self) -> Self {
        Self(self.0 | XN)
    }

    const fn read_only(self) -> Self {
        Self(self.0 & !S2AP_WRITE)
    }
}

/// What the host's leaves say. HCR_EL2.FWB gives MemAttr another meaning (DDI 0487 D8.6, "Stage 2 memory region type and
/// Cacheability attributes when FEAT_S2FWB is enabled"), so all of them are chosen by it, for the host as for guests.
///
/// With it a frame that is not the host's own is write-back for the host whatever its stage 1 says: it can not change such
/// a frame behind a cache line that the owner reads. Without it nothing prevents that (docs/threat-model.md).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostAttr {
    /// The host's own RAM: its stage 1 decides everything.
    pub ram: Attr,
    /// What is not RAM: never executable, else its stage 1 decides.
    pub other: Attr,
    /// RAM that is not its own, or scrap that stands for it: never executable, forced write-back.
    pub borrowed: Attr,
    /// The crash kernel's view of foreign RAM.
    pub read_only: Attr,
}

impl HostAttr {
    /// For CPUs that run with HCR_EL2.FWB, or without.
    pub const fn new(fwb: bool) -> Self {
        let (decides, forced) = if fwb {
            (MEMATTR_FWB_STAGE_1, MEMATTR_FWB_NORMAL_WB)
        } else {
            (MEMATTR_NORMAL_WB, MEMATTR_NORMAL_WB)
        };
        let borrowed = Attr::writable(forced).never_executable();
        Self {
            ram: Attr::writable(decides),
            other: Attr::writable(decides).never_executable(),
            borrowed,
            read_only: borrowed.read_only(),
        }
    }
}

/// One entry of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// Nothing is mapped, nothing is declared.
    pub const INVALID: Self = Self(0);

    /// A change of structure is under way here, or the table that this stands in is out of use: who meets it starts
    /// again.
    pub const MOVING: Self = Self(MOVING);

    /// A page at level 3.
    pub const fn page(frame: Pfn, attr: Attr) -> Self {
        Self(frame.base().0 & ADDRESS | attr.0 | TABLE_OR_PAGE | VALID)
    }

    /// A block at level 1 or 2.
    pub const fn block(frame: Pfn, attr: Attr) -> Self {
        Self(frame.base().0 & ADDRESS | attr.0 | VALID)
    }

    /// A leaf of `level`.
    pub const fn leaf(level: u32, frame: Pfn, attr: Attr) -> Self {
        if level == super::LEAF_LEVEL { Self::page(frame, attr) } else { Self::block(frame, attr) }
    }

    /// A pointer to the next table.
    pub const fn table(table: Pa) -> Self {
        Self(table.0 & ADDRESS | TABLE_OR_PAGE | VALID)
    }

    /// An invalid entry that keeps the status of its addresses (`TENURE_ADDR_*`).
    pub const fn status(status: u64) -> Self {
        Self((status & STATUS_MASK) << STATUS_SHIFT)
    }

    /// Who meets this starts again.
    pub const fn is_moving(self) -> bool {
        self.0 & (MOVING | VALID) == MOVING
    }

    /// The walker goes on or translates here.
    pub const fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }

    /// Points to a next table, when read at `level`.
    pub const fn is_table(self, level: u32) -> bool {
        level < super::LEAF_LEVEL && self.0 & (TABLE_OR_PAGE | VALID) == TABLE_OR_PAGE | VALID
    }

    /// Maps memory, when read at `level`.
    pub const fn is_leaf(self, level: u32) -> bool {
        self.is_valid() && !self.is_table(level)
    }

    /// Address of the next table.
    pub const fn next(self) -> Pa {
        Pa(self.0 & ADDRESS)
    }

    /// First frame that a leaf maps.
    pub const fn frame(self) -> Pfn {
        Pa(self.0 & ADDRESS).frame()
    }

    /// Attributes of a leaf.
    pub const fn attr(self) -> Attr {
        Attr(self.0 & !(ADDRESS | TABLE_OR_PAGE | VALID))
    }

    /// Status that an invalid guest entry keeps (`TENURE_ADDR_*`).
    pub const fn address_status(self) -> u64 {
        let status = self.0 >> STATUS_SHIFT & STATUS_MASK;
        if status > status::RELINQUISHED { status::NONE } else { status }
    }

    /// A leaf that lets the access through.
    pub const fn permits(self, write: bool, execute: bool) -> bool {
        let write_ok = !write || self.0 & S2AP_WRITE != 0;
        let execute_ok = !execute || self.0 & XN == 0;
        self.is_valid() && self.0 & S2AP_READ != 0 && write_ok && execute_ok
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn leaves_match_the_values_tried_on_hardware_models() {
        // 0x7fd: normal, S2AP 3, SH 3, AF, block.
        assert_eq!(Descriptor::block(Pfn(0), HostAttr::new(false).ram).0, 0x7fd);
        for host in [HostAttr::new(false), HostAttr::new(true)] {
            assert!(Descriptor::page(Pfn(5), host.ram).permits(true, true));
            for data in [host.other, host.borrowed] {
                assert!(Descriptor::page(Pfn(5), data).permits(true, false));
                assert!(!Descriptor::page(Pfn(5), data).permits(false, true));
            }
            assert!(Descriptor::page(Pfn(5), host.read_only).permits(false, false));
            assert!(!Descriptor::page(Pfn(5), host.read_only).permits(true, false));
            assert!(!Descriptor::page(Pfn(5), host.read_only).permits(false, true));
        }
    }

    #[test]
    fn with_fwb_the_host_decides_about_its_own_frames_only() {
        let memory_type = |attr| Descriptor::page(Pfn(5), attr).0 >> 2 & 0xf;
        let types = |host: HostAttr| [host.ram, host.other, host.borrowed, host.read_only].map(memory_type);
        assert_eq!(types(HostAttr::new(true)), [0b111, 0b111, 0b110, 0b110]);
        assert_eq!(types(HostAttr::new(false)), [0b1111; 4]);
        assert_eq!([Attr::GUEST_FWB, Attr::GUEST].map(memory_type), [0b110, 0b1111]);
    }

    #[test]
    fn a_status_is_kept_in_an_invalid_entry() {
        for status in status::NONE..=status::RELINQUISHED {
            let entry = Descriptor::status(status);
            assert!(!entry.is_valid());
            assert_eq!(entry.address_status(), status);
        }
    }

    #[test]
    fn tables_are_told_from_leaves_by_level() {
        let entry = Descriptor::table(Pa(0x5000));
        assert!(entry.is_table(2) && !entry.is_leaf(2));
        assert!(Descriptor::page(Pfn(5), Attr::GUEST).is_leaf(3));
        assert_eq!(entry.next(), Pa(0x5000));
    }
}
