// SPDX-License-Identifier: GPL-2.0
/*
 * Slots without a guest_memfd (plain VMs only): the VMM's own memory, lent page by page.
 *
 * The pages stay the host's in every way, and nobody holds a reference to them. A notifier of the VMM's address space
 * tells when Linux is about to change a mapping (munmap, DONTNEED, fork, migration, reclaim, writeback). The guest's
 * leaves of that range go before Linux goes on, and the guest's next touch finds whatever stands there then.
 *
 * slot->lending is taken inside the kernel's reclaim: nothing may allocate under it.
 */
#include <linux/mmu_notifier.h>
#include <linux/sched/signal.h>

#include "driver.h"

#define TN_BLOCK 512ULL
/* Tries for a caller that may not sleep. */
#define TN_UNMAP_TRIES 1000

/*
 * Drops the guest's leaves of [gfn, end). False if it could not be done without sleeping. The caller holds
 * slot->lending.
 */
static bool tn_lend_unmap(struct tenure_slot *slot, u64 gfn, u64 end, bool may_sleep)
{
	struct tenure_vm *vm = slot->vm;
	struct tn_reply reply;
	int tries = 0;

	while (gfn < end) {
		tn_hvc(&reply, TENURE_CALL_GUEST_UNMAP, vm->handle, gfn, end - gfn, 0, 0);
		if (reply.status == TENURE_NO_MEMORY) {
			/* No table to split a block with: all of it goes, and comes back by itself. */
			tn_hvc(&reply, TENURE_CALL_GUEST_UNMAP, vm->handle, ALIGN_DOWN(gfn, TN_BLOCK), TN_BLOCK, 0, 0);
			if (reply.status == TENURE_SUCCESS)
				reply.done = 0;
		}
		switch (reply.status) {
		case TENURE_SUCCESS:
			gfn += reply.done;
			break;
		case TENURE_RETRY:
			if (!may_sleep && ++tries > TN_UNMAP_TRIES)
				return false;
			break;
		case TENURE_INVALID:
			/* The VM is dead: nobody runs in it. */
			return true;
		default:
			/* Cannot be. The guest must not run on with what is no longer lent. */
			WARN_ONCE(1, "tenure: a lent page cannot be taken back: status %lld, mask %#llx\n", reply.status,
				  reply.mask);
			WRITE_ONCE(vm->broken, true);
			return true;
		}
		if (may_sleep)
			cond_resched();
		else
			cpu_relax();
	}
	return true;
}

static bool tn_lend_invalidate(struct mmu_interval_notifier *notifier, const struct mmu_notifier_range *range,
			       unsigned long sequence)
{
	struct tenure_slot *slot = container_of(notifier, struct tenure_slot, notifier);
	u64 from = max_t(u64, range->start, slot->userspace_addr) - slot->userspace_addr;
	u64 to = min_t(u64, range->end, slot->userspace_addr + (slot->pages << PAGE_SHIFT)) - slot->userspace_addr;
	bool may_sleep = mmu_notifier_range_blockable(range), gone;

	if (may_sleep)
		mutex_lock(&slot->lending);
	else if (!mutex_trylock(&slot->lending))
		return false;
	mmu_interval_set_seq(notifier, sequence);
	gone = tn_lend_unmap(slot, slot->gfn + (from >> PAGE_SHIFT), slot->gfn + (PAGE_ALIGN(to) >> PAGE_SHIFT),
			     may_sleep);
	mutex_unlock(&slot->lending);
	return gone;
}

static const struct mmu_interval_notifier_ops tn_lend_ops = {
	.invalidate = tn_lend_invalidate,
};

/* Begins to watch the memory of this process that the slot lends. */
int tn_lend_open(struct tenure_slot *slot)
{
	int err = mmu_interval_notifier_insert(&slot->notifier, current->mm, slot->userspace_addr,
					       slot->pages << PAGE_SHIFT, &tn_lend_ops);

	slot->lent = !err;
	return err;
}

/* The last of a slot. The caller made sure that no vCPU maps anything any more. */
void tn_lend_close(struct tenure_slot *slot)
{
	if (slot->lent)
		mmu_interval_notifier_remove(&slot->notifier);
}

/* Takes everything back, and lends nothing while `closed`. */
void tn_lend_stop(struct tenure_slot *slot, bool closed)
{
	mutex_lock(&slot->lending);
	slot->closed = closed;
	if (closed)
		tn_lend_unmap(slot, slot->gfn, slot->gfn + slot->pages, true);
	mutex_unlock(&slot->lending);
}

/* One attempt to map the page that stands behind `gfn`. -EAGAIN: it changed meanwhile. */
static int tn_lend_try(struct tenure_slot *slot, u64 gfn, struct tn_reply *reply)
{
	unsigned long sequence = mmu_interval_read_begin(&slot->notifier);
	struct page *page;
	int n = get_user_pages_fast(slot->userspace_addr + ((gfn - slot->gfn) << PAGE_SHIFT), 1, FOLL_WRITE, &page);

	if (n != 1)
		return n < 0 ? n : -EFAULT;
	/* The guest may write at any time: reclaim must not think that swap has the same. (Files: the PTE is dirty.) */
	if (PageAnon(page))
		set_page_dirty_lock(page);
	n = -EAGAIN;
	mutex_lock(&slot->lending);
	if (!slot->closed && !mmu_interval_read_retry(&slot->notifier, sequence))
		n = tn_errno(tn_hvc(reply, TENURE_CALL_GUEST_MAP, slot->vm->handle, gfn, page_to_pfn(page), 1, 0));
	mutex_unlock(&slot->lending);
	put_page(page);
	return n;
}

/* Lends the VMM's page behind `gfn` to the guest. The caller holds slots_sem for reading. */
int tn_lend_map(struct tenure_slot *slot, u64 gfn)
{
	struct tenure_vm *vm = slot->vm;
	struct tn_reply reply;
	int err;

	/* As upstream: a VM is run by the process whose memory it was given. */
	if (current->mm != slot->notifier.mm)
		return -EIO;
	reply.mask = 0;
	err = tn_lend_try(slot, gfn, &reply);
	/* Whatever may pass is tried again by the guest, which lets signals in between. */
	if (err == -ENOMEM)
		return tn_pool_topup(vm, reply.mask);
	if (err != -EPERM)
		return err;
	/* Another vCPU was first, or the frame is none that may be lent. */
	tn_call(vm, &reply, TENURE_CALL_QUERY_GUEST, vm->handle, gfn, TENURE_QUERY_SHARE, 0, 0);
	return reply.x[0] ? 0 : -EFAULT;
}
