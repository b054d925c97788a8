//! The validator: whatever it lets pass, the parsers behind it read without a panic.
//!
//! It looks at structure only (DTSpec 5): header, bounds of the blocks, nesting of tokens, lengths of properties,
//! string offsets, sizes of the cell counts. What a property means is the reader's business.

/// Greatest tree that is looked at, in bytes: the arm64 boot protocol's limit.
pub const MAX_SIZE: usize = 2 << 20;
/// Bytes of the header.
pub const HEADER: usize = 40;
/// Deepest nesting that is accepted; boards have 6 or 7.
pub const MAX_DEPTH: usize = 16;

pub(crate) const MAGIC: u32 = 0xd00d_feed;
pub(crate) const BEGIN_NODE: u32 = 1;
pub(crate) const END_NODE: u32 = 2;
pub(crate) const PROP: u32 = 3;
pub(crate) const NOP: u32 = 4;
pub(crate) const END: u32 = 9;

/// What is wrong with a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Shorter than a header, or longer than [`MAX_SIZE`].
    Size,
    /// Not a device tree.
    Magic,
    /// The header says more bytes than there are: cut short.
    Truncated,
    /// A version that this cannot read.
    Version,
    /// A block that is misaligned or outside the tree.
    Block,
    /// The list of reserved memory does not end.
    Reservations,
    /// A token that is none, or at a place where it may not stand.
    Token,
    /// A node's name does not end, or is not ASCII.
    Name,
    /// A property reaches out of its block.
    Property,
    /// A property's name lies outside the strings, or is not ASCII.
    String,
    /// Nodes nest deeper than [`MAX_DEPTH`].
    Depth,
    /// A `#…-cells` property is not one small number.
    Cells,
}

/// Reads a big-endian word at `at`, `None` outside.
pub(crate) fn word(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn field(data: &[u8], index: usize) -> Result<usize, Malformed> {
    word(data, index * 4).map(|v| v as usize).ok_or(Malformed::Size)
}

/// The size that the header of a tree claims, if it is one at all: what must be mapped before [`check`] can run.
pub fn claimed_size(header: &[u8]) -> Result<usize, Malformed> {
    if word(header, 0) != Some(MAGIC) {
        return Err(Malformed::Magic);
    }
    match field(header, 1)? {
        total if (HEADER..=MAX_SIZE).contains(&total) => Ok(total),
        _ => Err(Malformed::Size),
    }
}

/// Length of the printable ASCII string at `at`, without its NUL, that must end before `end`.
fn string_len(data: &[u8], at: usize, end: usize) -> Option<usize> {
    let tail = data.get(at..end)?;
    let len = tail.iter().position(|&b| b == 0)?;
    tail[..len].iter().all(|b| (0x20..0x7f).contains(b)).then_some(len)
}

/// Checks a whole tree, and gives it, cut to its size. `data` may be longer than the tree.
pub fn check(data: &[u8]) -> Result<&[u8], Malformed> {
    let total = claimed_size(data)?;
    let data = data.get(..total).ok_or(Malformed::Truncated)?;
    let (struct_start, strings_start, reserve_start) = (field(data, 2)?, field(data, 3)?, field(data, 4)?);
    let (version, compatible) = (field(data, 5)?, field(data, 6)?);
    let (strings_len, struct_len) = (field(data, 8)?, field(data, 9)?);
    if version < 17 || compatible > 17 {
        return Err(Malformed::Version);
    }
    let struct_end = block(total, struct_start, struct_len, 4)?;
    let strings_end = block(total, strings_start, strings_len, 1)?;
    check_reservations(data, reserve_start)?;
    let strings = data.get(strings_start..strings_end).ok_or(Malformed::Block)?;
    check_structure(data.get(struct_start..struct_end).ok_or(Malformed::Block)?, strings)?;
    Ok(data)
}

/// End of a block, if it lies behind the header and inside the tree.
fn block(total: usize, start: usize, len: usize, align: usize) -> Result<usize, Malformed> {
    match start.checked_add(len) {
        Some(end) if start >= HEADER && end <= total && start.is_multiple_of(align) => Ok(end),
        _ => Err(Malformed::Block),
    }
}

/// The reservation block ends in an entry of zeros, inside the tree.
fn check_reservations(data: &[u8], start: usize) -> Result<(), Malformed> {
    if start < HEADER || !start.is_multiple_of(8) {
        return Err(Malformed::Block);
    }
    let entries = data.get(start..).ok_or(Malformed::Reservations)?.chunks_exact(16);
    for entry in entries {
        if entry.iter().all(|&b| b == 0) {
            return Ok(());
        }
    }
    Err(Malformed::Reservations)
}

/// Walks the tokens of the structure block.
fn check_structure(tokens: &[u8], strings: &[u8]) -> Result<(), Malformed> {
    let (mut at, mut depth, mut seen_root) = (0usize, 0usize, false);
    // Properties stand before the sub-nodes of their node (DTSpec 5.4.1).
    let mut may_have_props = false;
    loop {
        let token = word(tokens, at).ok_or(Malformed::Token)?;
        at += 4;
        match token {
            BEGIN_NODE => {
                if depth == 0 && seen_root {
                    return Err(Malformed::Token);
                }
                let len = string_len(tokens, at, tokens.len()).ok_or(Malformed::Name)?;
                if (depth == 0) != (len == 0) {
                    return Err(Malformed::Name);
                }
                at = (at + len + 1).next_multiple_of(4);
                seen_root = true;
                may_have_props = true;
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(Malformed::Depth);
                }
            }
            END_NODE => {
                depth = depth.checked_sub(1).ok_or(Malformed::Token)?;
                may_have_props = false;
            }
            PROP if may_have_props => at = check_property(tokens, at, strings)?,
            NOP => {}
            END if depth == 0 && seen_root => return Ok(()),
            _ => return Err(Malformed::Token),
        }
    }
}

