//! What comes from Debian into the cache: arm64 kernels, their headers ready for building modules, busybox.
//!
//! Each is unpacked beside its place and moved there when it is complete, with a file `release` written first, so that
//! an interrupted set-up leaves nothing that looks done.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::KERNEL_SERIES;
use super::apt::Apt;
use crate::ui::{self, Outcome};

/// The folder of busybox in the cache.
pub const BUSYBOX_DIR: &str = "busybox";

/// The folder of U-Boot in the cache.
pub const U_BOOT_DIR: &str = "u-boot-qemu";

/// Debian's flavours of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// For virtual machines: small, and all that QEMU's `virt` needs.
    Cloud,
    /// For boards: every driver, and the device trees of all boards that Linux knows.
    Full,
}

impl Flavour {
    /// Debian's name of it, which ends the kernel's release.
    fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud-arm64",
            Self::Full => "arm64",
        }
    }

    /// Its folder in the cache: `Image`, and for [`Flavour::Full`] `dtbs/`.
    pub fn kernel_dir(self) -> &'static str {
        match self {
            Self::Cloud => "kernel-6.12-cloud",
            Self::Full => "kernel-6.12-full",
        }
    }

    /// The folder of its headers in the cache: `build/` in it is for `make -C`.
    pub fn headers_dir(self) -> &'static str {
        match self {
            Self::Cloud => "headers-6.12-cloud",
            Self::Full => "headers-6.12-full",
        }
    }

    /// How a step's line names it.
    fn title(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Full => "board",
        }
    }
}

/// The version that stands in a folder of the cache.
///
/// # Errors
/// If the folder is not complete.
pub fn release(dir: &Path) -> Result<String> {
    let file = dir.join("release");
    Ok(fs::read_to_string(&file)
        .with_context(|| format!("cannot read {}", file.display()))?
        .trim()
        .to_owned())
}

/// Fetches Debian's kernel of a flavour; for boards the device trees too.
///
/// # Errors
/// If no suite within reach has the series, or it cannot be fetched.
pub fn kernel(apt: &Apt, cache: &Path, flavour: Flavour, verbose: bool) -> Result<()> {
    let name = format!("Debian's {KERNEL_SERIES} arm64 {} kernel", flavour.title());
    place(cache, flavour.kernel_dir(), &name, verbose, |into, spinner| {
        apt.update(spinner)?;
        let release = kernel_release(apt, flavour)?;
        apt.unpack(&[format!("linux-image-{release}:arm64")], &into.join("root"), spinner)?;
        fs::copy(into.join(format!("root/boot/vmlinuz-{release}")), into.join("Image"))
            .context("the package holds no kernel image")?;
        if flavour == Flavour::Full {
            let trees = format!("root/usr/lib/linux-image-{release}");
            ensure!(into.join(&trees).is_dir(), "the package holds no device trees ({trees})");
            std::os::unix::fs::symlink(trees, into.join("dtbs"))?;
            // Half a gigabyte that nothing here loads.
            fs::remove_dir_all(into.join("root/lib/modules")).context("the package holds no modules")?;
        }
        Ok(release)
    })
}

/// Fetches the headers of the kernel in the cache and makes them fit for building modules outside `/usr/src`.
///
/// # Errors
/// If they cannot be fetched, or do not look as expected.
pub fn headers(apt: &Apt, cache: &Path, flavour: Flavour, verbose: bool) -> Result<()> {
    let release = release(&cache.join(flavour.kernel_dir()))?;
    let dir = cache.join(flavour.headers_dir());
    if self::release(&dir).is_ok_and(|found| found != release) {
        fs::remove_dir_all(dir)?;
    }
    let name = format!("the {} kernel's headers", flavour.title());
    place(cache, flavour.headers_dir(), &name, verbose, |into, spinner| {
        apt.update(spinner)?;
        let ending = format!("-{}", flavour.name());
        let abi = release.strip_suffix(&ending).context("the kernel's release has no flavour")?;
        let common = format!("linux-headers-{abi}-common");
        let package = format!("linux-headers-{release}");
        // The tools in linux-kbuild run on this machine, so they come in its own architecture.
        apt.unpack(
            &[format!("{package}:arm64"), common.clone(), format!("linux-kbuild-{abi}")],
            into,
            spinner,
        )?;
        let makefile = into.join("usr/src").join(&package).join("Makefile");
        fs::write(&makefile, relocated(&fs::read_to_string(&makefile)?, &common)?)?;
        std::os::unix::fs::symlink(Path::new("usr/src").join(&package), into.join("build"))?;
        Ok(release.clone())
    })
}

/// Fetches a static arm64 busybox.
///
/// # Errors
/// If it cannot be fetched.
pub fn busybox(apt: &Apt, cache: &Path, verbose: bool) -> Result<()> {
    place(cache, BUSYBOX_DIR, "busybox for arm64", verbose, |into, spinner| {
        apt.update(spinner)?;
        apt.unpack(&["busybox-static:arm64".to_owned()], &into.join("root"), spinner)?;
        let found = ["root/bin/busybox", "root/usr/bin/busybox"].map(|path| into.join(path));
        let busybox = found.iter().find(|file| file.exists()).context("the package holds no busybox")?;
        fs::copy(busybox, into.join("busybox"))?;
        Ok("static".to_owned())
    })
}

