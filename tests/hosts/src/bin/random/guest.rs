//! Steps of guests: a call or an access is an order that the guest carries out, and that may leave to the host in between.
//!
//! Whenever the guest runs it makes its call (again); the model makes it too, and says whether the guest must come back with an
//! answer, or leave with which exit.

use tenure_abi::flags::{status, unshare};
use tenure_abi::page::State;
use tenure_abi::{MAX_ATOMIC_PAGES, PAGE_SIZE, Reply, RunPage, Status, exit, info, reply, smccc};
use tenure_mm::model::Model;
use tenure_test_hosts::calls;
use tenure_test_protocol::{command, op, outcome};
use tenure_test_rt::harness::{Failure, TestResult};
use tenure_test_rt::{check, check_eq, fail};

use crate::contents::Page;
use crate::op::Order;
use crate::place::{self, address};
use crate::world::World;

/// Exits that one run may cause beside the one that ends it.
const MAX_EXITS: u32 = 10_000;
/// What the host puts where a guest reads a device.
const DEVICE_VALUE: u64 = 0xd0;

/// What a guest is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Guest {
    /// It has run.
    booted: bool,
    /// The order that it has not answered yet.
    order: Option<Order>,
    /// The exit that it waits at.
    pub exit: Option<RunPage>,
    /// The conversion that the host may answer.
    pub request: Option<Request>,
    /// Number of its last request.
    pub sequence: u64,
    /// The host's refusal, which its call ends with: x0 to x3.
    pub refused: Option<[u64; 4]>,
    /// An abort may be injected for its last exit.
    pub injectable: bool,
    /// One was.
    pub aborted: bool,
    /// The host has answered its access to a device.
    device: bool,
    /// What a run that another CPU made must have come to.
    pub wanted: Option<Want>,
}

/// A conversion that the host is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// First address.
    pub gfn: u64,
    /// Pages.
    pub count: u64,
    /// Flags of the unshare.
    pub flags: u64,
    /// A stock guest asks.
    pub stock: bool,
    /// What its call answers if the host refuses.
    pub answer: [u64; 4],
}

/// What must come of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// The call's answer, x0 to x3.
    Reply(Reply),
    /// The call's x0 alone.
    Value(u64),
    /// An access that goes through; the value, if it is known.
    Access(Option<u64>),
    /// An access that ends in an abort.
    Fault,
    /// POPULATE at this address, of this kind.
    Populate(u64, u64),
    /// MMIO at this address.
    Device(u64),
    /// DRAIN for this page, which this blocks.
    Drain(u64, u64),
    /// CONVERT: the request, and what the manager answered.
    Convert(Request, Reply),
    /// A load from a device, with what the host gave.
    Loaded(u64),
    /// Success; what else it tells is compared elsewhere, or lost in a device.
    Looked,
}

/// How a run ended.
pub enum Came {
    /// The order was carried out: r0 to r4.
    Results([u64; 5]),
    /// The host must do something.
    Exit(RunPage),
}

impl core::fmt::Debug for Came {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Results([r0, r1, r2, r3, _]) => write!(f, "{:x} {r1:x} {r2:x} {r3:x}", *r0 as i64),
            Self::Exit(page) => {
                let RunPage { reason, gpa, count, status, flags, first, mask, .. } = page;
                write!(
                    f,
                    "exit {reason} at {gpa:x}+{count} status {status} flags {flags} first {first:x} mask {mask:x}"
                )
            }
        }
    }
}

impl Came {
    /// What a run page says.
    fn of(page: RunPage) -> Self {
        match (page.reason, page.args) {
            (exit::HYPERCALL, [op::NEXT, results @ ..]) => Self::Results(results),
            _ => Self::Exit(page),
        }
    }
}

