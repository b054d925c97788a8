//! Any registers: a host and guests that call with rubbish, half rubbish and good sense, on the adversarial machine.
//!
//! A call begins with its number, the exception level it comes from, and its arguments; an argument is a byte that says what
//! is meant (a handle that there is, a frame, an address, a small number, an extreme) and the bytes of it. What is taken
//! apart here is what `hyp/src/calls` takes apart. There is no model: what must hold is that nothing panics, that every
//! answer is an answer, that a refusal says done = 0 or how far it came, and all that the machine and the audit look at.

use tenure_abi::flags::{query, status};
use tenure_abi::{NO_INDEX, Reply, Status, call, guest};
use tenure_mm::fake::on_cpu;
use tenure_mm::{Access, Gfn, Ipa, Pa, Pfn, PinKind, Unshare, VmHandle, VmRef, audit};

use crate::bytes::Bytes;
use crate::world::{BASE, Layout, SLOTS, World};

/// Calls of one run at most.
const LONGEST: usize = 60;

/// Calls of the host that the manager answers.
const HOST: [u64; 24] = [
    call::VM_CREATE,
    call::VM_ACTIVATE,
    call::VM_DESTROY,
    call::VM_SET_RIGHTS,
    call::DONATE,
    call::RECLAIM,
    call::SET_STATUS,
    call::CONVERT,
    call::GUEST_MAP,
    call::GUEST_UNMAP,
    call::HOST_MAP,
    call::HOST_UNMAP,
    call::PIN,
    call::UNPIN,
    call::QUERY,
    call::QUERY_GUEST,
    call::POISON,
    call::POOL_TOPUP,
    call::POOL_DRAIN,
    call::POOL_INFO,
    call::COUNT,
    call::CONSENT,
    call::DONATE,
    call::POOL_TOPUP,
];

/// Calls of a guest that the manager answers.
const GUEST: [u64; 4] = [guest::SHARE, guest::UNSHARE, guest::RELINQUISH, guest::QUERY];

/// Makes the calls.
///
/// # Panics
/// If a promise is broken.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut caller = Caller::new(bytes.byte());
    for step in 1..=LONGEST {
        if bytes.is_empty() {
            break;
        }
        let origin = bytes.byte();
        on_cpu(usize::from(origin & 3), || caller.step(origin >> 2, &mut bytes));
        caller.look();
        if step % 8 == 0 {
            caller.audit();
        }
    }
    caller.end();
}

struct Caller {
    world: World,
    /// Handles that were given out, live or dead.
    handles: Vec<u64>,
}

impl Caller {
    fn new(layout: u8) -> Self {
        let layout = match layout % 8 {
            0..5 => Layout { frames: 48, ..Layout::default() },
            5 | 6 => Layout { frames: 24, spare: 0, blocks: false },
            _ => Layout { frames: 64, spare: 1, blocks: true },
        };
        let mut caller = Self { world: World::new(layout), handles: Vec::new() };
        // The lists of actions are watched at every event; here many calls matter more.
        caller.world.fake().unwatch();
        // A VM with a shared and a private page, so that short inputs get somewhere.
        let mm = caller.world.mm;
        if let Ok(handle) = mm.vm_create(3)
            && let Ok(vm) = mm.vm(handle)
        {
            caller.handles.push(handle.0);
            mm.pool_topup(Some(&vm), caller.world.frame(0), 6);
            mm.set_status(&vm, Gfn(0), 16, status::PRIVATE);
            mm.donate(&vm, Gfn(0), caller.world.frame(6), 4, status::PRIVATE);
            mm.vm_activate(&vm);
            mm.guest_share(&vm, Gfn(0), 2);
        }
        caller.look();
        caller
    }

    /// One argument.
    fn arg(&self, bytes: &mut Bytes<'_>) -> u64 {
        let kind = bytes.byte();
        match kind % 8 {
            0 => self.handles.get(usize::from(kind >> 3) % self.handles.len().max(1)).copied().unwrap_or(0),
            1 => BASE + bytes.below(96),
            2 => u64::from(kind >> 3),
            3 => bytes.below(16),
            4 => 1 << (kind >> 3),
            5 => u64::MAX - u64::from(kind >> 3),
            6 => (1 << 26) - 8 + bytes.below(16),
            _ => bytes.word(),
        }
    }

    fn step(&mut self, what: u8, bytes: &mut Bytes<'_>) {
        match what % 4 {
            0 | 1 => self.host(HOST[usize::from(bytes.byte()) % HOST.len()], bytes),
            2 => self.guest(GUEST[usize::from(bytes.byte()) % GUEST.len()], bytes),
            _ => self.fault(bytes),
        }
    }

