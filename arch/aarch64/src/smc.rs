//! Calls to the firmware at EL3 (SMCCC, DEN0028).
#![allow(unsafe_code)]

/// Calls the firmware: `x0`–`x7` in, `x0`–`x3` out; SMCCC 1.0 lets `x4`–`x17` be clobbered, so all are given up.
///
/// # Safety
/// Firmware must be there (a CPU whose EL3 has none never returns), and the call may not name memory or an entry point
/// other than Tenure means it to use.
#[inline(never)]
pub unsafe fn smc(args: [u64; 8]) -> [u64; 4] {
    #[cfg(target_arch = "aarch64")]
    let [mut x0, mut x1, mut x2, mut x3, x4, x5, x6, x7] = args;
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the caller vouches for the call; every register that SMCCC gives up is listed.
    unsafe {
        core::arch::asm!(
            "smc #0",
            inout("x0") x0, inout("x1") x1, inout("x2") x2, inout("x3") x3,
            inout("x4") x4 => _, inout("x5") x5 => _, inout("x6") x6 => _, inout("x7") x7 => _,
            out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _, out("x13") _,
            out("x14") _, out("x15") _, out("x16") _, out("x17") _,
            options(nostack)
        )
    };
    // No firmware on the build machine: every call is unknown to it.
    #[cfg(not(target_arch = "aarch64"))]
    let (x0, [x1, x2, x3]) = (u64::MAX, [args[1], args[2], args[3]]);
    [x0, x1, x2, x3]
}
