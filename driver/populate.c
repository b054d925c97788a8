// SPDX-License-Identifier: GPL-2.0
/*
 * Frames of a guest_memfd: how they come, how they move into a new slot, how a hole is punched.
 *
 * The hypervisor decides the kind: a donate must say what the status of the address says, or it is DENIED.
 */
#include <linux/highmem.h>
#include <linux/falloc.h>

#include "driver.h"

/* The slot that covers an offset. The caller holds gmem->sem. */
struct tenure_slot *tn_gmem_slot(struct tenure_gmem *gmem, u64 pgoff)
{
	struct tenure_slot *slot;

	list_for_each_entry(slot, &gmem->slots, gmem_node)
		if (pgoff - slot->pgoff < slot->pages)
			return slot;
	return NULL;
}

/*
 * A frame stands in the xarray already. True if the guest (or a race with it) has it; else it came home by a
 * relinquish, or waits in quarantine for somebody's pin, and is taken out to make room.
 */
static bool tn_gmem_still_there(struct tenure_gmem *gmem, u64 pgoff, struct page *page)
{
	u64 word = tn_word(page_to_pfn(page));

	switch (TN_FIELD(word, STATE)) {
	case TENURE_STATE_HOST:
	case TENURE_STATE_QUARANTINE:
		tn_gmem_zap(gmem, pgoff, 1);
		xa_erase(&gmem->frames, pgoff);
		tn_reap(page, true);
		return false;
	default:
		return true;
	}
}

/* Gives one new frame to the guest. The caller holds gmem->fill. */
static int tn_gmem_donate(struct tenure_slot *slot, u64 gfn, u64 pgoff, u64 kind)
{
	struct tenure_gmem *gmem = slot->gmem;
	struct tn_reply reply;
	struct page *page;
	int err;

	page = xa_load(&gmem->frames, pgoff);
	if (page && tn_gmem_still_there(gmem, pgoff, page))
		return 0;
	/* The entry first: once the frame is given away, nothing may fail. */
	err = xa_reserve(&gmem->frames, pgoff, GFP_KERNEL_ACCOUNT);
	if (err)
		return err;
	page = alloc_page(GFP_KERNEL_ACCOUNT);
	if (!page) {
		xa_release(&gmem->frames, pgoff);
		return -ENOMEM;
	}
	tn_range(slot->vm, &reply, TN_GFN_PFN_COUNT_ARG, TENURE_CALL_DONATE, gfn, page_to_pfn(page), 1, kind);
	if (reply.status != TENURE_SUCCESS) {
		xa_release(&gmem->frames, pgoff);
		tn_reap(page, false);
		return tn_errno(reply.status);
	}
	xa_store(&gmem->frames, pgoff, page, GFP_KERNEL_ACCOUNT);
	return 0;
}

/*
 * Gives frames of the kind that the hypervisor asked for, as far as they are missing. The caller holds gmem->sem for
 * reading. Fails only if not even the first page could be given.
 */
int tn_gmem_populate(struct tenure_slot *slot, u64 gfn, u64 pages, u64 kind)
{
	struct tenure_gmem *gmem = slot->gmem;
	u64 i;
	int err = 0;

	if (gmem->dead || slot->vm->dead)
		return -EIO;
	mutex_lock(&gmem->fill);
	for (i = 0; i < pages && gfn + i - slot->gfn < slot->pages; i++) {
		err = tn_gmem_donate(slot, gfn + i, slot->pgoff + gfn + i - slot->gfn, kind);
		if (err)
			break;
		if (need_resched() || fatal_signal_pending(current))
			pages = i + 1;
	}
	mutex_unlock(&gmem->fill);
	return i ? 0 : err;
}

/* Moves what userspace wrote before there was a slot into the guest, page by page. */
static int tn_gmem_move_in(struct tenure_gmem *gmem, struct tenure_slot *slot, u64 pgoff, struct page *old)
{
	u64 gfn = slot->gfn + pgoff - slot->pgoff;
	struct tn_reply reply;
	struct page *page;

	if (page_count(old) != 1)
		return -EAGAIN;
	page = alloc_page(GFP_KERNEL_ACCOUNT);
	if (!page)
		return -ENOMEM;
	tn_range(slot->vm, &reply, TN_GFN_PFN_COUNT_ARG, TENURE_CALL_DONATE, gfn, page_to_pfn(page), 1,
		 TENURE_ADDR_SHARED);
	if (reply.status != TENURE_SUCCESS) {
		tn_reap(page, false);
		return tn_errno(reply.status);
	}
	/* Shared with the host: the hypervisor lets us write it. */
	copy_highpage(page, old);
	xa_store(&gmem->frames, pgoff, page, GFP_KERNEL_ACCOUNT);
	put_page(old);
	return 0;
}

