//! What must hold of everything that any CPU may reach, judged by the page words.

use std::collections::BTreeMap;

use tenure_abi::page::{self, State};

use super::FakeMachine;
use super::event::Event;
use super::inner::Inner;
use super::tlb::{Translation, key};
use crate::{Pfn, Vmid};

/// The manager's books, as the machine may look into them at any time without a lock.
pub trait Book: Send + Sync {
    /// Word of a RAM frame; `None` where there is none.
    fn word(&self, pfn: Pfn) -> Option<u64>;
    /// Slot (owner field) of the VM that uses `vmid`.
    fn slot_of(&self, vmid: Vmid) -> Option<u64>;
    /// True for the scrap frame of some VM.
    fn is_scrap(&self, pfn: Pfn) -> bool;
}

/// When the books are looked into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// In the middle of operations: frozen words cover what is being changed.
    Live,
    /// No CPU is in EL2: nothing is frozen or half done, and every count is exact.
    Rest,
}

impl FakeMachine {
    /// Every promise that can be judged from outside, with no operation under way.
    ///
    /// # Errors
    /// All violations since the last check, in words.
    pub fn check(&self, book: &dyn Book) -> Result<(), Vec<String>> {
        let mut inner = self.lock();
        inner.check_translations(book, Moment::Rest);
        inner.check_states(book);
        inner.check_rest(book);
        match core::mem::take(&mut inner.violations) {
            found if found.is_empty() => Ok(()),
            found => Err(found),
        }
    }

    /// Violations that have been seen and not yet reported by [`FakeMachine::check`].
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }
}

/// What of the host's and the guests' leaves leads to one frame.
#[derive(Default)]
struct Reached {
    host: u64,
    scrap: u64,
    guest: u64,
}

impl Inner {
    /// After `event`, in the middle of an operation.
    pub(super) fn check_live(&mut self, book: &dyn Book, event: &Event) {
        self.check_event(book, event);
        if let Event::Write { table, .. } = event
            && !self.links.contains_key(&table.frame().0)
        {
            return; // no walker can see it yet
        }
        self.check_translations(book, Moment::Live);
        self.check_states(book);
    }

    /// Only frames that are the hypervisor's, nobody's or frozen may be written to by the hypervisor.
    fn check_event(&mut self, book: &dyn Book, event: &Event) {
        let (frame, what) = match *event {
            Event::Write { table, .. } => (table.frame(), "written as a table"),
            Event::Zero { frame, .. } => (frame, "zeroed"),
            Event::Scrub { frame, .. } => (frame, "scrubbed"),
            _ => return,
        };
        let Some(word) = book.word(frame) else { return };
        let free = matches!(State::of(word), Some(State::Hyp | State::Quarantine));
        if !free && page::FROZEN.get(word) == 0 {
            self.violation(format!("{frame:?} is {what} while its word is {}", describe(word)));
        }
    }

    pub(super) fn check_translations(&mut self, book: &dyn Book, moment: Moment) {
        let mut reached: BTreeMap<u64, Reached> = BTreeMap::new();
        let mut bad = Vec::new();
        let (base, end) = (self.base, self.base + self.frames.len() as u64);
        for translation in self.tlb.entries.keys() {
            let first = translation.pa >> 12;
            let last = first + (1 << (translation.shift - 12));
            for pfn in first.max(base)..last.min(end) {
                let at = (translation.ipa >> 12) + (pfn - first);
                let seen = reached.entry(pfn).or_default();
                if let Err(text) = self.judge(book, moment, translation, Pfn(pfn), at, seen) {
                    bad.push(format!("{text}: {translation:x?}"));
                }
                if translation.vmid == Vmid::HOST && pfn != at {
                    reached.entry(at).or_default().scrap += 1;
                }
            }
        }
        for pfn in base..end {
            let seen = reached.remove(&pfn).unwrap_or_default();
            let Some(word) = book.word(Pfn(pfn)) else { continue };
            if let Err(text) = count(&seen, word, moment) {
                bad.push(format!("frame {pfn:#x}: {text}, word {}", describe(word)));
            }
        }
        for &table in self.links.keys() {
            if let Some(word) = book.word(Pfn(table))
                && State::of(word) != Some(State::Hyp)
                && page::FROZEN.get(word) == 0
            {
                bad.push(format!("walkers may use {table:#x} as a table, word {}", describe(word)));
            }
        }
        bad.into_iter().for_each(|text| self.violation(text));
    }

