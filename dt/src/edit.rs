//! The tree that the host gets: the board's, minus what is Tenure's, plus what Tenure offers.
//!
//! One pass: the board's tokens are copied; at a node that matters some properties are left out and ours put in, and
//! what the board lacks is added at the end of the root.

use core::fmt;

use arrayvec::ArrayVec;

use crate::check::{MAX_DEPTH, word};
use crate::platform::{Conduit, Platform, Region};
use crate::tokens::{Token, Tokens, reservations};
use crate::write::{Full, Writer};

/// `compatible` of the node that the driver binds to.
pub const HYPERVISOR: &[u8] = b"tenure,hypervisor-1\0";
/// Bytes that the host's tree can be longer than the board's.
pub const GROWTH: usize = 4096;

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
    /// A cell count of the root in which an address of ours cannot be written.
    Cells,
    /// `/reserved-memory` has other cell counts than the root: Linux would not look at it at all, and run into memory
    /// that is not its own.
    ReservedCells,
    /// The buffer is too small.
    Room,
}

impl fmt::Display for CannotEdit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parser => "/: it cannot be read again",
            Self::Cells => {
                "/: #address-cells, #size-cells: too few or too many for the address of Tenure's memory"
            }
            Self::ReservedCells => "reserved-memory: #address-cells, #size-cells: not those of the root",
            Self::Room => "/: it grows by more than there is room for",
        })
    }
}

impl From<Full> for CannotEdit {
    fn from(_: Full) -> Self {
        Self::Room
    }
}

/// Nodes that are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Root,
    Psci,
    Cpus,
    Cpu,
    Timer,
    Chosen,
    Reserved,
    Other,
}

impl Kind {
    /// What the node at the head of `tokens` is; its name is `name`, its parent `parent`.
    fn of(parent: Option<Self>, name: &[u8], tokens: &Tokens<'_>) -> Self {
        let lists = |texts: [&[u8]; 2]| {
            tokens.peek_prop(b"compatible").is_some_and(|v| v.split(|&b| b == 0).any(|c| texts.contains(&c)))
        };
        match (parent, name) {
            (None, _) => Self::Root,
            (_, b"psci") => Self::Psci,
            (Some(Self::Root), b"cpus") => Self::Cpus,
            (Some(Self::Root), b"chosen") => Self::Chosen,
            (Some(Self::Root), b"reserved-memory") => Self::Reserved,
            (Some(Self::Cpus), _) if tokens.peek_prop(b"device_type") == Some(b"cpu\0") => Self::Cpu,
            _ if lists([b"arm,armv8-timer", b"arm,armv7-timer"]) => Self::Timer,
            _ => Self::Other,
        }
    }

    /// Properties of the board's that are left out: ours stand in their place, or nothing does.
    fn drops(self, name: &[u8]) -> bool {
        if self == Self::Reserved {
            return true;
        }
        let names: &[&[u8]] = match self {
            Self::Psci => &[b"compatible", b"method"],
            Self::Cpus => &[b"enable-method"],
            Self::Cpu => &[b"enable-method", b"cpu-release-addr"],
            Self::Timer => &[b"interrupts", b"interrupts-extended", b"interrupt-names"],
            Self::Chosen => &[b"bootargs", b"linux,initrd-start", b"linux,initrd-end"],
            Self::Root | Self::Reserved | Self::Other => &[],
        };
        names.contains(&name)
    }
}

/// Cell counts of the root and of `/reserved-memory`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cells {
    address: u32,
    size: u32,
}

impl Cells {
    /// Those of the node at the head of `tokens`, or `default`.
    fn of(tokens: &Tokens<'_>, default: Self) -> Self {
        let count = |name: &[u8], default| tokens.peek_prop(name).and_then(|v| word(v, 0)).unwrap_or(default);
        Self { address: count(b"#address-cells", default.address), size: count(b"#size-cells", default.size) }
    }
}

/// The editor in the middle of its pass.
struct Edit<'x, 'o, 's> {
    w: Writer<'o, 's>,
    platform: &'x Platform<'x>,
    view: &'x HostView<'x>,
    root: Cells,
    seen: ArrayVec<Kind, 3>,
}

