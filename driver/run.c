// SPDX-License-Identifier: GPL-2.0
/*
 * KVM_RUN: enter the guest, do what its exits ask for, and leave to the VMM with what only it can do.
 *
 * What the driver answers by itself: frames, table memory, a drain that must be waited for, a conversion that nothing
 * but the host's own mappings stood against. What leaves: MMIO, hypercalls, power, signals, and a conversion that
 * somebody's pin refuses (KVM_EXIT_MEMORY_FAULT: let go and run again, or TENURE_REFUSE).
 */
#include <linux/hrtimer.h>
#include <linux/sched/signal.h>

#include "driver.h"

/* Nothing wakes a guest from WFI yet but time; it looks again after this long. */
#define TN_WFI_NS (500 * NSEC_PER_USEC)
/* Another vCPU may have cancelled the drain, of which nobody tells: the guest's call looks again after this long. */
#define TN_DRAIN_LOOK (HZ / 4)
#define TN_LEAVE 1

static int tn_interrupted(struct tenure_vcpu *vcpu)
{
	vcpu->run->exit_reason = KVM_EXIT_INTR;
	return -EINTR;
}

/*
 * One VCPU_RUN. Interrupts are masked by PSTATE (also with pseudo-NMIs, which must reach the hypervisor's eyes), so
 * that a signal sent after the last look kicks us out of the guest. False: there is something to do first.
 */
static bool tn_enter(struct tenure_vcpu *vcpu, struct tn_reply *reply)
{
	bool go;

	preempt_disable();
	asm volatile("msr daifset, #3" ::: "memory");
	go = !need_resched() && !signal_pending(current) && !READ_ONCE(tn_machine.stopping);
	if (go)
		tn_hvc(reply, TENURE_CALL_VCPU_RUN, vcpu->vm->handle, vcpu->id, 0, 0, 0);
	asm volatile("msr daifclr, #3" ::: "memory");
	preempt_enable();
	return go;
}

/* Puts the VMM's answer to the last exit where the hypervisor looks for it. */
static void tn_complete(struct tenure_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	u64 data = 0;

	switch (vcpu->completing) {
	case KVM_EXIT_MMIO:
		memcpy(&data, run->mmio.data, sizeof(data));
		vcpu->page->data = data;
		break;
	case KVM_EXIT_HYPERCALL:
		vcpu->page->data = READ_ONCE(run->hypercall.ret);
		break;
	}
	vcpu->completing = 0;
}

static int tn_exit_mmio(struct tenure_vcpu *vcpu)
{
	struct tenure_run_page *page = vcpu->page;
	struct kvm_run *run = vcpu->run;
	u64 data = page->data;

	run->exit_reason = KVM_EXIT_MMIO;
	run->mmio.phys_addr = page->gpa;
	run->mmio.len = min(page->width, 8ULL);
	run->mmio.is_write = page->write;
	memset(run->mmio.data, 0, sizeof(run->mmio.data));
	if (page->write)
		memcpy(run->mmio.data, &data, run->mmio.len);
	vcpu->completing = page->write ? 0 : KVM_EXIT_MMIO;
	return TN_LEAVE;
}

static int tn_exit_hypercall(struct tenure_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	run->exit_reason = KVM_EXIT_HYPERCALL;
	run->hypercall.nr = TENURE_GUEST_HOST_CALL;
	memcpy(run->hypercall.args, vcpu->page->args, sizeof(run->hypercall.args));
	run->hypercall.ret = 0;
	run->hypercall.flags = 0;
	vcpu->completing = KVM_EXIT_HYPERCALL;
	return TN_LEAVE;
}

static int tn_exit_system(struct tenure_vcpu *vcpu, u32 type)
{
	struct kvm_run *run = vcpu->run;

	run->exit_reason = KVM_EXIT_SYSTEM_EVENT;
	run->system_event.type = type;
	run->system_event.ndata = 0;
	if (type == KVM_SYSTEM_EVENT_CRASH) {
		run->system_event.ndata = 2;
		run->system_event.data[0] = vcpu->page->esr;
		run->system_event.data[1] = vcpu->page->gpa;
	}
	return TN_LEAVE;
}

