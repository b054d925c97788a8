// SPDX-License-Identifier: GPL-2.0
/* Reboot, kexec, hibernation and panic: what the next kernel must not trip over. */
#include <linux/delay.h>
#include <linux/notifier.h>
#include <linux/panic_notifier.h>
#include <linux/reboot.h>
#include <linux/smp.h>
#include <linux/suspend.h>

#include "driver.h"

/* Of half a millisecond at most: a vCPU leaves at its CPU's next interrupt. */
#define TN_RESET_TRIES 20000

static void tn_kick(void *unused)
{
}

/*
 * Every guest dies, every pin is dropped and every frame comes home, whichever kernel they are from. Nobody makes new ones
 * meanwhile. Returns how many frames that was about.
 */
long tn_host_reset(void)
{
	struct tn_reply reply;
	u64 from = 0;
	long frames = 0;
	int waits = 0;

	while (waits < TN_RESET_TRIES) {
		tn_hvc(&reply, TENURE_CALL_HOST_RESET, from, 0, 0, 0, 0);
		if (reply.status == TENURE_SUCCESS && reply.x[0])
			return frames;
		if (reply.status != TENURE_SUCCESS && reply.status != TENURE_RETRY)
			break;
		frames += reply.done;
		/* Something is in the way, as against: there is more to do. */
		if (reply.mask) {
			waits++;
			usleep_range(100, 500);
		}
		from = reply.x[1];
		cond_resched();
	}
	pr_err("tenure: the host's reset did not finish: status %lld, mask %llx\n", reply.status, reply.mask);
	return -EIO;
}

/* Reboot, power-off and kexec: the next kernel finds nothing of this one. */
static int tn_reboot(struct notifier_block *block, unsigned long action, void *data)
{
	WRITE_ONCE(tn_machine.stopping, true);
	/* An interrupt on each CPU: no vCPU is loaded after it, none is entered again, and no call takes anything any more. */
	on_each_cpu(tn_kick, NULL, 1);
	if (tn_host_reset() >= 0)
		pr_info("tenure: every guest is gone, every page is the host's\n");
	return NOTIFY_OK;
}

/* A hibernation image would have to read frames that are not ours to read. */
static int tn_pm(struct notifier_block *block, unsigned long action, void *data)
{
	bool given;

	if (action != PM_HIBERNATION_PREPARE)
		return NOTIFY_DONE;
	mutex_lock(&tn_vms_lock);
	given = !list_empty(&tn_vms) || tn_reap_pending() || tn_host_pool_pages();
	mutex_unlock(&tn_vms_lock);
	if (!given)
		return NOTIFY_DONE;
	pr_warn("tenure: no hibernation while memory is in the hypervisor's hands\n");
	return notifier_from_errno(-EBUSY);
}

/* From now on guest memory reads as scrap for this kernel and the next, so that a dump does not end in aborts. */
void tn_panic_mode(void)
{
	struct tn_reply reply;

	WRITE_ONCE(tn_machine.stopping, true);
	if (tn_hvc(&reply, TENURE_CALL_PANIC_MODE, 0, 0, 0, 0, 0) == TENURE_SUCCESS)
		pr_emerg("tenure: guest memory reads as zeros from now on\n");
}

/* Reached before a crash kernel only with crash_kexec_post_notifiers on the command line; else that one's driver does it. */
static int tn_panic(struct notifier_block *block, unsigned long action, void *data)
{
	tn_panic_mode();
	return NOTIFY_DONE;
}

static struct notifier_block tn_reboot_block = { .notifier_call = tn_reboot };
static struct notifier_block tn_pm_block = { .notifier_call = tn_pm };
static struct notifier_block tn_panic_block = { .notifier_call = tn_panic };

int tn_notify_register(void)
{
	int err = register_reboot_notifier(&tn_reboot_block);

	if (err)
		return err;
	err = register_pm_notifier(&tn_pm_block);
	if (err) {
		unregister_reboot_notifier(&tn_reboot_block);
		return err;
	}
	atomic_notifier_chain_register(&panic_notifier_list, &tn_panic_block);
	return 0;
}

void tn_notify_unregister(void)
{
	atomic_notifier_chain_unregister(&panic_notifier_list, &tn_panic_block);
	unregister_pm_notifier(&tn_pm_block);
	unregister_reboot_notifier(&tn_reboot_block);
}
