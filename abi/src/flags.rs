//! Flags and small enumerations that calls take.

/// Flags of VM_CREATE.
pub mod vm {
    constants! { "TENURE_VM_";
        /// The guest is protected: once active, only it decides what is shared.
        PROTECTED = 1 << 0;
        /// The guest may use UNSHARE with REVOKE.
        RIGHT_REVOKE = 1 << 1;
    }
    /// Every flag that is defined; any other is refused.
    pub const ALL: u64 = PROTECTED | RIGHT_REVOKE;
}

/// Flags of the guest's UNSHARE.
pub mod unshare {
    constants! { "TENURE_UNSHARE_";
        /// Where a pin stands in the way, start to drain instead of refusing: the answer is PENDING.
        DRAIN = 1 << 0;
        /// Take the host's CPU access away in spite of CPU pins (needs the VM's right).
        REVOKE = 1 << 1;
        /// Zero the pages before they are private. At most 32 pages are done by one call.
        ZERO = 1 << 2;
        /// With DRAIN: park the vCPU until the page has drained; the call then answers SUCCESS.
        WAIT = 1 << 3;
    }
    /// Every flag that is defined; any other is refused.
    pub const ALL: u64 = DRAIN | REVOKE | ZERO | WAIT;
}

/// Kind of a pin.
pub mod pin {
    constants! { "TENURE_PIN_";
        /// The host's CPUs use the page.
        CPU = 0;
        /// A device uses the page.
        DMA = 1;
    }
}

/// Status of a guest address that has no frame, and target of CONVERT.
pub mod status {
    constants! { "TENURE_ADDR_";
        /// Nothing is declared here: an access is an abort in a protected guest.
        NONE = 0;
        /// RAM that only the guest may touch.
        PRIVATE = 1;
        /// RAM that the guest shares with the host.
        SHARED = 2;
        /// A device that the host emulates: the only place where an MMIO exit exists.
        DEVICE = 3;
        /// RAM that the guest gave back; its next touch asks for a private frame.
        RELINQUISHED = 4;
    }
}

/// Operation that QUERY_GUEST gives the verdict of.
pub mod query {
    constants! { "TENURE_QUERY_";
        /// The guest's share of one page.
        SHARE = 0;
        /// The guest's unshare of one page without flags.
        UNSHARE = 1;
        /// The host's reclaim of one page.
        RECLAIM = 2;
    }
}

/// What VCPU_INJECT puts into the guest.
pub mod inject {
    constants! { "TENURE_INJECT_";
        /// A synchronous external data abort at the address of the last exit.
        DATA_ABORT = 0;
    }
}