static int tn_exit_memory_fault(struct tenure_vcpu *vcpu, u64 gpa, u64 size, u64 flags)
{
	struct kvm_run *run = vcpu->run;

	run->exit_reason = KVM_EXIT_MEMORY_FAULT;
	run->memory_fault.flags = flags;
	run->memory_fault.gpa = gpa;
	run->memory_fault.size = size;
	return -EFAULT;
}

static int tn_exit_populate(struct tenure_vcpu *vcpu)
{
	struct tenure_run_page *page = vcpu->page;
	u64 gfn = page->gpa >> PAGE_SHIFT, count = max(page->count, 1ULL);
	u64 kind = page->status == TENURE_ADDR_SHARED ? TENURE_ADDR_SHARED : TENURE_ADDR_PRIVATE;
	struct tenure_vm *vm = vcpu->vm;
	struct tenure_slot *slot;
	long err;

	down_read(&vm->slots_sem);
	slot = tn_slot_find(vm, gfn);
	if (!slot) {
		err = -EFAULT;
	} else if (slot->gmem) {
		down_read(&slot->gmem->sem);
		err = tn_gmem_populate(slot, gfn, count, kind);
		up_read(&slot->gmem->sem);
	} else {
		err = tn_lend_map(slot, gfn);
	}
	up_read(&vm->slots_sem);
	/* The address changed under us, or somebody is at it: the guest finds out by itself. */
	if (err == -EAGAIN || err == -EPERM) {
		cond_resched();
		return 0;
	}
	if (err == -EFAULT)
		return tn_exit_memory_fault(vcpu, page->gpa, PAGE_SIZE,
					    kind == TENURE_ADDR_PRIVATE ? KVM_MEMORY_EXIT_FLAG_PRIVATE : 0);
	return min(err, 0L);
}

static int tn_exit_convert(struct tenure_vcpu *vcpu)
{
	struct tenure_run_page *page = vcpu->page;
	u64 pins = TENURE_BLOCK_CPU_PIN | TENURE_BLOCK_DMA_PIN, blocked;
	int err;

	vcpu->request = (struct tenure_request){
		.gpa = page->gpa,
		.pages = max(page->count, 1ULL),
		.flags = page->flags,
		.sequence = page->sequence,
		.first = page->first,
		.mask = page->mask,
	};
	/* A declared holder: only the VMM can make it let go. */
	if (page->mask & pins)
		return tn_exit_memory_fault(vcpu, page->gpa, vcpu->request.pages << PAGE_SHIFT,
					    KVM_MEMORY_EXIT_FLAG_PRIVATE);
	err = tn_consent(vcpu, &blocked);
	/*
	 * Held by somebody whom we have just declared: the guest's call, made again, meets the pin and is told BUSY,
	 * or, if it can be told nothing but yes or no, comes back here with the pin in the mask.
	 */
	vcpu->request.sequence = 0;
	return err == -EAGAIN ? 0 : err;
}

/* Waits until a page of this VM has drained; `seen` was read before the guest ran. */
static int tn_exit_drain(struct tenure_vcpu *vcpu, int seen)
{
	struct tenure_vm *vm = vcpu->vm;

	long left = wait_event_interruptible_timeout(vm->drain_wait,
						     atomic_read(&vm->drained) != seen || vm->dead ||
							     READ_ONCE(tn_machine.stopping),
						     TN_DRAIN_LOOK);

	return left < 0 ? tn_interrupted(vcpu) : 0;
}

/* Waits for CPU_ON; `seen` was read before the vCPU said that it is off. */
static int tn_exit_off(struct tenure_vcpu *vcpu, int seen)
{
	if (wait_event_interruptible(vcpu->power_wait, atomic_read(&vcpu->power_ons) != seen || vcpu->vm->dead ||
							       READ_ONCE(tn_machine.stopping)))
		return tn_interrupted(vcpu);
	return 0;
}

static void tn_power_on(struct tenure_vm *vm, u64 target)
{
	struct tenure_vcpu *vcpu;

	if (target >= TN_MAX_VCPUS)
		return;
	vcpu = READ_ONCE(vm->vcpus[target]);
	if (!vcpu)
		return;
	atomic_inc(&vcpu->power_ons);
	wake_up_all(&vcpu->power_wait);
}

