//! The same calls, made to the reference model.

use tenure_abi::flags::{pin, status};
use tenure_abi::page::State;
use tenure_abi::{Reply, Status, reply};
use tenure_mm::model::{Freed, Model, Touch, View};

use super::books::Ledger;
use super::calls::{Answer, BASE, BOOT, Call, POOL, SHARE, SMALL, World};

/// What is parked is nobody's.
const PARKED: Reply = Reply { first: 0, mask: reply::STATE, ..Reply::refused(Status::Denied) };

/// The frames that the model is compared with: all but those of boot.
pub fn views(ledger: &Ledger) -> Vec<View> {
    ledger.words.iter().map(|&word| View::of_word(word)).collect()
}

impl World {
    /// The model as [`World::boot`] leaves the machine.
    pub fn reference(self) -> Model {
        let mut model = Model::new(BASE..BASE + self.frames());
        model.take_for_hypervisor(BASE..BASE + BOOT);
        for vm in 0..self.mm.vms().len() {
            let (name, at) = (vm + 1, vm as u64 * SHARE);
            model.create(name, true, true);
            for page in (0..POOL).step_by(4) {
                model.topup(Some(name), BASE + BOOT + POOL * vm as u64 + page, 4);
            }
            model.set_status(name, 0, self.pages(), status::PRIVATE);
            if SMALL {
                model.activate(name);
                continue;
            }
            model.donate(name, at, self.page(at).0, SHARE, status::PRIVATE);
            model.activate(name);
            model.share(name, at, SHARE);
        }
        model
    }

    /// The page has no pin, and its VM has died.
    fn is_left(self, model: &Model, number: u64) -> bool {
        let frame = &model.frames[&self.page(number).0];
        frame.owner == Some(1) && frame.cpu_pins == 0 && !model.vms.contains_key(&1)
    }

    /// Makes `call` on the model; true if it answers as the manager did.
    pub fn agrees(self, model: &mut Model, call: Call, answer: Answer) -> bool {
        let page = |number: u64| self.page(number).0;
        let vm = |gfn: u64| self.vm_of(gfn) + 1;
        let expect = match call {
            // The frames of a dead VM's block are parked until they leave it: nobody finds them.
            Call::Pin(number, 1)
                if SMALL && self.is_left(model, number) && answer == Answer::Reply(PARKED) =>
            {
                return true;
            }
            Call::Fault(number) if SMALL && self.is_left(model, number) && answer == Answer::Fault(false) => {
                return true;
            }
            Call::Pin(number, count) => model.pin(page(number), count, pin::CPU),
            Call::Unpin(number) => {
                let (expect, Freed { drained, returned, .. }) = model.unpin(page(number), 1, pin::CPU);
                return answer == Answer::Unpinned(expect.reply, drained, returned);
            }
            Call::Fault(number) => return answer == Answer::Fault(model.touch(page(number)) != Touch::Abort),
            Call::Store(number) => {
                let frame = &model.frames[&page(number)];
                let open = frame.state == State::Host || frame.host_leaf || frame.scrap;
                return open || answer == Answer::Stored(false);
            }
            Call::Tidy => return answer == Answer::Reply(Reply::done(0)),
            Call::GuestStore(gfn) => {
                let populated =
                    model.vms.get(&vm(gfn)).and_then(|vm| vm.addresses.get(&gfn)?.frame).is_some();
                return answer == Answer::Stored(populated);
            }
            Call::HostUnmap(number) => model.host_unmap(page(number), 1),
            Call::Destroy if !model.vms.contains_key(&1) => {
                return answer == Answer::Reply(Reply::refused(Status::Invalid));
            }
            Call::Destroy => {
                // Its pages leave one by one; those of its pool were never anybody else's.
                model.vms.remove(&1);
                (BASE + BOOT..BASE + BOOT + POOL).for_each(|pfn| model.drained(pfn));
                return answer == Answer::Gone;
            }
            Call::Retire(pages) => {
                for pfn in (0..self.pages()).filter(|number| pages >> number & 1 == 1).map(page) {
                    if model.frames[&pfn].owner == Some(1) {
                        model.quarantine(pfn);
                    }
                }
                return true;
            }
            Call::Share(gfn, ..)
            | Call::Unshare(gfn, ..)
            | Call::Consent(gfn, ..)
            | Call::GuestFault(gfn)
            | Call::GuestMap(gfn)
            | Call::GuestUnmap(gfn)
            | Call::Reclaim(gfn)
            | Call::Relinquish(gfn)
            | Call::DonateFrom(gfn)
            | Call::Donate(_, gfn)
                if !model.vms.contains_key(&vm(gfn)) =>
            {
                return answer == Answer::Gone;
            }
            Call::Share(gfn, count) => model.share(vm(gfn), gfn, count),
            Call::Unshare(gfn, count, flags) => model.unshare(vm(gfn), gfn, count, flags),
            Call::Consent(gfn, count) => model.consent(vm(gfn), gfn, count, 0),
            Call::Relinquish(gfn) => model.relinquish(vm(gfn), gfn, 1),
            Call::GuestMap(gfn) => model.guest_map(vm(gfn), gfn, page(gfn), 1),
            Call::GuestUnmap(gfn) => model.guest_unmap(vm(gfn), gfn, 1),
            Call::Reclaim(number) => model.reclaim(vm(number), page(number), 1),
            Call::Donate(number, gfn) => model.donate(vm(gfn), gfn, page(number), 1, status::PRIVATE),
            Call::DonateFrom(at) => {
                let (count, private) = (SHARE - at % SHARE, status::PRIVATE);
                // Whether a block can stand there is for the manager to say.
                let mut blocks = model.clone();
                match blocks.donate_block(vm(at), at, page(at), count, private) {
                    Some(expect) if answer == Answer::Reply(expect.reply) => {
                        *model = blocks;
                        expect
                    }
                    _ => model.donate(vm(at), at, page(at), count, private),
                }
            }
            Call::GuestFault(gfn) => {
                let address = model.vms[&vm(gfn)].addresses.get(&gfn).cloned().unwrap_or_default();
                let expect = match (address.frame, address.status) {
                    (Some(_), _) => u64::MAX,
                    (None, status::RELINQUISHED) => status::PRIVATE,
                    (None, status) => status,
                };
                return answer == Answer::GuestFault(expect);
            }
        };
        answer == Answer::Reply(expect.reply)
    }
}
