//! Gets a thread out of KVM_RUN: a signal that does nothing but interrupt.
#![allow(unsafe_code)]
// Reason: sigaction and pthread_kill.

use std::os::unix::thread::JoinHandleExt;
use std::sync::Once;
use std::thread::JoinHandle;

extern "C" fn nothing(_: libc::c_int) {}

/// Interrupts whatever system call the thread is in.
pub fn interrupt<T>(thread: &JoinHandle<T>) {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: all zeros is a valid sigaction: no flags (so calls are not restarted), an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as *const () as libc::sighandler_t;
        // SAFETY: the handler does nothing, so it is safe at any point of the program.
        unsafe { libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()) };
    });
    // SAFETY: the thread has not been joined: the caller holds its handle.
    unsafe { libc::pthread_kill(thread.as_pthread_t() as libc::pthread_t, libc::SIGUSR1) };
}
