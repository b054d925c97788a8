//! The header of the core file that a crash kernel shows as /proc/vmcore: which memory there was, and the notes.

use std::fs;

use anyhow::{Context, Result};

use super::Range;

/// `ET_CORE`, `EM_AARCH64`, `PT_LOAD`, `PT_NOTE`, and sizes of ELF64's headers.
const CORE: u16 = 4;
const AARCH64: u16 = 183;
const LOAD: u32 = 1;
const NOTE: u32 = 4;
const HEADER: u64 = 64;
const ENTRY: u16 = 56;

/// The header: the notes of every CPU and of the kernel, and all of RAM but what the crash kernel runs in.
///
/// # Errors
/// If the kernel does not say where its notes are.
pub fn core_header(ram: &[Range], crash: &Range) -> Result<Vec<u8>> {
    let mut entries = Vec::new();
    for cpu in 0.. {
        let dir = format!("/sys/devices/system/cpu/cpu{cpu}");
        let Ok(place) = fs::read_to_string(format!("{dir}/crash_notes")) else { break };
        let size = fs::read_to_string(format!("{dir}/crash_notes_size"))?;
        entries.push(entry(NOTE, u64::from_str_radix(place.trim(), 16)?, size.trim().parse()?));
    }
    let kernel = fs::read_to_string("/sys/kernel/vmcoreinfo").context("/sys/kernel/vmcoreinfo")?;
    let (place, size) = kernel.trim().split_once(' ').context("/sys/kernel/vmcoreinfo")?;
    let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16);
    entries.push(entry(NOTE, hex(place)?, hex(size)?));
    for range in without(ram, crash) {
        entries.push(entry(LOAD, range.start, range.end - range.start));
    }
    Ok(file(&entries))
}

/// The ranges without what is in `hole`.
fn without(ranges: &[Range], hole: &Range) -> Vec<Range> {
    let parts = |range: &Range| {
        let before = Range { start: range.start, end: range.end.min(hole.start) };
        let after = Range { start: range.start.max(hole.end), end: range.end };
        [before, after]
    };
    ranges.iter().flat_map(parts).filter(|range| range.start < range.end).collect()
}

fn entry(kind: u32, place: u64, size: u64) -> Vec<u8> {
    let mut entry = [kind.to_le_bytes(), 0u32.to_le_bytes()].concat();
    // Offset in the file, virtual address, physical address; size in the file, in memory; alignment.
    for value in [place, 0, place, size, size, 0] {
        entry.extend(value.to_le_bytes());
    }
    entry
}

fn file(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([CORE.to_le_bytes(), AARCH64.to_le_bytes()].concat());
    file.extend(1u32.to_le_bytes());
    for value in [0, HEADER, 0] {
        file.extend(value.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for value in [HEADER as u16, ENTRY, entries.len() as u16, 0, 0, 0] {
        file.extend(value.to_le_bytes());
    }
    entries.iter().for_each(|entry| file.extend(entry));
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crash_kernels_own_memory_is_left_out() {
        let ram = [Range { start: 0, end: 100 }, Range { start: 200, end: 300 }];
        let left = without(&ram, &Range { start: 40, end: 60 });
        let want = [(0, 40), (60, 100), (200, 300)].map(|(start, end)| Range { start, end });
        assert_eq!(left, want);
    }

    #[test]
    fn headers_have_the_sizes_that_they_tell() {
        let file = file(&[entry(LOAD, 0x4000_0000, 4096), entry(NOTE, 8, 16)]);
        assert_eq!(file.len() as u64, HEADER + 2 * u64::from(ENTRY));
        assert_eq!(file[56..58], 2u16.to_le_bytes());
    }
}