/* Binds a slot to its range of the file. */
int tn_gmem_bind(struct tenure_gmem *gmem, struct tenure_slot *slot)
{
	u64 last = slot->pgoff + slot->pages - 1;
	struct tenure_slot *other;
	struct page *page;
	unsigned long index;
	int err = 0;

	down_write(&gmem->sem);
	if (gmem->dead)
		err = -EIO;
	list_for_each_entry(other, &gmem->slots, gmem_node)
		if (slot->pgoff < other->pgoff + other->pages && other->pgoff <= last)
			err = -EEXIST;
	if (err)
		goto out;
	tn_gmem_zap(gmem, slot->pgoff, slot->pages);
	xa_for_each_range(&gmem->frames, index, page, slot->pgoff, last) {
		err = tn_gmem_move_in(gmem, slot, index, page);
		if (err)
			goto undo;
	}
	list_add(&slot->gmem_node, &gmem->slots);
	goto out;
undo:
	/* Frames that moved already are taken back; what was written to them is lost, as the slot never was. */
	xa_for_each_range(&gmem->frames, index, page, slot->pgoff, last) {
		struct tn_reply reply;
		u64 pfn = page_to_pfn(page);

		if (TN_FIELD(tn_word(pfn), STATE) == TENURE_STATE_HOST)
			continue;
		tn_call(slot->vm, &reply, TENURE_CALL_GUEST_UNMAP, slot->vm->handle,
			slot->gfn + index - slot->pgoff, 1, 0, 0);
		tn_call(slot->vm, &reply, TENURE_CALL_HOST_UNMAP, pfn, 1, 0, 0, 0);
		tn_call(slot->vm, &reply, TENURE_CALL_RECLAIM, slot->vm->handle, pfn, 1, 0, 0);
		xa_erase(&gmem->frames, index);
		tn_reap(page, true);
	}
out:
	up_write(&gmem->sem);
	return err;
}

void tn_gmem_unbind(struct tenure_slot *slot)
{
	down_write(&slot->gmem->sem);
	list_del_init(&slot->gmem_node);
	up_write(&slot->gmem->sem);
}

/* Takes one frame back from a live guest, if the hypervisor lets us. The caller holds gmem->sem for writing. */
static int tn_gmem_punch(struct tenure_gmem *gmem, u64 pgoff, struct page *page)
{
	struct tenure_slot *slot = tn_gmem_slot(gmem, pgoff);
	struct tn_reply reply;
	u64 pfn = page_to_pfn(page);

	tn_gmem_zap(gmem, pgoff, 1);
	if (slot && TN_FIELD(tn_word(pfn), STATE) != TENURE_STATE_HOST) {
		if (tn_call(gmem->vm, &reply, TENURE_CALL_GUEST_UNMAP, gmem->vm->handle,
			    slot->gfn + pgoff - slot->pgoff, 1, 0, 0) != TENURE_SUCCESS)
			return tn_errno(reply.status);
		tn_call(gmem->vm, &reply, TENURE_CALL_HOST_UNMAP, pfn, 1, 0, 0, 0);
		if (tn_call(gmem->vm, &reply, TENURE_CALL_RECLAIM, gmem->vm->handle, pfn, 1, 0, 0) != TENURE_SUCCESS)
			return tn_errno(reply.status);
	}
	xa_erase(&gmem->frames, pgoff);
	tn_reap(page, slot);
	return 0;
}

/* PUNCH_HOLE gives memory back; plain allocation puts frames of the right kind in place. */
long tn_gmem_fallocate(struct file *file, int mode, loff_t offset, loff_t len)
{
	struct tenure_gmem *gmem = tn_gmem_of_file(file);
	u64 pgoff = offset >> PAGE_SHIFT, pages = len >> PAGE_SHIFT;
	struct page *page;
	unsigned long index;
	int err = 0;

	if (!IS_ALIGNED(offset | len, PAGE_SIZE))
		return -EINVAL;
	if (pgoff >= gmem->pages || pages > gmem->pages - pgoff)
		return -EINVAL;
	if (mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)) {
		down_write(&gmem->sem);
		xa_for_each_range(&gmem->frames, index, page, pgoff, pgoff + pages - 1) {
			err = tn_gmem_punch(gmem, index, page);
			if (err)
				break;
		}
		up_write(&gmem->sem);
		return err;
	}
	if (mode && mode != FALLOC_FL_KEEP_SIZE)
		return -EOPNOTSUPP;
	for (; pages && !err; pgoff++, pages--) {
		struct tenure_slot *slot;
		struct tn_reply reply;
		u64 gfn;

		if (signal_pending(current))
			return -EINTR;
		down_read(&gmem->sem);
		slot = tn_gmem_slot(gmem, pgoff);
		err = slot ? 0 : -EINVAL;
		if (slot) {
			gfn = slot->gfn + pgoff - slot->pgoff;
			tn_call(gmem->vm, &reply, TENURE_CALL_QUERY_GUEST, gmem->vm->handle, gfn, TENURE_QUERY_SHARE, 0,
				0);
			if (!reply.x[0])
				err = tn_gmem_populate(slot, gfn, 1,
						       reply.x[2] == TENURE_ADDR_SHARED ? TENURE_ADDR_SHARED :
											  TENURE_ADDR_PRIVATE);
		}
		up_read(&gmem->sem);
	}
	return err;
}
