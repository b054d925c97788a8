//! Records of the event trace (TRACE_READ): four 64-bit words each.
//!
//! The trace shows what the host itself asked for and was refused; nothing that a protected guest does inside.

/// Bytes of a record.
pub const RECORD_SIZE: u64 = 32;

/// One record, in the order of its words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Record {
    /// CNTVCT_EL0 when it happened; 0 for a record that is being written.
    pub time: u64,
    /// `TENURE_TRACE_*` or the id of a call in bits 31:0, its status in bits 63:32 (signed).
    pub event: u64,
    /// First argument of the call; the physical address of an abort.
    pub a: u64,
    /// Second argument of the call (VCPU_RUN: the exit reason); 1 for a write, 2 for a fetch.
    pub b: u64,
}

constants! { "TENURE_TRACE_";
    /// An access of the host was refused.
    HOST_ABORT = 1;
    /// A call of the host to the firmware was refused: `a` is its id, `b` its first argument.
    SMC_REFUSED = 2;
}

const _: () = assert!(size_of::<Record>() as u64 == RECORD_SIZE);
