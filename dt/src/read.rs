//! One walk over a checked tree, into [`Platform`].

use arrayvec::ArrayVec;
use fdt::{Fdt, node::FdtNode};

use crate::check::MAX_DEPTH;
use crate::platform::{Conduit, Cpu, Gic, Platform, Region, Reserved, Uart};

/// Why a well-formed tree cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// The parser refused what the checker passed.
    Parser,
    /// No RAM.
    NoMemory,
    /// No CPU.
    NoCpu,
    /// More ranges than there is room for.
    TooMany,
}

/// The nodes above the current one, the root first.
type Path<'b, 'a> = ArrayVec<FdtNode<'b, 'a>, MAX_DEPTH>;

/// What [`visit`] calls: a node, and the nodes above it.
type Visitor<'f, 'b, 'a> = dyn FnMut(FdtNode<'b, 'a>, &[FdtNode<'b, 'a>]) -> Result<(), Unusable> + 'f;

/// Reads a tree that [`normalise`](crate::check::normalise) has passed.
pub fn read(tree: &[u8]) -> Result<Platform<'_>, Unusable> {
    let fdt = Fdt::new(tree).map_err(|_| Unusable::Parser)?;
    let root = fdt.find_node("/").ok_or(Unusable::Parser)?;
    let mut p = Platform::default();
    for r in fdt.memory_reservations() {
        let region = Region::new(r.address() as u64, r.size() as u64).ok_or(Unusable::Parser)?;
        p.reserved.try_push(Reserved { region, no_map: false }).map_err(|_| Unusable::TooMany)?;
    }
    let console = console_path(root);
    visit(root, &mut Path::new(), &mut |node, path| node_of_interest(&mut p, node, path))?;
    p.console = console.and_then(|path| find_uart(root, path));
    if p.ram.is_empty() {
        return Err(Unusable::NoMemory);
    }
    if p.cpus.is_empty() {
        return Err(Unusable::NoCpu);
    }
    p.ram.sort_unstable();
    Ok(p)
}

/// Calls `f` for every node with the nodes above it.
fn visit<'b, 'a: 'b>(
    node: FdtNode<'b, 'a>,
    path: &mut Path<'b, 'a>,
    f: &mut Visitor<'_, 'b, 'a>,
) -> Result<(), Unusable> {
    f(node, path)?;
    if path.try_push(node).is_err() {
        return Ok(());
    }
    for child in node.children() {
        visit(child, path, f)?;
    }
    path.pop();
    Ok(())
}

/// The two properties that say what a node is.
#[derive(Clone, Copy, Default)]
struct Nature<'a> {
    compatible: &'a [u8],
    device_type: &'a [u8],
}

impl<'a> Nature<'a> {
    /// One look at the node's properties: most nodes are none of ours.
    fn of(node: FdtNode<'_, 'a>) -> Self {
        let mut nature = Self::default();
        for property in node.properties() {
            match property.name {
                "compatible" => nature.compatible = property.value,
                "device_type" => nature.device_type = property.value,
                _ => {}
            }
        }
        nature
    }

    fn is(&self, names: &[&str]) -> bool {
        self.compatible.split(|&b| b == 0).any(|c| names.iter().any(|n| n.as_bytes() == c))
    }
}

/// Takes from one node what [`Platform`] wants of it.
fn node_of_interest<'b, 'a: 'b>(
    p: &mut Platform<'a>,
    node: FdtNode<'b, 'a>,
    path: &[FdtNode<'b, 'a>],
) -> Result<(), Unusable> {
    let parent = if path.len() == 2 { path.last().map_or("", |n| n.name) } else { "" };
    let nature = Nature::of(node);
    if path.len() == 1 && nature.device_type == b"memory\0" && is_enabled(node) {
        for region in registers(node, path) {
            p.ram.try_push(region?).map_err(|_| Unusable::TooMany)?;
        }
    } else if parent == "reserved-memory" {
        let no_map = node.property("no-map").is_some();
        for region in registers(node, path) {
            p.reserved.try_push(Reserved { region: region?, no_map }).map_err(|_| Unusable::TooMany)?;
        }
    } else if parent == "cpus" && nature.device_type == b"cpu\0" {
        read_cpu(p, node, path);
    } else if parent == "chosen" && nature.is(&["multiboot,module"]) {
        read_module(p, node, path, &nature);
    } else if path.len() == 1 && node.name == "chosen" {
        let edge = |name| node.property(name).and_then(|v| v.as_usize()).map(|v| v as u64);
        if let (Some(start), Some(end)) = (edge("linux,initrd-start"), edge("linux,initrd-end"))
            && p.ramdisk.is_none()
            && start < end
        {
            p.ramdisk = Some(Region::between(start, end));
        }
        p.bootargs = p.bootargs.or(text(node, "bootargs"));
    } else if nature.is(&["arm,psci-1.0", "arm,psci-0.2"]) {
        p.psci = match text(node, "method") {
            Some("smc") => Some(Conduit::Smc),
            Some("hvc") => Some(Conduit::Hvc),
            _ => None,
        };
    } else if nature.is(&["arm,gic-v3"]) {
        p.gic = Gic::V3;
    } else if nature.is(&["arm,cortex-a15-gic", "arm,gic-400", "arm,cortex-a7-gic"]) {
        let mut frames = registers(node, path).skip(2).map(Result::ok);
        p.gic = Gic::V2 { gich: frames.next().flatten(), gicv: frames.next().flatten() };
    }
    Ok(())
}

