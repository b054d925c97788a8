//! The end of the host's world: shutdown, kexec, panic.

use core::sync::atomic::{AtomicU32, Ordering};

use tenure_abi::{Reply, Status};

use super::{Call, vm};
use crate::machine::mm;

/// HOST_RESET(from): one step of the end of every VM, then of all else that the host declared or lent. RETRY while there
/// is more to do; the sweep begins again where a VM was found.
pub fn reset(at: &mut Call<'_>) -> Reply {
    at.set(4, 0);
    at.set(5, 0);
    if at.arg(1) > mm().frames().len() {
        return Reply::refused(Status::Invalid);
    }
    mm().leave_panic_mode();
    let Some(handle) = mm().vms().iter().find_map(|vm| vm.handle()) else {
        let step = mm().host_reset(at.arg(1));
        at.set(4, u64::from(step.finished));
        at.set(5, step.next);
        return step.reply;
    };
    let (reply, finished) = vm::destroy_step(handle);
    match reply.status {
        // This one is gone, or was just taken away by another CPU: on to the next.
        Status::Success | Status::Invalid if finished || reply.status == Status::Invalid => {
            Reply { done: reply.done, ..Reply::refused(Status::Retry) }
        }
        _ => reply,
    }
}

/// Calls that are making a VM (the low half), and ends of the machine under way, each of which is [`END`].
static MAKERS: AtomicU32 = AtomicU32::new(0);
const END: u32 = 1 << 16;

/// Runs `make`, which makes a VM; not while the machine is being ended.
pub fn make_vm<R>(make: impl FnOnce() -> R) -> Option<R> {
    let open = MAKERS.fetch_add(1, Ordering::AcqRel) < END;
    let made = open.then(make);
    MAKERS.fetch_sub(1, Ordering::AcqRel);
    made
}

/// Ends the machine by `end`, after every VM: while it runs no VM comes to be, whose memory nobody would scrub. `None` if
/// some vCPU does not come back. Returning at all means that the machine goes on.
pub fn end_machine<R>(end: impl FnOnce() -> R) -> Option<R> {
    // One atomic for both sides: who was let in before this is seen here, and is soon out again.
    MAKERS.fetch_add(END, Ordering::AcqRel);
    while !MAKERS.load(Ordering::Acquire).is_multiple_of(END) {
        core::hint::spin_loop();
    }
    let ended = end_all().then(end);
    MAKERS.fetch_sub(END, Ordering::AcqRel);
    ended
}

/// Steps without progress after which [`end_all`] gives up: a vCPU that runs elsewhere leaves at its CPU's next
/// interrupt, which no host keeps away for so long by accident.
const PATIENCE: u32 = 1 << 22;

/// Ends every VM at once, before the machine goes down or starts again: memory keeps its contents over a warm reset, and
/// the next system is told nothing of who owned it. False if a vCPU does not come back.
///
/// Not bounded as calls are: the host that asks for it is at its end, and only its own CPU waits.
fn end_all() -> bool {
    let mut patience = PATIENCE;
    while let Some(handle) = mm().vms().iter().find_map(|vm| vm.handle()) {
        let (reply, finished) = vm::destroy_step(handle);
        if finished || reply.mask == 0 {
            patience = PATIENCE;
        } else {
            patience -= 1;
            core::hint::spin_loop();
        }
        if patience == 0 {
            return false;
        }
    }
    true
}

/// PANIC_MODE.
pub fn panic_mode() -> Reply {
    mm().enter_panic_mode();
    Reply::done(0)
}
