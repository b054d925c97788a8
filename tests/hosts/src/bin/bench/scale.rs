//! Whether figures grow with the memory of the guest (64 MiB to 4 GiB, as far as the machine has it) or with the number of
//! VMs (1 to 64).

use core::fmt::Write;

use arrayvec::{ArrayString, ArrayVec};
use tenure_abi::flags::{status, vm as vm_flags};
use tenure_abi::{PAGE_SIZE, Status, reply};
use tenure_test_hosts::vm::{FREE_GFN, Vm, destroy, take};
use tenure_test_hosts::{Host, calls};
use tenure_test_protocol::work;
use tenure_test_rt::harness::{self, Failure, TestResult};
use tenure_test_rt::{check, fail};

use crate::guest::looped;
use crate::{Clock, Measured, Watch, figure, instructions};

/// Where the guest's large memory begins: 4 GiB, above all that the payload uses.
const LARGE_GFN: u64 = (4 << 30) / PAGE_SIZE;
const MEBIBYTE: u64 = (1 << 20) / PAGE_SIZE;
const MOST: u64 = 4096 * MEBIBYTE;

/// Measures both.
pub fn run(host: &mut Host, clock: Clock) {
    vms(host, clock);
    memory(host, clock);
}

fn name(what: &str, at: u64, unit: &str) -> ArrayString<64> {
    let mut name = ArrayString::new();
    // A name that does not fit would be cut; none is.
    let _ = write!(name, "{what}_{at}{unit}");
    name
}

/// The operations whose cost should not grow, on 512 pages from `gfn`.
fn conversions(host: &mut Host, vm: &mut Vm, clock: Clock, gfn: u64, at: u64, unit: &str) {
    let ipa = gfn * PAGE_SIZE;
    for (what, op, steps) in [
        ("guest_share", work::SHARE, 512),
        ("guest_unshare", work::UNSHARE, 512),
        ("guest_share_unshare_pair", work::PAIR, 512),
        ("guest_share_range_512_per_page", work::SHARE_RANGE, 512),
        ("guest_unshare_range_512_per_page", work::UNSHARE_RANGE, 512),
    ] {
        instructions(&name(what, at, unit), || looped(host, vm, clock, (op, ipa, steps), steps));
    }
}

/// One guest that runs, beside others that have memory and do nothing.
fn vms(host: &mut Host, clock: Clock) {
    let mut others = ArrayVec::<(u64, u64), 64>::new();
    for count in [1_usize, 4, 16, 64] {
        let mut vm = None;
        harness::run("bench", &name("guests", count as u64, "_start"), || {
            while others.len() + 1 < count {
                others.push(idle(host)?);
            }
            let guest = vm.insert(Vm::new(host, vm_flags::PROTECTED)?);
            guest.boot(host)?;
            guest.fill(host, FREE_GFN, 512, 1)
        });
        let Some(vm) = &mut vm else { break };
        conversions(host, vm, clock, FREE_GFN, count as u64, "_vms");
        harness::run("bench", &name("guest", count as u64, "_ends"), || vm.destroy(host));
    }
    harness::run("bench", "the_other_guests_end", || {
        for (handle, pfn) in others {
            destroy(handle)?;
            host.frames.give(pfn, IDLE_PAGES);
        }
        Ok(())
    });
}

const IDLE_PAGES: usize = 32;

/// A VM with a pool and some memory; its handle and first frame.
fn idle(host: &mut Host) -> Result<(u64, u64), Failure> {
    const POOL: u64 = 16;
    let (reply, regs) = calls::vm_create(vm_flags::PROTECTED);
    check!(reply.is_success(), "VM_CREATE: {reply}");
    let handle = regs.x(4);
    let pfn = take(host, IDLE_PAGES, 1)?;
    let reply =
        calls::all(POOL, |at, rest| calls::pool_topup(handle, pfn + at, rest), || host.top_up().is_ok());
    check!(reply.done == POOL, "POOL_TOPUP: {reply}");
    let rest = IDLE_PAGES as u64 - POOL;
    let reply = calls::set_status(handle, FREE_GFN, rest, status::PRIVATE);
    check!(reply.is_success(), "SET_STATUS: {reply}");
    let first = pfn + POOL;
    let donate = |at, rest| calls::donate(handle, FREE_GFN + at, first + at, rest, status::PRIVATE);
    let reply = calls::all(rest, donate, || host.top_up().is_ok());
    check!(reply.done == rest, "DONATE: {reply}");
    Ok((handle, pfn))
}