fn read_cpu<'b, 'a: 'b>(p: &mut Platform<'a>, node: FdtNode<'b, 'a>, path: &[FdtNode<'b, 'a>]) {
    let cells = path.last().map_or(2, |cpus| cpus.cell_sizes().address_cells);
    let Some(mpidr) = node.property("reg").and_then(|r| number(r.value.get(..cells * 4)?)) else { return };
    if !is_enabled(node) {
        return;
    }
    let spins = text(node, "enable-method") == Some("spin-table");
    let release = node.property("cpu-release-addr").and_then(|v| number(v.value)).filter(|_| spins);
    let _more_than_we_manage = p.cpus.try_push(Cpu { mpidr, release });
}

/// A multiboot module (Xen's convention): `reg` is in the root's cells, `/chosen` has none of its own.
fn read_module<'b, 'a: 'b>(
    p: &mut Platform<'a>,
    node: FdtNode<'b, 'a>,
    path: &[FdtNode<'b, 'a>],
    nature: &Nature<'a>,
) {
    let Some(root) = path.first() else { return };
    let Some(region) = regions(node, root.cell_sizes().address_cells, root.cell_sizes().size_cells).next()
    else {
        return;
    };
    let Ok(region) = region else { return };
    if nature.is(&["multiboot,kernel"]) {
        p.kernel = Some(region);
        p.bootargs = text(node, "bootargs").or(p.bootargs);
    } else if nature.is(&["multiboot,ramdisk"]) {
        p.ramdisk = Some(region);
    }
}

/// A big-endian number of one or two cells.
fn number(bytes: &[u8]) -> Option<u64> {
    match bytes.len() {
        4 => Some(u64::from(u32::from_be_bytes(bytes.try_into().ok()?))),
        8 => Some(u64::from_be_bytes(bytes.try_into().ok()?)),
        _ => None,
    }
}

/// A string property, without its NUL.
fn text<'a>(node: FdtNode<'_, 'a>, name: &str) -> Option<&'a str> {
    let value = node.property(name)?.value;
    core::str::from_utf8(value.split(|&b| b == 0).next()?).ok()
}

/// `status` is absent or says that the device works (DTSpec 2.3.4).
fn is_enabled(node: FdtNode<'_, '_>) -> bool {
    matches!(text(node, "status"), None | Some("okay" | "ok"))
}

/// The entries of `reg`, with these cell counts; an entry that wraps or is too wide for us is an error.
fn regions<'a>(
    node: FdtNode<'_, 'a>,
    address_cells: usize,
    size_cells: usize,
) -> impl Iterator<Item = Result<Region, Unusable>> + use<'a> {
    let value = node.property("reg").map_or(&[][..], |r| r.value);
    let (a, entry) = (address_cells * 4, (address_cells + size_cells) * 4);
    value.chunks_exact(entry.max(4)).filter(move |_| entry > a && a > 0).map(move |e| {
        let (base, size) = e.split_at(a);
        match (number(base), number(size)) {
            (Some(base), Some(size)) => Region::new(base, size).ok_or(Unusable::Parser),
            _ => Err(Unusable::Parser),
        }
    })
}

