//! Two CPUs on two pages, in every interleaving: `RUSTFLAGS="--cfg loom" cargo test -p tenure-mm --test loom --release`.
//!
//! The real manager runs on a small machine whose words, locks and table entries are points where loom switches. Each
//! CPU runs a short program (share, unshare, drain, revoke, consent, pin, unpin, a fault of the host, its unmap,
//! relinquish, and the making and dropping of guest leaves); afterwards
//! - the answers and the final words must be those of some serial order of the reference model, where a call that was
//!   answered RETRY because of a frozen word counts as not made;
//! - nothing is frozen, the leaves are those of the words, and a page that is private is in no TLB of the host.
#![cfg(loom)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

use std::sync::Mutex as Plain;
use std::sync::atomic::{AtomicU64 as Count, Ordering::Relaxed};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use tenure_abi::flags::{pin, status, unshare, vm as vm_flags};
use tenure_abi::page::State;
use tenure_abi::{Reply, Status, reply};
use tenure_mm::model::{Freed, Model, Touch, View};
use tenure_mm::stage2::host::{HostMap, Kind};
use tenure_mm::{
    Access, Config, Frames, Gfn, HostFault, Ipa, Machine, Mm, Pa, PageWord, Pfn, PinKind, Region, Slot,
    Unshare, Vm, VmHandle, Vmid, Word,
};

const BASE: u64 = 0x40000;
/// Two roots, a level-2 and a level-3 table, panic mode's page, the reserve.
const BOOT: u64 = 7;
const POOL: u64 = BASE + BOOT;
/// The two pages; one more of the host's follows.
const PAGE: u64 = POOL + 4;
const FRAMES: u64 = BOOT + 4 + 3;

/// Words of stack of a CPU.
const STACK: usize = 0x10000;

/// Tables of frames, and pages of which the host or the guest may still use a leaf that is gone.
struct Tables {
    frames: Vec<Box<[u64; 512]>>,
    /// Page, and whether a TLBI was issued for it.
    stale: Vec<(u64, bool)>,
    /// Entries that programs change, with what marks an access to them for loom.
    hot: Vec<((u64, usize), Arc<AtomicU64>)>,
}

/// A machine whose accesses to the leaves of the two pages are switch points.
struct LoomMachine {
    tables: Plain<Tables>,
}

impl LoomMachine {
    fn new() -> Self {
        let frames = (0..FRAMES).map(|_| Box::new([0; 512])).collect();
        Self { tables: Plain::new(Tables { frames, stale: Vec::new(), hot: Vec::new() }) }
    }

    fn place(table: Pa) -> usize {
        (table.frame().0 - BASE) as usize
    }

    /// The leaves of the two pages, of guest and host, are what the programs are about.
    fn watch(&self, guest_root: Pa) {
        let mut tables = self.tables.lock().unwrap();
        let next = |table: Pa, index: usize| Pa(tables.frames[Self::place(table)][index] & 0xffff_ffff_f000);
        let guest = next(next(guest_root, 0), 0).0;
        let host = next(next(Pfn(BASE).base(), 1), 0).0;
        let first = (PAGE & 511) as usize;
        tables.hot = [(guest, 0), (guest, 1), (guest, 2), (host, first), (host, first + 1)]
            .map(|entry| (entry, Arc::new(AtomicU64::new(0))))
            .to_vec();
    }

