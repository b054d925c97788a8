//! The tree that the host gets: the board's, minus what is Tenure's, plus what Tenure offers.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node, Property, ToPropertyValue};

use crate::platform::{Conduit, Platform, Region};

/// `compatible` of the node that the driver binds to.
pub const HYPERVISOR: &str = "tenure,hypervisor-1";

/// What Tenure decided, for the host to find in its tree.
#[derive(Clone, Debug, Default)]
pub struct HostView<'a> {
    /// Tenure's own memory: reserved, and never to be mapped.
    pub hidden: &'a [Region],
    /// The host's initial RAM disk, where it lies now.
    pub ramdisk: Option<Region>,
    /// The interrupt of the `/hypervisor` node, in the cells of the root's interrupt parent.
    pub interrupt: Option<[u32; 3]>,
}

/// Why a tree cannot be edited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CannotEdit {
    /// The tree could not be read again.
    Parser,
    /// A cell count in which an address of ours cannot be written.
    Cells,
}

/// Builds the host's tree, as a blob.
pub fn host_tree(tree: &[u8], platform: &Platform<'_>, view: &HostView<'_>) -> Result<Vec<u8>, CannotEdit> {
    let fdt = Fdt::new(tree).map_err(|_| CannotEdit::Parser)?;
    let mut tree = DeviceTree::from_fdt(&fdt);
    reserve(&mut tree.root, view.hidden)?;
    offer_psci(&mut tree.root, platform.psci.unwrap_or(Conduit::Hvc));
    physical_timer_only(&mut tree.root);
    choose(&mut tree.root, platform, view);
    let mut node = DeviceTreeNode::new_unchecked("hypervisor");
    set(&mut node, "compatible", HYPERVISOR);
    if let Some(interrupt) = view.interrupt {
        set(&mut node, "interrupts", interrupt);
    }
    tree.root.add_child(node);
    Ok(tree.to_dtb())
}

/// Sets a property, whether it was there or not.
fn set<T: ToPropertyValue>(node: &mut DeviceTreeNode, name: &str, value: T) {
    match node.property_mut(name) {
        Some(p) => p.set_value(value),
        None => node.add_property(DeviceTreeProperty::new_unchecked(name, value)),
    }
}

/// A child of the root by its name, made when it is not there, for `change`.
fn with_child<R>(node: &mut DeviceTreeNode, name: &str, change: impl FnOnce(&mut DeviceTreeNode) -> R) -> R {
    change(node.add_child_mut(DeviceTreeNode::new_unchecked(name)))
}

fn cells(node: &DeviceTreeNode, name: &str, default: u32) -> u32 {
    let value = node.property(name).and_then(|p| <[u8; 4]>::try_from(p.value()).ok());
    value.map_or(default, u32::from_be_bytes)
}

/// Appends `value` in `cells` cells; fails where it does not fit.
fn push_cells(out: &mut Vec<u32>, value: u64, cells: u32) -> Result<(), CannotEdit> {
    let (high, low) = ((value >> 32) as u32, value as u32);
    match cells {
        1 if high == 0 => out.push(low),
        2 => out.extend([high, low]),
        _ => return Err(CannotEdit::Cells),
    }
    Ok(())
}

/// `/reserved-memory/tenure@…` with `no-map` for each hidden region (DTSpec 3.5).
fn reserve(root: &mut DeviceTreeNode, hidden: &[Region]) -> Result<(), CannotEdit> {
    let (address, size) = (cells(root, "#address-cells", 2), cells(root, "#size-cells", 1));
    with_child(root, "reserved-memory", |node| reserve_in(node, hidden, address, size))
}

/// As [`reserve`]; the cell counts are the root's, used where the node has none.
fn reserve_in(
    node: &mut DeviceTreeNode,
    hidden: &[Region],
    address: u32,
    size: u32,
) -> Result<(), CannotEdit> {
    if node.property("#address-cells").is_none() || node.property("#size-cells").is_none() {
        set(node, "#address-cells", address);
        set(node, "#size-cells", size);
    }
    if node.property("ranges").is_none() {
        set(node, "ranges", &[][..] as &[u8]);
    }
    let (address, size) = (cells(node, "#address-cells", 2), cells(node, "#size-cells", 1));
    for region in hidden {
        let mut reg = Vec::new();
        push_cells(&mut reg, region.base, address)?;
        push_cells(&mut reg, region.size, size)?;
        let mut own = DeviceTreeNode::new_unchecked(format!("tenure@{:x}", region.base));
        set(&mut own, "reg", &reg[..]);
        set(&mut own, "no-map", &[][..] as &[u8]);
        node.add_child(own);
    }
    Ok(())
}

/// PSCI for every CPU, by the conduit that the board had, or by HVC.
fn offer_psci(root: &mut DeviceTreeNode, conduit: Conduit) {
    with_child(root, "psci", |psci| {
        set(psci, "compatible", &b"arm,psci-1.0\0arm,psci-0.2\0"[..]);
        set(psci, "method", if conduit == Conduit::Smc { "smc" } else { "hvc" });
    });
    let Some(cpus) = root.child_mut("cpus") else { return };
    cpus.remove_property("enable-method");
    for cpu in cpus.children_mut() {
        if cpu.property("device_type").is_some_and(|p| p.value() == b"cpu\0") {
            cpu.remove_property("cpu-release-addr");
            set(cpu, "enable-method", "psci");
        }
    }
}

