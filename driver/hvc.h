/* SPDX-License-Identifier: GPL-2.0 */
/* Calls to the hypervisor. Process context only, except tn_hvc(). */
#ifndef TENURE_HVC_H
#define TENURE_HVC_H

#include <linux/types.h>
#include "tenure_abi.h"

struct tenure_vm;

/* x0..x3 of every call, and the call's own results from x4 on. */
struct tn_reply {
	s64 status;
	u64 done;
	u64 first;
	u64 mask;
	u64 x[9];
};

/* One HVC, as it is. Returns the status. */
s64 tn_hvc(struct tn_reply *reply, u64 call, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5);

/*
 * A call on one page or thing: RETRY is repeated a bounded number of times, NO_MEMORY after a top-up of the pools.
 * `vm` may be NULL. What is left is the last reply.
 */
s64 tn_call(struct tenure_vm *vm, struct tn_reply *reply, u64 call, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5);

/*
 * A range call (vm handle, gfn, ...): as tn_call(), and goes on after `done`. reply->done counts from the start of
 * the whole range, reply->first too. `step` is what moves with gfn: the pfn argument (DONATE, GUEST_MAP) or none.
 */
enum tn_shape {
	TN_GFN_COUNT_ARG, /* (handle, gfn, count, arg) */
	TN_GFN_PFN_COUNT_ARG, /* (handle, gfn, pfn, count, arg) */
	TN_PFN_COUNT_ARG, /* (pfn, count, arg) */
};
s64 tn_range(struct tenure_vm *vm, struct tn_reply *reply, enum tn_shape shape, u64 call, u64 gfn, u64 pfn,
	     u64 count, u64 arg);

/* The errno of a status; 0 for SUCCESS. */
int tn_errno(s64 status);

/* The word of a frame; ~0 if the hypervisor does not know it. */
u64 tn_word(u64 pfn);

#define TN_FIELD(word, name) (((word) >> TENURE_WORD_##name##_SHIFT) & TENURE_WORD_##name##_MASK)

#endif
