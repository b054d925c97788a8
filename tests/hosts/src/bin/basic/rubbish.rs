//! Every call with arguments that cannot be right: an error comes back, and no page word changes.

use tenure_abi::flags::{pin, status, vm as vm_flags};
use tenure_abi::{PAGE_SIZE, Status, call, info};
use tenure_test_hosts::totals::Totals;
use tenure_test_hosts::vm::{self, RAM_GFN, with_guest};
use tenure_test_hosts::{Host, calls};
use tenure_test_rt::call::hvc;
use tenure_test_rt::harness::TestResult;
use tenure_test_rt::{check, check_eq};

crate::tests!(
    unassigned_numbers_are_not_supported,
    wild_first_arguments_are_refused,
    a_live_handle_with_wild_arguments_is_refused,
    reserved_bits_and_kinds_are_refused,
    empty_and_wrapping_ranges_are_refused,
    stale_and_forged_handles_are_refused,
    wild_guest_calls_are_refused,
);

const DEFINED: &[u64] = &[
    call::VERSION,
    call::FEATURES,
    call::INFO,
    call::COUNT,
    call::LOG_READ,
    call::TRACE_READ,
    call::VM_CREATE,
    call::VM_ACTIVATE,
    call::VM_DESTROY,
    call::VCPU_CREATE,
    call::VCPU_RUN,
    call::REG_GET,
    call::REG_SET,
    call::VCPU_INJECT,
    call::CONSENT,
    call::REFUSE,
    call::VM_SET_RIGHTS,
    call::DONATE,
    call::RECLAIM,
    call::SET_STATUS,
    call::CONVERT,
    call::GUEST_MAP,
    call::GUEST_UNMAP,
    call::HOST_MAP,
    call::HOST_UNMAP,
    call::PIN,
    call::UNPIN,
    call::QUERY,
    call::QUERY_GUEST,
    call::POISON,
    call::POOL_TOPUP,
    call::POOL_DRAIN,
    call::POOL_INFO,
    call::HOST_RESET,
    call::PANIC_MODE,
];

/// Calls without arguments, which cannot be made wrongly.
const ALWAYS_RIGHT: &[u64] = &[call::VERSION, call::FEATURES, call::PANIC_MODE];

/// Calls whose first argument is a handle.
fn takes_handle(id: u64) -> bool {
    matches!(id, call::VM_ACTIVATE..=call::GUEST_UNMAP | call::QUERY_GUEST | call::POOL_TOPUP..=call::POOL_INFO)
}

/// Values that are no handle, no frame of RAM, no small number.
const WILD: [u64; 10] = [
    u64::MAX,
    u64::MAX - 1,
    1 << 63,
    1 << 52,
    1 << 48,
    (1 << 48) - 1,
    1 << 40,
    0x8000_0000_0000_1000,
    0xdead_beef_dead_beef,
    0x0123_4567_89ab_cdef,
];

fn unassigned_numbers_are_not_supported(_: &mut Host) -> TestResult {
    let before = Totals::read()?;
    for id in (call::VERSION..=vm::LAST_CALL).filter(|id| !DEFINED.contains(id)) {
        for first in [0, 1, 0x48000, u64::MAX] {
            let regs = hvc(id, &[first, 1, 1, 1]);
            check_eq!(regs.x(0), Status::NotSupported as i64 as u64, "{id:#x}");
        }
    }
    // The other conventions' forms of our own numbers: 32-bit, yielding, another owner.
    for id in
        [0x8600_0100, 0x4600_0100, 0xC500_0100, 0x0600_0100, 0xC601_0100, 0xC600_FFFF, 0xC600_0000_C600_0100]
    {
        if id >> 32 == 0 {
            check_eq!(hvc(id, &[]).x(0) as u32, u32::MAX, "{id:#x}");
        }
    }
    check_eq!(Totals::read()?, before);
    Ok(())
}

fn wild_first_arguments_are_refused(_: &mut Host) -> TestResult {
    let before = Totals::read()?;
    for id in DEFINED.iter().copied().filter(|id| !ALWAYS_RIGHT.contains(id)) {
        for (turn, wild) in WILD.iter().enumerate() {
            for rest in [0, 1, 0x48000, u64::MAX] {
                // LOG_READ and TRACE_READ take any offset; the frame is what must be wild.
                let arguments = match id {
                    call::LOG_READ | call::TRACE_READ => [rest, *wild, rest, rest, rest],
                    _ => [*wild, rest, WILD[(turn + 3) % WILD.len()], rest, rest],
                };
                let regs = hvc(id, &arguments);
                check!(regs.has_status(), "{id:#x} {arguments:x?}: x0 = {:#x}", regs.x(0));
                check!(!regs.reply().is_success(), "{id:#x} {arguments:x?} succeeded");
            }
        }
    }
    check_eq!(Totals::read()?, before);
    Ok(())
}

