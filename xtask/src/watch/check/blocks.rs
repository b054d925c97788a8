//! Blocks: what an entry above level 3 translates, to be compared when a table takes the place of a block, or a block that of a
//! table. (The table that a merge takes out of use is kept by the hypervisor; it is no table here until it is linked again.)

use super::{ADDRESS, Checker, LEAF_LEVEL, VALID, split};

/// In an invalid entry: a change of structure is under way (`mm`'s `Descriptor::MOVING`).
const MOVING: u64 = 1 << 5;
/// Tells a page from a block.
const TABLE_OR_PAGE: u64 = 2;

/// Consecutive addresses that translate to consecutive frames with the same attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// First address.
    pub ipa: u64,
    /// Address of its frame.
    pub frame: u64,
    /// Bytes.
    pub bytes: u64,
    /// All of the descriptor but the frame and what tells a page from a block.
    attr: u64,
}

/// What stood in an entry that a CPU has broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Former {
    cpu: usize,
    table: bool,
    runs: Vec<Run>,
}

/// Blocks made where nothing was mapped; blocks that became tables, and tables that became blocks: the host's, and guests'.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Guests' blocks that were given whole.
    pub given: u64,
    /// Splits.
    pub split: [u64; 2],
    /// Merges.
    pub merged: [u64; 2],
}

/// True for an entry that says so.
pub fn is_moving(descriptor: u64) -> bool {
    descriptor & (MOVING | VALID) == MOVING
}

impl Checker {
    /// What a valid descriptor of `level` for the addresses from `ipa` on translates.
    pub(super) fn runs(&self, descriptor: u64, level: u32, ipa: u64, span: u64) -> Vec<Run> {
        let mut runs = Vec::new();
        self.add_runs(descriptor, level, (ipa, span), &mut runs);
        runs
    }

    fn add_runs(&self, descriptor: u64, level: u32, (ipa, span): (u64, u64), runs: &mut Vec<Run>) {
        if level < LEAF_LEVEL && descriptor & 3 == 3 {
            let Some(table) = self.tables.get(&(descriptor & ADDRESS)) else { return };
            for (entry, ipa) in table.entries.iter().zip((ipa..).step_by(table.span() as usize)) {
                if entry & VALID != 0 {
                    self.add_runs(*entry, level + 1, (ipa, table.span()), runs);
                }
            }
            return;
        }
        let (frame, attr) = (descriptor & ADDRESS, descriptor & !(ADDRESS | TABLE_OR_PAGE));
        match runs.last_mut() {
            Some(last)
                if (last.ipa + last.bytes, last.frame + last.bytes, last.attr) == (ipa, frame, attr) =>
            {
                last.bytes += span;
            }
            _ => runs.push(Run { ipa, frame, bytes: span, attr }),
        }
    }

    /// A valid descriptor above level 3 is taken out.
    pub(super) fn broken(&mut self, cpu: usize, at: u64, table: bool, runs: Vec<Run>) {
        self.former.insert(at, Former { cpu, table, runs });
    }

    /// A valid descriptor is made above level 3. What a table holds is known only when it has been sent.
    pub(super) fn formed(&mut self, cpu: usize, at: u64, value: u64) {
        let (page, index) = split(at);
        let Some((vmid, level, ipa, span)) = self.tables.get(&page).map(|table| {
            let span = table.span();
            (table.vmid, table.level, table.ipa + index as u64 * span, span)
        }) else {
            return;
        };
        let whose = usize::from(vmid != 0);
        let block = value & TABLE_OR_PAGE == 0;
        if block && vmid == 0 && value & ADDRESS != ipa {
            self.find(format!("the host's block at {ipa:#x} is made of {:#x}", value & ADDRESS));
        }
        match self.former.remove(&at).filter(|former| former.cpu == cpu) {
            Some(former) if former.table && block => {
                self.counts.blocks.merged[whose] += 1;
                // The host's may have had holes: it had not touched all of what came home.
                if vmid != 0 && former.runs != self.runs(value, level, ipa, span) {
                    self.find(format!(
                        "{ipa:#x} of VMID {vmid}: {value:#x} is made of a table that translates otherwise"
                    ));
                }
            }
            Some(former) if !former.table && !block => {
                self.counts.blocks.split[whose] += 1;
                self.forming = Some((at, former));
            }
            Some(_) => {}
            None if block && vmid != 0 => self.counts.blocks.given += 1,
            None => {}
        }
    }

    /// The table that a block was split into is known now. The host's is empty where the whole block goes.
    pub(super) fn table_formed(&mut self) {
        let Some((at, former)) = self.forming.take() else { return };
        let (page, index) = split(at);
        let Some(table) = self.tables.get(&page) else { return };
        let (vmid, ipa) = (table.vmid, table.ipa + index as u64 * table.span());
        let runs = self.runs(table.entries[index], table.level, ipa, table.span());
        if runs != former.runs && !(vmid == 0 && runs.is_empty()) {
            self.find(format!(
                "{ipa:#x} of VMID {vmid}: a block is split into a table that translates otherwise"
            ));
        }
    }

    /// EL2 is left: nothing of a change of structure may be left over.
    pub(super) fn structure_left(&mut self, cpu: usize) {
        self.former.retain(|_, former| former.cpu != cpu);
        let own: Vec<u64> = self.moving.iter().filter(|(_, by)| **by == cpu).map(|(at, _)| *at).collect();
        for at in own {
            self.moving.remove(&at);
            let (page, index) = split(at);
            let left = self.tables.get(&page).filter(|table| is_moving(table.entries[index]));
            if let Some((vmid, ipa)) = left.map(|table| (table.vmid, table.ipa + index as u64 * table.span()))
            {
                self.find(format!("EL2 is left while the entry of {ipa:#x} of VMID {vmid} says MOVING"));
            }
        }
    }
}
