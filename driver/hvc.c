// SPDX-License-Identifier: GPL-2.0
/*
 * Calls to the hypervisor and the one retry policy.
 *
 * RETRY means "will pass": another CPU is in the middle of a transition, or a long call stopped to let an interrupt
 * in. It is repeated here, with a chance to sleep between tries, and bounded: a caller that gets RETRY back has met
 * something that only the host's own mappings explain (TENURE_BLOCK_HOST_LEAF), or a machine that is very busy.
 */
#include <linux/arm-smccc.h>
#include <linux/delay.h>
#include <linux/errno.h>
#include <linux/irqflags.h>
#include <linux/sched.h>

#include "driver.h"

#define TN_TRIES 256
#define TN_TOPUPS 16

/* Calls that a reset would have to undo: the others need the handle of a VM, and it ends them all. */
static bool tn_takes(u64 call)
{
	return call == TENURE_CALL_VM_CREATE || call == TENURE_CALL_PIN || call == TENURE_CALL_POOL_TOPUP;
}

s64 tn_hvc(struct tn_reply *reply, u64 call, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5)
{
	struct arm_smccc_1_2_regs args = { .a0 = call, .a1 = a1, .a2 = a2, .a3 = a3, .a4 = a4, .a5 = a5 };
	struct arm_smccc_1_2_regs res = { .a0 = TENURE_DENIED, .a2 = TENURE_NO_INDEX };
	unsigned long flags;

	if (tn_takes(call)) {
		/* The reset interrupts every CPU first: a call that was let pass is over by then. */
		local_irq_save(flags);
		if (!READ_ONCE(tn_machine.stopping))
			arm_smccc_1_2_hvc(&args, &res);
		local_irq_restore(flags);
	} else {
		arm_smccc_1_2_hvc(&args, &res);
	}
	*reply = (struct tn_reply){
		.status = (s64)res.a0,
		.done = res.a1,
		.first = res.a2,
		.mask = res.a3,
		.x = { res.a4, res.a5, res.a6, res.a7, res.a8, res.a9, res.a10, res.a11, res.a12 },
	};
	return reply->status;
}

/* True if the same call may be made again now. */
static bool tn_again(struct tenure_vm *vm, const struct tn_reply *reply, int *tries, int *topups)
{
	if (reply->status == TENURE_NO_MEMORY)
		return ++*topups <= TN_TOPUPS && !tn_pool_topup(vm, reply->mask);
	/* Only what passes by itself: a leaf stays until somebody drops it. */
	if (reply->status != TENURE_RETRY || (reply->mask & ~TENURE_BLOCK_FROZEN) || ++*tries > TN_TRIES)
		return false;
	if (*tries % 32 == 0)
		usleep_range(50, 200);
	else
		cond_resched();
	return true;
}

s64 tn_call(struct tenure_vm *vm, struct tn_reply *reply, u64 call, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5)
{
	int tries = 0, topups = 0;

	might_sleep();
	do {
		tn_hvc(reply, call, a1, a2, a3, a4, a5);
	} while (tn_again(vm, reply, &tries, &topups));
	return reply->status;
}

s64 tn_range(struct tenure_vm *vm, struct tn_reply *reply, enum tn_shape shape, u64 call, u64 gfn, u64 pfn,
	     u64 count, u64 arg)
{
	u64 handle = vm ? vm->handle : 0, done = 0;
	int tries = 0, topups = 0;

	might_sleep();
	while (done < count) {
		u64 left = count - done;

		switch (shape) {
		case TN_GFN_COUNT_ARG:
			tn_hvc(reply, call, handle, gfn + done, left, arg, 0);
			break;
		case TN_GFN_PFN_COUNT_ARG:
			tn_hvc(reply, call, handle, gfn + done, pfn + done, left, arg);
			break;
		case TN_PFN_COUNT_ARG:
			tn_hvc(reply, call, pfn + done, left, arg, 0, 0);
			break;
		}
		if (reply->done) {
			done += min(reply->done, left);
			tries = 0;
			if (reply->status == TENURE_SUCCESS || reply->status == TENURE_RETRY) {
				cond_resched();
				continue;
			}
		}
		if (reply->status == TENURE_SUCCESS) {
			/* A success that does nothing would turn us in a circle. */
			reply->status = TENURE_RETRY;
			reply->mask = 0;
		}
		if (!tn_again(vm, reply, &tries, &topups)) {
			if (reply->first != TENURE_NO_INDEX)
				reply->first += done - reply->done;
			break;
		}
	}
	if (done == count)
		reply->status = TENURE_SUCCESS;
	reply->done = done;
	return reply->status;
}

int tn_errno(s64 status)
{
	switch (status) {
	case TENURE_SUCCESS:
		return 0;
	case TENURE_NOT_SUPPORTED:
		return -EOPNOTSUPP;
	case TENURE_INVALID:
		return -EINVAL;
	case TENURE_DENIED:
		return -EPERM;
	case TENURE_BUSY:
		return -EBUSY;
	case TENURE_RETRY:
	case TENURE_PENDING:
		return -EAGAIN;
	case TENURE_NO_MEMORY:
		return -ENOMEM;
	case TENURE_POISONED:
		return -EHWPOISON;
	default:
		return -EIO;
	}
}

u64 tn_word(u64 pfn)
{
	struct tn_reply reply;

	if (tn_call(NULL, &reply, TENURE_CALL_QUERY, pfn, 0, 0, 0, 0) != TENURE_SUCCESS)
		return ~0ULL;
	return reply.x[0];
}
