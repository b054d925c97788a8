//! Registers of a vCPU by number (REG_GET, REG_SET).

constants! { "TENURE_REG_";
    /// x0; x1 to x30 follow.
    X0 = 0;
    /// SP_EL0.
    SP_EL0 = 31;
    /// The program counter.
    PC = 32;
    /// PSTATE, in SPSR format.
    PSTATE = 33;
    /// SP_EL1.
    SP_EL1 = 34;
    /// ELR_EL1.
    ELR_EL1 = 35;
    /// SPSR_EL1.
    SPSR_EL1 = 36;
    /// SCTLR_EL1.
    SCTLR_EL1 = 37;
    /// MPIDR_EL1 as the guest sees it (read only).
    MPIDR_EL1 = 38;
    /// VBAR_EL1.
    VBAR_EL1 = 39;
    /// TTBR0_EL1.
    TTBR0_EL1 = 40;
    /// TTBR1_EL1.
    TTBR1_EL1 = 41;
    /// TCR_EL1.
    TCR_EL1 = 42;
    /// MAIR_EL1.
    MAIR_EL1 = 43;
    /// ESR_EL1.
    ESR_EL1 = 44;
    /// FAR_EL1.
    FAR_EL1 = 45;
    /// CNTV_CTL_EL0.
    CNTV_CTL = 46;
    /// CNTV_CVAL_EL0.
    CNTV_CVAL = 47;
    /// 1 if the vCPU is powered on, 0 if it waits for CPU_ON.
    POWER = 48;
}
