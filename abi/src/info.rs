//! What FEATURES and INFO tell.

/// Bits of FEATURES.
pub mod feature {
    constants! { "TENURE_FEATURE_";
        /// VMs can be created on this board (its interrupt controller can be left by a guest).
        GUESTS = 1 << 0;
        /// An IOMMU driven by the hypervisor contains DMA.
        DMA_CONTAINED = 1 << 1;
        /// The CPUs have FEAT_S2FWB.
        FWB = 1 << 2;
    }
}

constants! { "TENURE_INFO_";
    /// RAM frames that the hypervisor keeps a word for.
    FRAMES = 0;
    /// Bytes of RAM that the host does not get.
    KEPT_BYTES = 1;
    /// VMs at one time.
    MAX_VMS = 2;
    /// vCPUs of one VM.
    MAX_VCPUS = 3;
    /// Bits of a guest physical address that a guest can use.
    IPA_BITS = 4;
    /// First RAM frame.
    FIRST_PFN = 5;
    /// One past the last RAM frame.
    END_PFN = 6;
    /// Times a host access found a page that is not the host's and was refused.
    HOST_ABORTS = 7;
    /// Times a host access was redirected to a scrap frame.
    SCRAP_TOUCHES = 8;
    /// Pages a VM's pool needs before VM_ACTIVATE can succeed.
    MIN_POOL = 9;
    /// Stage-2 TLB invalidations issued.
    TLBIS = 10;
    /// Calls of the host to the firmware that were refused.
    SMCS_REFUSED = 11;
}