/// Writes the host's tree into `out`; gives its size. `out` should be [`GROWTH`] bytes longer than `tree` is in use.
pub fn host_tree(
    tree: &[u8],
    platform: &Platform<'_>,
    view: &HostView<'_>,
    out: &mut [u8],
) -> Result<usize, CannotEdit> {
    let mut tokens = Tokens::new(tree).ok_or(CannotEdit::Parser)?;
    let w = Writer::new(out, tokens.strings, reservations(tree))?;
    let root = Cells { address: 2, size: 1 };
    let mut edit = Edit { w, platform, view, root, seen: ArrayVec::new() };
    let mut above: ArrayVec<Kind, MAX_DEPTH> = ArrayVec::new();
    while let Some(token) = tokens.next() {
        match token {
            Token::Begin(name) => {
                let parent = above.last().copied();
                let kind = Kind::of(parent, name, &tokens);
                if is_dropped(parent, name, &tokens) {
                    skip(&mut tokens);
                    continue;
                }
                edit.w.begin(name)?;
                edit.open(kind, &tokens)?;
                above.try_push(kind).map_err(|_| CannotEdit::Parser)?;
            }
            Token::Prop(name_at, name, value) => {
                if !above.last().is_some_and(|kind| kind.drops(name)) {
                    edit.w.copied(name_at, value)?;
                }
            }
            Token::End => {
                if above.pop() == Some(Kind::Root) {
                    edit.close_root()?;
                }
                edit.w.end()?;
            }
        }
    }
    Ok(edit.w.finish(word(tree, 28).unwrap_or(0))?)
}

/// A node that the host does not get: a module that is used up, or a `/hypervisor` that is not ours.
fn is_dropped(parent: Option<Kind>, name: &[u8], tokens: &Tokens<'_>) -> bool {
    match parent {
        Some(Kind::Chosen) => tokens.peek_prop(b"compatible").is_some_and(|v| v.starts_with(b"multiboot,")),
        Some(Kind::Root) => name == b"hypervisor",
        _ => false,
    }
}

/// Moves behind the end of the node whose begin was the last token.
fn skip(tokens: &mut Tokens<'_>) {
    let mut depth = 1;
    while depth > 0 {
        match tokens.next() {
            Some(Token::Begin(_)) => depth += 1,
            Some(Token::End) => depth -= 1,
            Some(Token::Prop(..)) => {}
            None => return,
        }
    }
}

