//! What `tenure-hold` has its guest write all over pages, for a crash kernel to look for.

/// In pages that stay the guest's.
pub const PRIVATE: u64 = 0x5ec4_e75e_c4e7;
/// In pages that the guest shares.
pub const SHARED: u64 = 0x5a4e_d5a4_ed00;
