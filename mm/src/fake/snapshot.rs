//! The whole machine as a value: kept, compared and come back to by tests that explore what it can become.

use super::FakeMachine;
use super::check::{Book, Moment};
use super::event::Log;
use super::inner::Inner;
use crate::Pa;

/// The machine at one moment, without its log. Two are equal if no future can tell them apart: times are kept as ranks.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Snapshot(Inner);

impl Snapshot {
    /// Entry `index` of the table at `table`, as a CPU reads it.
    pub fn entry(&self, table: Pa, index: usize) -> u64 {
        self.0.frame(table.frame().0).map_or(0, |frame| frame.data.get(index))
    }
}

impl FakeMachine {
    /// What the machine is now; its log and its violations are forgotten.
    pub fn snapshot(&self) -> Snapshot {
        let mut inner = self.lock().clone();
        inner.log = Log::default();
        inner.violations.clear();
        inner.rank_times();
        Snapshot(inner)
    }

    /// Makes the machine what it was.
    pub fn restore(&self, snapshot: &Snapshot) {
        self.lock().clone_from(&snapshot.0);
    }

    /// Compares what can be reached with `book`, in the middle of operations, as after an event.
    pub fn look(&self, book: &dyn Book) {
        let mut inner = self.lock();
        inner.check_translations(book, Moment::Live);
        inner.check_states(book);
    }

    /// Violations since the last call.
    pub fn take_violations(&self) -> Vec<String> {
        core::mem::take(&mut self.lock().violations)
    }
}

impl Inner {
    /// Replaces all times by their ranks: only which of two came first matters.
    fn rank_times(&mut self) {
        let mut times = Vec::new();
        self.each_time(&mut |time| times.push(*time));
        times.sort_unstable();
        times.dedup();
        self.each_time(&mut |time| {
            let rank = times.binary_search(time).unwrap_or(0);
            *time = rank as u64;
        });
        self.now = times.len() as u64;
    }

    fn each_time(&mut self, each: &mut dyn FnMut(&mut u64)) {
        // Zero stands for "before everything".
        let mut zero = 0;
        each(&mut zero);
        for life in self.tlb.entries.values_mut() {
            each(&mut life.last_walk);
            each(&mut life.stage2_end);
        }
        for cpu in &mut self.cpus {
            cpu.tlbis.iter_mut().for_each(|tlbi| each(&mut tlbi.at));
        }
        for olds in self.alternatives.values_mut() {
            olds.iter_mut().filter_map(|old| old.synced.as_mut()).for_each(&mut *each);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{Ipa, Machine, Pfn, Vmid};

    #[test]
    fn a_restored_machine_goes_on_as_before_and_equal_histories_are_equal() {
        let machine = FakeMachine::new(Pfn(0x40000), 4);
        machine.zero(Pfn(0x40000));
        machine.dsb_ish();
        machine.attach(Vmid(1), Pfn(0x40000), 1);
        let before = machine.snapshot();
        let act = || {
            machine.write(Pa(0x4000_0000), 3, 0x7fd);
            machine.dsb_ishst();
            machine.tlbi_ipas2e1is(Ipa(0));
        };
        act();
        let after = machine.snapshot();
        assert!(before != after);
        machine.restore(&before);
        assert!(before == machine.snapshot());
        machine.isb();
        machine.select_vmid(Vmid::HOST);
        act();
        assert!(after == machine.snapshot());
    }
}
