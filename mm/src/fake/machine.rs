//! The trait as the manager calls it: log, drop what is mutated, act, then let the world look.

use super::event::Event;
use super::inner::Inner;
use super::mutation::Mutation;
use super::tlb::Scope;
use super::{FakeMachine, current_cpu};
use crate::machine::Index;
use crate::{Ipa, Machine, Pa, Pfn, Vmid};

impl FakeMachine {
    /// Logs `event` and lets `act` do it unless `mutation` drops it.
    fn event(&self, event: Event, mutation: Option<Mutation>, act: impl FnOnce(&mut Inner)) {
        {
            let mut inner = self.lock();
            inner.now += 1;
            inner.log.push(event);
            if !mutation.is_some_and(|mutation| inner.mutations.drops(mutation)) {
                act(&mut inner);
            }
        }
        self.settle(event);
    }
}

impl Machine for FakeMachine {
    fn read(&self, table: Pa, index: Index) -> u64 {
        let value = {
            let mut inner = self.lock();
            match inner.frame(table.frame().0) {
                Some(frame) if index < 512 => frame.data.get(index),
                _ => {
                    inner.violation(format!("read of entry {index} of a table outside RAM at {table:?}"));
                    0
                }
            }
        };
        self.tell(&Event::Read { cpu: current_cpu(), table, index, value });
        value
    }

    fn write(&self, table: Pa, index: Index, descriptor: u64) {
        let cpu = current_cpu();
        let (old, linked) = {
            let inner = self.lock();
            let old = inner.frame(table.frame().0).map_or(0, |frame| frame.data.get(index));
            (old, inner.links.contains_key(&table.frame().0))
        };
        let event = Event::Write { cpu, table, index, old, new: descriptor };
        let breaks = linked && old & 1 != 0 && descriptor & 1 == 0;
        self.event(event, breaks.then_some(Mutation::SkipBreak), |inner| {
            inner.write(cpu, table.frame().0, index, descriptor);
        });
    }

    fn zero(&self, frame: Pfn) {
        let cpu = current_cpu();
        self.event(Event::Zero { cpu, frame }, Some(Mutation::SkipZero), |inner| inner.zero(cpu, frame.0));
    }

    fn scrub(&self, frame: Pfn) {
        let cpu = current_cpu();
        self.event(Event::Scrub { cpu, frame }, Some(Mutation::SkipScrub), |inner| {
            inner.zero(cpu, frame.0);
            if !inner.mutations.drops(Mutation::SkipScrubClean) {
                inner.clean(cpu, frame.0);
            }
        });
    }

    fn clean_to_poc(&self, frame: Pfn) {
        let cpu = current_cpu();
        let mutation = Some(Mutation::SkipCleanPoc);
        self.event(Event::Clean { cpu, frame }, mutation, |inner| inner.clean(cpu, frame.0));
    }

    fn drop_instructions(&self) {
        let cpu = current_cpu();
        self.event(Event::IcacheAll { cpu }, Some(Mutation::SkipIcache), |inner| {
            inner.drop_instructions();
            inner.dsb_ish(cpu);
        });
    }

    fn read_words(&self, frame: Pfn, first: usize) -> [u64; 32] {
        let inner = self.lock();
        let word = |index| inner.frame(frame.0).map_or(0, |frame| frame.data.get(first + index));
        core::array::from_fn(word)
    }

    fn dsb_ishst(&self) {
        let cpu = current_cpu();
        let mutation = Some(Mutation::SkipDsbIshst);
        self.event(Event::DsbIshst { cpu }, mutation, |inner| inner.dsb_ishst(cpu));
    }

    fn dsb_ish(&self) {
        let cpu = current_cpu();
        self.event(Event::DsbIsh { cpu }, Some(Mutation::SkipDsbIsh), |inner| inner.dsb_ish(cpu));
    }

    fn isb(&self) {}

    fn select_vmid(&self, vmid: Vmid) -> Vmid {
        let cpu = current_cpu();
        let restores = vmid == self.lock().cpus[cpu].loaded;
        let mutation = if restores { Mutation::SkipRestoreVmid } else { Mutation::SkipSelectVmid };
        let current = self.lock().cpus[cpu].selected;
        self.event(Event::Select { cpu, vmid }, Some(mutation), |inner| {
            inner.cpus[cpu].selected = vmid;
        });
        current
    }

    fn tlbi_ipas2e1is(&self, ipa: Ipa) {
        let cpu = current_cpu();
        let vmid = self.lock().cpus[cpu].selected;
        let event = Event::TlbiIpa { cpu, vmid, ipa };
        let scope = Scope::Ipa(ipa.frame().base().0);
        self.event(event, Some(Mutation::SkipTlbiIpa), |inner| inner.tlbi(cpu, scope));
    }

    fn has_range_tlbi(&self) -> bool {
        self.lock().range_tlbi
    }

    fn tlbi_ripas2e1is(&self, first: Ipa, pages: u64) {
        let cpu = current_cpu();
        let vmid = self.lock().cpus[cpu].selected;
        let event = Event::TlbiRange { cpu, vmid, ipa: first, pages };
        let start = first.frame().base().0;
        let scope = Scope::Range(start, start + pages * 0x1000);
        self.event(event, Some(Mutation::SkipTlbiIpa), |inner| inner.tlbi(cpu, scope));
    }

    fn tlbi_vmalle1is(&self) {
        let cpu = current_cpu();
        let vmid = self.lock().cpus[cpu].selected;
        let event = Event::TlbiStage1 { cpu, vmid };
        self.event(event, Some(Mutation::SkipTlbiStage1), |inner| inner.tlbi(cpu, Scope::Stage1));
    }

    fn tlbi_vmalls12e1is(&self) {
        let cpu = current_cpu();
        let vmid = self.lock().cpus[cpu].selected;
        let event = Event::TlbiAll { cpu, vmid };
        self.event(event, Some(Mutation::SkipTlbiAll), |inner| inner.tlbi(cpu, Scope::All));
    }

    fn attention(&self) -> bool {
        let mut inner = self.lock();
        let wanted = inner.attention > 0;
        inner.attention = inner.attention.saturating_sub(1);
        wanted
    }
}
