//! The host's root file system: a `newc` archive with busybox, the driver, the programs and `/init`.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};

use crate::setup::Machine;
use crate::setup::debs::Flavour;
use crate::{build, paths};

/// The first program; it reads what to do from the kernel's command line.
const INIT: &str = include_str!("../assets/init");

/// What goes in beside busybox and `/init`.
#[derive(Clone, Copy, Default)]
pub struct Contents<'a> {
    /// The Linux driver for this kernel as `/lib/tenure.ko`.
    pub driver: Option<Flavour>,
    /// The programs of tests/story in `/bin`, and the guest that they start as `/lib/guest-basic`.
    pub programs: bool,
    /// A kernel and an archive for the kernel to start after itself, as `/lib/kernel` and `/lib/ramdisk`.
    pub next: Option<(&'a Path, &'a Path)>,
}

/// Packs an archive into `target/NAME`.
///
/// # Errors
/// If a file cannot be read or the archive cannot be written.
pub fn pack(machine: &Machine, name: &str, contents: Contents<'_>) -> Result<std::path::PathBuf> {
    let path = paths::target().join(name);
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut archive = Archive::new(BufWriter::new(file))?;
    archive.file("init", 0o755, INIT.as_bytes())?;
    archive.file("bin/busybox", 0o755, &read(&machine.busybox)?)?;
    if let Some(flavour) = contents.driver {
        archive.file("lib/tenure.ko", 0o644, &read(&build::module(flavour))?)?;
    }
    if contents.programs {
        for program in build::programs()? {
            let name =
                program.file_name().and_then(|name| name.to_str()).context("a program without a name")?;
            archive.file(&format!("bin/{name}"), 0o755, &read(&program)?)?;
        }
    }
    if contents.programs {
        archive.file("lib/guest-basic", 0o644, &read(&build::bare("guest-basic"))?)?;
    }
    if let Some((kernel, ramdisk)) = contents.next {
        archive.file("lib/kernel", 0o644, &read(kernel)?)?;
        archive.file("lib/ramdisk", 0o644, &read(ramdisk)?)?;
    }
    let scripts = paths::root().join("tests/linux");
    for entry in fs::read_dir(&scripts).into_iter().flatten().flatten() {
        if entry.path().is_file() {
            archive.file(
                &format!("tests/{}", entry.file_name().to_string_lossy()),
                0o755,
                &read(&entry.path())?,
            )?;
        }
    }
    archive.finish()?;
    Ok(path)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A `newc` archive that is being written.
struct Archive<W: Write> {
    out: W,
    /// The number of the next file.
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// Begins with the folders and the console, without which the kernel cannot show what `/init` says.
    fn new(out: W) -> io::Result<Self> {
        let mut archive = Self { out, inode: 1 };
        for folder in ["bin", "dev", "lib", "proc", "sys", "tests", "tmp"] {
            archive
                .entry(Builder::new(folder).mode(0o755).set_mode_file_type(ModeFileType::Directory), &[])?;
        }
        let console = Builder::new("dev/console").mode(0o600).set_mode_file_type(ModeFileType::Char);
        archive.entry(console.rdev_major(5).rdev_minor(1), &[])?;
        Ok(archive)
    }

    fn file(&mut self, name: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        self.entry(Builder::new(name).mode(mode).set_mode_file_type(ModeFileType::Regular), contents)
    }

    fn entry(&mut self, builder: Builder, contents: &[u8]) -> io::Result<()> {
        let size = u32::try_from(contents.len()).map_err(io::Error::other)?;
        let mut writer = builder.ino(self.inode).nlink(1).write(&mut self.out, size);
        writer.write_all(contents)?;
        writer.finish()?;
        self.inode += 1;
        Ok(())
    }

    fn finish(self) -> io::Result<W> {
        let mut out = trailer(self.out)?;
        out.flush()?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;

    #[test]
    fn archives_can_be_read_back() {
        let mut archive = Archive::new(Vec::new()).unwrap();
        archive.file("bin/x", 0o755, b"abc").unwrap();
        let bytes = archive.finish().unwrap();
        assert!(bytes.starts_with(b"070701"));
        let mut rest = &bytes[..];
        let mut seen = Vec::new();
        loop {
            let mut reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut contents = Vec::new();
            io::Read::read_to_end(&mut reader, &mut contents).unwrap();
            seen.push((reader.entry().name().to_owned(), reader.entry().mode(), contents));
            rest = reader.finish().unwrap();
        }
        assert!(seen.contains(&("bin/x".into(), 0o100_755, b"abc".to_vec())));
        assert!(seen.iter().any(|(name, mode, _)| name == "dev/console" && *mode == 0o020_600));
    }

    #[test]
    fn init_ends_with_a_line_that_tests_can_wait_for() {
        assert!(INIT.contains("init: $run ended with $status"));
    }
}
