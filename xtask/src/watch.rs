//! Watches what the hypervisor does to its stage-2 tables, from outside the machine: a TCG plugin (`assets/watch.c`) logs descriptor
//! writes, TLBIs, barriers and exits of the production image, and [`check`] holds the log against the architecture's rules.

use std::fs;
use std::io::{BufReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::qemu::IMAGE_ADDRESS;
use crate::{exec, paths};

mod check;
mod event;
mod stale;

use check::Checker;
use event::Event;

const SOURCE: &str = include_str!("../assets/watch.c");
const LIMIT: Duration = Duration::from_secs(60);
/// The first QEMU whose plugins can read registers, memory and the values that are stored.
const QEMU: (u32, u32) = (9, 2);

/// A machine that is watched.
pub struct Watched {
    object: PathBuf,
    socket: PathBuf,
    end: u64,
    over: Arc<AtomicBool>,
    reader: JoinHandle<Option<Checker>>,
}

/// Whether this QEMU's plugins can do it.
pub fn is_possible() -> bool {
    let version = exec::output(Command::new("qemu-system-aarch64").arg("--version"));
    version.is_ok_and(|text| version_of(&text).is_some_and(|version| version >= QEMU))
}

/// `QEMU emulator version 10.0.2 (...)`.
fn version_of(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_once("version ")?.1.split(['.', ' ']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

impl Watched {
    /// Compiles the plugin and waits for a machine to call. `name` tells machines apart.
    ///
    /// # Errors
    /// The compiler's own words; or there is no image.
    pub fn prepare(name: &str) -> Result<Self> {
        let dir = paths::target().join("plugin");
        fs::create_dir_all(&dir)?;
        let source = dir.join("watch.c");
        fs::write(&source, SOURCE)?;
        let object = dir.join("watch.so");
        let compiler = if paths::which("gcc").is_some() { "gcc" } else { "cc" };
        let mut gcc = Command::new(compiler);
        gcc.args(["-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=hidden", "-o"])
            .arg(&object)
            .arg(&source);
        exec::logged(&mut gcc, "build-watch", LIMIT)?;
        // Names of sockets are short, so the folder is left out of it.
        let socket = std::env::temp_dir().join(format!("tenure-{}-{name}", std::process::id()));
        let _ = fs::remove_file(&socket);
        let listener =
            UnixListener::bind(&socket).with_context(|| format!("cannot make {}", socket.display()))?;
        listener.set_nonblocking(true)?;
        let end = IMAGE_ADDRESS + image_bytes()?;
        let over = Arc::new(AtomicBool::new(false));
        let reader = thread::spawn({
            let over = over.clone();
            move || accept(&listener, &over).map(|stream| read(stream, Checker::new(IMAGE_ADDRESS..end)))
        });
        Ok(Self { object, socket, end, over, reader })
    }

    /// QEMU's arguments.
    pub fn arguments(&self) -> Vec<String> {
        let (object, socket) = (self.object.display(), self.socket.display());
        let argument = format!("{object},begin={IMAGE_ADDRESS:#x},end={:#x},out={socket}", self.end);
        vec!["-plugin".to_owned(), argument]
    }

    /// After the machine has ended: what was seen, in one line, and what is wrong.
    ///
    /// # Errors
    /// If the machine did not call, or the log was empty.
    pub fn verdict(self) -> Result<(String, Vec<String>)> {
        self.over.store(true, Ordering::Release);
        let checker = self.reader.join().map_err(|_| anyhow!("the checker of the log failed"))?;
        let _ = fs::remove_file(&self.socket);
        let checker = checker.context("QEMU's plugin did not call")?;
        let counts = checker.counts;
        let [host_splits, splits] = counts.blocks.split;
        let [host_merges, merges] = counts.blocks.merged;
        let line = format!(
            "{} descriptor writes ({} taken out, {} made), {} TLBIs, {} DSBs, {} tables compared; \
             guests' blocks: {} given, {splits} split, {merges} merged; the host's: {host_splits} split, {host_merges} merged",
            counts.writes,
            counts.breaks,
            counts.makes,
            counts.tlbis,
            counts.dsbs,
            counts.compared,
            counts.blocks.given
        );
        let mut findings = checker.findings;
        if counts.writes == 0 || counts.tlbis == 0 {
            findings.push(format!("the log is empty: {line}"));
        }
        Ok((line, findings))
    }
}

/// Bytes that the image takes in memory: `image_size` of its header (Documentation/arch/arm64/booting.rst).
fn image_bytes() -> Result<u64> {
    let mut header = [0; 24];
    let path = paths::image();
    fs::File::open(&path)
        .and_then(|mut file| file.read_exact(&mut header))
        .with_context(|| path.display().to_string())?;
    Ok(header[16..].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

/// The machine's call; `None` if it ended without.
fn accept(listener: &UnixListener, over: &AtomicBool) -> Option<UnixStream> {
    loop {
        let last = over.load(Ordering::Acquire);
        if let Ok((stream, _)) = listener.accept() {
            return stream.set_nonblocking(false).is_ok().then_some(stream);
        }
        if last {
            return None;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn read(stream: UnixStream, mut checker: Checker) -> Checker {
    let mut stream = BufReader::with_capacity(1 << 20, stream);
    let mut bytes = [0; event::SIZE];
    while stream.read_exact(&mut bytes).is_ok() {
        match Event::read(&bytes) {
            Some(event) => checker.event(event),
            None => checker.findings.push(format!("the log holds what is no event: {bytes:x?}")),
        }
    }
    checker
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_qemus_own_words() {
        assert_eq!(version_of("QEMU emulator version 10.0.2 (Debian 1:10.0.2)\nCopyright"), Some((10, 0)));
        assert!(version_of("QEMU emulator version 7.2.11").is_some_and(|version| version < QEMU));
        assert_eq!(version_of("nothing"), None);
    }
}
