//! Tables of eight entries: see `tenure_mm::stage2::TABLE_BITS`.

fn main() {
    println!("cargo::rustc-cfg=small_tables");
    println!("cargo::rerun-if-changed=build.rs");
}