/// Fetches U-Boot for QEMU's `virt`: `u-boot.bin`.
///
/// # Errors
/// If it cannot be fetched.
pub fn u_boot(apt: &Apt, cache: &Path, verbose: bool) -> Result<()> {
    place(cache, U_BOOT_DIR, "Debian's U-Boot for QEMU", verbose, |into, spinner| {
        apt.update(spinner)?;
        // For all architectures in one package.
        apt.unpack(&["u-boot-qemu".to_owned()], &into.join("root"), spinner)?;
        let found = into.join("root/usr/lib/u-boot/qemu_arm64/u-boot.bin");
        fs::copy(found, into.join("u-boot.bin")).context("the package holds no U-Boot for arm64")?;
        Ok("u-boot.bin".to_owned())
    })
}

/// Fills a folder of the cache if it is not complete yet.
fn place(
    cache: &Path,
    dir: &str,
    name: &str,
    verbose: bool,
    fill: impl FnOnce(&Path, &ui::Spinner) -> Result<String>,
) -> Result<()> {
    ui::step(name, verbose, |spinner| {
        let place: PathBuf = cache.join(dir);
        if let Ok(found) = release(&place) {
            return Ok(Outcome::Present(found));
        }
        let fresh = cache.join(format!("{dir}.new"));
        for old in [&fresh, &place] {
            let _ = fs::remove_dir_all(old);
        }
        fs::create_dir_all(&fresh)?;
        let release = fill(&fresh, spinner)?;
        fs::write(fresh.join("release"), format!("{release}\n"))?;
        fs::rename(&fresh, &place)?;
        Ok(Outcome::Done(release))
    })
}

/// The release of the newest kernel of the series that a suite within reach has, from what its meta-package depends on.
fn kernel_release(apt: &Apt, flavour: Flavour) -> Result<String> {
    let meta = format!("linux-image-{}", flavour.name());
    for stanza in apt.show(&format!("{meta}:arm64"))? {
        let names = stanza.names("Depends");
        if let Some(release) = names.into_iter().find_map(|name| release_of(name, flavour)) {
            return Ok(release.to_owned());
        }
    }
    bail!(
        "no package source within reach has a {KERNEL_SERIES} kernel ({meta}:arm64): Debian 12 with its backports and \
         Debian 13 have one; `cargo xtask setup --refresh` fetches the lists again"
    )
}

/// The release in a kernel package's name, if it is of the series and the flavour.
fn release_of(package: &str, flavour: Flavour) -> Option<&str> {
    let release = package.strip_prefix("linux-image-")?;
    let abi = release.strip_suffix(flavour.name())?.strip_suffix('-')?;
    // `6.12.1-cloud-arm64` ends with the name of the full flavour too.
    (abi.starts_with(&format!("{KERNEL_SERIES}.")) && !abi.contains('-')).then_some(release)
}

/// The flavour's makefile with the absolute path of the common headers made relative to itself.
fn relocated(makefile: &str, common: &str) -> Result<String> {
    let absolute = format!("include /usr/src/{common}/Makefile");
    if !makefile.contains(&absolute) {
        bail!("the headers' Makefile does not hold the line `{absolute}`");
    }
    Ok(makefile
        .replace(&absolute, &format!("include $(dir $(lastword $(MAKEFILE_LIST)))../{common}/Makefile")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flavours_are_told_apart_by_the_package_name() {
        assert_eq!(release_of("linux-image-6.12.9+deb12-arm64", Flavour::Full), Some("6.12.9+deb12-arm64"));
        assert_eq!(release_of("linux-image-6.12.9+deb12-cloud-arm64", Flavour::Full), None);
        assert_eq!(
            release_of("linux-image-6.12.9+deb12-cloud-arm64", Flavour::Cloud),
            Some("6.12.9+deb12-cloud-arm64")
        );
        assert_eq!(release_of("linux-image-6.1.9-arm64", Flavour::Full), None);
        assert_eq!(release_of("linux-base", Flavour::Full), None);
    }

    #[test]
    fn the_headers_makefile_finds_the_common_part_beside_itself() {
        let text = relocated(
            "# x\ninclude /usr/src/linux-headers-6.12-common/Makefile\n",
            "linux-headers-6.12-common",
        );
        let want = "# x\ninclude $(dir $(lastword $(MAKEFILE_LIST)))../linux-headers-6.12-common/Makefile\n";
        assert_eq!(text.unwrap(), want);
    }

    #[test]
    fn an_unknown_headers_makefile_is_refused() {
        assert!(relocated("include /opt/Makefile\n", "linux-headers-6.12-common").is_err());
    }
}
