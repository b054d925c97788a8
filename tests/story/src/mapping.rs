//! Guest memory mapped into this process, and accesses that may end in a signal.
#![allow(unsafe_code)]
// Reason: mmap, raw volatile accesses, fork. Accesses that may fault are made by a child process, whose death is the result.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

/// What became of an access that was tried in a child process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It went through; a read gave this value.
    Value(u64),
    /// The child was killed by this signal.
    Signal(i32),
}

/// A mapping: of a guest_memfd, of another file, or of memory of this process.
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is memory that others (the guest) change anyway; it is only accessed by volatile operations.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file` from its start, readable and writable.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn new(file: &impl AsRawFd, len: usize) -> io::Result<Self> {
        Self::with(file, len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)
    }

    /// As [`Mapping::new`], with protection and flags of the caller's.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn with(file: &impl AsRawFd, len: usize, protection: i32, flags: i32) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of this program.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(start.cast::<u8>())
            .map(|start| Self { start, len })
            .ok_or_else(|| io::Error::other("mapped at 0"))
    }

    /// Anonymous memory of this process.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn anonymous(len: usize) -> io::Result<Self> {
        Self::with(&-1, len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
    }

    /// Anonymous memory of this process whose address is a multiple of `align`.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn aligned(len: usize, align: usize) -> io::Result<Self> {
        let mut this = Self::anonymous(len + align)?;
        let before = (this.start.as_ptr() as usize).wrapping_neg() % align;
        // SAFETY: inside the mapping, which is longer by `align`.
        let start = unsafe { this.start.add(before) };
        // SAFETY: as above.
        let end = unsafe { start.add(len) };
        for (from, excess) in [(this.start, before), (end, align - before)] {
            // SAFETY: a part of this mapping that nobody has seen yet.
            if excess > 0 && unsafe { libc::munmap(from.as_ptr().cast(), excess) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        (this.start, this.len) = (start, len);
        Ok(this)
    }

    /// Address of `offset`; aligned accesses inside the mapping only.
    ///
    /// # Panics
    /// If the offset is outside or not aligned: the program itself is wrong then.
    pub fn at(&self, offset: usize) -> *mut u64 {
        assert!(
            offset.is_multiple_of(8) && offset + 8 <= self.len,
            "offset {offset:#x} is outside the mapping"
        );
        // SAFETY: inside the mapping, as just checked.
        unsafe { self.start.as_ptr().add(offset) }.cast()
    }

    /// Reads 64 bits; SIGBUS kills the program if the page is not the host's to read.
    pub fn read(&self, offset: usize) -> u64 {
        // SAFETY: the address is mapped and aligned (`at`); any value is a valid u64.
        unsafe { self.at(offset).read_volatile() }
    }

    /// Writes 64 bits; as [`Mapping::read`].
    pub fn write(&self, offset: usize, value: u64) {
        // SAFETY: the address is mapped and aligned (`at`), and nothing in this program refers to it.
        unsafe { self.at(offset).write_volatile(value) }
    }

    /// Copies bytes in, 64 bits at a time, the last ones padded with zeros.
    pub fn load(&self, offset: usize, bytes: &[u8]) {
        for (i, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write(offset + i * 8, u64::from_le_bytes(word));
        }
    }

    /// Has the kernel map a page without touching it (MADV_POPULATE_WRITE).
    ///
    /// # Errors
    /// Those of madvise(2).
    pub fn populate(&self, offset: usize, len: usize) -> io::Result<()> {
        // SAFETY: inside the mapping; populating changes no contents.
        let result = unsafe { libc::madvise(self.at(offset).cast(), len, libc::MADV_POPULATE_WRITE) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Reads in a child process.
    ///
    /// # Errors
    /// If no child can be made.
    pub fn try_read(&self, offset: usize) -> io::Result<Outcome> {
        let address = self.at(offset);
        // SAFETY: as in `read`; if it faults, the child dies.
        in_child(|| unsafe { address.read_volatile() })
    }

    /// Writes in a child process.
    ///
    /// # Errors
    /// If no child can be made.
    pub fn try_write(&self, offset: usize, value: u64) -> io::Result<Outcome> {
        let address = self.at(offset);
        in_child(|| {
            // SAFETY: as in `write`; if it faults, the child dies.
            unsafe { address.write_volatile(value) };
            0
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own; pointers into it were handed out for use while it lives only.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Has the kernel copy 64 bits from an address of this process by way of a reference to the page, which it holds for a
/// moment (process_vm_readv(2)): true if it could.
pub fn copy_by_reference(address: usize) -> bool {
    let mut value = 0u64;
    let local = libc::iovec { iov_base: ptr::from_mut(&mut value).cast(), iov_len: 8 };
    let remote = libc::iovec { iov_base: ptr::without_provenance_mut(address), iov_len: 8 };
    let this = std::process::id() as libc::pid_t;
    // SAFETY: eight bytes into a local variable; the kernel checks the other address itself.
    unsafe { libc::process_vm_readv(this, &local, 1, &remote, 1, 0) == 8 }
}

/// Punches a hole into a file.
///
/// # Errors
/// Those of fallocate(2).
pub fn punch(file: &impl AsRawFd, offset: u64, len: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: a system call on a descriptor, with numbers.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, len as i64) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A page held by a pipe (vmsplice): a reference that nobody declared.
pub struct PipeHold {
    ends: [i32; 2],
}

impl PipeHold {
    /// Takes `len` bytes at `offset` into a pipe, by reference.
    ///
    /// # Errors
    /// Those of pipe(2) and vmsplice(2).
    pub fn new(mapping: &Mapping, offset: usize, len: usize) -> io::Result<Self> {
        let mut ends = [0; 2];
        // SAFETY: two descriptors are written to an array of two.
        if unsafe { libc::pipe(ends.as_mut_ptr()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let hold = Self { ends };
        let part = libc::iovec { iov_base: mapping.at(offset).cast(), iov_len: len };
        // SAFETY: one iovec on the stack, over memory that is mapped; the pipe takes a reference to its page.
        let taken = unsafe { libc::vmsplice(ends[1], &part, 1, 0) };
        if taken == len as isize { Ok(hold) } else { Err(io::Error::last_os_error()) }
    }

    /// Reads the first 64 bits through the pipe's reference.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn read(&self) -> io::Result<u64> {
        let mut value = 0u64;
        // SAFETY: eight bytes into a local variable.
        let got = unsafe { libc::read(self.ends[0], ptr::from_mut(&mut value).cast(), 8) };
        if got == 8 { Ok(value) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for PipeHold {
    fn drop(&mut self) {
        for end in self.ends {
            // SAFETY: our own descriptors, closed once.
            unsafe { libc::close(end) };
        }
    }
}

/// Runs `access` in a child process: its value, or the signal that killed it.
///
/// `access` must do nothing but system calls and memory accesses (other threads of this program do not exist there).
///
/// # Errors
/// Those of pipe, fork and wait.
pub fn in_child(access: impl FnOnce() -> u64) -> io::Result<Outcome> {
    in_child_after(|| (), || Ok(()), access)
}

fn pipe() -> io::Result<[i32; 2]> {
    let mut ends = [0; 2];
    // SAFETY: two descriptors are written to an array of two.
    if unsafe { libc::pipe(ends.as_mut_ptr()) } < 0 { Err(io::Error::last_os_error()) } else { Ok(ends) }
}

/// As [`in_child`]; the child first does `prepare`, then this process does `between`, then the child does `access`.
///
/// # Errors
/// Those of pipe, fork, wait and `between`.
pub fn in_child_after(
    prepare: impl FnOnce(),
    between: impl FnOnce() -> io::Result<()>,
    access: impl FnOnce() -> u64,
) -> io::Result<Outcome> {
    let (pipe, go) = (pipe()?, pipe()?);
    // SAFETY: the child calls only async-signal-safe functions before _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: our own copy; else the child would wait for itself.
        unsafe { libc::close(go[1]) };
        prepare();
        let mut byte = [0u8; 8];
        // SAFETY: eight bytes of a local array: "ready".
        unsafe { libc::write(pipe[1], byte.as_ptr().cast(), 8) };
        // SAFETY: one byte into a local array, or the end of the file.
        unsafe { libc::read(go[0], byte.as_mut_ptr().cast(), 1) };
        let value = access();
        // SAFETY: eight bytes of a local variable, to a pipe that the parent reads.
        unsafe { libc::write(pipe[1], ptr::from_ref(&value).cast(), 8) };
        // SAFETY: ends the child without running the parent's destructors.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: our own descriptor.
    unsafe { libc::close(pipe[1]) };
    // SAFETY: our own descriptor.
    unsafe { libc::close(go[0]) };
    let mut value = 0u64;
    // SAFETY: eight bytes into a local variable: "ready".
    unsafe { libc::read(pipe[0], ptr::from_mut(&mut value).cast(), 8) };
    let between = between();
    // SAFETY: our own descriptor; its end lets the child go on.
    unsafe { libc::close(go[1]) };
    // SAFETY: eight bytes into a local variable.
    let got = unsafe { libc::read(pipe[0], ptr::from_mut(&mut value).cast(), 8) };
    // SAFETY: our own descriptor.
    unsafe { libc::close(pipe[0]) };
    let mut status = 0;
    // SAFETY: our own child, a local variable.
    if child < 0 || unsafe { libc::waitpid(child, &mut status, 0) } != child {
        return Err(io::Error::last_os_error());
    }
    between?;
    if libc::WIFSIGNALED(status) {
        Ok(Outcome::Signal(libc::WTERMSIG(status)))
    } else if got == 8 {
        Ok(Outcome::Value(value))
    } else {
        Err(io::Error::other("the child neither answered nor died"))
    }
}
