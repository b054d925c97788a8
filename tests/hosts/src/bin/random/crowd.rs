//! Rounds: several CPUs act on the same few pages at the same time, one call or access each, and some order of them, one after the
//! other, must explain every answer and what is left behind.
//!
//! A call that met another one's frozen word (RETRY, which changes nothing) and one that was short of table memory stand outside
//! that order.

use alloc::vec::Vec;

use tenure_abi::{Reply, Status, call, exit, reply};
use tenure_mm::model::{Frame, Model, Touch as Reach};
use tenure_test_hosts::memory;
use tenure_test_rt::harness::{Failure, TestResult};
use tenure_test_rt::probe::Outcome;
use tenure_test_rt::{fail, note};

use crate::blocks::{donated, reclaimed};
use crate::compare::REFUSED;
use crate::crew::{self, Job, Told};
use crate::dice::Dice;
use crate::guest::Came;
use crate::op::{Op, Order, Touch};
use crate::place::{self, ALL, ALL_GFNS, BLOCK, BLOCKS, FRAMES, GFN_BLOCKS, GFNS};
use crate::world::{VMS, World};

/// Frames and addresses of each VM that a round is about.
const NARROW: u64 = 3;
/// Most instructions that a CPU waits before it acts.
const SPREAD: u64 = 600;

/// What a round is about: numbers of the first frame and address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Spot {
    frame: u64,
    gfn: u64,
    /// It is at the same place of a block of frames and one of addresses.
    wide: bool,
}

impl Spot {
    fn any(dice: &mut Dice) -> Self {
        if dice.once_in(3) {
            let place = dice.below(BLOCK - NARROW);
            let frame = place::frame_in(dice.below(BLOCKS), place);
            return Self { frame, gfn: place::address_in(dice.below(GFN_BLOCKS), place), wide: true };
        }
        Self { frame: dice.below(FRAMES), gfn: dice.below(GFNS - 2 * NARROW), wide: false }
    }

    /// Number of a frame of the spot.
    fn frame(self, number: u64) -> u64 {
        let frame = self.frame + number % NARROW;
        if self.wide { frame } else { frame % FRAMES }
    }

    /// Number of an address of the spot.
    fn gfn(self, number: u64) -> u64 {
        self.gfn + number % NARROW
    }

    /// Places in its blocks.
    fn place(self) -> u64 {
        self.frame.wrapping_sub(FRAMES) % BLOCK
    }
}

/// One CPU's part in a round, with its arguments as the calls take them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    Donate(usize, u64, u64, u64, u64),
    Reclaim(usize, u64, u64),
    Convert(usize, u64, u64, u64),
    GuestMap(usize, u64, u64, u64),
    GuestUnmap(usize, u64, u64),
    HostMap(u64),
    HostUnmap(u64, u64),
    Pin(u64, u64, u64),
    Unpin(u64, u64),
    Read(u64, u64),
    Write(u64, u64, u64),
    Guest(usize, Order),
}

/// What is seen of an act.
enum Seen {
    Registers(Told),
    Guest(Came),
}

impl World {
    /// One round of `cpus` CPUs.
    ///
    /// # Errors
    /// Answers that no order explains.
    pub fn round(&mut self, seed: u64, step: u64, cpus: usize) -> TestResult {
        let mut dice = Dice::new(!seed, step);
        // Guests that wait for the host are of no use here.
        for vm in 0..VMS {
            if self.party(vm).is_some_and(|party| !party.guest.is_idle()) && dice.once_in(2) {
                self.take(Op::Answer { vm, frame: dice.below(FRAMES), how: dice.below(8) })?;
                self.guest(vm, Order::Read { gfn: dice.below(ALL_GFNS), word: 0 })?;
            }
        }
        let spot = Spot::any(&mut dice);
        if spot.wide && dice.once_in(2) {
            self.clear((spot.frame - FRAMES) / BLOCK)?;
        }
        let acts = self.acts(seed, step, &mut dice, spot, cpus);
        self.named.set([(self.first + spot.frame(0), NARROW), (place::address(spot.gfn), NARROW)]);
        let jobs = acts.iter().map(|act| Ok((self.job(act)?, dice.below(SPREAD))));
        let jobs = jobs.collect::<Result<Vec<_>, Failure>>()?;
        let told = crew::round(cpus, &jobs)?;
        let mut seen = Vec::new();
        for (act, told) in acts.iter().zip(told) {
            seen.push(match act {
                Act::Guest(vm, _) => Seen::Guest(self.came(*vm, &told)?),
                _ => Seen::Registers(told),
            });
        }
        self.explain(&acts, &seen)
    }

