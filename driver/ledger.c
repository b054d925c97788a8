// SPDX-License-Identifier: GPL-2.0
/*
 * The ledger: who holds which page, and since when the hypervisor knows.
 *
 * The hypervisor knows the host as one party and counts its pins; this file knows the holders. A *declared* holder
 * pins through a session (an open /dev/tenure). An *observed* holder was found by the page's reference count during a
 * conversion; it stands for all such holders of the page and is looked at by a worker until the count is normal.
 */
#include <linux/delay.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "driver.h"

#define TN_OBSERVE_PERIOD (HZ / 50)

static struct tn_holder *tn_holder_new(struct tenure_gmem *gmem, u64 pgoff, struct page *page, u32 kind)
{
	struct tn_holder *holder = kzalloc(sizeof(*holder), GFP_KERNEL_ACCOUNT);

	if (!holder)
		return NULL;
	INIT_LIST_HEAD(&holder->session_node);
	tn_gmem_get(gmem);
	holder->gmem = gmem;
	holder->pgoff = pgoff;
	holder->page = page;
	holder->kind = kind;
	holder->count = 1;
	return holder;
}

static void tn_holder_free(struct tn_holder *holder)
{
	tn_gmem_put(holder->gmem);
	kfree(holder);
}

/*
 * Takes one pin back and does what the answer asks for: where a drain finished, the host's mappings of the page go
 * (until now they led to the frame, from here on to a scrap frame), and the waiting vCPU is woken.
 * The caller holds no lock of the file.
 */
int tn_release_page(struct tenure_gmem *gmem, u64 pgoff, struct page *page, u32 kind, struct tn_reply *reply)
{
	struct tn_reply unmap;

	while (tn_call(NULL, reply, TENURE_CALL_UNPIN, page_to_pfn(page), 1, kind, 0, 0) == TENURE_RETRY)
		usleep_range(100, 1000);
	if (reply->status != TENURE_SUCCESS)
		return tn_errno(reply->status);
	if (reply->x[0]) {
		down_write(&gmem->sem);
		if (xa_load(&gmem->frames, pgoff) == page) {
			tn_gmem_zap(gmem, pgoff, 1);
			tn_call(NULL, &unmap, TENURE_CALL_HOST_UNMAP, page_to_pfn(page), 1, 0, 0, 0);
		}
		up_write(&gmem->sem);
	}
	if (reply->x[1])
		tn_vm_wake_drained(reply->x[1]);
	if (reply->x[2])
		tn_reap_kick();
	return 0;
}

/* Declares a holder that the count showed. The caller holds gmem->sem for writing. */
int tn_observe(struct tenure_gmem *gmem, u64 pgoff, struct page *page)
{
	/* Pinned for DMA as far as Linux can tell: then REVOKE must not pull it from under a device. */
	u32 kind = folio_maybe_dma_pinned(page_folio(page)) ? TENURE_PIN_DMA : TENURE_PIN_CPU;
	struct tn_holder *holder;
	struct tn_reply reply;
	int err = 0;

	mutex_lock(&gmem->ledger);
	list_for_each_entry(holder, &gmem->holders, gmem_node)
		if (!holder->session && holder->page == page)
			goto out;
	err = -ENOMEM;
	holder = tn_holder_new(gmem, pgoff, page, kind);
	if (!holder)
		goto out;
	err = tn_errno(tn_call(NULL, &reply, TENURE_CALL_PIN, page_to_pfn(page), 1, kind, 0, 0));
	if (err) {
		/* gmem has other references: this is not its end. */
		tn_holder_free(holder);
		goto out;
	}
	strscpy(holder->tag, "observed", sizeof(holder->tag));
	list_add_tail(&holder->gmem_node, &gmem->holders);
	/* The work holds the file; each run that goes on passes the reference to the next. */
	tn_gmem_get(gmem);
	if (!schedule_delayed_work(&gmem->observe, TN_OBSERVE_PERIOD))
		tn_gmem_put(gmem);
out:
	mutex_unlock(&gmem->ledger);
	return err;
}

/* Looks at the observed holders of a file. */
void tn_observe_work(struct work_struct *work)
{
	struct tenure_gmem *gmem = container_of(to_delayed_work(work), struct tenure_gmem, observe);
	struct tn_holder *holder, *next;
	struct tn_reply reply;
	bool more = false;
	LIST_HEAD(gone);

	mutex_lock(&gmem->ledger);
	list_for_each_entry_safe(holder, next, &gmem->holders, gmem_node) {
		if (holder->session)
			continue;
		if (tn_held_by_others(holder->page))
			more = true;
		else
			list_move(&holder->gmem_node, &gone);
	}
	if (more) {
		tn_gmem_get(gmem);
		if (!schedule_delayed_work(&gmem->observe, TN_OBSERVE_PERIOD))
			tn_gmem_put(gmem);
	}
	mutex_unlock(&gmem->ledger);
	list_for_each_entry_safe(holder, next, &gone, gmem_node) {
		tn_release_page(gmem, holder->pgoff, holder->page, holder->kind, &reply);
		list_del(&holder->gmem_node);
		tn_holder_free(holder);
	}
	tn_gmem_put(gmem);
}

static bool tn_is_holder(const struct tn_holder *holder, const struct tn_session *session, u64 pgoff, u32 kind)
{
	return holder->session == session && holder->pgoff == pgoff && holder->kind == kind;
}

/* Pins one page for a session. */
static int tn_pin_page(struct tn_session *session, struct tenure_gmem *gmem, u64 pgoff, struct tenure_pin *pin,
		       struct tn_reply *reply)
{
	struct tn_holder *holder, *known = NULL;
	struct page *page = NULL;
	int err;

