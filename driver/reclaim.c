// SPDX-License-Identifier: GPL-2.0
/*
 * Frames on their way back from a guest that lives: a hole is punched, or a slot goes.
 *
 * A pin, or a guest that may keep its page, is asked about first, for the whole range: with the file's lock held no pin
 * is added, so a refusal changes nothing.
 */
#include <linux/fs.h>
#include <linux/falloc.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>

#include "driver.h"

/* Removes every user mapping of a range, those too that are being made. The caller holds gmem->sem for writing. */
void tn_gmem_unmap(struct tenure_gmem *gmem, u64 pgoff, u64 pages)
{
	struct page *page;
	unsigned long index;

	/* A fault that was on its way holds the page's lock until its PTE stands. */
	xa_for_each_range(&gmem->frames, index, page, pgoff, pgoff + pages - 1) {
		lock_page(page);
		unlock_page(page);
	}
	tn_gmem_zap(gmem, pgoff, pages);
}

/* Why a range of a slot cannot be taken back now, or 0. The caller holds gmem->sem for writing. */
int tn_gmem_may_take(struct tenure_slot *slot, u64 pgoff, u64 pages)
{
	struct tn_reply reply;
	struct page *page;
	unsigned long index;

	xa_for_each_range(&slot->gmem->frames, index, page, pgoff, pgoff + pages - 1) {
		tn_call(slot->vm, &reply, TENURE_CALL_QUERY_GUEST, slot->vm->handle,
			slot->gfn + index - slot->pgoff, TENURE_QUERY_RECLAIM, 0, 0);
		/* RETRY: the guest's leaf, which goes first. No leaf: the frame itself says what it is. */
		if (reply.status != TENURE_SUCCESS && reply.status != TENURE_RETRY &&
		    !(reply.mask & TENURE_BLOCK_UNPOPULATED))
			return tn_errno(reply.status);
		cond_resched();
	}
	return 0;
}

/* The frame is not the guest's any more: it gave it back itself, or waits for somebody's pin. */
static bool tn_gmem_is_gone(struct page *page)
{
	u64 state = TN_FIELD(tn_word(page_to_pfn(page)), STATE);

	return state == TENURE_STATE_HOST || state == TENURE_STATE_QUARANTINE;
}

/* Frames from `index` on that lie in a row in memory too. */
static u64 tn_gmem_run(struct tenure_gmem *gmem, u64 index, u64 last, struct page *page)
{
	u64 n = 1;

	while (index + n <= last && xa_load(&gmem->frames, index + n) == page + n && !tn_gmem_is_gone(page + n))
		n++;
	return n;
}

/* Takes the frames of a range of a slot back. The caller holds gmem->sem for writing and has asked (tn_gmem_may_take). */
int tn_gmem_take(struct tenure_slot *slot, u64 pgoff, u64 pages)
{
	u64 last = pgoff + pages - 1, run, i;
	struct tenure_gmem *gmem = slot->gmem;
	struct tenure_vm *vm = slot->vm;
	struct tn_reply reply;
	struct page *page;
	unsigned long index;

	lockdep_assert_held_write(&gmem->sem);
	if (tn_range(vm, &reply, TN_GFN_COUNT_ARG, TENURE_CALL_GUEST_UNMAP, slot->gfn + pgoff - slot->pgoff, 0, pages,
		     0) != TENURE_SUCCESS)
		return tn_errno(reply.status);
	xa_for_each_range(&gmem->frames, index, page, pgoff, last) {
		reply.status = TENURE_SUCCESS;
		run = 1;
		reply.done = 1;
		if (!tn_gmem_is_gone(page)) {
			run = tn_gmem_run(gmem, index, last, page);
			tn_range(vm, &reply, TN_PFN_COUNT_ARG, TENURE_CALL_HOST_UNMAP, 0, page_to_pfn(page), run, 0);
			/* (handle, pfn, count): the frame stands where others have the address. */
			tn_range(vm, &reply, TN_GFN_COUNT_ARG, TENURE_CALL_RECLAIM, page_to_pfn(page), 0, run, 0);
		}
		for (i = 0; i < reply.done; i++) {
			xa_erase(&gmem->frames, index + i);
			tn_reap(page + i, true);
		}
		if (reply.status != TENURE_SUCCESS)
			return tn_errno(reply.status);
		cond_resched();
	}
	return 0;
}

