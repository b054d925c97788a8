//! The host's kernel: an arm64 Linux `Image`, put where its header wants it.
//!
//! Source: Linux, Documentation/arch/arm64/booting.rst. A bare-metal host of the tests is an `Image` too.

use super::{BLOCK, Layout};
use crate::place::find_free;
use crate::platform::Region;
use crate::refusal::{Refusal, Why};

const MAGIC: &[u8] = b"ARM\x64";
const GIB: u64 = 1 << 30;
/// Kernel and RAM disk must lie in a window of this size, aligned to 1 GiB.
const WINDOW: u64 = 32 * GIB;

/// What the header of an `Image` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelHeader {
    /// Bytes from a multiple of 2 MiB to the image's first.
    pub text_offset: u64,
    /// Bytes that the kernel needs, its `.bss` included.
    pub image_size: u64,
}

impl KernelHeader {
    /// Bytes of the header.
    pub const SIZE: usize = 64;

    /// Reads the header at the start of `image`; `None` if it is none.
    pub fn parse(image: &[u8]) -> Option<Self> {
        let word = |at: usize| image.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        if image.get(56..60) != Some(MAGIC) {
            return None;
        }
        let (text_offset, image_size) = (word(8)?, word(16)?);
        // An offset is below the alignment; a size of 0 is a kernel of before 2014.
        (text_offset < BLOCK && (1..1 << 32).contains(&image_size))
            .then_some(Self { text_offset, image_size })
    }
}

impl Layout {
    /// Decides where the kernel of `module` runs: where it is, if it may run there, else at a place to copy it to.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn place_kernel<'a>(&mut self, module: Region, header: KernelHeader) -> Result<Region, Refusal<'a>> {
        let size = header.image_size.max(module.size);
        let place = match Region::new(module.base, size) {
            Some(here) if self.may_run_at(here, module, header) && self.fits_beside_wishes(here) => here,
            _ => self.room_for_kernel(header.text_offset, size)?,
        };
        self.take(place)?;
        self.kernel_tail = Region::default();
        Ok(place)
    }

    fn may_run_at(&self, here: Region, module: Region, header: KernelHeader) -> bool {
        let aligned =
            here.base.checked_sub(header.text_offset).is_some_and(|base| base.is_multiple_of(BLOCK));
        let others = self.taken.iter().filter(|t| **t != module.pages());
        aligned
            && self.ram.iter().any(|bank| bank.contains(here))
            && !others.clone().any(|t| t.overlaps(here))
            && self.near_ramdisk(here)
    }

    fn room_for_kernel<'a>(&mut self, text_offset: u64, size: u64) -> Result<Region, Refusal<'a>> {
        let needed = text_offset + size;
        let no_room = Refusal::new("memory", "reg", Why::NoRoom(needed));
        // The lowest place; if that is too far from the RAM disk, the lowest in its window.
        let lowest = self.free(needed, BLOCK, 0).ok_or(no_room)?;
        let window = self.ramdisk.map_or(0, |disk| disk.end().next_multiple_of(GIB).saturating_sub(WINDOW));
        let place = if self.near_ramdisk(lowest) {
            lowest
        } else {
            find_free(&self.ram, &self.taken, needed, BLOCK, window).unwrap_or(lowest)
        };
        Ok(Region { base: place.base + text_offset, size })
    }

    /// Whether Linux can reach the RAM disk from a kernel at `kernel`.
    fn near_ramdisk(&self, kernel: Region) -> bool {
        self.ramdisk.is_none_or(|disk| {
            let start = kernel.base.min(disk.base) & !(GIB - 1);
            let end = kernel.end().max(disk.end()).next_multiple_of(GIB);
            end - start <= WINDOW
        })
    }
}
