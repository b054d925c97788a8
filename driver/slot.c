// SPDX-License-Identifier: GPL-2.0
/*
 * Memory slots.
 *
 * A slot with a guest_memfd declares its addresses to the hypervisor (private, or shared for INIT_SHARED); frames
 * come at the first touch. A slot without one (plain VMs only) lends the VMM's own memory (lend.c).
 */
#include <linux/slab.h>

#include "driver.h"

#define TN_SLOT_FLAGS (KVM_MEM_READONLY | KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_GUEST_MEMFD)

/* The slot of a guest page. The caller holds slots_sem or vm->lock. */
struct tenure_slot *tn_slot_find(struct tenure_vm *vm, u64 gfn)
{
	struct tenure_slot *slot;

	list_for_each_entry(slot, &vm->slots, node)
		if (gfn - slot->gfn < slot->pages)
			return slot;
	return NULL;
}

static struct tenure_slot *tn_slot_by_id(struct tenure_vm *vm, u32 id)
{
	struct tenure_slot *slot;

	list_for_each_entry(slot, &vm->slots, node)
		if (slot->id == id)
			return slot;
	return NULL;
}

/* Frees a slot that the guest can no longer reach. */
void tn_slot_free(struct tenure_slot *slot)
{
	if (slot->gmem) {
		tn_gmem_unbind(slot);
		tn_gmem_put(slot->gmem);
	}
	tn_lend_close(slot);
	kfree(slot);
}

static u64 tn_slot_status(const struct tenure_slot *slot)
{
	/* Frames that stay the host's go to undeclared addresses. */
	if (!slot->gmem)
		return TENURE_ADDR_NONE;
	return slot->gmem->flags & GUEST_MEMFD_FLAG_INIT_SHARED ? TENURE_ADDR_SHARED : TENURE_ADDR_PRIVATE;
}

/* Takes a slot away from the guest: only while the host may (plain VM, or before activation). */
static int tn_slot_remove(struct tenure_vm *vm, struct tenure_slot *slot)
{
	struct tn_reply reply;
	int err = 0;

	if (vm->protected && vm->active)
		return -EPERM;
	if (slot->gmem) {
		down_write(&slot->gmem->sem);
		tn_gmem_unmap(slot->gmem, slot->pgoff, slot->pages);
		err = tn_gmem_may_take(slot, slot->pgoff, slot->pages) ?:
			      tn_gmem_take(slot, slot->pgoff, slot->pages);
	} else {
		tn_lend_stop(slot, true);
	}
	if (!err)
		err = tn_errno(tn_range(vm, &reply, TN_GFN_COUNT_ARG, TENURE_CALL_SET_STATUS, slot->gfn, 0, slot->pages,
					TENURE_ADDR_DEVICE));
	if (slot->gmem)
		up_write(&slot->gmem->sem);
	else if (err)
		tn_lend_stop(slot, false);
	if (err)
		return err;
	down_write(&vm->slots_sem);
	list_del(&slot->node);
	up_write(&vm->slots_sem);
	tn_slot_free(slot);
	return 0;
}

static int tn_slot_check(struct tenure_vm *vm, const struct kvm_userspace_memory_region2 *region)
{
	u64 limit = 1ULL << tn_machine.ipa_bits;
	struct tenure_slot *slot;

	if (!IS_ALIGNED(region->guest_phys_addr | region->memory_size, PAGE_SIZE))
		return -EINVAL;
	if (region->guest_phys_addr >= limit || region->memory_size > limit - region->guest_phys_addr)
		return -EINVAL;
	/* Neither dirty logging nor read-only memory is offered. */
	if (region->flags & (KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY))
		return -EINVAL;
	if (!(region->flags & KVM_MEM_GUEST_MEMFD)) {
		if (vm->protected)
			return -EINVAL;
		if (!IS_ALIGNED(region->userspace_addr, PAGE_SIZE) ||
		    region->userspace_addr != untagged_addr(region->userspace_addr) ||
		    !access_ok((void __user *)region->userspace_addr, region->memory_size))
			return -EINVAL;
	} else if (!IS_ALIGNED(region->guest_memfd_offset, PAGE_SIZE)) {
		return -EINVAL;
	}
	list_for_each_entry(slot, &vm->slots, node)
		if (slot->gfn << PAGE_SHIFT < region->guest_phys_addr + region->memory_size &&
		    region->guest_phys_addr < (slot->gfn + slot->pages) << PAGE_SHIFT)
			return -EEXIST;
	return 0;
}

/* Adds or (memory_size 0) removes a slot. The caller holds vm->lock. */
int tn_slot_set(struct tenure_vm *vm, const struct kvm_userspace_memory_region2 *region)
{
	struct tenure_slot *slot = tn_slot_by_id(vm, region->slot);
	struct tn_reply reply;
	int err;

	lockdep_assert_held(&vm->lock);
	if (region->slot >= TN_MAX_SLOTS || region->flags & ~TN_SLOT_FLAGS)
		return -EINVAL;
	if (!region->memory_size)
		return slot ? tn_slot_remove(vm, slot) : -EINVAL;
	/* As upstream: a slot with guest_memfd cannot change, and here no slot can. */
	if (slot)
		return -EINVAL;
	if (vm->protected && vm->active)
		return -EPERM;
	err = tn_slot_check(vm, region);
	if (err)
		return err;

	slot = kzalloc(sizeof(*slot), GFP_KERNEL_ACCOUNT);
	if (!slot)
		return -ENOMEM;
	slot->id = region->slot;
	slot->vm = vm;
	slot->gfn = region->guest_phys_addr >> PAGE_SHIFT;
	slot->pages = region->memory_size >> PAGE_SHIFT;
	slot->userspace_addr = region->userspace_addr;
	mutex_init(&slot->lending);
	INIT_LIST_HEAD(&slot->gmem_node);
	if (region->flags & KVM_MEM_GUEST_MEMFD) {
		slot->pgoff = region->guest_memfd_offset >> PAGE_SHIFT;
		slot->gmem = tn_gmem_of_fd(region->guest_memfd);
		if (!slot->gmem || slot->gmem->vm != vm || slot->pgoff > slot->gmem->pages ||
		    slot->pages > slot->gmem->pages - slot->pgoff) {
			tn_slot_free(slot);
			return -EINVAL;
		}
	}
	if (tn_range(vm, &reply, TN_GFN_COUNT_ARG, TENURE_CALL_SET_STATUS, slot->gfn, 0, slot->pages,
		     tn_slot_status(slot)) != TENURE_SUCCESS) {
		tn_slot_free(slot);
		return tn_errno(reply.status);
	}
	err = slot->gmem ? tn_gmem_bind(slot->gmem, slot) : tn_lend_open(slot);
	if (err) {
		tn_range(vm, &reply, TN_GFN_COUNT_ARG, TENURE_CALL_SET_STATUS, slot->gfn, 0, slot->pages,
			 TENURE_ADDR_DEVICE);
		tn_slot_free(slot);
		return err;
	}
	down_write(&vm->slots_sem);
	list_add_tail(&slot->node, &vm->slots);
	up_write(&vm->slots_sem);
	return 0;
}
