//! The host's kernel and RAM disk behind the hypervisor's own image, in one file: see [`tenure_boards::bundle`].
//!
//! In two steps, because most of memory is not mapped at first: [`find`] reads the header's page, [`Found::check`] takes
//! the digest of it all once RAM is mapped.
#![allow(unsafe_code)]

use sha2::{Digest, Sha256};
use tenure_arch::stage1::{Attr, MapError};
use tenure_boards::bundle::{self, Bundle, DIGEST, Fault, PAGE, Part};
use tenure_dt::{Platform, Region};

use super::{bytes, image, mmu};

/// A bundle whose header is in order.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    header: &'static [u8; PAGE],
    bundle: Bundle<'static>,
    base: u64,
}

/// Why there is none to be used.
#[derive(Clone, Copy, Debug)]
pub enum NoBundle {
    /// It breaks the format.
    Fault(Fault),
    /// Its page cannot be mapped, or the image's size is beyond all memory.
    Map(MapError),
    /// The device tree names a kernel too.
    TwoKernels,
}

impl core::fmt::Display for NoBundle {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Fault(why) => write!(f, "the bundled file: {why}"),
            Self::Map(why) => write!(f, "the bundled file cannot be mapped: {why:?}"),
            Self::TwoKernels => write!(f, "two kernels: one is bundled, one is a module in /chosen"),
        }
    }
}

/// Looks for a bundle behind the image: there is one if the `Image` header says that the file goes on.
///
/// # Errors
/// If there is something that is no bundle.
pub fn find() -> Result<Option<Found>, NoBundle> {
    let image = image::whole();
    // SAFETY: the first bytes of the image, mapped, which nobody writes.
    let head = unsafe { bytes(Region { base: image.base, size: bundle::IMAGE_SIZE.end as u64 }) };
    let size = head.get(bundle::IMAGE_SIZE).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let size = match size.checked_sub(image.size) {
        None | Some(0) => return Ok(None),
        Some(size) => size,
    };
    let page = Region::new(image.end(), PAGE as u64).ok_or(NoBundle::Map(MapError::TooHigh))?;
    mmu::map(page, Attr::ReadOnly, None).map_err(NoBundle::Map)?;
    // SAFETY: memory that the boot loader filled, mapped just now; nobody writes it before the host runs.
    let header = unsafe { bytes(page) };
    let header: &[u8; PAGE] = header.try_into().map_err(|_| NoBundle::Fault(Fault::Size))?;
    let bundle = bundle::parse(header, size).map_err(NoBundle::Fault)?;
    Ok(Some(Found { header, bundle, base: page.base }))
}

impl Found {
    fn region(&self, part: Part) -> Region {
        // `parse` keeps every part inside a size that `find` saw to lie below the end of the address space.
        Region { base: self.base.saturating_add(part.offset), size: part.size }
    }

    /// Puts what is bundled in its place among what the device tree says.
    ///
    /// # Errors
    /// If the tree has a kernel of its own.
    pub fn offer(&self, platform: &mut Platform<'static>) -> Result<(), NoBundle> {
        if platform.kernel.is_some() {
            return Err(NoBundle::TwoKernels);
        }
        platform.kernel = Some(self.region(self.bundle.kernel));
        // Firmware may bring a RAM disk of its own (`initramfs` of config.txt) and a command line (cmdline.txt).
        platform.ramdisk = self.bundle.ramdisk.map(|disk| self.region(disk)).or(platform.ramdisk);
        platform.bootargs = self.bundle.arguments.or(platform.bootargs);
        Ok(())
    }

    /// The page of the header, in which the command line stands.
    pub fn page(&self) -> Region {
        Region { base: self.base, size: PAGE as u64 }
    }

    /// Bytes of it all.
    pub fn size(&self) -> u64 {
        self.bundle.size
    }

    /// Takes the digest. RAM must be mapped, and the layout of memory have found the parts in it.
    ///
    /// # Errors
    /// If the contents are not those that were packed.
    pub fn check(&self) -> Result<(), NoBundle> {
        let mut digest = Sha256::new();
        for part in bundle::digested(self.header) {
            digest.update(part);
        }
        for part in self.bundle.ramdisk.into_iter().chain([self.bundle.kernel]) {
            // SAFETY: RAM that the boot loader filled and the layout gave to nobody else.
            digest.update(unsafe { bytes(self.region(part)) });
        }
        match digest.finalize()[..] == self.header[DIGEST] {
            true => Ok(()),
            false => Err(NoBundle::Fault(Fault::Digest)),
        }
    }
}
