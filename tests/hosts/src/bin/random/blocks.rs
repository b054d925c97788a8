//! Steps that are about whole blocks: donation in its many calls, what is given up half way and taken back, blocks that are filled
//! again after a part of them left, pools that run dry before a split, the host's own blocks.

use tenure_abi::flags::status;
use tenure_abi::page::State;
use tenure_abi::{Reply, Status};
use tenure_mm::model::{Address, Expect, Frame, Model, Touch as Reach};
use tenure_test_hosts::{calls, memory};
use tenure_test_rt::harness::{Failure, TestResult};
use tenure_test_rt::{check, note, probe};

use crate::contents::{WORDS, is_parked};
use crate::host::occupied;
use crate::op::{Furnish, Order};
use crate::place::{self, ALL, BLOCK, BLOCKS, FAR, FRAMES, GFN_BLOCKS};
use crate::world::{VMS, World};

/// Pages whose scrub is noted together: where a donation that was left goes on.
const GROUP: usize = 16;
/// Calls of a step that clears a block, and of one that empties a pool.
const MOST_CALLS: usize = 48;
const MOST_DRAINS: usize = 12;
/// Frames that a RECLAIM takes after it has looked after a block of the host.
const AFTER_TIDY: u64 = 8;

/// Addresses that one SET_STATUS declares at least, if it is asked for more: it writes 320 entries, and each of up to four new
/// tables counts for 48 of them.
const MOST_ENTRIES: u64 = 128;

/// What is due next of a block: the place of the first page, how many are like it, and what they are.
struct Due {
    hole: u64,
    run: u64,
    status: u64,
    is_mine: bool,
}

/// What became of blocks.
#[derive(Clone, Copy, Default, Debug)]
pub struct Tally {
    /// Given whole.
    given: u64,
    /// Made whole page by page.
    filled: u64,
    /// Calls that took back what was half way and no more whole.
    taken_back: u64,
}

/// Donation in the model: whether a block is begun is for the manager to say, what comes of it is not.
pub fn donated(model: &mut Model, at: (usize, u64, u64, u64, u64), real: Option<Reply>) -> Expect {
    let (vm, gfn, pfn, count, kind) = at;
    let before = model.clone();
    match model.donate_block(vm, gfn, pfn, count, kind) {
        Some(expect) if real.is_some_and(|real| real == expect.reply || real.status == Status::NoMemory) => {
            expect
        }
        _ => {
            *model = before;
            model.donate(vm, gfn, pfn, count, kind)
        }
    }
}

/// RECLAIM in the model: a call that has looked after a block of the host takes fewer.
pub fn reclaimed(model: &mut Model, vm: usize, pfn: u64, count: u64, real: Option<Reply>) -> Expect {
    let tidied = real.is_some_and(|real| real.is_success() && real.done == AFTER_TIDY);
    model.reclaim(vm, pfn, if tidied { count.min(AFTER_TIDY) } else { count })
}

impl World {
    /// DONATE at these very places.
    ///
    /// # Errors
    /// Another answer than the model's.
    pub fn donate_at(
        &mut self,
        vm: usize,
        gfn: u64,
        pfn: u64,
        count: u64,
        kind: u64,
    ) -> Result<Reply, Failure> {
        let handle = self.handle(vm).unwrap_or(0);
        self.named.set([(pfn, count), (gfn, count)]);
        let before = self.model.clone();
        let real = calls::donate(handle, gfn, pfn, count, kind);
        let expect = donated(&mut self.model, (vm, gfn, pfn, count, kind), Some(real));
        self.settle(before, expect, real, Some(vm))?;
        Ok(real)
    }

