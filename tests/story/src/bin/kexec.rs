//! `tenure-kexec KERNEL RAMDISK WORDS` starts another kernel in the place of this one;
//! `tenure-kexec --crash KERNEL RAMDISK WORDS` loads it for when this one panics.

use std::env;
use std::process::ExitCode;

use anyhow::{Result, bail};
use story::kexec::{self, When};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("kexec: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--crash", kernel, ramdisk, words] => {
            kexec::load(kernel, ramdisk, words, When::Crash)?;
            println!("kexec: a crash kernel is loaded");
            Ok(())
        }
        [kernel, ramdisk, words] => {
            kexec::load(kernel, ramdisk, words, When::Asked)?;
            println!("kexec: into another kernel");
            Err(kexec::execute().into())
        }
        _ => bail!("[--crash] KERNEL RAMDISK WORDS"),
    }
}
