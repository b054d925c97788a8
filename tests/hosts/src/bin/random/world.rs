//! The machine beside the model: which VMs live, which frames are played with, what they must hold.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::Cell;

use tenure_abi::flags::{pin, status, vm as vm_flags};
use tenure_abi::page::State;
use tenure_abi::{Reply, Status, info, reply};
use tenure_mm::model::{Address, Expect, Frame, Model};
use tenure_test_hosts::vm::{Vm, came_back, take};
use tenure_test_hosts::{Host, calls, memory};
use tenure_test_rt::harness::{Failure, TestResult};
use tenure_test_rt::{check, check_eq, note};

use crate::blocks::Tally;
use crate::contents::{Contents, Page};
use crate::guest::Guest;
use crate::place::{self, ALL, BLOCK, FAR, FRAMES, GFN, GFNS, RUN, WIDE, WIDE_GFN};

/// VMs at a time.
pub const VMS: usize = 3;
/// Frames of the arena that may be poisoned in one run: they are lost.
const MAY_POISON: u64 = 4;
/// Places of a block that are looked at for one that suits.
const FAR_ENOUGH: u64 = 128;

/// A VM and what its guest is at.
#[derive(Debug)]
pub struct Party {
    /// The VM, with its payload.
    pub vm: Box<Vm>,
    /// What the guest is doing.
    pub guest: Guest,
    /// Pages that came out of its pool.
    pub spare: Vec<u64>,
}

/// Everything.
#[derive(Debug)]
pub struct World {
    /// The machine.
    pub host: Host,
    /// What must be true of it.
    pub model: Model,
    /// What must stand in memory.
    pub contents: Contents,
    /// First frame of the arena.
    pub first: u64,
    /// The far frames.
    pub far: [u64; FAR as usize],
    /// MemAttr of the host's leaves: of its own frames, and of all others.
    pub types: (u64, u64),
    /// VMs that live.
    pub parties: [Option<Party>; VMS],
    /// Pages that came out of the host's pool.
    spare: Vec<u64>,
    poisoned: u64,
    /// The frames and the addresses that the last call named: first, and how many.
    pub named: Cell<[(u64, u64); 2]>,
    /// What became of blocks.
    pub blocks: Tally,
    /// How many calls and accesses were done, how many refused.
    pub tally: [u64; 2],
    /// Rounds of several CPUs, acts in them, those that met a frozen word or had no tables, and rounds that the order of the CPUs'
    /// numbers does not explain.
    pub rounds: [u64; 4],
}

impl World {
    /// A machine without VMs.
    ///
    /// # Errors
    /// If there are not enough frames.
    pub fn new(mut host: Host) -> Result<Self, Failure> {
        // The blocks are aligned; the arena lies before them.
        let before = FRAMES.next_multiple_of(BLOCK);
        let first = take(&mut host, (before + ALL - FRAMES) as usize, BLOCK as usize)? + before - FRAMES;
        host.frames.give(first + FRAMES - before, (before - FRAMES) as usize);
        let mut far = [0; FAR as usize];
        for pfn in &mut far {
            *pfn = take(&mut host, 1, BLOCK as usize)?;
        }
        let mut contents = Contents::default();
        let all = || (first..first + ALL).chain(far);
        for pfn in all() {
            check!(memory::fill(pfn, 0), "the host cannot write {pfn:#x}");
            contents.fill(pfn, Page::ZERO);
        }
        let fwb = calls::features().1.x(4) & info::feature::FWB != 0;
        Ok(Self {
            host,
            model: Model::new(all()),
            contents,
            first,
            far,
            types: if fwb { (0b111, 0b110) } else { (0b1111, 0b1111) },
            parties: [const { None }; VMS],
            spare: Vec::new(),
            poisoned: 0,
            named: Cell::default(),
            blocks: Tally::default(),
            tally: [0; 2],
            rounds: [0; 4],
        })
    }

    /// The frame of a number; and how many of `count` there are from there on (a count that no call takes stays).
    pub fn frames(&self, number: u64, count: u64) -> (u64, u64) {
        let (pfn, count) = match number {
            0..ALL => (self.first + number, clip(count, ALL - number)),
            ALL..RUN => (self.far.get((number - ALL) as usize).copied().unwrap_or(self.first), count.min(1)),
            _ => match self.party((number - RUN) as usize) {
                Some(party) => (party.vm.run_pfn, count.min(1)),
                None => (self.first + number % FRAMES, count.min(1)),
            },
        };
        let [_, addresses] = self.named.get();
        self.named.set([(pfn, count), addresses]);
        (pfn, count)
    }