    /// RECLAIM, likewise.
    ///
    /// # Errors
    /// Another answer than the model's.
    pub fn reclaim(&mut self, vm: usize, pfn: u64, count: u64) -> Result<Reply, Failure> {
        let handle = self.handle(vm).unwrap_or(0);
        let before = self.model.clone();
        let real = calls::reclaim(handle, pfn, count);
        let expect = reclaimed(&mut self.model, vm, pfn, count, Some(real));
        self.settle(before, expect, real, Some(vm))?;
        Ok(real)
    }

    /// Calls that bring a block of addresses nearer to being whole, each the next that is due by what is there.
    ///
    /// # Errors
    /// What must not happen.
    pub fn furnish(&mut self, vm: usize, furnish: Furnish) -> TestResult {
        for _ in 0..furnish.calls {
            let Some(reply) = self.furnish_once(vm, furnish)? else { break };
            if !reply.is_success() && reply.status != Status::NoMemory {
                break;
            }
        }
        Ok(())
    }

    fn furnish_once(&mut self, vm: usize, furnish: Furnish) -> Result<Option<Reply>, Failure> {
        let Some(handle) = self.handle(vm) else { return Ok(None) };
        let gfn = place::address(place::address_in(furnish.to, 0));
        let pfn = self.block_for(vm, gfn, furnish.from);
        if furnish.most == BLOCK
            && self.is_new(vm, gfn)
            && let Some(reply) = self.make_room(pfn)?
        {
            return Ok(Some(reply));
        }
        if let Some(next) = self.half_way(vm, gfn, pfn)? {
            return Ok(Some(next));
        }
        let Some(owner) = self.model.vms.get(&vm) else { return Ok(None) };
        let Some(Due { hole, run, status, is_mine }) = self.due(vm, gfn, pfn) else {
            let stand = owner.addresses.range(gfn..gfn + BLOCK).all(|(_, address)| address.frame.is_some());
            return match (furnish.cut, stand) {
                (_, false) => self.release(vm, handle, gfn, BLOCK),
                // The last call of this step.
                (Some(cut), true) => self.release(vm, handle, gfn + cut, furnish.most).map(|_| None),
                (None, true) => Ok(None),
            };
        };
        let empty = run == BLOCK;
        let (to, from, count) =
            (gfn + hole, pfn + hole, if empty { furnish.most } else { run.min(furnish.most) });
        let count = if empty && count > BLOCK / 2 { BLOCK } else { count };
        let own = furnish.own && !owner.protected;
        if own && empty && status != status::NONE {
            return self.declare(vm, handle, gfn, BLOCK, status::NONE).map(Some);
        }
        let takes = matches!(status, status::PRIVATE | status::SHARED | status::RELINQUISHED);
        if !takes && (owner.protected || status != status::NONE) {
            return self.declare(vm, handle, to, run, status::PRIVATE).map(Some);
        }
        if is_mine && status == status::SHARED || !owner.protected && status == status::NONE {
            self.named.set([(from, count), (to, count)]);
            let before = self.model.clone();
            let real = calls::guest_map(handle, to, from, count);
            let expect = self.model.guest_map(vm, to, from, count);
            self.settle(before, expect, real, Some(vm))?;
            self.blocks.filled += u64::from(real.is_success() && self.is_whole(vm, gfn));
            return Ok(Some(real));
        }
        if empty {
            self.litter(pfn, furnish.calls << 16 | furnish.most)?;
        }
        let kind = if status == status::SHARED { status::SHARED } else { status::PRIVATE };
        let real = self.donate_at(vm, to, from, count, kind)?;
        self.blocks.filled += u64::from(real.is_success() && self.is_whole(vm, gfn));
        Ok(Some(real))
    }