impl Want {
    /// Whether this is what came.
    pub fn agrees(&self, came: &Came) -> bool {
        match (*self, came) {
            (Self::Reply(reply), Came::Results([results @ .., _])) => *results == reply.to_regs(),
            (Self::Value(value), Came::Results([r0, ..])) => *r0 == value,
            (Self::Access(known), Came::Results([r0, r1, ..])) => {
                *r0 == outcome::OK && known.is_none_or(|value| value == *r1)
            }
            (Self::Loaded(value), Came::Results([r0, r1, ..])) => (*r0, *r1) == (outcome::OK, value),
            (Self::Fault, Came::Results([r0, ..])) => *r0 == outcome::FAULT,
            (Self::Looked, Came::Results([r0, ..])) => *r0 == 0,
            (Self::Populate(gfn, kind), Came::Exit(page)) => {
                (page.reason, page.gpa, page.count, page.status) == (exit::POPULATE, gfn * PAGE_SIZE, 1, kind)
            }
            (Self::Device(gfn), Came::Exit(page)) => (page.reason, page.gpa / PAGE_SIZE) == (exit::MMIO, gfn),
            (Self::Drain(gfn, mask), Came::Exit(page)) => {
                (page.reason, page.gpa, page.count, page.mask) == (exit::DRAIN, gfn * PAGE_SIZE, 1, mask)
            }
            (Self::Convert(request, reply), Came::Exit(page)) => {
                let Request { gfn, count, flags, .. } = request;
                (page.reason, page.gpa, page.count) == (exit::CONVERT, gfn * PAGE_SIZE, count)
                    && (page.flags, page.first, page.mask) == (flags, reply.first, reply.mask)
            }
            _ => false,
        }
    }
}

impl Guest {
    /// A guest that has not run.
    pub fn new() -> Self {
        Self {
            booted: false,
            order: None,
            exit: None,
            request: None,
            sequence: 0,
            refused: None,
            injectable: false,
            aborted: false,
            device: false,
            wanted: None,
        }
    }
}

impl Guest {
    /// It waits for an order, and nothing of an earlier one is left.
    pub fn is_idle(&self) -> bool {
        self.booted && self.order.is_none() && self.refused.is_none() && !self.aborted && !self.device
    }

    /// An abort was injected in place of the last exit's access.
    pub fn given_abort(&mut self) {
        self.injectable = false;
        self.device = false;
        self.aborted = true;
    }
}

impl World {
    /// The guest of VM `vm` is run: with a new order if it has none to finish.
    ///
    /// # Errors
    /// What must not happen.
    pub fn guest(&mut self, vm: usize, order: Order) -> TestResult {
        self.boot(vm)?;
        let order = self.completed(vm, order);
        let Some(party) = self.party_mut(vm) else { return Ok(()) };
        let order = match party.guest.order {
            Some(order) => order,
            None => {
                party.guest.order = Some(order);
                let (number, arguments, count) = order.command();
                party.vm.prepare_order(number, arguments.get(..count).unwrap_or(&[]))?;
                order
            }
        };
        // Short of table memory the same call is made again, a few times at most.
        for _ in 0..8 {
            let before = self.model.clone();
            let (want, tables) = self.want(vm, order);
            match self.run(vm)? {
                Came::Exit(page) if page.reason == exit::TABLES => {
                    check!(tables, "TABLES from a call that needs none: {order:?}");
                    self.model = before;
                    self.feed(Some(vm), page.mask)?;
                }
                came => {
                    check!(want.agrees(&came), "{order:x?}: {came:?}; the model says {want:x?}");
                    if let Came::Results(_) = came {
                        let Self { contents, model, .. } = self;
                        contents.age(&before, model);
                        self.stored(vm, order, want, &before);
                    }
                    return self.keep(vm, order, want, &came);
                }
            }
        }
        fail!("VM {vm} asks for table memory without end")
    }

    /// The payload's first words, if it has not said them; the first run activates the VM.
    fn boot(&mut self, vm: usize) -> TestResult {
        if self.party(vm).is_some_and(|party| !party.guest.booted) {
            let (_, regs) = calls::pool_info(self.handle(vm).unwrap_or(0));
            if regs.x(4) < calls::figure(info::MIN_POOL) {
                self.feed(Some(vm), reply::VM_POOL)?;
            }
        }
        let Self { host, parties, model, .. } = self;
        let Some(party) = parties.get_mut(vm).and_then(Option::as_mut) else { return Ok(()) };
        if !party.guest.booted {
            party.vm.boot(host)?;
            party.guest.booted = true;
            model.activate(vm);
        }
        Ok(())
    }

