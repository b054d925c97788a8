//! Roads by which a process of the host may try to reach a page: plain accesses, and through the kernel.
#![allow(unsafe_code)]
// Reason: raw accesses, instructions and system calls with addresses that may fault. All run in a child process.

use std::io;

use crate::mapping::{Mapping, Outcome, in_child, in_child_after};

/// One road: a name and what it does in a child process. The value it returns is what it got out (0: nothing).
pub struct Road {
    /// What is tried.
    pub name: &'static str,
    /// What must come.
    pub expected: Expected,
    action: fn(*mut u64) -> u64,
}

/// The right end of a road.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// The child is killed by SIGBUS.
    Bus,
    /// The system call fails with EFAULT.
    Fault,
    /// SIGBUS, or nothing at all happens (QEMU does nothing for cache maintenance, and so asks nobody).
    BusOrNothing,
    /// The kernel kills the child's thread in the middle of the call (an oops of the trespasser).
    Killed,
}

/// What a road's child says when the system call failed with EFAULT.
const EFAULT: u64 = u64::MAX;
/// What it says when the call failed otherwise, or did not run as meant.
const OTHER: u64 = u64::MAX - 1;

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn verdict(result: isize, got: u64) -> u64 {
    match result {
        result if result >= 0 => got,
        _ if errno() == libc::EFAULT => EFAULT,
        _ => OTHER,
    }
}

fn read(page: *mut u64) -> u64 {
    // SAFETY: mapped; a fault ends the child.
    unsafe { page.read_volatile() }
}

fn write(page: *mut u64) -> u64 {
    // SAFETY: mapped; a fault ends the child.
    unsafe { page.write_volatile(0x666) };
    1
}

fn atomic(page: *mut u64) -> u64 {
    // SAFETY: mapped and aligned; a fault ends the child.
    unsafe {
        (*page.cast::<std::sync::atomic::AtomicU64>()).fetch_add(1, std::sync::atomic::Ordering::SeqCst)
    }
}

fn execute(page: *mut u64) -> u64 {
    // SAFETY: the length is one page of the mapping.
    if unsafe { libc::mprotect(page.cast(), 4096, libc::PROT_READ | libc::PROT_EXEC) } < 0 {
        return OTHER;
    }
    // SAFETY: whatever stands there ends the child in a signal, or returns to it.
    let there: extern "C" fn() = unsafe { std::mem::transmute(page) };
    there();
    1
}

fn zero_line(page: *mut u64) -> u64 {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: DC ZVA of a mapped line; a fault ends the child.
    unsafe {
        std::arch::asm!("dc zva, {}", in(reg) page)
    };
    let _ = page;
    1
}

fn clean_line(page: *mut u64) -> u64 {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: DC CIVAC of a mapped line (Linux lets EL0 do it); a fault ends the child.
    unsafe {
        std::arch::asm!("dc civac, {}", in(reg) page)
    };
    let _ = page;
    1
}

fn pipe() -> [i32; 2] {
    let mut ends = [-1; 2];
    // SAFETY: two descriptors are written to an array of two.
    unsafe { libc::pipe(ends.as_mut_ptr()) };
    ends
}

fn write_from(page: *mut u64) -> u64 {
    // SAFETY: 64 bytes of a mapped page; the kernel answers EFAULT where it cannot read them.
    verdict(unsafe { libc::write(pipe()[1], page.cast(), 64) }, 1)
}

/// Has the kernel read eight bytes of a page in this very process: their value, or `None` if it could not. It never kills: a
/// system call that copies from a page that is not there is told EFAULT.
pub fn peek(mapping: &Mapping, offset: usize) -> Option<u64> {
    let ends = pipe();
    let mut value = 0u64;
    // SAFETY: eight bytes of a mapped page; the kernel answers EFAULT where it cannot read them.
    let result = unsafe { libc::write(ends[1], mapping.at(offset).cast(), 8) };
    if result == 8 {
        // SAFETY: eight bytes into a local variable.
        unsafe { libc::read(ends[0], (&raw mut value).cast(), 8) };
    }
    for end in ends {
        // SAFETY: our own descriptors, closed once.
        unsafe { libc::close(end) };
    }
    (result == 8).then_some(value)
}

fn read_into(page: *mut u64) -> u64 {
    let ends = pipe();
    // SAFETY: 64 bytes of a local array.
    unsafe { libc::write(ends[1], [0u8; 64].as_ptr().cast(), 64) };
    // SAFETY: 64 bytes of a mapped page; the kernel answers EFAULT where it cannot write them.
    verdict(unsafe { libc::read(ends[0], page.cast(), 64) }, 1)
}

fn open_path(page: *mut u64) -> u64 {
    // SAFETY: the kernel looks for a string and answers EFAULT.
    verdict(unsafe { libc::open(page.cast(), libc::O_RDONLY) } as isize, 1)
}

