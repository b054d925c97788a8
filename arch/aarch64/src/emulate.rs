//! Loads and stores of a guest that somebody else carries out: what they give, and what they take. Pure.

use crate::esr::Access;
use crate::switch::GuestFrame;

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

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Access = Access { size: 1, sign_extend: false, register: 3, wide: false, write: false };

    fn loaded(access: Access, answer: u64) -> u64 {
        let mut frame = GuestFrame::default();
        frame.x[3] = u64::MAX;
        complete_load(&mut frame, access, answer);
        frame.x[3]
    }

    #[test]
    fn a_store_shows_the_bytes_that_it_writes_and_no_more() {
        let mut frame = GuestFrame::default();
        frame.x[3] = 0x1122_3344_5566_7788;
        assert_eq!(stored(&frame, Access { write: true, ..LOAD }), 0x88);
        assert_eq!(stored(&frame, Access { size: 4, ..LOAD }), 0x5566_7788);
        assert_eq!(stored(&frame, Access { size: 8, ..LOAD }), frame.x[3]);
        assert_eq!(stored(&frame, Access { register: 31, ..LOAD }), 0);
    }

    #[test]
    fn a_load_clears_what_it_does_not_write() {
        assert_eq!(loaded(LOAD, 0xffff_ffff_ffff_ff80), 0x80);
        assert_eq!(loaded(Access { size: 2, ..LOAD }, 0x1_8000), 0x8000);
    }

    #[test]
    fn a_signed_load_extends_to_the_width_of_its_register() {
        let signed = Access { sign_extend: true, ..LOAD };
        assert_eq!(loaded(signed, 0x80), 0xffff_ff80);
        assert_eq!(loaded(Access { wide: true, ..signed }, 0x80), 0xffff_ffff_ffff_ff80);
        assert_eq!(loaded(Access { wide: true, size: 4, ..signed }, 0x8000_0000), 0xffff_ffff_8000_0000);
        assert_eq!(loaded(Access { wide: true, ..signed }, 0x7f), 0x7f);
    }
}