/* Gives a range of the file back to Linux: all of it, unless somebody may keep a page. */
static int tn_gmem_punch(struct tenure_gmem *gmem, u64 pgoff, u64 pages)
{
	u64 end = pgoff + pages;
	struct tenure_slot *slot;
	struct page *page;
	unsigned long index;
	int err;

	tn_gmem_unmap(gmem, pgoff, pages);
	list_for_each_entry(slot, &gmem->slots, gmem_node) {
		u64 from = max(pgoff, slot->pgoff), to = min(end, slot->pgoff + slot->pages);

		err = from < to ? tn_gmem_may_take(slot, from, to - from) : 0;
		if (err)
			return err;
	}
	list_for_each_entry(slot, &gmem->slots, gmem_node) {
		u64 from = max(pgoff, slot->pgoff), to = min(end, slot->pgoff + slot->pages);

		err = from < to ? tn_gmem_take(slot, from, to - from) : 0;
		if (err)
			return err;
	}
	/* What no slot covers is ordinary memory. */
	xa_for_each_range(&gmem->frames, index, page, pgoff, end - 1) {
		xa_erase(&gmem->frames, index);
		tn_reap(page, false);
	}
	return 0;
}

/* Puts frames of the right kind behind the addresses from `pgoff` on. Returns how many pages are there, or an error. */
static long tn_gmem_allocate(struct tenure_gmem *gmem, u64 pgoff, u64 pages)
{
	struct tenure_slot *slot;
	struct tn_reply reply;
	long done = -EINVAL;
	u64 gfn, kind;

	down_read(&gmem->sem);
	slot = tn_gmem_slot(gmem, pgoff);
	if (slot) {
		gfn = slot->gfn + pgoff - slot->pgoff;
		tn_call(gmem->vm, &reply, TENURE_CALL_QUERY_GUEST, gmem->vm->handle, gfn, TENURE_QUERY_SHARE, 0, 0);
		kind = reply.x[2] == TENURE_ADDR_SHARED ? TENURE_ADDR_SHARED : TENURE_ADDR_PRIVATE;
		done = reply.x[0] ? 1 : tn_gmem_populate(slot, gfn, pages, kind);
	}
	up_read(&gmem->sem);
	return done;
}

/* PUNCH_HOLE gives memory back; plain allocation puts frames of the right kind in place. */
long tn_gmem_fallocate(struct file *file, int mode, loff_t offset, loff_t len)
{
	struct tenure_gmem *gmem = tn_gmem_of_file(file);
	u64 pgoff = offset >> PAGE_SHIFT, pages = len >> PAGE_SHIFT;
	long done;
	int err;

	if (!IS_ALIGNED(offset | len, PAGE_SIZE))
		return -EINVAL;
	if (pgoff >= gmem->pages || pages > gmem->pages - pgoff)
		return -EINVAL;
	if (mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)) {
		down_write(&gmem->sem);
		err = tn_gmem_punch(gmem, pgoff, pages);
		up_write(&gmem->sem);
		return err;
	}
	if (mode && mode != FALLOC_FL_KEEP_SIZE)
		return -EOPNOTSUPP;
	for (; pages; pgoff += done, pages -= done) {
		if (signal_pending(current))
			return -EINTR;
		done = tn_gmem_allocate(gmem, pgoff, pages);
		if (done < 0)
			return done;
		cond_resched();
	}
	return 0;
}
