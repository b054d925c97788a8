//! A small VMM: one VM with one vCPU that runs the guest of `tenure-test-protocol`.

use core::mem::offset_of;

use tenure_abi::flags::{inject, status, vm as vm_flags};
use tenure_abi::page::State;
use tenure_abi::{PAGE_SIZE, Reply, RunPage, call, exit, info, reg, reply};
use tenure_test_protocol as protocol;
use tenure_test_protocol::{command, op};
use tenure_test_rt::harness::{Failure, TestResult};
use tenure_test_rt::probe::{self, Outcome};
use tenure_test_rt::{check, check_eq, console, cpu, fail};

use crate::{Host, calls, memory};

/// Pages of a test VM's RAM.
pub const RAM_PAGES: u64 = protocol::DEFAULT_RAM_BYTES / PAGE_SIZE;
/// First guest frame of RAM.
pub const RAM_GFN: u64 = protocol::ENTRY / PAGE_SIZE;
/// First guest frame that the payload leaves alone.
pub const FREE_GFN: u64 = protocol::FREE / PAGE_SIZE;
const IMAGE_PAGES: u64 = protocol::IMAGE_BYTES / PAGE_SIZE;
/// Pages given to a VM's pool beyond what activation needs.
const POOL_SPARE: u64 = 16;
/// Exits that one order may cause before the test is given up.
const MAX_EXITS: u32 = 200_000;

static GUEST: &[u8] = include_bytes!(env!("TENURE_GUEST_BASIC"));

/// What a run of the guest came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The guest asks for its next order and tells the results of the last.
    Idle([u64; 5]),
    /// An exit that the test must answer.
    Exit(RunPage),
}

/// A VM, its vCPU 0 and the frames that it has.
#[derive(Debug)]
pub struct Vm {
    /// The handle.
    pub handle: u64,
    /// The run page's frame.
    pub run_pfn: u64,
    /// Frames at RAM_GFN and up; 0 for none.
    frames: [u32; RAM_PAGES as usize],
    /// Frames of the pool, given in pieces of one size; none of them comes back before the VM is gone.
    pool: arrayvec::ArrayVec<(u64, usize), 64>,
    arguments: [u64; 6],
    protected: bool,
    /// Exits so far by reason.
    pub exits: [u32; 16],
    /// True if touches of RAM are answered with frames by `run`.
    pub populate: bool,
    /// True if the guest's text is printed.
    pub echo: bool,
}

impl Vm {
    /// Creates a VM with `flags`, places the payload, makes vCPU 0. Not active yet.
    ///
    /// # Errors
    /// The first call that was refused.
    pub fn new(host: &mut Host, flags: u64) -> Result<Self, Failure> {
        let (reply, regs) = calls::vm_create(flags);
        check!(reply.is_success(), "VM_CREATE: {reply}");
        let run_pfn = take(host, 1, 1)?;
        let mut vm = Self {
            handle: regs.x(4),
            run_pfn,
            frames: [0; RAM_PAGES as usize],
            pool: arrayvec::ArrayVec::new(),
            arguments: [0; 6],
            protected: flags & vm_flags::PROTECTED != 0,
            exits: [0; 16],
            populate: true,
            echo: false,
        };
        match vm.prepare(host) {
            Ok(()) => Ok(vm),
            Err(failure) => {
                // The first failure is the one to tell.
                let _ = vm.destroy(host);
                Err(failure)
            }
        }
    }

    fn prepare(&mut self, host: &mut Host) -> TestResult {
        self.top_up(host, calls::figure(info::MIN_POOL) + POOL_SPARE)?;
        let console_gfn = protocol::CONSOLE / PAGE_SIZE;
        self.set_status(host, console_gfn, 1, status::DEVICE)?;
        self.set_status(host, RAM_GFN, RAM_PAGES, status::PRIVATE)?;
        // The image goes into shared frames, is written by the host, and becomes private with its contents.
        self.set_status(host, RAM_GFN, IMAGE_PAGES, status::SHARED)?;
        check!(
            GUEST.len() as u64 <= IMAGE_PAGES * PAGE_SIZE && !GUEST.is_empty(),
            "payload of {} bytes",
            GUEST.len()
        );
        let pfn = take(host, IMAGE_PAGES as usize, 1)?;
        self.donate(host, RAM_GFN, pfn, IMAGE_PAGES, status::SHARED)?;
        check!(memory::place(pfn, GUEST, IMAGE_PAGES), "the host cannot write the shared image");
        let reply = calls::host_unmap(pfn, IMAGE_PAGES);
        check!(reply.is_success(), "HOST_UNMAP of the image: {reply}");
        // Each page is measured, so one call does less than all.
        let handle = self.handle;
        let step = |at, rest| calls::convert(handle, RAM_GFN + at, rest, status::PRIVATE);
        let reply = calls::all(IMAGE_PAGES, step, || false);
        check_eq!(reply, Reply::done(IMAGE_PAGES), "CONVERT of the image");
        let reply = calls::vcpu_create(self.handle, 0, self.run_pfn);
        check!(reply.is_success(), "VCPU_CREATE: {reply}");
        for (register, value) in
            [(reg::PC, protocol::ENTRY), (reg::X0, protocol::DEFAULT_RAM_BYTES), (reg::PSTATE, 0x3c5)]
        {
            let reply = calls::reg_set(self.handle, 0, register, value);
            check!(reply.is_success(), "REG_SET of {register}: {reply}");
        }
        Ok(())
    }

