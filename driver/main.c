// SPDX-License-Identifier: GPL-2.0
/*
 * The Linux driver of Tenure: finds the hypervisor by the device tree's /hypervisor node, and offers the KVM
 * userspace API on /dev/tenure, and on /dev/kvm where that name is free.
 */
#include <linux/crash_dump.h>
#include <linux/miscdevice.h>
#include <linux/mod_devicetable.h>
#include <linux/module.h>
#include <linux/of.h>
#include <linux/platform_device.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "driver.h"

struct tn_machine tn_machine;

bool tn_unsafe_dma;
module_param_named(unsafe_dma, tn_unsafe_dma, bool, 0444);
MODULE_PARM_DESC(unsafe_dma, "allow protected VMs although no IOMMU keeps devices out of their memory");

/* Capabilities; 0 for all that is not there. */
long tn_check_extension(unsigned long what)
{
	switch (what) {
	case KVM_CAP_USER_MEMORY:
	case KVM_CAP_USER_MEMORY2:
	case KVM_CAP_SYNC_MMU:
	case KVM_CAP_GUEST_MEMFD:
	case KVM_CAP_MEMORY_FAULT_INFO:
	case KVM_CAP_DESTROY_MEMORY_REGION_WORKS:
	case KVM_CAP_ONE_REG:
	case KVM_CAP_ARM_PSCI:
	case KVM_CAP_ARM_PSCI_0_2:
	case KVM_CAP_IMMEDIATE_EXIT:
	case KVM_CAP_CHECK_EXTENSION_VM:
		return 1;
	case KVM_CAP_GUEST_MEMFD_FLAGS:
		return GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
	case KVM_CAP_NR_MEMSLOTS:
		return TN_MAX_SLOTS;
	case KVM_CAP_NR_VCPUS:
		return min3(tn_machine.max_vcpus, (u64)TN_MAX_VCPUS, (u64)num_online_cpus());
	case KVM_CAP_MAX_VCPUS:
	case KVM_CAP_MAX_VCPU_ID:
		return min_t(u64, tn_machine.max_vcpus, TN_MAX_VCPUS);
	case KVM_CAP_ARM_VM_IPA_SIZE:
		return tn_machine.ipa_bits;
	default:
		return 0;
	}
}

static long tn_dev_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	switch (cmd) {
	case KVM_GET_API_VERSION:
		return arg ? -EINVAL : KVM_API_VERSION;
	case KVM_CREATE_VM:
		return tn_vm_create(arg);
	case KVM_CHECK_EXTENSION:
		return tn_check_extension(arg);
	case KVM_GET_VCPU_MMAP_SIZE:
		return arg ? -EINVAL : PAGE_SIZE;
	default:
		return tn_session_ioctl(file->private_data, cmd, arg);
	}
}

static int tn_dev_open(struct inode *inode, struct file *file)
{
	file->private_data = tn_session_open();
	return file->private_data ? 0 : -ENOMEM;
}

static int tn_dev_close(struct inode *inode, struct file *file)
{
	tn_session_close(file->private_data);
	return 0;
}