/// A guest whose memory grows, populated whole.
fn memory(host: &mut Host, clock: Clock) {
    // Above the frames that tests take one by one.
    let end = host.machine.free.end / PAGE_SIZE;
    let mut supply = Supply { at: host.frames.range().end.next_multiple_of(512), end };
    let mut vm = None;
    harness::run("bench", "a_guest_with_room_starts", || {
        let guest = vm.insert(Vm::new(host, vm_flags::PROTECTED)?);
        guest.set_status(host, LARGE_GFN, MOST, status::PRIVATE)?;
        guest.boot(host)
    });
    let Some(vm) = &mut vm else { return };
    let mut populated = 0;
    for mebibytes in [64, 256, 1024, 4096] {
        let goal = mebibytes * MEBIBYTE;
        if supply.end - supply.at < (goal - populated) + (goal - populated) / 128 + 1024 {
            tenure_test_rt::println!("note: no {mebibytes} MiB for a guest");
            break;
        }
        let added = goal - populated;
        instructions(&name("populate_per_page", mebibytes, "_mib"), || {
            let watch = Watch::start();
            supply.populate(vm.handle, LARGE_GFN + populated, added)?;
            Ok(clock.per_step(watch.ticks(), added))
        });
        populated = goal;
        conversions(host, vm, clock, LARGE_GFN + populated - 512, mebibytes, "_mib");
        figure(&name("pool_bytes_per_page", mebibytes, "_mib"), "bytes", || {
            let (reply, regs) = calls::pool_info(vm.handle);
            check!(reply.is_success(), "POOL_INFO: {reply}");
            let used = regs.x(5).saturating_sub(regs.x(4));
            Ok(Measured { tenths: used * PAGE_SIZE * 10 / populated, steps: 0 })
        });
    }
    instructions("destroy_per_page_of_the_largest", || {
        let watch = Watch::start();
        vm.kill()?;
        let ticks = watch.ticks();
        vm.collect(host)?;
        Ok(clock.per_step(ticks, populated))
    });
}

/// Frames of the machine, taken once, lowest first.
struct Supply {
    at: u64,
    end: u64,
}

impl Supply {
    fn take(&mut self, count: u64) -> Result<u64, Failure> {
        check!(self.end - self.at >= count, "the machine has no {count} frames left");
        self.at += count;
        Ok(self.at - count)
    }

    /// Donates `count` pages from `gfn` on, 2 MiB to 2 MiB, and gives the pools what they ask for.
    fn populate(&mut self, handle: u64, gfn: u64, count: u64) -> TestResult {
        // As blocks: frames and addresses begin at a multiple of 2 MiB.
        self.at = self.at.next_multiple_of(512);
        let pfn = self.take(count)?;
        let mut done = 0;
        while done < count {
            let reply = calls::donate(handle, gfn + done, pfn + done, count - done, status::PRIVATE);
            done += reply.done;
            match reply.status {
                Status::Success | Status::Retry if reply.done > 0 => {}
                Status::NoMemory => {
                    let whose = if reply.mask & reply::HOST_POOL != 0 { 0 } else { handle };
                    self.top_up(whose)?;
                }
                _ => fail!("DONATE at {:#x}: {reply}", gfn + done),
            }
        }
        Ok(())
    }

    /// Gives a pool (0: the host's) pages. The host's own may need some first to give others.
    fn top_up(&mut self, whose: u64) -> TestResult {
        const PAGES: u64 = 64;
        let pfn = self.take(PAGES)?;
        let reply = calls::pool_topup(whose, pfn, PAGES);
        match reply.status {
            Status::Success if reply.done > 0 => Ok(()),
            Status::NoMemory if whose != 0 => self.top_up(0),
            _ => fail!("POOL_TOPUP of {whose:#x}: {reply}"),
        }
    }
}