    /// Gives pages to the VM's pool.
    ///
    /// # Errors
    /// A refusal.
    pub fn top_up(&mut self, host: &mut Host, pages: u64) -> TestResult {
        let pfn = take(host, pages as usize, 1)?;
        let mut more = || host.top_up().is_ok();
        let reply = calls::all(pages, |at, rest| calls::pool_topup(self.handle, pfn + at, rest), &mut more);
        check!(reply.is_success() && reply.done == pages, "POOL_TOPUP of {pages}: {reply}");
        if self.pool.try_push((pfn, pages as usize)).is_err() {
            fail!("the VM asks for memory without end");
        }
        Ok(())
    }

    /// SET_STATUS of a range, with top-ups as asked.
    ///
    /// # Errors
    /// A refusal.
    pub fn set_status(&mut self, host: &mut Host, gfn: u64, count: u64, to: u64) -> TestResult {
        let mut done = 0;
        while done < count {
            let handle = self.handle;
            let mut short = false;
            let reply = calls::all(
                count - done,
                |at, rest| calls::set_status(handle, gfn + done + at, rest, to),
                || {
                    short = true;
                    false
                },
            );
            done += reply.done;
            if short {
                self.top_up(host, 8)?;
            } else if !reply.is_success() || reply.done == 0 {
                fail!("SET_STATUS of {count} at {gfn:#x}: {reply}");
            }
        }
        Ok(())
    }

    /// DONATE of a range, with top-ups as asked; remembers the frames.
    ///
    /// # Errors
    /// A refusal.
    pub fn donate(&mut self, host: &mut Host, gfn: u64, pfn: u64, count: u64, kind: u64) -> TestResult {
        let mut done = 0;
        for _ in 0..10_000 {
            if done >= count {
                break;
            }
            let reply = calls::donate(self.handle, gfn + done, pfn + done, count - done, kind);
            for index in done..done + reply.done {
                self.note(gfn + index, pfn + index);
            }
            done += reply.done;
            match reply.status {
                tenure_abi::Status::NoMemory if reply.mask & reply::HOST_POOL != 0 => host.top_up()?,
                tenure_abi::Status::NoMemory => self.top_up(host, 8)?,
                tenure_abi::Status::Success if reply.done > 0 => {}
                tenure_abi::Status::Retry if reply.done > 0 => {}
                _ => fail!("DONATE of {count} at {gfn:#x}: {reply}"),
            }
        }
        check_eq!(done, count, "DONATE");
        Ok(())
    }

    /// Takes new frames and donates them as the status `kind` asks; the first frame.
    ///
    /// # Errors
    /// A refusal.
    pub fn give(&mut self, host: &mut Host, gfn: u64, count: u64, kind: u64) -> Result<u64, Failure> {
        let pfn = take(host, count as usize, 1)?;
        self.donate(host, gfn, pfn, count, kind)?;
        Ok(pfn)
    }

    /// Remembers a frame that the test itself donated.
    pub fn donate_noted(&mut self, gfn: u64, pfn: u64) {
        self.note(gfn, pfn);
    }

    /// Frames of the VM's pool.
    pub fn pool_frames(&self) -> impl Iterator<Item = u64> {
        self.pool.iter().flat_map(|(pfn, count)| *pfn..*pfn + *count as u64)
    }

    fn note(&mut self, gfn: u64, pfn: u64) {
        if let Some(slot) = self.frames.get_mut(gfn.wrapping_sub(RAM_GFN) as usize) {
            *slot = pfn as u32;
        }
    }