    /// The address of a number, likewise.
    pub fn addresses(&self, number: u64, count: u64) -> (u64, u64) {
        let (gfn, count) = (place::address(number), clip(count, place::left(number)));
        let [frames, _] = self.named.get();
        self.named.set([frames, (gfn, count)]);
        (gfn, count)
    }

    /// The number of the first frame from `number` on, all around the arena or a part of the blocks, that `wanted` likes; else
    /// `number`.
    pub fn seek(&self, number: u64, wanted: impl Fn(&Frame) -> bool) -> u64 {
        let (start, end) = match number {
            0..FRAMES => (0, FRAMES),
            FRAMES..ALL => (number, ALL.min(number + FAR_ENOUGH)),
            _ => return number,
        };
        let mut numbers = (number..end).chain(start..number);
        let found = numbers.find(|number| self.model.frames.get(&(self.first + number)).is_some_and(&wanted));
        found.unwrap_or(number)
    }

    /// The same for the addresses of a VM: a number, by what stands there.
    pub fn seek_address(
        &self,
        vm: usize,
        number: u64,
        wanted: impl Fn(&Address, Option<&Frame>) -> bool,
    ) -> u64 {
        let Some(owner) = self.model.vms.get(&vm) else { return number };
        let wide = place::is_wide(number);
        let end = number + if wide { place::left(number).min(FAR_ENOUGH) } else { place::left(number) };
        let mut numbers = (number..end).chain(if wide { number } else { 0 }..number);
        let found = numbers.find(|number| {
            let address = owner.addresses.get(&place::address(*number)).cloned().unwrap_or_default();
            wanted(&address, address.frame.and_then(|pfn| self.model.frames.get(&pfn)))
        });
        found.unwrap_or(number)
    }

    /// A VM that lives.
    pub fn party(&self, vm: usize) -> Option<&Party> {
        self.parties.get(vm)?.as_ref()
    }

    /// The same, to change it.
    pub fn party_mut(&mut self, vm: usize) -> Option<&mut Party> {
        self.parties.get_mut(vm)?.as_mut()
    }

    /// The handle of a VM that lives.
    pub fn handle(&self, vm: usize) -> Option<u64> {
        self.party(vm).map(|party| party.vm.handle)
    }

    /// Compares an answer with the model's. Where the call was short of table memory nothing may have changed: the model goes
    /// back to `before`, and the pool is fed.
    ///
    /// # Errors
    /// Another answer.
    pub fn settle(&mut self, before: Model, expect: Expect, real: Reply, vm: Option<usize>) -> TestResult {
        self.note(real.is_success());
        if real.status == Status::NoMemory {
            check!(expect.tables, "NO_MEMORY from a call that needs no tables: {real}, not {}", expect.reply);
            check!(real.done == 0, "NO_MEMORY: {real}");
            self.model = before;
            return self.feed(vm, real.mask);
        }
        check!(real == expect.reply, "it answers {real}, the model {}", expect.reply);
        let Self { contents, model, .. } = self;
        contents.age(&before, model);
        Ok(())
    }

    /// Counts an answer.
    pub fn note(&mut self, done: bool) {
        let [yes, no] = &mut self.tally;
        *if done { yes } else { no } += 1;
    }

    /// Gives pages to the pool that `mask` names.
    ///
    /// # Errors
    /// A refusal, or a mask that names none.
    pub fn feed(&mut self, vm: Option<usize>, mask: u64) -> TestResult {
        check!(mask & (reply::VM_POOL | reply::HOST_POOL) != 0, "NO_MEMORY names no pool: {mask:#x}");
        if mask & reply::HOST_POOL != 0 {
            return match self.spare.is_empty() {
                true => self.host.top_up(),
                false => top_up_all(&mut self.host, 0, &mut self.spare),
            };
        }
        let Self { host, parties, .. } = self;
        let party = vm.and_then(|vm| parties.get_mut(vm)?.as_mut());
        let Some(party) = party else { return Ok(()) };
        match party.spare.is_empty() {
            true => party.vm.top_up(host, 8),
            false => top_up_all(host, party.vm.handle, &mut party.spare),
        }
    }

