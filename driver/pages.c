// SPDX-License-Identifier: GPL-2.0
/*
 * Frames on their way to the hypervisor's pools and back to Linux.
 *
 * A frame is freed only when the hypervisor says Host and holds no pin of its own on it. What is not there yet
 * (quarantined behind somebody's pin) waits in `reap`, looked at by a worker; unloading the module waits for it.
 */
#include <linux/delay.h>
#include <linux/gfp.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "driver.h"

/* Table pages given at once. */
#define TN_POOL_STEP 16
#define TN_REAP_PERIOD (HZ / 20)

static bool tn_verify_scrub;
module_param_named(verify_scrub, tn_verify_scrub, bool, 0644);
MODULE_PARM_DESC(verify_scrub, "look whether each frame of a guest comes back zeroed, and count (debugfs: tenure/state)");

/* Marks frames that were a guest's. */
#define TN_GUESTS XA_MARK_0

static DEFINE_XARRAY(tn_reap_pages);
static atomic_long_t tn_back;
static atomic_long_t tn_back_dirty;
static atomic_long_t tn_reap_count;
static atomic_long_t tn_host_pool;
/* The same, by page->lru. */
static LIST_HEAD(tn_host_pages);
static DEFINE_SPINLOCK(tn_host_pages_lock);

static void tn_reap_work(struct work_struct *work);
static DECLARE_DELAYED_WORK(tn_reaper, tn_reap_work);

/* True when Linux may have the frame back. */
static bool tn_is_home(struct page *page)
{
	u64 word = tn_word(page_to_pfn(page));

	return word != ~0ULL && TN_FIELD(word, STATE) == TENURE_STATE_HOST && !TN_FIELD(word, HYP_PINS) &&
	       !TN_FIELD(word, FROZEN) && !TN_FIELD(word, GUEST_LEAVES);
}

/* The frame is the host's: Linux gets it. */
static void tn_free(struct page *page, bool guests)
{
	if (guests && tn_verify_scrub) {
		atomic_long_inc(&tn_back);
		if (memchr_inv(page_address(page), 0, PAGE_SIZE))
			atomic_long_inc(&tn_back_dirty);
	}
	put_page(page);
}

/*
 * Gives up our reference to a frame as soon as it is the host's. Never fails and never blocks for the holder.
 * `guests`: it was a guest's, and must come back scrubbed.
 */
void tn_reap(struct page *page, bool guests)
{
	unsigned long pfn = page_to_pfn(page);

	if (tn_is_home(page)) {
		tn_free(page, guests);
		return;
	}
	/* A lost frame would be a leak for ever: this small allocation may not fail. */
	xa_store(&tn_reap_pages, pfn, page, GFP_KERNEL | __GFP_NOFAIL);
	if (guests)
		xa_set_mark(&tn_reap_pages, pfn, TN_GUESTS);
	atomic_long_inc(&tn_reap_count);
	schedule_delayed_work(&tn_reaper, TN_REAP_PERIOD);
}

static void tn_reap_work(struct work_struct *work)
{
	struct page *page;
	unsigned long pfn;

	xa_for_each(&tn_reap_pages, pfn, page) {
		bool guests = xa_get_mark(&tn_reap_pages, pfn, TN_GUESTS);

		if (!tn_is_home(page))
			continue;
		xa_erase(&tn_reap_pages, pfn);
		tn_free(page, guests);
		atomic_long_dec(&tn_reap_count);
	}
	if (tn_reap_pending())
		schedule_delayed_work(&tn_reaper, TN_REAP_PERIOD);
}

/* Guests' frames that were looked at on their way back, and those that were not zero. */
void tn_scrub_counts(unsigned long *back, unsigned long *dirty)
{
	*back = atomic_long_read(&tn_back);
	*dirty = atomic_long_read(&tn_back_dirty);
}

/* Something came back just now. */
void tn_reap_kick(void)
{
	if (tn_reap_pending())
		mod_delayed_work(system_wq, &tn_reaper, 0);
}

unsigned long tn_reap_pending(void)
{
	return atomic_long_read(&tn_reap_count);
}

unsigned long tn_host_pool_pages(void)
{
	return atomic_long_read(&tn_host_pool);
}

