//! Loads and stores that the host emulates.

use tenure_arch::esr::Access;
use tenure_arch::switch::GuestFrame;

/// Low bits of a value, `size` bytes of them.
const fn low(value: u64, size: u8) -> u64 {
    match size {
        1 => value as u8 as u64,
        2 => value as u16 as u64,
        4 => value as u32 as u64,
        _ => value,
    }
}

/// What a store of the guest writes: of all its registers the host sees these bits only.
pub fn stored(frame: &GuestFrame, access: Access) -> u64 {
    low(frame.read(access.register), access.size)
}

/// Puts what the host answered into the register of a load.
pub fn complete_load(frame: &mut GuestFrame, access: Access, answer: u64) {
    let value = low(answer, access.size);
    let value = match (access.sign_extend, access.size) {
        (true, 1) => value as u8 as i8 as i64 as u64,
        (true, 2) => value as u16 as i16 as i64 as u64,
        (true, 4) => value as u32 as i32 as i64 as u64,
        _ => value,
    };
    // A load into a W register clears the upper half.
    frame.write(access.register, if access.wide { value } else { low(value, 4) });
}
