//! Every device tree that Debian ships for arm64, put through everything that boot does.
//!
//! The trees are those of Debian's kernel package, which `cargo xtask setup` brings; `cargo xtask test` names their folder
//! in `TENURE_DTBS` (empty: none are looked at). Without it they are looked for in the cache; where they are not there
//! either, the test says so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{KERNEL, MIB, PAGE, boot, load_image, own, wrong};
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node, Property};
use tenure_dt::place::find_free;
use tenure_dt::{Conduit, Gic, Platform, Region, check, read};

/// RAM that firmware would write into a tree that has none: where the memory node's name says, else where most have it.
const USUAL_RAM: u64 = 0x4000_0000;
const RAM_SIZE: u64 = 1 << 30;

fn folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("TENURE_DTBS") {
        return Some(PathBuf::from(folder)).filter(|folder| !folder.as_os_str().is_empty());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("tenure/kernel-6.12-full/dtbs")).filter(|folder| folder.is_dir())
}

fn trees(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "dtb") {
                all.push(path);
            }
        }
    }
    all.sort();
    all
}

/// A number in so many cells.
fn cells(value: u64, count: u32) -> Vec<u8> {
    value.to_be_bytes()[8 - 4 * count.min(2) as usize..].to_vec()
}

fn property(node: &mut DeviceTreeNode, name: &str, value: &[u8]) {
    node.add_property(DeviceTreeProperty::new_unchecked(name, value));
}

fn count_of(root: &DeviceTreeNode, name: &str, default: u32) -> u32 {
    let found = root.properties().find(|p| p.name() == name);
    found.map_or(default, |p| u32::from_be_bytes(p.value().try_into().unwrap()))
}

/// What firmware does to the tree before it starts an operating system: RAM where there is none.
fn with_memory(tree: &mut DeviceTree) -> bool {
    let root = &mut tree.root;
    let (address, size) = (count_of(root, "#address-cells", 2), count_of(root, "#size-cells", 1));
    let is_memory =
        |n: &DeviceTreeNode| n.properties().any(|p| p.name() == "device_type" && p.value() == b"memory\0");
    let has_ram = |n: &DeviceTreeNode| {
        let entry = 4 * (address + size) as usize;
        let reg = n.properties().find(|p| p.name() == "reg").map(|p| p.value().to_vec()).unwrap_or_default();
        reg.chunks_exact(entry).any(|e| e[4 * address as usize..].iter().any(|b| *b != 0))
    };
    if root.children().any(|n| is_memory(n) && has_ram(n)) {
        return false;
    }
    let name = root.children().find(|n| is_memory(n)).map(|n| n.name().to_owned());
    let at =
        name.as_deref().and_then(|n| u64::from_str_radix(n.split('@').nth(1)?, 16).ok()).unwrap_or(USUAL_RAM);
    let at = at.next_multiple_of(2 * MIB);
    let mut node = DeviceTreeNode::new_unchecked(name.as_deref().unwrap_or("memory"));
    property(&mut node, "device_type", b"memory\0");
    property(&mut node, "reg", &[cells(at, address), cells(RAM_SIZE, size)].concat());
    root.remove_child(name.as_deref().unwrap_or("memory"));
    root.add_child(node);
    true
}

/// What the boot loader adds: the kernel and the RAM disk as modules, at free places.
fn with_modules(tree: &mut DeviceTree, p: &Platform<'_>) -> Option<()> {
    let mut taken: Vec<Region> = p.reserved.iter().map(|r| r.region.pages()).collect();
    taken.extend(p.cpus.iter().filter_map(|c| Region::new(c.release?, 8)).map(Region::pages));
    taken.push(load_image(p)?);
    let (address, size) = (count_of(&tree.root, "#address-cells", 2), count_of(&tree.root, "#size-cells", 1));
    let mut chosen = DeviceTreeNode::new_unchecked("chosen");
    if let Some(old) = tree.root.children().find(|n| n.name() == "chosen") {
        chosen = old.clone();
    }
    for (kind, bytes) in [("kernel", KERNEL.image_size - MIB), ("ramdisk", 8 * MIB + 123)] {
        let place = find_free(&p.ram, &taken, bytes, 2 * MIB, PAGE)?;
        taken.push(place);
        let mut module = DeviceTreeNode::new_unchecked(format!("{kind}@{:x}", place.base));
        property(&mut module, "compatible", format!("multiboot,module\0multiboot,{kind}\0").as_bytes());
        property(&mut module, "reg", &[cells(place.base, address), cells(place.size, size)].concat());
        chosen.add_child(module);
    }
    tree.root.remove_child("chosen");
    tree.root.add_child(chosen);
    Some(())
}