    /// Tells how much happened at the same time.
    pub fn tell_rounds(&self) {
        let [rounds, acts, outside, other] = self.rounds;
        if rounds > 0 {
            note!(
                "{rounds} rounds of {acts} acts, {outside} met a frozen word, {other} rounds in another order than the CPUs'"
            );
        }
    }

    /// What each CPU does: one guest is run by one CPU only.
    fn acts(&self, seed: u64, step: u64, dice: &mut Dice, spot: Spot, cpus: usize) -> Vec<Act> {
        let mut acts = Vec::new();
        if spot.wide && dice.once_in(2) {
            acts.extend(self.block_act(dice.below(VMS as u64) as usize, spot));
        }
        let mut running = [false; VMS];
        let mut tries = 0;
        while acts.len() < cpus && tries < 400 {
            tries += 1;
            let op = Op::of(seed ^ 0x5eed, step.wrapping_mul(512).wrapping_add(tries));
            let Some(act) = self.act(op, spot) else { continue };
            if let Act::Guest(vm, _) = act {
                match running.get_mut(vm) {
                    Some(running) if !*running => *running = true,
                    _ => continue,
                }
            }
            acts.push(act);
        }
        acts
    }

    /// The next call of a block's donation: it begins, or goes on.
    fn block_act(&self, vm: usize, spot: Spot) -> Option<Act> {
        self.party(vm)?;
        let (pfn, gfn) = (self.first + spot.frame - spot.place(), place::address(spot.gfn) - spot.place());
        let owes = |frame: &Frame| frame.owner == Some(vm) && frame.owes_scrub;
        let due = self.model.frames.range(pfn..pfn + BLOCK).position(|(_, frame)| owes(frame));
        let place = due.unwrap_or(0) as u64;
        Some(Act::Donate(vm, gfn + place, pfn + place, BLOCK - place, tenure_abi::flags::status::PRIVATE))
    }