    /// The frame at a guest address; 0 if the VMM gave none.
    pub fn frame(&self, gfn: u64) -> u64 {
        self.frames.get(gfn.wrapping_sub(RAM_GFN) as usize).map_or(0, |pfn| u64::from(*pfn))
    }

    /// The frame at `gfn` is the host's again: back to the free ones.
    pub fn forget(&mut self, host: &mut Host, gfn: u64) {
        let pfn = self.frame(gfn);
        if pfn != 0 {
            host.frames.give(pfn, 1);
            self.note(gfn, 0);
        }
    }

    /// The frame at `gfn` is not to be looked for when the VM dies (the test has another use for it).
    pub fn disown(&mut self, gfn: u64) {
        self.note(gfn, 0);
    }

    /// Reads the run page.
    ///
    /// # Errors
    /// If the host may not read it.
    pub fn run_page(&self) -> Result<RunPage, Failure> {
        let at = |offset: usize| -> Result<u64, Failure> {
            match probe::read(memory::address(self.run_pfn) + offset as u64) {
                Outcome::Value(value) => Ok(value),
                Outcome::Fault { esr, .. } => fail!("the run page cannot be read: ESR {esr:#x}"),
            }
        };
        let mut args = [0; 6];
        for (index, slot) in args.iter_mut().enumerate() {
            *slot = at(offset_of!(RunPage, args) + index * 8)?;
        }
        Ok(RunPage {
            reason: at(offset_of!(RunPage, reason))?,
            gpa: at(offset_of!(RunPage, gpa))?,
            count: at(offset_of!(RunPage, count))?,
            flags: at(offset_of!(RunPage, flags))?,
            sequence: at(offset_of!(RunPage, sequence))?,
            first: at(offset_of!(RunPage, first))?,
            mask: at(offset_of!(RunPage, mask))?,
            status: at(offset_of!(RunPage, status))?,
            width: at(offset_of!(RunPage, width))?,
            write: at(offset_of!(RunPage, write))?,
            data: at(offset_of!(RunPage, data))?,
            system: at(offset_of!(RunPage, system))?,
            target: at(offset_of!(RunPage, target))?,
            esr: at(offset_of!(RunPage, esr))?,
            timer_ctl: at(offset_of!(RunPage, timer_ctl))?,
            timer_cval: at(offset_of!(RunPage, timer_cval))?,
            args,
        })
    }

    /// Puts the host's answer into the run page.
    pub fn answer(&self, data: u64) {
        // A run page that cannot be written shows at the next exit.
        let _ = probe::write(memory::address(self.run_pfn) + offset_of!(RunPage, data) as u64, data);
    }

    /// One VCPU_RUN, whatever comes.
    ///
    /// # Errors
    /// If the call is refused, or x4 and the run page disagree.
    pub fn run_once(&mut self) -> Result<RunPage, Failure> {
        let (reply, regs) = calls::vcpu_run(self.handle, 0);
        check!(reply.is_success(), "VCPU_RUN: {reply}");
        let page = self.run_page()?;
        check_eq!(page.reason, regs.x(4), "the run page's reason");
        if let Some(count) = self.exits.get_mut(page.reason as usize) {
            *count += 1;
        }
        Ok(page)
    }

    /// Runs the vCPU until it wants an order or something that the test must answer.
    ///
    /// # Errors
    /// A refused call.
    pub fn run(&mut self, host: &mut Host) -> Result<Event, Failure> {
        for _ in 0..MAX_EXITS {
            let page = self.run_once()?;
            let [what, index, ..] = page.args;
            match page.reason {
                exit::INTERRUPT | exit::TIMER => {}
                exit::TABLES => self.top_up(host, 8)?,
                exit::POPULATE if self.populate => self.populate(host, &page)?,
                exit::MMIO if page.write == 1 && page.gpa == protocol::CONSOLE => {
                    if self.echo {
                        console::put(page.data as u8);
                    }
                }
                exit::HYPERCALL if what == op::ARG => {
                    self.answer_argument(index);
                }
                exit::HYPERCALL if what == op::NEXT => {
                    let [_, r0, r1, r2, r3, r4] = page.args;
                    return Ok(Event::Idle([r0, r1, r2, r3, r4]));
                }
                _ => return Ok(Event::Exit(page)),
            }
        }
        fail!("the guest exits without end")
    }

    fn populate(&mut self, host: &mut Host, page: &RunPage) -> TestResult {
        let gfn = page.gpa / PAGE_SIZE;
        check!((RAM_GFN..RAM_GFN + RAM_PAGES).contains(&gfn), "POPULATE outside RAM: {:#x}", page.gpa);
        check!(page.count >= 1, "POPULATE of no page");
        let kind = if page.status == status::SHARED { status::SHARED } else { status::PRIVATE };
        self.give(host, gfn, 1, kind)?;
        Ok(())
    }

