/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * Tenure's own ioctls, beside the KVM ones that /dev/tenure offers.
 *
 * Sizes and offsets are bytes and whole pages of 4 KiB. Every struct with an `answer` is filled with the
 * hypervisor's reply also when the ioctl fails, so that a program can say why.
 */
#ifndef TENURE_H
#define TENURE_H

#include <linux/types.h>
#include <linux/ioctl.h>

#define TENURE_IOC 0xB7

/* The hypervisor's reply (TENURE_SUCCESS and the like, see tenure_abi.h) and the word of the page it is about. */
struct tenure_answer {
	__s64 status;
	__u64 done;
	/* Index of the first page that blocks, or ~0. */
	__u64 first;
	/* TENURE_BLOCK_* of that page. */
	__u64 mask;
	/* The page's word, TENURE_WORD_*; 0 where there is no page. */
	__u64 word;
};

/* ---- on /dev/tenure (and /dev/kvm) ---- */

/* Value i is TENURE_INFO_i of the hypervisor. */
struct tenure_info {
	__u64 version;
	__u64 features;
	__u64 value[14];
};
#define TENURE_GET_INFO _IOR(TENURE_IOC, 0x00, struct tenure_info)

/* Frames of the whole machine in each state (TENURE_STATE_*), and pins over all of them. */
struct tenure_count {
	__u64 state[7];
	__u64 cpu_pins;
	__u64 dma_pins;
	__u64 reserved[3];
};
#define TENURE_COUNT _IOR(TENURE_IOC, 0x01, struct tenure_count)

#define TENURE_TAG 16

/*
 * Declares that pages of a guest_memfd are used in a way that cannot be revoked now, and takes that back.
 * The pin belongs to the /dev/tenure file that it was made on: closing that file (the holder's death) lets go.
 * Whole or nothing: a refused PIN pins no page.
 */
struct tenure_pin {
	__s32 gmem_fd;
	/* TENURE_PIN_CPU or TENURE_PIN_DMA. */
	__u32 kind;
	__u64 offset;
	__u64 size;
	/* Shown to whoever is refused because of this pin. */
	char tag[TENURE_TAG];
	struct tenure_answer answer;
	/* Out, UNPIN: pages that finished draining, and pages that came back to the host. */
	__u64 drained;
	__u64 returned;
};
#define TENURE_PIN _IOWR(TENURE_IOC, 0x02, struct tenure_pin)
#define TENURE_UNPIN _IOWR(TENURE_IOC, 0x03, struct tenure_pin)

/* The verdict of an immediate attempt at `op` (TENURE_QUERY_*) on one page; changes nothing. */
struct tenure_query {
	__s32 gmem_fd;
	__u32 op;
	__u64 offset;
	struct tenure_answer answer;
	/* Frame number, or 0. */
	__u64 pfn;
	/* TENURE_ADDR_* of the guest address. */
	__u64 status;
};
#define TENURE_QUERY _IOWR(TENURE_IOC, 0x04, struct tenure_query)

/* One entry of the ledger of holders. */
struct tenure_holder {
	__u64 offset;
	__u32 kind;
	__u32 count;
	/* Process that pinned; 0 for an observed holder. */
	__s32 pid;
	/* 1: found by the page's reference count at a conversion, not declared. */
	__u32 observed;
	char tag[TENURE_TAG];
	char comm[16];
};
struct tenure_holders {
	__s32 gmem_fd;
	/* In: room at `holders`. Out: entries that exist for the range. */
	__u32 count;
	__u64 offset;
	__u64 size;
	__u64 holders;
};
#define TENURE_HOLDERS _IOWR(TENURE_IOC, 0x05, struct tenure_holders)

/* ---- on a VM ---- */

/* TENURE_VM_RIGHT_* that the guest may use; before the first vCPU. */
#define TENURE_SET_RIGHTS _IOW(TENURE_IOC, 0x10, __u64)
/* Ends the placement of the first image; the first KVM_RUN does it too. */
#define TENURE_ACTIVATE _IO(TENURE_IOC, 0x11)

/* ---- on a vCPU ---- */

/* The conversion that this vCPU waits for (after KVM_EXIT_MEMORY_FAULT). */
struct tenure_request {
	__u64 gpa;
	__u64 pages;
	/* TENURE_UNSHARE_*. */
	__u64 flags;
	__u64 sequence;
	/* First page that blocks, and what blocks it. */
	__u64 first;
	__u64 mask;
};
#define TENURE_GET_REQUEST _IOR(TENURE_IOC, 0x20, struct tenure_request)
/* The VMM gives up: the guest's call fails at the next KVM_RUN. */
#define TENURE_REFUSE _IO(TENURE_IOC, 0x21)

#endif
