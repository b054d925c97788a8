//! Boards: what `boards/NAME/board.toml` says of each, and all that follows from it.
//!
//! - [`data`]: the file's words;
//! - [`tree`]: a board's device tree, edited;
//! - [`bundle`]: hypervisor, kernel and RAM disk in one file;
//! - [`launch`]: QEMU's command line;
//! - [`pack`]: what is copied to an SD card, with [`uboot`] scripts and [`disk`] images;
//! - [`record`]: the result of a board's last test.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::paths;

pub mod bundle;
pub mod data;
pub mod disk;
pub mod launch;
pub mod pack;
pub mod record;
pub mod tree;
pub mod uboot;

pub use data::Board;

/// The board that is meant where none is named.
pub const DEFAULT: &str = "qemu-virt";

/// The names of all boards: folders of `boards/` with a `board.toml`, in the order of the alphabet.
///
/// # Errors
/// If `boards/` cannot be read.
pub fn names() -> Result<Vec<String>> {
    let dir = paths::root().join("boards");
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().join("board.toml").is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    ensure!(!names.is_empty(), "{} holds no board", dir.display());
    Ok(names)
}

/// Reads a board's data.
///
/// # Errors
/// If there is no such board (with the list of those that there are), or its file is not as it must be.
pub fn load(name: &str) -> Result<Board> {
    known(name).map_err(anyhow::Error::msg)?;
    let file: PathBuf = paths::root().join("boards").join(name).join("board.toml");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    Board::parse(name, &text).with_context(|| format!("{} is not as it must be", file.display()))
}

/// All boards.
///
/// # Errors
/// Those of [`names`] and [`load`].
pub fn all() -> Result<Vec<Board>> {
    names()?.iter().map(|name| load(name)).collect()
}

/// A name on the command line: one of [`names`].
///
/// # Errors
/// A message with the names that there are.
pub fn known(name: &str) -> Result<String, String> {
    let names = names().map_err(|error| format!("{error:#}"))?;
    if names.iter().any(|known| known == name) {
        return Ok(name.to_owned());
    }
    Err(format!("there is no board `{name}`; there are {}", names.join(", ")))
}

/// The same, or `all`.
///
/// # Errors
/// As [`known`].
pub fn known_or_all(name: &str) -> Result<String, String> {
    if name == "all" { Ok(name.to_owned()) } else { known(name).map_err(|why| format!("{why}, and `all`")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_board_file_is_as_it_must_be() {
        let boards = all().unwrap();
        for name in ["imx8mp-evk", "qemu-virt", "raspi3b", "raspi4b", "zcu102"] {
            assert!(boards.iter().any(|board| board.name == name), "{name}");
        }
    }

    #[test]
    fn an_unknown_board_is_answered_with_the_names() {
        let why = known("raspi5").unwrap_err();
        assert!(why.contains("raspi4b") && why.contains("qemu-virt"), "{why}");
        assert!(load("../boards").is_err());
    }

    #[test]
    fn all_is_a_name_only_where_it_makes_sense() {
        assert!(known_or_all("all").is_ok() && known("all").is_err());
    }

    #[test]
    fn every_board_has_its_page() {
        for board in all().unwrap() {
            assert!(
                paths::root().join("boards").join(&board.name).join("README.md").is_file(),
                "{}",
                board.name
            );
        }
    }
}
