//! What comes from Debian into the cache: the arm64 kernel, its headers ready for building modules, busybox.
//!
//! Each is unpacked beside its place and moved there when it is complete, with a file `release` written first, so that
//! an interrupted set-up leaves nothing that looks done.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::KERNEL_SERIES;
use super::apt::Apt;
use crate::ui::{self, Outcome};

/// The folders of the cache.
pub const KERNEL_DIR: &str = "kernel-6.12-cloud";
/// See [`KERNEL_DIR`].
pub const HEADERS_DIR: &str = "headers-6.12-cloud";
/// See [`KERNEL_DIR`].
pub const BUSYBOX_DIR: &str = "busybox";
/// Debian's flavour of the kernel that is booted.
const FLAVOUR: &str = "cloud-arm64";

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

/// Fetches Debian's kernel.
///
/// # Errors
/// If no suite within reach has the series, or it cannot be fetched.
pub fn kernel(apt: &Apt, cache: &Path, verbose: bool) -> Result<()> {
    place(cache, KERNEL_DIR, &format!("Debian's {KERNEL_SERIES} arm64 kernel"), verbose, |into, spinner| {
        apt.update(spinner)?;
        let release = kernel_release(apt)?;
        apt.unpack(&[format!("linux-image-{release}:arm64")], &into.join("root"), spinner)?;
        fs::copy(into.join(format!("root/boot/vmlinuz-{release}")), into.join("Image"))
            .context("the package holds no kernel image")?;
        Ok(release)
    })
}

/// Fetches the headers of the kernel in the cache and makes them fit for building modules outside `/usr/src`.
///
/// # Errors
/// If they cannot be fetched, or do not look as expected.
pub fn headers(apt: &Apt, cache: &Path, verbose: bool) -> Result<()> {
    let release = release(&cache.join(KERNEL_DIR))?;
    if self::release(&cache.join(HEADERS_DIR)).is_ok_and(|found| found != release) {
        fs::remove_dir_all(cache.join(HEADERS_DIR))?;
    }
    place(cache, HEADERS_DIR, "the kernel's headers", verbose, |into, spinner| {
        apt.update(spinner)?;
        let abi =
            release.strip_suffix(&format!("-{FLAVOUR}")).context("the kernel's release has no flavour")?;
        let common = format!("linux-headers-{abi}-common");
        let flavour = format!("linux-headers-{release}");
        // The tools in linux-kbuild run on this machine, so they come in its own architecture.
        apt.unpack(
            &[format!("{flavour}:arm64"), common.clone(), format!("linux-kbuild-{abi}")],
            into,
            spinner,
        )?;
        let makefile = into.join("usr/src").join(&flavour).join("Makefile");
        fs::write(&makefile, relocated(&fs::read_to_string(&makefile)?, &common)?)?;
        std::os::unix::fs::symlink(Path::new("usr/src").join(&flavour), into.join("build"))?;
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
fn kernel_release(apt: &Apt) -> Result<String> {
    let meta = format!("linux-image-{FLAVOUR}");
    for stanza in apt.show(&format!("{meta}:arm64"))? {
        let names = stanza.names("Depends");
        let wanted = |name: &&str| {
            name.starts_with(&format!("linux-image-{KERNEL_SERIES}.")) && name.ends_with(FLAVOUR)
        };
        if let Some(release) =
            names.into_iter().find(wanted).and_then(|name| name.strip_prefix("linux-image-"))
        {
            return Ok(release.to_owned());
        }
    }
    bail!(
        "no package source within reach has a {KERNEL_SERIES} kernel ({meta}:arm64): Debian 12 with its backports and \
         Debian 13 have one; `cargo xtask setup --refresh` fetches the lists again"
    )
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
