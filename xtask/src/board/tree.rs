//! A board's device tree file, changed for QEMU: what QEMU lacks disabled, another console, modules in `/chosen`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node, Property};

use super::Board;
use crate::paths;

/// A file that the boot loader puts into memory for the host.
pub struct Module<'a> {
    /// What it is to the host: `multiboot,kernel` or `multiboot,ramdisk`.
    pub kind: &'a str,
    /// Where it is loaded.
    pub address: u64,
    /// Its size in bytes.
    pub size: u64,
    /// The kernel's command line.
    pub arguments: Option<&'a str>,
}

/// Writes a board's tree, changed as its data says and with these modules, to `file`.
///
/// # Errors
/// If the board has no tree, the tree cannot be read, or it has no such node.
pub fn write(board: &Board, modules: &[Module<'_>], file: &Path) -> Result<()> {
    let name = board.qemu.tree.as_ref().with_context(|| format!("{} has no qemu.tree", board.name))?;
    let source = paths::board_trees()?.join(name);
    let blob = fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
    let tree = edit(&blob, board, modules).with_context(|| format!("cannot change {}", source.display()))?;
    fs::write(file, tree).with_context(|| format!("cannot write {}", file.display()))
}

fn edit(blob: &[u8], board: &Board, modules: &[Module<'_>]) -> Result<Vec<u8>> {
    let mut tree = parse(blob)?;
    let compatible = tree.root.property("compatible").context("its root is compatible with nothing")?;
    let is = |name: &[u8]| name == board.compatible.as_bytes();
    ensure!(compatible.value().split(|&byte| byte == 0).any(is), "it is not of a {}", board.compatible);
    for path in &board.qemu.disable {
        let node = tree.find_node_mut(path).with_context(|| format!("it has no node {path}"))?;
        node.add_property(property("status", "disabled")?);
    }
    let cells = (cell(&tree, "#address-cells")?, cell(&tree, "#size-cells")?);
    if tree.find_node("/chosen").is_none() {
        tree.root.add_child(DeviceTreeNode::new("chosen")?);
    }
    let chosen = tree.find_node_mut("/chosen").context("it has no node /chosen")?;
    if let Some(stdout) = &board.qemu.stdout {
        chosen.add_property(property("stdout-path", stdout.as_str())?);
    }
    for module in modules {
        chosen.add_child(node(module, cells)?);
    }
    Ok(tree.to_dtb())
}

/// Linux's trees have names longer than the specification allows, which [`Fdt::new`] refuses; ours is the check of form.
fn parse(blob: &[u8]) -> Result<DeviceTree> {
    tenure_dt::check(blob).map_err(|why| anyhow::anyhow!("it is no device tree: {why:?}"))?;
    Ok(DeviceTree::from_fdt(&Fdt::new_unchecked(blob)))
}

fn node(module: &Module<'_>, (address, size): (u32, u32)) -> Result<DeviceTreeNode> {
    let mut node = DeviceTreeNode::new(format!("module@{:x}", module.address))?;
    node.add_property(property("compatible", vec![module.kind, "multiboot,module"])?);
    let reg = [in_cells(module.address, address)?, in_cells(module.size, size)?].concat();
    node.add_property(property("reg", reg)?);
    if let Some(arguments) = module.arguments {
        node.add_property(property("bootargs", arguments)?);
    }
    Ok(node)
}

fn property<T: dtoolkit::ToPropertyValue>(name: &str, value: T) -> Result<DeviceTreeProperty> {
    Ok(DeviceTreeProperty::new(name, value)?)
}

fn cell(tree: &DeviceTree, name: &str) -> Result<u32> {
    let property = tree.root.property(name).with_context(|| format!("its root has no {name}"))?;
    let bytes = property.value().try_into().with_context(|| format!("its root's {name} is no cell"))?;
    Ok(u32::from_be_bytes(bytes))
}

fn in_cells(value: u64, cells: u32) -> Result<Vec<u32>> {
    let (high, low) = ((value >> 32) as u32, value as u32);
    ensure!(cells == 2 || cells == 1 && high == 0, "{value:#x} does not fit in {cells} cells");
    Ok(if cells == 2 { vec![high, low] } else { vec![low] })
}

/// How many cells the root of a tree file gives an address and a size.
///
/// # Errors
/// If it cannot be read.
pub fn root_cells(file: &Path) -> Result<(u32, u32)> {
    let blob = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let tree = parse(&blob).with_context(|| format!("cannot read {}", file.display()))?;
    Ok((cell(&tree, "#address-cells")?, cell(&tree, "#size-cells")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RASPI: &str = include_str!("../../../boards/raspi4b/board.toml");

    /// A tree with a `/chosen` and the nodes that the board disables; sizes in one cell.
    fn sample(board: &Board) -> Vec<u8> {
        let mut tree = DeviceTree::new();
        tree.root.add_property(property("#address-cells", 2u32).unwrap());
        tree.root.add_property(property("#size-cells", 1u32).unwrap());
        tree.root.add_property(property("compatible", vec!["x,y", board.compatible.as_str()]).unwrap());
        tree.root.add_child(DeviceTreeNode::new("soc").unwrap());
        for path in &board.qemu.disable {
            let name = path.strip_prefix("/soc/").unwrap();
            tree.root.child_mut("soc").unwrap().add_child(DeviceTreeNode::new(name).unwrap());
        }
        tree.to_dtb()
    }

    fn value(blob: &[u8], path: &str, name: &str) -> Vec<u8> {
        let tree = DeviceTree::from_fdt(&Fdt::new(blob).unwrap());
        tree.find_node(path).unwrap().property(name).unwrap().value().to_vec()
    }

    #[test]
    fn modules_are_named_in_the_roots_cells() {
        let board = Board::parse("x", RASPI).unwrap();
        let kernel =
            Module { kind: "multiboot,kernel", address: 0x1_5000_0000, size: 0x1234, arguments: Some("a b") };
        let out = edit(&sample(&board), &board, &[kernel]).unwrap();
        let node = "/chosen/module@150000000";
        assert_eq!(value(&out, node, "reg"), [0, 0, 0, 1, 0x50, 0, 0, 0, 0, 0, 0x12, 0x34]);
        assert_eq!(value(&out, node, "compatible"), b"multiboot,kernel\0multiboot,module\0");
        assert_eq!(value(&out, node, "bootargs"), b"a b\0");
        assert_eq!(value(&out, "/chosen", "stdout-path"), b"serial0:115200n8\0");
        assert_eq!(value(&out, "/soc/clock@7ef00000", "status"), b"disabled\0");
    }

    #[test]
    fn what_does_not_fit_its_cells_is_refused() {
        let board = Board::parse("x", RASPI).unwrap();
        let big = Module { kind: "multiboot,ramdisk", address: 0, size: 1 << 32, arguments: None };
        assert!(edit(&sample(&board), &board, &[big]).is_err());
    }

    #[test]
    fn the_tree_of_another_board_is_refused() {
        let board = Board::parse("x", RASPI).unwrap();
        let other = Board { compatible: "xlnx,zynqmp".into(), ..board.clone() };
        let why = format!("{:#}", edit(&sample(&other), &board, &[]).unwrap_err());
        assert!(why.contains("brcm,bcm2711"), "{why}");
    }

    #[test]
    fn names_longer_than_the_specification_allows_are_read() {
        let mut tree = DeviceTree::new();
        let name = "a-name-of-more-than-thirty-one-letters";
        tree.root.add_property(DeviceTreeProperty::new_unchecked(name, 1u32));
        assert!(parse(&tree.to_dtb()).unwrap().root.property(name).is_some());
        assert!(parse(b"no tree").is_err());
    }

    #[test]
    fn a_node_that_is_not_there_is_named() {
        let board = Board::parse("x", RASPI).unwrap();
        let mut tree = DeviceTree::new();
        tree.root.add_property(property("compatible", board.compatible.as_str()).unwrap());
        let why = format!("{:#}", edit(&tree.to_dtb(), &board, &[]).unwrap_err());
        assert!(why.contains("/soc/interrupt-controller@7ef00100"), "{why}");
    }
}
