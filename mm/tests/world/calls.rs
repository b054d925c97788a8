//! The calls, each made to the manager and to the model.

use tenure_abi::flags::{pin, query, unshare, vm as vm_flags};
use tenure_abi::page::State;
use tenure_abi::{Reply, Status};
use tenure_mm::fake::Access as Kind;
use tenure_mm::model::{Expect, Freed, Model, Touch};
use tenure_mm::{Access, Gfn, GuestFault, HostFault, Ipa, Pfn, PinKind, Unpinned, Unshare, Vmid};

use super::{WORD, World};

/// Steps after which a resumable call must have finished.
const PATIENCE: usize = 4096;

impl World {
    /// Makes a VM; a number that is taken is left alone.
    pub fn create(&mut self, vm: usize, flags: u64) {
        if self.handles.contains_key(&vm) {
            return;
        }
        match self.mm.vm_create(flags) {
            Ok(handle) => {
                assert!(self.handles.values().all(|other| *other != handle) && self.stale != Some(handle));
                self.handles.insert(vm, handle);
                let has = |flag| flags & flag != 0;
                self.model.create(vm, has(vm_flags::PROTECTED), has(vm_flags::RIGHT_REVOKE));
            }
            Err(status) => assert_eq!(status, Status::NoMemory, "VM_CREATE"),
        }
        self.verify("VM_CREATE");
    }

    pub fn activate(&mut self, vm: usize) -> Option<Reply> {
        let reply = self.mm.vm_activate(&*self.vm(vm)?);
        match reply.status {
            Status::Success => self.model.activate(vm),
            Status::NoMemory => (),
            _ => panic!("VM_ACTIVATE: {reply}"),
        }
        self.verify("VM_ACTIVATE");
        Some(reply)
    }

    /// Destroys a VM to the end, and sees that its handle is dead.
    pub fn destroy(&mut self, vm: usize) {
        self.destroy_while(vm, &[]);
    }

    /// As [`World::destroy`]; between its steps the host gives up a CPU pin of each of these frames.
    pub fn destroy_while(&mut self, vm: usize, unpinned: &[Pfn]) {
        let Some(&handle) = self.handles.get(&vm) else { return };
        self.detach(vm);
        let before = self.model.clone();
        let mut unpinned = unpinned.iter();
        let finished = (0..PATIENCE).any(|_| {
            let step = self.mm.vm_destroy(handle);
            assert!(
                matches!(step.reply.status, Status::Success | Status::Retry),
                "VM_DESTROY: {}",
                step.reply
            );
            assert!(self.mm.vm(handle).is_err(), "a dying VM lets nobody in");
            if let Some(page) = unpinned.next() {
                // Before the death or after it: the end is the same.
                let real = self.mm.unpin(*page, 1, PinKind::Cpu).reply;
                let (expect, _) = self.model.unpin(page.0, 1, pin::CPU);
                assert_eq!(real, expect.reply, "UNPIN in the middle of a VM_DESTROY");
            }
            step.finished
        });
        assert!(finished, "VM_DESTROY does not end");
        assert_eq!(self.mm.vm_destroy(handle).reply.status, Status::Invalid);
        self.model.destroy(vm);
        self.handles.remove(&vm);
        self.stale = Some(handle);
        self.age_contents(&before);
        self.verify("VM_DESTROY");
    }

    /// The reset of the host's world, from the first step to the last.
    pub fn reset(&mut self) {
        let before = self.model.clone();
        for vm in self.handles.keys().copied().collect::<Vec<_>>() {
            self.destroy(vm);
        }
        let mut next = 0;
        let finished = (0..PATIENCE).any(|_| {
            let step = self.mm.host_reset(next);
            let status = if step.finished { Status::Success } else { Status::Retry };
            assert_eq!(step.reply.status, status, "HOST_RESET: {}", step.reply);
            next = step.next;
            step.finished
        });
        assert!(finished, "HOST_RESET does not end");
        self.model.reset();
        let lent: Vec<_> = self
            .model
            .frames
            .iter()
            .filter(|(_, frame)| frame.state == State::Hyp)
            .map(|(&pfn, _)| pfn)
            .collect();
        for pfn in lent {
            if self.state(Pfn(pfn)) == State::Host {
                assert!(pfn >= self.frame(0).0, "a page of the hypervisor's own was given away");
                self.model.drained(pfn);
            }
        }
        self.age_contents(&before);
        self.verify("HOST_RESET");
    }

    /// Pages of the host's own pool that it lent.
    pub fn lent(&self) -> usize {
        let first = self.frame(0).0;
        self.model
            .frames
            .range(first..u64::MAX)
            .filter(|(_, frame)| frame.state == State::Hyp && frame.owner.is_none())
            .count()
    }