/// What our reader says, against what the `fdt` crate says.
fn disagreement(tree: &[u8], p: &Platform<'_>) -> Option<String> {
    let other = fdt::Fdt::new(tree).ok()?;
    let text = |node: &fdt::node::FdtNode<'_, '_>, name: &str| {
        node.property(name).and_then(|v| v.as_str()).map(str::to_owned)
    };
    let enabled = |node: &fdt::node::FdtNode<'_, '_>| {
        matches!(text(node, "status").as_deref(), None | Some("okay" | "ok"))
    };
    let root = other.find_node("/")?;
    let memory =
        root.children().filter(|n| text(n, "device_type").as_deref() == Some("memory") && enabled(n));
    let said: u64 = memory
        .flat_map(|n| n.reg().into_iter().flatten().collect::<Vec<_>>())
        .map(|r| Region::new(r.starting_address as u64, r.size.unwrap_or(0) as u64).unwrap())
        .filter(|r| !p.ram.iter().any(|bank| bank.contains(r.whole_pages())))
        .map(|r| r.whole_pages().size)
        .sum();
    if said != 0 {
        return Some(format!("RAM: {said:#x} bytes more"));
    }
    let cpus = other.find_node("/cpus")?.children();
    let cpus = cpus.filter(|n| text(n, "device_type").as_deref() == Some("cpu") && enabled(n)).count();
    if cpus.min(tenure_dt::platform::MAX_CPUS) != p.cpus.len() {
        return Some(format!("{cpus} CPUs"));
    }
    let psci = other.find_compatible(&["arm,psci-1.0", "arm,psci-0.2"]).and_then(|n| text(&n, "method"));
    let ours = p.psci.map(|c| if c == Conduit::Smc { "smc" } else { "hvc" });
    if psci.as_deref() != ours {
        return Some(format!("PSCI {psci:?}"));
    }
    let reserved =
        other.find_node("/reserved-memory").into_iter().flat_map(|n| n.children().collect::<Vec<_>>());
    for node in reserved.filter(enabled) {
        for reg in node.reg().into_iter().flatten() {
            let region = Region::new(reg.starting_address as u64, reg.size.unwrap_or(0) as u64)?;
            if region.size > 0 && !p.reserved.iter().any(|r| r.region == region) {
                return Some(format!("reserved {}: {region:x?}", node.name));
            }
        }
    }
    None
}

/// A node that the host should have as the board has it, and has not.
fn changed(board: &DeviceTree, host: &[u8]) -> Option<String> {
    const EDITED: [&str; 5] = ["chosen", "psci", "cpus", "reserved-memory", "hypervisor"];
    let host = DeviceTree::from_fdt(&dtoolkit::fdt::Fdt::new_unchecked(host));
    let is_edited = |n: &DeviceTreeNode| {
        EDITED.contains(&n.name()) || holds(n, &["arm,armv8-timer", "arm,armv7-timer", "arm,psci"])
    };
    let differs = |n: &&DeviceTreeNode| !is_edited(n) && !host.root.children().any(|m| m == *n);
    let node = board.root.children().find(differs).map(|n| format!("/{} is changed", n.name()));
    let lost = board.root.properties().find(|p| !host.root.properties().any(|q| q == *p));
    node.or_else(|| lost.map(|p| format!("/: {} is changed", p.name())))
}

/// Whether the node, or one below it, is compatible with one of `names`.
fn holds(node: &DeviceTreeNode, names: &[&str]) -> bool {
    is_compatible(node, names) || node.children().any(|child| holds(child, names))
}

fn is_compatible(node: &DeviceTreeNode, names: &[&str]) -> bool {
    let list =
        node.properties().find(|p| p.name() == "compatible").map(|p| p.value().to_vec()).unwrap_or_default();
    list.split(|&b| b == 0).any(|c| names.iter().any(|name| c.starts_with(name.as_bytes())))
}

/// The timer that the host is left with: the physical one, wherever the tree has it.
fn timer_is_physical(host: &[u8]) -> Option<bool> {
    let other = fdt::Fdt::new(host).unwrap();
    let timer = other.find_compatible(&["arm,armv8-timer"])?;
    let names = timer.property("interrupt-names").map(|v| v.value.to_vec());
    Some(names.as_deref() == Some(b"phys\0"))
}

#[derive(Default)]
struct Sums(BTreeMap<String, usize>);

impl Sums {
    fn add(&mut self, what: impl Into<String>) {
        *self.0.entry(what.into()).or_default() += 1;
    }
}

#[test]
fn every_tree_of_debian_is_laid_out_or_refused_with_a_reason() {
    let Some(folder) = folder() else {
        println!("corpus: skipped: no device trees (cargo xtask setup brings them)");
        return;
    };
    let all = trees(&folder);
    assert!(!all.is_empty(), "no device trees in {}", folder.display());
    let (mut has, mut refused, mut wrongs) = (Sums::default(), Sums::default(), Vec::new());
    for path in &all {
        let name = path.strip_prefix(&folder).unwrap().display().to_string();
        match one(&std::fs::read(path).unwrap(), &mut has) {
            Ok(None) => {}
            Ok(Some(refusal)) => {
                println!("corpus: refused: {name}: {refusal}");
                refused.add(refusal);
            }
            Err(what) => wrongs.push(format!("{name}: {what}")),
        }
    }
    let count: usize = refused.0.values().sum();
    println!(
        "corpus: {} device trees: {} laid out, {count} refused",
        all.len(),
        all.len() - count - wrongs.len()
    );
    for (what, count) in &has.0 {
        println!("corpus: {count:5} {what}");
    }
    assert!(wrongs.is_empty(), "{} trees:\n{}", wrongs.len(), wrongs.join("\n"));
    // A reader that refuses everything would pass too.
    assert!(count * 50 < all.len(), "more than one in fifty is refused");
}