static int tn_exit_wfi(struct tenure_vcpu *vcpu)
{
	ktime_t wait = ns_to_ktime(TN_WFI_NS);

	set_current_state(TASK_INTERRUPTIBLE);
	schedule_hrtimeout(&wait, HRTIMER_MODE_REL);
	return 0;
}

/* 0: run on. TN_LEAVE: KVM_RUN returns 0 with an exit reason. Negative: KVM_RUN fails with it. */
static int tn_exit(struct tenure_vcpu *vcpu, u64 reason, int drained, int power_ons)
{
	switch (reason) {
	case TENURE_EXIT_INTERRUPT:
	case TENURE_EXIT_TIMER:
		return 0;
	case TENURE_EXIT_MMIO:
		return tn_exit_mmio(vcpu);
	case TENURE_EXIT_POPULATE:
		return tn_exit_populate(vcpu);
	case TENURE_EXIT_CONVERT:
		return tn_exit_convert(vcpu);
	case TENURE_EXIT_DRAIN:
		return tn_exit_drain(vcpu, drained);
	case TENURE_EXIT_HYPERCALL:
		return tn_exit_hypercall(vcpu);
	case TENURE_EXIT_SYSTEM:
		switch (vcpu->page->system) {
		case TENURE_SYSTEM_OFF:
			return tn_exit_system(vcpu, KVM_SYSTEM_EVENT_SHUTDOWN);
		case TENURE_SYSTEM_RESET:
			return tn_exit_system(vcpu, KVM_SYSTEM_EVENT_RESET);
		default:
			return tn_exit_system(vcpu, KVM_SYSTEM_EVENT_CRASH);
		}
	case TENURE_EXIT_WFI:
		return tn_exit_wfi(vcpu);
	case TENURE_EXIT_TABLES:
		return tn_pool_topup(vcpu->vm, TENURE_BLOCK_VM_POOL | (vcpu->page->mask & TENURE_BLOCK_HOST_POOL));
	case TENURE_EXIT_CPU_ON:
		tn_power_on(vcpu->vm, vcpu->page->target);
		return 0;
	case TENURE_EXIT_OFF:
		return tn_exit_off(vcpu, power_ons);
	case TENURE_EXIT_FAULT:
		return tn_exit_system(vcpu, KVM_SYSTEM_EVENT_CRASH);
	default:
		vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
		vcpu->run->hw.hardware_exit_reason = reason;
		return TN_LEAVE;
	}
}

/* The caller holds vcpu->lock. */
int tn_vcpu_run(struct tenure_vcpu *vcpu)
{
	struct tenure_vm *vm = vcpu->vm;
	struct tn_reply reply;
	int err, drained, power_ons;

	if (!vcpu->initialised)
		return -ENOEXEC;
	mutex_lock(&vm->lock);
	err = tn_vm_activate(vm);
	mutex_unlock(&vm->lock);
	if (err)
		return err;
	tn_complete(vcpu);
	vcpu->request.sequence = 0;
	if (tenure_immediate_exit(vcpu->run))
		return tn_interrupted(vcpu);
	for (;;) {
		if (signal_pending(current))
			return tn_interrupted(vcpu);
		if (READ_ONCE(tn_machine.stopping) || READ_ONCE(vm->broken))
			return -EIO;
		cond_resched();
		drained = atomic_read(&vm->drained);
		power_ons = atomic_read(&vcpu->power_ons);
		if (!tn_enter(vcpu, &reply))
			continue;
		switch (reply.status) {
		case TENURE_SUCCESS:
			err = tn_exit(vcpu, reply.x[0], drained, power_ons);
			break;
		case TENURE_RETRY:
			err = 0;
			break;
		case TENURE_NO_MEMORY:
			err = tn_pool_topup(vm, reply.mask);
			break;
		default:
			pr_warn_ratelimited("tenure: VM %llx vCPU %u: status %lld, mask %llx\n", vm->handle, vcpu->id,
					    reply.status, reply.mask);
			err = tn_errno(reply.status);
		}
		if (err)
			return err == TN_LEAVE ? 0 : err;
	}
}
