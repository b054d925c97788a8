//! Calls of the host: which family an id belongs to, and what of the firmware it may reach.
//!
//! HVC and SMC lead here alike (Linux uses one conduit for PSCI and looks for services on it too). Tenure's own calls go
//! to [`crate::calls`]; PSCI is [`crate::psci`]'s. Of the firmware's calls the host gets what this file lists, and of its
//! board's vendor what [`tenure_boards::smc`] lists, each with the reason why it can name neither memory nor an entry point.
//! Everything else is NOT_SUPPORTED, counted and traced: SDEI (TF-A would deliver its events at EL2, at an address of the
//! host's choice), FF-A, OP-TEE, RSI, other vendor calls.

use core::sync::atomic::{AtomicU64, Ordering};

use spin::Once;
use tenure_abi::smccc;
use tenure_abi::trace::SMC_REFUSED;
use tenure_arch::frame::HostFrame;
use tenure_boards::smc::{self, Call};
use tenure_dt::{Conduit, Platform};

use crate::{calls, psci, stats, trace};

/// The vendor's calls that this board's host may make.
static VENDORS: Once<&'static [Call]> = Once::new();

/// Refused ids that were logged, each with [`TAKEN`]: each is worth a line, once.
static TOLD: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
/// An id stands here, which may be 0.
const TAKEN: u64 = 1 << 32;

/// Notes which board it is, and says what of its vendor's calls the host may make.
pub fn set_up(platform: &Platform<'_>) {
    let calls = VENDORS.call_once(|| smc::of_board(|name| platform.is(name)));
    log::info!("vendor calls that the host may make to the firmware: {}", smc::List(calls));
}

/// SMCCC 1.2.
const SMCCC_1_2: u64 = 0x1_0002;
/// Owner field of a function id, with the fast-call bit (DEN0028 2.5).
const fn owner(id: u32) -> u32 {
    (id >> 24) & 0xbf
}

/// Answers the call in `frame`: `x0` is the id, results go to `x0`–`x3` (and on, for Tenure's own).
pub fn dispatch(frame: &mut HostFrame, conduit: Conduit) {
    let id = frame.x[0] as u32;
    match owner(id) {
        // Vendor-specific hypervisor service.
        0x86 => vendor(frame, id, conduit),
        // Standard service: PSCI, TRNG.
        0x84 => standard(frame, id),
        // Arm architecture.
        0x80 => architecture(frame, id),
        _ if is_listed(id, frame.x[1]) => forward(frame, smc::ARGUMENTS),
        _ => refuse(frame, id),
    }
}

fn is_listed(id: u32, x1: u64) -> bool {
    VENDORS.get().is_some_and(|calls| smc::is_listed(calls, id, x1))
}

/// Answers NOT_SUPPORTED to a call that is no question but a request, and remembers it.
fn refuse(frame: &mut HostFrame, id: u32) {
    stats::count_refused_smc();
    trace::note(SMC_REFUSED, u64::from(id), frame.x[1]);
    let mark = TAKEN | u64::from(id);
    for told in &TOLD {
        match told.compare_exchange(0, mark, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => log::info!("the host's call {id:#x} (x1 {:#x}) is refused", frame.x[1]),
            Err(other) if other != mark => continue,
            Err(_) => {}
        }
        break;
    }
    frame.x[0] = smccc::NOT_SUPPORTED;
}

fn vendor(frame: &mut HostFrame, id: u32, conduit: Conduit) {
    match id {
        smccc_id::VENDOR_UID => {
            for (register, part) in frame.x.iter_mut().zip(smccc::TENURE_UID) {
                *register = u64::from(part);
            }
        }
        // Tenure's calls are HVC's: a stray SMC is no request.
        _ if conduit == Conduit::Hvc => calls::host(frame, id),
        _ => refuse(frame, id),
    }
}

fn standard(frame: &mut HostFrame, id: u32) {
    match id & 0x3fff_ffff | 0x8000_0000 {
        0x8400_0000..=0x8400_001f => frame.x[0] = psci::call(id, [frame.x[1], frame.x[2], frame.x[3]]),
        // TRNG (DEN0098): entropy in registers.
        0x8400_0050..=0x8400_0053 => forward(frame, 1),
        _ => refuse(frame, id),
    }
}

fn architecture(frame: &mut HostFrame, id: u32) {
    match id {
        smccc_id::VERSION => frame.x[0] = SMCCC_1_2,
        smccc_id::ARCH_FEATURES => match frame.x[1] as u32 {
            smccc_id::VERSION | smccc_id::ARCH_FEATURES => frame.x[0] = 0,
            asked if smccc_id::WORKAROUNDS.contains(&asked) => forward(frame, 1),
            _ => frame.x[0] = smccc::NOT_SUPPORTED,
        },
        // Branch predictor and store bypass workarounds: no argument is an address.
        _ if smccc_id::WORKAROUNDS.contains(&id) => forward(frame, 1),
        _ => refuse(frame, id),
    }
}

/// Function ids, as 32 bits.
mod smccc_id {
    pub const VERSION: u32 = tenure_abi::smccc::VERSION as u32;
    pub const ARCH_FEATURES: u32 = tenure_abi::smccc::ARCH_FEATURES as u32;
    pub const VENDOR_UID: u32 = tenure_abi::smccc::VENDOR_HYP_UID as u32;
    /// SMCCC_ARCH_WORKAROUND_1, _2 and _3.
    pub const WORKAROUNDS: [u32; 3] = [0x8000_8000, 0x8000_7fff, 0x8000_3fff];
}

/// Passes a listed call on to the firmware, if there is one, with so many arguments: what else is in the registers is none
/// of its business.
fn forward(frame: &mut HostFrame, arguments: usize) {
    let mut passed = [0; 8];
    for (to, from) in passed.iter_mut().zip(&frame.x).take(1 + arguments) {
        *to = *from;
    }
    // The id is 32 bits.
    passed[0] &= u64::from(u32::MAX);
    let results = psci::firmware(passed);
    frame.x[..4].copy_from_slice(&results);
}
