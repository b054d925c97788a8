//! Steps of the host: each call made to the machine and to the model.

use tenure_abi::flags::{inject, query, status};
use tenure_abi::page::State;
use tenure_abi::{Reply, Status, exit, reply};
use tenure_mm::VmHandle;
use tenure_mm::model::{Address, Expect, Frame, Touch as Reach};
use tenure_test_hosts::{calls, memory};
use tenure_test_rt::harness::TestResult;
use tenure_test_rt::probe::{self, Outcome, Road};
use tenure_test_rt::{check, check_eq};

use crate::compare::REFUSED;
use crate::contents::{Page, WORDS};
use crate::op::{Op, Touch};
use crate::place::{self, FRAMES};
use crate::world::World;

/// Bytes that DC ZVA zeroes on the CPUs that are used: the first words of the page.
const ZERO_BLOCK: u64 = WORDS * 8;
/// Instruction abort without a change of exception level, synchronous external abort (DDI 0487 D24.2.40).
const FETCH_REFUSED: (u64, u64) = (0x21, 0x10);

macro_rules! both {
    ($world:ident, $vm:expr, $call:ident($($argument:expr),*), $model:ident($($same:expr),*)) => {{
        let before = $world.model.clone();
        let real = calls::$call($($argument),*);
        let expect = $world.model.$model($($same),*);
        $world.settle(before, expect, real, $vm)
    }};
}

impl World {
    /// Takes one step.
    ///
    /// # Errors
    /// What must not happen.
    pub fn take(&mut self, op: Op) -> TestResult {
        match op {
            Op::Create { vm, flags } => self.create(vm, flags),
            Op::Destroy { vm } => self.destroy(vm),
            Op::Reset => self.reset(),
            Op::Drain { vm, max } => self.drain(vm, max),
            Op::Clear { block } => self.clear(block),
            Op::Dry { vm } => match vm.is_none_or(|vm| self.party(vm).is_some()) {
                true => self.dry(vm),
                false => Ok(()),
            },
            Op::Poison { frame } => self.poison(self.frames(frame, 1).0),
            Op::HostMap { frame, count } => {
                let (pfn, count) = self.frames(frame, count);
                both!(self, None, host_map(pfn, count), host_map(pfn, count))
            }
            Op::HostUnmap { frame, count } => {
                let (pfn, count) =
                    self.frames(self.seek(frame, |frame| frame.host_leaf || frame.scrap), count);
                both!(self, None, host_unmap(pfn, count), host_unmap(pfn, count))
            }
            Op::Pin { frame, count, kind } => {
                let shared = |frame: &Frame| frame.state == State::Shared && frame.cpu_pins < 3;
                let (pfn, count) = self
                    .frames(if frame.is_multiple_of(4) { frame } else { self.seek(frame, shared) }, count);
                both!(self, None, pin(pfn, count, kind), pin(pfn, count, kind))
            }
            Op::Unpin { frame, count, kind } => self.unpin(frame, count, kind),
            Op::Touch { frame, touch } => {
                let foreign =
                    |frame: &Frame| frame.scrap || matches!(frame.state, State::Shared | State::Draining);
                let frame = if frame.is_multiple_of(2) { frame } else { self.seek(frame, foreign) };
                self.touch(self.frames(frame, 1).0, touch)
            }
            Op::Topup { vm: None, frame, count } => {
                let (pfn, count) = self.frames(frame, count);
                both!(self, None, pool_topup(0, pfn, count), topup(None, pfn, count))
            }
            Op::Activate { vm }
            | Op::Topup { vm: Some(vm), .. }
            | Op::SetStatus { vm, .. }
            | Op::Donate { vm, .. }
            | Op::Reclaim { vm, .. }
            | Op::Convert { vm, .. }
            | Op::GuestMap { vm, .. }
            | Op::GuestUnmap { vm, .. }
            | Op::Query { vm, .. }
            | Op::Furnish { vm, .. }
            | Op::Rove { vm }
            | Op::Guest { vm, .. }
            | Op::Answer { vm, .. }
            | Op::Consent { vm, .. }
            | Op::Refuse { vm, .. }
            | Op::Inject { vm, .. } => match self.handle(vm) {
                Some(handle) => self.take_of(vm, handle, op),
                None => Ok(()),
            },
        }
    }

