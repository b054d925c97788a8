//! QEMU's command line: which machine, and what is started on it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::paths;

pub mod console;
pub mod runner;

/// Where `guest-loader` puts the host's kernel and initrd on `virt`, whose RAM begins at 0x4000_0000: above the
/// hypervisor's image (loaded at the start of RAM) and the device tree (128 MiB above it), aligned to 2 MiB.
const KERNEL_ADDRESS: u64 = 0x5000_0000;
/// See [`KERNEL_ADDRESS`]; the kernel needs less than 128 MiB.
const INITRD_ADDRESS: u64 = 0x5800_0000;

/// Where QEMU loads a raw image on `virt`: one with `text_offset` 0 goes 2 MiB above the start of RAM.
pub const IMAGE_ADDRESS: u64 = 0x4020_0000;
/// Where the pieces of [`Payload::Tree`] go: beside the image, and not where QEMU puts a tree of its own (the start of RAM).
const STUB_ADDRESS: u64 = 0x4400_0000;
/// See [`STUB_ADDRESS`].
const TREE_ADDRESS: u64 = 0x4800_0000;

/// A `virt` machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The CPU model, as QEMU names it.
    pub cpu: String,
    /// Number of CPUs.
    pub cpus: u8,
    /// Version of the interrupt controller, 2 or 3.
    pub gic: u8,
    /// RAM in MiB; at least 512, see [`KERNEL_ADDRESS`].
    pub memory: u32,
    /// Whether the machine starts at EL2.
    pub el2: bool,
    /// Deterministic: one instruction is one nanosecond, and only one CPU.
    pub icount: bool,
    /// Whether a reset starts the machine again (else it ends QEMU).
    pub reboots: bool,
    /// Further arguments.
    pub extra: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cpu: "cortex-a76".into(),
            cpus: 4,
            gic: 3,
            memory: 1024,
            el2: true,
            icount: false,
            reboots: false,
            extra: Vec::new(),
        }
    }
}

/// What is started.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Tenure, and under it a kernel that `guest-loader` describes in the device tree.
    Tenure {
        /// The hypervisor.
        image: PathBuf,
        /// The host's kernel, or a bare-metal host of tests/hosts.
        kernel: PathBuf,
        /// The host's initrd.
        initrd: Option<PathBuf>,
        /// The host's command line.
        bootargs: String,
    },
    /// One file that holds all: a bundle.
    Alone {
        /// The file.
        image: PathBuf,
    },
    /// Firmware, and a disk from which it starts what it finds.
    Firmware {
        /// The firmware: a raw file for the flash at address 0.
        bios: PathBuf,
        /// The disk image.
        disk: PathBuf,
    },
    /// Tenure, entered with a device tree (or none) of the test's choice in x0.
    Tree {
        /// The tree's file; without one x0 is 0.
        tree: Option<PathBuf>,
        /// The few instructions that load x0 and jump, from [`stub`].
        stub: PathBuf,
    },
    /// A kernel without a hypervisor, by QEMU's own loader.
    Bare {
        /// The kernel: a raw `Image`.
        kernel: PathBuf,
        /// Its initrd.
        initrd: Option<PathBuf>,
        /// Its command line.
        bootargs: String,
    },
}

