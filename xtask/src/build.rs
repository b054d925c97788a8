//! `cargo xtask build`: the hypervisor's image, the bare-metal tests, the driver and the host's programs.

use std::path::PathBuf;

use anyhow::Result;

use crate::setup::rust::{BARE_METAL, LINUX};
use crate::setup::{self, Machine};
use crate::{paths, ui};

mod cargo;
mod driver;
mod flat;

pub use driver::module;

/// Build everything, or the named parts: into target/tenure.img, target/driver/tenure.ko and cargo's own folders.
#[derive(clap::Args)]
pub struct Args {
    /// What to build; nothing means all but driver-full.
    parts: Vec<Part>,
}

/// A part that can be built by itself.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// The hypervisor: target/tenure.img, a raw file with the arm64 Linux `Image` header.
    Hyp,
    /// The hypervisor that starts from the worst register values: target/tenure-unknown-resets.img, a test's matter.
    HypUnknownResets,
    /// The bare-metal guests and hosts of tests/ (the hosts hold the guests).
    Bare,
    /// The Linux driver, against Debian's kernel headers: target/driver/tenure.ko.
    Driver,
    /// The same for the kernel of the full flavour, which boards run: target/driver-full/tenure.ko.
    DriverFull,
    /// The programs of the Debian host (tests/story), static.
    Story,
}

/// All parts that need no board, in the order in which they are built.
pub const ALL: [Part; 4] = [Part::Hyp, Part::Bare, Part::Driver, Part::Story];

/// The task.
///
/// # Errors
/// Those of set-up and of the first part that does not build.
pub fn task(args: &Args) -> Result<()> {
    let machine = setup::ensure()?;
    let parts = if args.parts.is_empty() { &ALL[..] } else { &args.parts };
    parts_of(&machine, parts)
}

/// Builds these parts.
///
/// # Errors
/// The compiler's own words, of the first part that does not build.
pub fn parts_of(machine: &Machine, parts: &[Part]) -> Result<()> {
    for part in parts {
        match part {
            Part::Hyp => ui::step("hypervisor", true, |_| {
                cargo::build(machine, BARE_METAL, "tenure-hyp")?;
                flat::write(&cargo::artifact(BARE_METAL, "tenure-hyp"), &paths::image())
            })?,
            Part::HypUnknownResets => ui::step("hypervisor, from unknown resets", true, |_| {
                let dir = paths::target().join("unknown-resets");
                cargo::build_in(machine, &dir, BARE_METAL, "tenure-hyp", &["--features=unknown-resets"])?;
                let elf = cargo::artifact_in(&dir, BARE_METAL, "tenure-hyp");
                flat::write(&elf, &paths::unknown_resets_image())
            })?,
            Part::Bare => ui::step("bare-metal tests", true, |_| {
                // The hosts embed the guests.
                cargo::build(machine, BARE_METAL, "tenure-test-guests")?;
                cargo::build(machine, BARE_METAL, "tenure-test-hosts")
            })?,
            Part::Driver => ui::step("driver", true, |_| driver::build(&machine.kernel))?,
            Part::DriverFull => {
                let kernel = setup::board_kernel(false)?;
                ui::step("driver for boards", true, |_| driver::build(&kernel))?;
            }
            Part::Story => ui::step("programs of the host", true, |_| {
                // They start this guest.
                cargo::build(machine, BARE_METAL, "tenure-test-guests")?;
                cargo::build(machine, LINUX, "tenure-story")
            })?,
        }
    }
    Ok(())
}

/// The hypervisor as it was linked, with its debug information.
pub fn hypervisor() -> PathBuf {
    cargo::artifact(BARE_METAL, "tenure-hyp")
}

/// A bare-metal guest or host, as a flat binary.
pub fn bare(name: &str) -> PathBuf {
    cargo::artifact(BARE_METAL, name)
}

/// The programs of the Debian host.
///
/// # Errors
/// If their package cannot be looked up.
pub fn programs() -> Result<Vec<PathBuf>> {
    let names = cargo::binaries("tenure-story")?;
    Ok(names.iter().map(|name| cargo::artifact(LINUX, name)).collect())
}
