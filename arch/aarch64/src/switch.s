// The world switch of general registers; see switch.rs for the contract.

    .section .text.tenure_switch, "ax", %progbits

// u64 tenure_guest_enter(GuestFrame *frame, CpuHead *cpu): runs the guest until something needs Rust.
// The frame of the caller stays on the stack; every exit comes back to it.
    .balign 16
    .global tenure_guest_enter
    .type tenure_guest_enter, %function
tenure_guest_enter:
    stp     x29, x30, [sp, #-96]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    str     x0, [x1, #{CPU_VCPU}]
    mov     x17, x0
    ldp     x2, x3, [x17, #{PC}]
    msr     elr_el2, x2
    msr     spsr_el2, x3
    ldr     x19, [x17, #(19 * 8)]
    ldp     x20, x21, [x17, #(20 * 8)]
    ldp     x22, x23, [x17, #(22 * 8)]
    ldp     x24, x25, [x17, #(24 * 8)]
    ldp     x26, x27, [x17, #(26 * 8)]
    ldp     x28, x29, [x17, #(28 * 8)]

// x17 = frame; x19 to x29, ELR_EL2 and SPSR_EL2 are the guest's already.
tenure_guest_resume:
    ldp     x0, x1, [x17, #0]
    ldp     x2, x3, [x17, #16]
    ldp     x4, x5, [x17, #32]
    ldp     x6, x7, [x17, #48]
    ldp     x8, x9, [x17, #64]
    ldp     x10, x11, [x17, #80]
    ldp     x12, x13, [x17, #96]
    ldp     x14, x15, [x17, #112]
    ldr     x18, [x17, #144]
    ldr     x30, [x17, #240]
    ldp     x16, x17, [x17, #128]
    eret
    // Straight-line speculation past ERET stops here.
    dsb     nsh
    isb

// From the vectors: x17 = frame, the guest's x16 and x17 at sp, all else the guest's. Saves x0 to x18 and x30.
.macro SAVE_CALLER_SAVED
    stp     x0, x1, [x17, #0]
    ldp     x0, x1, [sp], #16
    stp     x2, x3, [x17, #16]
    stp     x4, x5, [x17, #32]
    stp     x6, x7, [x17, #48]
    stp     x8, x9, [x17, #64]
    stp     x10, x11, [x17, #80]
    stp     x12, x13, [x17, #96]
    stp     x14, x15, [x17, #112]
    stp     x0, x1, [x17, #128]
    str     x18, [x17, #144]
    str     x30, [x17, #240]
.endm

    .balign 16
    .global tenure_guest_exit_sync
tenure_guest_exit_sync:
    SAVE_CALLER_SAVED
    mrs     x1, esr_el2
    mov     w2, #{ESR_HVC_HI}
    cmp     x1, x2, lsl #16
    b.ne    2f
    // HVC #0, a call: most are answered with x19 to x29 still in their registers.
    mov     x0, x17
    bl      tenure_guest_call
    mrs     x17, tpidr_el2
    ldr     x17, [x17, #{CPU_VCPU}]
    cbz     x0, tenure_guest_resume
    mov     x0, #{EXIT_CALL}
    b       tenure_guest_leave
2:  mov     x0, #{EXIT_SYNC}
    b       tenure_guest_leave

    .global tenure_guest_exit_irq
tenure_guest_exit_irq:
    SAVE_CALLER_SAVED
    mov     x0, #{EXIT_IRQ}
    b       tenure_guest_leave

    .global tenure_guest_exit_fiq
tenure_guest_exit_fiq:
    SAVE_CALLER_SAVED
    mov     x0, #{EXIT_IRQ}
    b       tenure_guest_leave

    .global tenure_guest_exit_serror
tenure_guest_exit_serror:
    SAVE_CALLER_SAVED
    mov     x0, #{EXIT_SERROR}

// x0 = kind of exit, x17 = frame: saves the rest of the guest's registers and returns from tenure_guest_enter.
tenure_guest_leave:
    str     x19, [x17, #(19 * 8)]
    stp     x20, x21, [x17, #(20 * 8)]
    stp     x22, x23, [x17, #(22 * 8)]
    stp     x24, x25, [x17, #(24 * 8)]
    stp     x26, x27, [x17, #(26 * 8)]
    stp     x28, x29, [x17, #(28 * 8)]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [x17, #{PC}]
    mrs     x1, tpidr_el2
    str     xzr, [x1, #{CPU_VCPU}]
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp], #96
    ret

// u64 tenure_serror_window(void): takes a pending SError, if there is one, between the two labels; the vector of EL2's
// own SErrors then sets x0 to 1 and comes back. TPIDR_EL1, TPIDRRO_EL0, ELR_EL2 and SPSR_EL2 must be dead.
    .balign 16
    .global tenure_serror_window
    .type tenure_serror_window, %function
tenure_serror_window:
    mov     x0, #0
    msr     daifclr, #4
    .global tenure_serror_open
tenure_serror_open:
    isb
    nop
    .global tenure_serror_close
tenure_serror_close:
    msr     daifset, #4
    isb
    ret
