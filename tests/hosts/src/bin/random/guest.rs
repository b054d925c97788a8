//! Steps of guests: a call or an access is an order that the guest carries out, and that may leave to the host in between.
//!
//! Whenever the guest runs it makes its call (again); the model makes it too, and says whether the guest must come back with an
//! answer, or leave with which exit.

use tenure_abi::flags::{status, unshare};
use tenure_abi::page::State;
use tenure_abi::{MAX_ATOMIC_PAGES, PAGE_SIZE, Reply, RunPage, Status, exit, smccc};
use tenure_mm::model::Model;
use tenure_test_protocol::{command, op, outcome};
use tenure_test_rt::harness::{Failure, TestResult};
use tenure_test_rt::{check, check_eq, fail};

use crate::contents::Page;
use crate::op::Order;
use crate::world::{GFN, World};

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
enum Want {
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
enum Came {
    Results([u64; 5]),
    Exit(RunPage),
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
        }
    }
}

impl Guest {
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
            let came = self.run(vm)?;
            match came {
                Came::Exit(page) if page.reason == exit::TABLES => {
                    check!(tables, "TABLES from a call that needs none: {order:?}");
                    self.model = before;
                    self.feed(Some(vm), page.mask)?;
                    if let Some(party) = self.party_mut(vm) {
                        party.guest.request = None;
                    }
                }
                Came::Exit(page) => return self.left(vm, order, want, page),
                Came::Results(results) => {
                    self.finished(vm, order, want, results)?;
                    let Self { contents, model, .. } = self;
                    contents.age(&before, model);
                    return self.stored(vm, order, want, &before);
                }
            }
        }
        fail!("VM {vm} asks for table memory without end")
    }

    /// The payload's first words, if it has not said them; the first run activates the VM.
    fn boot(&mut self, vm: usize) -> TestResult {
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
            Order::Check { gfn, .. } => {
                let page = self.frame_at(vm, gfn).and_then(|pfn| self.contents.of(pfn));
                Order::Check { gfn, value: page.map_or(0, |page| page.rest) }
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
            Order::Check { gfn, value } => Order::Check { gfn: there(gfn), value },
        }
    }

    /// The frame at an address of the window.
    fn frame_at(&self, vm: usize, gfn: u64) -> Option<u64> {
        self.model.vms.get(&vm)?.addresses.get(&(GFN + gfn))?.frame
    }

    /// Runs the vCPU to the end of its order, or to an exit that somebody must answer.
    fn run(&mut self, vm: usize) -> Result<Came, Failure> {
        let Some(party) = self.party_mut(vm) else { fail!("VM {vm} is gone") };
        party.guest.request = None;
        party.guest.injectable = false;
        party.guest.exit = None;
        for _ in 0..MAX_EXITS {
            let page = party.vm.run_once()?;
            let [what, index, results @ ..] = page.args;
            match page.reason {
                exit::INTERRUPT | exit::TIMER => {}
                exit::HYPERCALL if what == op::ARG => party.vm.answer_argument(index),
                exit::HYPERCALL if what == op::NEXT => {
                    let [a, b, c, d] = results;
                    return Ok(Came::Results([index, a, b, c, d]));
                }
                exit::SYSTEM | exit::FAULT => fail!("the guest cannot go on: {page:x?}"),
                _ => {
                    party.guest.exit = Some(page);
                    return Ok(Came::Exit(page));
                }
            }
        }
        fail!("the guest exits without end")
    }

    /// What the run must come to, and whether it may be short of table memory; the model takes the step.
    fn want(&mut self, vm: usize, order: Order) -> (Want, bool) {
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
                let expect = model.share(vm, GFN + gfn, count);
                (Want::Reply(expect.reply), expect.tables)
            }
            Order::Relinquish { gfn, count } => {
                let expect = model.relinquish(vm, GFN + gfn, count);
                (Want::Reply(expect.reply), expect.tables)
            }
            Order::Unshare { gfn, count, flags } => {
                let gfn = GFN + gfn;
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
                let expect = model.share(vm, GFN + gfn, 1);
                let value = if expect.reply.is_success() { 0 } else { smccc::INVALID_PARAMETER };
                (Want::Value(value), expect.tables)
            }
            Order::StockUnshare { gfn } => {
                let gfn = GFN + gfn;
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
            Order::Check { gfn, value } => {
                let others = |page: &Page| page.words().filter(|word| *word != value).count() as u64;
                (self.access(vm, gfn, others), false)
            }
        }
    }

    /// What an access of the guest comes to, with a value of the page that stands there.
    fn access(&self, vm: usize, gfn: u64, value: impl Fn(&Page) -> u64) -> Want {
        let gfn = GFN + gfn;
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

    /// The guest left to the host.
    fn left(&mut self, vm: usize, order: Order, want: Want, page: RunPage) -> TestResult {
        let Some(party) = self.parties.get_mut(vm).and_then(Option::as_mut) else { return Ok(()) };
        let guest = &mut party.guest;
        match want {
            Want::Populate(gfn, kind) => {
                let told = (page.reason, page.gpa, page.count, page.status);
                check_eq!(told, (exit::POPULATE, gfn * PAGE_SIZE, 1, kind), "the exit");
                guest.injectable = true;
            }
            Want::Device(gfn) => {
                check_eq!((page.reason, page.gpa / PAGE_SIZE), (exit::MMIO, gfn), "the exit");
                if matches!(order, Order::Fill { .. } | Order::Check { .. }) {
                    // A page of device accesses would take all day.
                    check_eq!(party.vm.inject_abort(), Reply::done(0), "VCPU_INJECT");
                    guest.aborted = true;
                } else {
                    party.vm.answer(DEVICE_VALUE);
                    guest.device = true;
                    guest.injectable = true;
                }
            }
            Want::Drain(gfn, mask) => {
                let told = (page.reason, page.gpa, page.count, page.mask);
                check_eq!(told, (exit::DRAIN, gfn * PAGE_SIZE, 1, mask), "the exit");
            }
            Want::Convert(request, reply) => {
                let told = (page.reason, page.gpa, page.count, page.flags, page.first, page.mask);
                let must = (
                    exit::CONVERT,
                    request.gfn * PAGE_SIZE,
                    request.count,
                    request.flags,
                    reply.first,
                    reply.mask,
                );
                check_eq!(told, must, "the exit");
                check!(
                    page.sequence > guest.sequence,
                    "request {} comes after {}",
                    page.sequence,
                    guest.sequence
                );
                guest.sequence = page.sequence;
                guest.request = Some(request);
            }
            want => fail!("the guest left with {} for {:#x}; the model says {want:?}", page.reason, page.gpa),
        }
        Ok(())
    }

    /// The guest came back with results.
    fn finished(&mut self, vm: usize, order: Order, want: Want, results: [u64; 5]) -> TestResult {
        if let Some(party) = self.party_mut(vm) {
            party.guest.order = None;
        }
        let [r0, r1, r2, r3, _] = results;
        self.note(r0 == 0);
        match want {
            Want::Reply(reply) => {
                check_eq!([r0, r1, r2, r3], reply.to_regs(), "{order:?} (the model: {reply})");
            }
            Want::Value(value) => check_eq!(r0, value, "{order:?}"),
            Want::Access(known) => {
                check_eq!(r0, outcome::OK, "{order:?}: ESR {r2:#x} FAR {r3:#x}");
                if let Some(value) = known {
                    check_eq!(r1, value, "{order:?}");
                }
            }
            Want::Loaded(value) => check_eq!([r0, r1], [outcome::OK, value], "{order:?}"),
            Want::Fault => check_eq!(r0, outcome::FAULT, "{order:?}"),
            Want::Looked => check_eq!(r0, 0, "{order:?}"),
            want => fail!("{order:?} came back with {results:x?}; the model says {want:?}"),
        }
        Ok(())
    }

    /// What the order left in memory.
    fn stored(&mut self, vm: usize, order: Order, want: Want, before: &Model) -> TestResult {
        if let (Order::Unshare { gfn, flags, .. }, Want::Reply(reply)) = (order, want) {
            self.zeroed(vm, GFN + gfn, reply.done, flags, before);
        }
        let Want::Access(_) = want else { return Ok(()) };
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
        Ok(())
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
        let at = |gfn: u64| (GFN + gfn) * PAGE_SIZE;
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
            Self::Check { gfn, value } => (command::CHECK, [at(gfn), 1, value], 3),
        }
    }
}