    /// Makes VM `vm` with its payload, not started yet; a number that is taken is left alone.
    ///
    /// # Errors
    /// A refusal.
    pub fn create(&mut self, vm: usize, flags: u64) -> TestResult {
        if self.party(vm).is_some() {
            return Ok(());
        }
        let built = Box::new(Vm::new(&mut self.host, flags)?);
        let has = |flag| flags & flag != 0;
        self.model.create(vm, has(vm_flags::PROTECTED), has(vm_flags::RIGHT_REVOKE));
        self.model.set_status(vm, GFN, GFNS, status::PRIVATE);
        self.model.set_status(vm, WIDE_GFN, WIDE, status::PRIVATE);
        let run = Model::new([built.run_pfn]).frames;
        self.model.frames.extend(run.iter().map(|(pfn, frame)| (*pfn, frame.clone())));
        self.model.hyp_pin(built.run_pfn, true);
        let guest = Guest::new();
        if let Some(slot) = self.parties.get_mut(vm) {
            *slot = Some(Party { vm: built, guest, spare: Vec::new() });
        }
        Ok(())
    }

    /// VM `vm` dies, whatever it was doing; its pages must be the host's again and hold nothing.
    ///
    /// # Errors
    /// A refusal, or a page that did not come back as it must.
    pub fn destroy(&mut self, vm: usize) -> TestResult {
        let Some(party) = self.parties.get_mut(vm).and_then(Option::take) else { return Ok(()) };
        tenure_test_hosts::vm::destroy(party.vm.handle)?;
        let run_pfn = party.vm.run_pfn;
        self.bury(vm, party)?;
        self.unpin_all(run_pfn)?;
        self.model.frames.remove(&run_pfn);
        Ok(())
    }

    /// What is left to do when a VM is dead.
    fn bury(&mut self, vm: usize, mut party: Party) -> TestResult {
        let handle = party.vm.handle;
        let (reply, _) = calls::vm_destroy(handle);
        check_eq!(reply, Reply::refused(Status::Invalid), "VM_DESTROY of a dead VM");
        let before = self.model.clone();
        self.model.destroy(vm);
        self.model.hyp_pin(party.vm.run_pfn, false);
        self.contents.age(&before, &self.model);
        for pfn in party.spare {
            came_back(pfn)?;
        }
        party.vm.collect(&mut self.host)
    }

    /// HOST_RESET: every VM dies.
    ///
    /// # Errors
    /// As for [`Self::destroy`].
    pub fn reset(&mut self) -> TestResult {
        self.host.reset()?;
        for vm in 0..VMS {
            if let Some(party) = self.parties.get_mut(vm).and_then(Option::take) {
                let run_pfn = party.vm.run_pfn;
                self.bury(vm, party)?;
                self.model.frames.remove(&run_pfn);
            }
        }
        let before = self.model.clone();
        self.model.reset();
        // What was lent to the host's pool is home, but for a few that may still be tables or the pool's reserve.
        let lent = |(pfn, frame): (&u64, &Frame)| {
            let lent = frame.state == State::Hyp && calls::state(*pfn) == Some(State::Host);
            lent.then_some(*pfn)
        };
        let lent: Vec<u64> = before.frames.iter().filter_map(lent).collect();
        lent.iter().for_each(|pfn| self.model.drained(*pfn));
        self.contents.age(&before, &self.model);
        for pfn in lent {
            came_back(pfn)?;
            self.contents.fill(pfn, Page::ZERO);
        }
        Ok(())
    }

    /// POOL_DRAIN: frames of the arena are the host's again; others stand aside until the pool is short.
    ///
    /// # Errors
    /// A refusal, or a page that was no page of the pool.
    pub fn drain(&mut self, vm: Option<usize>, max: u64) -> TestResult {
        let handle = match vm.map(|vm| self.handle(vm)) {
            Some(None) => return Ok(()),
            Some(Some(handle)) => handle,
            None => 0,
        };
        let (reply, regs) = calls::pool_drain(handle, max);
        if max == 0 || max > 8 {
            check_eq!(reply, Reply::refused(Status::Invalid), "POOL_DRAIN");
            return Ok(());
        }
        check!(reply.done <= max && reply == Reply::done(reply.done), "POOL_DRAIN of {max}: {reply}");
        for register in 0..reply.done as usize {
            let pfn = regs.x(4 + register);
            came_back(pfn)?;
            match self.model.frames.get(&pfn) {
                Some(frame) => {
                    check!(
                        frame.state == State::Hyp && frame.owner == vm,
                        "POOL_DRAIN gave {pfn:#x}, which is {frame:?}"
                    );
                    self.model.drained(pfn);
                    self.contents.fill(pfn, Page::ZERO);
                }
                None => match vm {
                    Some(vm) => self.party_mut(vm).into_iter().for_each(|party| party.spare.push(pfn)),
                    None => self.spare.push(pfn),
                },
            }
        }
        Ok(())
    }