    /// Gives the guest an order (it must be idle) and runs on.
    ///
    /// # Errors
    /// A refused call.
    pub fn order(&mut self, host: &mut Host, command: u64, arguments: &[u64]) -> Result<Event, Failure> {
        self.prepare_order(command, arguments)?;
        self.run(host)
    }

    /// Lays an order out for the guest (it must be idle), which takes it when it runs next.
    ///
    /// # Errors
    /// If the order takes another number of arguments.
    pub fn prepare_order(&mut self, command: u64, arguments: &[u64]) -> TestResult {
        self.arguments = [0; 6];
        for (to, from) in self.arguments.iter_mut().zip(arguments) {
            *to = *from;
        }
        check_eq!(command::arguments(command), Some(arguments.len()), "order {command}");
        self.answer(command);
        Ok(())
    }

    /// Answers the guest's question for argument `index` of its order.
    pub fn answer_argument(&self, index: u64) {
        self.answer(self.arguments.get(index as usize).copied().unwrap_or(0));
    }

    /// Gives the guest an order that it must carry out without the test's help; its results.
    ///
    /// # Errors
    /// A refused call, or another exit.
    pub fn command(&mut self, host: &mut Host, command: u64, arguments: &[u64]) -> Result<[u64; 5], Failure> {
        match self.order(host, command, arguments)? {
            Event::Idle(results) => Ok(results),
            Event::Exit(page) => fail!("order {command}: exit {page:x?}"),
        }
    }

    /// As [`Self::command`] for a guest's call: its [`Reply`].
    ///
    /// # Errors
    /// A refused host call, another exit, or an answer that is none of Tenure's.
    pub fn call(&mut self, host: &mut Host, command: u64, arguments: &[u64]) -> Result<Reply, Failure> {
        let results = self.command(host, command, arguments)?;
        reply_of(results)
    }

    /// Runs on after an exit that the test answered, up to the guest's next request for an order.
    ///
    /// # Errors
    /// A refused call, or another exit.
    pub fn resume(&mut self, host: &mut Host) -> Result<[u64; 5], Failure> {
        match self.run(host)? {
            Event::Idle(results) => Ok(results),
            Event::Exit(page) => fail!("another exit: {page:x?}"),
        }
    }

    /// Starts the guest: runs it up to its first request.
    ///
    /// # Errors
    /// A refused call, or another exit.
    pub fn boot(&mut self, host: &mut Host) -> TestResult {
        let results = self.resume(host)?;
        check_eq!(results, [0; 5], "the first request");
        Ok(())
    }

    /// Makes the guest touch `count` pages of free RAM, so that they are there, filled with `value`.
    ///
    /// # Errors
    /// A refused call, or a fault of the guest.
    pub fn fill(&mut self, host: &mut Host, gfn: u64, count: u64, value: u64) -> TestResult {
        let results = self.command(host, command::FILL, &[gfn * PAGE_SIZE, count, value])?;
        check_eq!(results, [protocol::outcome::OK, value, 0, 0, count], "FILL");
        Ok(())
    }

    /// Fails unless the guest reads `value` all over the pages.
    ///
    /// # Errors
    /// A refused call, a fault of the guest, or other contents.
    pub fn expect(&mut self, host: &mut Host, gfn: u64, count: u64, value: u64) -> TestResult {
        let results = self.command(host, command::CHECK, &[gfn * PAGE_SIZE, count, value])?;
        check_eq!(results, [protocol::outcome::OK, 0, 0, 0, count], "contents that the guest sees");
        Ok(())
    }

    /// Fails unless the guest's share of the pages succeeds.
    ///
    /// # Errors
    /// A refusal.
    pub fn share(&mut self, host: &mut Host, gfn: u64, count: u64) -> TestResult {
        let reply = self.call(host, command::SHARE, &[gfn * PAGE_SIZE, count])?;
        check_eq!(reply, Reply::done(count), "SHARE");
        Ok(())
    }

    /// Injects an abort for the last exit.
    pub fn inject_abort(&self) -> Reply {
        calls::vcpu_inject(self.handle, 0, inject::DATA_ABORT)
    }

    /// Destroys the VM without looking at its frames.
    ///
    /// # Errors
    /// A refusal.
    pub fn kill(&mut self) -> TestResult {
        destroy(self.handle)
    }

