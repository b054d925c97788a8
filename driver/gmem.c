// SPDX-License-Identifier: GPL-2.0
/*
 * guest_memfd: the file, its mappings and its page faults.
 *
 * Every file has an inode of its own, so that unmap_mapping_pages() finds the mappings of this guest memory and of
 * nothing else. Its frames stand in an xarray, not in the page cache: no LRU, no writeback, no migration, and one
 * reference each, ours. Whatever else a page count shows at a conversion is somebody who looked or who holds.
 *
 * What may be mapped is not decided here: the handler asks the hypervisor for the word of the frame (or, where there
 * is none, for the status of the address). Its answer may be old by the time the PTE stands; then the access itself
 * meets the hypervisor and ends in SIGBUS just the same.
 */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "driver.h"

static const struct file_operations tn_gmem_fops;
static atomic_long_t tn_gmems;

void tn_gmem_get(struct tenure_gmem *gmem)
{
	kref_get(&gmem->ref);
}

static void tn_gmem_release(struct kref *ref)
{
	struct tenure_gmem *gmem = container_of(ref, struct tenure_gmem, ref);
	struct page *page;
	unsigned long index;

	/* Frames of a file that was never bound. */
	xa_for_each(&gmem->frames, index, page)
		tn_reap(page, false);
	xa_destroy(&gmem->frames);
	iput(gmem->inode);
	tn_vm_put(gmem->vm);
	kfree(gmem);
	atomic_long_dec(&tn_gmems);
}

/* Files that live: more than those that are open while an observed holder is waited for. */
unsigned long tn_gmem_live(void)
{
	return atomic_long_read(&tn_gmems);
}

void tn_gmem_put(struct tenure_gmem *gmem)
{
	kref_put(&gmem->ref, tn_gmem_release);
}

/* Removes every user mapping of the range, in all processes. */
void tn_gmem_zap(struct tenure_gmem *gmem, u64 pgoff, u64 pages)
{
	unmap_mapping_pages(gmem->inode->i_mapping, pgoff, pages, false);
}

/* The VM is destroyed: its frames go home, and nothing can be mapped any more. */
void tn_gmem_kill(struct tenure_gmem *gmem)
{
	struct page *page;
	unsigned long index;

	down_write(&gmem->sem);
	gmem->dead = true;
	tn_gmem_zap(gmem, 0, gmem->pages);
	xa_for_each(&gmem->frames, index, page) {
		xa_erase(&gmem->frames, index);
		cond_resched();
		/* Where no slot was, it never was the guest's. */
		tn_reap(page, tn_gmem_slot(gmem, index));
	}
	up_write(&gmem->sem);
}

struct tenure_gmem *tn_gmem_of_file(struct file *file)
{
	return file->f_op == &tn_gmem_fops ? file->private_data : NULL;
}

/* The guest_memfd behind a descriptor, with a reference; NULL if it is none of ours. */
struct tenure_gmem *tn_gmem_of_fd(int fd)
{
	struct file *file = fget(fd);
	struct tenure_gmem *gmem = NULL;

	if (!file)
		return NULL;
	gmem = tn_gmem_of_file(file);
	if (gmem)
		tn_gmem_get(gmem);
	fput(file);
	return gmem;
}

/* A frame for an offset that no slot covers yet: ordinary memory, moved into the guest when a slot comes. */
static int tn_gmem_fill_unbound(struct tenure_gmem *gmem, u64 pgoff)
{
	struct page *page;
	int err = 0;

	if (!(gmem->flags & GUEST_MEMFD_FLAG_INIT_SHARED))
		return -EACCES;
	mutex_lock(&gmem->fill);
	if (!xa_load(&gmem->frames, pgoff)) {
		page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);
		err = page ? xa_err(xa_store(&gmem->frames, pgoff, page, GFP_KERNEL_ACCOUNT)) : -ENOMEM;
		if (err && page)
			put_page(page);
	}
	mutex_unlock(&gmem->fill);
	return err;
}

/*
 * Makes sure that a page which userspace may touch stands at `pgoff`. -EAGAIN: in the middle of a transition. The caller
 * holds gmem->sem for reading.
 */
int tn_gmem_ready(struct tenure_gmem *gmem, u64 pgoff, struct page **found)
{
	struct tenure_slot *slot = tn_gmem_slot(gmem, pgoff);
	struct page *page = xa_load(&gmem->frames, pgoff);
	struct tn_reply reply;
	u64 word, state;
	long err;

	if (gmem->dead)
		return -EACCES;
	if (!slot) {
		err = page ? 0 : tn_gmem_fill_unbound(gmem, pgoff);
		*found = xa_load(&gmem->frames, pgoff);
		return err;
	}
	if (page) {
		word = tn_word(page_to_pfn(page));
		if (word == ~0ULL || TN_FIELD(word, FROZEN))
			return -EAGAIN;
		state = TN_FIELD(word, STATE);
		if (state == TENURE_STATE_SHARED || state == TENURE_STATE_DRAINING) {
			*found = page;
			return 0;
		}
		/* A frame that the guest gave back: the address says what comes next. */
		if (state != TENURE_STATE_HOST)
			return -EACCES;
	}
	if (tn_call(gmem->vm, &reply, TENURE_CALL_QUERY_GUEST, gmem->vm->handle, slot->gfn + pgoff - slot->pgoff,
		    TENURE_QUERY_SHARE, 0, 0) == TENURE_RETRY)
		return -EAGAIN;
	if (reply.x[2] != TENURE_ADDR_SHARED)
		return -EACCES;
	err = tn_gmem_populate(slot, slot->gfn + pgoff - slot->pgoff, 1, TENURE_ADDR_SHARED);
	*found = xa_load(&gmem->frames, pgoff);
	return err < 0 ? err : *found ? 0 : -EAGAIN;
}

