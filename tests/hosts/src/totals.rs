//! Sums over all page words, to see that nothing was lost or changed.

use tenure_abi::info;
use tenure_test_rt::check;
use tenure_test_rt::harness::Failure;

use crate::calls;

/// Frames in each state, pins, and the host's pool.
///
/// `now == before` where nothing was lost: the host's pool may have more free pages than before, since a block of the
/// host that was merged gives its table back.
#[derive(Clone, Copy, Debug)]
pub struct Totals {
    /// Frames by state, 0 (Host) to 6 (Poison).
    pub states: [u64; 7],
    /// CPU pins.
    pub cpu_pins: u64,
    /// DMA pins.
    pub dma_pins: u64,
    /// Free and total pages of the host's pool.
    pub pool: [u64; 2],
}

impl PartialEq for Totals {
    fn eq(&self, before: &Self) -> bool {
        let same = self.states == before.states
            && [self.cpu_pins, self.dma_pins] == [before.cpu_pins, before.dma_pins];
        let ([free, total], [free_before, total_before]) = (self.pool, before.pool);
        same && total == total_before && free >= free_before
    }
}

impl Totals {
    /// Counts now.
    ///
    /// # Errors
    /// If COUNT or POOL_INFO does not answer.
    pub fn read() -> Result<Self, Failure> {
        let (mut at, end) = (calls::figure(info::FIRST_PFN), calls::figure(info::END_PFN));
        let mut totals = Self { states: [0; 7], cpu_pins: 0, dma_pins: 0, pool: [0; 2] };
        while at < end {
            let (reply, regs) = calls::count(at, end - at);
            check!(reply.is_success() && reply.done > 0, "COUNT: {reply}");
            for (state, sum) in totals.states.iter_mut().enumerate() {
                *sum += regs.x(4 + state);
            }
            totals.cpu_pins += regs.x(11);
            totals.dma_pins += regs.x(12);
            at += reply.done;
        }
        let (reply, regs) = calls::pool_info(0);
        check!(reply.is_success(), "POOL_INFO: {reply}");
        totals.pool = [regs.x(4), regs.x(5)];
        Ok(totals)
    }

    /// Sum over all states: the frames that Tenure keeps a word for.
    pub fn frames(&self) -> u64 {
        self.states.iter().sum()
    }
}