    /// A step of one CPU turned to the few frames and addresses of the round.
    fn act(&self, op: Op, spot: Spot) -> Option<Act> {
        let near = |number: u64| self.first + spot.frame(number);
        let at = |number: u64| place::address(spot.gfn(number));
        // The frame that stands at such an address, or else one of the frames.
        let there = |vm: usize, number: u64| {
            let address = self.model.vms.get(&vm).and_then(|vm| vm.addresses.get(&at(number)));
            address
                .and_then(|address| address.frame)
                .filter(|_| !number.is_multiple_of(4))
                .unwrap_or(near(number))
        };
        let any = |number: u64| there(number as usize % VMS, number);
        let few =
            |pfn: u64, count: u64| count.clamp(1, (self.first + ALL).saturating_sub(pfn).clamp(1, NARROW));
        let lives = |vm: usize| self.party(vm).is_some();
        Some(match op {
            Op::Donate { vm, gfn, frame, count, kind } if lives(vm) => {
                let kind = kind.unwrap_or(tenure_abi::flags::status::PRIVATE);
                Act::Donate(vm, at(gfn), near(frame), few(near(frame), count), kind)
            }
            Op::Furnish { vm, .. } if spot.wide => return self.block_act(vm, spot),
            Op::Reclaim { vm, frame, count } if lives(vm) => {
                Act::Reclaim(vm, any(frame), few(any(frame), count))
            }
            Op::Convert { vm, gfn, count, to } if lives(vm) => {
                Act::Convert(vm, at(gfn), count.clamp(1, NARROW), to)
            }
            Op::GuestMap { vm, gfn, frame, count } if lives(vm) => {
                Act::GuestMap(vm, at(gfn), any(frame), few(any(frame), count))
            }
            Op::GuestUnmap { vm, gfn, count } if lives(vm) => {
                Act::GuestUnmap(vm, at(gfn), count.clamp(1, NARROW))
            }
            Op::HostMap { frame, .. } => Act::HostMap(any(frame)),
            Op::HostUnmap { frame, count } => Act::HostUnmap(any(frame), few(any(frame), count)),
            Op::Pin { frame, count, kind } => Act::Pin(any(frame), few(any(frame), count), kind),
            Op::Unpin { frame, kind, .. } => Act::Unpin(any(frame), kind),
            Op::Touch { frame, touch: Touch::Read(word, _) } => Act::Read(any(frame), word),
            Op::Touch { frame, touch: Touch::Write(word, value) } => Act::Write(any(frame), word, value),
            Op::Guest { vm, order } if self.party(vm).is_some_and(|party| party.guest.is_idle()) => {
                let number = |gfn: u64| spot.gfn(gfn);
                let clamp = |count: u64| count.clamp(1, NARROW);
                Act::Guest(
                    vm,
                    match order {
                        Order::Share { gfn, count } => Order::Share { gfn: number(gfn), count: clamp(count) },
                        Order::Unshare { gfn, count, flags } => {
                            Order::Unshare { gfn: number(gfn), count: clamp(count), flags }
                        }
                        Order::Relinquish { gfn, count } => {
                            Order::Relinquish { gfn: number(gfn), count: clamp(count) }
                        }
                        Order::StockShare { gfn } => Order::StockShare { gfn: number(gfn) },
                        Order::StockUnshare { gfn } => Order::StockUnshare { gfn: number(gfn) },
                        Order::Read { gfn, word } => Order::Read { gfn: number(gfn), word },
                        Order::Write { gfn, word, value } => Order::Write { gfn: number(gfn), word, value },
                        _ => return None,
                    },
                )
            }
            _ => return None,
        })
    }

    /// The act as a job; a guest is brought to where its next run does it.
    fn job(&mut self, act: &Act) -> Result<Job, Failure> {
        let handle = |vm: usize| self.handle(vm).unwrap_or(0);
        Ok(match *act {
            Act::Donate(vm, gfn, pfn, count, kind) => {
                crew::call(call::DONATE, &[handle(vm), gfn, pfn, count, kind])
            }
            Act::Reclaim(vm, pfn, count) => crew::call(call::RECLAIM, &[handle(vm), pfn, count]),
            Act::Convert(vm, gfn, count, to) => crew::call(call::CONVERT, &[handle(vm), gfn, count, to]),
            Act::GuestMap(vm, gfn, pfn, count) => crew::call(call::GUEST_MAP, &[handle(vm), gfn, pfn, count]),
            Act::GuestUnmap(vm, gfn, count) => crew::call(call::GUEST_UNMAP, &[handle(vm), gfn, count]),
            Act::HostMap(pfn) => crew::call(call::HOST_MAP, &[pfn, 1]),
            Act::HostUnmap(pfn, count) => crew::call(call::HOST_UNMAP, &[pfn, count]),
            Act::Pin(pfn, count, kind) => crew::call(call::PIN, &[pfn, count, kind]),
            Act::Unpin(pfn, kind) => crew::call(call::UNPIN, &[pfn, 1, kind]),
            Act::Read(pfn, word) => Job::Load(memory::address(pfn) + word * 8),
            Act::Write(pfn, word, value) => Job::Store(memory::address(pfn) + word * 8, value),
            Act::Guest(vm, order) => {
                self.prime(vm, order)?;
                Job::Run(self.handle(vm).unwrap_or(0))
            }
        })
    }

