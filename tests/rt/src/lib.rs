//! Support for bare-metal programs at EL1: test guests and test hosts.
//!
//! A program brings `rt_main` by [`entry!`], runs with its MMU on and an identity map, and owns the CPU. It may touch memory
//! that is not its own through [`probe`], where a fault is an answer.
#![no_std]

pub mod call;
pub mod console;
pub mod cpu;
pub mod harness;
#[cfg(feature = "heap")]
pub mod heap;
pub mod memory;
pub mod probe;
pub mod smp;
pub mod start;
pub mod vectors;
pub mod window;

/// Names the function that the start code calls with x0 of the entry: `fn(u64) -> !`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        /// Called by the start code, once, on the first CPU.
        #[allow(unsafe_code)] // The symbol that the start code jumps to.
        #[unsafe(no_mangle)]
        extern "C" fn rt_main(x0: u64) -> ! {
            let main: fn(u64) -> ! = $main;
            main(x0)
        }
    };
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("panic: {info}");
    harness::abandon("panic")
}