/// The entries of `reg` as CPU addresses: translated by the `ranges` of every bus above (DTSpec 2.3.8).
fn registers<'x, 'b: 'x, 'a: 'b>(
    node: FdtNode<'b, 'a>,
    path: &'x [FdtNode<'b, 'a>],
) -> impl Iterator<Item = Result<Region, Unusable>> + 'x {
    let cells = path.last().map_or((2, 1), |p| (p.cell_sizes().address_cells, p.cell_sizes().size_cells));
    regions(node, cells.0, cells.1).map(move |r| translate(r?, path).ok_or(Unusable::Parser))
}

/// Translates an address of the bus that is last in `path` to the CPU's.
fn translate(region: Region, path: &[FdtNode<'_, '_>]) -> Option<Region> {
    let mut base = region.base;
    // Each bus, from the innermost out, with its parent; the root's children are in CPU addresses.
    for pair in path.windows(2).rev() {
        let [parent, bus] = pair else { return None };
        let Some(ranges) = bus.property("ranges") else { continue };
        if ranges.value.is_empty() {
            continue;
        }
        let child_cells = bus.cell_sizes().address_cells * 4;
        let parent_cells = parent.cell_sizes().address_cells * 4;
        let size_cells = bus.cell_sizes().size_cells * 4;
        let entry = child_cells + parent_cells + size_cells;
        base = ranges.value.chunks_exact(entry.max(4)).find_map(|e| {
            let child = number(e.get(..child_cells)?)?;
            let outer = number(e.get(child_cells..child_cells + parent_cells)?)?;
            let size = number(e.get(child_cells + parent_cells..)?)?;
            let offset = base.checked_sub(child)?;
            (offset < size).then(|| outer.checked_add(offset)).flatten()
        })?;
    }
    Region::new(base, region.size)
}

/// The path that `stdout-path` names: without options, with an alias resolved.
fn console_path<'a>(root: FdtNode<'_, 'a>) -> Option<&'a str> {
    let chosen = root.children().find(|n| n.name == "chosen")?;
    let value = text(chosen, "stdout-path").or_else(|| text(chosen, "linux,stdout-path"))?;
    let name = value.split(':').next()?;
    if name.starts_with('/') {
        return Some(name);
    }
    text(root.children().find(|n| n.name == "aliases")?, name)
}

/// Follows a path of node names from the root to a UART.
fn find_uart<'a>(root: FdtNode<'_, 'a>, path: &str) -> Option<Uart<'a>> {
    let mut node = root;
    let mut above = Path::new();
    for part in path.split('/').filter(|s| !s.is_empty()) {
        above.try_push(node).ok()?;
        node = node.children().find(|n| n.name == part || n.name.split('@').next() == Some(part))?;
    }
    let registers = registers(node, &above).next()?.ok()?;
    Some(Uart { compatible: node.property("compatible")?.value, registers })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn the_virt_board_is_understood() {
        let tree = sample::virt();
        let p = read(&tree).unwrap();
        assert_eq!(p.ram[..], [Region { base: 0x4000_0000, size: 0x4000_0000 }]);
        assert_eq!(p.cpus.iter().map(|c| c.mpidr).collect::<std::vec::Vec<_>>(), [0, 1]);
        assert_eq!((p.psci, p.gic), (Some(Conduit::Smc), Gic::V3));
        let uart = p.console.unwrap();
        assert!(uart.is("arm,pl011") && !uart.is("pl011"));
        assert_eq!(uart.registers, Region { base: 0x900_0000, size: 0x1000 });
        assert_eq!(p.kernel, Some(Region { base: 0x4400_0000, size: 0x200_0000 }));
        assert_eq!(p.bootargs, Some("console=ttyAMA0 rdinit=/init"));
        assert_eq!(p.ramdisk, Some(Region { base: 0x4800_0000, size: 0x10_0000 }));
        assert_eq!(p.reserved.len(), 1);
    }

    #[test]
    fn a_board_with_a_bus_has_its_addresses_translated_and_its_spin_table_found() {
        let tree = sample::raspi();
        let p = read(&tree).unwrap();
        assert_eq!(p.console.unwrap().registers.base, 0xfe20_1000);
        assert_eq!(p.cpus[1].release, Some(0xe0));
        assert_eq!(p.psci, None);
        assert_eq!(
            p.gic,
            Gic::V2 {
                gich: Some(Region { base: 0xff84_4000, size: 0x2000 }),
                gicv: Some(Region { base: 0xff84_6000, size: 0x2000 })
            }
        );
    }

    #[test]
    fn a_tree_without_memory_is_unusable() {
        assert_eq!(read(&sample::without_memory()), Err(Unusable::NoMemory));
    }
}
