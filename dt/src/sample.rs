//! Trees for the tests, made with the library that edits them.

use dtoolkit::ToPropertyValue;
use dtoolkit::fdt_mut::FdtMut;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use std::vec::Vec;

fn node(name: &str) -> DeviceTreeNode {
    DeviceTreeNode::new_unchecked(name)
}

trait With {
    fn with<T: ToPropertyValue>(self, name: &str, value: T) -> Self;
    fn over(self, child: DeviceTreeNode) -> Self;
}

impl With for DeviceTreeNode {
    fn with<T: ToPropertyValue>(mut self, name: &str, value: T) -> Self {
        self.add_property(DeviceTreeProperty::new_unchecked(name, value));
        self
    }
    fn over(mut self, child: DeviceTreeNode) -> Self {
        self.add_child(child);
        self
    }
}

fn blob(root: DeviceTreeNode) -> Vec<u8> {
    let mut tree = DeviceTree::new();
    tree.root = root;
    tree.to_dtb()
}

fn virt_root() -> DeviceTreeNode {
    node("")
        .with("#address-cells", 2u32)
        .with("#size-cells", 2u32)
        .over(
            node("psci")
                .with("compatible", &b"arm,psci-1.0\0arm,psci-0.2\0arm,psci\0"[..])
                .with("method", "smc"),
        )
        .over(
            node("cpus")
                .with("#address-cells", 1u32)
                .with("#size-cells", 0u32)
                .over(
                    node("cpu@0").with("device_type", "cpu").with("reg", 0u32).with("enable-method", "psci"),
                )
                .over(
                    node("cpu@1").with("device_type", "cpu").with("reg", 1u32).with("enable-method", "psci"),
                ),
        )
        .over(
            node("timer")
                .with("compatible", &b"arm,armv8-timer\0arm,armv7-timer\0"[..])
                .with("interrupts", [1u32, 13, 0x104, 1, 14, 0x104, 1, 11, 0x104, 1, 10, 0x104]),
        )
        .over(
            node("intc@8000000")
                .with("compatible", "arm,gic-v3")
                .with("reg", [0u32, 0x800_0000, 0, 0x1_0000]),
        )
        .over(
            node("pl011@9000000")
                .with("compatible", &b"arm,pl011\0arm,primecell\0"[..])
                .with("reg", [0u32, 0x900_0000, 0, 0x1000]),
        )
        .over(
            node("reserved-memory")
                .with("#address-cells", 2u32)
                .with("#size-cells", 2u32)
                .with("ranges", &[][..] as &[u8])
                .over(
                    node("fw@7f000000")
                        .with("reg", [0u32, 0x7f00_0000, 0, 0x1000])
                        .with("no-map", &[][..] as &[u8]),
                ),
        )
        .over(
            node("chosen")
                .with("stdout-path", "/pl011@9000000")
                .over(
                    node("module@0x44000000")
                        .with("compatible", &b"multiboot,module\0multiboot,kernel\0"[..])
                        .with("reg", [0u32, 0x4400_0000, 0, 0x200_0000])
                        .with("bootargs", "console=ttyAMA0 rdinit=/init"),
                )
                .over(
                    node("module@0x48000000")
                        .with("compatible", &b"multiboot,module\0multiboot,ramdisk\0"[..])
                        .with("reg", [0u32, 0x4800_0000, 0, 0x10_0000]),
                ),
        )
}

/// QEMU's `virt`, in small.
pub fn virt() -> Vec<u8> {
    blob(
        virt_root().over(
            node("memory@40000000")
                .with("device_type", "memory")
                .with("reg", [0u32, 0x4000_0000, 0, 0x4000_0000]),
        ),
    )
}

/// [`virt`], with a timer below a bus whose interrupts are these words.
pub fn timer_below_a_bus(interrupts: &[u32]) -> Vec<u8> {
    let bytes: Vec<u8> = interrupts.iter().flat_map(|word| word.to_be_bytes()).collect();
    let mut tree = DeviceTree::from_fdt(&dtoolkit::fdt::Fdt::new(&virt()).unwrap());
    tree.root.remove_child("timer");
    tree.root.add_child(
        node("soc").over(
            node("timer").with("compatible", "arm,armv8-timer").with("interrupts-extended", &bytes[..]),
        ),
    );
    tree.to_dtb()
}