/// The timer node with the physical timer's interrupt only, so that the host leaves the virtual one to guests.
fn physical_timer_only(root: &mut DeviceTreeNode) {
    for node in root.children_mut() {
        let is_timer = node.property("compatible").is_some_and(|p| {
            p.value().split(|&b| b == 0).any(|c| c == b"arm,armv8-timer" || c == b"arm,armv7-timer")
        });
        if !is_timer {
            continue;
        }
        let Some(phys) = physical_interrupt(node) else { continue };
        set(node, "interrupts", &phys[..]);
        set(node, "interrupt-names", "phys");
    }
}

/// The specifier of the non-secure physical timer's interrupt: by name, or the second of four or five.
fn physical_interrupt(node: &DeviceTreeNode) -> Option<Vec<u8>> {
    let all = node.property("interrupts")?.value().to_vec();
    let (index, count) = match node.property("interrupt-names") {
        Some(names) => {
            let names: Vec<&[u8]> = names.value().split(|&b| b == 0).filter(|n| !n.is_empty()).collect();
            (names.iter().position(|&n| n == b"phys")?, names.len())
        }
        None if all.len().is_multiple_of(5) && !all.len().is_multiple_of(4 * 4) => (1, 5),
        None => (1, 4),
    };
    let len = all.len().checked_div(count)?;
    all.get(index * len..(index + 1) * len).map(<[u8]>::to_vec).filter(|v| !v.is_empty())
}

/// `/chosen`: the kernel's own arguments and RAM disk; the modules are used up.
fn choose(root: &mut DeviceTreeNode, platform: &Platform<'_>, view: &HostView<'_>) {
    with_child(root, "chosen", |chosen| choose_in(chosen, platform, view));
}

fn choose_in(chosen: &mut DeviceTreeNode, platform: &Platform<'_>, view: &HostView<'_>) {
    let modules: Vec<String> = chosen
        .children()
        .filter(|n| n.property("compatible").is_some_and(|p| p.value().starts_with(b"multiboot,")))
        .map(|n| String::from(n.name()))
        .collect();
    for name in modules {
        chosen.remove_child(&name);
    }
    if let Some(args) = platform.bootargs {
        set(chosen, "bootargs", args);
    }
    if let Some(disk) = view.ramdisk {
        set(chosen, "linux,initrd-start", disk.base);
        set(chosen, "linux,initrd-end", disk.end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    const OWN: Region = Region { base: 0x4020_0000, size: 0x40_0000 };

    fn edited(tree: &[u8]) -> Vec<u8> {
        let platform = crate::read::read(tree).unwrap();
        let view = HostView { hidden: &[OWN], ramdisk: platform.ramdisk, interrupt: None };
        let out = host_tree(tree, &platform, &view).unwrap();
        crate::check(&out).unwrap();
        out
    }

    fn value(tree: &[u8], path: &str, name: &str) -> Option<Vec<u8>> {
        Some(fdt::Fdt::new(tree).unwrap().find_node(path)?.property(name)?.value.to_vec())
    }

    #[test]
    fn own_memory_is_reserved_and_not_mapped() {
        let out = edited(&sample::virt());
        let p = crate::read::read(&out).unwrap();
        assert!(p.reserved.iter().any(|r| r.region == OWN && r.no_map));
        assert_eq!(p.ram[0].size, 0x4000_0000);
    }

    #[test]
    fn the_host_is_told_of_the_hypervisor_and_loses_the_modules() {
        let out = edited(&sample::virt());
        assert_eq!(value(&out, "/hypervisor", "compatible").unwrap(), b"tenure,hypervisor-1\0");
        let p = crate::read::read(&out).unwrap();
        assert_eq!(p.kernel, None);
        assert_eq!(p.bootargs, Some("console=ttyAMA0 rdinit=/init"));
        assert_eq!(p.ramdisk, Some(Region { base: 0x4800_0000, size: 0x10_0000 }));
        assert!(p.console.is_some());
    }

    #[test]
    fn only_the_physical_timer_is_left() {
        let out = edited(&sample::virt());
        assert_eq!(value(&out, "/timer", "interrupts").unwrap(), [0, 0, 0, 1, 0, 0, 0, 14, 0, 0, 1, 4]);
        assert_eq!(value(&out, "/timer", "interrupt-names").unwrap(), b"phys\0");
    }

    #[test]
    fn a_board_without_psci_gets_it_by_hvc_and_loses_its_spin_table() {
        let out = edited(&sample::raspi());
        assert_eq!(value(&out, "/psci", "method").unwrap(), b"hvc\0");
        let p = crate::read::read(&out).unwrap();
        assert_eq!(p.cpus[1].release, None);
        assert_eq!(value(&out, "/cpus/cpu@1", "enable-method").unwrap(), b"psci\0");
    }

    #[test]
    fn a_board_with_psci_keeps_its_conduit() {
        assert_eq!(value(&edited(&sample::virt()), "/psci", "method").unwrap(), b"smc\0");
    }
}