/// Checks the property whose length word is at `at`; gives the place behind it.
fn check_property(tokens: &[u8], at: usize, strings: &[u8]) -> Result<usize, Malformed> {
    let len = word(tokens, at).ok_or(Malformed::Property)? as usize;
    let name_at = word(tokens, at + 4).ok_or(Malformed::Property)? as usize;
    let value = tokens.get(at + 8..).and_then(|t| t.get(..len)).ok_or(Malformed::Property)?;
    let name_len = string_len(strings, name_at, strings.len()).ok_or(Malformed::String)?;
    let name = strings.get(name_at..name_at + name_len).ok_or(Malformed::String)?;
    let is_cells: [&[u8]; 2] = [b"#address-cells", b"#size-cells"];
    if is_cells.contains(&name) && !matches!(value, [0, 0, 0, 0..=4]) {
        return Err(Malformed::Cells);
    }
    if name == b"#interrupt-cells" && !matches!(value, [0, 0, 0, 0..=8]) {
        return Err(Malformed::Cells);
    }
    Ok((at + 8 + len).next_multiple_of(4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn set(tree: &mut [u8], field: usize, value: u32) {
        tree[field * 4..field * 4 + 4].copy_from_slice(&value.to_be_bytes());
    }

    #[test]
    fn a_good_tree_passes() {
        let tree = sample::virt();
        assert_eq!(check(&tree).unwrap().len(), tree.len());
    }

    #[test]
    fn a_tree_cut_short_is_refused() {
        let tree = sample::virt();
        for keep in [0, 3, 39, 40, 100, tree.len() / 2, tree.len() - 1] {
            assert!(check(&tree[..keep]).is_err(), "{keep} bytes");
        }
        assert_eq!(check(&tree[..tree.len() - 1]), Err(Malformed::Truncated));
    }

    #[test]
    fn each_header_field_is_looked_at() {
        for (field, value, error) in [
            (0, 0xd00d_feee, Malformed::Magic),
            (1, 20, Malformed::Size),
            (1, (MAX_SIZE + 1) as u32, Malformed::Size),
            (2, 0xffff_fff0, Malformed::Block),
            (2, 8, Malformed::Block),
            (3, 0xffff_fff0, Malformed::Block),
            (4, 0xffff_fff0, Malformed::Reservations),
            (4, 41, Malformed::Block),
            (5, 16, Malformed::Version),
            (6, 18, Malformed::Version),
            (8, 0x7fff_ffff, Malformed::Block),
            (9, 0x7fff_ffff, Malformed::Block),
            (9, 8, Malformed::Token),
        ] {
            let mut tree = sample::virt();
            set(&mut tree, field, value);
            assert_eq!(check(&tree), Err(error), "field {field} = {value:#x}");
        }
    }

    #[test]
    fn nesting_and_order_are_checked() {
        let root = [0, 0, 0, 1, 0, 0, 0, 0];
        let with = |rest: &[u32]| {
            let mut t: Vec<u8> = root.to_vec();
            rest.iter().for_each(|w| t.extend(w.to_be_bytes()));
            t
        };
        let strings = b"reg\0#size-cells\0";
        let node = |w: u32| [BEGIN_NODE, w];
        let a = u32::from_be_bytes(*b"a\0\0\0");
        assert_eq!(check_structure(&with(&[END_NODE, END]), strings), Ok(()));
        assert_eq!(check_structure(&with(&[NOP, END_NODE, NOP, END]), strings), Ok(()));
        assert_eq!(check_structure(&with(&[END]), strings), Err(Malformed::Token));
        assert_eq!(check_structure(&with(&[END_NODE, END_NODE]), strings), Err(Malformed::Token));
        assert_eq!(check_structure(&with(&[END_NODE, PROP, 0, 0, END]), strings), Err(Malformed::Token));
        assert_eq!(
            check_structure(&with(&[END_NODE, BEGIN_NODE, a, END_NODE, END]), strings),
            Err(Malformed::Token)
        );
        let [b, n] = node(a);
        assert_eq!(
            check_structure(&with(&[b, n, END_NODE, PROP, 0, 0, END_NODE, END]), strings),
            Err(Malformed::Token)
        );
        assert_eq!(check_structure(&with(&[b, n, END_NODE, 7]), strings), Err(Malformed::Token));
        assert_eq!(check_structure(&with(&[PROP, 0, 99, END_NODE, END]), strings), Err(Malformed::String));
        assert_eq!(check_structure(&with(&[PROP, 4, 4, 9, END_NODE, END]), strings), Err(Malformed::Cells));
        assert_eq!(check_structure(&with(&[PROP, 400, 0]), strings), Err(Malformed::Property));
        let deep: Vec<u32> = (0..MAX_DEPTH).flat_map(|_| node(a)).collect();
        assert_eq!(check_structure(&with(&deep), strings), Err(Malformed::Depth));
    }

    #[test]
    fn nops_mean_nothing() {
        let tree = sample::virt_with_nops();
        assert_ne!(tree.len(), sample::virt().len());
        let tree = check(&tree).unwrap();
        assert_eq!(crate::read::read(tree), crate::read::read(&sample::virt()));
    }

    proptest! {
        /// A fuzz in small: any few bytes changed anywhere, the tree is refused or all that follows survives it.
        #[test]
        fn damaged_trees_are_refused_or_harmless(
            hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
        ) {
            let mut tree = sample::virt();
            for (at, value) in hits {
                let at = at.index(tree.len());
                tree[at] = value;
            }
            if let Ok(tree) = check(&tree)
                && let Ok(platform) = crate::read::read(tree)
            {
                let mut out = std::vec![0; tree.len() + crate::edit::GROWTH];
                let view = crate::edit::HostView::default();
                if let Ok(len) = crate::edit::host_tree(tree, &platform, &view, &mut out) {
                    // What is written is well-formed in any case.
                    prop_assert!(check(&out[..len]).is_ok());
                }
            }
        }
    }
}
