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

const MEMATTR_NORMAL_WB: u64 = 0xf << 2;
const MEMATTR_FWB_NORMAL_WB: u64 = 0x6 << 2;
const S2AP_READ: u64 = 1 << 6;
const S2AP_WRITE: u64 = 2 << 6;
const SH_INNER: u64 = 3 << 8;
const AF: u64 = 1 << 10;
const XN: u64 = 1 << 54;

/// Attributes of a leaf: memory type, permissions, shareability, access flag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr(u64);

impl Attr {
    const NORMAL: u64 = MEMATTR_NORMAL_WB | SH_INNER | AF;

    /// The host's own RAM: stage 1 decides everything.
    pub const HOST_RAM: Self = Self(Self::NORMAL | S2AP_READ | S2AP_WRITE);
    /// What is not RAM, and RAM that the host only borrows: never executable. (Normal at stage 2, so that the host's
    /// stage 1 decides the memory type.)
    pub const HOST_DATA: Self = Self(Self::HOST_RAM.0 | XN);
    /// The crash kernel's view of foreign RAM.
    pub const HOST_READ_ONLY: Self = Self(Self::NORMAL | S2AP_READ | XN);
    /// A guest's RAM without FEAT_S2FWB.
    pub const GUEST: Self = Self::HOST_RAM;
    /// A guest's RAM with FEAT_S2FWB: write-back whatever the guest's stage 1 says.
    pub const GUEST_FWB: Self = Self(MEMATTR_FWB_NORMAL_WB | SH_INNER | AF | S2AP_READ | S2AP_WRITE);
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
        assert_eq!(Descriptor::block(Pfn(0), Attr::HOST_RAM).0, 0x7fd);
        assert!(Descriptor::page(Pfn(5), Attr::HOST_DATA).permits(true, false));
        assert!(!Descriptor::page(Pfn(5), Attr::HOST_DATA).permits(false, true));
        assert!(!Descriptor::page(Pfn(5), Attr::HOST_READ_ONLY).permits(true, false));
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