    /// The order with its range inside the window, and with what a page must hold that is to be checked.
    fn completed(&self, vm: usize, order: Order) -> Order {
        let clip = |gfn, count| self.addresses(gfn, count).1;
        match self.aimed(vm, order) {
            Order::Share { gfn, count } => Order::Share { gfn, count: clip(gfn, count) },
            Order::Unshare { gfn, count, flags } => Order::Unshare { gfn, count: clip(gfn, count), flags },
            Order::Relinquish { gfn, count } => Order::Relinquish { gfn, count: clip(gfn, count) },
            Order::Check { gfn, count, .. } => {
                // More than a page only where no fault interrupts it.
                let all = count.min(place::left(gfn)).min(place::BLOCK);
                let there = (gfn..gfn + all).all(|gfn| self.frame_at(vm, gfn).is_some());
                let page = self.frame_at(vm, gfn).and_then(|pfn| self.contents.of(pfn));
                let value = page.map_or(0, |page| page.rest);
                Order::Check { gfn, count: if there { all.max(1) } else { 1 }, value }
            }
            other => other,
        }
    }

    /// The order about an address where something stands, mostly.
    fn aimed(&self, vm: usize, order: Order) -> Order {
        let there = |gfn| match gfn % 4 {
            0 => gfn,
            _ => self.seek_address(vm, gfn, |_, frame| frame.is_some()),
        };
        match order {
            Order::Share { gfn, count } => Order::Share { gfn: there(gfn), count },
            Order::Unshare { gfn, count, flags } => Order::Unshare { gfn: there(gfn), count, flags },
            Order::Relinquish { gfn, count } => Order::Relinquish { gfn: there(gfn), count },
            Order::StockShare { gfn } => Order::StockShare { gfn: there(gfn) },
            Order::StockUnshare { gfn } => Order::StockUnshare { gfn: there(gfn) },
            Order::Query { gfn } => Order::Query { gfn: there(gfn) },
            Order::Read { gfn, word } => Order::Read { gfn: there(gfn), word },
            Order::Write { gfn, word, value } => Order::Write { gfn: there(gfn), word, value },
            Order::Fill { gfn, value } => Order::Fill { gfn: there(gfn), value },
            Order::Check { gfn, count, value } => Order::Check { gfn: there(gfn), count, value },
        }
    }

    /// The frame at an address of the window.
    fn frame_at(&self, vm: usize, gfn: u64) -> Option<u64> {
        self.model.vms.get(&vm)?.addresses.get(&address(gfn))?.frame
    }

    /// Runs the vCPU to the end of its order, or to an exit that somebody must answer.
    fn run(&mut self, vm: usize) -> Result<Came, Failure> {
        let Some(party) = self.party_mut(vm) else { fail!("VM {vm} is gone") };
        party.guest.request = None;
        party.guest.injectable = false;
        party.guest.exit = None;
        for _ in 0..MAX_EXITS {
            let page = party.vm.run_once()?;
            let [what, index, ..] = page.args;
            match page.reason {
                exit::INTERRUPT | exit::TIMER => {}
                exit::HYPERCALL if what == op::ARG => party.vm.answer_argument(index),
                exit::SYSTEM | exit::FAULT => fail!("the guest cannot go on: {page:x?}"),
                _ => return Ok(Came::of(page)),
            }
        }
        fail!("the guest exits without end")
    }

