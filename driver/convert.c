// SPDX-License-Identifier: GPL-2.0
/*
 * Conversions between shared and private.
 *
 * The host's part is small and always the same: no new fault (gmem->sem), no user mapping (unmap), no stray reference
 * (the count, a few short tries), then one call, and the hypervisor checks everything again and does it whole or not
 * at all. Whoever still holds a page after the tries becomes an observed pin, so that the guest is told BUSY and why.
 */
#include <linux/delay.h>
#include <linux/sched/signal.h>

#include "driver.h"

#define TN_REF_TRIES 5

/* True if anybody but the xarray (and user page tables) has a reference. */
bool tn_held_by_others(struct page *page)
{
	return page_count(page) - tenure_mapcount(page) > 1;
}

/* Unmaps a range and waits a little for stray references. Returns the first offset that is still held, or ~0. */
static u64 tn_quiesce(struct tenure_gmem *gmem, u64 pgoff, u64 pages)
{
	struct page *page;
	unsigned long index = 0;
	int i;

	lockdep_assert_held_write(&gmem->sem);
	for (i = 0; i < TN_REF_TRIES; i++) {
		bool held = false;

		/* Again each time: a fault that was on its way has put its PTE in by now. */
		tn_gmem_zap(gmem, pgoff, pages);
		xa_for_each_range(&gmem->frames, index, page, pgoff, pgoff + pages - 1) {
			held = page_count(page) != 1;
			if (held)
				break;
		}
		if (!held)
			return ~0ULL;
		usleep_range(20 << i, 50 << i);
	}
	return index;
}

/* Visits the slots that a guest range lies in; each distinct file once. slots_sem is held. */
static struct tenure_slot *tn_next_file(struct tenure_vm *vm, struct tenure_slot *after, u64 gfn, u64 pages)
{
	struct tenure_slot *slot, *earlier;
	bool passed = !after;

	list_for_each_entry(slot, &vm->slots, node) {
		bool seen = false;

		if (!passed) {
			passed = slot == after;
			continue;
		}
		if (!slot->gmem || slot->gfn >= gfn + pages || gfn >= slot->gfn + slot->pages)
			continue;
		list_for_each_entry(earlier, &vm->slots, node) {
			if (earlier == slot)
				break;
			if (earlier->gmem == slot->gmem && earlier->gfn < gfn + pages &&
			    gfn < earlier->gfn + earlier->pages)
				seen = true;
		}
		if (!seen)
			return slot;
	}
	return NULL;
}

/*
 * Answers the conversion that a vCPU waits for. 0: the guest's call will find it done, or ask again. -EAGAIN: page
 * *blocked of the request is held; it is declared to the hypervisor now. The caller holds vcpu->lock.
 */
int tn_consent(struct tenure_vcpu *vcpu, u64 *blocked)
{
	struct tenure_request *request = &vcpu->request;
	struct tenure_vm *vm = vcpu->vm;
	u64 gfn = request->gpa >> PAGE_SHIFT, first = ~0ULL;
	struct tenure_slot *slot;
	struct tn_reply reply;
	int err = 0;

	down_read(&vm->slots_sem);
	/* The list order is the lock order of several files. */
	for (slot = tn_next_file(vm, NULL, gfn, request->pages); slot;
	     slot = tn_next_file(vm, slot, gfn, request->pages))
		down_write_nest_lock(&slot->gmem->sem, &vm->slots_sem);
	list_for_each_entry(slot, &vm->slots, node) {
		u64 from = max(gfn, slot->gfn), to = min(gfn + request->pages, slot->gfn + slot->pages), held;

		if (!slot->gmem || from >= to)
			continue;
		held = tn_quiesce(slot->gmem, slot->pgoff + from - slot->gfn, to - from);
		if (held == ~0ULL)
			continue;
		first = min(first, slot->gfn + held - slot->pgoff - gfn);
		/* A refusal means that the page is not what it was: the hypervisor will say so below. */
		if (tn_observe(slot->gmem, held, xa_load(&slot->gmem->frames, held)) == -ENOMEM)
			err = -ENOMEM;
	}
	/* Also with a holder found: the hypervisor's answer, BUSY now, is what the guest is told. */
	if (!err) {
		tn_call(vm, &reply, TENURE_CALL_CONSENT, vm->handle, vcpu->id, request->sequence, 0, 0);
		if (reply.status == TENURE_BUSY) {
			first = reply.first;
			err = -EAGAIN;
		} else if (reply.status == TENURE_NO_MEMORY) {
			err = -ENOMEM;
		}
		/* Anything else: the re-executed call decides. */
	}
	for (slot = tn_next_file(vm, NULL, gfn, request->pages); slot;
	     slot = tn_next_file(vm, slot, gfn, request->pages))
		up_write(&slot->gmem->sem);
	up_read(&vm->slots_sem);
	*blocked = first == ~0ULL ? 0 : first;
	return err;
}