    fn turn(&self, table: Pa, index: usize) {
        let hot = {
            let tables = self.tables.lock().unwrap();
            tables.hot.iter().find(|(entry, _)| *entry == (table.0, index)).map(|(_, turn)| turn.clone())
        };
        if let Some(turn) = hot {
            turn.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// The leaves of the pages against their words (the full audit is too slow for each interleaving).
    fn compare(&self, views: &[View]) {
        let tables = self.tables.lock().unwrap();
        let leaf = |place: usize| {
            let (table, index) = tables.hot[place].0;
            let value = tables.frames[Self::place(Pa(table))][index];
            (value & 1 != 0).then_some((value & 0xffff_ffff_f000) >> 12)
        };
        for (page, view) in views.iter().enumerate().take(2) {
            let pfn = PAGE + page as u64;
            let guest = (0..3).filter(|&place| leaf(place) == Some(pfn)).count() as u64;
            assert_eq!(guest, view.guest_leaves, "guest leaves of page {page}: {view:?}");
            let fine = match leaf(3 + page) {
                None => true,
                Some(target) if target == pfn => view.host_leaf || view.state == Some(State::Host),
                Some(_) => view.scrap,
            };
            assert!(fine, "the host's leaf of page {page}: {view:?}");
        }
    }

    /// Some CPU may reach `pfn` through a leaf that is gone and not yet invalidated.
    fn is_stale(&self, pfn: u64) -> bool {
        self.tables.lock().unwrap().stale.iter().any(|(page, _)| *page == pfn)
    }
}

impl Machine for LoomMachine {
    fn read(&self, table: Pa, index: usize) -> u64 {
        self.turn(table, index);
        self.tables.lock().unwrap().frames[Self::place(table)][index]
    }
    fn write(&self, table: Pa, index: usize, descriptor: u64) {
        self.turn(table, index);
        let mut tables = self.tables.lock().unwrap();
        let old = std::mem::replace(&mut tables.frames[Self::place(table)][index], descriptor);
        let page = (old & 0xffff_ffff_f000) >> 12;
        if old & 1 != 0 && descriptor & 1 == 0 && (PAGE..PAGE + 2).contains(&page) {
            tables.stale.push((page, false));
        }
    }
    fn zero(&self, frame: Pfn) {
        self.tables.lock().unwrap().frames[(frame.0 - BASE) as usize].fill(0);
    }
    fn scrub(&self, frame: Pfn) {
        self.zero(frame);
    }
    fn clean_to_poc(&self, _: Pfn) {}
    fn drop_instructions(&self) {}
    fn read_words(&self, _: Pfn, _: usize) -> [u64; 32] {
        [0; 32]
    }
    fn dsb_ishst(&self) {}
    fn dsb_ish(&self) {
        self.tables.lock().unwrap().stale.retain(|(_, invalidated)| !invalidated);
    }
    fn isb(&self) {}
    fn select_vmid(&self, _: Vmid) -> Vmid {
        Vmid::HOST
    }
    /// Which page and whose is for the fake machine to judge; here it matters when.
    fn tlbi_ipas2e1is(&self, _: Ipa) {
        self.tables.lock().unwrap().stale.iter_mut().for_each(|(_, invalidated)| *invalidated = true);
    }
    fn has_range_tlbi(&self) -> bool {
        false
    }
    fn tlbi_ripas2e1is(&self, first: Ipa, _: u64) {
        self.tlbi_ipas2e1is(first);
    }
    fn tlbi_vmalle1is(&self) {}
    fn tlbi_vmalls12e1is(&self) {
        self.tlbi_ipas2e1is(Ipa(0));
    }
    fn attention(&self) -> bool {
        false
    }
}

/// One call of a program, on pages 0 and 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Call {
    Share(u64, u64),
    Unshare(u64, u64, u64),
    Consent(u64, u64),
    Pin(u64),
    Unpin(u64),
    Fault(u64),
    HostUnmap(u64),
    Relinquish(u64),
    GuestUnmap(u64),
    Reclaim(u64),
    Donate(u64),
    Destroy,
}

/// What a call came to.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Answer {
    Reply(Reply),
    Unpinned(Reply, u64, u64),
    Fault(HostFault),
    Gone,
}

type Manager = Mm<'static, LoomMachine>;

struct Machinery {
    mm: Manager,
    handle: VmHandle,
    /// Some program destroys the VM.
    mortal: bool,
}