    pub fn set_rights(&mut self, vm: usize, rights: u64) -> Option<Status> {
        let real = self.mm.vm_set_rights(&*self.vm(vm)?, rights).err().unwrap_or(Status::Success);
        let expect = self.model.set_rights(vm, rights);
        assert_eq!(real, expect, "VM_SET_RIGHTS");
        self.verify("VM_SET_RIGHTS");
        Some(real)
    }

    pub fn donate(&mut self, vm: usize, gfn: u64, pfn: Pfn, count: u64, kind: u64) -> Option<Reply> {
        let before = self.model.clone();
        let real = self.mm.donate(&*self.vm(vm)?, Gfn(gfn), pfn, count, kind);
        // Whether a block is begun is for the manager to say; what comes of it is not.
        let expect = match self.model.donate_block(vm, gfn, pfn.0, count, kind) {
            Some(expect) if expect.reply == real || real.status == Status::NoMemory => expect,
            _ => {
                self.model = before.clone();
                self.model.donate(vm, gfn, pfn.0, count, kind)
            }
        };
        Some(self.settle("DONATE", before, expect, real))
    }

    pub fn reclaim(&mut self, vm: usize, pfn: Pfn, count: u64) -> Option<Reply> {
        let before = self.model.clone();
        let addresses = self.model.vms.get(&vm)?.addresses.iter();
        let at = addresses.filter(|(_, address)| address.frame == Some(pfn.0)).map(|(&gfn, _)| gfn).next();
        let query = at.and_then(|gfn| self.query(vm, gfn, query::RECLAIM));
        let real = self.mm.reclaim(&*self.vm(vm)?, pfn, count);
        if count == 1 && query.is_some() {
            assert_eq!(query, Some(real), "QUERY_GUEST and RECLAIM differ");
        }
        // A call that has looked after a block of the host takes fewer.
        let count = if real.is_success() && real.done == 8 { count.min(8) } else { count };
        let expect = self.model.reclaim(vm, pfn.0, count);
        Some(self.settle("RECLAIM", before, expect, real))
    }

    pub fn set_status(&mut self, vm: usize, gfn: u64, count: u64, to: u64) -> Option<Reply> {
        let before = self.model.clone();
        let real = self.mm.set_status(&*self.vm(vm)?, Gfn(gfn), count, to);
        let expect = self.model.set_status(vm, gfn, count, to);
        if real.status == Status::NoMemory && real.done > 0 {
            // What was done stays.
            self.model = before;
            self.model.set_status(vm, gfn, real.done, to);
            self.verify("SET_STATUS");
            return Some(real);
        }
        Some(self.settle("SET_STATUS", before, expect, real))
    }

    pub fn convert(&mut self, vm: usize, gfn: u64, count: u64, to: u64) -> Option<Reply> {
        let before = self.model.clone();
        let real = self.mm.host_convert(&*self.vm(vm)?, Gfn(gfn), count, to);
        let expect = self.model.convert(vm, gfn, count, to);
        Some(self.settle("CONVERT", before, expect, real))
    }

    pub fn guest_map(&mut self, vm: usize, gfn: u64, pfn: Pfn, count: u64) -> Option<Reply> {
        let before = self.model.clone();
        let real = self.mm.guest_map(&*self.vm(vm)?, Gfn(gfn), pfn, count);
        let expect = self.model.guest_map(vm, gfn, pfn.0, count);
        Some(self.settle("GUEST_MAP", before, expect, real))
    }

    pub fn guest_unmap(&mut self, vm: usize, gfn: u64, count: u64) -> Option<Reply> {
        let before = self.model.clone();
        let real = self.mm.guest_unmap(&*self.vm(vm)?, Gfn(gfn), count);
        let expect = self.model.guest_unmap(vm, gfn, count);
        Some(self.settle("GUEST_UNMAP", before, expect, real))
    }

    /// Sees that a query gives the verdict of the attempt that follows (C3).
    fn query(&self, vm: usize, gfn: u64, op: u64) -> Option<Reply> {
        Some(
            self.mm
                .query_guest(&*self.vm(vm)?, Gfn(gfn), op)
                .map_or_else(Reply::refused, |query| query.reply),
        )
    }

    pub fn share(&mut self, vm: usize, gfn: u64, count: u64) -> Option<Reply> {
        let before = self.model.clone();
        let query = self.query(vm, gfn, query::SHARE);
        let real = self.mm.guest_share(&*self.vm(vm)?, Gfn(gfn), count);
        if count == 1 {
            assert_eq!(query, Some(real), "QUERY_GUEST and SHARE differ");
        }
        let expect = self.model.share(vm, gfn, count);
        Some(self.settle("SHARE", before, expect, real))
    }

