//! A translation that was taken out of a table and may still stand in a TLB, and what has been done about it.
//!
//! Arm ARM DDI 0487 D8.17 (break-before-make) and D8.17.5 (stage 2: combined entries): the write is made visible by a DSB, the
//! stage-2 entries are invalidated by address and that is completed by a DSB, then all stage-1 and combined entries of the VMID
//! are, or everything of the VMID at once; a DSB of the same CPU completes it. Only broadcasts (Inner Shareable) count.

use std::collections::BTreeSet;

const PAGE: u64 = 4096;

/// Fields of the encoding of TLBI that matter: op1, CRm, op2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tlbi {
    /// VMALLS12E1IS: all of the VMID.
    Whole,
    /// ALLE1IS: all of every VMID.
    All,
    /// IPAS2E1IS, IPAS2LE1IS: one address at stage 2.
    Address(u64),
    /// RIPAS2E1IS, RIPAS2LE1IS: first address and bytes at stage 2.
    Range(u64, u64),
    /// VMALLE1IS: stage 1 and combined entries.
    Combined,
    /// Anything else: of no use here.
    Other,
}

impl Tlbi {
    /// Reads an instruction and its operand.
    pub fn read(code: u32, value: u64) -> Self {
        let (op1, crm, op2) = (code >> 16 & 7, code >> 8 & 15, code >> 5 & 7);
        match (op1, crm, op2) {
            (4, 3, 6) => Self::Whole,
            (4, 3, 4) => Self::All,
            (4, 0, 1 | 5) => Self::Address((value & 0xf_ffff_ffff) * PAGE),
            (4, 0, 2 | 6) => {
                // BaseADDR 36:0, NUM 43:39, SCALE 45:44 (D8.17.6): (NUM + 1) * 2^(5 * SCALE + 1) pages.
                let pages = ((value >> 39 & 31) + 1) << (5 * (value >> 44 & 3) + 1);
                Self::Range((value & 0x1f_ffff_ffff) * PAGE, pages * PAGE)
            }
            (0, 3, 0) => Self::Combined,
            _ => Self::Other,
        }
    }
}

/// How far one half of the invalidation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Open,
    Issued(usize),
    Done,
}

impl Part {
    fn synchronize(&mut self, cpu: usize) {
        if *self == Self::Issued(cpu) {
            *self = Self::Done;
        }
    }
}

/// The translation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stale {
    /// What stood in the entry.
    pub old: u64,
    /// VMID of its tree.
    pub vmid: u64,
    /// First address that it translated.
    pub ipa: u64,
    /// CPU that took it out.
    pub cpu: usize,
    /// Where in the program.
    pub pc: u64,
    /// It was a table.
    pub table: bool,
    /// What it led to: addresses of frames, and bytes.
    frames: Vec<(u64, u64)>,
    /// Leaves under it by their address and span, if it was a table: each may stand in a TLB by itself.
    leaves: BTreeSet<(u64, u64)>,
    visible: bool,
    stage2: Part,
    combined: Part,
}

impl Stale {
    /// A translation that was just taken out; `leaves` are those below it if it was a table.
    pub fn new(
        old: u64,
        vmid: u64,
        (ipa, span): (u64, u64),
        (cpu, pc): (usize, u64),
        frames: Vec<(u64, u64)>,
        leaves: Option<BTreeSet<(u64, u64)>>,
    ) -> Self {
        let table = leaves.is_some();
        let leaves =
            leaves.filter(|leaves| !leaves.is_empty()).unwrap_or_else(|| BTreeSet::from([(ipa, span)]));
        let (stage2, combined) = (Part::Open, Part::Open);
        Self { old, vmid, ipa, cpu, pc, table, frames, leaves, visible: false, stage2, combined }
    }

    /// Whether it led to one of these frames.
    pub fn reaches(&self, frame: u64, bytes: u64) -> bool {
        self.frames.iter().any(|(start, length)| *start < frame + bytes && frame < start + length)
    }

    /// A TLBI by `cpu`, whose VTTBR_EL2 names `vmid`.
    pub fn invalidate(&mut self, tlbi: Tlbi, cpu: usize, vmid: u64) {
        if !self.visible || vmid != self.vmid && tlbi != Tlbi::All {
            return;
        }
        match tlbi {
            Tlbi::Whole | Tlbi::All => {
                self.stage2 = Part::Issued(cpu);
                self.combined = Part::Issued(cpu);
            }
            Tlbi::Address(at) => self.forget(|ipa, span| (ipa..ipa + span).contains(&at), cpu),
            Tlbi::Range(at, bytes) => self.forget(|ipa, span| ipa < at + bytes && at < ipa + span, cpu),
            Tlbi::Combined if self.stage2 == Part::Done && self.combined == Part::Open => {
                self.combined = Part::Issued(cpu);
            }
            Tlbi::Combined | Tlbi::Other => {}
        }
    }

    /// Leaves that are invalidated. (One address within a block invalidates the block.)
    fn forget(&mut self, covered: impl Fn(u64, u64) -> bool, cpu: usize) {
        if self.stage2 == Part::Open {
            self.leaves.retain(|(ipa, span)| !covered(*ipa, *span));
            if self.leaves.is_empty() {
                self.stage2 = Part::Issued(cpu);
            }
        }
    }

    /// A DSB by `cpu` with this option (CRm; C6.2.98).
    pub fn synchronize(&mut self, cpu: usize, option: u64) {
        let (domain, types) = (option >> 2, option & 3);
        // Inner shareable or the whole system; stores, or stores and loads.
        if domain < 2 || types < 2 {
            return;
        }
        if types == 3 {
            self.stage2.synchronize(cpu);
            self.combined.synchronize(cpu);
        }
        self.visible |= cpu == self.cpu;
    }

    /// No TLB holds it any more.
    pub fn is_over(&self) -> bool {
        self.stage2 == Part::Done && self.combined == Part::Done
    }

    /// What is missing, in the order in which it must come.
    pub fn missing(&self) -> &'static str {
        match (self.visible, self.stage2, self.combined) {
            (false, ..) => "no DSB has made the write visible",
            (true, Part::Open, _) => "no TLBI covers it at stage 2",
            (true, Part::Issued(_), _) => "no DSB has completed its TLBI at stage 2",
            (true, Part::Done, Part::Open) => "no TLBI covers the combined entries",
            (true, Part::Done, Part::Issued(_)) => "no DSB has completed the TLBI of combined entries",
            (true, Part::Done, Part::Done) => "nothing",
        }
    }
}
