//! What the CPUs do: calls on two pages of one VM, or on one block, made to the real manager.

use std::rc::Rc;

use tenure_abi::flags::{status, unshare, vm as vm_flags};
use tenure_abi::{Reply, Status, reply};
use tenure_mm::fake::FakeMachine;
use tenure_mm::stage2::host::{HostMap, Kind};
use tenure_mm::{
    Access, Config, Frames, Gfn, GuestFault, HostFault, Ipa, Machine, Mm, Pa, PageWord, Pfn, PinKind, Region,
    Slot, Unshare, Vm, VmHandle, Vmid, Word, audit,
};

use super::books::Ledger;
use super::space::Act;
use super::tape::{Glimpse, Led, act, lead, pause};

/// The world of blocks (`tests/small`): tables have eight entries, and the VM's pages are one block of the host at first.
pub const SMALL: bool = cfg!(small_tables);

/// First frame of RAM.
pub const BASE: u64 = if SMALL { 0x40 } else { 0x40000 };
/// Two roots, a level-2 and a level-3 table, panic mode's page, the reserve; in the world of blocks two blocks of them.
pub(super) const BOOT: u64 = if SMALL { 16 } else { 7 };
/// Pages of the pool of each VM: three tables and the scrap frame; or a block.
pub(super) const POOL: u64 = if SMALL { 8 } else { 4 };
/// Pages that each VM has at first, at the guest addresses of their numbers; or that can be donated to it there.
pub(super) const SHARE: u64 = if SMALL { 8 } else { 2 };

/// One call, on pages or guest addresses by number. Pages 0 and 1 are the first VM's, 2 and 3 the second's, ….
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Call {
    Share(u64, u64),
    Unshare(u64, u64, u64),
    Consent(u64, u64),
    Pin(u64, u64),
    Unpin(u64),
    /// A write of the host faults.
    Fault(u64),
    /// The host writes, if anything lets it through.
    Store(u64),
    HostUnmap(u64),
    GuestFault(u64),
    GuestMap(u64),
    GuestUnmap(u64),
    Reclaim(u64),
    Relinquish(u64),
    /// Page to guest address.
    Donate(u64, u64),
    /// The next entry of the donation of a block, from this page on.
    DonateFrom(u64),
    /// The guest writes.
    GuestStore(u64),
    /// The host's map is merged where a block of it is whole.
    Tidy,
    /// The VM's end, in as many entries to EL2 as it takes.
    Destroy,
    /// These pages (by bit) of a dead VM leave it: a part of its end, for the judge.
    Retire(u64),
}

impl Call {
    /// The call is about this page, or the address of its number.
    pub fn names(self, page: u64) -> bool {
        match self {
            Self::Share(first, count)
            | Self::Unshare(first, count, _)
            | Self::Consent(first, count)
            | Self::Pin(first, count) => (first..first + count).contains(&page),
            Self::Unpin(number)
            | Self::Fault(number)
            | Self::Store(number)
            | Self::HostUnmap(number)
            | Self::GuestFault(number)
            | Self::GuestMap(number)
            | Self::GuestUnmap(number)
            | Self::GuestStore(number)
            | Self::Reclaim(number)
            | Self::Relinquish(number) => number == page,
            Self::Donate(number, gfn) => number == page || gfn == page,
            Self::DonateFrom(first) => page >= first,
            Self::Destroy | Self::Retire(_) | Self::Tidy => false,
        }
    }
}

/// Flags of an unshare.
pub const DRAIN: u64 = unshare::DRAIN;
pub const REVOKE: u64 = unshare::REVOKE;

/// What a call came to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Answer {
    Reply(Reply),
    /// Reply, drained, released.
    Unpinned(Reply, u64, u64),
    /// The host may go on, or gets an abort.
    Fault(bool),
    /// The store went through.
    Stored(bool),
    /// Status that the exit names, or `u64::MAX`: the leaf is there.
    GuestFault(u64),
    Gone,
    /// The same call is to be made again.
    Again,
}

impl Answer {
    /// The call met a transition in flight: it changed nothing and says so.
    pub fn is_interrupted(self) -> bool {
        match self {
            Self::Reply(reply) | Self::Unpinned(reply, ..) => {
                reply.status == Status::Retry && reply.mask & reply::FROZEN != 0
            }
            // It returns to its instruction, and may fault again.
            Self::Fault(resumes) => resumes,
            _ => false,
        }
    }
}

/// The real manager, booted; never changed after that.
#[derive(Clone, Copy)]
pub struct World {
    pub mm: &'static Mm<'static, Led>,
    words: &'static [PageWord],
    handles: &'static [VmHandle],
}