impl Edit<'_, '_, '_> {
    /// Writes our properties of a node that has just begun.
    fn open(&mut self, kind: Kind, tokens: &Tokens<'_>) -> Result<(), CannotEdit> {
        match kind {
            Kind::Root => self.root = Cells::of(tokens, self.root),
            Kind::Psci => self.psci()?,
            Kind::Cpu => self.w.property("enable-method", &[b"psci\0"])?,
            Kind::Timer => self.physical_timer_only(tokens)?,
            Kind::Chosen => self.choose()?,
            Kind::Reserved => self.reserve(Cells::of(tokens, self.root))?,
            Kind::Cpus | Kind::Other => {}
        }
        if matches!(kind, Kind::Psci | Kind::Chosen | Kind::Reserved) && !self.seen.contains(&kind) {
            self.seen.push(kind);
        }
        Ok(())
    }

    /// PSCI by the conduit that the board had, or by HVC.
    fn psci(&mut self) -> Result<(), Full> {
        self.w.property("compatible", &[b"arm,psci-1.0\0arm,psci-0.2\0"])?;
        let by_smc = self.platform.psci == Some(Conduit::Smc);
        self.w.property("method", &[if by_smc { b"smc\0" } else { b"hvc\0" }])
    }

    /// The physical timer's interrupt only, so that the host leaves the virtual one to guests.
    fn physical_timer_only(&mut self, tokens: &Tokens<'_>) -> Result<(), Full> {
        match physical_interrupt(tokens) {
            Some((property, phys)) => {
                self.w.property(property, &[phys])?;
                self.w.property("interrupt-names", &[b"phys\0"])
            }
            // A node in a form that is not known is passed on without its interrupts: no timer is better than ours.
            None => Ok(()),
        }
    }

    /// `/chosen`: the kernel's own arguments and RAM disk.
    fn choose(&mut self) -> Result<(), Full> {
        if let Some(args) = self.platform.bootargs {
            self.w.property("bootargs", &[args.as_bytes(), b"\0"])?;
        }
        if let Some(disk) = self.view.ramdisk {
            self.w.property("linux,initrd-start", &[&disk.base.to_be_bytes()])?;
            self.w.property("linux,initrd-end", &[&disk.end().to_be_bytes()])?;
        }
        Ok(())
    }

    /// The head of `/reserved-memory`, and one node with `no-map` for each hidden region (DTSpec 3.5). They are nodes,
    /// so they must come after the properties: what the board's node has beyond these three (`phandle`) is not needed.
    fn reserve(&mut self, cells: Cells) -> Result<(), CannotEdit> {
        if cells != self.root {
            return Err(CannotEdit::ReservedCells);
        }
        self.w.property("#address-cells", &[&cells.address.to_be_bytes()])?;
        self.w.property("#size-cells", &[&cells.size.to_be_bytes()])?;
        self.w.property("ranges", &[])?;
        for region in self.view.hidden {
            self.w.begin(unit_name(region.base).as_bytes())?;
            let base = in_cells(region.base, cells.address)?;
            let size = in_cells(region.size, cells.size)?;
            self.w.property("reg", &[&base, &size])?;
            self.w.property("no-map", &[])?;
            self.w.end()?;
        }
        Ok(())
    }

    /// What the board lacks, and the hypervisor's own node.
    fn close_root(&mut self) -> Result<(), CannotEdit> {
        if !self.seen.contains(&Kind::Psci) {
            self.w.begin(b"psci")?;
            self.psci()?;
            self.w.end()?;
        }
        if !self.seen.contains(&Kind::Chosen) {
            self.w.begin(b"chosen")?;
            self.choose()?;
            self.w.end()?;
        }
        if !self.seen.contains(&Kind::Reserved) {
            self.w.begin(b"reserved-memory")?;
            self.reserve(self.root)?;
            self.w.end()?;
        }
        self.w.begin(b"hypervisor")?;
        self.w.property("compatible", &[HYPERVISOR])?;
        if let Some(cells) = self.view.interrupt {
            let [a, b, c] = cells.map(u32::to_be_bytes);
            self.w.property("interrupts", &[&a, &b, &c])?;
        }
        Ok(self.w.end()?)
    }
}

/// The specifier of the non-secure physical timer's interrupt, and the property to write it to: by name, or the second
/// of four or five.
fn physical_interrupt<'a>(tokens: &Tokens<'a>) -> Option<(&'static str, &'a [u8])> {
    // `interrupts-extended` takes precedence (DTSpec 2.4.1.3). Its entries begin with the controller's phandle, which is
    // the same for all: per-CPU interrupts have one controller.
    let (property, all, extended) = match tokens.peek_prop(b"interrupts-extended") {
        Some(all) => ("interrupts-extended", all, true),
        None => ("interrupts", tokens.peek_prop(b"interrupts")?, false),
    };
    let fits = |count: usize| {
        let len = all.len().checked_div(count).filter(|len| *len > 0 && count * len == all.len())?;
        let same = || all.chunks_exact(len).all(|entry| entry.get(..4) == all.get(..4));
        (len.is_multiple_of(4) && (!extended || same())).then_some(len)
    };
    let (index, len) = match tokens.peek_prop(b"interrupt-names") {
        Some(names) => {
            let each = || names.split(|&b| b == 0).filter(|n| !n.is_empty());
            (each().position(|n| n == b"phys")?, fits(each().count())?)
        }
        // Five of two, three or four cells each; else four.
        None if all.len().is_multiple_of(20) && !all.len().is_multiple_of(16) => (1, fits(5)?),
        None => (1, fits(4).or_else(|| fits(5))?),
    };
    Some((property, all.get(index * len..(index + 1) * len)?))
}

/// A number in this many cells.
fn in_cells(value: u64, cells: u32) -> Result<ArrayVec<u8, 8>, CannotEdit> {
    let bytes = value.to_be_bytes();
    match cells {
        2 => Ok(ArrayVec::from(bytes)),
        1 if value >> 32 == 0 => bytes[4..].try_into().map_err(|_| CannotEdit::Cells),
        _ => Err(CannotEdit::Cells),
    }
}

