//! What Tenure says of itself, and what it forwards to the firmware.

use tenure_abi::page::State;
use tenure_abi::{ABI_VERSION, Status, call, flags, info, smccc, trace};
use tenure_test_hosts::totals::Totals;
use tenure_test_hosts::{Host, calls, memory, vm};
use tenure_test_rt::call::{hvc, psci, smc};
use tenure_test_rt::harness::TestResult;
use tenure_test_rt::{check, check_eq, cpu, probe};

crate::tests!(
    version_is_this_one,
    uid_is_tenures,
    figures_are_sane,
    every_frame_has_a_state,
    the_tree_tells_of_the_hypervisor,
    kept_memory_is_bounded,
    log_can_be_read,
    everyone_is_told_that_devices_can_reach_guest_memory,
    trace_names_a_refused_call,
    log_is_not_written_to_foreign_memory,
    null_call_keeps_registers,
    psci_and_smccc_versions_on_both_conduits,
    unknown_and_forbidden_smcs_are_refused,
    trace_names_a_refused_smc,
    guest_calls_are_not_the_hosts,
);

fn version_is_this_one(_: &mut Host) -> TestResult {
    let regs = hvc(call::VERSION, &[]);
    check_eq!(regs.reply().status, Status::Success);
    check_eq!(regs.x(1), ABI_VERSION);
    Ok(())
}

fn uid_is_tenures(_: &mut Host) -> TestResult {
    let regs = hvc(smccc::VENDOR_HYP_UID, &[]);
    for (index, word) in smccc::TENURE_UID.iter().enumerate() {
        check_eq!(regs.x(index), u64::from(*word), "word {index}");
    }
    Ok(())
}

fn figures_are_sane(host: &mut Host) -> TestResult {
    let (reply, regs) = calls::features();
    check!(reply.is_success(), "FEATURES: {reply}");
    check!(regs.x(4) & info::feature::GUESTS != 0, "no guests on this machine");
    check_eq!(calls::figure(info::FIRST_PFN), host.machine.ram.start / 4096);
    check_eq!(calls::figure(info::END_PFN), host.machine.ram.end / 4096);
    check_eq!(calls::figure(info::FRAMES), (host.machine.ram.end - host.machine.ram.start) / 4096);
    check!(calls::figure(info::MAX_VMS) >= 2);
    check!(calls::figure(info::MAX_VCPUS) >= 1);
    check!((32..=38).contains(&calls::figure(info::IPA_BITS)), "{}", calls::figure(info::IPA_BITS));
    check!((1..=64).contains(&calls::figure(info::MIN_POOL)), "{}", calls::figure(info::MIN_POOL));
    let (reply, _) = calls::info(9999);
    check!(!reply.is_success(), "INFO of nothing: {reply}");
    Ok(())
}

fn every_frame_has_a_state(_: &mut Host) -> TestResult {
    let totals = Totals::read()?;
    check_eq!(totals.frames(), calls::figure(info::FRAMES));
    check_eq!(totals.states[State::Private as usize], 0);
    check_eq!(totals.states[State::Shared as usize], 0);
    check!(totals.states[State::Hyp as usize] > 0, "the hypervisor owns nothing");
    check_eq!((totals.cpu_pins, totals.dma_pins), (0, 0));
    Ok(())
}

/// The node, and a reservation that covers every frame of the hypervisor.
fn the_tree_tells_of_the_hypervisor(host: &mut Host) -> TestResult {
    check!(host.machine.has_hypervisor_node, "no /hypervisor");
    for pfn in calls::figure(info::FIRST_PFN)..calls::figure(info::END_PFN) {
        if calls::state(pfn) == Some(State::Hyp) {
            let address = memory::address(pfn);
            check!(
                host.machine.reserved.iter().any(|range| range.contains(&address)),
                "{address:#x} is the hypervisor's and not reserved"
            );
        }
    }
    Ok(())
}

fn kept_memory_is_bounded(host: &mut Host) -> TestResult {
    let kept = calls::figure(info::KEPT_BYTES);
    let ram = host.machine.ram.end - host.machine.ram.start;
    check!(kept > 0 && kept < ram / 50, "{kept} bytes of {ram} kept");
    tenure_test_rt::note!("{} KiB kept", kept >> 10);
    Ok(())
}

fn log_can_be_read(host: &mut Host) -> TestResult {
    let pfn = vm::take(host, 1, 1)?;
    check!(memory::fill(pfn, 0));
    let (reply, regs) = calls::log_read(0, pfn);
    check!(reply.is_success(), "LOG_READ: {reply}");
    check!((1..=4096).contains(&regs.x(4)), "{} bytes of log", regs.x(4));
    check!(!memory::is_filled(pfn, 0), "nothing was written");
    check!(memory::fill(pfn, 0));
    host.frames.give(pfn, 1);
    Ok(())
}

