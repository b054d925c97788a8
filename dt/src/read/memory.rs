//! RAM, and who has a claim on it.
//!
//! Read as Linux reads it (`early_init_dt_scan_memory`, `fdt_init_reserved_mem`): what Linux takes for free must be free
//! for us and the other way round. Where Linux would go on with less memory after a warning, this refuses and says why.

use arrayvec::ArrayVec;

use super::node::{Nature, Node};
use super::reg::{entries, registers};
use crate::place::without;
use crate::platform::{Claim, LIMIT, MAX_RAM, Platform, Region, Reserved, Wish};
use crate::refusal::{Refusal, Why};

const TOO_MANY: Why = Why::TooMany;

/// A node that says where RAM is: under the root, enabled.
pub fn is_memory(path: &[Node<'_>], nature: &Nature<'_>) -> bool {
    path.len() == 2 && nature.device_type == b"memory\0" && path.last().is_some_and(Node::is_enabled)
}

/// Takes a memory node. What `linux,usable-memory` leaves out of it is RAM all the same, but nobody's to use.
pub fn memory<'a>(p: &mut Platform<'a>, path: &[Node<'a>]) -> Result<(), Refusal<'a>> {
    let [root, node] = path else { return Ok(()) };
    let refuse = |property, why| Refusal::new(node.title(), property, why);
    let usable = node.property("linux,usable-memory").map(|value| list(value, root.cells()));
    let usable = usable.transpose().map_err(|why| refuse("linux,usable-memory", why))?;
    for region in registers(path) {
        let region = region.map_err(|why| refuse("reg", why))?;
        if region.end() > LIMIT {
            return Err(refuse("reg", Why::TooHigh(region.end())));
        }
        p.ram.try_push(region).map_err(|_| refuse("reg", TOO_MANY))?;
        if let Some(usable) = &usable {
            leave_out(p, region, usable, node.title()).map_err(|why| refuse("linux,usable-memory", why))?;
        }
    }
    Ok(())
}

/// Takes `linux,usable-memory-range` of `/chosen`, once all of RAM is known: outside of it RAM is nobody's to use.
pub fn usable_range<'a>(p: &mut Platform<'a>, root: &Node<'a>, chosen: &Node<'a>) -> Result<(), Refusal<'a>> {
    const NAME: &str = "linux,usable-memory-range";
    let refuse = |why| Refusal::new(chosen.title(), NAME, why);
    let Some(value) = chosen.property(NAME) else { return Ok(()) };
    let usable = list(value, root.cells()).map_err(refuse)?;
    if usable.is_empty() {
        return Ok(());
    }
    for bank in p.ram.clone() {
        leave_out(p, bank, &usable, chosen.title()).map_err(refuse)?;
    }
    Ok(())
}

/// Takes a child of `/reserved-memory`.
pub fn reserved<'a>(p: &mut Platform<'a>, path: &[Node<'a>]) -> Result<(), Refusal<'a>> {
    let [root, _, node] = path else { return Ok(()) };
    // Linux does not look at a disabled one either: its frames are ordinary RAM.
    if !node.is_enabled() {
        return Ok(());
    }
    let refuse = |property, why| Refusal::new(node.title(), property, why);
    let claim = if node.has("no-map") {
        Claim::NoMap
    } else if node.has("reusable") {
        Claim::Reusable
    } else {
        Claim::Kept
    };
    for region in registers(path) {
        let region = region.map_err(|why| refuse("reg", why))?;
        reserve(p, region, claim, node.title()).map_err(|why| refuse("reg", why))?;
    }
    if !node.has("reg")
        && let Some(size) = node.number("size").filter(|size| *size > 0)
    {
        let align = node.number("alignment").filter(|align| align.is_power_of_two()).unwrap_or(0).max(4096);
        let within = node.property("alloc-ranges").map(|value| list(value, root.cells()));
        let within = within.transpose().map_err(|why| refuse("alloc-ranges", why))?.unwrap_or_default();
        p.wishes.try_push(Wish { size, align, within }).map_err(|_| refuse("size", TOO_MANY))?;
    }
    Ok(())
}

/// Notes a claim.
pub fn reserve<'a>(p: &mut Platform<'a>, region: Region, claim: Claim, node: &'a str) -> Result<(), Why> {
    if region.size == 0 {
        return Ok(());
    }
    p.reserved.try_push(Reserved { region, claim, node }).map_err(|_| TOO_MANY)
}

/// RAM in whole pages, sorted, with banks that overlap or touch as one: a frame has one word. A page of which the tree
/// names only a part is none.
pub fn normalise(p: &mut Platform<'_>) {
    p.ram.sort_unstable();
    let mut banks: ArrayVec<Region, MAX_RAM> = ArrayVec::new();
    for bank in &p.ram {
        match banks.last_mut() {
            Some(last) if bank.base <= last.end() => {
                *last = Region::between(last.base, last.end().max(bank.end()));
            }
            // Not more than there were.
            _ => banks.push(*bank),
        }
    }
    p.ram = banks.iter().map(|bank| bank.whole_pages()).filter(|bank| bank.size > 0).collect();
}

fn list<const N: usize>(value: &[u8], cells: (usize, usize)) -> Result<ArrayVec<Region, N>, Why> {
    let mut all = ArrayVec::new();
    for region in entries(value, cells) {
        all.try_push(region?).map_err(|_| TOO_MANY)?;
    }
    Ok(all)
}

fn leave_out<'a>(
    p: &mut Platform<'a>,
    bank: Region,
    usable: &ArrayVec<Region, 8>,
    node: &'a str,
) -> Result<(), Why> {
    let mut rest: ArrayVec<Region, 16> = ArrayVec::new();
    without(bank, usable, &mut rest).map_err(|_| TOO_MANY)?;
    rest.into_iter().try_for_each(|region| reserve(p, region, Claim::Unusable, node))
}
