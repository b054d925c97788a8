//! The host's vector registers across a guest that uses FP/SIMD; SVE and SME on a CPU that has them.
#![allow(unsafe_code)] // Vector registers by assembly.

use core::arch::{asm, global_asm};

use tenure_abi::flags::vm as vm_flags;
use tenure_test_hosts::Host;
use tenure_test_hosts::vm::{Vm, with_guest};
use tenure_test_protocol::command;
use tenure_test_rt::harness::{Failure, TestResult};
use tenure_test_rt::{check, check_eq};

crate::tests!(
    simd_registers_survive_a_guest,
    sve_registers_survive_a_guest,
    streaming_mode_and_its_registers_survive_a_guest,
    za_survives_a_guest
);

global_asm!(include_str!("vectors.s"), options(raw));

unsafe extern "C" {
    fn host_simd_fill(seed: u64);
    fn host_simd_dump(v: *mut u64);
    fn host_vectors_fill(seed: u64, with_ffr: u64);
    fn host_vectors_dump(z: *mut u8, p: *mut u8, with_ffr: u64);
    fn host_za_fill(row: *const u8);
    fn host_za_dump(row: *mut u8);
}

/// Vector registers in memory, at the greatest length; what is shorter leaves the rest zero.
#[derive(PartialEq, Eq)]
struct Dump {
    z: [u8; 32 * 256],
    p: [u8; 17 * 32],
}

impl Dump {
    fn take(with_ffr: bool) -> Self {
        let mut dump = Self { z: [0; 32 * 256], p: [0; 17 * 32] };
        // SAFETY: room for the greatest length; the registers are there (the tests asked).
        unsafe { host_vectors_dump(dump.z.as_mut_ptr(), dump.p.as_mut_ptr(), with_ffr.into()) };
        dump
    }
}

/// `ID_AA64PFR0_EL1.SVE` and `ID_AA64PFR1_EL1.SME`.
fn features() -> (bool, bool) {
    let (pfr0, pfr1): (u64, u64);
    // SAFETY: reads registers.
    unsafe { asm!("mrs {}, id_aa64pfr0_el1", "mrs {}, s3_0_c0_c4_1", out(reg) pfr0, out(reg) pfr1) };
    (pfr0 >> 32 & 0xf != 0, pfr1 >> 24 & 0xf != 0)
}

/// Lets EL1 use what is there, at the greatest length.
fn enable(sme: bool) {
    // SAFETY: CPACR_EL1.FPEN, ZEN and SMEN, then the lengths; the program itself is built without vectors.
    unsafe { asm!("msr cpacr_el1, {}", "isb", in(reg) 3u64 << 20 | 3 << 16 | (u64::from(sme) * (3 << 24))) };
    // SAFETY: as above.
    unsafe { asm!("msr s3_0_c1_c2_0, {}", "isb", in(reg) 0xfu64) };
    if sme {
        // SAFETY: as above; no full instruction set in streaming mode, so no FFR there.
        unsafe { asm!("msr s3_0_c1_c2_6, {}", "isb", in(reg) 0xfu64) };
    }
}

/// Makes the guest fill its FP registers, and looks that it saw nothing of the host's.
fn disturb(host: &mut Host, vm: &mut Vm) -> TestResult {
    let [dirty, ..] = vm.command(host, command::FP_SWAP, &[0x7007])?;
    check_eq!(dirty, 0, "registers of the host that the guest saw");
    let [kept, ..] = vm.command(host, command::FP_SWAP, &[0])?;
    check_eq!(kept, 32, "registers of the guest after the host");
    Ok(())
}

