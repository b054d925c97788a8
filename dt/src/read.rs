//! One walk over a checked tree, into [`Platform`].
//!
//! Why not the `fdt` crate: it reads each node's descendants again at every level, which made it half of all that EL2
//! executes in a boot. It serves the tests as a second opinion.

mod memory;
mod node;
mod reg;

use node::{Nature, Node, Path, number};
use reg::{entries, registers};

use crate::platform::{Claim, Conduit, Cpu, Device, Gic, LIMIT, Platform, Region};
use crate::refusal::{Refusal, Why};
use crate::tokens::{Token, Tokens, reservations};

/// Reads a tree that [`check`](crate::check::check) has passed.
///
/// # Errors
/// The node and property that make no sense, or that say what Tenure cannot manage.
pub fn read(tree: &[u8]) -> Result<Platform<'_>, Refusal<'_>> {
    let unreadable = Refusal::new("/", "", Why::Unreadable);
    let tokens = Tokens::new(tree).ok_or(unreadable)?;
    let mut p = Platform::default();
    for (base, size) in reservations(tree) {
        let refuse = |why| Refusal::new("/memreserve/", "", why);
        let region = Region::new(base, size).ok_or(refuse(Why::Wraps))?;
        memory::reserve(&mut p, region, Claim::Listed, "/memreserve/").map_err(refuse)?;
    }
    let console = console_path(&tokens);
    let mut path = Path::new();
    let mut walk = tokens.clone();
    while let Some(token) = walk.next() {
        match token {
            Token::Begin(name) => {
                path.try_push(Node { name, properties: walk.clone() }).map_err(|_| unreadable)?;
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
    memory::normalise(&mut p);
    if let (Some(root), Some(chosen)) = (root(&tokens), child_of_root(&tokens, b"chosen")) {
        memory::usable_range(&mut p, &root, &chosen)?;
    }
    if p.ram.is_empty() {
        return Err(Refusal::new("memory", "reg", Why::Missing));
    }
    if p.cpus.is_empty() {
        return Err(Refusal::new("cpus", "reg", Why::Missing));
    }
    Ok(p)
}

/// Takes from the last node of `path` what [`Platform`] wants of it.
fn node_of_interest<'a>(p: &mut Platform<'a>, path: &Path<'a>) -> Result<(), Refusal<'a>> {
    let Some(node) = path.last() else { return Ok(()) };
    let parent = match &path[..] {
        [_, parent, _] => parent.name,
        _ => b"",
    };
    let nature = Nature::of(node);
    if nature.is_iommu && node.is_enabled() {
        p.iommu = p.iommu.or(node.text("compatible"));
    }
    if path.len() == 1 {
        p.compatible = node.property("compatible").unwrap_or_default();
    } else if memory::is_memory(path, &nature) {
        memory::memory(p, path)?;
    } else if parent == b"reserved-memory" {
        memory::reserved(p, path)?;
    } else if parent == b"cpus" && nature.device_type == b"cpu\0" {
        read_cpu(p, node, path)?;
    } else if parent == b"chosen" && nature.is(&["multiboot,module"]) {
        read_module(p, node, path, &nature)?;
    } else if path.len() == 2 && node.name == b"chosen" {
        read_chosen(p, node);
    } else if nature.is(&["arm,psci-1.0", "arm,psci-0.2"]) {
        p.psci = match node.text("method") {
            Some("smc") => Some(Conduit::Smc),
            Some("hvc") => Some(Conduit::Hvc),
            _ => None,
        };
    } else if nature.is(&["arm,gic-v3"]) && node.is_enabled() {
        p.gic = Gic::V3;
    } else if nature.is(&GIC_V2) && node.is_enabled() {
        let mut frames = registers(path).skip(2).map(Result::ok);
        p.gic = Gic::V2 { gich: frames.next().flatten(), gicv: frames.next().flatten() };
    }
    Ok(())
}

/// GICv2s; one without the virtualization extension has two `reg` entries only.
const GIC_V2: [&str; 5] =
    ["arm,gic-400", "arm,cortex-a15-gic", "arm,cortex-a7-gic", "arm,cortex-a9-gic", "qcom,msm-qgic2"];

fn read_chosen<'a>(p: &mut Platform<'a>, node: &Node<'a>) {
    if let (Some(start), Some(end)) = (node.number("linux,initrd-start"), node.number("linux,initrd-end"))
        && p.ramdisk.is_none()
        && start < end
    {
        p.ramdisk = Some(Region::between(start, end));
    }
    p.bootargs = p.bootargs.or(node.text("bootargs"));
}

fn read_cpu<'a>(p: &mut Platform<'a>, node: &Node<'a>, path: &Path<'a>) -> Result<(), Refusal<'a>> {
    let cells = path.iter().nth_back(1).map_or(8, |cpus| cpus.cells().0);
    let Some(mpidr) = node.property("reg").and_then(|r| number(r.get(..cells)?)) else { return Ok(()) };
    let spins = node.text("enable-method") == Some("spin-table");
    let release = node.number("cpu-release-addr").filter(|_| spins);
    // A disabled CPU that spins is there, and waits (DTSpec 3.8.1).
    let waits = release.is_some() && node.text("status") == Some("disabled");
    if !node.is_enabled() && !waits {
        return Ok(());
    }
    let refuse = |why| Refusal::new(node.title(), "cpu-release-addr", why);
    if release.is_some_and(|at| !at.is_multiple_of(8) || at > LIMIT) {
        return Err(refuse(Why::Address));
    }
    match p.cpus.try_push(Cpu { mpidr, release }) {
        // More than we manage stay with the firmware. In a spin table they would be there for the host to start at EL2.
        Err(_) if release.is_some() => Err(refuse(Why::TooMany)),
        _ => Ok(()),
    }
}