impl Machinery {
    /// The VM lives, two pages are donated at 0 and 1 and shared.
    fn boot(mortal: bool) -> Self {
        let word = |index| if index < BOOT { Word::hyp(Slot::NONE) } else { Word::HOST };
        let words: &'static [PageWord] =
            Box::leak((0..FRAMES).map(|index| PageWord::new(word(index))).collect::<Box<[_]>>());
        let vms: &'static [Vm] = Box::leak(Box::new([Vm::new(Slot(1))]));
        let regions: &'static [Region<'static>] = Box::leak(Box::new([Region { first: Pfn(BASE), words }]));
        let root = HostMap::new(Pfn(BASE).base());
        let mm = Mm::new(LoomMachine::new(), Frames::new(regions), root, vms, Config { fwb: false });
        (2..BOOT).for_each(|page| mm.boot_add_page(Pfn(BASE + page)));
        mm.boot_map(BASE..BASE + FRAMES, Kind::Ram).unwrap();
        mm.boot_map(BASE..BASE + BOOT, Kind::Hidden).unwrap();
        mm.boot_finish().unwrap();
        let handle = mm.vm_create(vm_flags::PROTECTED | vm_flags::RIGHT_REVOKE).unwrap();
        let vm = mm.vm(handle).unwrap();
        assert_eq!(mm.pool_topup(Some(&vm), Pfn(POOL), 4), Reply::done(4));
        assert_eq!(mm.set_status(&vm, Gfn(0), 4, status::PRIVATE), Reply::done(4));
        assert_eq!(mm.donate(&vm, Gfn(0), Pfn(PAGE), 2, status::PRIVATE), Reply::done(2));
        assert_eq!(mm.vm_activate(&vm), Reply::done(0));
        assert_eq!(mm.guest_share(&vm, Gfn(0), 2), Reply::done(2));
        mm.machine().watch(vm.root().unwrap());
        drop(vm);
        Self { mm, handle, mortal }
    }

    fn make(&self, call: Call) -> Answer {
        let mm = &self.mm;
        let read = Access { write: false, execute: false };
        let page = |page: u64| Pfn(PAGE + page);
        match call {
            Call::Pin(number) => return Answer::Reply(mm.pin(page(number), 1, PinKind::Cpu)),
            Call::Unpin(number) => {
                let done = mm.unpin(page(number), 1, PinKind::Cpu);
                return Answer::Unpinned(done.reply, done.drained, done.released);
            }
            Call::Fault(number) => return Answer::Fault(mm.host_fault(page(number).base(), read)),
            Call::HostUnmap(number) => return Answer::Reply(mm.host_unmap(page(number), 1)),
            Call::Destroy => {
                // Until it is done, with a bound: whoever is inside leaves soon.
                let finished = (0..64).any(|_| {
                    loom::thread::yield_now();
                    mm.vm_destroy(self.handle).finished
                });
                assert!(finished);
                return Answer::Gone;
            }
            _ => {}
        }
        if !self.mortal {
            // Nobody destroys the VM: its gate would only add interleavings.
            return self.call(&mm.vms()[0], call);
        }
        match mm.vm(self.handle) {
            Ok(vm) => self.call(&vm, call),
            Err(_) => Answer::Gone,
        }
    }

    fn call(&self, vm: &Vm, call: Call) -> Answer {
        let (mm, page) = (&self.mm, |page: u64| Pfn(PAGE + page));
        Answer::Reply(match call {
            Call::Share(first, count) => mm.guest_share(vm, Gfn(first), count),
            Call::Unshare(first, count, flags) => {
                mm.guest_unshare(vm, Gfn(first), count, Unshare::from_flags(vm, flags).unwrap())
            }
            Call::Consent(first, count) => mm.consent(vm, Gfn(first), count, Unshare::default()),
            Call::Relinquish(gfn) => mm.guest_relinquish(vm, Gfn(gfn), 1),
            Call::GuestUnmap(gfn) => mm.guest_unmap(vm, Gfn(gfn), 1),
            Call::Reclaim(number) => mm.reclaim(vm, page(number), 1),
            Call::Donate(gfn) => mm.donate(vm, Gfn(gfn), page(0), 1, status::PRIVATE),
            _ => unreachable!(),
        })
    }

    fn views(&self) -> Vec<View> {
        (PAGE..PAGE + 3).map(|pfn| View::of_word(self.mm.query(Pfn(pfn)).unwrap().raw())).collect()
    }
}

/// The model as [`Machinery::boot`] leaves the machine.
fn reference() -> Model {
    let mut model = Model::new(BASE..BASE + FRAMES);
    model.take_for_hypervisor(BASE..BASE + BOOT);
    model.create(1, true, true);
    model.topup(Some(1), POOL, 4);
    model.set_status(1, 0, 4, status::PRIVATE);
    model.donate(1, 0, PAGE, 2, status::PRIVATE);
    model.activate(1);
    model.share(1, 0, 2);
    model
}

/// Makes `call` on the model; true if it answers as the manager did.
fn agrees(model: &mut Model, call: Call, answer: Answer) -> bool {
    if let Answer::Reply(reply) | Answer::Unpinned(reply, ..) = answer
        && reply.status == Status::Retry
        && reply.mask & reply::FROZEN != 0
    {
        return true;
    }
    if !model.vms.contains_key(&1) && answer == Answer::Gone {
        return true;
    }
    let expect = match call {
        Call::Share(first, count) => model.share(1, first, count),
        Call::Unshare(first, count, flags) => model.unshare(1, first, count, flags),
        Call::Consent(first, count) => model.consent(1, first, count, 0),
        Call::Pin(page) => model.pin(PAGE + page, 1, pin::CPU),
        Call::Unpin(page) => {
            let (expect, Freed { drained, returned, .. }) = model.unpin(PAGE + page, 1, pin::CPU);
            return answer == Answer::Unpinned(expect.reply, drained, returned);
        }
        Call::Fault(page) => {
            let touch = model.touch(PAGE + page);
            return (answer == Answer::Fault(HostFault::Abort)) == (touch == Touch::Abort);
        }
        Call::HostUnmap(page) => model.host_unmap(PAGE + page, 1),
        Call::Relinquish(gfn) => model.relinquish(1, gfn, 1),
        Call::GuestUnmap(gfn) => model.guest_unmap(1, gfn, 1),
        Call::Reclaim(page) => model.reclaim(1, PAGE + page, 1),
        Call::Donate(gfn) => model.donate(1, gfn, PAGE, 1, status::PRIVATE),
        Call::Destroy => {
            model.destroy(1);
            return answer == Answer::Gone;
        }
    };
    answer == Answer::Reply(expect.reply)
}