/* True if each page of the range has the wanted kind already. */
static bool tn_all_are(struct tenure_gmem *gmem, u64 pgoff, u64 pages, u64 to)
{
	struct tn_reply reply;

	for (; pages; pgoff++, pages--) {
		struct tenure_slot *slot = tn_gmem_slot(gmem, pgoff);
		u64 state;

		cond_resched();
		if (!slot || fatal_signal_pending(current) || tn_call(gmem->vm, &reply, TENURE_CALL_QUERY_GUEST, gmem->vm->handle,
				     slot->gfn + pgoff - slot->pgoff, TENURE_QUERY_UNSHARE, 0, 0) == TENURE_INVALID)
			return false;
		state = TN_FIELD(reply.x[0], STATE);
		if (!reply.x[0] ? reply.x[2] != to :
				  state != (to == TENURE_ADDR_SHARED ? TENURE_STATE_SHARED : TENURE_STATE_PRIVATE))
			return false;
	}
	return true;
}

/* An active protected VM: userspace may only answer what the guest asked for. */
static int tn_convert_answer(struct tenure_gmem *gmem, u64 pgoff, u64 pages, u64 to, u64 *error)
{
	struct tenure_vm *vm = gmem->vm;
	int i, err = -EPERM;
	bool already;

	down_read(&gmem->sem);
	already = tn_all_are(gmem, pgoff, pages, to);
	up_read(&gmem->sem);
	if (already)
		return 0;
	*error = pgoff;
	if (to != TENURE_ADDR_PRIVATE)
		return -EPERM;
	mutex_lock(&vm->lock);
	for (i = 0; i < TN_MAX_VCPUS && err == -EPERM; i++) {
		struct tenure_vcpu *vcpu = vm->vcpus[i];
		struct tenure_slot *slot;
		u64 blocked, gfn;

		/* A vCPU that runs has no request. */
		if (!vcpu || !mutex_trylock(&vcpu->lock))
			continue;
		gfn = vcpu->request.gpa >> PAGE_SHIFT;
		slot = vcpu->request.sequence ? tn_slot_find(vm, gfn) : NULL;
		if (slot && slot->gmem == gmem && slot->pgoff + gfn - slot->gfn == pgoff &&
		    vcpu->request.pages == pages) {
			err = tn_consent(vcpu, &blocked);
			*error = pgoff + blocked;
		}
		mutex_unlock(&vcpu->lock);
	}
	mutex_unlock(&vm->lock);
	return err;
}

/* Nothing is changed before every page has been asked about. The caller holds gmem->sem for writing. */
static int tn_convert_check(struct tenure_gmem *gmem, u64 pgoff, u64 pages, u64 to, u64 *error)
{
	u64 op = to == TENURE_ADDR_PRIVATE ? TENURE_QUERY_UNSHARE : TENURE_QUERY_SHARE;
	struct tn_reply reply;
	u64 i;

	for (i = 0; i < pages; i++) {
		struct tenure_slot *slot = tn_gmem_slot(gmem, pgoff + i);

		cond_resched();
		if (fatal_signal_pending(current))
			return -EINTR;
		*error = pgoff + i;
		if (!slot)
			return -EINVAL;
		tn_call(gmem->vm, &reply, TENURE_CALL_QUERY_GUEST, gmem->vm->handle,
			slot->gfn + pgoff + i - slot->pgoff, op, 0, 0);
		if (reply.status == TENURE_BUSY || reply.status == TENURE_PENDING)
			return -EAGAIN;
		if (reply.status == TENURE_POISONED)
			return -EHWPOISON;
	}
	if (to == TENURE_ADDR_PRIVATE) {
		*error = tn_quiesce(gmem, pgoff, pages);
		if (*error != ~0ULL)
			return -EAGAIN;
	}
	return 0;
}

