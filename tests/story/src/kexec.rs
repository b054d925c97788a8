//! Loading another kernel by kexec_load(2): where its pieces go, and what it is told.
//!
//! (Debian's arm64 kernels have kexec_load only, which leaves to the caller what kexec_file_load would do: the device tree,
//! the header of the core file, and the few instructions that put the tree's address into x0.)
#![allow(unsafe_code)]
// Reason: kexec_load and reboot have no safe wrapper; each is one line with its argument.

mod core_file;
mod tree;

use std::ffi::c_long;
use std::{fs, io};

use anyhow::{Context, Result, ensure};

use core_file::core_header;

/// `KEXEC_ON_CRASH`, `KEXEC_ARCH_AARCH64` (linux/kexec.h).
const ON_CRASH: c_long = 1;
const AARCH64: c_long = 183 << 16;
/// `LINUX_REBOOT_*` (linux/reboot.h).
const MAGIC: [c_long; 2] = [0xfee1_dead, 672_274_793];
const COMMAND_KEXEC: c_long = 0x4558_4543;

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;

/// A range of physical memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// The byte past the last.
    pub end: u64,
}

/// `struct kexec_segment`.
#[repr(C)]
struct Segment {
    from: *const u8,
    bytes: usize,
    to: u64,
    size: usize,
}

/// When the kernel is to be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// By [`execute`].
    Asked,
    /// When this kernel panics, in the memory that `crashkernel=` keeps.
    Crash,
}

/// Ranges of /proc/iomem with this name, at the margin or below another.
fn ranges(iomem: &str, name: &str) -> Vec<Range> {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let range = |line: &str| {
        let (place, found) = line.trim_start().split_once(" : ")?;
        let (start, last) = place.split_once('-')?;
        (found == name).then_some(Range { start: hex(start)?, end: hex(last)? + 1 })
    };
    iomem.lines().filter_map(range).collect()
}

/// Size of a kernel in memory, from its `Image` header.
fn image_size(kernel: &[u8]) -> Option<u64> {
    let magic = kernel.get(56..60)? == b"ARM\x64";
    magic.then_some(u64::from_le_bytes(kernel.get(16..24)?.try_into().ok()?))
}

/// Puts the tree's address into x0, zeroes x1 to x3 and jumps to the kernel.
fn stub(tree: u64, kernel: u64) -> Vec<u8> {
    // ldr x0, 24; ldr x4, 28; mov x1, xzr; mov x2, xzr; mov x3, xzr; br x4
    let code: [u32; 6] = [0x5800_00c0, 0x5800_00e4, 0xaa1f_03e1, 0xaa1f_03e2, 0xaa1f_03e3, 0xd61f_0080];
    let code = code.iter().flat_map(|word| word.to_le_bytes());
    code.chain(tree.to_le_bytes()).chain(kernel.to_le_bytes()).collect()
}