/// True if some order of the calls of both CPUs explains all answers and the words.
fn explained(model: &Model, rest: [&[(Call, Answer)]; 2], views: &[View]) -> bool {
    if rest.iter().all(|calls| calls.is_empty()) {
        let slot = |_| 1;
        return (PAGE..).zip(views).all(|(pfn, view)| View::of_frame(&model.frames[&pfn], slot) == *view);
    }
    (0..2).any(|cpu| {
        let Some((&(call, answer), later)) = rest[cpu].split_first() else { return false };
        let mut next = rest;
        next[cpu] = later;
        // A fault that met a frozen word, or lost a race, just returns to its instruction.
        let resumed = answer == Answer::Fault(HostFault::Resume) && explained(model, next, views);
        let mut model = model.clone();
        resumed || agrees(&mut model, call, answer) && explained(&model, next, views)
    })
}

/// Explores all interleavings of two programs after `first`; says how many there are. `LOOM_MAX_PREEMPTIONS` bounds
/// them.
fn explore(first: &[Call], programs: [&[Call]; 2]) -> u64 {
    let explored = std::sync::Arc::new(Count::new(0));
    let counter = explored.clone();
    let first: &'static [Call] = Vec::leak(first.to_vec());
    let programs: [&'static [Call]; 2] = programs.map(|calls| &*Vec::leak(calls.to_vec()));
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 1_000_000;
    builder.preemption_bound =
        std::env::var("LOOM_MAX_PREEMPTIONS").ok().and_then(|bound| bound.parse().ok());
    builder.check(move || {
        counter.fetch_add(1, Relaxed);
        // loom's main thread has a stack too small for a call that holds 512 words.
        spawn(move || check(first, programs)).join().unwrap();
    });
    explored.load(Relaxed)
}

fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> loom::thread::JoinHandle<T> {
    loom::thread::Builder::new().stack_size(STACK).spawn(body).unwrap()
}

/// One interleaving.
fn check(first: &'static [Call], programs: [&'static [Call]; 2]) {
    let machinery = Arc::new(Machinery::boot(programs.iter().any(|calls| calls.contains(&Destroy))));
    let mut model = reference();
    for &call in first {
        let answer = machinery.make(call);
        assert!(agrees(&mut model, call, answer), "{call:?} beforehand: {answer:?}");
    }
    let run = |machinery: &Machinery, calls: &[Call]| -> Vec<(Call, Answer)> {
        calls.iter().map(|&call| (call, machinery.make(call))).collect()
    };
    let other = machinery.clone();
    let thread = spawn(move || run(&other, programs[1]));
    let mine = run(&machinery, programs[0]);
    let theirs = thread.join().unwrap();
    let views = machinery.views();
    assert!(
        explained(&model, [&mine, &theirs], &views),
        "after {first:?} no order explains\n{mine:?}\n{theirs:?}\n{views:#?}"
    );
    machinery.mm.machine().compare(&views);
    for (pfn, view) in (PAGE..).zip(&views) {
        let private = view.state == Some(State::Private);
        assert!(
            !private || !machinery.mm.machine().is_stale(pfn),
            "{pfn:#x} is private and in a TLB of the host"
        );
    }
}

/// Explores two programs, and says how much there was.
fn pair(first: &[Call], one: &[Call], two: &[Call]) {
    let explored = explore(first, [one, two]);
    println!("{first:?}: {one:?} | {two:?}: {explored} interleavings");
}

use Call::*;

const DRAIN: u64 = unshare::DRAIN;
const REVOKE: u64 = unshare::REVOKE;

#[test]
fn scenario_02_pins_against_an_unshare_are_never_half_seen() {
    pair(&[], &[Unshare(0, 1, 0)], &[Pin(0)]);
    pair(&[Pin(0)], &[Unshare(0, 1, 0)], &[Unpin(0)]);
    pair(&[], &[Unshare(0, 1, 0)], &[Pin(0), Unpin(0)]);
    pair(&[], &[Pin(0)], &[Pin(0)]);
    pair(&[Pin(0)], &[Unpin(0)], &[Unpin(0)]);
}

