// SPDX-License-Identifier: GPL-2.0
/* debugfs: the hypervisor's log and event trace, read through one page of the driver's. */
#include <linux/debugfs.h>
#include <linux/gfp.h>
#include <linux/uaccess.h>

#include "driver.h"

static struct dentry *tn_debug_dir;

/* Each read asks for what follows the offset; the file's position is the hypervisor's offset. */
static ssize_t tn_ring_read(char __user *user, size_t size, loff_t *pos, u64 call, size_t unit)
{
	void *page = (void *)get_zeroed_page(GFP_KERNEL);
	struct tn_reply reply;
	ssize_t got;

	if (!page)
		return -ENOMEM;
	got = tn_errno(tn_call(NULL, &reply, call, *pos, page_to_pfn(virt_to_page(page)), 0, 0, 0));
	if (!got) {
		got = min3((size_t)reply.x[0] * unit, (size_t)PAGE_SIZE, size);
		if (copy_to_user(user, page, got))
			got = -EFAULT;
		else
			/* A short read asks again from where it stopped. */
			*pos = got == reply.x[0] * unit ? reply.x[1] : *pos + got / unit;
	}
	free_page((unsigned long)page);
	return got;
}

static ssize_t tn_log_read(struct file *file, char __user *user, size_t size, loff_t *pos)
{
	return tn_ring_read(user, size, pos, TENURE_CALL_LOG_READ, 1);
}

static const struct file_operations tn_log_fops = { .owner = THIS_MODULE, .open = simple_open, .read = tn_log_read };

static int tn_state_show(struct seq_file *file, void *unused)
{
	unsigned long back, dirty;

	tn_scrub_counts(&back, &dirty);
	seq_printf(file,
		   "frames_waiting_for_their_holders %lu\nhost_pool_pages_given %lu\n"
		   "frames_back_looked_at %lu\nframes_back_not_scrubbed %lu\n",
		   tn_reap_pending(), tn_host_pool_pages(), back, dirty);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(tn_state);

/* Frames of the machine by state, in the order of TENURE_STATE_*, then CPU and DMA pins. */
static int tn_frames_show(struct seq_file *file, void *unused)
{
	struct tenure_count count;
	int i, err = tn_count_frames(&count);

	if (err)
		return err;
	for (i = 0; i < ARRAY_SIZE(count.state); i++)
		seq_printf(file, "%llu ", count.state[i]);
	seq_printf(file, "%llu %llu\n", count.cpu_pins, count.dma_pins);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(tn_frames);

void tn_debug_register(void)
{
	tn_debug_dir = debugfs_create_dir("tenure", NULL);
	debugfs_create_file("log", 0400, tn_debug_dir, NULL, &tn_log_fops);
	debugfs_create_file("frames", 0400, tn_debug_dir, NULL, &tn_frames_fops);
	debugfs_create_file("state", 0400, tn_debug_dir, NULL, &tn_state_fops);
}

void tn_debug_unregister(void)
{
	debugfs_remove(tn_debug_dir);
}