/*
 * The host's own leaf goes with the PTE, so that the guest's unshare always asks us while a PTE stands. Without it a thread
 * of this kernel could take a reference through a PTE that was never used, and read what is private by then.
 */
static int tn_gmem_reach(struct tenure_gmem *gmem, u64 pgoff, struct page *page)
{
	struct tn_reply reply;

	if (!tn_gmem_slot(gmem, pgoff))
		return 0;
	switch (tn_call(gmem->vm, &reply, TENURE_CALL_HOST_MAP, page_to_pfn(page), 1, 0, 0, 0)) {
	case TENURE_SUCCESS:
		return 0;
	case TENURE_RETRY:
		return -EAGAIN;
	default:
		return -EACCES;
	}
}

static vm_fault_t tn_gmem_fault(struct vm_fault *vmf)
{
	struct tenure_gmem *gmem = vmf->vma->vm_file->private_data;
	struct page *page = NULL;
	vm_fault_t result;
	int err;

	if (vmf->pgoff >= gmem->pages)
		return VM_FAULT_SIGBUS;
	down_read(&gmem->sem);
	err = tn_gmem_ready(gmem, vmf->pgoff, &page) ?: tn_gmem_reach(gmem, vmf->pgoff, page);
	switch (err) {
	case 0:
		/* The reference tells a conversion, and the lock a hole that is punched, that a mapping is being made. */
		get_page(page);
		lock_page(page);
		vmf->page = page;
		result = VM_FAULT_LOCKED;
		break;
	case -EAGAIN:
		/* In the middle of a transition: the access is tried again. */
		result = VM_FAULT_NOPAGE;
		break;
	case -ENOMEM:
		result = VM_FAULT_OOM;
		break;
	default:
		result = VM_FAULT_SIGBUS;
	}
	up_read(&gmem->sem);
	if (err == -EAGAIN)
		cond_resched();
	return result;
}

static const struct vm_operations_struct tn_gmem_vm_ops = {
	.fault = tn_gmem_fault,
};

static int tn_gmem_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct tenure_gmem *gmem = file->private_data;

	if (!(gmem->flags & GUEST_MEMFD_FLAG_MMAP))
		return -ENODEV;
	/* A private mapping would copy guest memory into anonymous pages. */
	if ((vma->vm_flags & (VM_SHARED | VM_MAYSHARE)) != (VM_SHARED | VM_MAYSHARE))
		return -EINVAL;
	if (vma->vm_pgoff + vma_pages(vma) > gmem->pages)
		return -EINVAL;
	vm_flags_set(vma, VM_DONTDUMP | VM_DONTEXPAND);
	vma->vm_ops = &tn_gmem_vm_ops;
	return 0;
}

static long tn_gmem_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct tenure_kvm_attributes2 attributes;
	void __user *user = (void __user *)arg;
	int err;

	if (cmd != TENURE_KVM_SET_ATTRIBUTES2)
		return -ENOTTY;
	if (copy_from_user(&attributes, user, sizeof(attributes)))
		return -EFAULT;
	err = tn_convert(file->private_data, &attributes);
	if (copy_to_user(user, &attributes, sizeof(attributes)))
		return -EFAULT;
	return err;
}

static int tn_gmem_close(struct inode *inode, struct file *file)
{
	tn_gmem_put(file->private_data);
	return 0;
}

static const struct file_operations tn_gmem_fops = {
	.owner = THIS_MODULE,
	.release = tn_gmem_close,
	.mmap = tn_gmem_mmap,
	.unlocked_ioctl = tn_gmem_ioctl,
	.fallocate = tn_gmem_fallocate,
	.llseek = noop_llseek,
};

/* The size is for ever. */
static int tn_gmem_setattr(struct mnt_idmap *idmap, struct dentry *dentry, struct iattr *attr)
{
	return -EINVAL;
}

static const struct inode_operations tn_gmem_iops = {
	.setattr = tn_gmem_setattr,
};

int tn_gmem_create(struct tenure_vm *vm, u64 size, u64 flags)
{
	struct tenure_gmem *gmem;
	struct file *file;
	int fd;

	if (flags & ~(GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED))
		return -EINVAL;
	if (!size || !IS_ALIGNED(size, PAGE_SIZE) || size > 1ULL << tn_machine.ipa_bits)
		return -EINVAL;
	gmem = kzalloc(sizeof(*gmem), GFP_KERNEL_ACCOUNT);
	if (!gmem)
		return -ENOMEM;
	kref_init(&gmem->ref);
	gmem->pages = size >> PAGE_SHIFT;
	gmem->flags = flags;
	init_rwsem(&gmem->sem);
	mutex_init(&gmem->fill);
	xa_init(&gmem->frames);
	INIT_LIST_HEAD(&gmem->slots);
	mutex_init(&gmem->ledger);
	INIT_LIST_HEAD(&gmem->holders);
	INIT_DELAYED_WORK(&gmem->observe, tn_observe_work);

	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		goto free;
	file = anon_inode_create_getfile("[tenure-guest-memory]", &tn_gmem_fops, gmem, O_RDWR, NULL);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		fd = PTR_ERR(file);
		goto free;
	}
	file->f_flags |= O_LARGEFILE;
	gmem->inode = file_inode(file);
	ihold(gmem->inode);
	/* fallocate(2) is for regular files. */
	gmem->inode->i_mode |= S_IFREG;
	gmem->inode->i_op = &tn_gmem_iops;
	i_size_write(gmem->inode, size);
	gmem->vm = vm;
	tn_vm_get(vm);
	atomic_long_inc(&tn_gmems);
	fd_install(fd, file);
	return fd;
free:
	kfree(gmem);
	return fd;
}
