//! Hints and the stop of a CPU.
#![allow(unsafe_code)]

/// Waits for an interrupt or event for ever: the end of a CPU that must not go on.
pub fn stop() -> ! {
    loop {
        wait_for_event();
    }
}

/// `WFE`.
#[inline(always)]
pub fn wait_for_event() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint.
    unsafe {
        core::arch::asm!("wfe", options(nomem, nostack, preserves_flags))
    };
    #[cfg(not(target_arch = "aarch64"))]
    core::hint::spin_loop();
}

/// `SEV`: wakes CPUs from `WFE`.
#[inline(always)]
pub fn send_event() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint.
    unsafe {
        core::arch::asm!("sev", options(nostack, preserves_flags))
    };
}