    /// What the run must come to, and whether it may be short of table memory; the model takes the step.
    pub fn want(&mut self, vm: usize, order: Order) -> (Want, bool) {
        let model = &mut self.model;
        if let Some(guest) = self.parties.get_mut(vm).and_then(Option::as_mut).map(|party| &mut party.guest) {
            if let Some(registers) = guest.refused.take() {
                return match Reply::from_regs(registers) {
                    Some(reply) if !matches!(order, Order::StockUnshare { .. }) => {
                        (Want::Reply(reply), false)
                    }
                    _ => (Want::Value(registers[0]), false),
                };
            }
            if core::mem::take(&mut guest.aborted) {
                return (Want::Fault, false);
            }
            if core::mem::take(&mut guest.device) {
                let read = matches!(order, Order::Read { .. });
                return (if read { Want::Loaded(DEVICE_VALUE) } else { Want::Looked }, false);
            }
        }
        match order {
            Order::Share { gfn, count } => {
                let expect = model.share(vm, address(gfn), count);
                (Want::Reply(expect.reply), expect.tables)
            }
            Order::Relinquish { gfn, count } => {
                let expect = model.relinquish(vm, address(gfn), count);
                (Want::Reply(expect.reply), expect.tables)
            }
            Order::Unshare { gfn, count, flags } => {
                let gfn = address(gfn);
                let expect = model.unshare(vm, gfn, count, flags);
                let reply = expect.reply;
                let want = match reply.status {
                    Status::Pending if flags & unshare::WAIT != 0 => {
                        Want::Drain(gfn + reply.first, reply.mask)
                    }
                    Status::Retry => {
                        let count = count.min(MAX_ATOMIC_PAGES);
                        let answer = reply.to_regs();
                        Want::Convert(Request { gfn, count, flags, stock: false, answer }, reply)
                    }
                    _ => Want::Reply(reply),
                };
                (want, expect.tables)
            }
            Order::StockShare { gfn } => {
                let expect = model.share(vm, address(gfn), 1);
                let value = if expect.reply.is_success() { 0 } else { smccc::INVALID_PARAMETER };
                (Want::Value(value), expect.tables)
            }
            Order::StockUnshare { gfn } => {
                let gfn = address(gfn);
                let expect = model.unshare(vm, gfn, 1, 0);
                let want = match expect.reply.status {
                    Status::Success => Want::Value(0),
                    Status::Retry | Status::Busy | Status::Pending => {
                        let answer = [smccc::INVALID_PARAMETER, 0, 0, 0];
                        Want::Convert(Request { gfn, count: 1, flags: 0, stock: true, answer }, expect.reply)
                    }
                    _ => Want::Value(smccc::INVALID_PARAMETER),
                };
                (want, expect.tables)
            }
            Order::Query { .. } => (Want::Looked, false),
            Order::Read { gfn, word } => (self.access(vm, gfn, |page| page.word(word)), false),
            Order::Write { gfn, value, .. } | Order::Fill { gfn, value } => {
                (self.access(vm, gfn, |_| value), false)
            }
            // As many words differ as are known to.
            Order::Check { gfn, count, value } => {
                let others = |page: &Page| page.words().filter(|word| *word != value).count() as u64;
                (self.sum(vm, gfn, count, others), false)
            }
        }
    }

    /// As [`Self::access`] for so many pages: the sum of their values.
    fn sum(&self, vm: usize, gfn: u64, count: u64, value: impl Fn(&Page) -> u64) -> Want {
        let first = self.access(vm, gfn, &value);
        let Want::Access(first) = first else { return first };
        let rest =
            (gfn + 1..gfn + count).map(|gfn| self.frame_at(vm, gfn).and_then(|pfn| self.contents.of(pfn)));
        Want::Access(rest.fold(first, |sum, page| Some(sum? + value(page?))))
    }

    /// What an access of the guest comes to, with a value of the page that stands there.
    fn access(&self, vm: usize, gfn: u64, value: impl Fn(&Page) -> u64) -> Want {
        let gfn = address(gfn);
        let Some(owner) = self.model.vms.get(&vm) else { return Want::Fault };
        let address = owner.addresses.get(&gfn).cloned().unwrap_or_default();
        match (address.frame, address.status) {
            (Some(pfn), _) => Want::Access(self.contents.of(pfn).map(value)),
            (None, status::PRIVATE | status::RELINQUISHED) => Want::Populate(gfn, status::PRIVATE),
            (None, status::SHARED) => Want::Populate(gfn, status::SHARED),
            (None, status::DEVICE) => Want::Device(gfn),
            (None, _) if owner.protected => Want::Fault,
            (None, _) => Want::Populate(gfn, status::NONE),
        }
    }

    /// What the guest is at after a run that came to what it must.
    ///
    /// # Errors
    /// A number of a request that was used before.
    pub fn keep(&mut self, vm: usize, order: Order, want: Want, came: &Came) -> TestResult {
        let Some(party) = self.parties.get_mut(vm).and_then(Option::as_mut) else { return Ok(()) };
        let guest = &mut party.guest;
        let page = match came {
            Came::Results([r0, ..]) => {
                guest.order = None;
                self.note(*r0 == 0);
                return Ok(());
            }
            Came::Exit(page) => *page,
        };
        guest.exit = Some(page);
        match want {
            Want::Populate(..) => guest.injectable = true,
            Want::Device(_) if matches!(order, Order::Fill { .. } | Order::Check { .. }) => {
                // A page of device accesses would take all day.
                check_eq!(party.vm.inject_abort(), Reply::done(0), "VCPU_INJECT");
                guest.aborted = true;
            }
            Want::Device(_) => {
                party.vm.answer(DEVICE_VALUE);
                guest.device = true;
                guest.injectable = true;
            }
            Want::Convert(request, _) => {
                check!(
                    page.sequence > guest.sequence,
                    "request {} comes after {}",
                    page.sequence,
                    guest.sequence
                );
                guest.sequence = page.sequence;
                guest.request = Some(request);
            }
            _ => {}
        }
        Ok(())
    }

