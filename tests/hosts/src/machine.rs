//! The machine as the host's device tree describes it.

use core::ops::Range;

use arrayvec::ArrayVec;
use fdt::Fdt;
use tenure_test_rt::{memory, start};

/// What a host needs to know of its machine.
#[derive(Debug)]
pub struct Machine {
    /// The first bank of RAM.
    pub ram: Range<u64>,
    /// The largest stretch of RAM that nobody uses.
    pub free: Range<u64>,
    /// Ranges that the tree reserves.
    pub reserved: ArrayVec<Range<u64>, 32>,
    /// `reg` of every CPU: its MPIDR.
    pub cpus: ArrayVec<u64, 8>,
    /// `bootargs` of `/chosen`.
    pub bootargs: &'static str,
    /// True where a node is compatible with `tenure,hypervisor` or stands at `/hypervisor`.
    pub has_hypervisor_node: bool,
}

impl Machine {
    /// Reads the tree at `dtb`.
    ///
    /// # Errors
    /// What is missing.
    pub fn read(dtb: u64) -> Result<Self, &'static str> {
        let bytes = memory::device_tree(dtb).ok_or("no device tree")?;
        let tree = Fdt::new(bytes).map_err(|_| "the device tree is malformed")?;
        let memory = tree.find_node("/memory").ok_or("no /memory")?;
        let bank = memory.reg().and_then(|mut banks| banks.next()).ok_or("/memory has no reg")?;
        let start = bank.starting_address as u64;
        let ram = start..start + bank.size.unwrap_or(0) as u64;

        let mut used = ArrayVec::<Range<u64>, 40>::new();
        let mut reserved = ArrayVec::<Range<u64>, 32>::new();
        for entry in tree.memory_reservations() {
            let base = entry.address() as u64;
            let _ = reserved.try_push(base..base + entry.size() as u64);
        }
        if let Some(node) = tree.find_node("/reserved-memory") {
            for child in node.children() {
                for region in child.reg().into_iter().flatten() {
                    let base = region.starting_address as u64;
                    let _ = reserved.try_push(base..base + region.size.unwrap_or(0) as u64);
                }
            }
        }
        used.extend(reserved.iter().cloned());
        let _ = used.try_push(start::image());
        let _ = used.try_push(dtb..dtb + bytes.len() as u64);
        let cpus = tree.cpus().map(|cpu| cpu.ids().first() as u64);
        Ok(Self {
            free: largest_gap(&ram, &mut used),
            ram,
            reserved,
            cpus: cpus.take(8).collect(),
            bootargs: tree.chosen().bootargs().unwrap_or(""),
            has_hypervisor_node: tree.find_node("/hypervisor").is_some(),
        })
    }
}

impl Machine {
    /// The number behind `name=` among the boot arguments.
    pub fn argument(&self, name: &str) -> Option<u64> {
        self.word(name)?.parse().ok()
    }

    /// What stands behind `name=` among the boot arguments.
    pub fn word(&self, name: &str) -> Option<&'static str> {
        let mut words = self.bootargs.split_whitespace();
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }
}

/// The largest part of `ram` that no range of `used` meets, at 2 MiB boundaries.
fn largest_gap(ram: &Range<u64>, used: &mut [Range<u64>]) -> Range<u64> {
    const ALIGN: u64 = 2 << 20;
    used.sort_unstable_by_key(|range| range.start);
    let mut best = 0..0;
    let mut at = ram.start;
    for range in used.iter().cloned().chain(core::iter::once(ram.end..ram.end)) {
        let start = at.next_multiple_of(ALIGN);
        let end = range.start.min(ram.end) / ALIGN * ALIGN;
        if end > start && end - start > best.end - best.start {
            best = start..end;
        }
        at = at.max(range.end);
    }
    best
}