#[test]
fn scenario_05_and_06_a_fault_of_the_host_against_an_unshare() {
    pair(&[], &[Unshare(0, 1, 0)], &[Fault(0)]);
    pair(&[Fault(0)], &[Consent(0, 1)], &[Fault(0)]);
    pair(&[Fault(0)], &[Unshare(0, 1, REVOKE)], &[Fault(0)]);
    pair(&[Fault(0)], &[HostUnmap(0)], &[Fault(0)]);
}

#[test]
fn scenario_20_share_against_unshare() {
    pair(&[], &[Share(0, 1)], &[Unshare(0, 1, 0)]);
    pair(&[Unshare(0, 1, 0)], &[Share(0, 1)], &[Unshare(0, 1, 0)]);
    pair(&[Fault(0)], &[Share(0, 1)], &[Consent(0, 1)]);
}

#[test]
fn a_drain_finishes_once() {
    let draining = &[Pin(0), Unshare(0, 1, DRAIN)];
    pair(&[Pin(0)], &[Unshare(0, 1, DRAIN)], &[Unpin(0)]);
    pair(draining, &[Unpin(0)], &[Share(0, 1)]);
    pair(draining, &[Unpin(0)], &[Fault(0)]);
    pair(draining, &[Unpin(0)], &[Unshare(0, 1, REVOKE)]);
    pair(draining, &[Unpin(0)], &[Pin(0)]);
    pair(&[Pin(0), Pin(0), Unshare(0, 1, DRAIN)], &[Unpin(0)], &[Unpin(0)]);
}

#[test]
fn consent_and_revoke_against_pins_and_each_other() {
    pair(&[Fault(0)], &[Consent(0, 1)], &[Pin(0)]);
    pair(&[Fault(0)], &[Consent(0, 1)], &[HostUnmap(0)]);
    pair(&[Fault(0)], &[Unshare(0, 1, REVOKE)], &[Pin(0)]);
    pair(&[Pin(0)], &[Unshare(0, 1, REVOKE)], &[Unpin(0)]);
}

#[test]
fn two_pages_against_one_another() {
    pair(&[], &[Unshare(0, 2, 0)], &[Pin(1)]);
    pair(&[], &[Unshare(0, 2, 0)], &[Fault(1)]);
    pair(&[], &[Pin(0)], &[Pin(1)]);
    pair(&[Pin(1)], &[Unshare(0, 2, 0)], &[Unpin(1)]);
    pair(&[], &[Unshare(0, 2, 0)], &[Share(1, 1)]);
}

#[test]
fn scenario_07_08_and_25_ways_out_against_ways_in() {
    pair(&[], &[Relinquish(0)], &[Share(0, 1)]);
    pair(&[], &[GuestUnmap(0)], &[Unshare(0, 1, 0)]);
    pair(&[GuestUnmap(0)], &[Reclaim(0)], &[Pin(0)]);
    pair(&[], &[Relinquish(0)], &[Fault(0)]);
}

#[test]
fn scenario_25_a_frame_that_moves_between_a_walk_and_its_swap() {
    pair(&[Unshare(0, 2, 0)], &[Relinquish(0), Donate(2)], &[Share(0, 1)]);
}

#[test]
fn scenario_09_the_death_of_a_vm_against_its_holders() {
    pair(&[Pin(0)], &[Destroy], &[Unpin(0)]);
    pair(&[Fault(0)], &[Destroy], &[Fault(0)]);
    pair(&[], &[Destroy], &[Pin(1)]);
}

/// The long form (`TENURE_CASES` is set): each pair of single calls on one page, from each state.
#[test]
fn every_pair_of_calls_from_every_state() {
    if std::env::var_os("TENURE_CASES").is_none() {
        return;
    }
    let states: [&[Call]; 6] = [
        &[],
        &[Fault(0)],
        &[Pin(0)],
        &[Fault(0), Pin(0)],
        &[Pin(0), Unshare(0, 1, DRAIN)],
        &[Unshare(0, 2, 0)],
    ];
    let calls = [
        Share(0, 1),
        Unshare(0, 1, 0),
        Unshare(0, 1, DRAIN),
        Unshare(0, 1, REVOKE),
        Consent(0, 1),
        Pin(0),
        Unpin(0),
        Fault(0),
        HostUnmap(0),
        Unshare(0, 2, 0),
    ];
    for first in states {
        for (index, one) in calls.into_iter().enumerate() {
            for two in calls.into_iter().skip(index) {
                pair(first, &[one], &[two]);
            }
        }
    }
}
