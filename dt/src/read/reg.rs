//! Addresses: lists of (address, size) in the cells that stand above, and their way through the buses (DTSpec 2.3).

use super::node::{Node, number};
use crate::platform::Region;
use crate::refusal::Why;

/// The entries of a list of ranges in these cell counts; empty ones are left out (a tree whose memory the boot loader
/// fills in has them), what is behind the last whole entry is not looked at (Linux does the same).
pub fn entries(
    value: &[u8],
    (address, size): (usize, usize),
) -> impl Iterator<Item = Result<Region, Why>> + '_ {
    let whole = value.chunks_exact((address + size).max(4)).filter(move |_| size > 0 && address > 0);
    let parsed = whole.map(move |entry| {
        let (base, size) = entry.split_at(address);
        let (base, size) = number(base).zip(number(size)).ok_or(Why::Cells)?;
        Region::new(base, size).ok_or(Why::Wraps)
    });
    parsed.filter(|entry| !matches!(entry, Ok(region) if region.size == 0))
}

/// The entries of the last node's `reg` as CPU addresses: translated by the `ranges` of every bus above it.
pub fn registers<'x>(path: &'x [Node<'_>]) -> impl Iterator<Item = Result<Region, Why>> + use<'x> {
    let (above, node) = match path {
        [above @ .., node] => (above, Some(node)),
        [] => (path, None),
    };
    let cells = above.last().map_or((8, 4), Node::cells);
    let value = node.and_then(|node| node.property("reg")).unwrap_or_default();
    entries(value, cells).map(move |region| translate(region?, above).ok_or(Why::Untranslated))
}

/// Translates an address of the bus that is last in `above` to the CPU's (DTSpec 2.3.8).
fn translate(region: Region, above: &[Node<'_>]) -> Option<Region> {
    let mut base = region.base;
    // Each bus, from the innermost out, with its parent; the root's children are in CPU addresses.
    for pair in above.windows(2).rev() {
        let [parent, bus] = pair else { return None };
        let Some(ranges) = bus.property("ranges") else { continue };
        if ranges.is_empty() {
            continue;
        }
        let ((child, size), (outer, _)) = (bus.cells(), parent.cells());
        base = ranges.chunks_exact((child + outer + size).max(4)).find_map(|e| {
            let start = number(e.get(..child)?)?;
            let target = number(e.get(child..child + outer)?)?;
            let size = number(e.get(child + outer..)?)?;
            let offset = base.checked_sub(start)?;
            (offset < size).then(|| target.checked_add(offset)).flatten()
        })?;
    }
    Region::new(base, region.size)
}
