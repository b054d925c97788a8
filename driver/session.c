// SPDX-License-Identifier: GPL-2.0
/* Sessions (open /dev/tenure files): our own ioctls there, and the end of a holder. */
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "driver.h"

#define TN_MAX_HOLDERS 4096

void tn_answer(struct tenure_answer *answer, const struct tn_reply *reply, u64 word)
{
	*answer = (struct tenure_answer){
		.status = reply->status,
		.done = reply->done,
		.first = reply->first,
		.mask = reply->mask,
		.word = word,
	};
}

struct tn_session *tn_session_open(void)
{
	struct tn_session *session = kzalloc(sizeof(*session), GFP_KERNEL_ACCOUNT);

	if (session) {
		mutex_init(&session->lock);
		INIT_LIST_HEAD(&session->holders);
	}
	return session;
}

/* The holder is gone, by its own will or not: its pins go with it. Nobody else uses the session any more. */
void tn_session_close(struct tn_session *session)
{
	struct tn_holder *holder, *next;
	struct tn_reply reply;

	list_for_each_entry_safe(holder, next, &session->holders, session_node) {
		struct tenure_gmem *gmem = holder->gmem;

		mutex_lock(&gmem->ledger);
		list_del(&holder->gmem_node);
		mutex_unlock(&gmem->ledger);
		while (holder->count--)
			tn_release_page(gmem, holder->pgoff, holder->page, holder->kind, &reply);
		list_del(&holder->session_node);
		kfree(holder);
		tn_gmem_put(gmem);
	}
	kfree(session);
}

static int tn_info(struct tenure_info *info)
{
	struct tn_reply reply;
	int i;

	memset(info, 0, sizeof(*info));
	info->version = tn_machine.version;
	info->features = tn_machine.features;
	for (i = 0; i < ARRAY_SIZE(info->value); i++)
		if (tn_call(NULL, &reply, TENURE_CALL_INFO, i, 0, 0, 0, 0) == TENURE_SUCCESS)
			info->value[i] = reply.x[0];
	return 0;
}

static int tn_query(struct tenure_query *query)
{
	struct tenure_gmem *gmem = tn_gmem_of_fd(query->gmem_fd);
	u64 pgoff = query->offset >> PAGE_SHIFT;
	struct tenure_slot *slot;
	struct tn_reply reply;
	int err = -EINVAL;

	if (!gmem)
		return -EBADF;
	down_read(&gmem->sem);
	slot = tn_gmem_slot(gmem, pgoff);
	if (slot && IS_ALIGNED(query->offset, PAGE_SIZE)) {
		tn_call(gmem->vm, &reply, TENURE_CALL_QUERY_GUEST, gmem->vm->handle,
			slot->gfn + pgoff - slot->pgoff, query->op, 0, 0);
		tn_answer(&query->answer, &reply, reply.x[0]);
		query->pfn = reply.x[1];
		query->status = reply.x[2];
		err = 0;
	}
	up_read(&gmem->sem);
	tn_gmem_put(gmem);
	return err;
}

/* Fills as many entries as there is room for and tells how many there are. */
static int tn_holders(struct tenure_holders *list)
{
	struct tenure_gmem *gmem = tn_gmem_of_fd(list->gmem_fd);
	u32 room = min_t(u32, list->count, TN_MAX_HOLDERS), n = 0;
	struct tenure_holder *out = NULL;
	struct tn_holder *holder;
	int err = 0;

	if (!gmem)
		return -EBADF;
	if (room) {
		out = kvcalloc(room, sizeof(*out), GFP_KERNEL_ACCOUNT);
		if (!out) {
			tn_gmem_put(gmem);
			return -ENOMEM;
		}
	}
	mutex_lock(&gmem->ledger);
	list_for_each_entry(holder, &gmem->holders, gmem_node) {
		u64 offset = holder->pgoff << PAGE_SHIFT;

		if (offset < list->offset || offset - list->offset >= list->size)
			continue;
		if (n < room) {
			out[n].offset = offset;
			out[n].kind = holder->kind;
			out[n].count = holder->count;
			out[n].pid = holder->pid;
			out[n].observed = !holder->session;
			memcpy(out[n].tag, holder->tag, sizeof(out[n].tag));
			memcpy(out[n].comm, holder->comm, sizeof(out[n].comm));
		}
		n++;
	}
	mutex_unlock(&gmem->ledger);
	if (room && copy_to_user(u64_to_user_ptr(list->holders), out, min(n, room) * sizeof(*out)))
		err = -EFAULT;
	list->count = n;
	kvfree(out);
	tn_gmem_put(gmem);
	return err;
}

long tn_session_ioctl(struct tn_session *session, unsigned int cmd, unsigned long arg)
{
	void __user *user = (void __user *)arg;
	union {
		struct tenure_info info;
		struct tenure_count count;
		struct tenure_pin pin;
		struct tenure_query query;
		struct tenure_holders holders;
	} u;
	int err;

	BUILD_BUG_ON(sizeof(u) > 256);
	if (_IOC_TYPE(cmd) != TENURE_IOC || _IOC_SIZE(cmd) > sizeof(u))
		return -ENOTTY;
	if ((_IOC_DIR(cmd) & _IOC_WRITE) && copy_from_user(&u, user, _IOC_SIZE(cmd)))
		return -EFAULT;
	switch (cmd) {
	case TENURE_GET_INFO:
		err = tn_info(&u.info);
		break;
	case TENURE_COUNT:
		err = tn_count_frames(&u.count);
		break;
	case TENURE_PIN:
		err = tn_pin(session, &u.pin);
		break;
	case TENURE_UNPIN:
		err = tn_unpin(session, &u.pin);
		break;
	case TENURE_QUERY:
		err = tn_query(&u.query);
		break;
	case TENURE_HOLDERS:
		err = tn_holders(&u.holders);
		break;
	default:
		return -ENOTTY;
	}
	/* Also after a refusal: the answer says why. */
	if (copy_to_user(user, &u, _IOC_SIZE(cmd)))
		return -EFAULT;
	return err;
}
