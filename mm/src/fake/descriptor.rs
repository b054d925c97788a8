//! Stage-2 descriptors as the architecture reads them (Arm DDI 0487 D8.3, 4 KiB granule), written apart from the
//! manager's own encoder so that a mistake there is seen here.

/// What a stage-2 leaf permits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs, reason = "plain names")]
pub struct Perms {
    pub read: bool,
    pub write: bool,
    pub exec: bool,
}

/// A valid descriptor, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Decoded {
    Invalid,
    Table(u64),
    Leaf {
        pa: u64,
        perms: Perms,
        /// MemAttr, bits 5:2.
        attr: u8,
    },
}

const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
const ACCESS_FLAG: u64 = 1 << 10;

/// Bits of an address that a level resolves.
const LEVEL_BITS: u32 = if cfg!(small_tables) { 3 } else { 9 };

/// Entries of a table.
pub(super) const ENTRIES: usize = 1 << LEVEL_BITS;

/// Bytes that an entry at `level` covers, as a shift; at level 0, those of a root table.
pub(super) const fn shift_of(level: u8) -> u32 {
    12 + LEVEL_BITS * (3 - level as u32)
}

/// Decodes `raw` as found at `level` (1 to 3).
pub(super) fn decode(raw: u64, level: u8) -> Decoded {
    let leaf = |shift: u32| Decoded::Leaf {
        pa: raw & ADDRESS & !((1u64 << shift) - 1),
        perms: Perms {
            read: raw & (1 << 6) != 0,
            write: raw & (1 << 7) != 0,
            // XN[1:0] in bits 54:53: 00 executable at EL1 and EL0, 10 nowhere; 01 and 11 (FEAT_XNX) at one of them.
            exec: raw & (0b11 << 53) != 0b10 << 53,
        },
        attr: ((raw >> 2) & 0xf) as u8,
    };
    match (raw & 0b11, level) {
        // Without the access flag a walk faults, and such an entry is not kept in a TLB.
        (0b01, 1 | 2) if raw & ACCESS_FLAG != 0 => leaf(shift_of(level)),
        (0b11, 3) if raw & ACCESS_FLAG != 0 => leaf(12),
        (0b11, 1 | 2) => Decoded::Table(raw & ADDRESS),
        _ => Decoded::Invalid,
    }
}

/// Contents of a frame that nobody has zeroed: a valid page or table descriptor that points at `pfn`.
pub(super) const fn garbage(pfn: u64) -> u64 {
    (pfn << 12) | ACCESS_FLAG | (0b11 << 6) | (0b1111 << 2) | 0b11
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bits_mean_a_table_above_and_a_page_below() {
        assert_eq!(decode(garbage(0x40001), 2), Decoded::Table(0x4000_1000));
        let rwx = Perms { read: true, write: true, exec: true };
        assert_eq!(decode(garbage(0x40001), 3), Decoded::Leaf { pa: 0x4000_1000, perms: rwx, attr: 0xf });
    }

    #[test]
    fn a_block_without_access_flag_maps_nothing() {
        assert_eq!(decode(0x4000_0001, 1), Decoded::Invalid);
        assert_eq!(decode(0x4000_0401, 3), Decoded::Invalid);
    }
}
