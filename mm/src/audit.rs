//! Compares the words with the tables: every count must equal what a walk gives. For tests, at rest.

use std::collections::BTreeMap;
use std::string::String;
use std::vec::Vec;

use tenure_abi::page::State;

use crate::addr::{Gfn, Pa, Pfn};
use crate::machine::Machine;
use crate::manager::Mm;
use crate::stage2::guest::walk;
use crate::stage2::{Descriptor, GUEST_FRAMES, LEAF_LEVEL, frames_per_entry};
use crate::vm::Vm;
use crate::word::Word;

/// Leaves of every VM: (slot, guest frame, frame).
type Leaves = Vec<(u8, Gfn, Pfn)>;

/// Checks every word of the machine against both kinds of tables. Returns what is wrong, one line each.
pub fn audit<M: Machine>(mm: &Mm<'_, M>) -> Vec<String> {
    let mut faults = Vec::new();
    let leaves: Leaves = mm.vms().iter().flat_map(|vm| guest_leaves(mm, vm)).collect();
    let mut counts: BTreeMap<Pfn, u64> = BTreeMap::new();
    for (slot, gfn, frame) in &leaves {
        *counts.entry(*frame).or_default() += 1;
        match mm.frames.word(*frame).map(|cell| cell.load()) {
            None => faults.push(format!("vm {slot} maps {gfn:?} to {frame:?}, which is no RAM")),
            Some(word) => check_owner(&mut faults, *slot, *gfn, *frame, word),
        }
    }
    for region in mm.frames.regions() {
        for (index, cell) in region.words.iter().enumerate() {
            let frame = region.first.offset(index as u64);
            let word = cell.load();
            let found = counts.get(&frame).copied().unwrap_or(0);
            if word.guest_leaves() != found {
                faults.push(format!("{frame:?}: {word:?} but {found} guest leaves"));
            }
            if word.is_frozen() {
                faults.push(format!("{frame:?}: {word:?} at rest"));
            }
            check_host(mm, &mut faults, frame, word);
        }
    }
    faults
}

fn check_owner(faults: &mut Vec<String>, slot: u8, gfn: Gfn, frame: Pfn, word: Word) {
    let fine = match word.state() {
        State::Host => true,
        State::Private | State::Shared | State::Draining => word.owner().0 == slot,
        _ => false,
    };
    if !fine {
        faults.push(format!("vm {slot} maps {gfn:?} to {frame:?}: {word:?}"));
    }
}

fn check_host<M: Machine>(mm: &Mm<'_, M>, faults: &mut Vec<String>, frame: Pfn, word: Word) {
    let entry = mm.host.walk(&mm.machine, frame);
    if word.state() == State::Host {
        return;
    }
    if entry.level < LEAF_LEVEL {
        faults.push(format!("{frame:?}: {word:?} under a host block"));
        return;
    }
    let mapped = entry.descriptor.is_valid().then(|| entry.descriptor.frame());
    let fine = match mapped {
        None => true,
        Some(target) if target == frame => word.has_host_leaf(),
        Some(_) => word.is_redirected(),
    };
    if !fine {
        faults.push(format!("{frame:?}: {word:?} but the host maps {mapped:?}"));
    }
}

fn guest_leaves<M: Machine>(mm: &Mm<'_, M>, vm: &Vm) -> Leaves {
    let mut leaves = Vec::new();
    let Some(root) = vm.root() else { return leaves };
    let mut at = 0;
    while at < GUEST_FRAMES {
        let entry = walk(&mm.machine, root, Gfn(at));
        let span = frames_per_entry(entry.level);
        if entry.descriptor.is_valid() {
            let pages = (at..at + span).map(Gfn);
            leaves.extend(pages.map(|gfn| (vm.slot().0, gfn, entry.frame_of(gfn))));
        }
        at += span;
    }
    leaves
}

/// Raw descriptors on the way to a host frame, for messages of tests.
pub fn host_descriptor<M: Machine>(mm: &Mm<'_, M>, frame: Pfn) -> (Pa, u32, Descriptor) {
    let entry = mm.host.walk(&mm.machine, frame);
    (entry.table, entry.level, entry.descriptor)
}
