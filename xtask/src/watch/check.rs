//! The rules, checked event by event.
//!
//! 1. A valid descriptor is not replaced by another valid one that translates otherwise; a new one is written only when the old
//!    one's invalidation is complete (break-before-make).
//! 2. When EL2 is left, every translation that was taken away on the way is gone from every TLB.
//! 3. A frame is not mapped for somebody while a translation of it that was taken from somebody else may live.
//! 4. A VMID gets another root only after everything of it was invalidated.
//! 5. A table that takes the place of a guest's block, or a block that of a table, translates as before; an entry that says MOVING
//!    says something else when EL2 is left; a block of the host stands for itself.
//! 6. The log is whole: now and then the host's tables are compared with what the log makes of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

mod blocks;

use super::event::{Event, Kind};
use super::stale::{Stale, Tlbi};
use blocks::{Blocks, Former, Run, is_moving};

const CPUS: usize = 8;
const ENTRIES: usize = 512;
const PAGE: u64 = 4096;
const LEAF_LEVEL: u32 = 3;
const VALID: u64 = 1;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// What may change without break-before-make: S2AP, AF, XN, and bits left to software.
const RIGHTS: u64 = 3 << 6 | 1 << 10 | 3 << 53 | 0xf << 55;
const READ_WRITE: u64 = 3 << 6;
const NEVER_EXECUTE: u64 = 1 << 54;
/// Findings that are kept.
const MOST: usize = 12;

/// A page of translation table.
struct Table {
    vmid: u64,
    level: u32,
    ipa: u64,
    entries: Box<[u64; ENTRIES]>,
}

impl Table {
    fn span(&self) -> u64 {
        PAGE << (9 * (LEAF_LEVEL - self.level))
    }

    fn is_table(&self, descriptor: u64) -> bool {
        self.level < LEAF_LEVEL && descriptor & 3 == 3
    }
}

/// What was seen.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Stores to live tables.
    pub writes: u64,
    /// Valid descriptors taken out.
    pub breaks: u64,
    /// Valid descriptors made.
    pub makes: u64,
    /// TLBIs.
    pub tlbis: u64,
    /// DSBs.
    pub dsbs: u64,
    /// Tables compared with the log.
    pub compared: u64,
    /// Blocks that came and went.
    pub blocks: Blocks,
}

/// The checker.
pub struct Checker {
    image: std::ops::Range<u64>,
    vttbr: [u64; CPUS],
    tables: HashMap<u64, Table>,
    roots: HashMap<u64, u64>,
    /// Where a table that is about to be sent belongs: VMID, level, first address.
    links: HashMap<u64, (u64, u32, u64)>,
    stale: BTreeMap<u64, Stale>,
    comparing: Option<(u64, Box<[u64; ENTRIES]>)>,
    /// What stood in entries above level 3 that were broken in this visit to EL2.
    former: BTreeMap<u64, Former>,
    /// The split whose table is being sent.
    forming: Option<(u64, Former)>,
    /// Entries that were made to say MOVING, and by which CPU.
    moving: BTreeMap<u64, usize>,
    step: Option<u64>,
    /// What is wrong.
    pub findings: Vec<String>,
    /// What was seen.
    pub counts: Counts,
}