/* Drops the host's own leaves of a range. */
static void tn_host_unmap(struct tenure_gmem *gmem, u64 pgoff, u64 pages)
{
	struct tn_reply reply;
	struct page *page;
	unsigned long index;

	xa_for_each_range(&gmem->frames, index, page, pgoff, pgoff + pages - 1)
		tn_call(gmem->vm, &reply, TENURE_CALL_HOST_UNMAP, page_to_pfn(page), 1, 0, 0, 0);
}

/* Converts a run of pages of one slot, at most TENURE_MAX_ATOMIC_PAGES. */
static int tn_convert_run(struct tenure_slot *slot, u64 pgoff, u64 pages, u64 to, u64 *error)
{
	struct tenure_gmem *gmem = slot->gmem;
	struct tn_reply reply;
	u64 done = 0;
	int i;

	for (i = 0; i < TN_REF_TRIES; i++) {
		if (to == TENURE_ADDR_PRIVATE)
			tn_host_unmap(gmem, pgoff + done, pages - done);
		tn_range(gmem->vm, &reply, TN_GFN_COUNT_ARG, TENURE_CALL_CONVERT,
			 slot->gfn + pgoff + done - slot->pgoff, 0, pages - done, to);
		if (reply.status == TENURE_SUCCESS)
			return 0;
		done += reply.done;
		if (reply.status != TENURE_RETRY)
			break;
	}
	*error = pgoff + done + (reply.first == TENURE_NO_INDEX ? 0 : reply.first - reply.done);
	return reply.status == TENURE_BUSY ? -EAGAIN : tn_errno(reply.status);
}

/* KVM_SET_MEMORY_ATTRIBUTES2. */
int tn_convert(struct tenure_gmem *gmem, struct tenure_kvm_attributes2 *attributes)
{
	u64 to = attributes->attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE ? TENURE_ADDR_PRIVATE : TENURE_ADDR_SHARED;
	u64 pgoff = attributes->offset >> PAGE_SHIFT, pages = attributes->size >> PAGE_SHIFT, error = pgoff;
	int err;

	if (attributes->flags || attributes->attributes & ~KVM_MEMORY_ATTRIBUTE_PRIVATE ||
	    memchr_inv(attributes->reserved, 0, sizeof(attributes->reserved)))
		return -EINVAL;
	if (!attributes->size || !IS_ALIGNED(attributes->offset | attributes->size, PAGE_SIZE) ||
	    pgoff >= gmem->pages || pages > gmem->pages - pgoff)
		return -EINVAL;
	if (gmem->vm->protected && READ_ONCE(gmem->vm->active)) {
		err = tn_convert_answer(gmem, pgoff, pages, to, &error);
		goto out;
	}
	down_write(&gmem->sem);
	err = gmem->dead ? -EIO : tn_convert_check(gmem, pgoff, pages, to, &error);
	while (!err && pages) {
		cond_resched();
		struct tenure_slot *slot = tn_gmem_slot(gmem, pgoff);
		u64 step = min3(pages, slot->pgoff + slot->pages - pgoff, (u64)TENURE_MAX_ATOMIC_PAGES);

		err = tn_convert_run(slot, pgoff, step, to, &error);
		pgoff += step;
		pages -= step;
	}
	up_write(&gmem->sem);
out:
	attributes->error_offset = err ? error << PAGE_SHIFT : 0;
	return err;
}