impl Config {
    /// QEMU with this machine and payload; the caller adds where the serial console goes.
    pub fn command(&self, payload: &Payload) -> Command {
        let mut qemu = Command::new("qemu-system-aarch64");
        let el2 = if self.el2 { "virtualization=on," } else { "" };
        qemu.arg("-M").arg(format!("virt,{el2}gic-version={}", self.gic));
        qemu.args(["-cpu", &self.cpu, "-smp", &self.cpus.to_string(), "-m", &format!("{}M", self.memory)]);
        // Without the ROM of a network card that nobody uses.
        qemu.args(["-nic", "none"]);
        if !self.reboots {
            qemu.arg("-no-reboot");
        }
        if self.icount {
            qemu.args(["-icount", "shift=0,sleep=off"]);
        }
        match payload {
            Payload::Tenure { image, kernel, initrd, bootargs } => {
                qemu.arg("-kernel").arg(image);
                qemu.arg("-device").arg(guest_loader(KERNEL_ADDRESS, "kernel", kernel, Some(bootargs)));
                if let Some(initrd) = initrd {
                    qemu.arg("-device").arg(guest_loader(INITRD_ADDRESS, "initrd", initrd, None));
                }
            }
            Payload::Alone { image } => {
                qemu.arg("-kernel").arg(image);
            }
            Payload::Firmware { bios, disk } => {
                let disk = escape(&disk.to_string_lossy());
                qemu.arg("-bios").arg(bios);
                qemu.args(["-drive", &format!("if=none,id=disk,format=raw,file={disk}")]);
                qemu.args(["-device", "virtio-blk-device,drive=disk"]);
            }
            Payload::Tree { tree, stub } => {
                qemu.arg("-device").arg(loader(IMAGE_ADDRESS, &paths::image(), ""));
                qemu.arg("-device").arg(loader(STUB_ADDRESS, stub, ",cpu-num=0"));
                if let Some(tree) = tree {
                    qemu.arg("-device").arg(loader(TREE_ADDRESS, tree, ""));
                }
            }
            Payload::Bare { kernel, initrd, bootargs } => {
                qemu.arg("-kernel").arg(kernel).args(["-append", bootargs]);
                if let Some(initrd) = initrd {
                    qemu.arg("-initrd").arg(initrd);
                }
            }
        }
        qemu.args(&self.extra);
        qemu
    }

    /// A short name: `cortex-a76 4 CPUs GICv3`.
    pub fn name(&self) -> String {
        let plural = if self.cpus == 1 { "CPU" } else { "CPUs" };
        format!("{} {} {plural} GICv{}", self.cpu, self.cpus, self.gic)
    }
}

/// The argument of `-device` that puts a Xen-style module into memory and into the device tree.
fn guest_loader(address: u64, kind: &str, file: &Path, bootargs: Option<&str>) -> String {
    let file = escape(&file.to_string_lossy());
    let bootargs = bootargs.map(|text| format!(",bootargs={}", escape(text))).unwrap_or_default();
    format!("guest-loader,addr={address:#x},{kind}={file}{bootargs}")
}

/// The argument of `-device` that puts raw bytes into memory.
pub fn loader(address: u64, file: &Path, more: &str) -> String {
    format!("loader,file={},addr={address:#x},force-raw=on{more}", escape(&file.to_string_lossy()))
}

/// The code of [`Payload::Tree`]: `ldr x0, tree; ldr x1, image; br x1`, and the two addresses.
pub fn stub(tree: bool) -> Vec<u8> {
    let code: [u32; 4] = [0x5800_0080, 0x5800_00a1, 0xd61f_0020, 0xd503_201f];
    let tree = if tree { TREE_ADDRESS } else { 0 };
    let words = code.into_iter().flat_map(u32::to_le_bytes);
    words.chain(tree.to_le_bytes()).chain(IMAGE_ADDRESS.to_le_bytes()).collect()
}

/// A comma inside a value is written twice.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_bootargs_reach_the_kernel() {
        let argument = guest_loader(
            0x5000_0000,
            "kernel",
            Path::new("/k/Image"),
            Some("earlycon=pl011,0x9000000 quiet"),
        );
        assert_eq!(
            argument,
            "guest-loader,addr=0x50000000,kernel=/k/Image,bootargs=earlycon=pl011,,0x9000000 quiet"
        );
    }

    #[test]
    fn a_machine_without_el2_does_not_ask_for_it() {
        let payload = Payload::Bare { kernel: "Image".into(), initrd: None, bootargs: String::new() };
        let plain = Config { el2: false, gic: 2, ..Config::default() };
        let text = crate::exec::show(&plain.command(&payload));
        assert!(text.contains("-M virt,gic-version=2 "), "{text}");
        assert!(
            crate::exec::show(&Config::default().command(&payload))
                .contains("virt,virtualization=on,gic-version=3")
        );
    }
}
