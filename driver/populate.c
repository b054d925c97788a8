// SPDX-License-Identifier: GPL-2.0
/*
 * Frames of a guest_memfd: how they come, how they move into a new slot, how they are taken back.
 *
 * The hypervisor decides the kind: a donate must say what the status of the address says, or it is DENIED.
 *
 * Frames come 2 MiB at a time where nothing stands yet in the aligned 2 MiB around the address and the kernel has that
 * much in a piece: one allocation, one range of calls, and the hypervisor maps a block. They are ordinary pages of
 * their own all the same (split_page), so that each goes back by itself: a hole in a block is the hypervisor's to split.
 */
#include <linux/highmem.h>
#include <linux/moduleparam.h>

#include "driver.h"

#define TN_BLOCK_ORDER 9
#define TN_BLOCK (1ULL << TN_BLOCK_ORDER)

static bool tn_blocks = true;
module_param_named(blocks, tn_blocks, bool, 0644);
MODULE_PARM_DESC(blocks, "give guests memory 2 MiB at a time where there is so much in a piece");

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
static bool tn_gmem_still_there(struct tenure_slot *slot, u64 gfn, u64 pgoff, struct page *page)
{
	struct tenure_gmem *gmem = slot->gmem;
	u64 word = tn_word(page_to_pfn(page));
	struct tn_reply reply;

	switch (TN_FIELD(word, STATE)) {
	case TENURE_STATE_HOST:
	case TENURE_STATE_QUARANTINE:
		break;
	default:
		if (TN_FIELD(word, GUEST_LEAVES) || TN_FIELD(word, FROZEN))
			return true;
		/* Taken from the guest's tables on its way out, and kept by a pin: the guest has it again, or a new one. */
		if (tn_call(slot->vm, &reply, TENURE_CALL_GUEST_MAP, slot->vm->handle, gfn, page_to_pfn(page), 1, 0) ==
			    TENURE_SUCCESS ||
		    tn_call(slot->vm, &reply, TENURE_CALL_RECLAIM, slot->vm->handle, page_to_pfn(page), 1, 0, 0) !=
			    TENURE_SUCCESS)
			return true;
	}
	tn_gmem_zap(gmem, pgoff, 1);
	xa_erase(&gmem->frames, pgoff);
	tn_reap(page, true);
	return false;
}

/* Entries first: once a frame is given away, nothing may fail. */
static int tn_gmem_reserve(struct tenure_gmem *gmem, u64 pgoff, u64 pages)
{
	u64 i;
	int err;

	for (i = 0; i < pages; i++) {
		err = xa_reserve(&gmem->frames, pgoff + i, GFP_KERNEL_ACCOUNT);
		if (!err)
			continue;
		while (i--)
			xa_release(&gmem->frames, pgoff + i);
		return err;
	}
	return 0;
}

/*
 * Gives `pages` new frames in a row to the guest, whose entries are reserved. Those that it did not take are freed.
 * Returns how many it took.
 */
static u64 tn_gmem_give(struct tenure_slot *slot, u64 gfn, u64 pgoff, struct page *page, u64 pages, u64 kind,
			struct tn_reply *reply)
{
	struct tenure_gmem *gmem = slot->gmem;
	u64 i;

	tn_range(slot->vm, reply, TN_GFN_PFN_COUNT_ARG, TENURE_CALL_DONATE, gfn, page_to_pfn(page), pages, kind);
	if (pages == TN_BLOCK && reply->done && reply->done < pages) {
		struct tn_reply back;

		/* The frames of a block are parked until its last: none is the guest's yet, and all come back. */
		if (tn_range(slot->vm, &back, TN_GFN_COUNT_ARG, TENURE_CALL_RECLAIM, page_to_pfn(page), 0, pages, 0) ==
		    TENURE_SUCCESS)
			reply->done = 0;
	}
	for (i = 0; i < pages; i++) {
		if (i < reply->done) {
			xa_store(&gmem->frames, pgoff + i, page + i, GFP_KERNEL_ACCOUNT);
		} else {
			xa_release(&gmem->frames, pgoff + i);
			tn_reap(page + i, false);
		}
	}
	return reply->done;
}