impl Checker {
    /// For a hypervisor whose image lies at these addresses.
    pub fn new(image: std::ops::Range<u64>) -> Self {
        Self {
            image,
            vttbr: [0; CPUS],
            tables: HashMap::new(),
            roots: HashMap::new(),
            links: HashMap::new(),
            stale: BTreeMap::new(),
            comparing: None,
            former: BTreeMap::new(),
            forming: None,
            moving: BTreeMap::new(),
            step: None,
            findings: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Takes an event.
    pub fn event(&mut self, event: Event) {
        let Event { cpu, kind, pc } = event;
        if cpu >= CPUS {
            return;
        }
        if !matches!(kind, Kind::Entry { .. }) {
            self.compared();
        }
        if !matches!(kind, Kind::Entry { .. } | Kind::Page { .. }) {
            self.table_formed();
        }
        match kind {
            Kind::Write { at, value } => self.write(cpu, at, value, pc),
            Kind::Page { page, level } => self.page(cpu, page, level),
            Kind::Same { page } => self.comparing = Some((page, Box::new([0; ENTRIES]))),
            Kind::Entry { at, value } => self.entry(at, value),
            Kind::Tlbi { code, value } => {
                self.counts.tlbis += 1;
                let (tlbi, vmid) = (Tlbi::read(code, value), self.vttbr[cpu] >> 48);
                self.stale.values_mut().for_each(|stale| stale.invalidate(tlbi, cpu, vmid));
                if matches!(tlbi, Tlbi::Whole | Tlbi::All) {
                    self.wiped(vmid);
                }
            }
            Kind::Dsb { option } => {
                self.counts.dsbs += 1;
                self.stale.values_mut().for_each(|stale| stale.synchronize(cpu, option));
                let over = self.stale.iter().filter(|(_, stale)| stale.is_over()).map(|(at, _)| *at);
                for at in over.collect::<Vec<_>>() {
                    let Some(stale) = self.stale.remove(&at) else { continue };
                    let (page, index) = split(at);
                    let stands =
                        self.tables.get(&page).is_some_and(|table| table.entries[index] == stale.old);
                    if stale.table && !stands {
                        self.drop_table(stale.old & ADDRESS);
                    }
                }
            }
            Kind::Vttbr(value) => self.load(cpu, value),
            Kind::Eret => self.leave(cpu),
            Kind::Step(step) => self.step = Some(step),
        }
    }

    fn find(&mut self, what: String) {
        if self.findings.len() < MOST {
            let step = self.step.map(|step| format!("step {step}: ")).unwrap_or_default();
            self.findings.push(format!("{step}{what}"));
        }
    }

    /// A program address, as an offset into the image.
    fn place(&self, pc: u64) -> String {
        format!("image+{:#x}", pc.wrapping_sub(self.image.start))
    }

    /// True for a root that maps something: the image holds one that only stands for its VMID.
    fn is_real(&self, vttbr: u64) -> bool {
        let root = vttbr & ADDRESS;
        root != 0 && !self.image.contains(&root)
    }

    fn load(&mut self, cpu: usize, value: u64) {
        self.vttbr[cpu] = value;
        if !self.is_real(value) {
            return;
        }
        let (vmid, root) = (value >> 48, value & ADDRESS);
        if let Some(before) = self.roots.insert(vmid, root)
            && before != root
        {
            self.find(format!("VMID {vmid} goes from root {before:#x} to {root:#x}, and its TLB entries were not invalidated"));
        }
    }

    /// All of a VMID is being invalidated: where no CPU can walk its tree, the tree may go.
    fn wiped(&mut self, vmid: u64) {
        let loaded = self.vttbr.iter().any(|vttbr| vttbr >> 48 == vmid && self.is_real(*vttbr));
        if vmid != 0 && !loaded {
            self.tables.retain(|_, table| table.vmid != vmid);
            self.roots.remove(&vmid);
        }
    }

    fn page(&mut self, cpu: usize, page: u64, level: u32) {
        let vttbr = self.vttbr[cpu];
        let (vmid, level, ipa) = if level == 1 {
            let (vmid, root) = (vttbr >> 48, vttbr & ADDRESS);
            if page == root {
                self.tables.retain(|_, table| table.vmid != vmid);
            }
            (vmid, 1, page.wrapping_sub(root) / PAGE * ENTRIES as u64 * (PAGE << 18))
        } else {
            // A table of a tree that nobody can walk yet, or any more: it is sent again when its root is loaded.
            let Some(link) = self.links.remove(&page) else {
                self.tables.remove(&page);
                return;
            };
            link
        };
        self.tables.insert(page, Table { vmid, level, ipa, entries: Box::new([0; ENTRIES]) });
    }

    fn entry(&mut self, at: u64, value: u64) {
        let (page, index) = split(at);
        if let Some((comparing, entries)) = &mut self.comparing {
            if *comparing == page {
                entries[index] = value;
            }
            return;
        }
        if let Some(table) = self.tables.get_mut(&page) {
            table.entries[index] = value;
            self.link(page, index, value);
        }
    }

    /// Remembers where a table belongs that an entry names.
    fn link(&mut self, page: u64, index: usize, value: u64) {
        let Some(table) = self.tables.get(&page) else { return };
        if table.is_table(value) {
            let link = (table.vmid, table.level + 1, table.ipa + index as u64 * table.span());
            self.links.insert(value & ADDRESS, link);
        }
    }

    /// The table that was sent to be compared is complete.
    fn compared(&mut self) {
        let Some((page, entries)) = self.comparing.take() else { return };
        self.counts.compared += 1;
        let Some(table) = self.tables.get(&page) else {
            return self.find(format!("the table at {page:#x} was linked unseen"));
        };
        let mut different =
            table.entries.iter().zip(entries.iter()).enumerate().filter(|(_, (log, now))| log != now);
        if let Some((index, (log, now))) = different.next() {
            let text = format!(
                "entry {index} of the table at {page:#x} is {now:#x}, in the log {log:#x}: written unseen"
            );
            self.find(text);
        }
    }

    fn write(&mut self, cpu: usize, at: u64, value: u64, pc: u64) {
        let (page, index) = split(at);
        let Some(table) = self.tables.get_mut(&page) else { return };
        self.counts.writes += 1;
        let old = std::mem::replace(&mut table.entries[index], value);
        let (vmid, level, span) = (table.vmid, table.level, table.span());
        let ipa = table.ipa + index as u64 * span;
        let was_table = table.is_table(old);
        let place = format!("{ipa:#x} of VMID {vmid} (level {level}) at {}", self.place(pc));
        let before = if level < LEAF_LEVEL && old & VALID != 0 {
            self.runs(old, level, ipa, span)
        } else {
            Vec::new()
        };
        if is_moving(value) {
            self.moving.insert(at, cpu);
        }
        match (old & VALID != 0, value & VALID != 0) {
            (_, true) if old == value => {}
            (true, true) => {
                let same = (old ^ value) & !RIGHTS == 0;
                if !same {
                    self.find(format!("{place}: {old:#x} becomes {value:#x} without break"));
                }
                let less = old & READ_WRITE & !value != 0 || value & NEVER_EXECUTE & !old != 0;
                if !same || less {
                    self.take_out(at, old, vmid, (ipa, span), (cpu, pc), &before, was_table);
                }
            }
            (true, false) => {
                self.counts.breaks += 1;
                self.take_out(at, old, vmid, (ipa, span), (cpu, pc), &before, was_table);
                if level < LEAF_LEVEL {
                    self.broken(cpu, at, was_table, before);
                }
            }
            (false, true) => {
                self.counts.makes += 1;
                if let Some(stale) = self.stale.remove(&at)
                    && stale.old != value
                {
                    let text = format!(
                        "{place}: {value:#x} is made while {:#x} may live: {}",
                        stale.old,
                        stale.missing()
                    );
                    self.find(text);
                }
                if level == LEAF_LEVEL || value & 2 == 0 {
                    self.mapped(vmid, value & ADDRESS, span, &place);
                }
                if level < LEAF_LEVEL {
                    self.formed(cpu, at, value);
                }
            }
            (false, false) => {}
        }
        self.link(page, index, value);
    }

    #[allow(clippy::too_many_arguments, reason = "what is known of an entry")]
    fn take_out(
        &mut self,
        at: u64,
        old: u64,
        vmid: u64,
        range: (u64, u64),
        who: (usize, u64),
        runs: &[Run],
        table: bool,
    ) {
        let leaves = table.then(|| {
            let mut leaves = BTreeSet::new();
            self.leaves(old & ADDRESS, &mut leaves);
            leaves
        });
        let frames = match runs {
            [] => vec![(old & ADDRESS, range.1)],
            runs => runs.iter().map(|run| (run.frame, run.bytes)).collect(),
        };
        let frames = if table && runs.is_empty() { Vec::new() } else { frames };
        self.stale.insert(at, Stale::new(old, vmid, range, who, frames, leaves));
    }

    /// A table that no walk can reach any more, and those below it, may be used for anything.
    fn drop_table(&mut self, page: u64) {
        let Some(table) = self.tables.remove(&page) else { return };
        for entry in table.entries.iter().filter(|entry| table.is_table(**entry)) {
            self.drop_table(entry & ADDRESS);
        }
    }

    /// Valid leaves in a table and below.
    fn leaves(&self, page: u64, into: &mut BTreeSet<(u64, u64)>) {
        let Some(table) = self.tables.get(&page) else { return };
        for (index, entry) in table.entries.iter().enumerate().filter(|(_, entry)| *entry & VALID != 0) {
            if table.is_table(*entry) {
                self.leaves(entry & ADDRESS, into);
            } else {
                into.insert((table.ipa + index as u64 * table.span(), table.span()));
            }
        }
    }

    /// A frame, or a block of them, is mapped: nobody else's translation of it may be on its way out.
    fn mapped(&mut self, vmid: u64, frame: u64, span: u64, place: &str) {
        let other = self.stale.values().find(|stale| stale.vmid != vmid && stale.reaches(frame, span));
        if let Some(stale) = other {
            let (from, missing) = (stale.vmid, stale.missing());
            self.find(format!(
                "{place}: {frame:#x} is mapped while VMID {from} may still reach it: {missing}"
            ));
        }
    }

    fn leave(&mut self, cpu: usize) {
        self.structure_left(cpu);
        let left: Vec<_> =
            self.stale.iter().filter(|(_, stale)| stale.cpu == cpu).map(|(at, _)| *at).collect();
        for at in left {
            if let Some(stale) = self.stale.remove(&at) {
                let text = format!(
                    "EL2 is left while {:#x} for {:#x} of VMID {} may live, taken out at {}: {}",
                    stale.old,
                    stale.ipa,
                    stale.vmid,
                    self.place(stale.pc),
                    stale.missing()
                );
                self.find(text);
            }
        }
    }
}

/// An entry's table and index.
fn split(at: u64) -> (u64, usize) {
    (at & !(PAGE - 1), (at % PAGE / 8) as usize)
}

#[cfg(test)]
mod tests;
