// See vectors.rs for the contract. DDI 0487 D1.3.1.5 gives the offsets.

// One vector of an exception that EL2 took from itself. \off: its offset in the table.
.macro EL2_FAILED off
    .balign 0x80
    msr     tpidr_el1, x0
    mov     x0, #\off
    b       tenure_el2_failed
.endm

// One vector of an exception from a lower EL; \kind names the guest's handler, \host what the host's is.
.macro FROM_LOWER kind, host
    .balign 0x80
    stp     x16, x17, [sp, #-16]!
    mrs     x17, tpidr_el2
    ldr     x17, [x17, #{CPU_VCPU}]
    cbnz    x17, tenure_guest_exit_\kind
    b       \host
.endm

    .section .text.tenure_vectors, "ax", %progbits
    .balign 0x800
    .global tenure_vectors
    .type tenure_vectors, %object
tenure_vectors:
    EL2_FAILED 0x000
    EL2_FAILED 0x080
    EL2_FAILED 0x100
    EL2_FAILED 0x180
    EL2_FAILED 0x200
    EL2_FAILED 0x280
    EL2_FAILED 0x300

    // SError of EL2 itself: that of a guest that was just left if it comes in the window of switch.s, else a failure.
    .balign 0x80
    msr     tpidr_el1, x0
    msr     tpidrro_el0, x1
    mrs     x0, elr_el2
    adr     x1, tenure_serror_open
    cmp     x0, x1
    b.lo    1f
    adr     x1, tenure_serror_close
    cmp     x0, x1
    b.hi    1f
    mov     x0, #1
    eret
    dsb     nsh
    isb
1:  mrs     x1, tpidrro_el0
    mov     x0, #0x380
    b       tenure_el2_failed

    // Lower EL, AArch64, synchronous: the host's calls first, and the version call is answered on the spot.
    .balign 0x80
    stp     x16, x17, [sp, #-16]!
    mrs     x17, tpidr_el2
    ldr     x17, [x17, #{CPU_VCPU}]
    cbnz    x17, tenure_guest_exit_sync
    mrs     x16, esr_el2
    lsr     x17, x16, #26
    cmp     x17, #0x16
    b.ne    tenure_host_exit
    movz    w17, #{FAST_ID_LO}
    movk    w17, #{FAST_ID_HI}, lsl #16
    cmp     w0, w17
    b.ne    tenure_host_exit
    movz    w1, #{FAST_VERSION_HI}, lsl #16
    ldp     x16, x17, [sp], #16
    mov     x0, #0
    mov     x2, #-1
    mov     x3, #0
    eret
    // Straight-line speculation past ERET stops here.
    dsb     nsh
    isb

    FROM_LOWER irq, tenure_host_unexpected
    FROM_LOWER fiq, tenure_host_unexpected
    FROM_LOWER serror, tenure_host_unexpected

    // Lower EL, AArch32: EL0 of the host can fault here, never call.
    .balign 0x80
    stp     x16, x17, [sp, #-16]!
    mrs     x17, tpidr_el2
    ldr     x17, [x17, #{CPU_VCPU}]
    cbnz    x17, tenure_guest_exit_sync
    mrs     x16, esr_el2
    b       tenure_host_exit
    FROM_LOWER irq, tenure_host_unexpected
    FROM_LOWER fiq, tenure_host_unexpected
    FROM_LOWER serror, tenure_host_unexpected
    .balign 0x80

// The host, any synchronous exception: x16 = ESR_EL2; its x16, x17 at sp.
tenure_host_exit:
    sub     sp, sp, #({HOST_FRAME_SIZE} - 16)
    stp     x0, x1, [sp, #0]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    mov     x1, x16
    ldp     x16, x17, [sp, #({HOST_FRAME_SIZE} - 16)]
    stp     x16, x17, [sp, #128]
    stp     x18, x30, [sp, #144]
    mov     x0, sp
    bl      tenure_host_sync
    ldp     x0, x1, [sp, #0]
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x30, [sp, #144]
    add     sp, sp, #{HOST_FRAME_SIZE}
    eret
    dsb     nsh
    isb

// An interrupt or SError of the host at EL2: HCR_EL2 routes none here, so EL2's own state is wrong.
tenure_host_unexpected:
    ldp     x16, x17, [sp], #16
    msr     tpidr_el1, x0
    mov     x0, #0x480
    b       tenure_el2_failed

// EL2 failed: x0 = the vector's offset, the real x0 in TPIDR_EL1. Saves everything on the crash stack.
tenure_el2_failed:
    // A second failure, while the first is reported, overwrites its frame; the reporter notices and stops at once.
    msr     tpidrro_el0, x1
    mrs     x1, tpidr_el2
    ldr     x1, [x1, #{CPU_CRASH_STACK}]
    sub     x1, x1, #{CRASH_FRAME_SIZE}
    str     x0, [x1, #(37 * 8)]
    mrs     x0, tpidr_el1
    stp     x2, x3, [x1, #16]
    stp     x4, x5, [x1, #32]
    stp     x6, x7, [x1, #48]
    stp     x8, x9, [x1, #64]
    stp     x10, x11, [x1, #80]
    stp     x12, x13, [x1, #96]
    stp     x14, x15, [x1, #112]
    stp     x16, x17, [x1, #128]
    stp     x18, x19, [x1, #144]
    stp     x20, x21, [x1, #160]
    stp     x22, x23, [x1, #176]
    stp     x24, x25, [x1, #192]
    stp     x26, x27, [x1, #208]
    stp     x28, x29, [x1, #224]
    mov     x2, sp
    stp     x30, x2, [x1, #240]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [x1, #256]
    mrs     x2, esr_el2
    mrs     x3, far_el2
    stp     x2, x3, [x1, #272]
    mrs     x2, hpfar_el2
    str     x2, [x1, #288]
    mrs     x2, tpidrro_el0
    stp     x0, x2, [x1, #0]
    mov     sp, x1
    mov     x0, x1
    mov     x29, xzr
    mov     x30, xzr
    bl      tenure_el2_crash
1:  wfe
    b       1b
