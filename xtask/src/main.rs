//! The build tool (written in the next commits).
fn main() {}
