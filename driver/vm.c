// SPDX-License-Identifier: GPL-2.0
/*
 * A VM: its file, its life and its end.
 *
 * The struct lives as long as anything names it (VM and vCPU files, guest_memfds, the ledger); the guest lives as
 * long as a VM or vCPU file is open. When the last closes, the hypervisor destroys the VM, and every frame that was
 * given to it is handed to tn_reap().
 */
#include <linux/anon_inodes.h>
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "driver.h"

LIST_HEAD(tn_vms);
DEFINE_MUTEX(tn_vms_lock);

void tn_vm_get(struct tenure_vm *vm)
{
	kref_get(&vm->ref);
}

static void tn_vm_release(struct kref *ref)
{
	kfree(container_of(ref, struct tenure_vm, ref));
}

void tn_vm_put(struct tenure_vm *vm)
{
	kref_put(&vm->ref, tn_vm_release);
}

/* Makes the hypervisor's VM: pool, and "device" as the status of every address that no slot declares. */
static int tn_vm_start(struct tenure_vm *vm)
{
	u64 flags = vm->protected ? TENURE_VM_PROTECTED : 0;
	struct tn_reply reply;
	u64 pages;

	if (tn_call(NULL, &reply, TENURE_CALL_VM_CREATE, flags, 0, 0, 0, 0) != TENURE_SUCCESS)
		return tn_errno(reply.status);
	vm->handle = reply.x[0];
	for (pages = 0; pages < tn_machine.min_pool; pages += 16) {
		int err = tn_pool_topup(vm, TENURE_BLOCK_VM_POOL);

		if (err)
			return err;
	}
	if (tn_range(vm, &reply, TN_GFN_COUNT_ARG, TENURE_CALL_SET_STATUS, 0, 0,
		     1ULL << (tn_machine.ipa_bits - PAGE_SHIFT), TENURE_ADDR_DEVICE) != TENURE_SUCCESS)
		return tn_errno(reply.status);
	return 0;
}

/* Destroys the hypervisor's VM and takes its pool back. Sleeps until it is done. */
static void tn_vm_stop(struct tenure_vm *vm)
{
	struct tn_reply reply;
	struct page *page, *next;
	unsigned int waits = 0;
	LIST_HEAD(pool);

	if (!vm->handle)
		return;
	for (;;) {
		tn_hvc(&reply, TENURE_CALL_VM_DESTROY, vm->handle, 0, 0, 0, 0);
		if (reply.status == TENURE_SUCCESS && reply.x[0])
			break;
		if (reply.status == TENURE_INVALID)
			break; /* The handle is dead already: HOST_RESET was there first. */
		if (reply.status != TENURE_SUCCESS && reply.mask) {
			if (++waits % 1000 == 0)
				pr_warn("tenure: VM %llx is hard to destroy: status %lld, mask %llx\n", vm->handle,
					reply.status, reply.mask);
			usleep_range(500, 2000);
		}
		cond_resched();
	}
	vm->handle = 0;
	spin_lock(&vm->pool_lock);
	list_splice_init(&vm->pool, &pool);
	spin_unlock(&vm->pool_lock);
	list_for_each_entry_safe(page, next, &pool, lru) {
		list_del(&page->lru);
		tn_reap(page, false);
	}
}

/* The last file closed: nobody runs the guest and nobody can start to. */
static void tn_vm_destroy(struct tenure_vm *vm)
{
	struct tenure_slot *slot, *next;
	int i;

	mutex_lock(&tn_vms_lock);
	list_del(&vm->node);
	mutex_unlock(&tn_vms_lock);

	mutex_lock(&vm->lock);
	vm->dead = true;
	wake_up_all(&vm->drain_wait);
	/* First no new frame and no new host mapping, then the end, then the frames. */
	list_for_each_entry(slot, &vm->slots, node)
		if (slot->gmem)
			tn_gmem_zap(slot->gmem, 0, slot->gmem->pages);
	tn_vm_stop(vm);
	down_write(&vm->slots_sem);
	list_for_each_entry_safe(slot, next, &vm->slots, node) {
		list_del(&slot->node);
		if (slot->gmem)
			tn_gmem_kill(slot->gmem);
		tn_slot_free(slot);
	}
	up_write(&vm->slots_sem);
	for (i = 0; i < TN_MAX_VCPUS; i++) {
		if (vm->vcpus[i])
			tn_vcpu_free(vm->vcpus[i]);
		vm->vcpus[i] = NULL;
	}
	mutex_unlock(&vm->lock);
}

void tn_vm_drop_user(struct tenure_vm *vm)
{
	if (atomic_dec_and_test(&vm->users))
		tn_vm_destroy(vm);
	tn_vm_put(vm);
}

/* The VM with this handle finished draining a page. */
void tn_vm_wake_drained(u64 handle)
{
	struct tenure_vm *vm;

	mutex_lock(&tn_vms_lock);
	list_for_each_entry(vm, &tn_vms, node) {
		if (vm->handle != handle)
			continue;
		atomic_inc(&vm->drained);
		wake_up_all(&vm->drain_wait);
	}
	mutex_unlock(&tn_vms_lock);
}

/* What the guest may use; its first vCPU settles it. */
static int tn_vm_set_rights(struct tenure_vm *vm, u64 rights)
{
	struct tn_reply reply;
	int i, err = 0;

	mutex_lock(&vm->lock);
	for (i = 0; i < TN_MAX_VCPUS; i++)
		if (vm->vcpus[i])
			err = -EBUSY;
	if (!err)
		err = tn_errno(tn_call(vm, &reply, TENURE_CALL_VM_SET_RIGHTS, vm->handle, rights, 0, 0, 0));
	mutex_unlock(&vm->lock);
	return err;
}