/// FEATURES and the log say the same; what a guest's QUERY says is looked at where guests share.
fn everyone_is_told_that_devices_can_reach_guest_memory(host: &mut Host) -> TestResult {
    let (reply, regs) = calls::features();
    check!(reply.is_success(), "FEATURES: {reply}");
    let contained = regs.x(4) & info::feature::DMA_CONTAINED != 0;
    let said = times_in_log(host, b"devices can reach guest memory")? > 0;
    check_eq!(said, !contained, "the log says so");
    Ok(())
}

/// How often the log has this text. (A text that has its own beginning within it may be missed.)
fn times_in_log(host: &mut Host, text: &[u8]) -> Result<u64, tenure_test_rt::harness::Failure> {
    let pfn = vm::take(host, 1, 1)?;
    let (mut offset, mut matched, mut times) = (0, 0, 0);
    loop {
        let (reply, regs) = calls::log_read(offset, pfn);
        check!(reply.is_success(), "LOG_READ: {reply}");
        // One byte after the other, and how much of the text it completes.
        for at in 0..regs.x(4) {
            let word = probe::read(memory::address(pfn) + (at & !7)).value().unwrap_or(0);
            let byte = (word >> (at % 8 * 8)) as u8;
            matched =
                if text.get(matched) == Some(&byte) { matched + 1 } else { usize::from(byte == text[0]) };
            if matched == text.len() {
                times += 1;
                matched = 0;
            }
        }
        if regs.x(4) == 0 {
            break;
        }
        offset = regs.x(5);
    }
    check!(memory::fill(pfn, 0));
    host.frames.give(pfn, 1);
    Ok(times)
}

/// The trace's last records hold a call that was just refused, with its arguments and its status.
fn trace_names_a_refused_call(host: &mut Host) -> TestResult {
    let hyp = hyp_frame()?;
    let reply = calls::pin(hyp, 1, 0);
    check_eq!(reply.status, Status::Denied);
    let event = (Status::Denied as i64 as u64) << 32 | call::PIN & 0xffff_ffff;
    check!(is_traced(host, [event, hyp, 1])?, "the refused PIN is not in the trace");
    let (reply, _) = calls::trace_read(0, hyp);
    check!(!reply.is_success(), "TRACE_READ into the hypervisor: {reply}");
    Ok(())
}

/// Whether the trace has a record with these words behind its time.
fn is_traced(host: &mut Host, wanted: [u64; 3]) -> Result<bool, tenure_test_rt::harness::Failure> {
    let pfn = vm::take(host, 1, 1)?;
    let mut number = 0;
    let mut found = false;
    loop {
        let (reply, regs) = calls::trace_read(number, pfn);
        check!(reply.is_success(), "TRACE_READ: {reply}");
        check!(regs.x(4) <= 4096 / trace::RECORD_SIZE, "{} records in a page", regs.x(4));
        for record in 0..regs.x(4) {
            let word = |n: u64| probe::read(memory::address(pfn) + (record * 4 + n) * 8).value();
            found |= [word(1), word(2), word(3)] == wanted.map(Some);
        }
        if regs.x(5) == number {
            break;
        }
        number = regs.x(5);
    }
    check!(memory::fill(pfn, 0));
    host.frames.give(pfn, 1);
    Ok(found)
}

/// The hypervisor writes to frames of the host only.
fn log_is_not_written_to_foreign_memory(host: &mut Host) -> TestResult {
    let hyp = hyp_frame()?;
    let (reply, _) = calls::log_read(0, hyp);
    check!(!reply.is_success(), "LOG_READ into the hypervisor: {reply}");
    let (reply, _) = calls::log_read(0, host.machine.ram.end / 4096);
    check!(!reply.is_success(), "LOG_READ beyond RAM: {reply}");
    let (reply, _) = calls::log_read(0, u64::MAX);
    check!(!reply.is_success(), "LOG_READ nowhere: {reply}");
    Ok(())
}

/// A frame of the hypervisor.
pub(crate) fn hyp_frame() -> Result<u64, tenure_test_rt::harness::Failure> {
    for pfn in calls::figure(info::FIRST_PFN)..calls::figure(info::END_PFN) {
        if calls::state(pfn) == Some(State::Hyp) {
            return Ok(pfn);
        }
    }
    tenure_test_rt::fail!("no frame of the hypervisor")
}

