//! Where things are: the repository, what is built in it, and the cache of things fetched.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The root of the repository (the folder of the workspace's `Cargo.toml`).
pub fn root() -> PathBuf {
    // Cargo sets this for `cargo run`; the compiled-in value serves a binary that is started by hand.
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// Cargo's target folder, where everything built goes.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Logs of build steps and serial consoles.
pub fn logs() -> PathBuf {
    target().join("log")
}

/// The hypervisor's image: a raw file with the arm64 Linux `Image` header.
pub fn image() -> PathBuf {
    target().join("tenure.img")
}

/// The hypervisor's image of the feature `unknown-resets`: every register starts with the worst value.
pub fn unknown_resets_image() -> PathBuf {
    target().join("tenure-unknown-resets.img")
}

/// What is fetched once a machine and survives `cargo clean`: `${XDG_CACHE_HOME:-~/.cache}/tenure`.
pub fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
            .join(".cache"),
    };
    Ok(base.join("tenure"))
}

/// The device trees of all boards that Debian's kernel knows, one folder a vendor (`broadcom/bcm2711-rpi-4-b.dtb`): there
/// after `cargo xtask setup --boards`. In the cache it is `kernel-6.12-full/dtbs`, beside that kernel's `Image`.
pub fn board_trees() -> Result<PathBuf> {
    Ok(cache()?.join(crate::setup::debs::Flavour::Full.kernel_dir()).join("dtbs"))
}

/// Looks a program up in `PATH`.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}
