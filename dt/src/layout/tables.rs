//! How many table pages a map needs: upper bounds that hold wherever the ranges are.

use crate::platform::Region;

/// Bytes under a level-2 table's entry, and under a level-1 table's.
const SIZES: [u64; 2] = [2 << 20, 1 << 30];

/// Tables below the root that cut blocks at the edges of ranges: at each end at most one of either level.
pub fn for_edges(ranges: impl Iterator<Item = Region>) -> u64 {
    let cut = |edge: u64| SIZES.iter().filter(|size| !edge.is_multiple_of(**size)).count() as u64;
    ranges.map(|range| cut(range.base) + cut(range.end())).sum()
}

/// Tables below the root that describe ranges page by page, wherever they start.
pub fn for_pages(ranges: impl Iterator<Item = Region>) -> u64 {
    ranges.map(|range| SIZES.iter().map(|size| range.size.div_ceil(*size) + 1).sum::<u64>()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_need_tables_only_where_they_cut_blocks() {
        let count = |base, size| for_edges([Region { base, size }].into_iter());
        assert_eq!(count(0x4000_0000, 0x4000_0000), 0);
        assert_eq!(count(0x4000_0000, 0x20_0000), 1);
        assert_eq!(count(0x4000_1000, 0x20_0000), 4);
    }

    #[test]
    fn pages_need_a_table_for_each_block_they_may_touch() {
        assert_eq!(for_pages([Region { base: 0x1f_f000, size: 0x2000 }].into_iter()), 4);
        assert_eq!(for_pages([Region { base: 0, size: 0x80_0000 }].into_iter()), 5 + 2);
    }
}
