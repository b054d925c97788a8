// FP/SIMD and SVE registers to and from memory; see fp.rs. EL2 is built without them: only these functions touch any.
    .arch_extension fp
    .arch_extension simd
    .arch_extension sve

    .section .text.tenure_fp, "ax", %progbits

// void tenure_fp_save(void *registers): v0 to v31, 16 bytes each.
    .balign 16
    .global tenure_fp_save
    .type tenure_fp_save, %function
tenure_fp_save:
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    str     q\n, [x0, #(\n * 16)]
    .endr
    ret

// void tenure_fp_load(const void *registers).
    .balign 16
    .global tenure_fp_load
    .type tenure_fp_load, %function
tenure_fp_load:
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    ldr     q\n, [x0, #(\n * 16)]
    .endr
    ret

// void tenure_sve_save(void *z, void *p, u64 with_ffr): at the vector length of EL2, p0 to p15 then FFR.
    .balign 16
    .global tenure_sve_save
    .type tenure_sve_save, %function
tenure_sve_save:
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    str     z\n, [x0, #\n, mul vl]
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    str     p\n, [x1, #\n, mul vl]
    .endr
    cbz     x2, 1f
    rdffr   p0.b
    str     p0, [x1, #16, mul vl]
    ldr     p0, [x1, #0, mul vl]
    1:
    ret

// void tenure_sve_load(const void *z, const void *p, u64 with_ffr).
    .balign 16
    .global tenure_sve_load
    .type tenure_sve_load, %function
tenure_sve_load:
    cbz     x2, 1f
    ldr     p0, [x1, #16, mul vl]
    wrffr   p0.b
    1:
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    ldr     p\n, [x1, #\n, mul vl]
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    ldr     z\n, [x0, #\n, mul vl]
    .endr
    ret