    /// A step that is about VM `vm`, which lives.
    fn take_of(&mut self, vm: usize, handle: u64, op: Op) -> TestResult {
        match op {
            Op::Activate { .. } => {
                let real = calls::vm_activate(handle);
                if real.status == Status::NoMemory {
                    return self.feed(Some(vm), real.mask);
                }
                check_eq!(real, Reply::done(0), "VM_ACTIVATE");
                self.model.activate(vm);
                Ok(())
            }
            Op::Topup { frame, count, .. } => {
                let (pfn, count) = self.frames(frame, count);
                both!(self, Some(vm), pool_topup(handle, pfn, count), topup(Some(vm), pfn, count))
            }
            Op::SetStatus { gfn, count, to, .. } => self.set_status(vm, handle, gfn, count, to),
            Op::Donate { gfn, frame, count, kind, .. } => {
                let empty = |address: &Address, frame: Option<&Frame>| {
                    frame.is_none() && matches!(address.status, status::PRIVATE | status::SHARED)
                };
                let as_is = gfn.is_multiple_of(4) || place::is_wide(gfn);
                let gfn = if as_is { gfn } else { self.seek_address(vm, gfn, empty) };
                // In the blocks mostly where the addresses around this one have their frames.
                let frame = if gfn.is_multiple_of(8) { frame } else { self.beside(vm, gfn, frame) };
                self.donate(vm, gfn, frame, count, kind)
            }
            Op::Reclaim { frame, count, .. } => {
                let mine = |frame: &Frame| frame.owner == Some(vm) && frame.guest_leaves == 0;
                let (pfn, count) = self.frames(self.seek(frame, mine), count);
                self.reclaim(vm, pfn, count).map(|_| ())
            }
            Op::Convert { gfn, count, to, .. } => {
                let (gfn, count) = self.addresses(gfn, count);
                both!(self, Some(vm), convert(handle, gfn, count, to), convert(vm, gfn, count, to))
            }
            Op::GuestMap { gfn, frame, count, .. } => {
                let mine = |frame: &Frame| frame.owner == Some(vm) && frame.guest_leaves == 0;
                let (frame, gfn) = match frame % 4 {
                    0 => (frame, gfn),
                    1 => (frame, self.seek_address(vm, gfn, |address, _| *address == Address::default())),
                    _ => {
                        let empty = |address: &Address, frame: Option<&Frame>| {
                            frame.is_none() && address.status == status::SHARED
                        };
                        (self.seek(frame, mine), self.seek_address(vm, gfn, empty))
                    }
                };
                let (pfn, most) = self.frames(frame, count);
                let (gfn, count) = self.addresses(gfn, most);
                both!(self, Some(vm), guest_map(handle, gfn, pfn, count), guest_map(vm, gfn, pfn, count))
            }
            Op::GuestUnmap { gfn, count, .. } => {
                let shared =
                    |_: &Address, frame: Option<&Frame>| frame.is_some_and(|f| f.state == State::Shared);
                let gfn = if gfn.is_multiple_of(2) { gfn } else { self.seek_address(vm, gfn, shared) };
                let (gfn, count) = self.addresses(gfn, count);
                both!(self, Some(vm), guest_unmap(handle, gfn, count), guest_unmap(vm, gfn, count))
            }
            Op::Furnish { furnish, .. } => self.furnish(vm, furnish),
            Op::Rove { .. } => self.rove(vm),
            Op::Query { gfn, op, .. } => self.query(vm, handle, gfn, op),
            Op::Guest { order, .. } => self.guest(vm, order),
            Op::Answer { frame, how, .. } => self.answer(vm, handle, frame, how),
            Op::Consent { off, .. } => self.consent(vm, handle, off),
            Op::Refuse { off, .. } => self.refuse(vm, handle, off),
            Op::Inject { what, .. } => self.inject(vm, handle, what),
            _ => Ok(()),
        }
    }

