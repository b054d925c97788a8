//! The end of EL2: what is printed when it fails, and the stop.
//!
//! Nothing that a host or guest does may lead here. The report begins with the words `EL2 crash`, which tests look for.
#![allow(unsafe_code)]

use core::panic::PanicInfo;
use core::sync::atomic::Ordering;

use tenure_arch::esr::Esr;
use tenure_arch::frame::CrashFrame;
use tenure_arch::{cpu, stage1};

use crate::boot::{image, mmu};
use crate::console::last_words;
use crate::percpu;

/// Frames of a backtrace that are printed at most.
const DEPTH: usize = 24;

/// Marks this CPU as failing. False if it was failing already: then nothing more can be trusted, not even the report.
fn begin() -> bool {
    let cpu = percpu::this();
    if cpu.crashing.swap(true, Ordering::Relaxed) {
        cpu::stop();
    }
    last_words(format_args!("\nEL2 crash on CPU {}", cpu.index.load(Ordering::Relaxed)));
    true
}

/// Called by the vectors when EL2 takes an exception from itself, or one that it never routes to itself.
#[unsafe(no_mangle)]
extern "C" fn tenure_el2_crash(frame: &CrashFrame) -> ! {
    begin();
    last_words(format_args!("exception at vector {:#x}: {:?}", frame.vector, Esr(frame.esr)));
    last_words(format_args!("  elr {:#018x} (image + {:#x})", frame.elr, in_image(frame.elr)));
    last_words(format_args!(
        "  far {:#018x}  hpfar {:#x}  spsr {:#x}  sp {:#018x}",
        frame.far, frame.hpfar, frame.spsr, frame.sp
    ));
    for (n, pair) in frame.x.chunks(4).enumerate() {
        for (i, value) in pair.iter().enumerate() {
            last_words(format_args!("  x{:<2} {value:#018x}", n * 4 + i));
        }
    }
    backtrace(frame.x[29], frame.elr);
    cpu::stop()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    begin();
    last_words(format_args!("{info}"));
    let fp: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, x29", out(reg) fp, options(nomem, nostack)) };
    backtrace(fp, 0);
    cpu::stop()
}

/// Offset of a code address in the image: what `addr2line` on the ELF file takes.
fn in_image(pc: u64) -> u64 {
    pc.wrapping_sub(image::whole().base)
}

/// Follows the chain of frame records (AAPCS64 6.4.6), as long as it stays in memory that EL2 can read.
fn backtrace(mut fp: u64, pc: u64) {
    last_words(format_args!("backtrace (offsets in the image):"));
    if pc != 0 {
        last_words(format_args!("  {:#x}", in_image(pc)));
    }
    for _ in 0..DEPTH {
        if fp == 0 || !fp.is_multiple_of(16) || !mmu::is_readable(fp) {
            return;
        }
        let record = core::ptr::with_exposed_provenance::<[u64; 2]>(fp as usize);
        // SAFETY: aligned to 16, so within one page, which EL2's tables map.
        let [next, lr] = unsafe { record.read_volatile() };
        if lr == 0 {
            return;
        }
        last_words(format_args!("  {:#x}", in_image(lr)));
        if next <= fp {
            return;
        }
        fp = next;
    }
}

/// Stops a machine that cannot start: one line that says why, and no more.
pub fn refuse(why: core::fmt::Arguments<'_>) -> ! {
    last_words(format_args!("tenure: cannot start: {why}"));
    cpu::stop()
}

const _: () = assert!(stage1::PAGE == 4096);
