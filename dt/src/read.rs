//! One walk over a checked tree, into [`Platform`].
//!
//! Why not the `fdt` crate: it reads each node's descendants again at every level, which made it half of all that EL2
//! executes in a boot. It serves the tests as a second opinion.

use arrayvec::ArrayVec;

use crate::check::MAX_DEPTH;
use crate::platform::{Conduit, Cpu, Device, Gic, Platform, Region, Reserved};
use crate::tokens::{Token, Tokens, reservations};

/// Why a well-formed tree cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// A value that makes no sense: a range that wraps, an address that no bus translates.
    Value,
    /// No RAM.
    NoMemory,
    /// No CPU.
    NoCpu,
    /// More ranges than there is room for.
    TooMany,
}

/// A node: its name, and its properties to look at.
#[derive(Clone, Debug)]
struct Node<'a> {
    name: &'a [u8],
    properties: Tokens<'a>,
}

/// The nodes from the root to the current one, which is last.
type Path<'a> = ArrayVec<Node<'a>, MAX_DEPTH>;

/// Reads a tree that [`check`](crate::check::check) has passed.
pub fn read(tree: &[u8]) -> Result<Platform<'_>, Unusable> {
    let tokens = Tokens::new(tree).ok_or(Unusable::Value)?;
    let mut p = Platform::default();
    for (base, size) in reservations(tree) {
        let region = Region::new(base, size).ok_or(Unusable::Value)?;
        p.reserved.try_push(Reserved { region, no_map: false }).map_err(|_| Unusable::TooMany)?;
    }
    let console = console_path(&tokens);
    let mut path = Path::new();
    let mut walk = tokens;
    while let Some(token) = walk.next() {
        match token {
            Token::Begin(name) => {
                path.try_push(Node { name, properties: walk.clone() }).map_err(|_| Unusable::TooMany)?;
                node_of_interest(&mut p, &path)?;
                if console.is_some_and(|c| is_at(&path, c)) {
                    p.console = device(&path);
                }
            }
            Token::End => {
                path.pop();
            }
            Token::Prop(..) => {}
        }
    }
    if p.ram.is_empty() {
        return Err(Unusable::NoMemory);
    }
    if p.cpus.is_empty() {
        return Err(Unusable::NoCpu);
    }
    p.ram.sort_unstable();
    Ok(p)
}

impl<'a> Node<'a> {
    fn property(&self, name: &str) -> Option<&'a [u8]> {
        self.properties.peek_prop(name.as_bytes())
    }

    /// A string property, without its NUL.
    fn text(&self, name: &str) -> Option<&'a str> {
        core::str::from_utf8(self.property(name)?.split(|&b| b == 0).next()?).ok()
    }

    /// A number of one or two cells.
    fn number(&self, name: &str) -> Option<u64> {
        number(self.property(name)?)
    }

    /// Bytes of an address and of a size of the node's children (DTSpec 2.3.5).
    fn cells(&self) -> (usize, usize) {
        let count = |name, default| self.number(name).map_or(default, |v| v as usize * 4);
        (count("#address-cells", 8), count("#size-cells", 4))
    }

    /// `status` is absent or says that the device works (DTSpec 2.3.4).
    fn is_enabled(&self) -> bool {
        matches!(self.text("status"), None | Some("okay" | "ok"))
    }
}

/// The two properties that say what a node is.
#[derive(Clone, Copy, Default)]
struct Nature<'a> {
    compatible: &'a [u8],
    device_type: &'a [u8],
}

impl<'a> Nature<'a> {
    /// One look at the node's properties: most nodes are none of ours.
    fn of(node: &Node<'a>) -> Self {
        let mut nature = Self::default();
        for token in node.properties.clone() {
            match token {
                Token::Prop(_, b"compatible", value) => nature.compatible = value,
                Token::Prop(_, b"device_type", value) => nature.device_type = value,
                Token::Prop(..) => {}
                Token::Begin(_) | Token::End => break,
            }
        }
        nature
    }

    fn is(&self, names: &[&str]) -> bool {
        self.compatible.split(|&b| b == 0).any(|c| names.iter().any(|n| n.as_bytes() == c))
    }
}