    /// DONATE; without a kind, of what the address asks for.
    fn donate(&mut self, vm: usize, gfn: u64, frame: u64, count: u64, kind: Option<u64>) -> TestResult {
        let free = |frame: &Frame| frame.state == State::Host && occupied(frame) == 0;
        let as_is = frame.is_multiple_of(4) || frame >= FRAMES;
        let frame = if as_is { frame } else { self.seek(frame, free) };
        let (pfn, most) = self.frames(frame, count);
        let (gfn, count) = self.addresses(gfn, most);
        let asked =
            self.model.vms.get(&vm).and_then(|vm| vm.addresses.get(&gfn)).map(|address| address.status);
        let kind =
            kind.unwrap_or(if asked == Some(status::SHARED) { status::SHARED } else { status::PRIVATE });
        self.donate_at(vm, gfn, pfn, count, kind).map(|_| ())
    }

    /// In the blocks, the number of the frame at the address's place in the block that those around it have their frames of.
    fn beside(&self, vm: usize, gfn: u64, frame: u64) -> u64 {
        let Some(place) = gfn.checked_sub(place::address_in(0, 0)) else { return frame };
        let place = place % place::BLOCK;
        let block = self.block_for(vm, place::address(gfn - place), frame % place::BLOCKS);
        block + place - self.first
    }

    /// SET_STATUS by number.
    fn set_status(&mut self, vm: usize, handle: u64, gfn: u64, count: u64, to: u64) -> TestResult {
        let (gfn, count) = self.addresses(gfn, count);
        self.declare(vm, handle, gfn, count, to).map(|_| ())
    }

    fn unpin(&mut self, frame: u64, count: u64, kind: u64) -> TestResult {
        let pinned = |frame: &Frame| frame.cpu_pins + frame.dma_pins > 0;
        let frame = if frame.is_multiple_of(4) { frame } else { self.seek(frame, pinned) };
        let (pfn, count) = self.frames(frame, count);
        let before = self.model.clone();
        let (real, regs) = calls::unpin(pfn, count, kind);
        let (expect, freed) = self.model.unpin(pfn, count, kind);
        if real == expect.reply {
            let wake = freed.wake.and_then(|vm| self.handle(vm)).unwrap_or(0);
            let told = [freed.drained, wake, freed.returned];
            check_eq!([regs.x(4), regs.x(5), regs.x(6)], told, "UNPIN: drained, to wake, came back");
        }
        self.settle(before, expect, real, None)
    }

    /// QUERY_GUEST gives the verdict of the attempt (C3).
    fn query(&mut self, vm: usize, handle: u64, gfn: u64, op: u64) -> TestResult {
        let (gfn, _) = self.addresses(gfn, 1);
        let (real, _) = calls::query_guest(handle, gfn, op);
        let mut attempt = self.model.clone();
        let frame =
            attempt.vms.get(&vm).and_then(|vm| vm.addresses.get(&gfn)).and_then(|address| address.frame);
        let expect = match (op, frame) {
            (query::SHARE, _) => attempt.share(vm, gfn, 1),
            (query::UNSHARE, _) => attempt.unshare(vm, gfn, 1, 0),
            (query::RECLAIM, Some(pfn)) => attempt.reclaim(vm, pfn, 1),
            (query::RECLAIM, None) => Expect::plain(Reply::blocked(Status::Denied, 0, reply::UNPOPULATED)),
            _ => Expect::plain(Reply::refused(Status::Invalid)),
        };
        if real.status == Status::NoMemory && expect.tables && expect.reply.is_success() {
            // A table of the VM's pool would have to be made, and there is none.
            check_eq!(real.mask, reply::VM_POOL, "QUERY_GUEST({op}) at {gfn:#x}");
            let (_, regs) = calls::pool_info(handle);
            check!(regs.x(4) < 2, "QUERY_GUEST finds a pool of {} pages short", regs.x(4));
            return Ok(());
        }
        check_eq!(real, expect.reply, "QUERY_GUEST({op}) at {gfn:#x}");
        Ok(())
    }