	*reply = (struct tn_reply){ .status = TENURE_DENIED, .first = TENURE_NO_INDEX, .mask = TENURE_BLOCK_STATE };
	down_read(&gmem->sem);
	/* Without a slot the frame is nobody's yet: a pin would keep it from becoming the guest's. */
	err = tn_gmem_slot(gmem, pgoff) ? tn_gmem_ready(gmem, pgoff, &page) : -EINVAL;
	/* Where there is a frame, the refusal is the hypervisor's. */
	if (err == -EACCES && (page = xa_load(&gmem->frames, pgoff)))
		err = 0;
	if (err)
		goto out;
	mutex_lock(&gmem->ledger);
	holder = tn_holder_new(gmem, pgoff, page, pin->kind);
	err = holder ? tn_errno(tn_call(NULL, reply, TENURE_CALL_PIN, page_to_pfn(page), 1, pin->kind, 0, 0)) : -ENOMEM;
	if (err)
		goto free;
	list_for_each_entry(known, &gmem->holders, gmem_node)
		if (tn_is_holder(known, session, pgoff, pin->kind) && known->page == page) {
			known->count++;
			goto free;
		}
	holder->session = session;
	holder->pid = task_tgid_nr(current);
	memcpy(holder->tag, pin->tag, sizeof(holder->tag) - 1);
	strscpy(holder->comm, current->comm, sizeof(holder->comm));
	list_add_tail(&holder->gmem_node, &gmem->holders);
	mutex_lock(&session->lock);
	list_add_tail(&holder->session_node, &session->holders);
	mutex_unlock(&session->lock);
	holder = NULL;
free:
	mutex_unlock(&gmem->ledger);
	if (holder)
		tn_holder_free(holder);
out:
	up_read(&gmem->sem);
	return err;
}

/* Takes one pin of a session back. */
static int tn_unpin_page(struct tn_session *session, struct tenure_gmem *gmem, u64 pgoff, u32 kind,
			 struct tn_reply *reply)
{
	struct tn_holder *holder, *found = NULL;
	struct page *page = NULL;
	int err;

	mutex_lock(&gmem->ledger);
	list_for_each_entry(holder, &gmem->holders, gmem_node)
		if (tn_is_holder(holder, session, pgoff, kind)) {
			found = holder;
			page = holder->page;
			break;
		}
	if (!found) {
		mutex_unlock(&gmem->ledger);
		*reply = (struct tn_reply){ .status = TENURE_DENIED, .first = TENURE_NO_INDEX };
		return -ENOENT;
	}
	if (--found->count) {
		found = NULL;
	} else {
		list_del(&found->gmem_node);
		mutex_lock(&session->lock);
		list_del(&found->session_node);
		mutex_unlock(&session->lock);
	}
	mutex_unlock(&gmem->ledger);
	err = tn_release_page(gmem, pgoff, page, kind, reply);
	if (found)
		tn_holder_free(found);
	return err;
}

static struct tenure_gmem *tn_pin_target(struct tenure_pin *pin)
{
	struct tenure_gmem *gmem;

	if (pin->kind > TENURE_PIN_DMA || !pin->size || !IS_ALIGNED(pin->offset | pin->size, PAGE_SIZE))
		return NULL;
	gmem = tn_gmem_of_fd(pin->gmem_fd);
	if (gmem && ((pin->offset >> PAGE_SHIFT) >= gmem->pages ||
		     (pin->size >> PAGE_SHIFT) > gmem->pages - (pin->offset >> PAGE_SHIFT))) {
		tn_gmem_put(gmem);
		gmem = NULL;
	}
	return gmem;
}

int tn_pin(struct tn_session *session, struct tenure_pin *pin)
{
	u64 pgoff = pin->offset >> PAGE_SHIFT, pages = pin->size >> PAGE_SHIFT, i;
	struct tenure_gmem *gmem = tn_pin_target(pin);
	struct tn_reply reply, ignored;
	struct page *page;
	int err = 0;

	if (!gmem)
		return -EINVAL;
	for (i = 0; i < pages && !err; i++) {
		do {
			err = tn_pin_page(session, gmem, pgoff + i, pin, &reply);
			cond_resched();
		} while (err == -EAGAIN && !signal_pending(current));
		if (!err && fatal_signal_pending(current)) {
			err = -EINTR;
			i++;
		}
	}
	if (err)
		i--;
	page = xa_load(&gmem->frames, pgoff + (err ? i : 0));
	tn_answer(&pin->answer, &reply, page ? tn_word(page_to_pfn(page)) : 0);
	pin->answer.done = i;
	if (err) {
		pin->answer.first = i;
		while (i--)
			tn_unpin_page(session, gmem, pgoff + i, pin->kind, &ignored);
	}
	tn_gmem_put(gmem);
	return err;
}

int tn_unpin(struct tn_session *session, struct tenure_pin *pin)
{
	u64 pgoff = pin->offset >> PAGE_SHIFT, pages = pin->size >> PAGE_SHIFT, i;
	struct tenure_gmem *gmem = tn_pin_target(pin);
	struct tn_reply reply = {};
	struct page *page;
	int err = 0;

	if (!gmem)
		return -EINVAL;
	pin->drained = 0;
	pin->returned = 0;
	for (i = 0; i < pages && !err; i++) {
		err = tn_unpin_page(session, gmem, pgoff + i, pin->kind, &reply);
		pin->drained += err ? 0 : reply.x[0];
		pin->returned += err ? 0 : reply.x[2];
	}
	page = xa_load(&gmem->frames, pgoff);
	tn_answer(&pin->answer, &reply, page ? tn_word(page_to_pfn(page)) : 0);
	pin->answer.done = err ? i - 1 : i;
	tn_gmem_put(gmem);
	return err;
}
