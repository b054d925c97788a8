//! The words of `boards/NAME/board.toml`. A word that is not here is refused, so that a slip of the pen is not silence.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tenure_boards::smc::{self, Call};

/// A board.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Board {
    /// Its folder below `boards/`.
    #[serde(skip)]
    pub name: String,
    /// Its maker's name of it.
    pub title: String,
    /// A name in the `compatible` of its tree's root: code in `boards/src` knows it by that.
    pub compatible: String,
    /// Number of CPUs.
    pub cpus: u8,
    /// Interrupt controllers that it can have; the first is what it has unless asked for another.
    pub gic: Vec<Gic>,
    /// Whether it can run guests (which need a GIC).
    pub guests: bool,
    /// What devices can reach.
    pub dma: Dma,
    /// What the device tree cannot say, for people.
    #[serde(default)]
    pub notes: Vec<String>,
    /// How QEMU runs it.
    pub qemu: Qemu,
    /// Where a boot loader puts things.
    pub load: Load,
    /// The host's kernel.
    pub linux: Linux,
    /// What is copied to an SD card.
    pub pack: Pack,
}

/// An interrupt controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gic {
    /// None that guests could share: every interrupt is the host's.
    None,
    /// GICv2.
    V2,
    /// GICv3.
    V3,
}

impl Gic {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::V2 => "GICv2",
            Self::V3 => "GICv3",
        }
    }
}

/// DMA protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dma {
    /// Devices reach all of RAM, guests' private pages too: the driver wants `unsafe_dma=1`.
    Open,
}

impl Dma {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "none: unsafe_dma=1",
        }
    }
}

/// How QEMU runs a board.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Qemu {
    /// The argument of `-M`. For `virt`, CPU model and GIC come from the command line.
    pub machine: String,
    /// The argument of `-m`.
    pub memory: String,
    /// The device tree, below Debian's folder of them; without one QEMU makes it.
    pub tree: Option<String>,
    /// Nodes that are disabled, because QEMU lacks the device.
    #[serde(default)]
    pub disable: Vec<String>,
    /// `stdout-path`, where the tree's own names a UART that does not work in QEMU.
    pub stdout: Option<String>,
    /// Which of QEMU's serial ports is the console, from 0.
    #[serde(default)]
    pub serial: u8,
    /// The kernel's `console=` in QEMU, where it is another than on the real board.
    pub console: Option<String>,
    /// How what runs on the host is heard.
    #[serde(default)]
    pub report: Hearing,
    /// Ways in that work; the first is taken unless asked for another.
    pub ways: Vec<Way>,
    /// Further arguments.
    #[serde(default)]
    pub arguments: Vec<String>,
}

/// How what runs on the host is heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hearing {
    /// On `/dev/console`.
    #[default]
    Console,
    /// Through the kernel's log, because `/dev/console` does not work.
    Kmsg,
}

/// How a machine in QEMU is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// QEMU loads kernel and initrd and names them in the device tree that it makes.
    GuestLoader,
    /// The device tree file names kernel and initrd; QEMU loads them.
    Modules,
    /// One file of hypervisor, kernel and initrd.
    Bundle,
    /// U-Boot runs boot.scr from a disk image.
    UBoot,
}

/// Where a boot loader, or QEMU's `loader`, puts things: physical addresses.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Load {
    /// The hypervisor: 2 MiB aligned.
    pub image: u64,
    /// The device tree, where a boot script loads one.
    pub tree: Option<u64>,
    /// The host's kernel: 2 MiB aligned, with 128 MiB of room.
    pub kernel: u64,
    /// The host's initrd: to the end of RAM.
    pub ramdisk: u64,
}

/// The host's kernel.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Linux {
    /// Its `console=` on the real board.
    pub console: String,
}

/// What is copied to an SD card.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", deny_unknown_fields, rename_all = "kebab-case")]
pub enum Pack {
    /// The Raspberry Pi's firmware: config.txt, cmdline.txt, kernel8.img, a device tree.
    RaspberryPi {
        /// The device tree's file name.
        tree: String,
        /// Files of the firmware that a person must add.
        firmware: Vec<String>,
    },
    /// U-Boot: boot.scr, tenure.img, Image, initrd.cpio, a device tree.
    UBoot {
        /// The device tree's file name; without one the script takes U-Boot's.
        tree: Option<String>,
    },
}

