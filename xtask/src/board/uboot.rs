//! U-Boot: a boot script, and the legacy image header in which `boot.scr` wants it.

use super::data::Load;

/// The header's words (U-Boot, include/image.h): magic number, OS Linux, architecture arm64, type script.
const MAGIC: u32 = 0x2705_1956;
const OS_LINUX: u8 = 5;
const ARCH_ARM64: u8 = 22;
const TYPE_SCRIPT: u8 = 6;
const HEADER: usize = 64;
const NAME: &[u8] = b"Tenure";

/// The text of a boot script: loads all from the partition that it was found on, names the kernel and the initrd in
/// `/chosen`, starts the hypervisor.
///
/// `tree` is the file of the device tree; without one it is the tree at `${fdt_addr}`, U-Boot's own. `cells` are those of
/// the tree's root. Sizes are taken when it runs, so that files can be exchanged.
pub fn script(load: &Load, tree: Option<&str>, cells: (u32, u32), arguments: &str) -> String {
    let from = "load ${devtype} ${devnum}:${distro_bootpart}";
    let module = |kind: &str, at: u64, size: &str| {
        let node = format!("/chosen/module@{at:x}");
        let reg = format!("{} {}", in_cells(&format!("{at:#x}"), cells.0), in_cells(size, cells.1));
        format!(
            "fdt mknode /chosen module@{at:x}\n\
             fdt set {node} compatible \"multiboot,{kind}\" \"multiboot,module\"\n\
             fdt set {node} reg \"<{reg}>\"\n"
        )
    };
    let tree = match (tree, load.tree) {
        (Some(file), Some(at)) => format!("{from} {at:#x} {file}\nsetenv tenure_tree {at:#x}\n"),
        _ => "setenv tenure_tree ${fdt_addr}\n".to_owned(),
    };
    format!(
        "echo \"Tenure: loading hypervisor, kernel and initrd\"\n\
         {from} {kernel:#x} Image\n\
         setenv tenure_kernel 0x${{filesize}}\n\
         {from} {ramdisk:#x} initrd.cpio\n\
         setenv tenure_ramdisk 0x${{filesize}}\n\
         {tree}\
         {from} {image:#x} tenure.img\n\
         fdt addr ${{tenure_tree}}\n\
         fdt resize 0x1000\n\
         {kernel_node}\
         fdt set /chosen/module@{kernel:x} bootargs \"{arguments}\"\n\
         {ramdisk_node}\
         booti {image:#x} - ${{tenure_tree}}\n",
        image = load.image,
        kernel = load.kernel,
        ramdisk = load.ramdisk,
        kernel_node = module("kernel", load.kernel, "${tenure_kernel}"),
        ramdisk_node = module("ramdisk", load.ramdisk, "${tenure_ramdisk}"),
    )
}

/// A number below 4 GiB in this many cells.
fn in_cells(number: &str, cells: u32) -> String {
    if cells == 2 { format!("0x0 {number}") } else { number.to_owned() }
}

/// A script as `mkimage -A arm64 -T script` makes it: a header, the length of the text, and the text.
pub fn boot_scr(text: &str) -> Vec<u8> {
    let mut data = Vec::new();
    data.extend((text.len() as u32).to_be_bytes());
    // The list of parts ends.
    data.extend(0u32.to_be_bytes());
    data.extend(text.as_bytes());

    let mut header = [0u8; HEADER];
    let mut put = |at: usize, word: u32| header[at..at + 4].copy_from_slice(&word.to_be_bytes());
    put(0, MAGIC);
    put(12, data.len() as u32);
    put(24, crc32fast::hash(&data));
    header[28..32].copy_from_slice(&[OS_LINUX, ARCH_ARM64, TYPE_SCRIPT, 0]);
    header[32..32 + NAME.len()].copy_from_slice(NAME);
    // The header's own sum is taken with its field zero.
    let sum = crc32fast::hash(&header);
    header[4..8].copy_from_slice(&sum.to_be_bytes());
    [&header[..], &data].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load =
        Load { image: 0x20_0000, tree: Some(0x400_0000), kernel: 0x1000_0000, ramdisk: 0x1800_0000 };

    #[test]
    fn a_script_names_what_it_loads() {
        let text = script(&LOAD, Some("x.dtb"), (2, 1), "console=x loglevel=4");
        assert!(text.contains("load ${devtype} ${devnum}:${distro_bootpart} 0x4000000 x.dtb\n"), "{text}");
        assert!(text.contains("reg \"<0x0 0x10000000 ${tenure_kernel}>\"\n"), "{text}");
        assert!(text.contains("bootargs \"console=x loglevel=4\"\n"), "{text}");
        assert!(text.ends_with("booti 0x200000 - ${tenure_tree}\n"), "{text}");
    }

    #[test]
    fn a_script_without_a_tree_takes_the_firmwares() {
        let text = script(&LOAD, None, (2, 2), "");
        assert!(text.contains("setenv tenure_tree ${fdt_addr}\n"), "{text}");
        assert!(text.contains("reg \"<0x0 0x18000000 0x0 ${tenure_ramdisk}>\"\n"), "{text}");
    }

    #[test]
    fn the_header_is_that_of_mkimage() {
        // `mkimage -A arm64 -O linux -T script -n Tenure -d FILE OUT` on a file with `echo hi\n`, its time set to 0.
        let ours = boot_scr("echo hi\n");
        let text = [0, 0, 0, 8, 0, 0, 0, 0, b'e', b'c', b'h', b'o', b' ', b'h', b'i', b'\n'];
        assert_eq!(ours[HEADER..], text);
        assert_eq!(ours[..4], [0x27, 0x05, 0x19, 0x56]);
        assert_eq!(ours[12..16], [0, 0, 0, 16]);
        assert_eq!(ours[24..28], crc32fast::hash(&text).to_be_bytes());
        assert_eq!(ours[28..32], [5, 22, 6, 0]);
    }
}
