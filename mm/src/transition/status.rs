//! The status of guest addresses without a frame, the measurement, and queries by guest address.

use sha2::{Digest, Sha256};
use tenure_abi::flags::{query, status};
use tenure_abi::reply::{Reply, Status};

use super::Seen;
use crate::addr::{Gfn, Pfn, checked_end};
use crate::machine::Machine;
use crate::manager::Mm;
use crate::stage2::guest::{Cursor, walk};
use crate::stage2::{Descriptor, ENTRIES, GUEST_FRAMES, LEAF_LEVEL, frames_per_entry};
use crate::state::{self, Refusal, UnshareHow};
use crate::vm::{Inner, Vm};
use crate::word::Word;

/// Entries that one call writes at most.
const ENTRIES_A_CALL: u64 = 320;

/// What a new table counts for among them: all of its entries are written, by a simpler loop.
const TABLE: u64 = 48;

/// Verdict of a query and what it was made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestQuery {
    /// What an immediate attempt would answer.
    pub reply: Reply,
    /// The frame and its word, if there is one.
    pub frame: Option<(Pfn, Word)>,
    /// Status of the address: what it has, or would have without the frame (`TENURE_ADDR_*`).
    pub status: u64,
}

impl<'a, M: Machine> Mm<'a, M> {
    /// Declares what unpopulated addresses are, before activation or in a plain VM. Writes at most 320 entries a call
    /// and says in `done` how far it came; what was done stays.
    pub fn set_status(&self, vm: &Vm, gfn: Gfn, count: u64, to: u64) -> Reply {
        let Some(end) = checked_end(gfn.0, count, GUEST_FRAMES) else {
            return Reply::refused(Status::Invalid);
        };
        if to > status::DEVICE {
            return Reply::refused(Status::Invalid);
        }
        let mut inner = vm.lock();
        if vm.is_sealed() {
            return Refusal::STATE.whole();
        }
        let root = match self.ensure_root(vm, &mut inner.pool) {
            Ok(root) => root,
            Err(refusal) => return refusal.whole(),
        };
        let mut at = gfn.0;
        let mut refusal = None;
        let mut budget = ENTRIES_A_CALL;
        while at < end && budget > 0 {
            let entry = walk(&self.machine, root, Gfn(at));
            let span = frames_per_entry(entry.level);
            if entry.descriptor.is_valid() {
                refusal = Some(Refusal::STATE);
                break;
            }
            if at & (span - 1) == 0 && end - at >= span {
                entry.write(&self.machine, Descriptor::status(to));
                at += span;
                budget -= 1;
            } else if entry.level < LEAF_LEVEL {
                let Some(table) = inner.pool.take(&self.machine) else {
                    refusal = Some(Refusal::VM_POOL);
                    break;
                };
                for slot in 0..ENTRIES as usize {
                    self.machine.write(table.base(), slot, entry.descriptor.0);
                }
                self.machine.dsb_ishst();
                entry.write(&self.machine, Descriptor::table(table.base()));
                budget = budget.saturating_sub(TABLE);
            } else {
                break;
            }
        }
        self.machine.dsb_ishst();
        let done = at - gfn.0;
        if done > 0 && !vm.is_active() {
            measure(
                &mut inner,
                &[b"status".as_slice(), &gfn.0.to_le_bytes(), &done.to_le_bytes(), &to.to_le_bytes()],
            );
        }
        match refusal {
            Some(refusal) => Reply { done, ..refusal.at(done) },
            None => Reply::done(done),
        }
    }

    /// Adds a record of the caller's (a register of a vCPU, say) to the measurement, before activation. False if it is too
    /// late: the VM is protected and active, and what the record tells of must not happen. So the caller asks first.
    #[must_use = "false forbids what the record tells of"]
    pub fn measure(&self, vm: &Vm, record: &[&[u8]]) -> bool {
        let mut inner = vm.lock();
        if !vm.is_active() {
            measure(&mut inner, record);
        }
        !vm.is_sealed()
    }

    /// What an operation on a guest address would answer now, and why.
    ///
    /// # Errors
    /// INVALID: no such operation, or outside the guest's space.
    pub fn query_guest(&self, vm: &Vm, gfn: Gfn, op: u64) -> Result<GuestQuery, Status> {
        if gfn.0 >= GUEST_FRAMES || op > query::RECLAIM {
            return Err(Status::Invalid);
        }
        let Some(root) = vm.root() else {
            return Ok(GuestQuery { reply: Refusal::UNPOPULATED.at(0), frame: None, status: status::NONE });
        };
        match self.look(&mut Cursor::new(root), gfn) {
            Err(refusal) => Ok(GuestQuery { reply: refusal.at(0), frame: None, status: status::NONE }),
            Ok(Seen::Empty(entry)) => {
                let status = entry.descriptor.address_status();
                let reply = match op {
                    query::SHARE | query::UNSHARE => self.query_empty(vm, root, gfn, op == query::SHARE),
                    _ => Refusal::UNPOPULATED.at(0),
                };
                Ok(GuestQuery { reply, frame: None, status })
            }
            Ok(Seen::Frame { word, frame, .. }) => {
                let verdict = match op {
                    query::SHARE => state::share(word, vm.slot()).map(|_| ()),
                    query::UNSHARE => state::unshare(word, vm.slot(), UnshareHow::default()).map(|_| ()),
                    _ => state::reclaim(word, vm.slot(), vm.is_sealed()),
                };
                let reply = match verdict {
                    Ok(()) => Reply::done(1),
                    Err(refusal) => refusal.at(0),
                };
                let status = super::map::status_of(word);
                Ok(GuestQuery { reply, frame: Some((frame, word)), status })
            }
        }
    }
}

/// M' = SHA-256(M ‖ lengths and bytes of the record).
pub(super) fn measure(inner: &mut Inner, record: &[&[u8]]) {
    let mut hash = Sha256::new();
    hash.update(inner.measurement);
    for part in record {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    inner.measurement = hash.finalize().into();
}
