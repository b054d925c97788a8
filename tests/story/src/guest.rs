//! A running test guest: a thread that executes KVM_RUN, and orders to it (see tests/protocol).

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kvm_ioctls::{VcpuExit, VcpuFd};
use tenure_abi::{Reply, Status};
use tenure_test_protocol::{self as protocol, command, op};

use crate::driver::{self, Request};

/// Longer than any command takes under emulation.
const LIMIT: Duration = Duration::from_secs(30);

/// What the main thread tells the vCPU's.
enum Order {
    Command(u64, Vec<u64>),
    /// After `Blocked`: run again.
    Retry,
    /// After `Blocked`: give up, the guest's call fails.
    Refuse,
}

/// What the vCPU's thread tells the main one.
#[derive(Debug)]
pub enum Event {
    /// The guest asks for its first command, or tells the results of one.
    Result([u64; 5]),
    /// KVM_EXIT_MEMORY_FAULT: the guest wants pages that somebody holds. Answer with `retry` or `refuse`.
    Blocked(Request),
    /// KVM_EXIT_MEMORY_FAULT at this address: nothing stands behind it that the guest may use. Answer with `retry`.
    Nothing(u64),
    /// The guest is off, or cannot go on.
    Ended(String),
}

/// A guest that waits for commands.
pub struct Guest {
    orders: Option<Sender<Order>>,
    events: Receiver<Event>,
    thread: Option<JoinHandle<()>>,
}

impl Guest {
    /// Starts the vCPU and waits for the guest to ask for its first command.
    ///
    /// # Errors
    /// If it does not.
    pub fn start(vcpu: VcpuFd) -> Result<Self> {
        let guest = Self::begin(vcpu);
        guest.ready()?;
        Ok(guest)
    }

    /// Starts the vCPU and does not wait: it may be off still.
    pub fn begin(vcpu: VcpuFd) -> Self {
        let (orders, take) = channel();
        let (tell, events) = channel();
        let thread = thread::spawn(move || {
            let end = match run(vcpu, &take, &tell) {
                Ok(end) => end,
                Err(error) => format!("{error:#}"),
            };
            let _ = tell.send(Event::Ended(end));
        });
        Self { orders: Some(orders), events, thread: Some(thread) }
    }

    /// Waits for the vCPU to ask for its first command.
    ///
    /// # Errors
    /// If it does not.
    pub fn ready(&self) -> Result<()> {
        match self.event()? {
            Event::Result(_) => Ok(()),
            other => bail!("the guest did not start: {other:?}"),
        }
    }

    /// Sends a command and does not wait.
    ///
    /// # Errors
    /// If the guest's thread has ended.
    pub fn order(&self, command: u64, arguments: &[u64]) -> Result<()> {
        self.send(Order::Command(command, arguments.to_vec()))
    }

    /// Waits for what happens next.
    ///
    /// # Errors
    /// If nothing does in time.
    pub fn event(&self) -> Result<Event> {
        self.events.recv_timeout(LIMIT).context("the guest is silent")
    }