    /// May this translation lead to this frame?
    fn judge(
        &self,
        book: &dyn Book,
        moment: Moment,
        translation: &Translation,
        pfn: Pfn,
        at: u64,
        seen: &mut Reached,
    ) -> Result<(), String> {
        let Some(word) = book.word(pfn) else { return Err(format!("{pfn:?} has no word")) };
        let state = State::of(word);
        let frozen = moment == Moment::Live && page::FROZEN.get(word) != 0;
        let scrubbed = self.frame(pfn.0).is_some_and(|frame| frame.is_scrubbed());
        let own = translation.vmid == Vmid::HOST && state == Some(State::Host);
        // Normal write-back; with FWB what stage 1 says (7) or forced (6). Through an alias of another type the host could
        // write behind a cache line that a guest reads, or find its own frame cached where it wants that least.
        let attr = if !self.fwb {
            0xf
        } else if own {
            7
        } else {
            6
        };
        if translation.attr != attr {
            return Err(format!(
                "{pfn:?} is reached as another type of memory than {attr}, word {}",
                describe(word)
            ));
        }
        if translation.vmid == Vmid::HOST {
            if pfn.0 != at {
                let exec = translation.perms.exec;
                return match book.is_scrap(pfn) && !exec && state == Some(State::Hyp) {
                    true => Ok(()),
                    false => Err(format!("the host reaches {pfn:?} at another address")),
                };
            }
            seen.host += 1;
            return match state {
                Some(State::Host) => Ok(()),
                Some(State::Shared | State::Draining | State::Quarantine) if translation.shift == 12 => {
                    Ok(())
                }
                // On its way back: frozen, and nothing of the former owner is left in it.
                Some(State::Private) if frozen && scrubbed => Ok(()),
                _ => Err(format!("the host reaches {pfn:?}, word {}", describe(word))),
            };
        }
        seen.guest += 1;
        let slot = book.slot_of(translation.vmid);
        let owner = page::OWNER.get(word);
        match state {
            _ if frozen => Ok(()),
            Some(State::Private | State::Shared | State::Draining | State::Quarantine)
                if slot == Some(owner) =>
            {
                Ok(())
            }
            Some(State::Host) if slot.is_some() => Ok(()),
            _ => Err(format!("a guest reaches {pfn:?} of slot {owner}, word {}", describe(word))),
        }
    }

    /// What a frame holds when it changes hands.
    pub(super) fn check_states(&mut self, book: &dyn Book) {
        for place in 0..self.frames.len() {
            let pfn = self.base + place as u64;
            let Some(word) = book.word(Pfn(pfn)) else { continue };
            let state = page::STATE.get(word);
            let Some(before) = self.states[place].replace(state) else { continue };
            let [host, private, shared, parked] =
                [State::Host, State::Private, State::Shared, State::Quarantine].map(|state| state as u64);
            let to_guest = state == private || state == shared;
            let changes_hands =
                before != state && (state == host || to_guest && (before == host || before == parked));
            // A host that had a leaf all along may have stored something since the scrub.
            let fit = match state == host {
                true => self.frames[place].is_fit_for_host(),
                false => self.frames[place].is_scrubbed(),
            };
            if changes_hands && !fit {
                self.violation(format!(
                    "frame {pfn:#x} changed hands from state {before} with old contents in it or behind it, word {}",
                    describe(word)
                ));
            }
        }
    }

    /// Nothing is half done when EL2 is left.
    fn check_rest(&mut self, book: &dyn Book) {
        let mut bad = Vec::new();
        for place in 0..self.frames.len() {
            let pfn = self.base + place as u64;
            if let Some(word) = book.word(Pfn(pfn))
                && page::FROZEN.get(word) != 0
            {
                bad.push(format!("frame {pfn:#x} is left frozen, word {}", describe(word)));
            }
        }
        for (&(table, index), olds) in &self.alternatives {
            if self.links.contains_key(&table) && olds.iter().any(|old| old.synced.is_none()) {
                bad.push(format!("entry {index} of table {table:#x} is left without a DSB"));
            }
        }
        for (number, cpu) in self.cpus.iter().enumerate() {
            if cpu.selected != cpu.loaded {
                bad.push(format!(
                    "CPU {number} is left with {:?} selected, not {:?}",
                    cpu.selected, cpu.loaded
                ));
            }
            if !cpu.tlbis.is_empty() || !cpu.cleans.is_empty() {
                bad.push(format!("CPU {number} leaves with maintenance that no DSB has completed"));
            }
        }
        for &vmid in self.regimes.keys() {
            for (translation, life) in self.tlb.entries.range(key(vmid, 0)..key(Vmid(vmid.0 + 1), 0)) {
                if !life.walkable {
                    bad.push(format!("a stale translation is left in a TLB: {translation:x?} {life:?}"));
                }
            }
        }
        bad.into_iter().for_each(|text| self.violation(text));
    }
}

/// The word's leaf bits and counts against what can be reached.
fn count(seen: &Reached, word: u64, moment: Moment) -> Result<(), String> {
    if moment == Moment::Live && page::FROZEN.get(word) != 0 {
        return Ok(());
    }
    let leaves = page::GUEST_LEAVES.get(word);
    let rest = moment == Moment::Rest;
    if seen.guest > leaves || rest && seen.guest != leaves {
        return Err(format!("{} guest leaves can be reached, {leaves} are counted", seen.guest));
    }
    let (leaf, scrap) = (page::HOST_LEAF.get(word), page::SCRAP.get(word));
    // The redirection stands from the moment that the leaf went; its leaf comes at the host's next touch.
    if seen.scrap > scrap {
        return Err(format!("{} scrap leaves of the host can be reached, bit is {scrap}", seen.scrap));
    }
    if State::of(word) != Some(State::Host) && (seen.host > leaf || rest && (seen.host > 0) != (leaf > 0)) {
        return Err(format!("{} leaves of the host can be reached, bit is {leaf}", seen.host));
    }
    Ok(())
}

/// A word in words.
pub(super) fn describe(word: u64) -> String {
    let mut text = format!("{:?}", State::of(word));
    for (name, field) in page::FIELDS {
        if *name != "STATE" && field.get(word) != 0 {
            text += &format!(" {name}={}", field.get(word));
        }
    }
    text
}