/// What the call does not return stays as it was (SMCCC 1.2 allows x4..x17 to be changed by results only).
fn null_call_keeps_registers(_: &mut Host) -> TestResult {
    let dirty = cpu::swap_fp(0x5a5a);
    let regs = hvc(call::VERSION, &[]);
    check_eq!(regs.reply().status, Status::Success);
    check_eq!(cpu::swap_fp(0), 32, "FP registers kept ({dirty} before)");
    Ok(())
}

fn psci_and_smccc_versions_on_both_conduits(_: &mut Host) -> TestResult {
    for (name, conduit) in [("hvc", hvc as fn(u64, &[u64]) -> _), ("smc", smc)] {
        let version = conduit(psci::VERSION, &[]).x(0);
        check!((0x1_0000..=0x1_ffff).contains(&version), "PSCI by {name}: {version:#x}");
        check_eq!(conduit(smccc::VERSION, &[]).x(0), 0x1_0002, "SMCCC by {name}");
        check_eq!(conduit(psci::FEATURES, &[smccc::VERSION]).x(0), 0, "PSCI_FEATURES by {name}");
    }
    Ok(())
}

/// SDEI, FF-A, OP-TEE, RSI, a vendor's call: TF-A would deliver SDEI events at EL2.
fn unknown_and_forbidden_smcs_are_refused(host: &mut Host) -> TestResult {
    const CALLS: &[(&str, u64)] = &[
        ("SDEI_VERSION", 0xC400_0020),
        ("SDEI_EVENT_REGISTER", 0xC400_0021),
        ("SDEI_PE_UNMASK", 0xC400_002C),
        ("FFA_VERSION", 0x8400_0063),
        ("FFA_RXTX_MAP", 0xC400_0066),
        ("FFA_MEM_SHARE", 0xC400_0073),
        ("OP-TEE UID", 0xBF00_FF01),
        ("OP-TEE call with arguments", 0x3200_0004),
        ("RSI_ABI_VERSION", 0xC400_0190),
        ("RMI_VERSION", 0xC400_0150),
        ("SiP call", 0xC200_0001),
        ("OEM call", 0xC300_0001),
        ("nothing", 0xFFFF_FFFF),
        ("zero", 0),
    ];
    let refused = || calls::figure(info::SMCS_REFUSED);
    for (name, id) in CALLS {
        for conduit in [hvc as fn(u64, &[u64]) -> _, smc] {
            let before = refused();
            let answer = conduit(*id, &[0x4000_0000, 0x1000, 1, 2, 3]).x(0);
            // A 32-bit call answers in w0.
            check_eq!(answer as u32, u32::MAX, "{name}");
            check_eq!(refused() - before, 1, "{name} is counted");
        }
    }
    // Each id is worth one line of the log: 0 as well, which is called twice above.
    check_eq!(times_in_log(host, b"the host's call 0x0 (x1 ")?, 1, "lines about id 0");
    // What is listed goes to the firmware, whose own "unknown" is no refusal of ours.
    const LISTED: &[(&str, u64)] = &[
        ("TRNG_VERSION", 0x8400_0050),
        ("ARCH_FEATURES of WORKAROUND_1", 0x8000_0001),
        ("ARCH_WORKAROUND_1", 0x8000_8000),
        ("PSCI_VERSION", psci::VERSION),
    ];
    let before = refused();
    for (_, id) in LISTED {
        smc(*id, &[0x8000_8000]);
    }
    check_eq!(refused(), before, "a listed call was refused");
    Ok(())
}

/// The trace has the id and the first argument of a refused call.
fn trace_names_a_refused_smc(host: &mut Host) -> TestResult {
    smc(0xC200_0016, &[0x4123_4000]);
    let wanted = [trace::SMC_REFUSED, 0xC200_0016, 0x4123_4000];
    check!(is_traced(host, wanted)?, "the refused SMC is not in the trace");
    Ok(())
}

fn guest_calls_are_not_the_hosts(_: &mut Host) -> TestResult {
    for id in calls::GUEST_CALLS.into_iter().chain([smccc::KVM_MEM_SHARE, smccc::KVM_MEM_UNSHARE]) {
        let regs = hvc(id, &[0x4800_0000, 1, 0]);
        check_eq!(regs.x(0), smccc::NOT_SUPPORTED, "{id:#x}");
    }
    let (reply, _) = calls::vm_create(!flags::vm::ALL);
    check_eq!(reply.status, Status::Invalid, "VM_CREATE with every reserved bit");
    Ok(())
}