fn futex(page: *mut u64) -> u64 {
    // SAFETY: FUTEX_WAIT only reads the word, and does not wait as long as it is another value.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            page,
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            0x1234_5678,
            0,
            0,
            0,
        )
    };
    verdict(result as isize, 1)
}

fn direct_write(page: *mut u64) -> u64 {
    // SAFETY: a constant path.
    let file =
        unsafe { libc::open(c"/tmp/direct".as_ptr(), libc::O_CREAT | libc::O_RDWR | libc::O_DIRECT, 0o600) };
    // SAFETY: one mapped page; the kernel answers EFAULT where it cannot read it.
    verdict(unsafe { libc::write(file, page.cast(), 4096) }, 1)
}

fn other_process(page: *mut u64) -> u64 {
    let mut value = 0u64;
    let local = libc::iovec { iov_base: (&raw mut value).cast(), iov_len: 8 };
    let remote = libc::iovec { iov_base: page.cast(), iov_len: 8 };
    let this = std::process::id() as libc::pid_t;
    // SAFETY: eight bytes of our own into eight bytes of our own, by way of the kernel.
    let got = unsafe { libc::process_vm_readv(this, &local, 1, &remote, 1, 0) };
    verdict(got, value)
}

/// Roads to a page that this process has mapped but must not reach.
pub const ROADS: &[Road] = &[
    Road { name: "read", expected: Expected::Bus, action: read },
    Road { name: "write", expected: Expected::Bus, action: write },
    Road { name: "atomic add", expected: Expected::Bus, action: atomic },
    Road { name: "execute", expected: Expected::Bus, action: execute },
    Road { name: "DC ZVA", expected: Expected::Bus, action: zero_line },
    Road { name: "DC CIVAC", expected: Expected::BusOrNothing, action: clean_line },
    Road { name: "write(2) from it", expected: Expected::Fault, action: write_from },
    Road { name: "read(2) into it", expected: Expected::Fault, action: read_into },
    Road { name: "open(2) of a name in it", expected: Expected::Fault, action: open_path },
    Road { name: "futex(2) on it", expected: Expected::Fault, action: futex },
    Road { name: "O_DIRECT write from it", expected: Expected::Fault, action: direct_write },
];

/// A road on which the kernel itself reads the page through its linear map, where Linux has no fix-up: with a PTE of
/// earlier times the thread that takes the road pays with its life (an oops). It holds no lock at that point. (A page
/// spliced into a pipe is another such road; its thread dies with the pipe's lock held and can never be waited for.)
pub const KERNEL_ROAD: Road =
    Road { name: "process_vm_readv", expected: Expected::Killed, action: other_process };

impl Road {
    /// Takes the road.
    ///
    /// # Errors
    /// If no child can be made.
    pub fn take(&self, mapping: &Mapping, offset: usize) -> io::Result<Outcome> {
        let page = mapping.at(offset);
        in_child(|| (self.action)(page))
    }

    /// Takes the road over a PTE of earlier times: the child has Linux map the page without touching it, then `between`
    /// takes the page away.
    ///
    /// # Errors
    /// If no child can be made, or those of `between`.
    pub fn take_stale(
        &self,
        mapping: &Mapping,
        offset: usize,
        between: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<Outcome> {
        let page = mapping.at(offset);
        // Shared mappings are not copied by fork: the child makes a PTE of its own.
        let prepare = || {
            let _ = mapping.populate(offset, 4096);
        };
        in_child_after(prepare, between, || (self.action)(page))
    }

    /// True if this is the end that the road must have.
    pub fn ends_well(&self, outcome: Outcome) -> bool {
        match (self.expected, outcome) {
            (Expected::Bus, Outcome::Signal(signal)) => signal == libc::SIGBUS,
            (Expected::BusOrNothing, Outcome::Signal(signal)) => signal == libc::SIGBUS,
            (Expected::BusOrNothing, Outcome::Value(value)) => value == 1,
            (Expected::Fault, Outcome::Value(value)) => value == EFAULT,
            // Without a PTE the kernel notices in time; with one it is an oops.
            (Expected::Killed, Outcome::Signal(_)) => true,
            (Expected::Killed, Outcome::Value(value)) => value == EFAULT,
            _ => false,
        }
    }

    /// True if the system call failed with EFAULT, and the child lived.
    pub fn is_efault(outcome: Outcome) -> bool {
        outcome == Outcome::Value(EFAULT)
    }

    /// The outcome in words.
    pub fn show(outcome: Outcome) -> String {
        match outcome {
            Outcome::Signal(libc::SIGBUS) => "SIGBUS".into(),
            Outcome::Signal(signal) => format!("killed by signal {signal}"),
            Outcome::Value(EFAULT) => "EFAULT".into(),
            Outcome::Value(OTHER) => "another error".into(),
            Outcome::Value(value) => format!("went through, value {value:#x}"),
        }
    }
}
