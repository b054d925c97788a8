//! Memory that was there before the program: the device tree.
#![allow(unsafe_code)] // Makes a slice of the bytes that the boot protocol points to.

/// The device tree at `address`, by its header's total size; `None` where there is none.
pub fn device_tree(address: u64) -> Option<&'static [u8]> {
    const MAGIC: u32 = 0xd00d_feed;
    const LIMIT: u32 = 2 << 20;
    if address == 0 || !address.is_multiple_of(8) {
        return None;
    }
    let magic = header_word(address, 0);
    let size = header_word(address, 4);
    if magic != MAGIC || size > LIMIT {
        return None;
    }
    // SAFETY: the boot protocol promises a tree of `size` bytes at this aligned address, of at most 2 MiB, which nobody
    // changes while the program runs.
    Some(unsafe { core::slice::from_raw_parts(address as *const u8, size as usize) })
}

fn header_word(address: u64, offset: u64) -> u32 {
    let pointer = (address + offset) as *const u32;
    // SAFETY: the address is in RAM that the boot protocol names, aligned to 8 bytes.
    u32::from_be(unsafe { pointer.read_volatile() })
}
