/* SPDX-License-Identifier: GPL-2.0 */
/* What differs between the kernels that this driver is built for (6.12 and later), and UAPI that 6.12 lacks. */
#ifndef TENURE_COMPAT_H
#define TENURE_COMPAT_H

#include <linux/kvm.h>
#include <linux/mm.h>
#include <linux/timer.h>
#include <linux/version.h>

#ifndef GUEST_MEMFD_FLAG_MMAP
#define GUEST_MEMFD_FLAG_MMAP (1ULL << 0)
#define GUEST_MEMFD_FLAG_INIT_SHARED (1ULL << 1)
#endif

#ifndef KVM_CAP_GUEST_MEMFD_FLAGS
#define KVM_CAP_GUEST_MEMFD_FLAGS 244
#endif

#ifndef KVM_VM_TYPE_ARM_PROTECTED
#define KVM_VM_TYPE_ARM_PROTECTED (1UL << 31)
#endif

/* KVM_SET_MEMORY_ATTRIBUTES2 of the in-place conversion series, on the guest_memfd. */
struct tenure_kvm_attributes2 {
	__u64 offset;
	__u64 size;
	__u64 attributes;
	__u64 flags;
	__u64 error_offset;
	__u64 reserved[11];
};
#define TENURE_KVM_SET_ATTRIBUTES2 _IOWR(KVMIO, 0xd2, struct tenure_kvm_attributes2)

/* kvm_run.immediate_exit: its name inside the kernel differs between versions, its place is ABI. */
static inline bool tenure_immediate_exit(const struct kvm_run *run)
{
	return READ_ONCE(((const u8 *)run)[1]);
}

/* Times that user page tables map a page of ours (always a folio of one page). */
static inline int tenure_mapcount(struct page *page)
{
	return folio_mapcount(page_folio(page));
}

#endif
