//! The life of a VM.

use tenure_abi::{Reply, Status, reply};
use tenure_mm::{VmHandle, VmRef};

use super::Call;
use super::system::make_vm;
use crate::machine::mm;
use crate::vcpu::slot::Taken;
use crate::vm;

/// The VM that a call names, kept alive.
///
/// # Errors
/// The reply for a handle that names none.
pub fn named(handle: u64) -> Result<VmRef<'static>, Reply> {
    mm().vm(VmHandle(handle)).map_err(Reply::refused)
}

/// Runs `f` on the VM in x1.
pub fn with(at: &Call<'_>, f: impl FnOnce(&VmRef<'static>) -> Reply) -> Reply {
    match named(at.arg(1)) {
        Ok(vm) => f(&vm),
        Err(reply) => reply,
    }
}

/// VM_CREATE(flags).
#[inline(never)]
pub fn create(at: &mut Call<'_>) -> Reply {
    if !vm::are_offered() {
        return Reply::refused(Status::NotSupported);
    }
    let Some(made) = make_vm(|| mm().vm_create(at.arg(1))) else { return Reply::refused(Status::Retry) };
    match made {
        Ok(handle) => {
            at.set(4, handle.0);
            Reply::done(0)
        }
        Err(status) => Reply::refused(status),
    }
}

/// VM_ACTIVATE(handle).
#[inline(never)]
pub fn activate(at: &mut Call<'_>) -> Reply {
    with(at, |vm| mm().vm_activate(vm))
}

/// VM_SET_RIGHTS(handle, flags).
#[inline(never)]
pub fn set_rights(at: &mut Call<'_>) -> Reply {
    with(at, |vm| match mm().vm_set_rights(vm, at.arg(2)) {
        Ok(()) => Reply::done(0),
        Err(status) => Reply::refused(status),
    })
}

/// VM_DESTROY(handle).
#[inline(never)]
pub fn destroy(at: &mut Call<'_>) -> Reply {
    let (reply, finished) = destroy_step(VmHandle(at.arg(1)));
    at.set(4, u64::from(finished));
    reply
}

/// One step of a VM's end: first its vCPUs, whose run pages go back to the host, then its memory.
pub fn destroy_step(handle: VmHandle) -> (Reply, bool) {
    let lives = || mm().vms().iter().any(|vm| vm.handle() == Some(handle));
    let slot = mm().vms().iter().find(|vm| vm.slot() == handle.slot());
    let undo = |vcpu: Taken| {
        let unpinned = mm().hyp_unpin(vcpu.run_page).is_ok();
        if let (true, Some(slot)) = (unpinned, slot) {
            mm().vm_put_page(slot, vcpu.context);
        }
        unpinned
    };
    match vm::cpus(handle.slot()).and_then(|cpus| cpus.dismantle(handle, lives, undo)) {
        None => return (Reply::refused(Status::Invalid), false),
        Some(false) => {
            let used = Reply { mask: reply::VM_IN_USE, ..Reply::refused(Status::Retry) };
            return (used, false);
        }
        Some(true) => {}
    }
    let step = mm().vm_destroy(handle);
    (step.reply, step.finished)
}
