//! Calls of the host (HVC, fast, 64-bit, vendor-specific hypervisor service, functions 0x100 up).
//!
//! `x1..` are arguments, `x4..` extra results; x0..x3 are always a [`Reply`](crate::Reply). Pages are counted in
//! 4 KiB; `pfn` is a physical address / 4096, `gfn` a guest physical address / 4096. A range call answers SUCCESS
//! with `done < count` when it stopped at a bound of its own: call again for the rest.

constants! { "TENURE_CALL_";
    /// () -> x1 = ABI version. The null call.
    VERSION = 0xC600_0100;
    /// () -> x4 = bitmap of features (TENURE_FEATURE_*).
    FEATURES = 0xC600_0101;
    /// (index) -> x4 = value of TENURE_INFO_*.
    INFO = 0xC600_0102;
    /// (start_pfn, count) -> x4.. = frames in each state 0..6, x11 = CPU pins, x12 = DMA pins over the done frames.
    COUNT = 0xC600_0103;
    /// (offset, pfn) -> x4 = bytes written to the host's page, x5 = next offset: the hypervisor's log.
    LOG_READ = 0xC600_0104;
    /// (number, pfn) -> x4 = records written to the host's page, x5 = number to go on from: the event trace.
    TRACE_READ = 0xC600_0105;

    /// (flags) -> x4 = handle. The VM has no memory: top up its pool next.
    VM_CREATE = 0xC600_0110;
    /// (handle): from now on only the guest decides what is shared. Needs a root table, so a topped-up pool.
    VM_ACTIVATE = 0xC600_0111;
    /// (handle) -> x4 = 1 when finished. Resumable: RETRY with done > 0 means call again.
    VM_DESTROY = 0xC600_0112;
    /// (handle, index, run_pfn): the run page is pinned by the hypervisor until the vCPU dies.
    VCPU_CREATE = 0xC600_0113;
    /// (handle, index) -> the exit stands in the run page, x4 = exit reason.
    VCPU_RUN = 0xC600_0114;
    /// (handle, index, register) -> x4 = value. TENURE_REG_*; DENIED for an active protected VM.
    REG_GET = 0xC600_0115;
    /// (handle, index, register, value). TENURE_REG_*; DENIED for an active protected VM.
    REG_SET = 0xC600_0116;
    /// (handle, index, what): TENURE_INJECT_*.
    VCPU_INJECT = 0xC600_0117;
    /// (handle, index, sequence): the host consents to the conversion that the vCPU asked for.
    CONSENT = 0xC600_0118;
    /// (handle, index, sequence): the host refuses it; the guest's call fails.
    REFUSE = 0xC600_0119;

    /// (handle, flags): sets the VM's rights (TENURE_VM_RIGHT_*), before activation.
    VM_SET_RIGHTS = 0xC600_011A;

    /// (handle, gfn, pfn, count, kind): gives frames to the VM, scrubbed; kind = TENURE_ADDR_PRIVATE or _SHARED.
    DONATE = 0xC600_0120;
    /// (handle, pfn, count): takes frames without a guest leaf back, scrubbed; the address keeps its status.
    RECLAIM = 0xC600_0121;
    /// (handle, gfn, count, status): declares unpopulated addresses (before activation, or a plain VM).
    SET_STATUS = 0xC600_0122;
    /// (handle, gfn, count, to): converts with contents (before activation, or a plain VM's donated memory). To private
    /// 32 pages a call: each is cleaned for a guest that runs it with its caches off.
    CONVERT = 0xC600_0123;
    /// (handle, gfn, pfn, count): maps frames that stay the host's into a plain VM, or frames that are shared with
    /// the VM already and have no guest leaf.
    GUEST_MAP = 0xC600_0124;
    /// (handle, gfn, count): drops guest leaves; never of a private page of an active protected VM.
    GUEST_UNMAP = 0xC600_0125;
    /// (pfn, count): makes the host's own leaf for shared frames.
    HOST_MAP = 0xC600_0126;
    /// (pfn, count): drops the host's own leaf of frames that are not the host's.
    HOST_UNMAP = 0xC600_0127;
    /// (pfn, count, kind): declares uses that cannot be revoked, TENURE_PIN_*.
    PIN = 0xC600_0128;
    /// (pfn, count, kind) -> x4 = pages that finished draining, x5 = handle of the VM to wake or 0,
    /// x6 = pages that came back to the host.
    UNPIN = 0xC600_0129;
    /// (pfn) -> x4 = the page word, x5 = the stage-2 descriptor that decides about the host's access there, x6 = its level.
    QUERY = 0xC600_012A;
    /// (handle, gfn, op) -> the verdict of an immediate attempt, x4 = the page word (0 if none), x5 = pfn,
    /// x6 = address status.
    QUERY_GUEST = 0xC600_012B;
    /// (pfn): takes a host frame out of use for ever.
    POISON = 0xC600_012C;

    /// (handle or 0, pfn, count): gives frames to a VM's pool, or (handle 0) to the host's own.
    POOL_TOPUP = 0xC600_0130;
    /// (handle or 0, max <= 8) -> x1 = n, x4.. = n frame numbers, scrubbed and the host's again.
    POOL_DRAIN = 0xC600_0131;
    /// (handle or 0) -> x4 = free pages, x5 = total pages.
    POOL_INFO = 0xC600_0132;

    /// (from) -> x4 = 1 when finished, x5 = `from` of the next call. Begins at 0. Destroys every VM, drops every pin that the
    /// host declared, gives all it lent back, ends panic mode; resumable: RETRY means call again. For kexec and shutdown.
    HOST_RESET = 0xC600_0138;
    /// (): foreign RAM reads as scrap from now on, so that a crash kernel can dump.
    PANIC_MODE = 0xC600_0139;
}
