//! The end of the host's world: shutdown, kexec, panic.

use tenure_abi::{Reply, Status};

use super::{Call, vm};
use crate::machine::mm;

/// HOST_RESET: one step of the end of every VM. RETRY while there is more to do.
pub fn reset(at: &mut Call<'_>) -> Reply {
    at.set(4, 0);
    let Some(handle) = mm().vms().iter().find_map(|vm| vm.handle()) else {
        at.set(4, 1);
        return Reply::done(0);
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

/// PANIC_MODE.
pub fn panic_mode() -> Reply {
    mm().enter_panic_mode();
    Reply::done(0)
}
