//! One file for firmware that loads one file: hypervisor, command line, RAM disk and kernel.
//!
//! ```text
//! 0                the hypervisor's image, filled up with zeros to its whole size in memory (.bss included)
//! S  (image size)  one page: the header below, and the host's command line
//!                  the RAM disk, at a page                                     (may be missing)
//!                  the kernel, at 2 MiB of the file, filled up to the size in memory that its own header says
//! ```
//!
//! The file is an arm64 Linux `Image` like the hypervisor alone. What tells it apart is the `image_size` of its `Image`
//! header: the packer sets it to the size of the whole file, so that boot loaders keep their hands off all of it, and the
//! hypervisor, which knows its own size, sees from it that something follows. Memory behind an image that is not bundled
//! is never looked at: an old bundle may lie there.
//!
//! The header, little-endian:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | [`MAGIC`], the format's version in its last byte |
//! | 8 | 8 | size of the bundle, from the header's first byte to the file's end |
//! | 16 | 16 | kernel: offset from the header, bytes |
//! | 32 | 16 | RAM disk: offset, bytes; both 0 without one |
//! | 48 | 8 | bytes of the command line, which stands at [`ARGUMENTS`]; 0 leaves the one in the device tree |
//! | 56 | 32 | SHA-256 of this page with these 32 bytes left out, then the RAM disk, then the kernel |
//! | 88 | 40 | zero |
//!
//! The digest finds a file that was cut or went bad on its card. It is no signature: who can write the card can write
//! the digest.

use core::fmt;
use core::ops::Range;

/// The first bytes of the header.
pub const MAGIC: &[u8; 8] = b"TENUREB\x01";
/// Bytes of the header's page, command line included.
pub const PAGE: usize = 4096;
/// Where the command line starts.
pub const ARGUMENTS: usize = 128;
/// Where the digest stands.
pub const DIGEST: Range<usize> = 56..88;
/// Alignment of the kernel in the file (Linux, Documentation/arch/arm64/booting.rst).
pub const KERNEL_ALIGN: u64 = 2 << 20;
/// Where `image_size` stands in an arm64 Linux `Image`.
pub const IMAGE_SIZE: Range<usize> = 16..24;
/// More than any bundle needs.
const LIMIT: u64 = 2 << 30;
/// The end of the header's fields: zeros up to [`ARGUMENTS`].
const FIELDS: usize = 88;

/// A part of the bundle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Bytes from the header's first.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

impl Part {
    fn end(self) -> Option<u64> {
        self.offset.checked_add(self.size)
    }
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bundle<'a> {
    /// Bytes from the header's first to the end.
    pub size: u64,
    /// The kernel.
    pub kernel: Part,
    /// The RAM disk.
    pub ramdisk: Option<Part>,
    /// The command line, if the bundle brings one.
    pub arguments: Option<&'a str>,
}

/// Why a bundle is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Something follows the image, but it does not begin with [`MAGIC`].
    Magic,
    /// The size in the header is not that which the `Image` header leaves for it: cut, or packed for another image.
    Size,
    /// A part is not inside the bundle, not aligned, or lies on another.
    Part,
    /// The command line is too long, or no text.
    Arguments,
    /// The bytes behind the fields are not zero: of a newer format.
    NotZero,
    /// The digest is not that of the contents.
    Digest,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Magic => "something follows the hypervisor's image, but no bundle header",
            Self::Size => "its size is not that of the file",
            Self::Part => "a part of it lies outside, or is not aligned",
            Self::Arguments => "its command line is no text, or too long",
            Self::NotZero => "a field is set that this version does not know",
            Self::Digest => "its SHA-256 is wrong: the file is damaged",
        })
    }
}

/// Reads the header's page; `size` is what the `Image` header leaves for the bundle.
///
/// # Errors
/// If anything in it is not as the format demands. The digest is the caller's to check, see [`digested`].
pub fn parse(page: &[u8; PAGE], size: u64) -> Result<Bundle<'_>, Fault> {
    if &page[..MAGIC.len()] != MAGIC {
        return Err(Fault::Magic);
    }
    if page[FIELDS..ARGUMENTS].iter().any(|&byte| byte != 0) {
        return Err(Fault::NotZero);
    }
    let bundle = Bundle {
        size: number(page, 8),
        kernel: Part { offset: number(page, 16), size: number(page, 24) },
        ramdisk: Some(Part { offset: number(page, 32), size: number(page, 40) })
            .filter(|part| *part != Part::default()),
        arguments: arguments(page, number(page, 48))?,
    };
    if bundle.size != size || size > LIMIT {
        return Err(Fault::Size);
    }
    bundle.check_parts()?;
    Ok(bundle)
}