    /// What happened within this time; `None` if nothing did.
    ///
    /// # Errors
    /// If the guest's thread has ended.
    pub fn event_within(&self, time: Duration) -> Result<Option<Event>> {
        match self.events.recv_timeout(time) {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The results of the command that runs.
    ///
    /// # Errors
    /// If the guest ended, or a conversion is blocked.
    pub fn result(&self) -> Result<[u64; 5]> {
        match self.event()? {
            Event::Result(result) => Ok(result),
            other => bail!("instead of a result: {other:?}"),
        }
    }

    /// A command and its results.
    ///
    /// # Errors
    /// As [`Guest::result`].
    pub fn command(&self, command: u64, arguments: &[u64]) -> Result<[u64; 5]> {
        self.order(command, arguments)?;
        self.result()
    }

    /// A command whose result is the hypervisor's reply.
    ///
    /// # Errors
    /// As [`Guest::result`], or if it is no reply.
    pub fn call(&self, command: u64, arguments: &[u64]) -> Result<Reply> {
        reply(self.command(command, arguments)?)
    }

    /// The guest's own 64-bit read.
    ///
    /// # Errors
    /// As [`Guest::result`], or if it faulted.
    pub fn read(&self, address: u64) -> Result<u64> {
        match self.command(command::READ, &[address])? {
            [protocol::outcome::OK, value, ..] => Ok(value),
            other => bail!("the guest's read of {address:#x} ended with {other:x?}"),
        }
    }

    /// The guest's own 64-bit write.
    ///
    /// # Errors
    /// As [`Guest::result`], or if it faulted.
    pub fn write(&self, address: u64, value: u64) -> Result<()> {
        match self.command(command::WRITE, &[address, value])? {
            [protocol::outcome::OK, ..] => Ok(()),
            other => bail!("the guest's write of {address:#x} ended with {other:x?}"),
        }
    }

    /// After [`Event::Blocked`]: runs the guest's call again.
    ///
    /// # Errors
    /// If the guest's thread has ended.
    pub fn retry(&self) -> Result<()> {
        self.send(Order::Retry)
    }

    /// After [`Event::Blocked`]: refuses, so that the guest's call fails.
    ///
    /// # Errors
    /// If the guest's thread has ended.
    pub fn refuse(&self) -> Result<()> {
        self.send(Order::Refuse)
    }

    fn send(&self, order: Order) -> Result<()> {
        self.orders
            .as_ref()
            .context("the guest has ended")?
            .send(order)
            .ok()
            .context("the guest's thread has ended")
    }
}

impl Drop for Guest {
    /// The thread ends at its next look for orders, and is interrupted until it looks; its vCPU is closed with it.
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            while !thread.is_finished() {
                crate::signal::interrupt(&thread);
                thread::sleep(Duration::from_millis(1));
            }
            let _ = thread.join();
        }
    }
}

/// Results of a command as the reply that they are.
///
/// # Errors
/// If the status is none of Tenure's.
pub fn reply(result: [u64; 5]) -> Result<Reply> {
    let [status, done, first, mask, _] = result;
    let status = Status::from_raw(status).with_context(|| format!("x0 = {status:#x} is no status"))?;
    Ok(Reply { status, done, first, mask })
}

/// The vCPU's thread: why it ended.
fn run(mut vcpu: VcpuFd, orders: &Receiver<Order>, events: &Sender<Event>) -> Result<String> {
    let mut arguments = Vec::new();
    let mut line = Vec::new();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::Hypercall(call)) => match call.args {
                [op::NEXT, a, b, c, d, e] => {
                    events.send(Event::Result([a, b, c, d, e]))?;
                    match orders.recv() {
                        Ok(Order::Command(command, list)) => {
                            *call.ret = command;
                            arguments = list;
                        }
                        Ok(_) => bail!("an order that fits no command"),
                        Err(_) => return Ok("no more orders".into()),
                    }
                }
                [op::ARG, i, ..] => *call.ret = arguments.get(i as usize).copied().unwrap_or(0),
                other => bail!("the guest made an unknown call {other:x?}"),
            },
            Ok(VcpuExit::MmioWrite(protocol::CONSOLE, [b'\n'])) => {
                println!("guest: {}", String::from_utf8_lossy(&line));
                line.clear();
            }
            Ok(VcpuExit::MmioWrite(protocol::CONSOLE, [byte])) => line.push(*byte),
            Ok(VcpuExit::MmioWrite(..)) => {}
            Ok(VcpuExit::MmioRead(_, data)) => data.fill(0),
            Ok(VcpuExit::SystemEvent(kind, data)) => return Ok(format!("system event {kind} {data:x?}")),
            Ok(VcpuExit::MemoryFault { flags, gpa, size }) => {
                // Without a request it is not a conversion.
                let event = driver::request(&vcpu).map_or(Event::Nothing(gpa), Event::Blocked);
                events.send(event)?;
                match orders.recv() {
                    Ok(Order::Retry) => {}
                    Ok(Order::Refuse) => driver::refuse(&vcpu)
                        .with_context(|| format!("REFUSE at {gpa:#x}, {size:#x} {flags:#x}"))?,
                    Ok(Order::Command(..)) => bail!("a command while a conversion waits"),
                    Err(_) => return Ok("no more orders".into()),
                }
            }
            Ok(VcpuExit::Intr) => {}
            Ok(other) => bail!("unexpected exit {other:?}"),
            Err(error) if error.errno() == libc::EINTR => {
                // Orders come only when this thread waits for them, so none is lost here.
                if orders.try_recv().is_err_and(|error| error == TryRecvError::Disconnected) {
                    return Ok("stopped".into());
                }
            }
            Err(error) if error.errno() == libc::EAGAIN => {}
            Err(error) => bail!("KVM_RUN: {error}"),
        }
    }
}