    /// The host touches a frame by some road.
    fn touch(&mut self, pfn: u64, touch: Touch) -> TestResult {
        if !self.model.frames.contains_key(&pfn)
            || self.parties.iter().flatten().any(|party| party.vm.run_pfn == pfn)
        {
            // A run page is the host's to touch, and the hypervisor's to write.
            return Ok(());
        }
        let address = memory::address(pfn);
        let (road, word, value) = match touch {
            Touch::Read(word, width) => (Road::Read(width), word, 0),
            Touch::Pair => (Road::Pair, 0, 0),
            Touch::Exclusive => (Road::Exclusive, 0, 0),
            Touch::Write(word, value) => (Road::Write(8), word, value),
            Touch::Add(word, value) if probe::has_lse() => (Road::Atomic, word, value),
            Touch::Add(word, value) => (Road::Write(8), word, value),
            Touch::Zero => (Road::Zero, 0, 0),
            Touch::Fill(value) => return self.fill(pfn, value),
            Touch::Litter(value) => {
                let block = pfn.saturating_sub(self.first + FRAMES) / place::BLOCK;
                return self.litter(self.first + place::frame_in(block, 0), value);
            }
            Touch::Execute => return self.execute(pfn),
        };
        let old = self.contents.of(pfn).map(|page| page.word(word));
        let real = probe::touch(road, address + word * 8, value);
        self.note(!real.faulted());
        match self.model.touch(pfn) {
            Reach::Abort => check_eq!(real.class_and_status(), Some(REFUSED), "{road:?} of {pfn:#x}"),
            Reach::Scrap | Reach::Frame if real.faulted() => {
                tenure_test_rt::fail!("{road:?} of {pfn:#x} is refused: {real:x?}");
            }
            Reach::Scrap if matches!(road, Road::Read(_) | Road::Pair | Road::Exclusive) => {
                check_eq!(real, Outcome::Value(0), "{road:?} of scrap at {pfn:#x}");
            }
            // Writes to scrap are lost, or found again by the next reader of it: scrap is zeroed before it is used again.
            Reach::Scrap => {
                check!(probe::touch(Road::Zero, address, 0).value().is_some(), "scrap cannot be zeroed")
            }
            Reach::Frame => match (road, old) {
                (Road::Read(width), Some(old)) => {
                    let mask = if width == 8 { u64::MAX } else { (1 << (width * 8)) - 1 };
                    check_eq!(real, Outcome::Value(old & mask), "{road:?} of word {word} of {pfn:#x}");
                }
                (Road::Pair | Road::Exclusive, Some(old)) => {
                    check_eq!(real, Outcome::Value(old), "{road:?} of {pfn:#x}")
                }
                (Road::Atomic, Some(old)) => self.contents.store(pfn, word, old.wrapping_add(value)),
                (Road::Write(_), _) => self.contents.store(pfn, word, value),
                (Road::Zero, _) => (0..ZERO_BLOCK / 8).for_each(|word| self.contents.store(pfn, word, 0)),
                _ => {}
            },
        }
        Ok(())
    }

    fn fill(&mut self, pfn: u64, value: u64) -> TestResult {
        match self.model.touch(pfn) {
            Reach::Frame => {
                check!(memory::fill(pfn, value), "the host cannot fill {pfn:#x}");
                self.contents.fill(pfn, Page::filled(value));
            }
            Reach::Abort => check!(!memory::fill(pfn, value), "the host fills {pfn:#x}"),
            Reach::Scrap => {}
        }
        Ok(())
    }

    /// A jump to what is not the host's own ends in an instruction abort (U7, F1). What is its own holds no code.
    fn execute(&mut self, pfn: u64) -> TestResult {
        if self.model.frames.get(&pfn).is_some_and(|frame| frame.state == State::Host) {
            return Ok(());
        }
        let real = probe::touch(Road::Execute, memory::address(pfn), 0);
        check_eq!(real.class_and_status(), Some(FETCH_REFUSED), "a jump to {pfn:#x}");
        Ok(())
    }