    fn with(&self, handle: u64, act: impl FnOnce(&VmRef<'static>) -> Reply) -> Reply {
        match self.world.mm.vm(VmHandle(handle)) {
            Ok(vm) => act(&vm),
            Err(status) => Reply::refused(status),
        }
    }

    fn host(&mut self, id: u64, bytes: &mut Bytes<'_>) {
        let x: [u64; 5] = core::array::from_fn(|_| self.arg(bytes));
        let mm = self.world.mm;
        let of = |result: Result<(), Status>| result.map_or_else(Reply::refused, |()| Reply::done(0));
        let (reply, asked) = match id {
            call::VM_CREATE => match mm.vm_create(x[0]) {
                Ok(handle) => {
                    assert!(!self.handles.contains(&handle.0), "a handle is given out twice");
                    self.handles.push(handle.0);
                    (Reply::done(0), 0)
                }
                Err(status) => (Reply::refused(status), 0),
            },
            call::VM_ACTIVATE => (self.with(x[0], |vm| mm.vm_activate(vm)), 0),
            call::VM_DESTROY => {
                self.detach(x[0]);
                (mm.vm_destroy(VmHandle(x[0])).reply, u64::MAX)
            }
            call::VM_SET_RIGHTS => (self.with(x[0], |vm| of(mm.vm_set_rights(vm, x[1]))), 0),
            call::DONATE => (self.with(x[0], |vm| mm.donate(vm, Gfn(x[1]), Pfn(x[2]), x[3], x[4])), x[3]),
            call::RECLAIM => (self.with(x[0], |vm| mm.reclaim(vm, Pfn(x[1]), x[2])), x[2]),
            call::SET_STATUS => (self.with(x[0], |vm| mm.set_status(vm, Gfn(x[1]), x[2], x[3])), x[2]),
            call::CONVERT => (self.with(x[0], |vm| mm.host_convert(vm, Gfn(x[1]), x[2], x[3])), x[2]),
            call::GUEST_MAP => (self.with(x[0], |vm| mm.guest_map(vm, Gfn(x[1]), Pfn(x[2]), x[3])), x[3]),
            call::GUEST_UNMAP => (self.with(x[0], |vm| mm.guest_unmap(vm, Gfn(x[1]), x[2])), x[2]),
            call::HOST_MAP => (mm.host_map(Pfn(x[0]), x[1]), x[1]),
            call::HOST_UNMAP => (mm.host_unmap(Pfn(x[0]), x[1]), x[1]),
            call::PIN => match PinKind::from_raw(x[2]) {
                Some(kind) => (mm.pin(Pfn(x[0]), x[1], kind), x[1]),
                None => (Reply::refused(Status::Invalid), 0),
            },
            call::UNPIN => match PinKind::from_raw(x[2]) {
                Some(kind) => (mm.unpin(Pfn(x[0]), x[1], kind).reply, x[1]),
                None => (Reply::refused(Status::Invalid), 0),
            },
            call::QUERY => (mm.query(Pfn(x[0])).map_or_else(|no| no.at(0), |_| Reply::done(1)), 1),
            call::QUERY_GUEST => {
                let seen = self.with(x[0], |vm| match mm.query_guest(vm, Gfn(x[1]), x[2]) {
                    Ok(seen) => seen.reply,
                    Err(status) => Reply::refused(status),
                });
                (seen, 1)
            }
            call::POISON => (mm.poison(Pfn(x[0])), 1),
            call::POOL_TOPUP if x[0] == 0 => (mm.pool_topup(None, Pfn(x[1]), x[2]), x[2]),
            call::POOL_TOPUP => (self.with(x[0], |vm| mm.pool_topup(Some(vm), Pfn(x[1]), x[2])), x[2]),
            call::POOL_DRAIN if x[0] == 0 => (mm.pool_drain(None, x[1]).0, x[1]),
            call::POOL_DRAIN => (self.with(x[0], |vm| mm.pool_drain(Some(vm), x[1]).0), x[1]),
            call::POOL_INFO => {
                let sane =
                    |(free, total): (u64, u64)| assert!(free <= total, "{free} of {total} pages are free");
                sane(mm.pool_info(None));
                (
                    self.with(x[0], |vm| {
                        sane(mm.pool_info(Some(vm)));
                        Reply::done(0)
                    }),
                    0,
                )
            }
            call::CONSENT => (
                self.with(x[0], |vm| match Unshare::from_flags(vm, x[3]) {
                    Ok(how) => mm.consent(vm, Gfn(x[1]), x[2], how),
                    Err(status) => Reply::refused(status),
                }),
                x[2],
            ),
            _ => (Reply::done(mm.count(Pfn(x[0]), x[1]).0), x[1]),
        };
        judge(id, &x, reply, asked);
    }

    fn guest(&mut self, id: u64, bytes: &mut Bytes<'_>) {
        let x: [u64; 4] = core::array::from_fn(|_| self.arg(bytes));
        let mm = self.world.mm;
        let gfn = Gfn(x[1]);
        let (reply, asked) = match id {
            guest::SHARE => (self.with(x[0], |vm| mm.guest_share(vm, gfn, x[2])), x[2]),
            guest::UNSHARE => (
                self.with(x[0], |vm| match Unshare::from_flags(vm, x[3]) {
                    Ok(how) => mm.guest_unshare(vm, gfn, x[2], how),
                    Err(status) => Reply::refused(status),
                }),
                x[2],
            ),
            guest::RELINQUISH => (self.with(x[0], |vm| mm.guest_relinquish(vm, gfn, x[2])), x[2]),
            _ => (
                self.with(x[0], |vm| match mm.query_guest(vm, gfn, query::UNSHARE) {
                    Ok(seen) => seen.reply,
                    Err(status) => Reply::refused(status),
                }),
                1,
            ),
        };
        judge(id, &x, reply, asked);
    }

    /// A fault of the host or of a guest, and the hypervisor's own pins.
    fn fault(&mut self, bytes: &mut Bytes<'_>) {
        let what = bytes.byte();
        let x = self.arg(bytes);
        let mm = self.world.mm;
        let access = Access { write: what & 1 != 0, execute: what & 2 != 0 };
        match what >> 2 & 3 {
            0 | 1 => drop(mm.host_fault(Pa(x << 12), access)),
            2 => {
                let handle = self.arg(bytes);
                if let Ok(vm) = mm.vm(VmHandle(handle)) {
                    mm.guest_fault(&vm, Ipa(x << 12));
                }
            }
            _ => {
                // EL2 undoes what it did: a page is pinned for a call only.
                if mm.hyp_pin(Pfn(x)).is_ok() {
                    self.look();
                    assert!(mm.hyp_unpin(Pfn(x)).is_ok());
                }
            }
        }
    }

    fn detach(&mut self, handle: u64) {
        let handle = VmHandle(handle);
        if self.world.mm.vms().iter().any(|vm| vm.handle() == Some(handle)) {
            self.world.handles.insert(0, handle);
            self.world.detach(0);
        }
    }

    /// Counts against tables: a walk of all of them.
    fn audit(&self) {
        let faults = audit::audit(self.world.mm);
        assert!(faults.is_empty(), "the audit finds {faults:#?}");
    }

    /// What must hold between two calls.
    fn look(&mut self) {
        self.world.attach_guests();
        let violations = self.world.violations();
        assert!(violations.is_empty(), "{violations:#?}\nlog: {:#x?}", self.world.recent());
    }

    /// Every VM is destroyed; no frame is a guest's after it.
    fn end(mut self) {
        let mm = self.world.mm;
        self.audit();
        for vm in mm.vms() {
            let Some(handle) = vm.handle() else { continue };
            self.detach(handle.0);
            assert!((0..4096).any(|_| mm.vm_destroy(handle).finished), "a teardown does not end");
        }
        self.look();
        self.audit();
        assert_eq!(mm.vms().len(), usize::from(SLOTS));
        for pfn in BASE..self.world.end() {
            let Ok(word) = mm.query(Pfn(pfn)) else { continue };
            let state = word.state();
            use tenure_abi::page::State::*;
            assert!(
                !matches!(state, Private | Shared | Draining),
                "{pfn:#x} is still a dead guest's: {word:?}"
            );
            assert!(state != Quarantine || word.is_host_pinned(), "{pfn:#x} is kept by nobody: {word:?}");
            assert!(state != Hyp || word.owner().0 == 0, "{pfn:#x} is lost: {word:?}");
        }
    }
}

/// What any answer must be like.
fn judge(id: u64, x: &[u64], reply: Reply, asked: u64) {
    let what = || format!("{id:#x} {x:x?}: {reply}");
    assert_eq!(Reply::from_regs(reply.to_regs()), Some(reply), "{}", what());
    assert!(reply.done <= asked, "{} did more than it was asked", what());
    match reply.status {
        Status::Success => assert!(reply.first == NO_INDEX && reply.mask == 0, "{}", what()),
        Status::Invalid | Status::NotSupported => assert_eq!(reply.mask, 0, "{}", what()),
        Status::Pending => assert!(reply.first < asked && reply.mask != 0, "{}", what()),
        Status::Denied | Status::Busy | Status::Retry | Status::NoMemory | Status::Poisoned => {
            let done_before = reply.done == 0 || reply.first == reply.done || reply.first == NO_INDEX;
            assert!(done_before, "{}", what());
        }
    }
}
