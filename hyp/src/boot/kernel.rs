//! The host's kernel: an arm64 Linux `Image`, put where its header wants it.
//!
//! Source: Linux, Documentation/arch/arm64/booting.rst. A bare-metal host of the tests is an `Image` too.
#![allow(unsafe_code)]

use tenure_arch::cache;
use tenure_dt::{Region, place};

use super::memory::{NoPlan, Plan};
use super::{bytes, bytes_mut};

const ALIGN: u64 = 2 << 20;
const MAGIC: &[u8] = b"ARM\x64";

/// What the header says.
struct Header {
    text_offset: u64,
    image_size: u64,
}

impl Header {
    fn parse(image: &[u8]) -> Option<Self> {
        let word = |at: usize| image.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        if image.get(56..60) != Some(MAGIC) {
            return None;
        }
        let (text_offset, image_size) = (word(8)?, word(16)?);
        // An offset is below the alignment; a size of 0 is a kernel of before 2014.
        (text_offset < ALIGN && (1..1 << 32).contains(&image_size))
            .then_some(Self { text_offset, image_size })
    }
}

/// Puts the kernel of `module` in place: left where it is if it may run there, else copied. Returns its memory; its
/// first byte is its entry point.
pub fn place(module: Region, plan: &Plan) -> Result<Region, NoPlan> {
    // SAFETY: a module that the boot loader put in RAM; nobody writes it.
    let image = unsafe { bytes(module) };
    let header = Header::parse(image).ok_or(NoPlan::NotAnImage)?;
    let size = header.image_size.max(module.size);
    let here = Region::new(module.base, size).ok_or(NoPlan::NotAnImage)?;
    let others = || plan.taken.iter().filter(|t| **t != module.pages());
    let aligned = module.base.checked_sub(header.text_offset).is_some_and(|base| base.is_multiple_of(ALIGN));
    let fits = plan.ram.iter().any(|bank| bank.contains(here)) && !others().any(|t| t.overlaps(here));
    if aligned && fits {
        return Ok(here);
    }
    let needed = header.text_offset + size;
    let free = place::find_free(&plan.ram, &plan.taken, needed, ALIGN, 0).ok_or(NoPlan::NoRoom(needed))?;
    let target = Region { base: free.base + header.text_offset, size };
    let file = Region { base: target.base, size: module.size };
    // SAFETY: free RAM by the plan, which the host has not got yet.
    unsafe { bytes_mut(file) }.copy_from_slice(image);
    // The kernel starts with its caches off.
    cache::clean_invalidate(file.base as usize, file.size as usize);
    Ok(target)
}
