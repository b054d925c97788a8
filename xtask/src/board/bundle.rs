//! Packs hypervisor, command line, RAM disk and kernel into one file: the format is [`tenure_boards::bundle`]'s.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use tenure_boards::bundle::{Bundle, DIGEST, IMAGE_SIZE, KERNEL_ALIGN, PAGE, Part, digested};

/// Where the magic number of an arm64 Linux `Image` stands, and what it is.
const MAGIC: (usize, &[u8]) = (56, b"ARM\x64");

/// Writes a bundle of these files.
///
/// `arguments` empty leaves the command line to the firmware (cmdline.txt, `/chosen/bootargs`).
///
/// # Errors
/// If a file cannot be read, is no arm64 Linux `Image` where one is needed, or the command line is too long.
pub fn write(hypervisor: &Path, kernel: &Path, initrd: &Path, arguments: &str, file: &Path) -> Result<u64> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let bytes = pack(read(hypervisor)?, read(kernel)?, &read(initrd)?, arguments)
        .with_context(|| format!("cannot bundle {}", file.display()))?;
    fs::write(file, &bytes).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(bytes.len() as u64)
}

fn pack(mut image: Vec<u8>, mut kernel: Vec<u8>, disk: &[u8], arguments: &str) -> Result<Vec<u8>> {
    // Each is filled up to the memory that its header asks for.
    let base = image_size(&image).context("the hypervisor")?;
    image.resize(base, 0);
    let size = image_size(&kernel).context("the kernel")?.max(kernel.len());
    kernel.resize(size, 0);
    ensure!(base.is_multiple_of(PAGE), "the hypervisor's size is not in whole pages");

    let ramdisk = Part { offset: PAGE as u64, size: disk.len() as u64 };
    let at = (base as u64 + ramdisk.offset + ramdisk.size).next_multiple_of(KERNEL_ALIGN) - base as u64;
    let kernel_part = Part { offset: at, size: size as u64 };
    let bundle = Bundle {
        size: at + size as u64,
        kernel: kernel_part,
        ramdisk: Some(ramdisk),
        arguments: Some(arguments).filter(|text| !text.is_empty()),
    };
    let header = |digest| bundle.page(digest).map_err(|why| anyhow::anyhow!("{why}"));

    let mut file = image;
    file.extend(header([0; 32])?);
    file.extend(disk);
    file.resize(base + at as usize, 0);
    file.extend(kernel);
    let whole = file.len() as u64;
    file[IMAGE_SIZE].copy_from_slice(&whole.to_le_bytes());

    let mut digest = Sha256::new();
    let page = header([0; 32])?;
    digested(&page).iter().for_each(|part| digest.update(part));
    digest.update(disk);
    digest.update(&file[base + at as usize..]);
    file[base..][DIGEST].copy_from_slice(&digest.finalize());
    Ok(file)
}

/// `image_size` of an arm64 Linux `Image`.
fn image_size(image: &[u8]) -> Result<usize> {
    let magic = image.get(MAGIC.0..MAGIC.0 + MAGIC.1.len());
    ensure!(magic == Some(MAGIC.1), "it is no arm64 Linux Image");
    let bytes = image.get(IMAGE_SIZE).and_then(|bytes| bytes.try_into().ok()).context("it is too short")?;
    let size = usize::try_from(u64::from_le_bytes(bytes))?;
    ensure!((1..1 << 30).contains(&size), "its header says {size} bytes");
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenure_boards::bundle::parse;

    fn image(bytes: usize, size: u64) -> Vec<u8> {
        let mut image = vec![0xab; bytes];
        image[IMAGE_SIZE].copy_from_slice(&size.to_le_bytes());
        image[MAGIC.0..MAGIC.0 + 4].copy_from_slice(MAGIC.1);
        image
    }

    #[test]
    fn what_is_packed_is_what_the_hypervisor_reads() {
        let file = pack(image(5000, 0x3000), image(9000, 10_000), b"disk", "console=x").unwrap();
        let size = u64::from_le_bytes(file[IMAGE_SIZE].try_into().unwrap());
        assert_eq!(size, file.len() as u64);
        let page: &[u8; PAGE] = file[0x3000..0x4000].try_into().unwrap();
        let bundle = parse(page, size - 0x3000).unwrap();
        assert_eq!(bundle.arguments, Some("console=x"));
        let part = |part: Part| &file[0x3000 + part.offset as usize..][..part.size as usize];
        assert_eq!(part(bundle.ramdisk.unwrap()), b"disk");
        assert_eq!(part(bundle.kernel).len(), 10_000);
        assert_eq!((0x3000 + bundle.kernel.offset) % KERNEL_ALIGN, 0);
        assert_eq!(part(bundle.kernel)[MAGIC.0..MAGIC.0 + 4], *MAGIC.1);
        // The digest is that of the page without itself, the RAM disk, and the kernel.
        let mut all = page.to_vec();
        all.drain(DIGEST);
        all.extend(b"disk");
        all.extend(part(bundle.kernel));
        assert_eq!(Sha256::digest(&all)[..], page[DIGEST]);
    }

    #[test]
    fn the_memory_between_file_and_size_is_zero() {
        let file = pack(image(5000, 0x3000), image(9000, 10_000), b"", "").unwrap_err();
        // An initrd of no bytes is a mistake.
        assert!(format!("{file:#}").contains("lies outside"), "{file:#}");
        let file = pack(image(5000, 0x3000), image(9000, 10_000), b"x", "").unwrap();
        assert!(file[5000..0x3000].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn what_is_no_image_is_refused() {
        assert!(pack(vec![0; 5000], image(9000, 10_000), b"x", "").is_err());
        assert!(pack(image(5000, 0x3000), vec![0; 10], b"x", "").is_err());
        assert!(pack(image(5000, 0x3000), image(9000, 0), b"x", "").is_err());
        assert!(pack(image(5000, 0x3000), image(9000, 10_000), b"x", &"x".repeat(4096)).is_err());
    }
}