    /// Destroys the VM and fails unless every frame that it had is the host's again and scrubbed.
    ///
    /// # Errors
    /// A refusal, or a frame that did not come back as it must.
    pub fn destroy(&mut self, host: &mut Host) -> TestResult {
        self.kill()?;
        self.collect(host)
    }

    /// After the VM's end: takes its frames back, each the host's and scrubbed.
    ///
    /// # Errors
    /// A frame that did not come back as it must.
    pub fn collect(&mut self, host: &mut Host) -> TestResult {
        for gfn in RAM_GFN..RAM_GFN + RAM_PAGES {
            let pfn = self.frame(gfn);
            if pfn != 0 {
                came_back(pfn)?;
                self.forget(host, gfn);
            }
        }
        for (pfn, count) in self.pool.take() {
            for frame in pfn..pfn + count as u64 {
                came_back(frame)?;
            }
            host.frames.give(pfn, count);
        }
        check_eq!(calls::state(self.run_pfn), Some(State::Host), "the run page");
        check_eq!(tenure_abi::page::HYP_PINS.get(calls::word(self.run_pfn)), 0, "pins of the run page");
        host.frames.give(self.run_pfn, 1);
        Ok(())
    }

    /// True for a protected VM.
    pub fn is_protected(&self) -> bool {
        self.protected
    }
}

/// VM_DESTROY, as often as it asks for.
///
/// # Errors
/// A refusal.
pub fn destroy(handle: u64) -> TestResult {
    // Another CPU may run a vCPU of it, and be a while.
    let begin = cpu::counter();
    while cpu::counter().wrapping_sub(begin) < cpu::counter_frequency() * 20 {
        let (reply, regs) = calls::vm_destroy(handle);
        match reply.status {
            tenure_abi::Status::Success if regs.x(4) == 1 => return Ok(()),
            tenure_abi::Status::Success | tenure_abi::Status::Retry => {}
            _ => fail!("VM_DESTROY: {reply}"),
        }
    }
    fail!("VM_DESTROY never ends")
}

/// HOST_RESET, as often as it asks for. Returns how many pages its steps say that they changed.
///
/// # Errors
/// A refusal, or no end.
pub fn reset_host() -> Result<u64, Failure> {
    let (mut next, mut changed) = (0, 0);
    for _ in 0..1_000_000 {
        let (reply, regs) = calls::host_reset(next);
        match (reply.status, regs.x(4)) {
            (tenure_abi::Status::Success, 1) => return Ok(changed),
            (tenure_abi::Status::Retry, 0) => changed += reply.done,
            _ => fail!("HOST_RESET: {reply}, finished {}", regs.x(4)),
        }
        next = regs.x(5);
    }
    fail!("HOST_RESET never ends")
}

/// r0..r3 of a command as a reply.
///
/// # Errors
/// If r0 is none of Tenure's statuses.
pub fn reply_of(results: [u64; 5]) -> Result<Reply, Failure> {
    let [r0, r1, r2, r3, _] = results;
    match Reply::from_regs([r0, r1, r2, r3]) {
        Some(reply) => Ok(reply),
        None => fail!("the guest got {r0:#x}, which is no status"),
    }
}

/// Fails unless the frame is the host's, unpinned and zero.
///
/// # Errors
/// What is wrong with it.
pub fn came_back(pfn: u64) -> TestResult {
    check_eq!(calls::state(pfn), Some(State::Host), "frame {pfn:#x}");
    check!(memory::is_filled(pfn, 0), "frame {pfn:#x} came back unscrubbed");
    Ok(())
}

/// Takes frames of the host.
///
/// # Errors
/// If none are left.
pub fn take(host: &mut Host, count: usize, align: usize) -> Result<u64, Failure> {
    match host.frames.take(count, align) {
        Some(pfn) => Ok(pfn),
        None => fail!("the test has no {count} frames left"),
    }
}

/// Runs `test` with a booted guest and destroys it after; what the test says goes before what the end says.
///
/// # Errors
/// Of the test or of the VM's life.
pub fn with_guest(
    host: &mut Host,
    flags: u64,
    test: impl FnOnce(&mut Host, &mut Vm) -> TestResult,
) -> TestResult {
    let mut vm = Vm::new(host, flags)?;
    let outcome = vm.boot(host).and_then(|()| test(host, &mut vm));
    let end = vm.destroy(host);
    outcome.and(end)
}

/// The last call id of the host's range, for tests that try them all.
pub const LAST_CALL: u64 = call::VERSION | 0x3f;