    /// The first run of like addresses without a frame whose frames, at the same places, can be had. What stands elsewhere, or is
    /// held, is left out: the block is whole another time.
    fn due(&self, vm: usize, gfn: u64, pfn: u64) -> Option<Due> {
        let owner = self.model.vms.get(&vm)?;
        let mine = |frame: &Frame| frame.owner == Some(vm) && frame.guest_leaves == 0;
        let free = |frame: &Frame| frame.state == State::Host && occupied(frame) == 0;
        let due =
            |(address, frame): &(&Address, &Frame)| address.frame.is_none() && (mine(frame) || free(frame));
        let pages = || {
            let addresses = owner.addresses.range(gfn..gfn + BLOCK).map(|(_, address)| address);
            addresses.zip(self.model.frames.range(pfn..pfn + BLOCK).map(|(_, frame)| frame))
        };
        let (hole, (address, frame)) = pages().enumerate().find(|(_, page)| due(page))?;
        let is_mine = mine(frame);
        let like = |page: &(&Address, &Frame)| page.0 == address && mine(page.1) == is_mine && due(page);
        let run = pages().skip(hole).take_while(like).count() as u64;
        Some(Due { hole: hole as u64, run, status: address.status, is_mine })
    }

    /// Whether a block of addresses is a block of frames.
    fn is_whole(&self, vm: usize, gfn: u64) -> bool {
        let Some(owner) = self.model.vms.get(&vm) else { return false };
        let mut pages =
            owner.addresses.range(gfn..gfn + BLOCK).map(|(at, address)| address.frame?.checked_sub(at - gfn));
        let first = pages.next().flatten().filter(|pfn| pfn.is_multiple_of(BLOCK));
        first.is_some() && pages.all(|page| page == first)
    }

    /// Tells what became of blocks.
    pub fn tell_blocks(&self) {
        let Tally { given, filled, taken_back } = self.blocks;
        note!(
            "blocks: {given} given whole, {filled} filled page by page, {taken_back} calls to take one back that was half way"
        );
    }

    /// The next call that takes leaves out of a block from an address on: all that follow there, or no more than `most` pages.
    fn release(&mut self, vm: usize, handle: u64, gfn: u64, most: u64) -> Result<Option<Reply>, Failure> {
        let Some(owner) = self.model.vms.get(&vm) else { return Ok(None) };
        let end = (gfn / BLOCK + 1) * BLOCK;
        let stands = |(at, address): (&u64, &Address)| Some((*at, address.frame?));
        let first = owner.addresses.range(gfn..end).find_map(stands);
        let Some((at, pfn)) = first else { return Ok(None) };
        let count = most.min(end - at);
        if owner.is_sealed() {
            if self.party(vm).is_some_and(|party| party.guest.is_idle())
                && let Some(gfn) = place::number_of(at)
            {
                let [before, _] = self.tally;
                self.guest(vm, Order::Relinquish { gfn, count })?;
                return Ok((self.tally[0] > before).then_some(Reply::done(1)));
            }
            return Ok(None);
        }
        self.named.set([(pfn, count), (at, count)]);
        let before = self.model.clone();
        let real = calls::guest_unmap(handle, at, count);
        let expect = self.model.guest_unmap(vm, at, count);
        self.settle(before, expect, real, Some(vm))?;
        if real.is_success()
            && most == BLOCK
            && let Some(block) = self.block_of(pfn)
        {
            self.clear(block)?;
        }
        Ok(Some(real))
    }

    /// Nothing stands in a block of addresses.
    fn is_new(&self, vm: usize, gfn: u64) -> bool {
        let Some(owner) = self.model.vms.get(&vm) else { return false };
        owner.addresses.range(gfn..gfn + BLOCK).all(|(_, address)| address.frame.is_none())
    }

