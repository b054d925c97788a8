//! Reads all of /proc/vmcore in a crash kernel, and looks for what the guests of the kernel before had written: what they
//! shared is there, what they kept private is not (`tenure-hold` filled both).

use std::fs::File;
use std::io::Read;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use story::secret::{PRIVATE, SHARED};

/// Equal words in a row that are no accident: registers and arguments of the old kernel hold single ones.
const ROW: u32 = 64;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("vmcore: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut core = File::open("/proc/vmcore").context("cannot open /proc/vmcore")?;
    let mut bytes = vec![0; 1 << 20];
    let (mut total, mut last, mut row) = (0, 0, 0);
    let (mut shared, mut private) = (0, 0);
    loop {
        let mut filled = 0;
        while filled < bytes.len() {
            match core.read(&mut bytes[filled..]).with_context(|| format!("after {total} bytes"))? {
                0 => break,
                read => filled += read,
            }
        }
        if filled == 0 {
            break;
        }
        total += filled;
        for word in bytes[..filled].chunks_exact(8) {
            let word = u64::from_le_bytes(word.try_into()?);
            row = if word == last { row + 1 } else { 1 };
            last = word;
            if row == ROW {
                shared += u64::from(word == SHARED);
                private += u64::from(word == PRIVATE);
            }
        }
    }
    println!(
        "vmcore: read {} MiB: shared memory of a guest {shared} times, private {private} times",
        total >> 20
    );
    ensure!(private == 0, "A SECRET of a guest is in the core file");
    ensure!(shared > 0, "what the guest shared is not there: the search is blind");
    Ok(())
}