/// Takes from the last node of `path` what [`Platform`] wants of it.
fn node_of_interest<'a>(p: &mut Platform<'a>, path: &Path<'a>) -> Result<(), Unusable> {
    let Some(node) = path.last() else { return Ok(()) };
    let parent = match &path[..] {
        [_, parent, _] => parent.name,
        _ => b"",
    };
    let nature = Nature::of(node);
    if path.len() == 2 && nature.device_type == b"memory\0" && node.is_enabled() {
        for region in registers(path) {
            p.ram.try_push(region?).map_err(|_| Unusable::TooMany)?;
        }
    } else if parent == b"reserved-memory" {
        let no_map = node.property("no-map").is_some();
        for region in registers(path) {
            p.reserved.try_push(Reserved { region: region?, no_map }).map_err(|_| Unusable::TooMany)?;
        }
    } else if parent == b"cpus" && nature.device_type == b"cpu\0" {
        read_cpu(p, node, path)?;
    } else if parent == b"chosen" && nature.is(&["multiboot,module"]) {
        read_module(p, node, path, &nature);
    } else if path.len() == 2 && node.name == b"chosen" {
        if let (Some(start), Some(end)) = (node.number("linux,initrd-start"), node.number("linux,initrd-end"))
            && p.ramdisk.is_none()
            && start < end
        {
            p.ramdisk = Some(Region::between(start, end));
        }
        p.bootargs = p.bootargs.or(node.text("bootargs"));
    } else if nature.is(&["arm,psci-1.0", "arm,psci-0.2"]) {
        p.psci = match node.text("method") {
            Some("smc") => Some(Conduit::Smc),
            Some("hvc") => Some(Conduit::Hvc),
            _ => None,
        };
    } else if nature.is(&["arm,gic-v3"]) {
        p.gic = Gic::V3;
    } else if nature.is(&["arm,cortex-a15-gic", "arm,gic-400", "arm,cortex-a7-gic"]) {
        let mut frames = registers(path).skip(2).map(Result::ok);
        p.gic = Gic::V2 { gich: frames.next().flatten(), gicv: frames.next().flatten() };
    }
    Ok(())
}

fn read_cpu<'a>(p: &mut Platform<'a>, node: &Node<'a>, path: &Path<'a>) -> Result<(), Unusable> {
    let cells = path.iter().nth_back(1).map_or(8, |cpus| cpus.cells().0);
    let Some(mpidr) = node.property("reg").and_then(|r| number(r.get(..cells)?)) else { return Ok(()) };
    let spins = node.text("enable-method") == Some("spin-table");
    let release = node.number("cpu-release-addr").filter(|_| spins);
    // A disabled CPU that spins is there, and waits (DTSpec 3.8.1).
    let waits = release.is_some() && node.text("status") == Some("disabled");
    if !node.is_enabled() && !waits {
        return Ok(());
    }
    if release.is_some_and(|at| !at.is_multiple_of(8)) {
        return Err(Unusable::Value);
    }
    match p.cpus.try_push(Cpu { mpidr, release }) {
        // More than we manage stay with the firmware. In a spin table they would be there for the host to start at EL2.
        Err(_) if release.is_some() => Err(Unusable::TooMany),
        _ => Ok(()),
    }
}

/// A multiboot module (Xen's convention): `reg` is in the root's cells, `/chosen` has none of its own.
fn read_module<'a>(p: &mut Platform<'a>, node: &Node<'a>, path: &Path<'a>, nature: &Nature<'a>) {
    let Some(root) = path.first() else { return };
    let Some(Ok(region)) = regions(node, root.cells()).next() else { return };
    if nature.is(&["multiboot,kernel"]) {
        p.kernel = Some(region);
        p.bootargs = node.text("bootargs").or(p.bootargs);
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

/// The entries of `reg`, with these cell counts; an entry that wraps or is too wide for us is an error.
fn regions<'a>(
    node: &Node<'a>,
    (address, size): (usize, usize),
) -> impl Iterator<Item = Result<Region, Unusable>> + use<'a> {
    let value = node.property("reg").unwrap_or_default();
    let entry = address + size;
    value.chunks_exact(entry.max(4)).filter(move |_| size > 0 && address > 0).map(move |e| {
        let (base, size) = e.split_at(address);
        match (number(base), number(size)) {
            (Some(base), Some(size)) => Region::new(base, size).ok_or(Unusable::Value),
            _ => Err(Unusable::Value),
        }
    })
}

