//! The run page: how a vCPU's exit is told and answered.

macro_rules! run_page {
    ($( $(#[doc = $doc:literal])+ $name:ident, )+) => {
        /// Page shared between the host and the hypervisor, one a vCPU; all fields are 64-bit little-endian.
        ///
        /// The hypervisor writes it when it leaves a vCPU and reads `data` when it enters, by copy. An exit of a
        /// protected vCPU fills only the fields that its reason names; all others are zero.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        #[repr(C)]
        pub struct RunPage {
            $( $(#[doc = $doc])+ pub $name: u64, )+
            /// Arguments a1..a6 of a HYPERCALL exit.
            pub args: [u64; 6],
        }

        /// Names of the 64-bit fields in order (before `args`), for the generated C header.
        pub const FIELDS: &[(&str, &str)] = &[ $( (stringify!($name), concat!($($doc),+)), )+ ];
    };
}

run_page! {
    /// Why the vCPU left (`TENURE_EXIT_*`).
    reason,
    /// Guest physical address in bytes.
    gpa,
    /// Pages that the request covers.
    count,
    /// Flags of the request (`TENURE_UNSHARE_*`).
    flags,
    /// Number of the request: CONSENT and REFUSE must name it, once.
    sequence,
    /// Index of the first page that blocks.
    first,
    /// What blocks it (`TENURE_BLOCK_*`).
    mask,
    /// Status of the address (`TENURE_ADDR_*`).
    status,
    /// Bytes of an MMIO access: 1, 2, 4 or 8.
    width,
    /// 1 for a write.
    write,
    /// Value written by the guest; value that the host gives to a read or a hypercall.
    data,
    /// `TENURE_SYSTEM_*`.
    system,
    /// Index of the vCPU that CPU_ON started.
    target,
    /// ESR_EL2 of a FAULT exit, with what a protected guest may not show removed.
    esr,
    /// CNTV_CTL_EL0 of the vCPU.
    timer_ctl,
    /// CNTV_CVAL_EL0 of the vCPU.
    timer_cval,
}

const _: () = assert!(size_of::<RunPage>() == (FIELDS.len() + 6) * 8);
const _: () = assert!(size_of::<RunPage>() <= crate::PAGE_SIZE as usize);
