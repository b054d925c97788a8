//! What is copied to an SD card: a folder of files, and the steps in a README.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::data::{Board, Pack};
use super::launch::Host;
use super::{bundle, tree, uboot};
use crate::paths;

/// Fills `folder` (made anew) with all that the board's firmware needs to start the hypervisor and `host`.
///
/// # Errors
/// If a file cannot be read or written.
pub fn write(board: &Board, host: &Host, folder: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let text = |name: &str, text: &str| {
        let to = folder.join(name);
        fs::write(&to, text).with_context(|| format!("cannot write {}", to.display()))
    };
    // The README first: by it a folder of ours is known, also one that was left half done.
    match &board.pack {
        Pack::RaspberryPi { tree, firmware } => {
            text("README.txt", &raspberry_readme(board, tree, firmware))?;
            bundle::write(&paths::image(), &host.kernel, &host.initrd, "", &folder.join("kernel8.img"))?;
            copy(&board_tree(board)?, &folder.join(tree))?;
            text("config.txt", &config_txt(board, tree))?;
            text("cmdline.txt", &format!("{}\n", host.arguments))
        }
        Pack::UBoot { tree } => {
            text("README.txt", &uboot_readme(board, tree.as_deref()))?;
            copy(&paths::image(), &folder.join("tenure.img"))?;
            copy(&host.kernel, &folder.join("Image"))?;
            copy(&host.initrd, &folder.join("initrd.cpio"))?;
            // QEMU's own tree has two cells for each.
            let mut cells = (2, 2);
            if let Some(name) = tree {
                let file = folder.join(name);
                copy(&board_tree(board)?, &file)?;
                cells = tree::root_cells(&file)?;
            }
            let script = uboot::script(&board.load, tree.as_deref(), cells, &host.arguments);
            fs::write(folder.join("boot.scr"), uboot::boot_scr(&script))?;
            text("boot.cmd", &script)
        }
    }
}

/// The file of the board's own tree, unchanged: what QEMU lacks, the real board has.
fn board_tree(board: &Board) -> Result<std::path::PathBuf> {
    let name = board.qemu.tree.as_ref().with_context(|| format!("{} has no qemu.tree", board.name))?;
    Ok(paths::board_trees()?.join(name))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// `config.txt` of the Raspberry Pi's firmware.
fn config_txt(board: &Board, tree: &str) -> String {
    format!(
        "# Tenure on the {title}. The words are explained at raspberrypi.com/documentation, \"config.txt\".\n\
         arm_64bit=1\n\
         kernel=kernel8.img\n\
         # Where the bundled kernel need not be moved.\n\
         kernel_address={image:#x}\n\
         device_tree={tree}\n\
         # The serial console on pins 8 and 10 of the header, with a clock that stays.\n\
         enable_uart=1\n",
        title = board.title,
        image = board.load.image,
    )
}

const CANNOT_SHOW: &str = "\nThis was tried in QEMU and not on metal; docs/boards.md of the repository says what that leaves open.\n";

fn raspberry_readme(board: &Board, tree: &str, firmware: &[String]) -> String {
    format!(
        "Tenure for the {title}\n\
         \n\
         1. Make a FAT32 partition, the first of an SD card (a DOS partition table), and copy all files of this\n\
         \x20  folder to it. (With --disk this was done for you: write the .img to the card as it is.)\n\
         2. Add the firmware, which is not ours to give: {files}\n\
         \x20  from the folder boot/ of github.com/raspberrypi/firmware, or from Debian's package raspi-firmware\n\
         \x20  (component non-free-firmware), where they are in /usr/lib/raspi-firmware/.\n\
         3. Connect a serial adapter of 3.3 V: ground to pin 6, its receiver to pin 8, its sender to pin 10;\n\
         \x20  115200 baud, 8 bits, no parity.\n\
         4. Switch on. The first lines are the hypervisor's (`tenure: ...`), then come the kernel's.\n\
         \n\
         kernel8.img  hypervisor, kernel and RAM disk in one file, with a SHA-256 of all\n\
         {tree}  the board's device tree, from Debian's kernel\n\
         cmdline.txt  the kernel's command line: tenure.run=shell gives a shell, tenure.run=story shows the story\n\
         config.txt   what the firmware does\n\
         {CANNOT_SHOW}",
        title = board.title,
        files = firmware.join(", "),
    )
}

fn uboot_readme(board: &Board, tree: Option<&str>) -> String {
    let device_tree = match tree {
        Some(name) => format!("{name}  the board's device tree, from Debian's kernel\n"),
        None => String::new(),
    };
    format!(
        "Tenure for the {title}\n\
         \n\
         1. U-Boot must be on the board, or on another card or in flash, and start the script boot.scr of the first\n\
         \x20  bootable partition, as it does unless told otherwise (`run distro_bootcmd`, `bootflow scan -b`).\n\
         2. Make a FAT partition, marked bootable, the first of an SD card (a DOS partition table), and copy all\n\
         \x20  files of this folder to it. (With --disk this was done for you: write the .img to the card as it is.)\n\
         3. Connect to the serial console: 115200 baud, 8 bits, no parity.\n\
         4. Switch on. The script says `Tenure: loading ...`; then come the hypervisor's lines (`tenure: ...`) and the\n\
         \x20  kernel's. By hand, with the card as mmc 1: `setenv devtype mmc; setenv devnum 1; setenv\n\
         \x20  distro_bootpart 1; load mmc 1:1 ${{scriptaddr}} boot.scr; source ${{scriptaddr}}`.\n\
         \n\
         boot.scr     the script that U-Boot runs; boot.cmd is its text. After a change of the text:\n\
         \x20            mkimage -A arm64 -T script -d boot.cmd boot.scr\n\
         tenure.img   the hypervisor: it starts like an arm64 Linux Image (booti), at EL2\n\
         Image        the host's kernel\n\
         initrd.cpio  its RAM disk\n\
         {device_tree}\
         \n\
         The script puts the hypervisor at {image:#x}, the kernel at {kernel:#x} and the RAM disk at {ramdisk:#x}, and\n\
         names the last two in /chosen of the device tree. The kernel's command line is in it too: tenure.run=shell\n\
         gives a shell, tenure.run=story shows the story.\n\
         {CANNOT_SHOW}",
        title = board.title,
        image = board.load.image,
        kernel = board.load.kernel,
        ramdisk = board.load.ramdisk,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board;

    #[test]
    fn a_raspberrys_readme_names_the_firmware_that_is_missing() {
        let board = board::load("raspi4b").unwrap();
        let Pack::RaspberryPi { tree, firmware } = &board.pack else { panic!("not a Raspberry Pi") };
        let text = raspberry_readme(&board, tree, firmware);
        assert!(text.contains("start4.elf, fixup4.dat") && text.contains("bcm2711-rpi-4-b.dtb"));
        assert!(config_txt(&board, tree).contains("kernel_address=0x200000\n"));
    }

    #[test]
    fn a_readme_for_u_boot_names_the_addresses() {
        let board = board::load("imx8mp-evk").unwrap();
        let text = uboot_readme(&board, Some("imx8mp-evk.dtb"));
        assert!(text.contains("0x50000000") && text.contains("imx8mp-evk.dtb"));
    }
}