/// Numbers that look random and are the same in every run (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }

    /// A value that makes trouble in a cell.
    fn cell(&mut self) -> u32 {
        let any = self.roll(usize::MAX) as u32;
        [0, 1, 2, 3, 4, 0x1000, 0x4000_0000, 0x7fff_ffff, 0x8000_0000, u32::MAX, u32::MAX - 0xfff, any]
            [self.roll(12)]
    }
}

#[test]
fn a_damaged_tree_of_debian_is_refused_or_harmless() {
    let Some(folder) = folder() else { return println!("corpus: skipped: no device trees") };
    let mut dice = Dice(0x7e4u64 << 32 | 0xdeed);
    let (mut tried, mut read_again) = (0, 0);
    for path in trees(&folder).iter().step_by(16) {
        let whole = std::fs::read(path).unwrap();
        for _ in 0..24 {
            let mut file = whole.clone();
            for _ in 0..1 + dice.roll(4) {
                // Most often a word of the structure, which comes first; at times any byte.
                let at = if dice.roll(4) == 0 {
                    dice.roll(file.len())
                } else {
                    dice.roll(file.len() * 2 / 3) & !3
                };
                let value = dice.cell().to_be_bytes();
                let end = (at + 4).min(file.len());
                file[at..end].copy_from_slice(&value[..end - at]);
            }
            tried += 1;
            let Ok(blob) = check(&file) else { continue };
            let Ok(p) = read::read(blob) else { continue };
            let Some(image) = load_image(&p) else { continue };
            if let Ok(placed) = boot(blob, &p, own(image, blob)) {
                assert_eq!(wrong(&p, &placed), None, "{}", path.display());
                read_again += 1;
            }
        }
    }
    println!("corpus: {tried} damaged trees: {read_again} laid out all the same");
    assert!(read_again > 0);
}

/// One tree: laid out (`None`), refused (why), or an error (what is wrong with us).
fn one(file: &[u8], has: &mut Sums) -> Result<Option<String>, String> {
    let blob = check(file).map_err(|why| format!("malformed: {why:?}"))?;
    let mut tree = DeviceTree::from_fdt(&dtoolkit::fdt::Fdt::new_unchecked(blob));
    if with_memory(&mut tree) {
        has.add("without RAM: firmware writes it in");
    }
    let blob = tree.to_dtb();
    let p = match read::read(check(&blob).map_err(|why| format!("{why:?}"))?) {
        Ok(p) => p,
        Err(refusal) => return Ok(Some(refusal.to_string())),
    };
    if with_modules(&mut tree, &p).is_none() {
        return Ok(Some("memory: reg: a boot loader finds no place for image, kernel and RAM disk".into()));
    }
    let blob = tree.to_dtb();
    let p =
        read::read(check(&blob).map_err(|why| format!("{why:?}"))?).map_err(|refusal| refusal.to_string())?;
    if let Some(what) = disagreement(&blob, &p) {
        return Err(format!("the fdt crate sees {what}"));
    }
    let image = load_image(&p).ok_or("no place for the image")?;
    let placed = match boot(&blob, &p, own(image, &blob)) {
        Ok(placed) => placed,
        Err(refusal) => return Ok(Some(refusal)),
    };
    if let Some(what) = wrong(&p, &placed).or_else(|| changed(&tree, &placed.host)) {
        return Err(what);
    }
    has.add(match p.gic {
        Gic::V2 { gich: Some(_), gicv: Some(_) } => "GICv2",
        Gic::V2 { .. } => "GICv2 without the virtualization extension",
        Gic::V3 => "GICv3",
        Gic::None => "no GIC that is known",
    });
    has.add(match p.psci {
        Some(Conduit::Smc) => "PSCI by SMC",
        Some(Conduit::Hvc) => "PSCI by HVC: none for an operating system at EL2",
        None => "no PSCI",
    });
    has.add(if p.console.is_some() { "console" } else { "no console" });
    has.add(match timer_is_physical(&placed.host) {
        Some(true) => "timer: the host gets the physical one",
        Some(false) => return Err("the timer is not understood".into()),
        None => "no Arm timer",
    });
    if p.cpus.iter().any(|c| c.release.is_some()) {
        has.add("spin table");
    }
    if placed.layout.crowded {
        has.add("no room for all that the host is to reserve itself");
    }
    Ok(None)
}
