// SPDX-License-Identifier: GPL-2.0
/* Reboot, kexec, hibernation and panic: what the next kernel must not trip over. */
#include <linux/delay.h>
#include <linux/notifier.h>
#include <linux/panic_notifier.h>
#include <linux/reboot.h>
#include <linux/smp.h>
#include <linux/suspend.h>

#include "driver.h"

#define TN_RESET_TRIES 20000

static void tn_kick(void *unused)
{
}

/* Reboot, power-off and kexec: every guest dies and every frame is the host's again before Linux goes. */
static int tn_reboot(struct notifier_block *block, unsigned long action, void *data)
{
	struct tn_reply reply;
	int i;

	WRITE_ONCE(tn_machine.stopping, true);
	/* An interrupt on each CPU: no vCPU is loaded after it, and none is entered again. */
	on_each_cpu(tn_kick, NULL, 1);
	for (i = 0; i < TN_RESET_TRIES; i++) {
		tn_hvc(&reply, TENURE_CALL_HOST_RESET, 0, 0, 0, 0, 0);
		if (reply.status == TENURE_SUCCESS && reply.x[0]) {
			pr_info("tenure: every guest is gone, every page is the host's\n");
			return NOTIFY_OK;
		}
		if (reply.status != TENURE_SUCCESS && reply.status != TENURE_RETRY)
			break;
		if (reply.status == TENURE_RETRY && !reply.done)
			usleep_range(100, 500);
	}
	pr_err("tenure: the host's reset did not finish: status %lld\n", reply.status);
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

/*
 * From now on guest memory reads as scrap for this kernel and the next, so that a dump does not end in aborts.
 * Reached before a crash kernel only with crash_kexec_post_notifiers on the command line.
 */
static int tn_panic(struct notifier_block *block, unsigned long action, void *data)
{
	struct tn_reply reply;

	WRITE_ONCE(tn_machine.stopping, true);
	if (tn_hvc(&reply, TENURE_CALL_PANIC_MODE, 0, 0, 0, 0, 0) == TENURE_SUCCESS)
		pr_emerg("tenure: guest memory reads as zeros from now on\n");
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