impl Board {
    /// Reads the text of `board.toml`.
    ///
    /// # Errors
    /// If a word is unknown or missing, or a value makes no sense; the message names it.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let mut board: Self = toml::from_str(text)?;
        board.name = name.to_owned();
        board.check()?;
        Ok(board)
    }

    fn check(&self) -> Result<()> {
        let Load { image, tree, kernel, ramdisk } = self.load;
        for (name, address) in [("image", image), ("kernel", kernel)] {
            ensure!(address.is_multiple_of(2 << 20), "load.{name} = {address:#x} is not a multiple of 2 MiB");
        }
        ensure!(tree.is_none_or(|at| at.is_multiple_of(8)), "load.tree is not a multiple of 8");
        ensure!(kernel + KERNEL_ROOM <= ramdisk, "load.ramdisk is less than 128 MiB above load.kernel");
        ensure!(self.cpus > 0, "cpus is 0");
        ensure!(!self.gic.is_empty(), "gic names none (say \"none\")");
        ensure!(self.guests != self.gic.contains(&Gic::None), "guests need a GIC, and a GIC can run guests");
        ensure!(!self.qemu.ways.is_empty(), "qemu.ways names no way in");
        let own = self.qemu.tree.is_none();
        for way in &self.qemu.ways {
            match way {
                Way::GuestLoader => ensure!(own, "qemu.ways: guest-loader needs the tree that QEMU makes"),
                Way::Modules => ensure!(!own, "qemu.ways: modules needs qemu.tree"),
                Way::UBoot => {
                    ensure!(matches!(self.pack, Pack::UBoot { .. }), "qemu.ways: u-boot needs pack.kind")
                }
                Way::Bundle => {}
            }
        }
        ensure!(
            !own || self.qemu.disable.is_empty() && self.qemu.stdout.is_none(),
            "qemu.disable and qemu.stdout change qemu.tree, which is missing"
        );
        if let Pack::UBoot { tree: file } = &self.pack {
            ensure!(file.is_some() == tree.is_some(), "pack.tree and load.tree belong together");
        }
        Ok(())
    }

    /// The vendor's calls to the firmware that its host may make.
    pub fn vendor_calls(&self) -> &'static [Call] {
        smc::of_board(|name| name == self.compatible)
    }

    /// Whether it is QEMU's `virt`, whose CPUs, GIC and memory can be chosen.
    pub fn is_virt(&self) -> bool {
        self.qemu.machine == "virt"
    }

    /// The way in: the one asked for, or the first.
    ///
    /// # Errors
    /// If it is none of the board's.
    pub fn way(&self, wanted: Option<Way>) -> Result<Way> {
        let first = self.qemu.ways.first().copied().context("no way in")?;
        let way = wanted.unwrap_or(first);
        let all: Vec<String> = self.qemu.ways.iter().map(|way| way.name()).collect();
        ensure!(
            self.qemu.ways.contains(&way),
            "{} cannot be started by {}, but by {}",
            self.name,
            way.name(),
            all.join(", ")
        );
        Ok(way)
    }

    /// The kernel's command line in QEMU, for a run of `/init`.
    pub fn qemu_arguments(&self, run: &str, more: &str) -> String {
        let console = self.qemu.console.as_ref().unwrap_or(&self.linux.console);
        let level = match self.qemu.report {
            Hearing::Console => "loglevel=4",
            // What is written to /dev/kmsg is a warning (4), so the console must show those; and nothing may be held back.
            Hearing::Kmsg => "loglevel=5 printk.devkmsg=on tenure.console=kmsg",
        };
        self.words(console, level, run, more)
    }

    /// The kernel's command line on the real board.
    pub fn arguments(&self, run: &str, more: &str) -> String {
        self.words(&self.linux.console, "loglevel=4", run, more)
    }

    fn words(&self, console: &str, level: &str, run: &str, more: &str) -> String {
        format!("console={console} {level} panic=-1 tenure.run={run} {more}").trim_end().to_owned()
    }
}

/// What a kernel may need.
const KERNEL_ROOM: u64 = 128 << 20;

impl Way {
    /// As on the command line.
    pub fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self)
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("../../../boards/raspi4b/board.toml");

    /// What is said of the good file with one piece replaced.
    fn with(old: &str, new: &str) -> String {
        assert!(GOOD.contains(old), "{old}");
        format!("{:#}", Board::parse("x", &GOOD.replacen(old, new, 1)).map(|_| ()).unwrap_err())
    }

    #[test]
    fn a_good_file_is_read() {
        let board = Board::parse("raspi4b", GOOD).unwrap();
        assert_eq!((board.cpus, board.gic[0], board.guests), (4, Gic::V2, true));
        assert_eq!(board.qemu.disable.len(), 6);
    }

    #[test]
    fn unknown_words_are_refused_by_name() {
        assert!(with("cpus = 4", "cpus = 4\ncolour = \"green\"").contains("colour"));
        assert!(with("stdout = ", "stdut = ").contains("stdut"));
        assert!(with("firmware = ", "firmwares = ").contains("firmwares"));
        assert!(with("kind = \"raspberry-pi\"", "kind = \"floppy\"").contains("floppy"));
        assert!(with("dma = \"open\"", "dma = \"closed\"").contains("closed"));
    }

    #[test]
    fn values_that_make_no_sense_are_refused_by_name() {
        assert!(with("image = 0x20_0000", "image = 0x8_0000").contains("load.image"));
        assert!(with("ramdisk = 0x1800_0000", "ramdisk = 0x1100_0000").contains("load.ramdisk"));
        assert!(with("guests = true", "guests = false").contains("GIC"));
        assert!(
            with("ways = [\"bundle\", \"modules\"]", "ways = [\"guest-loader\"]").contains("guest-loader")
        );
        assert!(with("ways = [\"bundle\", \"modules\"]", "ways = [\"u-boot\"]").contains("u-boot"));
        assert!(with("ways = [\"bundle\", \"modules\"]", "ways = []").contains("qemu.ways"));
    }

    #[test]
    fn the_command_line_names_the_console_of_the_place() {
        let board = Board::parse("x", GOOD).unwrap();
        assert!(board.qemu_arguments("story", "").starts_with("console=ttyAMA0 "));
        assert!(board.arguments("story", "quiet").ends_with("tenure.run=story quiet"));
        assert!(board.arguments("story", "").starts_with("console=ttyS1,115200 "));
    }

    #[test]
    fn a_way_that_a_board_has_not_is_refused_with_those_that_it_has() {
        let board = Board::parse("raspi4b", GOOD).unwrap();
        assert_eq!(board.way(None).unwrap(), Way::Bundle);
        let why = board.way(Some(Way::UBoot)).unwrap_err().to_string();
        assert!(why.contains("bundle, modules"), "{why}");
    }
}