fn a_live_handle_with_wild_arguments_is_refused(host: &mut Host) -> TestResult {
    with_guest(host, vm_flags::PROTECTED, |_, vm| {
        let before = Totals::read()?;
        // What takes (handle) or (handle, vCPU 0) alone can be right; CONSENT and REFUSE have no request to name.
        let skip = [call::VM_ACTIVATE, call::VM_DESTROY, call::POOL_INFO, call::POOL_DRAIN];
        for id in DEFINED.iter().copied().filter(|id| takes_handle(*id) && !skip.contains(id)) {
            for (turn, wild) in WILD.iter().enumerate() {
                for small in [0, 1, 2, 3] {
                    let other = WILD[(turn + 7) % WILD.len()];
                    for arguments in [
                        [*wild, small, small, small],
                        [*wild, other, small, *wild],
                        [*wild, *wild, *wild, other],
                    ] {
                        let [a, b, c, d] = arguments;
                        let regs = hvc(id, &[vm.handle, a, b, c, d]);
                        check!(regs.has_status(), "{id:#x} {arguments:x?}: x0 = {:#x}", regs.x(0));
                        check!(!regs.reply().is_success(), "{id:#x} {arguments:x?} succeeded");
                    }
                }
            }
        }
        check_eq!(Totals::read()?, before);
        Ok(())
    })
}

fn reserved_bits_and_kinds_are_refused(host: &mut Host) -> TestResult {
    for bit in 2..64 {
        let (reply, _) = calls::vm_create(vm_flags::PROTECTED | 1 << bit);
        check_eq!(reply.status, Status::Invalid, "VM_CREATE with bit {bit}");
    }
    let pfn = vm::take(host, 1, 1)?;
    for kind in [2, 3, 7, u64::MAX] {
        check_eq!(calls::pin(pfn, 1, kind).status, Status::Invalid, "PIN of kind {kind}");
        check_eq!(calls::unpin(pfn, 1, kind).0.status, Status::Invalid, "UNPIN of kind {kind}");
    }
    with_guest(host, vm_flags::PROTECTED, |_, vm| {
        let gfn = vm::FREE_GFN;
        for kind in [status::NONE, status::DEVICE, status::RELINQUISHED, 5, 99, u64::MAX] {
            let reply = calls::donate(vm.handle, gfn, pfn, 1, kind);
            check!(!reply.is_success(), "DONATE of kind {kind}: {reply}");
        }
        for op in [3, 99, u64::MAX] {
            let (reply, _) = calls::query_guest(vm.handle, gfn, op);
            check_eq!(reply.status, Status::Invalid, "QUERY_GUEST of {op}");
        }
        for what in [1, 2, u64::MAX] {
            check!(!calls::vcpu_inject(vm.handle, 0, what).is_success(), "VCPU_INJECT of {what}");
        }
        Ok(())
    })?;
    host.frames.give(pfn, 1);
    Ok(())
}

fn empty_and_wrapping_ranges_are_refused(host: &mut Host) -> TestResult {
    let before = Totals::read()?;
    let pfn = vm::take(host, 4, 1)?;
    let end = calls::figure(info::END_PFN);
    let ranges = [
        (pfn, 0),
        (pfn, u64::MAX),
        (pfn, u64::MAX - pfn + 1),
        (pfn, 1 << 52),
        (end, 1),
        (u64::MAX, 1),
        (u64::MAX, u64::MAX),
        (1 << 52, 1 << 52),
    ];
    for (start, count) in ranges {
        for (name, reply) in [
            ("PIN", calls::pin(start, count, pin::CPU)),
            ("UNPIN", calls::unpin(start, count, pin::CPU).0),
            ("HOST_MAP", calls::host_map(start, count)),
            ("HOST_UNMAP", calls::host_unmap(start, count)),
            ("POOL_TOPUP", calls::pool_topup(0, start, count)),
        ] {
            check!(!reply.is_success(), "{name} of {start:#x}+{count:#x}: {reply}");
        }
    }
    check_eq!(Totals::read()?, before);
    with_guest(host, vm_flags::PROTECTED, |_, vm| {
        let before = Totals::read()?;
        let gfn = vm::FREE_GFN;
        let ranges =
            [(gfn, 0), (gfn, u64::MAX), (u64::MAX, 1), (1 << 52, 1), (1 << 26, 1), ((1 << 26) - 1, 2)];
        for (start, count) in ranges {
            for (name, reply) in [
                ("DONATE", calls::donate(vm.handle, start, pfn, count, status::PRIVATE)),
                ("RECLAIM", calls::reclaim(vm.handle, start, count)),
                ("SET_STATUS", calls::set_status(vm.handle, start, count, status::SHARED)),
                ("CONVERT", calls::convert(vm.handle, start, count, status::SHARED)),
                ("GUEST_MAP", calls::guest_map(vm.handle, start, pfn, count)),
                ("GUEST_UNMAP", calls::guest_unmap(vm.handle, start, count)),
            ] {
                check!(!reply.is_success(), "{name} at {start:#x}+{count:#x}: {reply}");
            }
        }
        let reply = calls::donate(vm.handle, gfn, end - 1, 2, status::PRIVATE);
        check!(!reply.is_success() || reply.done < 2, "DONATE beyond RAM: {reply}");
        check_eq!(Totals::read()?, before);
        Ok(())
    })?;
    host.frames.give(pfn, 4);
    Ok(())
}