/* Waits until every frame is back and every observed holder gone; says so when it takes long. */
void tn_reap_wait(void)
{
	int i;

	for (i = 0; tn_reap_pending() || tn_gmem_live(); i++) {
		if (i % 100 == 99)
			pr_warn("tenure: %lu frames are still held by others; waiting\n", tn_reap_pending());
		tn_reap_kick();
		msleep(50);
	}
	cancel_delayed_work_sync(&tn_reaper);
}

/* The driver goes, no VM is left: takes back what it gave to the host's own pool. */
void tn_host_pool_return(void)
{
	struct page *page, *next;

	if (list_empty(&tn_host_pages) || tn_host_reset() < 0)
		return;
	list_for_each_entry_safe(page, next, &tn_host_pages, lru) {
		list_del(&page->lru);
		/* What stays the table of a block with a broken page in it is lost to Linux. */
		if (tn_is_home(page))
			tn_free(page, false);
	}
}

/* Gives one frame to the pool of `vm`, or with NULL to the host's own. */
static int tn_pool_add(struct tenure_vm *vm)
{
	struct page *page = alloc_page(vm ? GFP_KERNEL_ACCOUNT : GFP_KERNEL);
	struct tn_reply reply;

	if (!page)
		return -ENOMEM;
	/* Not tn_call(): a top-up that asked for a top-up would never end. */
	if (tn_hvc(&reply, TENURE_CALL_POOL_TOPUP, vm ? vm->handle : 0, page_to_pfn(page), 1, 0, 0) !=
	    TENURE_SUCCESS) {
		tn_reap(page, false);
		return tn_errno(reply.status);
	}
	if (!vm) {
		spin_lock(&tn_host_pages_lock);
		list_add(&page->lru, &tn_host_pages);
		spin_unlock(&tn_host_pages_lock);
		atomic_long_inc(&tn_host_pool);
		return 0;
	}
	spin_lock(&vm->pool_lock);
	list_add(&page->lru, &vm->pool);
	spin_unlock(&vm->pool_lock);
	return 0;
}

/* After NO_MEMORY: fills the pools that `mask` says are short (TENURE_BLOCK_VM_POOL, _HOST_POOL). */
int tn_pool_topup(struct tenure_vm *vm, u64 mask)
{
	int n, err = -ENOMEM, added = 0;

	for (n = 0; n < 2 * TN_POOL_STEP; n++) {
		bool host = n >= TN_POOL_STEP;

		if (!(mask & (host ? TENURE_BLOCK_HOST_POOL : TENURE_BLOCK_VM_POOL)) || (!host && !vm))
			continue;
		err = tn_pool_add(host ? NULL : vm);
		/* Giving pages to a VM splits blocks of the host, which takes pages of the host's pool. */
		if (err == -ENOMEM && !host)
			err = tn_pool_add(NULL);
		added += !err;
	}
	return added ? 0 : err;
}

/* Sums over the words of all frames. */
int tn_count_frames(struct tenure_count *count)
{
	struct tn_reply reply;
	u64 pfn, end;
	int i;

	memset(count, 0, sizeof(*count));
	if (tn_call(NULL, &reply, TENURE_CALL_INFO, TENURE_INFO_FIRST_PFN, 0, 0, 0, 0) != TENURE_SUCCESS)
		return tn_errno(reply.status);
	pfn = reply.x[0];
	if (tn_call(NULL, &reply, TENURE_CALL_INFO, TENURE_INFO_END_PFN, 0, 0, 0, 0) != TENURE_SUCCESS)
		return tn_errno(reply.status);
	end = reply.x[0];
	while (pfn < end) {
		s64 status = tn_call(NULL, &reply, TENURE_CALL_COUNT, pfn, end - pfn, 0, 0, 0);

		if (status != TENURE_SUCCESS)
			return tn_errno(status);
		if (!reply.done)
			return -EIO;
		for (i = 0; i < 7; i++)
			count->state[i] += reply.x[i];
		count->cpu_pins += reply.x[7];
		count->dma_pins += reply.x[8];
		pfn += reply.done;
		if (signal_pending(current))
			return -EINTR;
	}
	return 0;
}