fn simd_registers_survive_a_guest(host: &mut Host) -> TestResult {
    // SAFETY: CPACR_EL1.FPEN; the program itself is built without vectors.
    unsafe { asm!("msr cpacr_el1, {}", "isb", in(reg) 3u64 << 20) };
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let seed = 0x0102_0304_0506_0708;
        // SAFETY: FP/SIMD is there on every CPU that runs this, and enabled.
        unsafe { host_simd_fill(seed) };
        // SAFETY: FPCR.RMode, and FPSR.QC with all cumulative flags.
        unsafe {
            asm!("msr s3_3_c4_c4_0, {}", "msr s3_3_c4_c4_1, {}", in(reg) 3u64 << 22, in(reg) 1u64 << 27 | 0x9f)
        };
        let disturbed = disturb(host, vm);
        let mut after = [0u64; 64];
        // SAFETY: room for 32 registers.
        unsafe { host_simd_dump(after.as_mut_ptr()) };
        let (fpcr, fpsr): (u64, u64);
        // SAFETY: reads registers, and sets rounding back.
        unsafe {
            asm!("mrs {}, s3_3_c4_c4_0", "mrs {}, s3_3_c4_c4_1", "msr s3_3_c4_c4_0, xzr", out(reg) fpcr, out(reg) fpsr)
        };
        disturbed?;
        for (n, pair) in (0..).zip(after.chunks(2)) {
            check_eq!(pair, [seed + n, !(seed + n)], "v{n} of the host");
        }
        check_eq!((fpcr, fpsr), (3 << 22, 1 << 27 | 0x9f), "FPCR and FPSR of the host");
        Ok(())
    })
}

fn sve_registers_survive_a_guest(host: &mut Host) -> TestResult {
    if !features().0 {
        return Err(Failure::Skipped("no SVE"));
    }
    enable(false);
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        // SAFETY: SVE is there and enabled; nothing of the program lives in its registers.
        unsafe { host_vectors_fill(0x1234_5678_9abc_def0, 1) };
        let before = Dump::take(true);
        check!(before.z.get(16..24).is_some_and(|part| part != [0; 8]), "vectors of more than 16 bytes");
        disturb(host, vm)?;
        check!(before == Dump::take(true), "an SVE register changed");
        Ok(())
    })
}

fn streaming_mode_and_its_registers_survive_a_guest(host: &mut Host) -> TestResult {
    if !features().1 {
        return Err(Failure::Skipped("no SME"));
    }
    enable(true);
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        // SAFETY: SMSTART SM, then as above.
        unsafe { asm!(".inst 0xd503437f") };
        // SAFETY: as above, without FFR, which streaming mode has not got.
        unsafe { host_vectors_fill(0x0fed_cba9_8765_4321, 0) };
        let before = Dump::take(false);
        let disturbed = disturb(host, vm);
        let same = before == Dump::take(false);
        let svcr: u64;
        // SAFETY: reads SVCR.
        unsafe { asm!("mrs {}, s3_3_c4_c2_2", out(reg) svcr) };
        // SAFETY: SMSTOP SM.
        unsafe { asm!(".inst 0xd503427f") };
        disturbed?;
        check_eq!(svcr & 1, 1, "SVCR.SM");
        check!(same, "a register of streaming mode changed");
        Ok(())
    })
}

fn za_survives_a_guest(host: &mut Host) -> TestResult {
    if !features().1 {
        return Err(Failure::Skipped("no SME"));
    }
    enable(true);
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let row: [u8; 256] = core::array::from_fn(|n| n as u8 ^ 0x5a);
        // SAFETY: SME is there and enabled; the row is as long as any.
        unsafe { host_za_fill(row.as_ptr()) };
        let disturbed = disturb(host, vm);
        let mut after = [0; 256];
        // SAFETY: as above.
        unsafe { host_za_dump(after.as_mut_ptr()) };
        // SAFETY: SMSTOP ZA.
        unsafe { asm!(".inst 0xd503447f") };
        disturbed?;
        let length = after.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        check!(length >= 16, "ZA is empty");
        check!(row.get(..length) == after.get(..length), "ZA changed");
        Ok(())
    })
}
