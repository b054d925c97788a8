//! Numbers of the SMC Calling Convention (DEN 0028) and of KVM's vendor service that stock guests use.

constants! { "TENURE_SMCCC_";
    /// SMCCC_VERSION.
    VERSION = 0x8000_0000;
    /// SMCCC_ARCH_FEATURES.
    ARCH_FEATURES = 0x8000_0001;
    /// Vendor-specific hypervisor service: call UID query.
    VENDOR_HYP_UID = 0x8600_FF01;
    /// KVM vendor service: bitmap of functions offered.
    KVM_FEATURES = 0x8600_0000;
    /// KVM vendor service: HYP_MEMINFO, the granule of share and unshare in bytes.
    KVM_MEMINFO = 0xC600_0002;
    /// KVM vendor service: share the page at IPA x1 with the host.
    KVM_MEM_SHARE = 0xC600_0003;
    /// KVM vendor service: take the page at IPA x1 back from the host.
    KVM_MEM_UNSHARE = 0xC600_0004;
}

/// UID of the KVM vendor service in x0..x3 (28b46fb6-2ec5-11e9-a9ca-4b564d003a74), shown to guests.
pub const KVM_UID: [u32; 4] = [0xb66f_b428, 0xe911_c52e, 0x564b_caa9, 0x743a_004d];

/// UID of Tenure itself (74656e75-7265-4c32-8b6d-61726d363430), shown to the host.
pub const TENURE_UID: [u32; 4] = [0x756e_6574, 0x324c_6572, 0x7261_6d8b, 0x3034_366d];

/// SMCCC NOT_SUPPORTED, sign-extended to 64 bits.
pub const NOT_SUPPORTED: u64 = u64::MAX;

/// SMCCC INVALID_PARAMETER, sign-extended to 64 bits: the only failure a stock guest knows.
pub const INVALID_PARAMETER: u64 = -3i64 as u64;
