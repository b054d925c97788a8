//! Tenure's own calls.

use tenure_abi::smccc;
use tenure_arch::frame::HostFrame;

/// A call of the host, by HVC, of the vendor-specific hypervisor range: arguments in `x1`–`x17`, results from `x0`.
pub fn host(frame: &mut HostFrame, id: u32) {
    let _ = id;
    frame.x[0] = smccc::NOT_SUPPORTED;
}

/// This CPU is about to lose its state: whatever is loaded on it must be put away.
pub fn leave_cpu() {}

const _: () = assert!(tenure_arch::vectors::FAST_VERSION_ID as u64 == tenure_abi::call::VERSION);
const _: () = assert!(tenure_arch::vectors::FAST_VERSION as u64 == tenure_abi::ABI_VERSION);