static const struct file_operations tn_dev_fops = {
	.owner = THIS_MODULE,
	.open = tn_dev_open,
	.release = tn_dev_close,
	.unlocked_ioctl = tn_dev_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice tn_dev = { .minor = MISC_DYNAMIC_MINOR, .name = "tenure", .fops = &tn_dev_fops, .mode = 0660 };
static struct miscdevice tn_kvm_dev = { .minor = KVM_MINOR, .name = "kvm", .fops = &tn_dev_fops, .mode = 0660 };
static bool tn_kvm_taken;

static u64 tn_info_value(u64 index)
{
	struct tn_reply reply;

	return tn_call(NULL, &reply, TENURE_CALL_INFO, index, 0, 0, 0, 0) == TENURE_SUCCESS ? reply.x[0] : 0;
}

static int tn_probe(struct platform_device *pdev)
{
	struct tn_reply reply;
	long left = 0;
	int err;

	if (tn_machine.ready)
		return -EBUSY;
	if (tn_call(NULL, &reply, TENURE_CALL_VERSION, 0, 0, 0, 0, 0) != TENURE_SUCCESS)
		return -ENODEV;
	/* Major versions are incompatible; a smaller minor lacks what we call. */
	tn_machine.version = reply.done;
	if (tn_machine.version >> 16 != TENURE_ABI_VERSION >> 16 || tn_machine.version < TENURE_ABI_VERSION) {
		dev_err(&pdev->dev, "hypervisor speaks version %#llx, this driver %#lx\n", tn_machine.version,
			TENURE_ABI_VERSION);
		return -ENODEV;
	}
	if (tn_call(NULL, &reply, TENURE_CALL_FEATURES, 0, 0, 0, 0, 0) != TENURE_SUCCESS)
		return -ENODEV;
	tn_machine.features = reply.x[0];
	tn_machine.max_vms = tn_info_value(TENURE_INFO_MAX_VMS);
	tn_machine.max_vcpus = tn_info_value(TENURE_INFO_MAX_VCPUS);
	tn_machine.ipa_bits = tn_info_value(TENURE_INFO_IPA_BITS);
	tn_machine.min_pool = tn_info_value(TENURE_INFO_MIN_POOL);
	if (PAGE_SIZE != 4096 || tn_machine.ipa_bits < 32 || tn_machine.ipa_bits > 52) {
		dev_err(&pdev->dev, "needs 4 KiB pages and a sane hypervisor (%llu address bits)\n",
			tn_machine.ipa_bits);
		return -ENODEV;
	}
	/*
	 * The kernel before this one may have gone without a word. A crash kernel leaves all as it is until it restarts: it is
	 * here to look.
	 */
	if (is_kdump_kernel())
		tn_panic_mode();
	else
		left = tn_host_reset();
	if (left < 0)
		return left;
	if (left)
		dev_info(&pdev->dev, "the kernel before left %ld frames in the hypervisor's hands\n", left);
	err = tn_notify_register();
	if (err)
		return err;
	err = misc_register(&tn_dev);
	if (err) {
		tn_notify_unregister();
		return err;
	}
	/* Fails without a word where KVM has the name. */
	tn_kvm_taken = !misc_register(&tn_kvm_dev);
	tn_debug_register();
	tn_machine.ready = true;
	dev_info(&pdev->dev, "Tenure %llu.%llu: %llu VMs, %llu vCPUs each, %llu-bit guest addresses%s%s%s\n",
		 tn_machine.version >> 16, tn_machine.version & 0xffff, tn_machine.max_vms, tn_machine.max_vcpus,
		 tn_machine.ipa_bits, tn_kvm_taken ? ", /dev/kvm too" : "",
		 tn_machine.features & TENURE_FEATURE_DMA_CONTAINED ? "" : "; DMA is NOT contained",
		 tn_machine.features & TENURE_FEATURE_GUESTS ? "" : "; this board runs NO guests");
	return 0;
}

static void tn_remove(struct platform_device *pdev)
{
	tn_machine.ready = false;
	tn_debug_unregister();
	if (tn_kvm_taken)
		misc_deregister(&tn_kvm_dev);
	misc_deregister(&tn_dev);
	tn_notify_unregister();
	tn_reap_wait();
	tn_host_pool_return();
}

static const struct of_device_id tn_match[] = {
	{ .compatible = "tenure,hypervisor-1" },
	{},
};
MODULE_DEVICE_TABLE(of, tn_match);

static struct platform_driver tn_driver = {
	.probe = tn_probe,
	.remove = tn_remove,
	.driver = {
		.name = "tenure",
		.of_match_table = tn_match,
		/* Unbinding under open files would pull the floor away; unloading is held off by them. */
		.suppress_bind_attrs = true,
	},
};
module_platform_driver(tn_driver);

MODULE_DESCRIPTION("Driver of the Tenure hypervisor");
MODULE_LICENSE("GPL");
