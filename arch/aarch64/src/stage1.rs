//! EL2's own translation: stage 1, 4 KiB granule, 39-bit addresses, level-1 start (DDI 0487 D8.3).
//!
//! The table builder is pure: it reaches table pages through [`Tables`], so that tests run it on the build machine. It
//! only ever adds to an address space or tightens a page that is there; it never replaces a table by a block, so
//! break-before-make is not needed. W^X is kept by construction: [`Attr`] has no writable and executable form.

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// Greatest address plus one that can be mapped.
pub const LIMIT: u64 = 1 << 39;

/// `MAIR_EL2`: index 0 is Normal write-back, index 1 Device-nGnRE.
pub const MAIR: u64 = 0x04ff;
/// `SCTLR_EL2`: RES1 bits, MMU, data and instruction caches, SP alignment check, WXN.
pub const SCTLR: u64 = 0x30cd_183d;

/// `TCR_EL2` (E2H = 0): 39 bits, Normal write-back inner-shareable walks, output size by `ID_AA64MMFR0.PARange`.
pub const fn tcr(pa_range: u8) -> u64 {
    let ps = if pa_range > 5 { 5 } else { pa_range } as u64;
    (1 << 31) | (1 << 23) | (ps << 16) | (3 << 12) | (1 << 10) | (1 << 8) | 25
}

/// How a range is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attr {
    /// Normal memory, read-only, executable.
    Text,
    /// Normal memory, read-only.
    ReadOnly,
    /// Normal memory, read-write.
    Data,
    /// Device-nGnRE, read-write.
    Device,
}

const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 2;
const AF: u64 = 1 << 10;
const SH_INNER: u64 = 3 << 8;
/// `AP[1]` is RES1 in a regime with one privilege level (DDI 0487 D8.4.1.2).
const AP1: u64 = 1 << 6;
const AP_RO: u64 = 1 << 7;
const XN: u64 = 1 << 54;
const ADDR: u64 = 0x0000_ffff_ffff_f000;

impl Attr {
    const fn bits(self) -> u64 {
        let base = VALID | AF | AP1;
        match self {
            Attr::Text => base | SH_INNER | AP_RO,
            Attr::ReadOnly => base | SH_INNER | AP_RO | XN,
            Attr::Data => base | SH_INNER | XN,
            Attr::Device => base | (1 << 2) | XN,
        }
    }
}

/// Access to table pages, by physical address.
pub trait Tables {
    /// Hands out one zeroed page, or `None` when there is none left.
    fn alloc(&mut self) -> Option<u64>;
    /// Reads entry `index` (below 512) of the table at `table`.
    fn read(&self, table: u64, index: usize) -> u64;
    /// Writes entry `index` (below 512) of the table at `table`.
    fn write(&mut self, table: u64, index: usize, value: u64);
}

/// Why a range could not be mapped. What was mapped before the failure stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// Not page-aligned, empty or wrapping.
    Invalid,
    /// Above [`LIMIT`].
    TooHigh,
    /// No table page left.
    NoMemory,
    /// Inside a block that is mapped another way.
    Overlap,
}

/// Maps `start..end` to itself with `attr`, by the largest blocks that fit.
///
/// Where the same page is mapped already its attributes are replaced: the caller invalidates the TLB.
pub fn map<T: Tables>(t: &mut T, root: u64, start: u64, end: u64, attr: Attr) -> Result<(), MapError> {
    if start >= end || !start.is_multiple_of(PAGE) || !end.is_multiple_of(PAGE) {
        return Err(MapError::Invalid);
    }
    if end > LIMIT {
        return Err(MapError::TooHigh);
    }
    let mut at = start;
    while at < end {
        at = map_run(t, root, at, end, attr)?;
    }
    Ok(())
}

/// Maps one run of equal leaves in one table, from `at` on; gives the address behind it.
fn map_run<T: Tables>(t: &mut T, root: u64, at: u64, end: u64, attr: Attr) -> Result<u64, MapError> {
    let mut table = root;
    for shift in [30u32, 21, 12] {
        let size = 1u64 << shift;
        let index = ((at >> shift) & 511) as usize;
        let entry = t.read(table, index);
        let fits = |at: u64| at.is_multiple_of(size) && end - at >= size;
        if is_leaf_place(entry, shift) && (shift == 12 || fits(at)) {
            let mut at = at;
            for index in index..512 {
                let entry = t.read(table, index);
                if !fits(at) || !is_leaf_place(entry, shift) {
                    break;
                }
                if entry & VALID != 0 && entry & ADDR != at {
                    return Err(MapError::Overlap);
                }
                let kind = if shift == 12 { TABLE_OR_PAGE } else { 0 };
                t.write(table, index, at | attr.bits() | kind);
                at += size;
            }
            return Ok(at);
        }
        if !is_leaf_place(entry, shift) {
            table = entry & ADDR;
        } else if entry & VALID != 0 {
            return Err(MapError::Overlap);
        } else {
            let next = t.alloc().ok_or(MapError::NoMemory)?;
            t.write(table, index, next | VALID | TABLE_OR_PAGE);
            table = next;
        }
    }
    Err(MapError::Invalid)
}

