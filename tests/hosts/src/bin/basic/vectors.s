// The host's vector registers for vectors.rs: filled, and written to memory.
    .arch_extension fp
    .arch_extension simd
    .arch_extension sve
    .arch_extension sme
    .text

    // (x0 = seed)
    .global host_simd_fill
host_simd_fill:
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    add     x2, x0, #\n
    fmov    d\n, x2
    mvn     x2, x2
    fmov    v\n\().d[1], x2
    .endr
    ret

    // (x0 = room for v0 to v31)
    .global host_simd_dump
host_simd_dump:
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    str     q\n, [x0, #(\n * 16)]
    .endr
    ret

    // (x0 = seed, x1 = 1 if FFR is there)
    .global host_vectors_fill
host_vectors_fill:
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    add     x2, x0, #\n
    index   z\n\().d, x2, #3
    .endr
    cbz     x1, 1f
    ptrue   p0.s
    wrffr   p0.b
1:  .irp n, 0, 2, 4, 6, 8, 10, 12, 14
    ptrue   p\n\().h
    .endr
    .irp n, 1, 3, 5, 7, 9, 11, 13, 15
    ptrue   p\n\().d, vl3
    .endr
    ret

    // (x0 = room for z0 to z31, x1 = room for p0 to p15 and FFR, x2 = 1 if FFR is there)
    .global host_vectors_dump
host_vectors_dump:
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    str     z\n, [x0, #\n, mul vl]
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    str     p\n, [x1, #\n, mul vl]
    .endr
    cbz     x2, 2f
    rdffr   p0.b
    str     p0, [x1, #16, mul vl]
    ldr     p0, [x1, #0, mul vl]
2:  ret

    // (x0 = 256 bytes): ZA on, its first row from memory.
    .global host_za_fill
host_za_fill:
    smstart za
    zero    {za}
    mov     w12, #0
    ldr     za[w12, #0], [x0]
    ret

    // (x0 = 256 bytes): the first row to memory.
    .global host_za_dump
host_za_dump:
    mov     w12, #0
    str     za[w12, #0], [x0]
    ret
