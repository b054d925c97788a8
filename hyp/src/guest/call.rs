//! Calls of guests (HVC): KVM's vendor service for stock ones, ours, and the architecture's.
//!
//! Runs in the short way of `arch`'s switch: the guest's PC is in `ELR_EL2`, behind the HVC.
#![allow(unsafe_code)] // Moving the guest's PC.

use tenure_abi::{
    ABI_VERSION, NO_INDEX, PAGE_SIZE, Reply, RunPage, Status, exit, flags, guest, reply, smccc,
};
use tenure_arch::sysreg;
use tenure_mm::Gfn;

use super::{Next, convert, plain, psci};
use crate::dma;
use crate::machine::mm;
use crate::vcpu::context::{After, Context};

/// Functions of KVM's vendor service that exist, by number: FEATURES, MEMINFO, MEM_SHARE, MEM_UNSHARE.
const KVM_FUNCTIONS: u64 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4;

/// The version of the SMC Calling Convention, 1.2.
const SMCCC_1_2: u64 = 0x1_0002;

/// Answers the call in x0.
pub fn dispatch(context: &mut Context) -> Next {
    let x = &context.frame.x;
    let [id, a1, a2, a3] = [x[0] as u32 as u64, x[1], x[2], x[3]];
    match id {
        guest::SHARE => convert::share(context, a1, a2),
        guest::UNSHARE => convert::unshare(context, a1, a2, a3),
        smccc::KVM_MEM_SHARE => convert::stock_share(context, a1, a2 | a3),
        smccc::KVM_MEM_UNSHARE => convert::stock_unshare(context, a1, a2 | a3),
        guest::RELINQUISH => convert::relinquish(context, a1, a2),
        guest::QUERY => query(context, a1),
        guest::VERSION => answer(context, Reply { done: ABI_VERSION, ..Reply::done(0) }),
        guest::MEASUREMENT => measurement(context),
        guest::HOST_CALL => {
            let mut args = [0; 6];
            args.copy_from_slice(&context.frame.x[1..7]);
            context.after = After::Hypercall;
            Next::Leave(RunPage { args, ..plain(exit::HYPERCALL) })
        }
        smccc::VERSION => value(context, SMCCC_1_2),
        smccc::ARCH_FEATURES => match a1 as u32 as u64 {
            smccc::VERSION | smccc::ARCH_FEATURES => value(context, 0),
            _ => value(context, smccc::NOT_SUPPORTED),
        },
        smccc::VENDOR_HYP_UID => registers(context, smccc::KVM_UID.map(u64::from)),
        smccc::KVM_FEATURES => registers(context, [KVM_FUNCTIONS, 0, 0, 0]),
        smccc::KVM_MEMINFO => match a1 | a2 | a3 {
            0 => value(context, PAGE_SIZE),
            _ => value(context, smccc::INVALID_PARAMETER),
        },
        _ => psci::dispatch(context, id as u32),
    }
}

/// Answers with x0 alone.
pub fn value(context: &mut Context, x0: u64) -> Next {
    context.frame.x[0] = x0;
    Next::Resume
}

/// Answers with x0 to x3.
fn registers(context: &mut Context, x: [u64; 4]) -> Next {
    context.frame.x[..4].copy_from_slice(&x);
    Next::Resume
}

/// Answers in the shape of every call of ours.
#[inline]
pub fn answer(context: &mut Context, reply: Reply) -> Next {
    registers(context, reply.to_regs())
}

/// The PC goes back to the HVC: the call is made again when its caller, a guest or the host, runs next.
pub fn rewind() {
    // SAFETY: the caller's own PC, on its own instruction.
    unsafe { sysreg::write_elr_el2(sysreg::elr_el2().wrapping_sub(4)) };
}

/// What is the same for all calls on pages: a transition in flight is waited for by calling again, missing table memory
/// is the host's to give. Else the answer is for the caller to give.
#[inline]
pub fn absorb(reply: &Reply) -> Option<Next> {
    match (reply.status, reply.mask) {
        (Status::Retry, reply::FROZEN) => {
            rewind();
            Some(Next::Resume)
        }
        (Status::NoMemory, mask) => {
            rewind();
            Some(Next::Leave(RunPage { mask, ..plain(exit::TABLES) }))
        }
        _ => None,
    }
}

fn query(context: &mut Context, ipa: u64) -> Next {
    if !ipa.is_multiple_of(PAGE_SIZE) {
        return answer(context, Reply::refused(Status::Invalid));
    }
    match mm().query_guest(context.vm, Gfn(ipa / PAGE_SIZE), flags::query::UNSHARE) {
        Ok(seen) => {
            context.frame.x[4] = seen.frame.map_or(0, |(_, word)| word.raw());
            context.frame.x[5] = seen.status;
            context.frame.x[6] = u64::from(dma::CONTAINED);
            answer(context, Reply { status: Status::Success, done: 1, first: NO_INDEX, mask: 0 })
        }
        Err(status) => answer(context, Reply::refused(status)),
    }
}

fn measurement(context: &mut Context) -> Next {
    let sum = mm().vm_measurement(context.vm);
    for (register, part) in context.frame.x[4..8].iter_mut().zip(sum.chunks_exact(8)) {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(part);
        *register = u64::from_le_bytes(bytes);
    }
    answer(context, Reply::done(0))
}
