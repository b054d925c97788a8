//! Links the payloads as flat binaries of at most `IMAGE_BYTES`, stack included.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../rt/image.ld");
    println!("cargo:rerun-if-changed={script}");
    let arguments = [
        "-pie",
        "--no-dynamic-linker",
        "--oformat=binary",
        "--defsym=__stack_bytes=0x4000",
        "--defsym=__image_limit=0x10000",
        "--hash-style=sysv",
    ];
    println!("cargo:rustc-link-arg-bins=-T{script}");
    for argument in arguments {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