    pub fn unshare(&mut self, vm: usize, gfn: u64, count: u64, flags: u64) -> Option<Reply> {
        let before = self.model.clone();
        let query = self.query(vm, gfn, query::UNSHARE);
        let vm_ref = self.vm(vm)?;
        let real = match Unshare::from_flags(&vm_ref, flags) {
            Ok(how) => self.mm.guest_unshare(&vm_ref, Gfn(gfn), count, how),
            Err(status) => Reply::refused(status),
        };
        if count == 1 && flags == 0 {
            assert_eq!(query, Some(real), "QUERY_GUEST and UNSHARE differ");
        }
        let expect = self.model.unshare(vm, gfn, count, flags);
        self.age_zero(vm, gfn, real.done, flags, &before);
        Some(self.settle("UNSHARE", before, expect, real))
    }

    pub fn consent(&mut self, vm: usize, gfn: u64, count: u64, flags: u64) -> Option<Reply> {
        let vm_ref = self.vm(vm)?;
        let how = Unshare::from_flags(&vm_ref, flags).ok()?;
        let before = self.model.clone();
        let real = self.mm.consent(&vm_ref, Gfn(gfn), count, how);
        let expect = self.model.consent(vm, gfn, count, flags);
        self.age_zero(vm, gfn, real.done, flags, &before);
        Some(self.settle("CONSENT", before, expect, real))
    }

    /// ZERO was asked for: pages that became private are zero.
    fn age_zero(&mut self, vm: usize, gfn: u64, done: u64, flags: u64, before: &Model) {
        if flags & unshare::ZERO == 0 {
            return;
        }
        for gfn in gfn..gfn + done {
            let pfn = before.vms[&vm].addresses.get(&gfn).and_then(|address| address.frame);
            if let Some(pfn) = pfn
                && before.frames[&pfn].state != State::Private
            {
                self.data.insert(pfn, 0);
            }
        }
    }

    pub fn relinquish(&mut self, vm: usize, gfn: u64, count: u64) -> Option<Reply> {
        let before = self.model.clone();
        let real = self.mm.guest_relinquish(&*self.vm(vm)?, Gfn(gfn), count);
        let expect = self.model.relinquish(vm, gfn, count);
        Some(self.settle("RELINQUISH", before, expect, real))
    }

    pub fn pin(&mut self, pfn: Pfn, count: u64, kind: u64) -> Reply {
        let before = self.model.clone();
        let real = self.mm.pin(pfn, count, PinKind::from_raw(kind).expect("kind"));
        let expect = self.model.pin(pfn.0, count, kind);
        self.settle("PIN", before, expect, real)
    }

    pub fn unpin(&mut self, pfn: Pfn, count: u64, kind: u64) -> Unpinned {
        let before = self.model.clone();
        let real = self.mm.unpin(pfn, count, PinKind::from_raw(kind).expect("kind"));
        let (expect, freed) = self.model.unpin(pfn.0, count, kind);
        self.settle_freed("UNPIN", before, expect, freed, real)
    }

    fn settle_freed(
        &mut self,
        what: &str,
        before: Model,
        expect: Expect,
        freed: Freed,
        real: Unpinned,
    ) -> Unpinned {
        assert_eq!((real.drained, real.released), (freed.drained, freed.returned), "{what}");
        assert_eq!(real.wake, freed.wake.map(|vm| self.handles[&vm]), "{what} wakes");
        self.settle(what, before, expect, real.reply);
        real
    }

    pub fn pin_cpu(&mut self, pfn: Pfn) -> Reply {
        self.pin(pfn, 1, pin::CPU)
    }

    pub fn unpin_cpu(&mut self, pfn: Pfn) -> Unpinned {
        self.unpin(pfn, 1, pin::CPU)
    }

    pub fn host_map(&mut self, pfn: Pfn, count: u64) -> Reply {
        let before = self.model.clone();
        let real = self.mm.host_map(pfn, count);
        let expect = self.model.host_map(pfn.0, count);
        self.settle("HOST_MAP", before, expect, real)
    }

    pub fn host_unmap(&mut self, pfn: Pfn, count: u64) -> Reply {
        let before = self.model.clone();
        let real = self.mm.host_unmap(pfn, count);
        let expect = self.model.host_unmap(pfn.0, count);
        self.settle("HOST_UNMAP", before, expect, real)
    }

    pub fn dma_map(&mut self, pfn: Pfn) -> bool {
        let real = self.mm.dma_map(pfn).is_ok();
        assert_eq!(real, self.model.dma_map(pfn.0), "a DMA leaf of {pfn:?}");
        self.verify("a DMA leaf");
        real
    }

    pub fn dma_unmap(&mut self, pfn: Pfn) -> Unpinned {
        let before = self.model.clone();
        let real = self.mm.dma_unmap(pfn);
        let (expect, freed) = self.model.dma_unmap(pfn.0);
        self.settle_freed("a DMA leaf goes", before, expect, freed, real)
    }

