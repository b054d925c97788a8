//! The log of what the manager asked of the machine.

use std::collections::VecDeque;

use crate::{Ipa, Pa, Pfn, Vmid};

/// Events that the log keeps.
pub const LOG_LIMIT: usize = 4096;

/// One call of the manager.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "the fields are those of the trait's methods")]
pub enum Event {
    /// Only for the hook: neither logged nor counted.
    Read {
        cpu: usize,
        table: Pa,
        index: usize,
        value: u64,
    },
    Write {
        cpu: usize,
        table: Pa,
        index: usize,
        old: u64,
        new: u64,
    },
    Zero {
        cpu: usize,
        frame: Pfn,
    },
    Scrub {
        cpu: usize,
        frame: Pfn,
    },
    Clean {
        cpu: usize,
        frame: Pfn,
    },
    IcacheAll {
        cpu: usize,
    },
    DsbIshst {
        cpu: usize,
    },
    DsbIsh {
        cpu: usize,
    },
    Select {
        cpu: usize,
        vmid: Vmid,
    },
    TlbiIpa {
        cpu: usize,
        vmid: Vmid,
        ipa: Ipa,
    },
    TlbiRange {
        cpu: usize,
        vmid: Vmid,
        ipa: Ipa,
        pages: u64,
    },
    TlbiStage1 {
        cpu: usize,
        vmid: Vmid,
    },
    TlbiAll {
        cpu: usize,
        vmid: Vmid,
    },
}

/// How often each sort of call was made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[allow(missing_docs, reason = "the fields are named after the events")]
pub struct Counts {
    pub writes: u64,
    pub zeroes: u64,
    pub scrubs: u64,
    pub cleans: u64,
    pub icache: u64,
    pub dsbs: u64,
    pub selects: u64,
    pub tlbis: u64,
}

#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Log {
    pub(super) events: VecDeque<Event>,
    pub(super) counts: Counts,
}

impl Log {
    pub(super) fn push(&mut self, event: Event) {
        let counts = &mut self.counts;
        match event {
            Event::Read { .. } => return,
            Event::Write { .. } => counts.writes += 1,
            Event::Zero { .. } => counts.zeroes += 1,
            Event::Scrub { .. } => counts.scrubs += 1,
            Event::Clean { .. } => counts.cleans += 1,
            Event::IcacheAll { .. } => counts.icache += 1,
            Event::DsbIshst { .. } | Event::DsbIsh { .. } => counts.dsbs += 1,
            Event::Select { .. } => counts.selects += 1,
            Event::TlbiIpa { .. }
            | Event::TlbiRange { .. }
            | Event::TlbiStage1 { .. }
            | Event::TlbiAll { .. } => counts.tlbis += 1,
        }
        if self.events.len() == LOG_LIMIT {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}
