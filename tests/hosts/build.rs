//! Links the hosts as arm64 `Image`s and finds the guest payloads that they embed.

use std::env;
use std::path::PathBuf;

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../rt/image.ld");
    println!("cargo:rerun-if-changed={script}");
    let arguments = [
        "-pie",
        "--no-dynamic-linker",
        "--oformat=binary",
        "--hash-style=sysv",
        "--defsym=__stack_bytes=0x80000",
        "--defsym=__image_limit=0x200000",
    ];
    println!("cargo:rustc-link-arg-bins=-T{script}");
    for argument in arguments {
        println!("cargo:rustc-link-arg-bins={argument}");
    }

    // OUT_DIR is <target>/<triple>/<profile>/build/<package>/out; the guest lies in <profile>.
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let guest = out.ancestors().nth(3).map(|folder| folder.join("guest-basic")).unwrap_or_default();
    println!("cargo:rerun-if-changed={}", guest.display());
    // Only a build for the machine needs the payload; a look at the code (clippy, the editor) does without.
    let guest = if guest.exists() {
        guest
    } else {
        println!("cargo:warning={} is missing: build tenure-test-guests first", guest.display());
        let empty = out.join("guest-basic");
        if let Err(error) = std::fs::write(&empty, []) {
            println!("cargo::error=cannot write {}: {error}", empty.display());
        }
        empty
    };
    println!("cargo:rustc-env=TENURE_GUEST_BASIC={}", guest.display());
}