/// The entries of the last node's `reg` as CPU addresses: translated by the `ranges` of every bus above it.
fn registers<'x>(path: &'x [Node<'_>]) -> impl Iterator<Item = Result<Region, Unusable>> + use<'x> {
    let (above, node) = match path {
        [above @ .., node] => (above, Some(node)),
        [] => (path, None),
    };
    let cells = above.last().map_or((8, 4), Node::cells);
    let entries = node.into_iter().flat_map(move |node| regions(node, cells));
    entries.map(move |r| translate(r?, above).ok_or(Unusable::Value))
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

/// The path that `stdout-path` names: without options, with an alias resolved.
fn console_path<'a>(tokens: &Tokens<'a>) -> Option<&'a str> {
    let value = child_of_root(tokens, b"chosen")?.text("stdout-path")?;
    let name = value.split(':').next()?;
    if name.starts_with('/') { Some(name) } else { child_of_root(tokens, b"aliases")?.text(name) }
}

/// A node directly under the root.
fn child_of_root<'a>(tokens: &Tokens<'a>, wanted: &[u8]) -> Option<Node<'a>> {
    let mut walk = tokens.clone();
    let mut depth = 0;
    while let Some(token) = walk.next() {
        match token {
            Token::Begin(name) if depth == 1 && name == wanted => {
                return Some(Node { name, properties: walk });
            }
            Token::Begin(_) => depth += 1,
            Token::End => depth -= 1,
            Token::Prop(..) => {}
        }
    }
    None
}

/// Whether `path` leads to `wanted`, whose parts may leave unit addresses out.
fn is_at(path: &Path<'_>, wanted: &str) -> bool {
    let parts = wanted.split('/').filter(|s| !s.is_empty());
    let nodes = || path.iter().skip(1);
    parts.clone().count() == nodes().count()
        && parts.zip(nodes()).all(|(part, node)| {
            node.name == part.as_bytes() || node.name.split(|&b| b == b'@').next() == Some(part.as_bytes())
        })
}

/// The last node as a device.
fn device<'a>(path: &Path<'a>) -> Option<Device<'a>> {
    let node = path.last()?;
    let registers = registers(path).next()?.ok()?;
    let small = |name| node.number(name).and_then(|v| u32::try_from(v).ok());
    let (shift, width) = (small("reg-shift"), small("reg-io-width"));
    Some(Device { compatible: node.property("compatible")?, registers, shift, width })
}

/// The first device that works and is compatible with one of `names`, in a tree that [`check`](crate::check::check) has
/// passed.
pub fn find<'a>(tree: &'a [u8], names: &[&str]) -> Option<Device<'a>> {
    let mut walk = Tokens::new(tree)?;
    let mut path = Path::new();
    while let Some(token) = walk.next() {
        match token {
            Token::Begin(name) => {
                let node = Node { name, properties: walk.clone() };
                let wanted = Nature::of(&node).is(names) && node.is_enabled();
                path.try_push(node).ok()?;
                if wanted {
                    return device(&path);
                }
            }
            Token::End => {
                path.pop();
            }
            Token::Prop(..) => {}
        }
    }
    None
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
        let uart = p.console.unwrap();
        assert_eq!((uart.registers.base, uart.shift, uart.width), (0xfe20_1000, None, None));
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
    fn a_device_is_found_by_what_it_is_compatible_with() {
        let tree = sample::raspi();
        let uart = find(&tree, &["ns16550", "brcm,bcm2835-aux-uart"]).unwrap();
        assert_eq!(uart.registers, Region { base: 0xfe21_5040, size: 0x40 });
        assert_eq!((uart.shift, uart.width), (Some(2), Some(4)));
        assert_eq!(
            find(&tree, &["arm,primecell"]).unwrap().registers.base,
            0xfe20_1000,
            "the one that works"
        );
        assert_eq!(find(&tree, &["arm"]), None);
    }

    #[test]
    fn a_tree_without_memory_is_unusable() {
        assert_eq!(read(&sample::without_memory()), Err(Unusable::NoMemory));
    }

    #[test]
    fn the_fdt_crate_sees_the_same() {
        let tree = sample::virt();
        let other = fdt::Fdt::new(&tree).unwrap();
        let p = read(&tree).unwrap();
        let memory = other.memory().regions().next().unwrap();
        assert_eq!(p.ram[0].base, memory.starting_address as u64);
        assert_eq!(Some(p.ram[0].size as usize), memory.size);
        assert_eq!(p.cpus.len(), other.cpus().count());
        let stdout = other.chosen().stdout().unwrap();
        let registers = stdout.reg().unwrap().next().unwrap();
        assert_eq!(p.console.unwrap().registers.base, registers.starting_address as u64);
    }
}
