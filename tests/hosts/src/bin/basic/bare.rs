//! What needs no hypervisor: that the host itself stands.

use tenure_test_hosts::{Host, memory};
use tenure_test_rt::harness::TestResult;
use tenure_test_rt::probe::{self, Outcome, Road};
use tenure_test_rt::{check, check_eq, cpu};

crate::tests!(
    runs_at_el1,
    memory_keeps_what_is_written,
    a_bad_access_is_an_answer,
    code_can_be_run,
    clock_advances
);

fn runs_at_el1(_: &mut Host) -> TestResult {
    check_eq!(cpu::current_el_raw() >> 2, 1);
    Ok(())
}

fn memory_keeps_what_is_written(host: &mut Host) -> TestResult {
    let range = host.frames.range();
    for pfn in [range.start, range.end - 1] {
        check!(memory::fill(pfn, 0x1234_5678_9abc_def0), "cannot write {pfn:#x}");
        check!(memory::is_filled(pfn, 0x1234_5678_9abc_def0), "{pfn:#x} does not keep its contents");
        check!(memory::fill(pfn, 0), "cannot write {pfn:#x}");
    }
    Ok(())
}

/// Stage 1 of the host ends at 2^38: an access above is a translation fault of its own.
fn a_bad_access_is_an_answer(_: &mut Host) -> TestResult {
    const NOWHERE: u64 = 1 << 38;
    for road in [Road::Read(1), Road::Read(8), Road::Write(8), Road::Pair] {
        let Outcome::Fault { esr, far } = probe::touch(road, NOWHERE, 0) else {
            tenure_test_rt::fail!("{road:?} went through");
        };
        check_eq!(esr >> 26, 0x25);
        check_eq!(far, NOWHERE);
    }
    let what = probe::touch(Road::Execute, NOWHERE, 0);
    check_eq!(what.class_and_status().map(|(class, _)| class), Some(0x21));
    Ok(())
}

fn code_can_be_run(host: &mut Host) -> TestResult {
    const RET: u64 = 0xd65f_03c0;
    let Some(pfn) = host.frames.take(1, 1) else { tenure_test_rt::fail!("no frame") };
    let address = memory::address(pfn);
    check!(!probe::write(address, RET).faulted());
    cpu::sync_code(address);
    let what = probe::touch(Road::Execute, address, 0);
    check!(!what.faulted(), "{what:x?}");
    check!(memory::fill(pfn, 0));
    host.frames.give(pfn, 1);
    Ok(())
}

fn clock_advances(_: &mut Host) -> TestResult {
    let before = cpu::counter();
    cpu::spin(100_000);
    check!(cpu::counter() > before);
    Ok(())
}
