// SPDX-License-Identifier: GPL-2.0
/*
 * A vCPU: its file, its kvm_run page, and the run page that only the hypervisor and this driver see.
 *
 * kvm_run is mapped to userspace and trusted for nothing but the answers that an exit asked for. The hypervisor's run
 * page is another page, never mapped to userspace, pinned by the hypervisor until the vCPU dies.
 */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "driver.h"

#define TN_VCPU_FEATURES (BIT(KVM_ARM_VCPU_POWER_OFF) | BIT(KVM_ARM_VCPU_PSCI_0_2))

/* The caller made sure that the VM is destroyed (or that the vCPU never was the hypervisor's). */
void tn_vcpu_free(struct tenure_vcpu *vcpu)
{
	if (vcpu->run)
		free_page((unsigned long)vcpu->run);
	if (vcpu->page)
		tn_reap(virt_to_page(vcpu->page), false);
	kfree(vcpu);
}

static int tn_vcpu_init(struct tenure_vcpu *vcpu, const struct kvm_vcpu_init *init)
{
	struct tn_reply reply;
	int i;

	if (init->target != KVM_ARM_TARGET_GENERIC_V8)
		return -EINVAL;
	for (i = 0; i < ARRAY_SIZE(init->features); i++)
		if (init->features[i] & ~(i ? 0 : TN_VCPU_FEATURES))
			return -EINVAL;
	if (tn_call(vcpu->vm, &reply, TENURE_CALL_REG_SET, vcpu->vm->handle, vcpu->id, TENURE_REG_POWER,
		    !(init->features[0] & BIT(KVM_ARM_VCPU_POWER_OFF)), 0) != TENURE_SUCCESS)
		return tn_errno(reply.status);
	vcpu->initialised = true;
	return 0;
}

/* The VMM cannot or will not let go of what the guest wants back. */
static int tn_vcpu_refuse(struct tenure_vcpu *vcpu)
{
	struct tn_reply reply;

	if (!vcpu->request.sequence)
		return -ENOENT;
	tn_call(vcpu->vm, &reply, TENURE_CALL_REFUSE, vcpu->vm->handle, vcpu->id, vcpu->request.sequence, 0, 0);
	vcpu->request.sequence = 0;
	return tn_errno(reply.status);
}

static long tn_vcpu_locked_ioctl(struct tenure_vcpu *vcpu, unsigned int cmd, void __user *user)
{
	switch (cmd) {
	case KVM_RUN:
		return tn_vcpu_run(vcpu);
	case KVM_ARM_VCPU_INIT: {
		struct kvm_vcpu_init init;

		return copy_from_user(&init, user, sizeof(init)) ? -EFAULT : tn_vcpu_init(vcpu, &init);
	}
	case KVM_GET_ONE_REG:
	case KVM_SET_ONE_REG: {
		struct kvm_one_reg reg;

		if (!vcpu->initialised)
			return -ENOEXEC;
		if (copy_from_user(&reg, user, sizeof(reg)))
			return -EFAULT;
		return cmd == KVM_GET_ONE_REG ? tn_reg_get(vcpu, &reg) : tn_reg_set(vcpu, &reg);
	}
	case TENURE_GET_REQUEST:
		if (!vcpu->request.sequence)
			return -ENOENT;
		return copy_to_user(user, &vcpu->request, sizeof(vcpu->request)) ? -EFAULT : 0;
	case TENURE_REFUSE:
		return tn_vcpu_refuse(vcpu);
	default:
		return -ENOTTY;
	}
}

static long tn_vcpu_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct tenure_vcpu *vcpu = file->private_data;
	long err;

	if (mutex_lock_killable(&vcpu->lock))
		return -EINTR;
	err = vcpu->vm->dead ? -EIO : tn_vcpu_locked_ioctl(vcpu, cmd, (void __user *)arg);
	mutex_unlock(&vcpu->lock);
	return err;
}

static int tn_vcpu_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct tenure_vcpu *vcpu = file->private_data;

	if (vma->vm_pgoff || vma_pages(vma) != 1)
		return -EINVAL;
	return vm_insert_page(vma, vma->vm_start, virt_to_page(vcpu->run));
}

static int tn_vcpu_close(struct inode *inode, struct file *file)
{
	struct tenure_vcpu *vcpu = file->private_data;

	tn_vm_drop_user(vcpu->vm);
	return 0;
}

static const struct file_operations tn_vcpu_fops = {
	.owner = THIS_MODULE,
	.release = tn_vcpu_close,
	.mmap = tn_vcpu_mmap,
	.unlocked_ioctl = tn_vcpu_ioctl,
	.llseek = noop_llseek,
};

/* The vCPU's struct stays with the VM; its file only names it. */
int tn_vcpu_create(struct tenure_vm *vm, unsigned long id)
{
	struct tenure_vcpu *vcpu;
	struct tn_reply reply;
	int err = -ENOMEM;

	if (id >= min_t(u64, tn_machine.max_vcpus, TN_MAX_VCPUS))
		return -EINVAL;
	vcpu = kzalloc(sizeof(*vcpu), GFP_KERNEL_ACCOUNT);
	if (!vcpu)
		return -ENOMEM;
	vcpu->vm = vm;
	vcpu->id = id;
	mutex_init(&vcpu->lock);
	init_waitqueue_head(&vcpu->power_wait);
	vcpu->run = (void *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
	vcpu->page = (void *)get_zeroed_page(GFP_KERNEL_ACCOUNT);

	mutex_lock(&vm->lock);
	if (!vcpu->run || !vcpu->page)
		goto free;
	err = -EEXIST;
	if (vm->vcpus[id])
		goto free;
	err = -EIO;
	if (vm->dead)
		goto free;
	err = tn_errno(tn_call(vm, &reply, TENURE_CALL_VCPU_CREATE, vm->handle, id, page_to_pfn(virt_to_page(vcpu->page)),
			       0, 0));
	if (err)
		goto free;
	/* From here on the VM's end frees it. */
	vm->vcpus[id] = vcpu;
	atomic_inc(&vm->users);
	tn_vm_get(vm);
	err = anon_inode_getfd("tenure-vcpu", &tn_vcpu_fops, vcpu, O_RDWR | O_CLOEXEC);
	mutex_unlock(&vm->lock);
	if (err < 0)
		tn_vm_drop_user(vm);
	return err;
free:
	mutex_unlock(&vm->lock);
	tn_vcpu_free(vcpu);
	return err;
}