    /// Brings an idle guest to where its next run carries out `order`.
    ///
    /// # Errors
    /// If it does not ask for the arguments.
    pub fn prime(&mut self, vm: usize, order: Order) -> TestResult {
        let Some(party) = self.party_mut(vm) else { return Ok(()) };
        party.guest.order = Some(order);
        let (number, arguments, count) = order.command();
        party.vm.prepare_order(number, arguments.get(..count).unwrap_or(&[]))?;
        for _ in 0..MAX_EXITS {
            let page = party.vm.run_once()?;
            let [what, index, ..] = page.args;
            match page.reason {
                exit::INTERRUPT | exit::TIMER => {}
                exit::HYPERCALL if what == op::ARG => {
                    party.vm.answer_argument(index);
                    if index + 1 == count as u64 {
                        return Ok(());
                    }
                }
                _ => fail!("{order:?}: {page:x?}"),
            }
        }
        fail!("the guest exits without end")
    }

    /// What another CPU's run of the guest came to; `told` is the call's answer.
    ///
    /// # Errors
    /// A refusal of VCPU_RUN.
    pub fn came(&mut self, vm: usize, told: &[u64]) -> Result<Came, Failure> {
        let Some(party) = self.party_mut(vm) else { fail!("VM {vm} is gone") };
        check!(told.first() == Some(&0), "VCPU_RUN: {told:x?}");
        party.guest.request = None;
        party.guest.injectable = false;
        party.guest.exit = None;
        Ok(Came::of(party.vm.run_page()?))
    }

    /// What the order left in memory.
    pub fn stored(&mut self, vm: usize, order: Order, want: Want, before: &Model) {
        if let (Order::Unshare { gfn, flags, .. }, Want::Reply(reply)) = (order, want) {
            self.zeroed(vm, address(gfn), reply.done, flags, before);
        }
        let Want::Access(_) = want else { return };
        match order {
            Order::Write { gfn, word, value } => {
                self.frame_at(vm, gfn).into_iter().for_each(|pfn| self.contents.store(pfn, word, value));
            }
            Order::Fill { gfn, value } => {
                self.frame_at(vm, gfn)
                    .into_iter()
                    .for_each(|pfn| self.contents.fill(pfn, Page::filled(value)));
            }
            _ => {}
        }
    }

    /// ZERO was asked for: pages that became private hold nothing (U8).
    pub fn zeroed(&mut self, vm: usize, gfn: u64, done: u64, flags: u64, before: &Model) {
        if flags & unshare::ZERO == 0 {
            return;
        }
        for gfn in gfn..gfn.saturating_add(done) {
            let pfn =
                before.vms.get(&vm).and_then(|vm| vm.addresses.get(&gfn)).and_then(|address| address.frame);
            let was = pfn.and_then(|pfn| before.frames.get(&pfn)).map(|frame| frame.state);
            if let (Some(pfn), Some(State::Shared | State::Draining)) = (pfn, was) {
                self.contents.fill(pfn, Page::ZERO);
            }
        }
    }
}

impl Order {
    /// The payload's command, its arguments, and how many they are.
    fn command(self) -> (u64, [u64; 3], usize) {
        let at = |gfn: u64| address(gfn) * PAGE_SIZE;
        match self {
            Self::Share { gfn, count } => (command::SHARE, [at(gfn), count, 0], 2),
            Self::Unshare { gfn, count, flags } => (command::UNSHARE, [at(gfn), count, flags], 3),
            Self::Relinquish { gfn, count } => (command::RELINQUISH, [at(gfn), count, 0], 2),
            Self::StockShare { gfn } => (command::STOCK_SHARE, [at(gfn), 0, 0], 1),
            Self::StockUnshare { gfn } => (command::STOCK_UNSHARE, [at(gfn), 0, 0], 1),
            Self::Query { gfn } => (command::QUERY, [at(gfn), 0, 0], 1),
            Self::Read { gfn, word } => (command::READ, [at(gfn) + word * 8, 0, 0], 1),
            Self::Write { gfn, word, value } => (command::WRITE, [at(gfn) + word * 8, value, 0], 2),
            Self::Fill { gfn, value } => (command::FILL, [at(gfn), 1, value], 3),
            Self::Check { gfn, count, value } => (command::CHECK, [at(gfn), count, value], 3),
        }
    }
}
