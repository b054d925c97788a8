//! Where things go: free stretches of RAM. Pure, so that the memory plan is tested on the build machine.

use arrayvec::ArrayVec;

use crate::platform::Region;

/// The lowest free stretch of `size` bytes at a multiple of `align` (a power of two), at or above `from`, that lies in
/// one of `ram` and touches none of `taken`.
pub fn find_free(ram: &[Region], taken: &[Region], size: u64, align: u64, from: u64) -> Option<Region> {
    let mut best: Option<Region> = None;
    for bank in ram {
        let mut at = align_up(bank.base.max(from), align)?;
        loop {
            let candidate = Region::new(at, size)?;
            if !bank.contains(candidate) {
                break;
            }
            match taken.iter().filter(|t| t.size > 0 && t.overlaps(candidate)).map(|t| t.end()).max() {
                Some(end) => at = align_up(end, align)?,
                None => {
                    if best.is_none_or(|b| candidate.base < b.base) {
                        best = Some(candidate);
                    }
                    break;
                }
            }
        }
    }
    best
}

/// The highest free stretch; otherwise as [`find_free`]. Linux looks from the top for what it places itself.
pub fn find_last(ram: &[Region], taken: &[Region], size: u64, align: u64) -> Option<Region> {
    let mut best: Option<Region> = None;
    for bank in ram {
        let mut end = bank.end();
        while let Some(at) = end.checked_sub(size).map(|at| at & !(align - 1)) {
            let candidate = Region { base: at, size };
            if size == 0 || !bank.contains(candidate) {
                break;
            }
            match taken.iter().filter(|t| t.size > 0 && t.overlaps(candidate)).map(|t| t.base).min() {
                Some(base) => end = base,
                None => {
                    if best.is_none_or(|b| candidate.base > b.base) {
                        best = Some(candidate);
                    }
                    break;
                }
            }
        }
    }
    best
}

/// There are more pieces than places for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Appends to `out` what of `bank` lies in none of `holes`, in ascending order.
pub fn without<const N: usize>(
    bank: Region,
    holes: &[Region],
    out: &mut ArrayVec<Region, N>,
) -> Result<(), Full> {
    let mut at = bank.base;
    while at < bank.end() {
        let next = holes.iter().filter(|h| h.size > 0 && h.end() > at && h.base < bank.end());
        let Some(hole) = next.min_by_key(|h| h.base) else {
            return out.try_push(Region::between(at, bank.end())).map_err(|_| Full);
        };
        if hole.base > at {
            out.try_push(Region::between(at, hole.base)).map_err(|_| Full)?;
        }
        at = hole.end();
    }
    Ok(())
}

fn align_up(value: u64, align: u64) -> Option<u64> {
    value.checked_next_multiple_of(align)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: [Region; 2] =
        [Region { base: 0x4000_0000, size: 0x1000_0000 }, Region { base: 0x8000_0000, size: 0x1000_0000 }];

    fn at(base: u64, size: u64) -> Region {
        Region { base, size }
    }

    #[test]
    fn the_lowest_hole_that_fits_is_taken() {
        let taken = [at(0x4000_0000, 0x1000), at(0x4000_3000, 0x1000)];
        assert_eq!(find_free(&RAM, &taken, 0x2000, 0x1000, 0), Some(at(0x4000_1000, 0x2000)));
        assert_eq!(find_free(&RAM, &taken, 0x3000, 0x1000, 0), Some(at(0x4000_4000, 0x3000)));
    }

    #[test]
    fn alignment_and_the_lower_bound_hold() {
        let taken = [at(0x4020_0000, 0x1000)];
        assert_eq!(find_free(&RAM, &taken, 0x1000, 0x20_0000, 0x4000_0001), Some(at(0x4040_0000, 0x1000)));
    }

    #[test]
    fn a_full_bank_leads_to_the_next() {
        let taken = [at(0x4000_0000, 0x1000_0000)];
        assert_eq!(find_free(&RAM, &taken, 0x1000, 0x1000, 0), Some(at(0x8000_0000, 0x1000)));
        assert_eq!(find_free(&RAM, &taken, 0x1000_0001, 0x1000, 0), None);
    }

    #[test]
    fn the_end_of_the_address_space_is_no_trap() {
        let ram = [at(0xffff_ffff_ffff_0000, 0xffff)];
        assert_eq!(find_free(&ram, &[at(0xffff_ffff_ffff_0000, 0xffff)], 0x1000, 0x1_0000, 0), None);
    }
}