/* Gives the whole 2 MiB at `gfn` if it can be had: what is missing after that comes page by page. */
static void tn_gmem_donate_block(struct tenure_slot *slot, u64 gfn, u64 kind)
{
	u64 pgoff = slot->pgoff + gfn - slot->gfn;
	struct tn_reply reply;
	struct page *block;

	if (tn_gmem_reserve(slot->gmem, pgoff, TN_BLOCK))
		return;
	/* Small pages do as well: not worth a fight. */
	block = alloc_pages(GFP_KERNEL_ACCOUNT | __GFP_NORETRY | __GFP_NOWARN, TN_BLOCK_ORDER);
	if (!block) {
		u64 i;

		for (i = 0; i < TN_BLOCK; i++)
			xa_release(&slot->gmem->frames, pgoff + i);
		return;
	}
	split_page(block, TN_BLOCK_ORDER);
	tn_gmem_give(slot, gfn, pgoff, block, TN_BLOCK, kind, &reply);
}

/*
 * The first page of the 2 MiB around `gfn`, if all of it may be given at once and nothing stands there yet, else ~0. While
 * a protected VM's image is placed, only what was asked for is given ([gfn, gfn + pages)): what is there then is measured.
 */
static u64 tn_gmem_block_around(struct tenure_slot *slot, u64 gfn, u64 pages)
{
	bool placing = slot->vm->protected && !READ_ONCE(slot->vm->active);
	u64 first = ALIGN_DOWN(gfn, TN_BLOCK);
	unsigned long index;

	if (!READ_ONCE(tn_blocks) || first < slot->gfn || first + TN_BLOCK > slot->gfn + slot->pages)
		return ~0ULL;
	if (placing && (first != gfn || pages < TN_BLOCK))
		return ~0ULL;
	index = slot->pgoff + first - slot->gfn;
	return xa_find(&slot->gmem->frames, &index, index + TN_BLOCK - 1, XA_PRESENT) ? ~0ULL : first;
}

/* Gives one new frame to the guest, or more. The caller holds gmem->fill. */
static int tn_gmem_donate(struct tenure_slot *slot, u64 gfn, u64 pages, u64 kind)
{
	u64 pgoff = slot->pgoff + gfn - slot->gfn, block = tn_gmem_block_around(slot, gfn, pages);
	struct tenure_gmem *gmem = slot->gmem;
	struct tn_reply reply;
	struct page *page;
	int err;

	if (block != ~0ULL)
		tn_gmem_donate_block(slot, block, kind);
	page = xa_load(&gmem->frames, pgoff);
	if (page && tn_gmem_still_there(slot, gfn, pgoff, page))
		return 0;
	err = tn_gmem_reserve(gmem, pgoff, 1);
	if (err)
		return err;
	page = alloc_page(GFP_KERNEL_ACCOUNT);
	if (!page) {
		xa_release(&gmem->frames, pgoff);
		return -ENOMEM;
	}
	return tn_gmem_give(slot, gfn, pgoff, page, 1, kind, &reply) ? 0 : tn_errno(reply.status);
}

/*
 * Gives frames of the kind that the hypervisor asked for, as far as they are missing, and maybe more around them. The
 * caller holds gmem->sem for reading. Returns how many of the pages are there, or why not even the first.
 */
long tn_gmem_populate(struct tenure_slot *slot, u64 gfn, u64 pages, u64 kind)
{
	struct tenure_gmem *gmem = slot->gmem;
	u64 i;
	int err = 0;

	if (gmem->dead || slot->vm->dead)
		return -EIO;
	mutex_lock(&gmem->fill);
	for (i = 0; i < pages && gfn + i - slot->gfn < slot->pages; i++) {
		err = tn_gmem_donate(slot, gfn + i, pages - i, kind);
		if (err)
			break;
		if (need_resched() || fatal_signal_pending(current))
			pages = i + 1;
	}
	mutex_unlock(&gmem->fill);
	return i ?: err;
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
