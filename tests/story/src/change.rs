//! Changes of this process' own address space, under a guest that uses the memory.
#![allow(unsafe_code)]
// Reason: mmap, mprotect, madvise and fork on mappings that the caller owns and reaches by volatile accesses only.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use crate::mapping::Mapping;

fn told(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// madvise(2).
///
/// # Errors
/// Those of madvise(2).
pub fn advise(memory: &Mapping, offset: usize, len: usize, advice: i32) -> io::Result<()> {
    // SAFETY: inside the mapping, whose contents nobody holds by reference.
    told(unsafe { libc::madvise(memory.at(offset).cast(), len, advice) })
}

/// mprotect(2).
///
/// # Errors
/// Those of mprotect(2).
pub fn protect(memory: &Mapping, offset: usize, len: usize, protection: i32) -> io::Result<()> {
    // SAFETY: as in `advise`.
    told(unsafe { libc::mprotect(memory.at(offset).cast(), len, protection) })
}

/// munmap(2) of a part. The addresses stay this mapping's: `renew` puts memory there again.
///
/// # Errors
/// Those of munmap(2).
pub fn unmap(memory: &Mapping, offset: usize, len: usize) -> io::Result<()> {
    // SAFETY: as in `advise`; the caller touches nothing there before `renew`.
    told(unsafe { libc::munmap(memory.at(offset).cast(), len) })
}

/// New anonymous memory in place of a part.
///
/// # Errors
/// Those of mmap(2).
pub fn renew(memory: &Mapping, offset: usize, len: usize) -> io::Result<()> {
    let (rights, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED);
    // SAFETY: replaces memory of this mapping by fresh memory of the same size.
    let at = unsafe { libc::mmap(memory.at(offset).cast(), len, rights, flags, -1, 0) };
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has Linux move 2 MiB of small pages into one huge page (MADV_COLLAPSE): a migration that comes when it is called.
///
/// # Errors
/// Those of madvise(2).
pub fn collapse(memory: &Mapping, offset: usize, len: usize) -> io::Result<()> {
    const MADV_COLLAPSE: i32 = 25;
    advise(memory, offset, len, libc::MADV_HUGEPAGE)?;
    advise(memory, offset, len, MADV_COLLAPSE)
}

/// The page frame behind an address (proc(5), pagemap); `None` if there is none.
///
/// # Errors
/// If pagemap cannot be read.
pub fn frame(memory: &Mapping, offset: usize) -> io::Result<Option<u64>> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let mut entry = [0; 8];
    let page = memory.at(offset) as u64 / 4096;
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, page * 8)?;
    let entry = u64::from_le_bytes(entry);
    Ok((entry & PRESENT != 0).then_some(entry & FRAME))
}

/// A file in memory (memfd_create(2)) of `len` bytes.
///
/// # Errors
/// Those of memfd_create(2) and ftruncate(2).
pub fn memory_file(len: u64) -> io::Result<File> {
    // SAFETY: a constant name; the new descriptor is nobody else's.
    let fd = unsafe { libc::memfd_create(c"lent".as_ptr(), libc::MFD_CLOEXEC) };
    told(fd)?;
    // SAFETY: as above.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len)?;
    Ok(file)
}

/// A child that has a copy of this process' address space and does nothing, until it is dropped.
pub struct Copy {
    child: libc::pid_t,
}

impl Copy {
    /// Forks.
    ///
    /// # Errors
    /// Those of fork(2).
    pub fn new() -> io::Result<Self> {
        // SAFETY: the child only waits to be killed.
        let child = unsafe { libc::fork() };
        if child == 0 {
            loop {
                // SAFETY: waits for a signal.
                unsafe { libc::pause() };
            }
        }
        told(child)?;
        Ok(Self { child })
    }

    /// Reads 64 bits of the child's memory.
    ///
    /// # Errors
    /// Those of /proc/PID/mem.
    pub fn read(&self, memory: &Mapping, offset: usize) -> io::Result<u64> {
        let mut value = [0; 8];
        File::open(format!("/proc/{}/mem", self.child))?
            .read_exact_at(&mut value, memory.at(offset) as u64)?;
        Ok(u64::from_le_bytes(value))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // SAFETY: our own child, which is still there: nobody else waits for it.
        unsafe { libc::kill(self.child, libc::SIGKILL) };
        // SAFETY: as above.
        unsafe { libc::waitpid(self.child, std::ptr::null_mut(), 0) };
    }
}

/// Binds this thread to one CPU.
///
/// # Errors
/// Those of sched_setaffinity(2).
pub fn run_on(cpu: usize) -> io::Result<()> {
    // SAFETY: all zeros is a valid (empty) set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: a live set; a CPU number beyond it changes nothing.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: a live set of the size that is told; 0 is this thread.
    told(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) })
}
