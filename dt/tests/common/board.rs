//! A board in a few words, turned into a device tree.
#![allow(clippy::unwrap_used, missing_docs, dead_code)]

use dtoolkit::ToPropertyValue;
use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use tenure_dt::Region;

#[derive(Clone, Debug)]
pub struct Memory {
    pub regions: Vec<Region>,
    pub usable: Option<Vec<Region>>,
    pub disabled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    NoMap,
    Kept,
    Reusable,
    Disabled,
    /// Size and alignment only, in these ranges.
    Dynamic(Option<Region>),
}

#[derive(Clone, Debug)]
pub struct Board {
    pub address_cells: u32,
    pub size_cells: u32,
    pub memory: Vec<Memory>,
    pub reserved: Vec<(Kind, Region)>,
    pub listed: Vec<Region>,
    pub usable_range: Option<Vec<Region>>,
    pub cpus: Vec<Option<u64>>,
    pub kernel: Option<Region>,
    pub initrd: Option<Region>,
    /// The RAM disk is a module, not two properties of `/chosen`.
    pub initrd_is_module: bool,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            address_cells: 2,
            size_cells: 2,
            memory: Vec::new(),
            reserved: Vec::new(),
            listed: Vec::new(),
            usable_range: None,
            cpus: vec![None],
            kernel: None,
            initrd: None,
            initrd_is_module: true,
        }
    }
}

fn node(name: &str) -> DeviceTreeNode {
    DeviceTreeNode::new_unchecked(name)
}

fn set(node: &mut DeviceTreeNode, name: &str, value: impl ToPropertyValue) {
    node.add_property(DeviceTreeProperty::new_unchecked(name, value));
}

impl Board {
    pub fn memory(mut self, regions: &[Region]) -> Self {
        self.memory.push(Memory { regions: regions.to_vec(), usable: None, disabled: false });
        self
    }

    fn cells(&self, regions: &[Region]) -> Vec<u8> {
        let number = |value: u64, cells: u32| {
            let bytes = value.to_be_bytes();
            bytes[8 - 4 * cells as usize..].to_vec()
        };
        let entry =
            |r: &Region| [number(r.base, self.address_cells), number(r.size, self.size_cells)].concat();
        regions.iter().flat_map(entry).collect()
    }

    pub fn tree(&self) -> Vec<u8> {
        let mut root = node("");
        set(&mut root, "compatible", "test,board");
        set(&mut root, "#address-cells", self.address_cells);
        set(&mut root, "#size-cells", self.size_cells);
        root.add_child(self.cpus());
        root.add_child(self.chosen());
        root.add_child(self.reserved_memory());
        for (index, memory) in self.memory.iter().enumerate() {
            let mut child = node(&format!("memory@{index}"));
            set(&mut child, "device_type", "memory");
            set(&mut child, "reg", &self.cells(&memory.regions)[..]);
            if let Some(usable) = &memory.usable {
                set(&mut child, "linux,usable-memory", &self.cells(usable)[..]);
            }
            if memory.disabled {
                set(&mut child, "status", "disabled");
            }
            root.add_child(child);
        }
        let mut tree = DeviceTree::new();
        tree.root = root;
        tree.memory_reservations =
            self.listed.iter().map(|r| MemoryReservation::new(r.base, r.size)).collect();
        tree.to_dtb()
    }

    fn cpus(&self) -> DeviceTreeNode {
        let mut cpus = node("cpus");
        set(&mut cpus, "#address-cells", 1u32);
        set(&mut cpus, "#size-cells", 0u32);
        for (index, release) in self.cpus.iter().enumerate() {
            let mut cpu = node(&format!("cpu@{index}"));
            set(&mut cpu, "device_type", "cpu");
            set(&mut cpu, "reg", index as u32);
            if let Some(release) = release {
                set(&mut cpu, "enable-method", "spin-table");
                set(&mut cpu, "cpu-release-addr", *release);
            }
            cpus.add_child(cpu);
        }
        cpus
    }

    fn chosen(&self) -> DeviceTreeNode {
        let mut chosen = node("chosen");
        if let Some(range) = &self.usable_range {
            set(&mut chosen, "linux,usable-memory-range", &self.cells(range)[..]);
        }
        if let Some(disk) = self.initrd.filter(|_| !self.initrd_is_module) {
            set(&mut chosen, "linux,initrd-start", disk.base);
            set(&mut chosen, "linux,initrd-end", disk.end());
        }
        let modules = [("kernel", self.kernel), ("ramdisk", self.initrd.filter(|_| self.initrd_is_module))];
        for (kind, region) in modules {
            let Some(region) = region else { continue };
            let mut module = node(&format!("{kind}@{:x}", region.base));
            set(&mut module, "compatible", format!("multiboot,module\0multiboot,{kind}").as_str());
            set(&mut module, "reg", &self.cells(&[region])[..]);
            chosen.add_child(module);
        }
        chosen
    }

    fn reserved_memory(&self) -> DeviceTreeNode {
        let mut parent = node("reserved-memory");
        set(&mut parent, "#address-cells", self.address_cells);
        set(&mut parent, "#size-cells", self.size_cells);
        set(&mut parent, "ranges", &[][..] as &[u8]);
        for (index, (kind, region)) in self.reserved.iter().enumerate() {
            let mut child = node(&format!("area{index}"));
            match kind {
                Kind::Dynamic(within) => {
                    set(&mut child, "size", region.size);
                    set(&mut child, "alignment", 0x20_0000u64);
                    if let Some(within) = within {
                        set(&mut child, "alloc-ranges", &self.cells(&[*within])[..]);
                    }
                }
                _ => set(&mut child, "reg", &self.cells(&[*region])[..]),
            }
            match kind {
                Kind::NoMap => set(&mut child, "no-map", &[][..] as &[u8]),
                Kind::Reusable => set(&mut child, "reusable", &[][..] as &[u8]),
                Kind::Disabled => set(&mut child, "status", "disabled"),
                Kind::Kept | Kind::Dynamic(_) => {}
            }
            parent.add_child(child);
        }
        parent
    }
}
