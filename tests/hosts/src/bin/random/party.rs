//! A guest with its orders, which it may be in the middle of.

use arrayvec::ArrayVec;
use tenure_abi::flags::{inject, status, vm as vm_flags};
use tenure_abi::page::{self, State};
use tenure_abi::{PAGE_SIZE, RunPage, exit};
use tenure_test_hosts::vm::{Event, FREE_GFN, Vm};
use tenure_test_hosts::{Host, calls};
use tenure_test_protocol::{command, work};
use tenure_test_rt::fail;
use tenure_test_rt::harness::{Failure, TestResult};

use crate::arena::Arena;
use crate::steps::Dice;

/// Guest addresses that orders are about: this many pages from FREE_GFN.
pub const PAGES: u64 = 24;

/// An order with its arguments.
#[derive(Clone, Copy, Debug)]
struct Order {
    command: u64,
    arguments: [u64; 3],
    count: usize,
}

/// A guest.
#[derive(Debug)]
pub struct Party {
    /// Its VM.
    pub vm: Vm,
    /// True if it is protected.
    pub protected: bool,
    /// The exit that it waits at.
    pub waiting: Option<RunPage>,
    orders: ArrayVec<Order, 4>,
    /// Address of the page that a QUERY is about, which becomes secret if it is private.
    asked: Option<u64>,
}

impl Party {
    /// A booted guest.
    ///
    /// # Errors
    /// A refusal.
    pub fn new(host: &mut Host, protected: bool) -> Result<Self, Failure> {
        let flags =
            if protected { vm_flags::PROTECTED | vm_flags::RIGHT_REVOKE } else { vm_flags::RIGHT_REVOKE };
        let mut vm = Vm::new(host, flags)?;
        vm.boot(host)?;
        vm.populate = false;
        Ok(Self { vm, protected, waiting: None, orders: ArrayVec::new(), asked: None })
    }

    fn push(&mut self, command: u64, arguments: &[u64]) {
        let mut order = Order { command, arguments: [0; 3], count: arguments.len() };
        for (to, from) in order.arguments.iter_mut().zip(arguments) {
            *to = *from;
        }
        // Orders are pushed when there are none.
        let _ = self.orders.try_push(order);
    }

    /// Lets the guest do something: the next order, or what it waits for once more.
    ///
    /// # Errors
    /// A refused VCPU_RUN, or an exit that must not be.
    pub fn go(&mut self, host: &mut Host, arena: &mut Arena, dice: &mut Dice) -> TestResult {
        let event = match self.waiting.take() {
            Some(page) => {
                if dice.below(4) > 0 {
                    self.settle(&page, arena, dice);
                }
                self.vm.run(host)?
            }
            None => {
                if self.orders.is_empty() {
                    self.invent(dice);
                }
                let Some(order) = self.orders.pop_at(0) else { return Ok(()) };
                let arguments = order.arguments.get(..order.count).unwrap_or(&[]);
                self.vm.order(host, order.command, arguments)?
            }
        };
        match event {
            Event::Idle(results) => {
                if let Some(ipa) = self.asked.take() {
                    // What is private stays so until this guest says otherwise.
                    if results[0] == 0 && State::of(results[4]) == Some(State::Private) && results[4] != 0 {
                        self.push(command::FILL, &[ipa, 1, work::SECRET]);
                    }
                }
            }
            Event::Exit(page) if page.reason == exit::SYSTEM || page.reason == exit::FAULT => {
                fail!("the guest cannot go on: {page:x?}")
            }
            Event::Exit(page) => self.waiting = Some(page),
        }
        Ok(())
    }

    /// Answers an exit, in some way that a host may.
    fn settle(&mut self, page: &RunPage, arena: &mut Arena, dice: &mut Dice) {
        let handle = self.vm.handle;
        match page.reason {
            exit::POPULATE => {
                let kind = if page.status == status::SHARED { status::SHARED } else { status::PRIVATE };
                if let Some(pfn) = arena.free(dice) {
                    let reply = calls::donate(handle, page.gpa / PAGE_SIZE, pfn, 1, kind);
                    dice.note(reply);
                    if !reply.is_success() {
                        // Shared, unmapped by the host, still there: it is mapped again.
                        for pfn in arena.first..arena.first + crate::arena::FRAMES {
                            if page::GUEST_LEAVES.get(calls::word(pfn)) == 0 {
                                dice.note(calls::guest_map(handle, page.gpa / PAGE_SIZE, pfn, 1));
                            }
                        }
                    }
                }
            }
            exit::CONVERT => {
                let (_, regs) = calls::query_guest(handle, page.gpa / PAGE_SIZE + page.first, 0);
                if dice.below(2) == 0 {
                    dice.note(calls::host_unmap(regs.x(5), 1));
                }
                let reply = match dice.below(4) {
                    0 => calls::refuse(handle, 0, page.sequence),
                    _ => calls::consent(handle, 0, page.sequence),
                };
                dice.note(reply);
            }
            exit::MMIO if dice.below(4) == 0 => dice.note(calls::vcpu_inject(handle, 0, inject::DATA_ABORT)),
            _ => self.vm.answer(0),
        }
    }

    /// Thinks of something to do.
    fn invent(&mut self, dice: &mut Dice) {
        let count = 1 + dice.below(4);
        let ipa = (FREE_GFN + dice.below(PAGES - count + 1)) * PAGE_SIZE;
        match dice.below(9) {
            0 | 1 => {
                // What is shared must not be secret: it is overwritten first.
                self.push(command::FILL, &[ipa, count, work::PUBLIC]);
                self.push(command::SHARE, &[ipa, count]);
            }
            2 | 3 => self.push(command::UNSHARE, &[ipa, count, dice.below(16)]),
            4 => self.push(command::RELINQUISH, &[ipa, count]),
            5 => {
                self.push(command::FILL, &[ipa, 1, work::PUBLIC]);
                self.push(command::STOCK_SHARE, &[ipa]);
            }
            6 => self.push(command::STOCK_UNSHARE, &[ipa]),
            7 if self.protected => {
                self.asked = Some(ipa);
                self.push(command::QUERY, &[ipa]);
            }
            _ => self.push(command::TOUCH, &[ipa, count]),
        }
    }
}
