//! One step: somebody does something.

use tenure_abi::flags::{pin, status};
use tenure_abi::{Reply, Status};
use tenure_test_hosts::vm::FREE_GFN;
use tenure_test_hosts::{Host, calls, memory};
use tenure_test_rt::harness::TestResult;
use tenure_test_rt::{check, probe};

use crate::arena::Arena;
use crate::party::{PAGES, Party};

/// Random numbers (xorshift64*), and a tally of answers.
#[derive(Clone, Copy, Debug)]
pub struct Dice {
    state: u64,
    /// Calls that succeeded.
    pub succeeded: u64,
    /// Calls that were refused.
    pub refused: u64,
}

impl Dice {
    /// Dice that fall as `seed` says.
    pub fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, succeeded: 0, refused: 0 }
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit.max(1)
    }

    /// Counts an answer.
    pub fn note(&mut self, reply: Reply) {
        if reply.is_success() {
            self.succeeded += 1;
        } else {
            self.refused += 1;
        }
    }
}

/// Takes one step.
///
/// # Errors
/// What must not happen.
pub fn take(host: &mut Host, arena: &mut Arena, parties: &mut [Party; 2], dice: &mut Dice) -> TestResult {
    let who = dice.below(2) as usize;
    let Some(party) = parties.get_mut(who) else { return Ok(()) };
    let count = 1 + dice.below(4);
    let pfn = arena.some(dice, count);
    let gfn = FREE_GFN + dice.below(PAGES - count + 1);
    let handle = party.vm.handle;
    let kind = dice.below(2);
    let reply = match dice.below(24) {
        0..10 => return party.go(host, arena, dice),
        10 => calls::donate(handle, gfn, pfn, count, [status::PRIVATE, status::SHARED][kind as usize]),
        11 => calls::reclaim(handle, pfn, count),
        12 => calls::guest_unmap(handle, gfn, count),
        13 => calls::guest_map(handle, gfn, pfn, count),
        14 => calls::set_status(handle, gfn, count, dice.below(6)),
        15 => calls::convert(handle, gfn, count, [status::PRIVATE, status::SHARED][kind as usize]),
        16 => calls::host_map(pfn, count),
        17 => calls::host_unmap(pfn, count),
        18 => return pin_some(arena, pfn, count, kind, dice),
        19 | 20 => return unpin_some(arena, pfn, count, kind, dice),
        21 => {
            // The host writes wherever it can.
            probe::write(memory::address(pfn) + dice.below(512) * 8, 0x0405_7000 + dice.below(16));
            return Ok(());
        }
        22 => calls::query_guest(handle, gfn, dice.below(4)).0,
        _ if dice.below(40) == 0 => return reborn(host, party),
        _ => calls::consent(handle, 0, dice.below(64)),
    };
    dice.note(reply);
    check!(reply.status != Status::NotSupported, "a call that there is was not known: {reply}");
    Ok(())
}

fn pin_some(arena: &mut Arena, pfn: u64, count: u64, kind: u64, dice: &mut Dice) -> TestResult {
    let reply = calls::pin(pfn, count, [pin::CPU, pin::DMA][kind as usize]);
    dice.note(reply);
    check!(reply.done == 0 || reply.done == count, "PIN did a part: {reply}");
    for frame in pfn..pfn + reply.done {
        if let Some(pins) = arena.ledger(frame, kind) {
            *pins += 1;
        }
    }
    Ok(())
}

fn unpin_some(arena: &mut Arena, pfn: u64, count: u64, kind: u64, dice: &mut Dice) -> TestResult {
    // Mostly where there is a pin; now and then anywhere.
    let (pfn, count) = match arena.pinned(kind, dice) {
        Some(pinned) if dice.below(4) > 0 => (pinned, 1),
        _ => (pfn, count),
    };
    let (reply, _) = calls::unpin(pfn, count, [pin::CPU, pin::DMA][kind as usize]);
    dice.note(reply);
    for frame in pfn..pfn + reply.done {
        if let Some(pins) = arena.ledger(frame, kind) {
            check!(*pins > 0, "UNPIN of {frame:#x}, which has no pin: {reply}");
            *pins -= 1;
        }
    }
    Ok(())
}

/// The guest dies, whatever it was doing, and another takes its place.
fn reborn(host: &mut Host, party: &mut Party) -> TestResult {
    party.vm.destroy(host)?;
    *party = Party::new(host, party.protected)?;
    Ok(())
}