    /// POISON, while some frames are left to lose: of the blocks it may spoil the last, and seldom does.
    ///
    /// # Errors
    /// Another answer than the model's.
    pub fn poison(&mut self, pfn: u64) -> TestResult {
        let before = self.model.clone();
        let expect = self.model.poison(pfn);
        if expect.reply.is_success() {
            let number = pfn.wrapping_sub(self.first);
            let sound = (FRAMES..ALL).contains(&number) && (number < ALL - BLOCK || number % 64 != 37);
            if self.poisoned == MAY_POISON || sound {
                self.model = before;
                return Ok(());
            }
            self.poisoned += 1;
        }
        let real = calls::poison(pfn);
        if real.status == Status::NoMemory {
            self.poisoned -= 1;
        }
        self.settle(before, expect, real, None)
    }

    /// All frames that change hands.
    pub fn arena(&self) -> impl Iterator<Item = u64> + use<> {
        (self.first..self.first + ALL).chain(self.far)
    }

    /// Takes every pin of a frame away.
    ///
    /// # Errors
    /// Another answer than the model's.
    pub fn unpin_all(&mut self, pfn: u64) -> TestResult {
        let Some(frame) = self.model.frames.get(&pfn).cloned() else { return Ok(()) };
        for (kind, count) in [(pin::CPU, frame.cpu_pins), (pin::DMA, frame.dma_pins)] {
            for _ in 0..count {
                let before = self.model.clone();
                let (expect, _) = self.model.unpin(pfn, 1, kind);
                self.settle(before, expect, calls::unpin(pfn, 1, kind).0, None)?;
            }
        }
        Ok(())
    }

    /// Ends every VM and every pin and empties the host's pool of what came from the arena: every frame must be the host's
    /// then and hold what it must. How many frames are poisoned.
    ///
    /// # Errors
    /// A frame that did not come back as it must.
    pub fn end(&mut self) -> Result<u64, Failure> {
        for vm in 0..VMS {
            self.destroy(vm)?;
        }
        for pfn in self.arena() {
            self.unpin_all(pfn)?;
        }
        let owned =
            |world: &Self| world.model.frames.values().filter(|frame| frame.state == State::Hyp).count();
        let mut rounds = 0;
        while owned(self) > 0 && rounds < 1000 {
            rounds += 1;
            self.drain(None, 8)?;
        }
        top_up_all(&mut self.host, 0, &mut self.spare)?;
        self.compare_all()?;
        for pfn in self.arena() {
            match self.model.frames.get(&pfn).map(|frame| frame.state) {
                Some(State::Host) => self.compare_page(pfn)?,
                Some(State::Poison) => {}
                state => note!("{pfn:#x} is {state:?} at the end"),
            }
        }
        let states = self.model.totals();
        let count = |state: State| states.get(&(state as u8)).copied().unwrap_or(0);
        check_eq!(count(State::Host) + count(State::Poison), ALL + FAR, "frames that came back");
        Ok(self.poisoned)
    }
}

/// `count`, or what there is; what no call takes stays.
fn clip(count: u64, most: u64) -> u64 {
    if count == u64::MAX { count } else { count.min(most) }
}

fn top_up_all(host: &mut Host, handle: u64, pages: &mut Vec<u64>) -> TestResult {
    while let Some(pfn) = pages.pop() {
        let mut reply = calls::pool_topup(handle, pfn, 1);
        if reply.status == Status::NoMemory && handle != 0 {
            host.top_up()?;
            reply = calls::pool_topup(handle, pfn, 1);
        }
        check!(reply == Reply::done(1), "POOL_TOPUP of {pfn:#x}: {reply}");
    }
    Ok(())
}