fn stale_and_forged_handles_are_refused(host: &mut Host) -> TestResult {
    let mut old = 0;
    with_guest(host, vm_flags::PROTECTED, |_, vm| {
        old = vm.handle;
        Ok(())
    })?;
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let before = Totals::read()?;
        let pfn = vm::take(host, 1, 1)?;
        check!(vm.handle != old, "the handle {old:#x} came again");
        let forged = [
            old,
            vm.handle ^ 1 << 63,
            vm.handle ^ 1 << 32,
            vm.handle.wrapping_add(1),
            vm.handle.wrapping_sub(1),
        ];
        for handle in forged.into_iter().filter(|handle| *handle != vm.handle && *handle != 0) {
            for id in DEFINED.iter().copied().filter(|id| takes_handle(*id)) {
                let arguments = match id {
                    call::POOL_TOPUP => [handle, pfn, 1, 0, 0],
                    call::VCPU_CREATE => [handle, 0, pfn, 0, 0],
                    _ => [handle, 0, 1, 1, 1],
                };
                let regs = hvc(id, &arguments);
                check!(
                    regs.has_status() && !regs.reply().is_success(),
                    "{id:#x} with {handle:#x}: {:#x}",
                    regs.x(0)
                );
            }
        }
        check_eq!(Totals::read()?, before);
        host.frames.give(pfn, 1);
        Ok(())
    })
}

fn wild_guest_calls_are_refused(host: &mut Host) -> TestResult {
    use tenure_abi::{guest, smccc};
    use tenure_test_protocol::command;
    with_guest(host, vm_flags::PROTECTED, |host, vm| {
        let ram = RAM_GFN * PAGE_SIZE;
        vm.fill(host, vm::FREE_GFN, 1, 0x77)?;
        let before = Totals::read()?;
        let page = vm::FREE_GFN * PAGE_SIZE;
        let ranges = [
            (page + 1, 1),
            (page + 8, 1),
            (page, 0),
            (page, u64::MAX),
            (page, 1 << 52),
            (!0xfff, 1),
            (1 << 38, 1),
            (1 << 63, 1),
        ];
        for (ipa, count) in ranges {
            for id in [guest::SHARE, guest::UNSHARE, guest::RELINQUISH] {
                let results = vm.command(host, command::HVC, &[id, ipa, count, 0, 0, 0])?;
                let reply = vm::reply_of(results)?;
                check!(!reply.is_success(), "{id:#x} of {ipa:#x}+{count:#x}: {reply}");
            }
        }
        for bit in 4..64 {
            let reply = vm.call(host, command::UNSHARE, &[page, 1, 1 << bit])?;
            check_eq!(reply.status, Status::Invalid, "UNSHARE with bit {bit}");
        }
        for (x1, x2, x3) in [(page + 1, 0, 0), (page, 1, 0), (page, 0, 1), (1 << 63, 0, 0), (u64::MAX, 0, 0)]
        {
            for id in [smccc::KVM_MEM_SHARE, smccc::KVM_MEM_UNSHARE] {
                let [r0, ..] = vm.command(host, command::HVC, &[id, x1, x2, x3, 0, 0])?;
                check_eq!(r0, smccc::INVALID_PARAMETER, "{id:#x} of {x1:#x}, {x2}, {x3}");
            }
        }
        // The host's calls are not the guest's.
        for id in call::VERSION..=vm::LAST_CALL {
            let [r0, ..] = vm.command(host, command::HVC, &[id, vm.handle, ram / PAGE_SIZE, 1, 1, 1])?;
            check_eq!(r0, smccc::NOT_SUPPORTED, "{id:#x} from a guest");
        }
        check_eq!(Totals::read()?, before);
        vm.expect(host, vm::FREE_GFN, 1, 0x77)
    })
}
