//! A long holder that declares nothing: a buffer registered with io_uring, which pins it for devices.
#![allow(unsafe_code)]
// Reason: two system calls that have no wrapper in libc.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

use crate::mapping::Mapping;

const REGISTER_BUFFERS: libc::c_long = 0;
const UNREGISTER_BUFFERS: libc::c_long = 1;
/// `struct io_uring_params`, all zeros.
type Params = [u64; 15];

/// Memory that is registered until this is dropped.
pub struct RingHold {
    ring: File,
}

impl RingHold {
    /// Registers `len` bytes at `offset`.
    ///
    /// # Errors
    /// Those of io_uring_setup(2) and io_uring_register(2).
    pub fn new(memory: &Mapping, offset: usize, len: usize) -> io::Result<Self> {
        let mut params: Params = [0; 15];
        // SAFETY: the kernel fills the 120 bytes of its struct, which live on this stack.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else owns.
        let hold = Self { ring: unsafe { File::from_raw_fd(fd as i32) } };
        let part = libc::iovec { iov_base: memory.at(offset).cast(), iov_len: len };
        hold.register(REGISTER_BUFFERS, &raw const part, 1)?;
        Ok(hold)
    }

    fn register(&self, what: libc::c_long, parts: *const libc::iovec, count: libc::c_long) -> io::Result<()> {
        // SAFETY: `parts` is null or names `count` live structs over memory that is mapped; the kernel pins its pages.
        let result =
            unsafe { libc::syscall(libc::SYS_io_uring_register, self.ring.as_raw_fd(), what, parts, count) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Drop for RingHold {
    fn drop(&mut self) {
        // Unregistered here and now; the end of the ring itself is not waited for. It cannot fail once it was registered.
        let _ = self.register(UNREGISTER_BUFFERS, std::ptr::null(), 0);
    }
}
