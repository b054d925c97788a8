//! Tenure's own calls, one file a family.
//!
//! Every call answers with a [`Reply`] in x0 to x3; x4 and on are set by the calls that have more to say.

use tenure_abi::{NO_INDEX, Reply, Status, call};
use tenure_arch::frame::HostFrame;

mod info;
mod page;
mod pool;
mod system;
mod vcpu;
mod vm;

use crate::guest::rewind;
use crate::trace;

pub use system::end_machine;

/// A call's registers.
pub struct Call<'f> {
    frame: &'f mut HostFrame,
}

impl Call<'_> {
    /// Argument `n`, in `x<n>`.
    fn arg(&self, n: usize) -> u64 {
        self.frame.x.get(n).copied().unwrap_or(0)
    }

    /// Arguments from x1.
    fn args<const N: usize>(&self) -> [u64; N] {
        core::array::from_fn(|n| self.arg(n + 1))
    }

    /// Sets an extra result in `x<n>`, from 4 up.
    fn set(&mut self, n: usize, value: u64) {
        if let Some(register) = self.frame.x.get_mut(n) {
            *register = value;
        }
    }
}

/// What no caller sees: the call is made again, after the interrupts that are pending. Its registers are as they were.
const AGAIN: Reply = Reply { status: Status::Retry, done: 0, first: NO_INDEX, mask: u64::MAX };

/// A call of the host, by HVC, of the vendor-specific hypervisor range: arguments in `x1`–`x17`, results from `x0`.
pub fn host(frame: &mut HostFrame, id: u32) {
    let mut at = Call { frame };
    let [a, b] = at.args();
    let reply = dispatch(&mut at, u64::from(id));
    if reply == AGAIN {
        return rewind();
    }
    let b = if u64::from(id) == call::VCPU_RUN { at.arg(4) } else { b };
    trace::call(u64::from(id), [a, b], &reply);
    frame.x[..4].copy_from_slice(&reply.to_regs());
}

fn dispatch(at: &mut Call<'_>, id: u64) -> Reply {
    match id {
        call::VERSION => Reply { done: tenure_abi::ABI_VERSION, ..Reply::done(0) },
        call::FEATURES => info::features(at),
        call::INFO => info::info(at),
        call::COUNT => info::count(at),
        call::LOG_READ => info::log_read(at),
        call::TRACE_READ => info::trace_read(at),

        call::VM_CREATE => vm::create(at),
        call::VM_ACTIVATE => vm::activate(at),
        call::VM_DESTROY => vm::destroy(at),
        call::VM_SET_RIGHTS => vm::set_rights(at),

        call::VCPU_CREATE => vcpu::create(at),
        call::VCPU_RUN => vcpu::run(at),
        call::REG_GET => vcpu::reg_get(at),
        call::REG_SET => vcpu::reg_set(at),
        call::VCPU_INJECT => vcpu::inject(at),
        call::CONSENT => vcpu::consent(at),
        call::REFUSE => vcpu::refuse(at),

        call::DONATE => page::donate(at),
        call::RECLAIM => page::reclaim(at),
        call::SET_STATUS => page::set_status(at),
        call::CONVERT => page::convert(at),
        call::GUEST_MAP => page::guest_map(at),
        call::GUEST_UNMAP => page::guest_unmap(at),
        call::HOST_MAP => page::host_map(at),
        call::HOST_UNMAP => page::host_unmap(at),
        call::PIN => page::pin(at),
        call::UNPIN => page::unpin(at),
        call::QUERY => page::query(at),
        call::QUERY_GUEST => page::query_guest(at),
        call::POISON => page::poison(at),

        call::POOL_TOPUP => pool::topup(at),
        call::POOL_DRAIN => pool::drain(at),
        call::POOL_INFO => pool::info(at),

        call::HOST_RESET => system::reset(at),
        call::PANIC_MODE => system::panic_mode(),
        _ => Reply::refused(Status::NotSupported),
    }
}

/// This CPU is about to lose its state. No vCPU is loaded on it: a vCPU is loaded during VCPU_RUN only, and this is
/// another call of the same CPU.
pub fn leave_cpu() {}

const _: () = assert!(tenure_arch::vectors::FAST_VERSION_ID as u64 == call::VERSION);
const _: () = assert!(tenure_arch::vectors::FAST_VERSION as u64 == tenure_abi::ABI_VERSION);
