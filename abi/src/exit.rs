//! Why a vCPU left to the host (x4 of VCPU_RUN and [`crate::RunPage::reason`]).

constants! { "TENURE_EXIT_";
    /// A physical interrupt is pending for the host.
    INTERRUPT = 1;
    /// Access to a device address: `gpa`, `width`, `write`, `data`; answer a read in `data`.
    MMIO = 2;
    /// A touch of RAM without a frame: donate `count` frames at `gpa` of kind `status`, or map (plain VM), and run again.
    POPULATE = 3;
    /// The guest asked for a conversion that host leaves or (stock guest) pins block: `gpa`, `count`, `flags`,
    /// `sequence`, `first`, `mask`. Answer with CONSENT or REFUSE.
    CONVERT = 4;
    /// The vCPU waits until the page at `gpa` has drained; run it again when UNPIN says so.
    DRAIN = 5;
    /// HOST_CALL of the guest: `args`; answer in `data`.
    HYPERCALL = 6;
    /// The guest asked for power-off or reset: `system` = TENURE_SYSTEM_*.
    SYSTEM = 7;
    /// The guest executes WFI and nothing is pending.
    WFI = 8;
    /// The VM's pool is short of table memory: top it up and run again.
    TABLES = 9;
    /// PSCI CPU_ON of the guest started vCPU `target`.
    CPU_ON = 10;
    /// This vCPU is off.
    OFF = 11;
    /// The guest did what cannot be resumed (an abort with no vector, an access no one can emulate): `esr`, `gpa`.
    FAULT = 12;
    /// The vCPU's virtual timer fired and is masked: `timer_ctl`, `timer_cval`.
    TIMER = 13;
}

/// Kinds of a system exit.
pub mod system {
    constants! { "TENURE_SYSTEM_";
        /// PSCI SYSTEM_OFF.
        OFF = 1;
        /// PSCI SYSTEM_RESET.
        RESET = 2;
        /// The guest cannot go on.
        CRASH = 3;
    }
}