/// Loads a kernel with its RAM disk and command line.
///
/// # Errors
/// If something cannot be read, there is no room, or the running kernel refuses.
pub fn load(kernel: &str, ramdisk: &str, words: &str, when: When) -> Result<()> {
    let kernel = fs::read(kernel).with_context(|| format!("cannot read {kernel}"))?;
    let ramdisk = fs::read(ramdisk).with_context(|| format!("cannot read {ramdisk}"))?;
    let board = fs::read("/sys/firmware/fdt").context("no device tree (/sys/firmware/fdt)")?;
    let iomem = fs::read_to_string("/proc/iomem").context("/proc/iomem")?;
    let ram = ranges(&iomem, "System RAM");
    let crash = ranges(&iomem, "Crash kernel");
    // In the place of this kernel, whose memory is no page that kexec_load could be given to copy from: each that lies where
    // another is to go costs it a look through all of its list.
    let ours = ranges(&iomem, "Kernel code").first().context("/proc/iomem has no addresses")?.start;
    let (room, start) = match when {
        When::Asked => {
            let holds = |range: &&Range| (range.start..range.end).contains(&ours);
            (ram.iter().find(holds).context("no System RAM")?, ours & !(BLOCK - 1))
        }
        When::Crash => {
            let room = crash.first().context("no memory is kept for a crash kernel (crashkernel=)")?;
            (room, room.start.next_multiple_of(BLOCK))
        }
    };
    let size = image_size(&kernel).context("the kernel has no Image header")?;
    let header = match when {
        When::Asked => Vec::new(),
        When::Crash => core_header(&ram, room)?,
    };

    let mut at = start;
    let mut place = |size: u64, align: u64| {
        let start = at.next_multiple_of(align);
        at = start + size;
        start
    };
    let kernel_at = place(size, BLOCK);
    let ramdisk_at = place(ramdisk.len() as u64, PAGE);
    let header_at = place(header.len() as u64, PAGE);
    let stub_at = place(PAGE, PAGE);
    let tree_at = place(board.len() as u64 + PAGE, PAGE);
    ensure!(at <= room.end, "{:#x} to {:#x} is too small", room.start, room.end);

    let cells = |start: u64, size: u64| [start.to_be_bytes(), size.to_be_bytes()].concat();
    let mut chosen = vec![
        ("bootargs", [words.as_bytes(), b"\0"].concat()),
        ("linux,initrd-start", ramdisk_at.to_be_bytes().to_vec()),
        ("linux,initrd-end", (ramdisk_at + ramdisk.len() as u64).to_be_bytes().to_vec()),
    ];
    if when == When::Crash {
        chosen.push(("linux,elfcorehdr", cells(header_at, header.len() as u64)));
        chosen.push(("linux,usable-memory-range", cells(room.start, room.end - room.start)));
    }
    let tree = tree::with_chosen(&board, &chosen).context("the device tree cannot be changed")?;
    ensure!(tree.len() as u64 <= board.len() as u64 + PAGE, "the device tree grows too much");

    let stub = stub(tree_at, kernel_at);
    let pieces = [
        (&kernel, kernel_at, size),
        (&ramdisk, ramdisk_at, 0),
        (&header, header_at, 0),
        (&stub, stub_at, 0),
        (&tree, tree_at, 0),
    ];
    let segments: Vec<Segment> = pieces
        .iter()
        .filter(|(bytes, ..)| !bytes.is_empty())
        .map(|(bytes, to, size)| Segment {
            from: bytes.as_ptr(),
            bytes: bytes.len(),
            to: *to,
            size: (bytes.len() as u64).max(*size).next_multiple_of(PAGE) as usize,
        })
        .collect();
    let flags = AARCH64 | if when == When::Crash { ON_CRASH } else { 0 };
    // SAFETY: the segments' buffers live until the call returns, and the kernel only reads them.
    let result =
        unsafe { libc::syscall(libc::SYS_kexec_load, stub_at, segments.len(), segments.as_ptr(), flags) };
    if result < 0 {
        return Err(io::Error::last_os_error()).context("kexec_load");
    }
    Ok(())
}

/// Jumps into the kernel that was loaded. Returns only if that fails.
pub fn execute() -> io::Error {
    let [magic, magic2] = MAGIC;
    // SAFETY: reboot(2) reads no memory of this program.
    unsafe { libc::syscall(libc::SYS_reboot, magic, magic2, COMMAND_KEXEC, 0) };
    io::Error::last_os_error()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_their_name() {
        let iomem = "40000000-403fffff : System RAM\n  40080000-4009ffff : Crash kernel\n50000000-5000ffff : reserved\n";
        assert_eq!(ranges(iomem, "System RAM"), [Range { start: 0x4000_0000, end: 0x4040_0000 }]);
        assert_eq!(ranges(iomem, "Crash kernel"), [Range { start: 0x4008_0000, end: 0x400a_0000 }]);
    }

    #[test]
    fn the_stub_finds_its_two_addresses() {
        let stub = stub(0x1111, 0x2222);
        assert_eq!(stub[24..32], 0x1111u64.to_le_bytes());
        assert_eq!(stub[32..40], 0x2222u64.to_le_bytes());
    }
}
