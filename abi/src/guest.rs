//! Tenure's own calls for guests (functions 0x200 up); stock guests use [`crate::smccc`].
//!
//! Results are a [`Reply`](crate::Reply) in x0..x3. Addresses are guest physical addresses in bytes.

constants! { "TENURE_GUEST_";
    /// () -> x1 = ABI version.
    VERSION = 0xC600_0200;
    /// (ipa, count): shares pages with the host; contents stay.
    SHARE = 0xC600_0201;
    /// (ipa, count, flags): takes pages back, TENURE_UNSHARE_*; contents stay.
    UNSHARE = 0xC600_0202;
    /// (ipa, count): gives pages back to the host, scrubbed.
    RELINQUISH = 0xC600_0203;
    /// (ipa) -> x4 = the page word or 0, x5 = address status, x6 = 1 if DMA is contained on this board.
    QUERY = 0xC600_0204;
    /// () -> x4..x7 = SHA-256 of everything the host placed before activation, in order.
    MEASUREMENT = 0xC600_0205;
    /// (a1..a6) -> x0 = the host's answer: leaves to the VMM as a hypercall exit.
    HOST_CALL = 0xC600_0210;
}