/* Ends the placement of the image. The caller holds vm->lock. */
int tn_vm_activate(struct tenure_vm *vm)
{
	struct tn_reply reply;

	lockdep_assert_held(&vm->lock);
	if (vm->active)
		return 0;
	if (tn_call(vm, &reply, TENURE_CALL_VM_ACTIVATE, vm->handle, 0, 0, 0, 0) != TENURE_SUCCESS)
		return tn_errno(reply.status);
	WRITE_ONCE(vm->active, true);
	return 0;
}

static long tn_vm_set_region(struct tenure_vm *vm, void __user *arg, size_t size)
{
	struct kvm_userspace_memory_region2 region = {};
	int err;

	if (copy_from_user(&region, arg, size))
		return -EFAULT;
	if (size < sizeof(region) && (region.flags & KVM_MEM_GUEST_MEMFD))
		return -EINVAL;
	mutex_lock(&vm->lock);
	err = tn_slot_set(vm, &region);
	mutex_unlock(&vm->lock);
	return err;
}

static long tn_vm_create_gmem(struct tenure_vm *vm, void __user *arg)
{
	struct kvm_create_guest_memfd gmem;

	if (copy_from_user(&gmem, arg, sizeof(gmem)))
		return -EFAULT;
	if (memchr_inv(gmem.reserved, 0, sizeof(gmem.reserved)))
		return -EINVAL;
	return tn_gmem_create(vm, gmem.size, gmem.flags);
}

static long tn_vm_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct tenure_vm *vm = file->private_data;
	void __user *user = (void __user *)arg;
	long err;

	switch (cmd) {
	case KVM_CHECK_EXTENSION:
		return tn_check_extension(arg);
	case KVM_CREATE_VCPU:
		return tn_vcpu_create(vm, arg);
	case KVM_CREATE_GUEST_MEMFD:
		return tn_vm_create_gmem(vm, user);
	case KVM_SET_USER_MEMORY_REGION:
		return tn_vm_set_region(vm, user, sizeof(struct kvm_userspace_memory_region));
	case KVM_SET_USER_MEMORY_REGION2:
		return tn_vm_set_region(vm, user, sizeof(struct kvm_userspace_memory_region2));
	case KVM_ARM_PREFERRED_TARGET: {
		struct kvm_vcpu_init init = { .target = KVM_ARM_TARGET_GENERIC_V8 };

		return copy_to_user(user, &init, sizeof(init)) ? -EFAULT : 0;
	}
	case TENURE_SET_RIGHTS: {
		u64 rights;

		return get_user(rights, (u64 __user *)user) ?: tn_vm_set_rights(vm, rights);
	}
	case TENURE_ACTIVATE:
		mutex_lock(&vm->lock);
		err = tn_vm_activate(vm);
		mutex_unlock(&vm->lock);
		return err;
	default:
		return -ENOTTY;
	}
}

static int tn_vm_close(struct inode *inode, struct file *file)
{
	tn_vm_drop_user(file->private_data);
	return 0;
}

static const struct file_operations tn_vm_fops = {
	.owner = THIS_MODULE,
	.release = tn_vm_close,
	.unlocked_ioctl = tn_vm_ioctl,
	.llseek = noop_llseek,
};

int tn_vm_create(unsigned long type)
{
	u64 bits = type & KVM_VM_TYPE_ARM_IPA_SIZE_MASK;
	struct tenure_vm *vm;
	int err;

	if (type & ~(KVM_VM_TYPE_ARM_IPA_SIZE_MASK | KVM_VM_TYPE_ARM_PROTECTED))
		return -EINVAL;
	/* 0 means 40 upstream; here it means what the machine offers (docs/driver.md). */
	if (bits && (bits < 32 || bits > tn_machine.ipa_bits))
		return -EINVAL;
	if (!(tn_machine.features & TENURE_FEATURE_GUESTS)) {
		pr_warn_once("tenure: no VMs on this board: a guest cannot be left by its interrupt controller\n");
		return -EOPNOTSUPP;
	}
	if (tn_machine.stopping)
		return -ENODEV;
	if ((type & KVM_VM_TYPE_ARM_PROTECTED) && !(tn_machine.features & TENURE_FEATURE_DMA_CONTAINED) &&
	    !tn_unsafe_dma) {
		pr_warn_once("tenure: DMA is not contained here; protected VMs need unsafe_dma=1\n");
		return -EPERM;
	}
	vm = kzalloc(sizeof(*vm), GFP_KERNEL_ACCOUNT);
	if (!vm)
		return -ENOMEM;
	kref_init(&vm->ref);
	atomic_set(&vm->users, 1);
	vm->protected = type & KVM_VM_TYPE_ARM_PROTECTED;
	mutex_init(&vm->lock);
	init_rwsem(&vm->slots_sem);
	INIT_LIST_HEAD(&vm->slots);
	spin_lock_init(&vm->pool_lock);
	INIT_LIST_HEAD(&vm->pool);
	init_waitqueue_head(&vm->drain_wait);
	err = tn_vm_start(vm);
	mutex_lock(&tn_vms_lock);
	list_add(&vm->node, &tn_vms);
	mutex_unlock(&tn_vms_lock);
	if (!err)
		err = anon_inode_getfd("tenure-vm", &tn_vm_fops, vm, O_RDWR | O_CLOEXEC);
	if (err < 0)
		tn_vm_drop_user(vm);
	return err;
}