    /// The hypervisor begins or ends to use a page of the host.
    pub fn hyp_pin(&mut self, pfn: Pfn, on: bool) -> bool {
        let real = if on { self.mm.hyp_pin(pfn) } else { self.mm.hyp_unpin(pfn) }.is_ok();
        assert_eq!(real, self.model.hyp_pin(pfn.0, on), "a hypervisor pin of {pfn:?}");
        self.verify("a hypervisor pin");
        real
    }

    pub fn poison(&mut self, pfn: Pfn) -> Reply {
        let before = self.model.clone();
        let real = self.mm.poison(pfn);
        let expect = self.model.poison(pfn.0);
        self.settle("POISON", before, expect, real)
    }

    pub fn topup(&mut self, vm: Option<usize>, pfn: Pfn, count: u64) -> Option<Reply> {
        let before = self.model.clone();
        let real = match vm {
            Some(vm) => self.mm.pool_topup(Some(&*self.vm(vm)?), pfn, count),
            None => self.mm.pool_topup(None, pfn, count),
        };
        let expect = self.model.topup(vm, pfn.0, count);
        Some(self.settle("POOL_TOPUP", before, expect, real))
    }

    pub fn drain_pool(&mut self, vm: Option<usize>, max: u64) -> Option<Vec<Pfn>> {
        let before = self.model.clone();
        let (reply, pages) = match vm {
            Some(vm) => self.mm.pool_drain(Some(&*self.vm(vm)?), max),
            None => self.mm.pool_drain(None, max),
        };
        assert_eq!(reply, Reply::done(pages.len() as u64), "POOL_DRAIN");
        for page in &pages {
            assert_eq!(before.frames[&page.0].state, State::Hyp);
            assert_eq!(before.frames[&page.0].owner, vm);
            self.model.drained(page.0);
        }
        self.age_contents(&before);
        self.verify("POOL_DRAIN");
        Some(pages.to_vec())
    }

    /// An access of the host, with its faults. What it read, or `None` for an abort.
    pub fn touch(&mut self, pfn: Pfn, write: Option<u64>) -> (Touch, Option<u64>) {
        let before = self.model.clone();
        let ipa = Ipa(pfn.base().0);
        let kind = if write.is_some() { Kind::Write } else { Kind::Read };
        let access = Access { write: write.is_some(), execute: false };
        let mut target = None;
        for _ in 0..8 {
            target =
                self.fake().reachable(Vmid::HOST, ipa, kind).first().and_then(|found| found.frame_of(ipa.0));
            if target.is_some() || self.mm.host_fault(pfn.base(), access) == HostFault::Abort {
                break;
            }
        }
        let real = match target {
            None => Touch::Abort,
            Some(target) if target == pfn => Touch::Frame,
            Some(_) => Touch::Scrap,
        };
        let expect = self.model.touch(pfn.0);
        assert_eq!(real, expect, "a touch of the host at {pfn:?}");
        let value = target.and_then(|_| match write {
            Some(value) => self.fake().host_write(pfn, WORD, value).then_some(value),
            None => self.fake().host_read(pfn, WORD),
        });
        if real == Touch::Frame
            && let Some(value) = write
        {
            self.data.insert(pfn.0, value);
        }
        drop(before);
        self.verify("a touch of the host");
        (real, value)
    }

    pub fn host_read(&mut self, pfn: Pfn) -> Option<u64> {
        self.touch(pfn, None).1
    }

    pub fn host_write(&mut self, pfn: Pfn, value: u64) -> bool {
        self.touch(pfn, Some(value)).1.is_some()
    }

    /// An access of a guest: what it read or wrote, or what its fault leads to.
    pub fn guest(&mut self, vm: usize, gfn: u64, write: Option<u64>) -> Result<u64, GuestFault> {
        let vmid = self.vmid(vm);
        let ipa = Ipa(gfn << 12);
        let frame = self.model.vms[&vm].addresses.get(&gfn).and_then(|address| address.frame);
        let target =
            self.fake().reachable(vmid, ipa, Kind::Read).first().and_then(|found| found.frame_of(ipa.0));
        assert_eq!(target.map(|pfn| pfn.0), frame, "what guest {vm} finds at {gfn:#x}");
        let Some(target) = target else {
            let fault = self.mm.guest_fault(&self.vm(vm).expect("live"), ipa);
            self.verify("a guest's fault");
            return Err(fault);
        };
        let result = match write {
            Some(value) => {
                assert!(self.fake().write_at(vmid, ipa, WORD, value));
                self.data.insert(target.0, value);
                value
            }
            None => self.fake().read_at(vmid, ipa, WORD).expect("readable"),
        };
        self.verify("a guest's access");
        Ok(result)
    }
}
