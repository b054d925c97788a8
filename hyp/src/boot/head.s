// The first instructions, and the start of the other CPUs. MMU and data cache are off here: nothing below may use a
// stack before it is set, nor an atomic instruction.

    .section .head.text, "ax", %progbits
    .global _start
    // arm64 Linux Image header (Linux, Documentation/arch/arm64/booting.rst).
_start:
    b       entry
    .long   0
    .quad   0                           // text_offset
    .quad   image_end - _start          // image_size
    .quad   0b1010                      // flags: little-endian, 4 KiB pages, anywhere in memory
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

entry:
    msr     daifset, #0xf
    mov     x19, x0                     // the device tree
    mrs     x1, currentel
    lsr     x20, x1, #2                 // state: the exception level; 2 is right
    cmp     x20, #2
    b.ne    1f
    bl      el2_reset
    mrs     x1, hcr_el2
    tbz     x1, #34, 1f
    mov     x20, #0x22                  // E2H cannot be cleared
1:
    // Nothing stale of the image's range may stay in a cache: what is written now goes past it.
    adrp    x0, _start
    adrp    x1, image_end
    bl      clean_invalidate
    // Apply the relocations: *(base + offset) = base + addend.
    adrp    x0, _start
    adrp    x1, rela_start
    add     x1, x1, :lo12:rela_start
    adrp    x2, rela_end
    add     x2, x2, :lo12:rela_end
2:  cmp     x1, x2
    b.hs    3f
    ldp     x3, x4, [x1]
    ldr     x5, [x1, #16]
    add     x1, x1, #24
    cmp     w4, #1027                   // R_AARCH64_RELATIVE
    b.ne    2b
    add     x5, x5, x0
    str     x5, [x0, x3]
    b       2b
3:  adrp    x1, bss_start
    add     x1, x1, :lo12:bss_start
    adrp    x2, bss_end
    add     x2, x2, :lo12:bss_end
4:  cmp     x1, x2
    b.hs    5f
    stp     xzr, xzr, [x1], #16
    b       4b
5:  adrp    x1, {boot_cpu}
    add     x1, x1, :lo12:{boot_cpu}
    add     x1, x1, #{stack_top}
    msr     spsel, #1
    mov     sp, x1
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x19
    mov     x1, x20
    bl      {early}
    b       .

// Puts this CPU's EL2 into a known state: MMU off, little-endian, no trap of its own, E2H = 0.
el2_reset:
    mov     x1, #(1 << 31)
    msr     hcr_el2, x1
    isb                                 // E2H decides what CPTR_EL2 below looks like
    mov     x1, #0x0830
    movk    x1, #0x30c5, lsl #16
    msr     sctlr_el2, x1
    mov     x1, #0x33ff
    msr     cptr_el2, x1
    isb
    ret

// Cleans and invalidates [x0, x1) to the point of coherency. Uses x2, x3.
clean_invalidate:
    mrs     x2, ctr_el0
    ubfx    x2, x2, #16, #4
    mov     x3, #4
    lsl     x2, x3, x2
6:  dc      civac, x0
    add     x0, x0, x2
    cmp     x0, x1
    b.lo    6b
    dsb     sy
    ret

// Turns EL2's MMU and caches on. x0: the root table. Uses x1, x2.
    .global tenure_mmu_on
tenure_mmu_on:
    mov     x1, #{mair}
    msr     mair_el2, x1
    mrs     x1, id_aa64mmfr0_el1
    and     x1, x1, #0xf
    cmp     x1, #5
    mov     x2, #5
    csel    x1, x1, x2, ls
    mov     x2, #{tcr_lo}
    movk    x2, #{tcr_hi}, lsl #16
    orr     x2, x2, x1, lsl #16
    msr     tcr_el2, x2
    msr     ttbr0_el2, x0
    isb
    tlbi    alle2
    ic      iallu
    dsb     sy
    isb
    mov     x1, #{sctlr_lo}
    movk    x1, #{sctlr_hi}, lsl #16
    msr     sctlr_el2, x1
    isb
    ret

// Another CPU: from the firmware, from a spin table, or from a power-down. A spin table gives it no argument, so it is
// known by its MPIDR. The table of CPUs was written through the caches, so it is read with them on.
    .global tenure_secondary
tenure_secondary:
    msr     daifset, #0xf
    msr     spsel, #1
    bl      el2_reset
    adrp    x0, {root}
    add     x0, x0, :lo12:{root}
    bl      tenure_mmu_on
    mrs     x1, mpidr_el1
    mov     x2, #{affinity_lo}
    movk    x2, #0xff, lsl #32
    and     x1, x1, x2
    adrp    x2, {cpus}
    add     x2, x2, :lo12:{cpus}
    add     x3, x2, #({max_cpus} * 8)
7:  cmp     x2, x3
    b.hs    8f                          // not a CPU of the device tree
    ldr     x0, [x2], #8
    cbz     x0, 7b
    ldr     x4, [x0, #{cpu_mpidr}]
    cmp     x4, x1
    b.ne    7b
    ldr     x1, [x0, #{cpu_stack}]
    mov     sp, x1
    mov     x29, xzr
    mov     x30, xzr
    bl      {secondary}
8:  wfe
    b       8b

// Enters EL1 for the first time. x0: entry point, x1: its x0, x2: SPSR, x3: top of this CPU's EL2 stack.
    .global tenure_enter_el1
tenure_enter_el1:
    msr     elr_el2, x0
    msr     spsr_el2, x2
    mov     sp, x3
    mov     x0, x1
    mov     x1, xzr
    mov     x2, xzr
    mov     x3, xzr
    .irp    n, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
    mov     x\n, xzr
    .endr
    eret
    dsb     nsh
    isb