/// The entry of a table whose entries cover `1 << shift` bytes is no pointer to a next table.
const fn is_leaf_place(entry: u64, shift: u32) -> bool {
    shift == 12 || entry & (VALID | TABLE_OR_PAGE) != (VALID | TABLE_OR_PAGE)
}

/// The leaf that translates `va`, and its size in bytes; `None` where nothing is mapped.
pub fn lookup<T: Tables>(t: &T, root: u64, va: u64) -> Option<(u64, u64)> {
    let mut table = root;
    for shift in [30u32, 21, 12] {
        let entry = t.read(table, ((va >> shift) & 511) as usize);
        if entry & VALID == 0 || va >= LIMIT {
            return None;
        }
        if shift == 12 || entry & TABLE_OR_PAGE == 0 {
            return Some((entry, 1 << shift));
        }
        table = entry & ADDR;
    }
    None
}

/// Whether `va` can be read, from the tables: what a backtrace asks before it follows a pointer.
pub fn is_readable<T: Tables>(t: &T, root: u64, va: u64) -> bool {
    lookup(t, root, va).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{vec, vec::Vec};

    struct Pages(Vec<[u64; 512]>, usize);

    impl Tables for Pages {
        fn alloc(&mut self) -> Option<u64> {
            if self.0.len() == self.1 {
                return None;
            }
            self.0.push([0; 512]);
            Some((self.0.len() as u64 - 1) * PAGE)
        }
        fn read(&self, table: u64, index: usize) -> u64 {
            self.0[(table / PAGE) as usize][index]
        }
        fn write(&mut self, table: u64, index: usize, value: u64) {
            self.0[(table / PAGE) as usize][index] = value;
        }
    }

    fn pages(limit: usize) -> Pages {
        Pages(vec![[0; 512]], limit)
    }

    #[test]
    fn a_whole_gigabyte_is_one_block() {
        let mut t = pages(1);
        map(&mut t, 0, 0x4000_0000, 0x8000_0000, Attr::Data).unwrap();
        assert_eq!(lookup(&t, 0, 0x5555_5000).unwrap().1, 1 << 30);
        assert_eq!(lookup(&t, 0, 0x8000_0000), None);
    }

    #[test]
    fn an_odd_range_uses_blocks_inside_and_pages_at_its_ends() {
        let mut t = pages(8);
        map(&mut t, 0, 0x401f_f000, 0x4060_1000, Attr::Data).unwrap();
        assert_eq!(lookup(&t, 0, 0x401f_f000).unwrap().1, 4096);
        assert_eq!(lookup(&t, 0, 0x4020_0000).unwrap().1, 1 << 21);
        assert_eq!(lookup(&t, 0, 0x4060_0fff).unwrap().1, 4096);
        assert!(!is_readable(&t, 0, 0x401f_e000) && !is_readable(&t, 0, 0x4060_1000));
    }

    #[test]
    fn nothing_is_ever_writable_and_executable() {
        for attr in [Attr::Text, Attr::ReadOnly, Attr::Data, Attr::Device] {
            assert!(attr.bits() & (XN | AP_RO) != 0, "{attr:?}");
        }
    }

    #[test]
    fn attributes_of_a_page_can_be_changed_in_place() {
        let mut t = pages(8);
        map(&mut t, 0, 0x1000, 0x3000, Attr::ReadOnly).unwrap();
        map(&mut t, 0, 0x1000, 0x2000, Attr::Data).unwrap();
        assert_eq!(lookup(&t, 0, 0x1000).unwrap().0 & AP_RO, 0);
        assert_ne!(lookup(&t, 0, 0x2000).unwrap().0 & AP_RO, 0);
    }

    #[test]
    fn a_block_is_not_replaced_by_pages() {
        let mut t = pages(8);
        map(&mut t, 0, 0, 1 << 30, Attr::Data).unwrap();
        assert_eq!(map(&mut t, 0, 0x1000, 0x2000, Attr::Text), Err(MapError::Overlap));
    }

    #[test]
    fn bad_ranges_and_shortage_are_refused() {
        let mut t = pages(1);
        assert_eq!(map(&mut t, 0, 0x1000, 0x1000, Attr::Data), Err(MapError::Invalid));
        assert_eq!(map(&mut t, 0, 0x1001, 0x3000, Attr::Data), Err(MapError::Invalid));
        assert_eq!(map(&mut t, 0, LIMIT - PAGE, LIMIT + PAGE, Attr::Data), Err(MapError::TooHigh));
        assert_eq!(map(&mut t, 0, 0x1000, 0x2000, Attr::Data), Err(MapError::NoMemory));
    }

    #[test]
    fn translation_control_matches_the_trial_on_a53() {
        assert_eq!(tcr(2), 0x8082_3519);
        assert_eq!(tcr(6) >> 16 & 7, 5);
    }
}