    /// The next call that takes a block of frames from those who have pages of it. `None` where it is free, or half way.
    fn make_room(&mut self, pfn: u64) -> Result<Option<Reply>, Failure> {
        let taken = |frame: &Frame| !is_parked(frame) && (frame.state != State::Host || occupied(frame) > 0);
        let place = self.model.frames.range(pfn..pfn + BLOCK).position(|(_, frame)| taken(frame));
        let Some(place) = place.map(|place| place as u64) else { return Ok(None) };
        for vm in 0..VMS {
            let Some(handle) = self.handle(vm) else { continue };
            for block in 0..GFN_BLOCKS {
                let gfn = place::address(place::address_in(block, 0));
                let address = self.model.vms.get(&vm).and_then(|vm| vm.addresses.get(&(gfn + place)));
                if address.and_then(|address| address.frame) == Some(pfn + place) {
                    return self.release(vm, handle, gfn, BLOCK);
                }
            }
        }
        self.clear((pfn - self.first - FRAMES) / BLOCK)?;
        Ok(None)
    }

    /// Number of the block around a frame.
    fn block_of(&self, pfn: u64) -> Option<u64> {
        let number = pfn.checked_sub(self.first)?;
        (FRAMES..ALL).contains(&number).then(|| (number - FRAMES) / BLOCK)
    }

    /// The block of frames that a block of addresses is made of, or may be.
    pub fn block_for(&self, vm: usize, gfn: u64, from: u64) -> u64 {
        let base = |block: u64| self.first + place::frame_in(block, 0);
        let stands = self.model.vms.get(&vm).and_then(|vm| {
            vm.addresses
                .range(gfn..gfn + BLOCK)
                .find_map(|(at, address)| address.frame?.checked_sub(at - gfn))
                .filter(|pfn| (0..BLOCKS).any(|block| base(block) == *pfn))
        });
        let all =
            |block: u64| self.model.frames.range(base(block)..base(block) + BLOCK).map(|(_, frame)| frame);
        let parked = |block: &u64| all(*block).any(|frame| is_parked(frame) && frame.owner == Some(vm));
        let free = |block: &u64| all(*block).all(|frame| frame.state == State::Host && occupied(frame) == 0);
        let some = |wanted: &dyn Fn(&u64) -> bool| (from..from + BLOCKS).find(wanted).map(base);
        stands.or_else(|| some(&parked)).or_else(|| some(&free)).unwrap_or(base(from))
    }

    /// The next call for a block of frames that is half way to the VM: on, or back if a page was taken out of it.
    fn half_way(&mut self, vm: usize, gfn: u64, pfn: u64) -> Result<Option<Reply>, Failure> {
        let parked = |frame: &Frame| is_parked(frame) && frame.owner == Some(vm);
        let frames = || self.model.frames.range(pfn..pfn + BLOCK).map(|(_, frame)| frame);
        let Some(first) = frames().position(parked) else { return Ok(None) };
        if !frames().all(parked) {
            let count = frames().skip(first).take_while(|frame| parked(frame)).count() as u64;
            self.blocks.taken_back += 1;
            return self.reclaim(vm, pfn + first as u64, count).map(Some);
        }
        let due = frames().step_by(GROUP).position(|frame| frame.owes_scrub);
        let place = due.map_or(BLOCK - GROUP as u64, |group| (group * GROUP) as u64);
        let address = self.model.vms.get(&vm).and_then(|vm| vm.addresses.get(&gfn));
        let kind = match address.map(|address| address.status) {
            Some(status::SHARED) => status::SHARED,
            _ => status::PRIVATE,
        };
        let reply = self.donate_at(vm, gfn + place, pfn + place, BLOCK - place, kind)?;
        if reply.is_success() && reply.done == BLOCK - place {
            self.blocks.given += 1;
            // The guest finds none of what the host had there.
            if self.party(vm).is_some_and(|party| party.guest.is_idle())
                && let Some(gfn) = place::number_of(gfn)
            {
                self.guest(vm, Order::Check { gfn, count: BLOCK, value: 0 })?;
            }
        }
        if reply.status == Status::Denied {
            // The addresses take no block any more.
            return self.reclaim(vm, pfn, BLOCK).map(Some);
        }
        Ok(Some(reply))
    }