    /// The host answers what the guest waits for.
    fn answer(&mut self, vm: usize, handle: u64, frame: u64, how: u64) -> TestResult {
        let Some(page) = self.party(vm).and_then(|party| party.guest.exit) else { return Ok(()) };
        match page.reason {
            exit::POPULATE => {
                let lost = |frame: &Frame| frame.owner == Some(vm) && frame.guest_leaves == 0;
                let Some(gfn) = place::number_of(page.gpa / tenure_abi::PAGE_SIZE) else { return Ok(()) };
                let frame = if place::is_wide(gfn) { self.beside(vm, gfn, frame) } else { frame | 1 };
                match how {
                    0 => self.inject(vm, handle, inject::DATA_ABORT),
                    1 | 2 => self.take_of(
                        vm,
                        handle,
                        Op::GuestMap { vm, gfn, frame: self.seek(frame, lost), count: 1 },
                    ),
                    _ => self.donate(vm, gfn, frame, 1, None),
                }
            }
            exit::CONVERT => {
                if how.is_multiple_of(2) {
                    let (_, regs) =
                        calls::query_guest(handle, page.gpa / tenure_abi::PAGE_SIZE + page.first, 0);
                    let pfn = regs.x(5);
                    if self.model.frames.contains_key(&pfn) {
                        both!(self, None, host_unmap(pfn, 1), host_unmap(pfn, 1))?;
                    }
                }
                match how {
                    0..5 => self.consent(vm, handle, 0),
                    5 | 6 => self.refuse(vm, handle, 0),
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// VCPU_INJECT: only for the access that the vCPU's last exit was about.
    fn inject(&mut self, vm: usize, handle: u64, what: u64) -> TestResult {
        let real = calls::vcpu_inject(handle, 0, what);
        let Some(party) = self.party_mut(vm) else { return Ok(()) };
        let faulted = party.guest.injectable;
        let expect = match what {
            inject::DATA_ABORT if faulted => Status::Success,
            inject::DATA_ABORT => Status::Denied,
            _ => Status::Invalid,
        };
        check_eq!(real.status, expect, "VCPU_INJECT");
        if real.is_success() {
            party.guest.given_abort();
        }
        Ok(())
    }

    /// CONSENT to the request that stands, or (`off` above 0) to one that does not.
    fn consent(&mut self, vm: usize, handle: u64, off: u64) -> TestResult {
        let Some(party) = self.party(vm) else { return Ok(()) };
        let request = party.guest.request.filter(|_| off == 0);
        let real = calls::consent(handle, 0, party.guest.sequence.wrapping_add(off));
        let Some(request) = request else {
            check_eq!(real, Reply::refused(Status::Invalid), "CONSENT to nothing");
            return Ok(());
        };
        let before = self.model.clone();
        let expect: Expect = self.model.consent(vm, request.gfn, request.count, request.flags);
        self.zeroed(vm, request.gfn, real.done, request.flags, &before);
        self.settle(before, expect, real, Some(vm))?;
        let Some(party) = self.party_mut(vm) else { return Ok(()) };
        match (real.status, request.stock) {
            (Status::Busy, false) => {
                party.guest.refused = Some(real.to_regs());
                party.guest.request = None;
            }
            (Status::Retry | Status::Busy | Status::NoMemory, _) => {}
            _ => party.guest.request = None,
        }
        Ok(())
    }

    /// REFUSE of the request that stands, or of none.
    fn refuse(&mut self, vm: usize, handle: u64, off: u64) -> TestResult {
        let Some(party) = self.party_mut(vm) else { return Ok(()) };
        let real = calls::refuse(handle, 0, party.guest.sequence.wrapping_add(off));
        match party.guest.request.filter(|_| off == 0) {
            Some(request) => {
                check_eq!(real, Reply::done(0), "REFUSE");
                party.guest.refused = Some(request.answer);
                party.guest.request = None;
            }
            None => check_eq!(real, Reply::refused(Status::Invalid), "REFUSE of nothing"),
        }
        Ok(())
    }

    /// Handles that name no VM are refused by every call that takes one.
    ///
    /// # Errors
    /// A call that takes it.
    pub fn stale(&self) -> TestResult {
        let newest = self.parties.iter().flatten().map(|party| party.vm.handle).max().unwrap_or(0);
        let stale = VmHandle(newest.wrapping_add(1 << 8)).0;
        check_eq!(calls::donate(stale, place::GFN, self.first, 1, status::PRIVATE).status, Status::Invalid);
        check_eq!(calls::reclaim(stale, self.first, 1).status, Status::Invalid);
        Ok(())
    }
}

/// References that keep a frame from being given away.
pub fn occupied(frame: &Frame) -> u64 {
    frame.guest_leaves + frame.cpu_pins + frame.dma_pins + frame.hyp_pins
}
