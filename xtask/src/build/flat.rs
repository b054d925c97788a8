//! From the linker's ELF file to the raw image that boot loaders start.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use object::elf::R_AARCH64_RELATIVE;
use object::{Object, ObjectSegment, RelocationFlags};

use crate::ui::Outcome;

/// Where the magic number of the arm64 Linux `Image` header stands, and what it is (Linux, arch/arm64/booting).
const MAGIC: (usize, &[u8; 4]) = (0x38, b"ARM\x64");
/// A hypervisor larger than this has gone wrong.
const LIMIT: u64 = 64 << 20;

/// Writes the loadable bytes of `elf` to `image`, from the lowest address on.
///
/// # Errors
/// If the file is no ELF file for address 0, holds a relocation that the image cannot apply to itself at its start, or
/// does not begin with the `Image` header.
pub fn write(elf: &Path, image: &Path) -> Result<Outcome> {
    let data = fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
    let flat = flatten(&data).with_context(|| format!("{} cannot become a raw image", elf.display()))?;
    let magic = flat.get(MAGIC.0..MAGIC.0 + MAGIC.1.len());
    ensure!(magic == Some(MAGIC.1), "{} does not begin with the arm64 Linux Image header", elf.display());
    let text = format!("{} ({} KiB)", image.display(), flat.len().div_ceil(1024));
    if fs::read(image).is_ok_and(|old| old == flat) {
        return Ok(Outcome::Present(text));
    }
    fs::write(image, flat).with_context(|| format!("cannot write {}", image.display()))?;
    Ok(Outcome::Done(text))
}

fn flatten(data: &[u8]) -> Result<Vec<u8>> {
    let file = object::File::parse(data).context("not an ELF file")?;
    for (address, relocation) in file.dynamic_relocations().into_iter().flatten() {
        let RelocationFlags::Elf { r_type } = relocation.flags() else {
            bail!("relocations of another format")
        };
        ensure!(
            r_type == R_AARCH64_RELATIVE,
            "relocation of type {r_type:?} at {address:#x}: only RELATIVE can be applied"
        );
    }
    // The file part of each segment: what has no contents in the file (.bss) is cleared by the image itself.
    let mut flat = Vec::new();
    for segment in file.segments() {
        let bytes = segment.data()?;
        if bytes.is_empty() {
            continue;
        }
        let end = segment.address() + bytes.len() as u64;
        ensure!(end <= LIMIT, "a segment at {:#x}: the image is linked at 0", segment.address());
        if (flat.len() as u64) < end {
            flat.resize(end as usize, 0);
        }
        flat[segment.address() as usize..end as usize].copy_from_slice(bytes);
    }
    ensure!(!flat.is_empty(), "nothing to load");
    Ok(flat)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_elf_file_is_refused() {
        assert!(flatten(b"MZ nonsense").is_err());
    }

    #[test]
    fn the_running_program_is_not_linked_at_zero_or_has_foreign_relocations() {
        // A program of this machine has relocations (or an architecture) that the image could not apply.
        let data = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(flatten(&data).is_err());
    }
}
