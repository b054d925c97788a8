//! Tells the linker how to make the image: position-independent, by the script in `linker/`.

fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let script = format!("{here}/../linker/tenure.ld");
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    for arg in
        [&format!("-T{script}"), "-pie", "--no-dynamic-linker", "-znorelro", "-zmax-page-size=4096", "-ztext"]
    {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
}
