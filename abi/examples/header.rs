//! Prints the C header of the interface: `cargo run -p tenure-abi --example header > tenure_abi.h`.

fn main() -> std::fmt::Result {
    let mut text = String::new();
    tenure_abi::header::write(&mut text)?;
    print!("{text}");
    Ok(())
}
