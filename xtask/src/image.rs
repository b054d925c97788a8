//! `cargo xtask image`: a folder with all that a boot loader needs, and how to start it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::initramfs::{self, Contents};
use crate::setup::debs::Flavour;
use crate::{build, paths, run, setup, ui};

/// Pack the hypervisor, the host's kernel and its initrd for a board's boot loader (U-Boot, GRUB) or for QEMU.
#[derive(clap::Args)]
pub struct Args {
    /// Where to; the folder is made.
    #[arg(long, value_name = "FOLDER", default_value = "target/image")]
    out: PathBuf,
    /// A kernel of your own (a raw arm64 `Image`) in place of Debian's.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// An initrd of your own.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
}

/// The task.
///
/// # Errors
/// Those of set-up and build; and if a file cannot be copied.
pub fn task(args: &Args) -> Result<()> {
    let machine = setup::ensure()?;
    build::parts_of(&machine, &[build::Part::Hyp, build::Part::Driver, build::Part::Story])?;
    let initrd = match &args.initrd {
        Some(file) => file.clone(),
        None => initramfs::pack(
            &machine,
            "initramfs.cpio",
            Contents { driver: Some(Flavour::Cloud), programs: true },
        )?,
    };
    let kernel = args.kernel.as_ref().unwrap_or(&machine.kernel.image);
    let out = if args.out.is_absolute() { args.out.clone() } else { paths::root().join(&args.out) };
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let copy = |from: &Path, name: &str| {
        let to = out.join(name);
        fs::copy(from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
    };
    let sizes = [copy(&paths::image(), "tenure.img")?, copy(kernel, "Image")?, copy(&initrd, "initrd.cpio")?];
    fs::write(out.join("README"), readme(sizes[1], sizes[2]))?;
    ui::line(&format!("{}: tenure.img, Image, initrd.cpio, README", out.display()));
    Ok(())
}

/// How to start the files, with addresses for a board whose RAM begins at 1 GiB (QEMU `virt`).
fn readme(kernel: u64, initrd: u64) -> String {
    let bootargs = run::bootargs("story", "");
    format!(
        "Tenure and a Linux host for it.\n\
         \n\
         tenure.img   the hypervisor: starts like an arm64 Linux Image, must be entered at EL2\n\
         Image        the host's kernel\n\
         initrd.cpio  its root file system\n\
         \n\
         The kernel and the initrd are Xen-style modules: nodes below /chosen of the device tree.\n\
         \n\
         QEMU:\n\
         \x20 qemu-system-aarch64 -M virt,virtualization=on,gic-version=3 -cpu cortex-a76 -smp 4 -m 1G -nographic \\\n\
         \x20   -nic none -kernel tenure.img \\\n\
         \x20   -device guest-loader,addr=0x50000000,kernel=Image,bootargs='{bootargs}' \\\n\
         \x20   -device guest-loader,addr=0x58000000,initrd=initrd.cpio\n\
         \n\
         U-Boot, the three files on a partition it can read (here: virtio 0:1), RAM from 0x40000000:\n\
         \x20 load virtio 0:1 0x50000000 Image\n\
         \x20 load virtio 0:1 0x58000000 initrd.cpio\n\
         \x20 load virtio 0:1 ${{kernel_addr_r}} tenure.img\n\
         \x20 fdt addr ${{fdt_addr}}; fdt resize 0x1000\n\
         \x20 fdt set /chosen '#address-cells' <2>; fdt set /chosen '#size-cells' <2>\n\
         \x20 fdt mknode /chosen module@50000000\n\
         \x20 fdt set /chosen/module@50000000 compatible multiboot,kernel multiboot,module\n\
         \x20 fdt set /chosen/module@50000000 reg <0 0x50000000 0 {kernel:#x}>\n\
         \x20 fdt set /chosen/module@50000000 bootargs '{bootargs}'\n\
         \x20 fdt mknode /chosen module@58000000\n\
         \x20 fdt set /chosen/module@58000000 compatible multiboot,ramdisk multiboot,module\n\
         \x20 fdt set /chosen/module@58000000 reg <0 0x58000000 0 {initrd:#x}>\n\
         \x20 booti ${{kernel_addr_r}} - ${{fdt_addr}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_gives_the_sizes_that_the_modules_need() {
        let text = readme(0x123, 0x456);
        assert!(text.contains("reg <0 0x50000000 0 0x123>") && text.contains("reg <0 0x58000000 0 0x456>"));
    }
}