    /// SET_STATUS, which keeps what it did before the pool ran dry, and writes so many entries a call.
    ///
    /// # Errors
    /// Another answer than the model's.
    pub fn declare(
        &mut self,
        vm: usize,
        handle: u64,
        gfn: u64,
        count: u64,
        to: u64,
    ) -> Result<Reply, Failure> {
        let before = self.model.clone();
        let real = calls::set_status(handle, gfn, count, to);
        if real.status == Status::NoMemory && real.done > 0 {
            self.model.set_status(vm, gfn, real.done, to);
            self.feed(Some(vm), real.mask)?;
            return Ok(real);
        }
        let enough = real.is_success() && real.done > MOST_ENTRIES;
        let expect = self.model.set_status(vm, gfn, if enough { count.min(real.done) } else { count }, to);
        self.settle(before, expect, real, Some(vm))?;
        Ok(real)
    }

    /// The host stores a word to every page of a block that it may write.
    ///
    /// # Errors
    /// A refusal.
    pub fn litter(&mut self, first: u64, value: u64) -> TestResult {
        for pfn in first..first + BLOCK {
            if self.model.reach(pfn) == Reach::Frame {
                let (word, value) = (pfn % WORDS, value << 16 | pfn);
                let real = probe::write(memory::address(pfn) + word * 8, value);
                check!(!real.faulted(), "the host's write to {pfn:#x}: {real:x?}");
                self.model.touch(pfn);
                self.contents.store(pfn, word, value);
            }
        }
        Ok(())
    }

    /// Pins of a block's frames go, and what no guest maps comes back to the host.
    ///
    /// # Errors
    /// Another answer than the model's.
    pub fn clear(&mut self, block: u64) -> TestResult {
        let first = self.first + place::frame_in(block, 0);
        let mut left = MOST_CALLS;
        let mut pfn = first;
        while pfn < first + BLOCK && left > 0 {
            let Some(frame) = self.model.frames.get(&pfn).cloned() else { break };
            pfn += 1;
            if frame.cpu_pins + frame.dma_pins > 0 {
                left = left.saturating_sub(1);
                self.unpin_all(pfn - 1)?;
            }
            match (frame.owner, frame.state) {
                (Some(vm), State::Shared | State::Private | State::Quarantine) if frame.guest_leaves == 0 => {
                    left = left.saturating_sub(1);
                    let like =
                        |&(_, other): &(&u64, &Frame)| other.state == frame.state && occupied(other) == 0;
                    let same =
                        self.model.frames.range(pfn - 1..first + BLOCK).take_while(like).count() as u64;
                    let reply = self.reclaim(vm, pfn - 1, same.max(1))?;
                    pfn += reply.done.saturating_sub(1);
                }
                (vm, State::Hyp) => {
                    left = left.saturating_sub(1);
                    self.drain(vm, 8)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A pool gives back all that it can: what needs a table after this is short of memory.
    ///
    /// # Errors
    /// A refusal.
    pub fn dry(&mut self, vm: Option<usize>) -> TestResult {
        let handle = vm.and_then(|vm| self.handle(vm)).unwrap_or(0);
        for _ in 0..MOST_DRAINS {
            let (_, before) = calls::pool_info(handle);
            self.drain(vm, 8)?;
            let (_, after) = calls::pool_info(handle);
            if before.x(5) == after.x(5) {
                break;
            }
        }
        Ok(())
    }

    /// The far frames go to the pool of a VM. Coming back, by whatever way, they make the host's blocks of before due.
    ///
    /// # Errors
    /// Another answer than the model's.
    pub fn rove(&mut self, vm: usize) -> TestResult {
        for number in ALL..ALL + FAR {
            let (Some(handle), (pfn, count)) = (self.handle(vm), self.frames(number, 1)) else { break };
            let before = self.model.clone();
            let real = calls::pool_topup(handle, pfn, count);
            let expect = self.model.topup(Some(vm), pfn, count);
            self.settle(before, expect, real, Some(vm))?;
        }
        Ok(())
    }
}