/// A multiboot module (Xen's convention): `reg` is in the root's cells, `/chosen` has none of its own.
fn read_module<'a>(
    p: &mut Platform<'a>,
    node: &Node<'a>,
    path: &Path<'a>,
    nature: &Nature<'a>,
) -> Result<(), Refusal<'a>> {
    let (Some(root), Some(reg)) = (path.first(), node.property("reg")) else { return Ok(()) };
    let region = match entries(reg, root.cells()).next() {
        Some(region) => region.map_err(|why| Refusal::new(node.title(), "reg", why))?,
        None => return Ok(()),
    };
    if nature.is(&["multiboot,kernel"]) {
        p.kernel = Some(region);
        p.bootargs = node.text("bootargs").or(p.bootargs);
    } else if nature.is(&["multiboot,ramdisk"]) {
        p.ramdisk = Some(region);
    }
    Ok(())
}

/// The path that `stdout-path` names: without options, with an alias resolved.
fn console_path<'a>(tokens: &Tokens<'a>) -> Option<&'a str> {
    let value = child_of_root(tokens, b"chosen")?.text("stdout-path")?;
    let name = value.split(':').next()?;
    if name.starts_with('/') { Some(name) } else { child_of_root(tokens, b"aliases")?.text(name) }
}

/// The root node.
fn root<'a>(tokens: &Tokens<'a>) -> Option<Node<'a>> {
    let mut walk = tokens.clone();
    match walk.next()? {
        Token::Begin(name) => Some(Node { name, properties: walk }),
        Token::Prop(..) | Token::End => None,
    }
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
    let is_it = |node: &Node<'_>| Nature::of(node).is(names) && node.is_enabled();
    first(tree, |path| path.last().is_some_and(is_it))
}

/// The UART that `stdout-path` names, in a tree that has passed but that [`read`] may refuse: somebody must be told why.
pub fn console(tree: &[u8]) -> Option<Device<'_>> {
    let wanted = console_path(&Tokens::new(tree)?)?;
    first(tree, |path| is_at(path, wanted))
}

/// The first node that is meant, as a device.
fn first<'a>(tree: &'a [u8], is_meant: impl Fn(&Path<'a>) -> bool) -> Option<Device<'a>> {
    let mut walk = Tokens::new(tree)?;
    let mut path = Path::new();
    while let Some(token) = walk.next() {
        match token {
            Token::Begin(name) => {
                path.try_push(Node { name, properties: walk.clone() }).ok()?;
                if is_meant(&path) {
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
        assert_eq!(p.iommu, None);
        let tree = sample::with_iommus();
        assert_eq!(read(&tree).unwrap().iommu, Some("arm,smmu-v3"));
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
        assert_eq!(console(&tree), read(&tree).unwrap().console);
    }

    #[test]
    fn a_tree_without_memory_is_unusable() {
        let tree = sample::without_memory();
        let refusal = read(&tree).unwrap_err();
        assert_eq!(refusal, Refusal::new("memory", "reg", Why::Missing));
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