    /// Finds an order that explains all that was seen.
    fn explain(&mut self, acts: &[Act], seen: &[Seen]) -> TestResult {
        let before = (self.model.clone(), self.contents.clone());
        let outside: Vec<bool> = seen.iter().map(Seen::stands_outside).collect();
        let mut why = None;
        let mut first = true;
        let mut order: Vec<usize> =
            (0..acts.len()).filter(|index| outside.get(*index) == Some(&false)).collect();
        loop {
            (self.model, self.contents) = before.clone();
            let explained = order.iter().all(|index| match (acts.get(*index), seen.get(*index)) {
                (Some(act), Some(seen)) => self.explains(act, seen),
                _ => false,
            });
            if explained {
                match self.compare_since(&before.0, 0..VMS, 0) {
                    Ok(()) => {
                        let more = [1, acts.len(), acts.len() - order.len(), usize::from(!first)];
                        self.rounds.iter_mut().zip(more).for_each(|(sum, more)| *sum += more as u64);
                        return self.settled(acts, seen);
                    }
                    Err(failure) => why = Some(failure),
                }
            }
            first = false;
            if !next_permutation(&mut order) {
                break;
            }
        }
        for (act, seen) in acts.iter().zip(seen) {
            note!("{act:x?} -> {seen:x?}");
        }
        match why {
            Some(why) => Err(why),
            None => fail!("no order of these calls explains their answers"),
        }
    }

    /// Whether the model, taking this act now, answers what was seen. It has taken it then.
    fn explains(&mut self, act: &Act, seen: &Seen) -> bool {
        let before = self.model.clone();
        let model = &mut self.model;
        let expect = match *act {
            Act::Donate(vm, gfn, pfn, count, kind) => {
                donated(model, (vm, gfn, pfn, count, kind), seen.reply())
            }
            Act::Reclaim(vm, pfn, count) => reclaimed(model, vm, pfn, count, seen.reply()),
            Act::Convert(vm, gfn, count, to) => model.convert(vm, gfn, count, to),
            Act::GuestMap(vm, gfn, pfn, count) => model.guest_map(vm, gfn, pfn, count),
            Act::GuestUnmap(vm, gfn, count) => model.guest_unmap(vm, gfn, count),
            Act::HostMap(pfn) => model.host_map(pfn, 1),
            Act::HostUnmap(pfn, count) => model.host_unmap(pfn, count),
            Act::Pin(pfn, count, kind) => model.pin(pfn, count, kind),
            Act::Unpin(pfn, kind) => model.unpin(pfn, 1, kind).0,
            Act::Read(pfn, word) => return self.explains_access(pfn, word, None, seen),
            Act::Write(pfn, word, value) => return self.explains_access(pfn, word, Some(value), seen),
            Act::Guest(vm, order) => return self.explains_guest(vm, order, seen, &before),
        };
        let Self { contents, model, .. } = self;
        contents.age(&before, model);
        seen.reply() == Some(expect.reply)
    }

    fn explains_access(&mut self, pfn: u64, word: u64, write: Option<u64>, seen: &Seen) -> bool {
        let Seen::Registers([faulted, value, far, ..]) = *seen else { return false };
        let real = if faulted == 0 { Outcome::Value(value) } else { Outcome::Fault { esr: value, far } };
        match (self.model.touch(pfn), write) {
            (Reach::Abort, _) => real.class_and_status() == Some(REFUSED),
            (_, _) if real.faulted() => false,
            // Another CPU may have written the same scrap in this round.
            (Reach::Scrap, _) => true,
            (Reach::Frame, Some(value)) => {
                self.contents.store(pfn, word, value);
                true
            }
            (Reach::Frame, None) => self.contents.of(pfn).is_none_or(|page| page.word(word) == value),
        }
    }

    fn explains_guest(&mut self, vm: usize, order: Order, seen: &Seen, before: &Model) -> bool {
        let Seen::Guest(came) = seen else { return false };
        let (want, _) = self.want(vm, order);
        if !want.agrees(came) {
            return false;
        }
        if let Came::Results(_) = came {
            let Self { contents, model, .. } = self;
            contents.age(before, model);
            self.stored(vm, order, want, before);
        }
        if let Some(party) = self.party_mut(vm) {
            party.guest.wanted = Some(want);
        }
        true
    }