impl World {
    /// `vms` VMs live; two pages of each are donated and shared.
    pub fn boot(vms: u8) -> Self {
        let first = BOOT + POOL * u64::from(vms);
        let frames = first + SHARE * u64::from(vms) + 1;
        let word = |index| if index < BOOT { Word::hyp(Slot::NONE) } else { Word::HOST };
        let words: &'static [PageWord] =
            Box::leak((0..frames).map(|index| PageWord::new(word(index))).collect::<Box<[_]>>());
        let slots: &'static [Vm] = Box::leak((1..=vms).map(|slot| Vm::new(Slot(slot))).collect::<Box<[_]>>());
        let regions: &'static [Region<'static>] = Box::leak(Box::new([Region { first: Pfn(BASE), words }]));
        let root = HostMap::new(Pfn(BASE).base());
        let fake = FakeMachine::new(Pfn(BASE), frames);
        (0..2).for_each(|page| fake.zero(Pfn(BASE + page)));
        let mm = Mm::new(Led(fake), Frames::new(regions), root, slots, Config { fwb: false });
        let mm: &'static Mm<'static, Led> = Box::leak(Box::new(mm));
        (2..BOOT).for_each(|page| mm.boot_add_page(Pfn(BASE + page)));
        mm.boot_map(BASE..BASE + frames, Kind::Ram).unwrap();
        mm.boot_map(BASE..BASE + BOOT, Kind::Hidden).unwrap();
        mm.boot_finish().unwrap();
        mm.machine().0.attach(Vmid::HOST, Pfn(BASE), 2);
        let mut world = Self { mm, words, handles: &[] };
        let handles = (0..u64::from(vms)).map(|vm| world.furnish(vm)).collect::<Box<[_]>>();
        world.handles = Box::leak(handles);
        world
    }

    fn furnish(self, vm: u64) -> VmHandle {
        let (mm, at) = (self.mm, vm * SHARE);
        let handle = mm.vm_create(vm_flags::PROTECTED | vm_flags::RIGHT_REVOKE).unwrap();
        let vm_ref = mm.vm(handle).unwrap();
        let pool = Pfn(BASE + BOOT + POOL * vm);
        for page in (0..POOL).step_by(4) {
            assert_eq!(mm.pool_topup(Some(&vm_ref), pool.offset(page), 4), Reply::done(4));
        }
        let pages = self.pages();
        assert_eq!(mm.set_status(&vm_ref, Gfn(0), pages, status::PRIVATE), Reply::done(pages));
        if SMALL {
            assert_eq!(mm.vm_activate(&vm_ref), Reply::done(0));
            mm.machine().0.attach(vm_ref.vmid(), vm_ref.root().unwrap().frame(), 1);
            return handle;
        }
        assert_eq!(mm.donate(&vm_ref, Gfn(at), self.page(at), SHARE, status::PRIVATE), Reply::done(SHARE));
        assert_eq!(mm.vm_activate(&vm_ref), Reply::done(0));
        assert_eq!(mm.guest_share(&vm_ref, Gfn(at), SHARE), Reply::done(SHARE));
        mm.machine().0.attach(vm_ref.vmid(), vm_ref.root().unwrap().frame(), 1);
        for gfn in at..at + SHARE {
            assert!(mm.machine().0.write_at(vm_ref.vmid(), Ipa(gfn << 12), 3, 0xc0de));
        }
        handle
    }

    /// Frames of RAM.
    pub fn frames(self) -> u64 {
        self.words.len() as u64
    }

    /// Pages that calls name by number: those of the VMs, then one of the host's.
    pub fn pages(self) -> u64 {
        SHARE * self.mm.vms().len() as u64 + 1
    }

    /// Of all words those of these pages.
    pub fn of_pages(self, words: &[u64]) -> &[u64] {
        &words[words.len() - self.pages() as usize..]
    }

    pub(super) fn page(self, number: u64) -> Pfn {
        Pfn(BASE + BOOT + POOL * self.mm.vms().len() as u64 + number)
    }

    /// Which VM a guest address belongs to, from 0.
    pub(super) fn vm_of(self, gfn: u64) -> usize {
        ((gfn / SHARE) as usize).min(self.mm.vms().len() - 1)
    }

    fn fake(self) -> &'static FakeMachine {
        &self.mm.machine().0
    }

    /// Makes a call. `mortal`: some CPU may destroy the VM, so that calls go through its gate.
    pub fn make(self, call: Call, mortal: bool) -> Answer {
        let mm = self.mm;
        let page = |number: u64| self.page(number);
        let vm = match call {
            Call::Pin(number, count) => return Answer::Reply(mm.pin(page(number), count, PinKind::Cpu)),
            Call::Unpin(number) => {
                let done = mm.unpin(page(number), 1, PinKind::Cpu);
                return Answer::Unpinned(done.reply, done.drained, done.released);
            }
            Call::Fault(number) => {
                let write = Access { write: true, execute: false };
                return Answer::Fault(mm.host_fault(page(number).base(), write) == HostFault::Resume);
            }
            Call::Store(number) => {
                return Answer::Stored(act(self.fake(), Act::HostStore(page(number))) == 1);
            }
            Call::HostUnmap(number) => return Answer::Reply(mm.host_unmap(page(number), 1)),
            Call::Destroy => return self.destroy(),
            Call::Tidy => return Answer::Reply(mm.pool_drain(None, 1).0),
            Call::GuestStore(gfn) => {
                return Answer::Stored(
                    act(self.fake(), Act::GuestStore(mm.vms()[0].vmid(), Gfn(gfn).base())) == 1,
                );
            }
            Call::Retire(_) => unreachable!("only the judge makes it"),
            Call::Share(gfn, _)
            | Call::Unshare(gfn, ..)
            | Call::Consent(gfn, _)
            | Call::GuestFault(gfn)
            | Call::GuestMap(gfn)
            | Call::GuestUnmap(gfn)
            | Call::Reclaim(gfn)
            | Call::Relinquish(gfn)
            | Call::DonateFrom(gfn)
            | Call::Donate(_, gfn) => self.vm_of(gfn),
        };
        if !mortal {
            return self.guest_call(&mm.vms()[vm], call);
        }
        match mm.vm(self.handles[vm]) {
            Ok(vm) => self.guest_call(&vm, call),
            Err(_) => Answer::Gone,
        }
    }

    /// One step of a VM's end.
    fn destroy(self) -> Answer {
        act(self.fake(), Act::Detach(self.handles[0].slot().vmid()));
        let step = self.mm.vm_destroy(self.handles[0]);
        if step.finished {
            return Answer::Gone;
        }
        if step.reply.status != Status::Retry {
            return Answer::Reply(step.reply);
        }
        if step.reply.mask & (reply::VM_IN_USE | reply::FROZEN) != 0 {
            pause();
        }
        Answer::Again
    }

    fn guest_call(self, vm: &Vm, call: Call) -> Answer {
        let (mm, page) = (self.mm, |number: u64| self.page(number));
        Answer::Reply(match call {
            Call::Share(first, count) => mm.guest_share(vm, Gfn(first), count),
            Call::Unshare(first, count, flags) => {
                mm.guest_unshare(vm, Gfn(first), count, Unshare::from_flags(vm, flags).unwrap())
            }
            Call::Consent(first, count) => mm.consent(vm, Gfn(first), count, Unshare::default()),
            Call::Relinquish(gfn) => mm.guest_relinquish(vm, Gfn(gfn), 1),
            Call::GuestMap(number) => mm.guest_map(vm, Gfn(number), page(number), 1),
            Call::GuestUnmap(gfn) => mm.guest_unmap(vm, Gfn(gfn), 1),
            Call::Reclaim(number) => mm.reclaim(vm, page(number), 1),
            Call::Donate(number, gfn) => mm.donate(vm, Gfn(gfn), page(number), 1, status::PRIVATE),
            Call::DonateFrom(at) => mm.donate(vm, Gfn(at), page(at), SHARE - at % SHARE, status::PRIVATE),
            Call::GuestFault(gfn) => {
                return Answer::GuestFault(match mm.guest_fault(vm, Ipa(gfn << 12)) {
                    GuestFault::Resume => u64::MAX,
                    GuestFault::Populate(kind) => kind,
                    GuestFault::Device => status::DEVICE,
                    GuestFault::Undeclared => status::NONE,
                });
            }
            _ => unreachable!(),
        })
    }

    /// The scrap frames.
    pub fn scraps(self) -> impl Iterator<Item = Pfn> {
        self.mm.vms().iter().filter_map(Vm::scrap)
    }

    /// One of the host's own tables.
    pub fn is_host_table(table: Pa) -> bool {
        (BASE..BASE + BOOT).contains(&table.frame().0)
    }

    /// The books of a memory.
    pub fn ledger(self, glimpse: Rc<Glimpse>) -> Ledger {
        lead(&glimpse, || {
            let vms = self.mm.vms();
            Ledger {
                base: BASE,
                words: self.words.iter().map(|word| word.load().raw()).collect(),
                live: vms.iter().filter_map(Vm::handle).map(|handle| handle.slot().vmid()).collect(),
                scraps: vms.iter().filter_map(Vm::scrap).collect(),
            }
        })
    }

    /// What the audit finds.
    pub fn audit(self, glimpse: Rc<Glimpse>) -> Vec<String> {
        lead(&glimpse, || audit::audit(self.mm))
    }
}
