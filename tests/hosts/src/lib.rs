//! What the bare-metal hosts share: the machine as its device tree tells it, page frames to play with, every call of Tenure, and
//! a small VMM.
#![no_std]
#![forbid(unsafe_code)]
#![allow(clippy::result_large_err)] // A failure holds its text: there is no heap.

pub mod calls;
pub mod frames;
pub mod machine;
pub mod memory;
pub mod totals;
pub mod vm;

use arrayvec::ArrayVec;
use frames::Frames;
use machine::Machine;
use tenure_abi::{Reply, Status};
use tenure_test_rt::check;
use tenure_test_rt::harness::{Failure, TestResult};

/// Pages that are lent to the host's own pool at once.
const LENT: u64 = 8;

/// A host: its machine and its free frames.
#[derive(Debug)]
pub struct Host {
    /// What the device tree says.
    pub machine: Machine,
    /// Frames for experiments.
    pub frames: Frames,
    /// Runs of [`LENT`] of them that are lent to the host's own pool.
    lent: ArrayVec<u64, 64>,
    /// True where Tenure answers.
    pub under_tenure: bool,
}

impl Host {
    /// Looks at the machine that the device tree at `dtb` describes.
    ///
    /// # Errors
    /// A text that says what is wrong with the tree.
    pub fn new(dtb: u64) -> Result<Self, &'static str> {
        let machine = Machine::read(dtb)?;
        let frames = Frames::new(machine.free.clone());
        Ok(Self { machine, frames, lent: ArrayVec::new(), under_tenure: calls::tenure_answers() })
    }

    /// Gives pages to the host's own pool; they stay there.
    ///
    /// # Errors
    /// A refusal.
    pub fn top_up(&mut self) -> TestResult {
        let pfn = vm::take(self, LENT as usize, 1)?;
        let reply = calls::pool_topup(0, pfn, LENT);
        check!(reply == Reply::done(LENT), "POOL_TOPUP of the host: {reply}");
        let _ = self.lent.try_push(pfn);
        Ok(())
    }

    /// HOST_RESET, as often as it asks for: what was lent is free for experiments again. Returns how many pages its steps say
    /// that they changed.
    ///
    /// # Errors
    /// A refusal, no end, or a page that was lent and did not come back as it must.
    pub fn reset(&mut self) -> Result<u64, Failure> {
        let changed = vm::reset_host()?;
        for pfn in self.lent.take() {
            for frame in pfn..pfn + LENT {
                vm::came_back(frame)?;
            }
            self.frames.give(pfn, LENT as usize);
        }
        Ok(changed)
    }

    /// Has Tenure split every block of the host's that holds a frame for experiments: a split block keeps its table, so that
    /// totals before and after a test can be compared to the page from here on.
    ///
    /// # Errors
    /// A refusal.
    pub fn split_blocks(&mut self) -> TestResult {
        const BLOCK: u64 = 512;
        let (reply, regs) = calls::vm_create(0);
        check!(reply.is_success(), "VM_CREATE: {reply}");
        let handle = regs.x(4);
        // The last frame of each block: top-ups take the lowest.
        for pfn in self.frames.range().filter(|pfn| pfn % BLOCK == BLOCK - 1) {
            let mut reply = calls::pool_topup(handle, pfn, 1);
            if reply.status == Status::NoMemory {
                self.top_up()?;
                reply = calls::pool_topup(handle, pfn, 1);
            }
            check!(reply == Reply::done(1), "POOL_TOPUP of {pfn:#x}: {reply}");
        }
        vm::destroy(handle)
    }
}