    /// An order was found: what guests are at now, and what stood outside is seen to.
    fn settled(&mut self, acts: &[Act], seen: &[Seen]) -> TestResult {
        for (act, seen) in acts.iter().zip(seen) {
            match (act, seen) {
                (Act::Guest(vm, _), Seen::Guest(Came::Exit(page))) if page.reason == exit::TABLES => {
                    self.feed(Some(*vm), page.mask)?;
                }
                (Act::Guest(vm, order), Seen::Guest(came)) => {
                    if let Some(want) = self.party(*vm).and_then(|party| party.guest.wanted) {
                        self.keep(*vm, *order, want, came)?;
                    }
                }
                (act, Seen::Registers(_)) => {
                    self.note(seen.reply().is_some_and(|reply| reply.is_success()));
                    if let Some(reply) = seen.reply().filter(|reply| reply.status == Status::NoMemory) {
                        self.feed(act.vm(), reply.mask)?;
                    }
                }
                _ => {}
            }
        }
        self.clear_scrap(acts)
    }

    /// Scrap that was written is zeroed, as after a single write.
    fn clear_scrap(&mut self, acts: &[Act]) -> TestResult {
        for act in acts {
            if let Act::Write(..) = act {
                for pfn in self.scraps() {
                    let _ = tenure_test_rt::probe::touch(
                        tenure_test_rt::probe::Road::Zero,
                        memory::address(pfn),
                        0,
                    );
                }
            }
        }
        Ok(())
    }

    fn scraps(&self) -> Vec<u64> {
        let scrap = |frame: &Frame| frame.scrap && frame.state == tenure_abi::page::State::Private;
        self.model.frames.iter().filter(|(_, frame)| scrap(frame)).map(|(pfn, _)| *pfn).collect()
    }
}

impl Act {
    /// The VM whose pool it may need.
    fn vm(&self) -> Option<usize> {
        match *self {
            Self::Donate(vm, ..) | Self::Reclaim(vm, ..) | Self::Convert(vm, ..) => Some(vm),
            Self::GuestMap(vm, ..) | Self::GuestUnmap(vm, ..) | Self::Guest(vm, _) => Some(vm),
            _ => None,
        }
    }
}

impl Seen {
    /// The answer of a call.
    fn reply(&self) -> Option<Reply> {
        match *self {
            Self::Registers([x0, x1, x2, x3, ..]) => Reply::from_regs([x0, x1, x2, x3]),
            Self::Guest(_) => None,
        }
    }

    /// It changed nothing: it met a frozen word, or was short of tables.
    fn stands_outside(&self) -> bool {
        match self {
            Self::Registers(_) => self.reply().is_some_and(|reply| {
                reply.status == Status::NoMemory
                    || reply.status == Status::Retry && reply.mask & reply::FROZEN != 0
            }),
            Self::Guest(Came::Exit(page)) => page.reason == exit::TABLES,
            Self::Guest(Came::Results(_)) => false,
        }
    }
}

impl core::fmt::Debug for Seen {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Registers([x0, x1, x2, x3, ..]) => write!(f, "{:x} {x1:x} {x2:x} {x3:x}", *x0 as i64),
            Self::Guest(came) => write!(f, "guest {came:?}"),
        }
    }
}

/// The next order of these numbers, in lexical order; false after the last.
fn next_permutation(order: &mut [usize]) -> bool {
    let Some(rise) = order.windows(2).rposition(|pair| pair[0] < pair[1]) else { return false };
    let Some(&pivot) = order.get(rise) else { return false };
    let Some(other) = order.iter().rposition(|number| *number > pivot) else { return false };
    order.swap(rise, other);
    if let Some(rest) = order.get_mut(rise + 1..) {
        rest.reverse();
    }
    true
}