impl Bundle<'_> {
    fn check_parts(&self) -> Result<(), Fault> {
        let inside = |part: Part| {
            let end = part.end().filter(|&end| end <= self.size).ok_or(Fault::Part)?;
            let aligned = part.offset.is_multiple_of(PAGE as u64);
            (aligned && part.size > 0 && part.offset >= PAGE as u64).then_some(end).ok_or(Fault::Part)
        };
        inside(self.kernel)?;
        // The packer puts the RAM disk first.
        match self.ramdisk {
            Some(disk) if inside(disk)? > self.kernel.offset => Err(Fault::Part),
            _ => Ok(()),
        }
    }

    /// The header's page, with `digest` in its place.
    ///
    /// # Errors
    /// If [`parse`] would refuse it.
    pub fn page(&self, digest: [u8; 32]) -> Result<[u8; PAGE], Fault> {
        let mut page = [0; PAGE];
        let arguments = self.arguments.unwrap_or_default();
        let disk = self.ramdisk.unwrap_or_default();
        page[..MAGIC.len()].copy_from_slice(MAGIC);
        let numbers =
            [self.size, self.kernel.offset, self.kernel.size, disk.offset, disk.size, arguments.len() as u64];
        for (place, number) in page[8..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        page[DIGEST].copy_from_slice(&digest);
        let place = page.get_mut(ARGUMENTS..ARGUMENTS + arguments.len()).ok_or(Fault::Arguments)?;
        place.copy_from_slice(arguments.as_bytes());
        parse(&page, self.size)?;
        Ok(page)
    }
}

/// What the digest is taken of first: the header's page in two parts, without the digest. RAM disk and kernel follow; what
/// lies between them is not looked at, for memory may have found another use for it when the digest is taken.
pub fn digested(page: &[u8; PAGE]) -> [&[u8]; 2] {
    [&page[..DIGEST.start], &page[DIGEST.end..]]
}

fn number(page: &[u8; PAGE], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&page[at..at + 8]);
    u64::from_le_bytes(bytes)
}

fn arguments(page: &[u8; PAGE], len: u64) -> Result<Option<&str>, Fault> {
    if len == 0 {
        return Ok(None);
    }
    let len = usize::try_from(len).map_err(|_| Fault::Arguments)?;
    let end = ARGUMENTS.checked_add(len).ok_or(Fault::Arguments)?;
    let text = core::str::from_utf8(page.get(ARGUMENTS..end).ok_or(Fault::Arguments)?);
    text.map(Some).ok().filter(|text| !text.is_some_and(|t| t.contains('\0'))).ok_or(Fault::Arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: Bundle<'_> = Bundle {
        size: 0x60_0000,
        kernel: Part { offset: 0x20_0000, size: 0x40_0000 },
        ramdisk: Some(Part { offset: 0x1000, size: 0x1234 }),
        arguments: Some("console=ttyS1"),
    };

    /// The page of `WHOLE` with one number changed.
    fn with(at: usize, value: u64) -> Result<(), Fault> {
        let mut page = WHOLE.page([7; 32]).unwrap();
        page[at..at + 8].copy_from_slice(&value.to_le_bytes());
        parse(&page, WHOLE.size).map(|_| ())
    }

    #[test]
    fn what_was_written_is_read() {
        let page = WHOLE.page([7; 32]).unwrap();
        assert_eq!(parse(&page, WHOLE.size), Ok(WHOLE));
        assert_eq!(page[DIGEST], [7; 32]);
        let bare = Bundle { ramdisk: None, arguments: None, ..WHOLE };
        assert_eq!(parse(&bare.page([0; 32]).unwrap(), bare.size), Ok(bare));
    }

    #[test]
    fn another_size_is_refused() {
        let page = WHOLE.page([7; 32]).unwrap();
        assert_eq!(parse(&page, WHOLE.size - 1), Err(Fault::Size));
        assert_eq!(with(8, u64::MAX), Err(Fault::Size));
    }

    #[test]
    fn parts_outside_misaligned_or_on_each_other_are_refused() {
        for (at, value) in [
            (16, 0x20_0001),    // kernel: not at a page
            (16, u64::MAX),     // wraps
            (16, 0),            // on the header
            (24, 0x40_0001),    // longer than the bundle
            (24, 0),            // empty
            (24, u64::MAX - 1), // wraps
            (32, 0),            // RAM disk: on the header
            (32, 0x20_0000),    // on the kernel
            (40, 0x1f_f001),    // into the kernel
            (40, 0),            // empty, but somewhere
        ] {
            assert_eq!(with(at, value), Err(Fault::Part), "{value:#x} at {at}");
        }
    }

    #[test]
    fn a_command_line_that_is_no_text_is_refused() {
        assert_eq!(with(48, 4096), Err(Fault::Arguments));
        assert_eq!(with(48, u64::MAX), Err(Fault::Arguments));
        // One byte more than was written: a NUL.
        assert_eq!(with(48, 14), Err(Fault::Arguments));
        let mut page = WHOLE.page([7; 32]).unwrap();
        page[ARGUMENTS] = 0xff;
        assert_eq!(parse(&page, WHOLE.size), Err(Fault::Arguments));
        let long = [b'x'; PAGE];
        let long = Bundle { arguments: core::str::from_utf8(&long).ok(), ..WHOLE };
        assert_eq!(long.page([0; 32]), Err(Fault::Arguments));
    }

    #[test]
    fn what_is_no_bundle_or_a_newer_one_is_refused() {
        assert_eq!(parse(&[0; PAGE], WHOLE.size), Err(Fault::Magic));
        assert_eq!(with(88, 1), Err(Fault::NotZero));
        assert_eq!(with(0, u64::from_le_bytes(*b"TENUREB\x02")), Err(Fault::Magic));
    }

    #[test]
    fn the_digest_covers_all_but_itself() {
        let page = WHOLE.page([7; 32]).unwrap();
        let parts = digested(&page);
        assert_eq!(parts[0].len() + parts[1].len() + 32, PAGE);
        assert!(!parts.concat().contains(&7));
    }
}
