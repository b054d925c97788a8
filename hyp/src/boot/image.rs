//! Where the parts of the running image are.
#![allow(unsafe_code)]

use tenure_dt::Region;

unsafe extern "C" {
    static image_start: u8;
    static rodata_start: u8;
    static data_start: u8;
    static image_end: u8;
}

macro_rules! address {
    ($symbol:ident) => {
        (&raw const $symbol) as u64
    };
}

/// The whole image, `.bss` included, in whole pages.
pub fn whole() -> Region {
    Region::between(address!(image_start), address!(image_end))
}

/// Instructions.
pub fn text() -> Region {
    Region::between(address!(image_start), address!(rodata_start))
}

/// Constants, and what the relocation made constant.
pub fn rodata() -> Region {
    Region::between(address!(rodata_start), address!(data_start))
}

/// All that is written.
pub fn data() -> Region {
    Region::between(address!(data_start), address!(image_end))
}
