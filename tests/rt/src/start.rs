//! Start of a bare-metal program at EL1: relocation, MMU, stack, vectors.
//!
//! Written in assembly because nothing that Rust may assume holds yet: no stack, no relocations, and with the MMU
//! off neither unaligned accesses nor exclusives work.
#![allow(unsafe_code)] // Start code in assembly, and the symbols that it shares with Rust.

use core::arch::global_asm;

// The image begins with the header of an arm64 Linux kernel (Documentation/arch/arm64/booting.rst); its first
// instruction is a branch, so the same bytes serve as a flat binary that is entered at its start.
//
// Stage 1 is one level-1 table of 1 GiB blocks, identity: the first GiB is Device-nGnRE, all others up to 2^38
// (where a guest's usable addresses end) Normal write-back, everything executable and writable at EL1.
global_asm!(
    r#"
    .section .head, "ax"
    .global _start
_start:
    b       1f
    .long   0
    .quad   0                           // text_offset
    .quad   __image_bytes              // image_size
    .quad   0xa                         // little-endian, 4 KiB pages, anywhere in memory
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .long   0
1:
    mov     x19, x0
    // Stale lines of the image must neither hide nor overwrite what is written with the MMU off.
    adrp    x0, __image_start
    add     x0, x0, :lo12:__image_start
    adrp    x1, __image_end
    add     x1, x1, :lo12:__image_end
    bl      rt_clean
    // Relocations: R_AARCH64_RELATIVE (1027) only.
    adrp    x20, __image_start
    add     x20, x20, :lo12:__image_start
    adrp    x1, __rela_start
    add     x1, x1, :lo12:__rela_start
    adrp    x2, __rela_end
    add     x2, x2, :lo12:__rela_end
2:  cmp     x1, x2
    b.hs    4f
    ldp     x3, x4, [x1], #16
    ldr     x5, [x1], #8
    cmp     w4, #1027
    b.ne    3f
    add     x5, x5, x20
    str     x5, [x3, x20]
    b       2b
3:  wfi
    b       3b
4:  adrp    x1, __bss_start
    add     x1, x1, :lo12:__bss_start
    adrp    x2, __bss_end
    add     x2, x2, :lo12:__bss_end
5:  cmp     x1, x2
    b.hs    6f
    stp     xzr, xzr, [x1], #16
    b       5b
6:  // The level-1 table: AF, inner shareable, block; MAIR index 0 = Device, 1 = Normal.
    adrp    x1, {table}
    add     x1, x1, :lo12:{table}
    mov     x2, #0x701                  // AF | SH inner | block, index 0
    movk    x2, #0x0060, lsl #48        // never executable (UXN, PXN)
    str     x2, [x1], #8
    mov     x2, #0x705                  // AF | SH inner | block, index 1
    mov     x3, #1
7:  orr     x4, x2, x3, lsl #30
    str     x4, [x1], #8
    add     x3, x3, #1
    cmp     x3, #256
    b.lo    7b
    adrp    x0, __image_start
    add     x0, x0, :lo12:__image_start
    adrp    x1, __image_end
    add     x1, x1, :lo12:__image_end
    bl      rt_clean
    bl      rt_mmu
    adrp    x1, __stack_top
    add     x1, x1, :lo12:__stack_top
    mov     sp, x1
    mov     x29, xzr
    mov     x0, x19
    bl      rt_main
8:  wfi
    b       8b

    // x0 = pointer to two words: top of the stack, function of one u64 (the pointer's third word is its argument).
    .global rt_secondary
rt_secondary:
    mov     x19, x0
    bl      rt_mmu
    ldp     x1, x2, [x19]
    mov     sp, x1
    mov     x29, xzr
    ldr     x0, [x19, #16]
    blr     x2
9:  wfi
    b       9b

    // Clean and invalidate [x0, x1) to the point of coherency; 64 bytes is the line of every core that we meet,
    // and smaller lines only cost time on none of them.
rt_clean:
    bic     x0, x0, #63
1:  dc      civac, x0
    add     x0, x0, #64
    cmp     x0, x1
    b.lo    1b
    dsb     sy
    ret

    // Vectors, FP on, MMU and caches on, SErrors unmasked. Clobbers x1, x2.
rt_mmu:
    adrp    x1, rt_vectors
    add     x1, x1, :lo12:rt_vectors
    msr     vbar_el1, x1
    mov     x1, #(3 << 20)              // CPACR_EL1.FPEN
    msr     cpacr_el1, x1
    mov     x1, #0xff04                 // 0 = Device-nGnRE, 1 = Normal write-back
    msr     mair_el1, x1
    ldr     x1, =0x200803519            // T0SZ 25, write-back walks, inner shareable, EPD1, IPS 40 bits
    msr     tcr_el1, x1
    adrp    x1, {table}
    add     x1, x1, :lo12:{table}
    msr     ttbr0_el1, x1
    isb
    tlbi    vmalle1
    dsb     nsh
    ic      iallu
    dsb     nsh
    isb
    ldr     x1, =0x30d01805             // RES1 | I | C | M
    msr     sctlr_el1, x1
    isb
    msr     daifclr, #4
    ret
    .ltorg
"#,
    table = sym TABLE,
);

/// The stage-1 table, written by the start code before Rust runs.
#[repr(C, align(4096))]
struct Table(core::cell::UnsafeCell<[u64; 512]>);

// SAFETY: Rust code never reads or writes it; the start code wrote it once, before anything else ran.
unsafe impl Sync for Table {}

#[unsafe(link_section = ".bss.page")]
static TABLE: Table = Table(core::cell::UnsafeCell::new([0; 512]));

unsafe extern "C" {
    static __image_start: u8;
    static __image_end: u8;
    fn rt_secondary();
}

/// Address range of the image, its tables, memory and stack included.
pub fn image() -> core::ops::Range<u64> {
    // Only addresses are taken: nothing is read.
    (&raw const __image_start) as u64..(&raw const __image_end) as u64
}

/// Where a CPU that PSCI starts must enter, with x0 = address of a [`Secondary`].
pub fn secondary_entry() -> u64 {
    rt_secondary as *const () as u64
}

/// What a secondary CPU needs to start; must stay in place until it runs.
#[repr(C)]
#[derive(Debug)]
pub struct Secondary {
    /// Top of its stack, 16-byte aligned.
    pub stack_top: u64,
    /// What it runs.
    pub entry: extern "C" fn(u64),
    /// Argument of `entry`.
    pub argument: u64,
}