/// `tenure@<address in hexadecimal>`.
fn unit_name(address: u64) -> arrayvec::ArrayString<24> {
    let mut name = arrayvec::ArrayString::new();
    // Seven characters and at most 16 digits fit.
    let _ = core::fmt::Write::write_fmt(&mut name, format_args!("tenure@{address:x}"));
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::Claim;
    use crate::sample;
    use std::{vec, vec::Vec};

    const OWN: Region = Region { base: 0x4020_0000, size: 0x40_0000 };

    fn edited(tree: &[u8]) -> Vec<u8> {
        let platform = crate::read::read(tree).unwrap();
        let view = HostView { hidden: &[OWN], ramdisk: platform.ramdisk, interrupt: None };
        let mut out = vec![0xaa; tree.len() + GROWTH];
        let len = host_tree(tree, &platform, &view, &mut out).unwrap();
        out.truncate(len);
        crate::check(&out).unwrap();
        // A second opinion on the format.
        dtoolkit::fdt::Fdt::new(&out).unwrap();
        out
    }

    fn value(tree: &[u8], path: &str, name: &str) -> Option<Vec<u8>> {
        Some(fdt::Fdt::new(tree).unwrap().find_node(path)?.property(name)?.value.to_vec())
    }

    #[test]
    fn own_memory_is_reserved_and_not_mapped() {
        for tree in [sample::virt(), sample::raspi()] {
            let before = crate::read::read(&tree).unwrap();
            let out = edited(&tree);
            let p = crate::read::read(&out).unwrap();
            assert!(p.reserved.iter().any(|r| r.region == OWN && r.claim == Claim::NoMap));
            assert_eq!(p.reserved.len(), before.reserved.len() + 1);
            assert_eq!(p.ram, before.ram);
        }
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
        // Once more: by its name now.
        assert_eq!(value(&edited(&out), "/timer", "interrupts"), value(&out, "/timer", "interrupts"));
    }

    #[test]
    fn the_timer_is_found_below_a_bus_and_by_extended_interrupts() {
        let entry = |ppi: u32| [1u32, 1, ppi, 0x104];
        for count in [4, 5] {
            let all: Vec<u32> = [13, 14, 11, 10, 12][..count].iter().flat_map(|&ppi| entry(ppi)).collect();
            let tree = sample::timer_below_a_bus(&all);
            let out = edited(&tree);
            let want: Vec<u8> = entry(14).iter().flat_map(|word| word.to_be_bytes()).collect();
            assert_eq!(value(&out, "/soc/timer", "interrupts-extended").unwrap(), want, "{count}");
            assert_eq!(value(&out, "/soc/timer", "interrupt-names").unwrap(), b"phys\0");
        }
    }

    #[test]
    fn a_board_without_psci_gets_it_by_hvc_and_loses_its_spin_table() {
        let out = edited(&sample::raspi());
        assert_eq!(value(&out, "/psci", "method").unwrap(), b"hvc\0");
        let p = crate::read::read(&out).unwrap();
        assert_eq!(p.cpus[1].release, None);
        assert_eq!(value(&out, "/cpus/cpu@1", "enable-method").unwrap(), b"psci\0");
        assert_eq!(value(&out, "/cpus", "enable-method"), None);
    }

    #[test]
    fn a_board_with_psci_keeps_its_conduit() {
        assert_eq!(value(&edited(&sample::virt()), "/psci", "method").unwrap(), b"smc\0");
    }

    #[test]
    fn all_else_is_copied() {
        let out = edited(&sample::raspi());
        let path = "/soc/interrupt-controller@40041000";
        assert_eq!(value(&out, path, "reg"), value(&sample::raspi(), path, "reg"));
        assert_eq!(value(&out, "/aliases", "serial0"), value(&sample::raspi(), "/aliases", "serial0"));
    }

    #[test]
    fn a_buffer_that_is_too_small_is_an_error() {
        let tree = sample::virt();
        let platform = crate::read::read(&tree).unwrap();
        let view = HostView { hidden: &[OWN], ..HostView::default() };
        for len in [0, 30, 60, 500, tree.len() / 2] {
            assert_eq!(
                host_tree(&tree, &platform, &view, &mut vec![0; len]),
                Err(CannotEdit::Room),
                "{len} bytes"
            );
        }
    }
}