/// [`virt`], with an IOMMU that is disabled and one that is not.
pub fn with_iommus() -> Vec<u8> {
    let mut tree = DeviceTree::from_fdt(&dtoolkit::fdt::Fdt::new(&virt()).unwrap());
    let iommu =
        |name: &str, compatible: &str| node(name).with("compatible", compatible).with("#iommu-cells", 1u32);
    tree.root.add_child(iommu("iommu@1", "arm,mmu-500").with("status", "disabled"));
    tree.root.add_child(iommu("iommu@2", "arm,smmu-v3"));
    tree.to_dtb()
}

/// [`virt`], with NOPs where a property and a node have been taken out.
pub fn virt_with_nops() -> Vec<u8> {
    let mut tree = DeviceTree::from_fdt(&dtoolkit::fdt::Fdt::new(&virt()).unwrap());
    tree.root.child_mut("psci").unwrap().add_property(DeviceTreeProperty::new_unchecked("gone", 1u32));
    tree.root.child_mut("cpus").unwrap().add_child(node("gone"));
    let mut dtb = tree.to_dtb();
    let mut fdt = FdtMut::from_slice(&mut dtb).unwrap();
    assert!(fdt.find_node_mut("/psci").unwrap().remove_property("gone"));
    assert!(fdt.find_node_mut("/cpus").unwrap().remove_child("gone"));
    dtb
}

/// [`virt`] without RAM.
pub fn without_memory() -> Vec<u8> {
    blob(virt_root())
}

/// A Raspberry Pi 4, in small: a bus with `ranges`, an alias for the console, spin tables, GICv2.
pub fn raspi() -> Vec<u8> {
    let cpu = |name: &str, reg: u32, release: u64| {
        node(name)
            .with("device_type", "cpu")
            .with("reg", reg)
            .with("enable-method", "spin-table")
            .with("cpu-release-addr", release)
    };
    let soc = node("soc")
        .with("#address-cells", 1u32)
        .with("#size-cells", 1u32)
        .with("ranges", [0x7e00_0000u32, 0, 0xfe00_0000, 0x180_0000, 0x4000_0000, 0, 0xff80_0000, 0x80_0000])
        .over(
            node("serial@7e201000")
                .with("compatible", &b"arm,pl011\0arm,primecell\0"[..])
                .with("reg", [0x7e20_1000u32, 0x200]),
        )
        .over(
            node("serial@7e215040")
                .with("compatible", "brcm,bcm2835-aux-uart")
                .with("reg-shift", 2u32)
                .with("reg-io-width", 4u32)
                .with("reg", [0x7e21_5040u32, 0x40]),
        )
        .over(
            node("serial@7e201400")
                .with("compatible", &b"arm,pl011\0arm,primecell\0"[..])
                .with("status", "disabled")
                .with("reg", [0x7e20_1400u32, 0x200]),
        )
        .over(node("interrupt-controller@40041000").with("compatible", "arm,gic-400").with(
            "reg",
            [0x4004_1000u32, 0x1000, 0x4004_2000, 0x2000, 0x4004_4000, 0x2000, 0x4004_6000, 0x2000],
        ));
    blob(
        node("")
            .with("#address-cells", 2u32)
            .with("#size-cells", 1u32)
            .over(node("memory@0").with("device_type", "memory").with("reg", [0u32, 0, 0x4000_0000]))
            .over(
                node("cpus")
                    .with("#address-cells", 1u32)
                    .with("#size-cells", 0u32)
                    .with("enable-method", "brcm,bcm2836-smp")
                    .over(cpu("cpu@0", 0, 0xd8))
                    .over(cpu("cpu@1", 1, 0xe0)),
            )
            .over(node("aliases").with("serial0", "/soc/serial@7e201000"))
            .over(node("chosen").with("stdout-path", "serial0:115200n8"))
            .over(soc),
    )
}
