//! Tells the linker how to make the image: position-independent, by the script in `linker/`.

fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let script = format!("{here}/../linker/tenure.ld");
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    // Cortex-A53 erratum 843419: an ADRP in the last words of a page may give a wrong address; the linker moves it.
    for arg in [
        &format!("-T{script}"),
        "-pie",
        "--no-dynamic-linker",
        "-znorelro",
        "-zmax-page-size=4096",
        "-ztext",
        "--fix-cortex-a53-843419",
    ] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
}
