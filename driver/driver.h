/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The driver's own structures.
 *
 * Order of locks, outer first:
 *   vm->lock (slots, vCPUs) -> gmem->sem (the conversion lock) -> gmem->fill (one allocator a file)
 *   -> gmem->ledger -> session->lock.
 * mmap_lock is taken outside gmem->sem (fault handler), so nothing under gmem->sem may touch user memory.
 * slot->lending is innermost, and taken by the kernel's reclaim: nothing under it may allocate.
 *
 * Frames that were donated are the hypervisor's business: the kernel never touches them, not even through its linear
 * map, and frees one only when the hypervisor says that it is in state Host again (tn_reap).
 */
#ifndef TENURE_DRIVER_H
#define TENURE_DRIVER_H

#include <linux/fs.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/rwsem.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "compat.h"
#include "hvc.h"
#include "tenure.h"

#define TN_MAX_VCPUS 64
#define TN_MAX_SLOTS 512

/* What the hypervisor told at probe. */
struct tn_machine {
	u64 version;
	u64 features;
	u64 max_vms;
	u64 max_vcpus;
	u64 ipa_bits;
	u64 min_pool;
	bool ready;
	/* Set at reboot, kexec and panic, and in a crash kernel: no guest runs any more, nothing is taken. */
	bool stopping;
};
extern struct tn_machine tn_machine;
extern bool tn_unsafe_dma;

struct tenure_vcpu;

struct tenure_vm {
	struct kref ref;
	/* Open VM and vCPU files. The guest dies with the last one. */
	atomic_t users;
	/* Node of tn_vms. */
	struct list_head node;
	/* The hypervisor's handle; 0 once destroyed. */
	u64 handle;
	bool protected;
	/* A vCPU ran, or was about to: the first image is complete. */
	bool active;
	bool dead;
	/* The guest may not run on: something was not as it must be. */
	bool broken;

	struct mutex lock;
	/* Slots by id; read by vCPUs under slots_sem. */
	struct rw_semaphore slots_sem;
	struct list_head slots;
	struct tenure_vcpu *vcpus[TN_MAX_VCPUS];

	/* Frames in the VM's pool, by page->lru. */
	spinlock_t pool_lock;
	struct list_head pool;

	/* Moves when the hypervisor tells that a drain of this VM finished. */
	atomic_t drained;
	wait_queue_head_t drain_wait;
};

/* A memory slot: guest addresses and what stands behind them. */
struct tenure_slot {
	struct list_head node;
	u32 id;
	u64 gfn;
	u64 pages;
	struct tenure_vm *vm;

	/* With a guest_memfd: */
	struct tenure_gmem *gmem;
	u64 pgoff;
	struct list_head gmem_node;

	/* Without (plain VM): memory of the VMM, and who tells when it changes. */
	u64 userspace_addr;
	struct mmu_interval_notifier notifier;
	struct mutex lending;
	bool lent;
	bool closed;
};

/* A guest_memfd. Lives as long as its file, a slot, or a pin of it. */
struct tenure_gmem {
	struct kref ref;
	struct tenure_vm *vm;
	struct inode *inode;
	u64 pages;
	u64 flags;

	/* Shared by faults, exclusive for conversions and for binding. */
	struct rw_semaphore sem;
	struct mutex fill;
	/* struct page * by offset. */
	struct xarray frames;
	/* tenure_slot.gmem_node; no overlaps. */
	struct list_head slots;
	/* Its VM died: nothing can be mapped any more. */
	bool dead;

	struct mutex ledger;
	struct list_head holders;
	struct delayed_work observe;
};

struct tenure_vcpu {
	struct tenure_vm *vm;
	u32 id;
	struct mutex lock;
	struct kvm_run *run;
	struct tenure_run_page *page;
	bool initialised;
	/* Exit to complete at the next KVM_RUN. */
	u32 completing;
	/* Conversion that the guest waits for; sequence 0 if none. */
	struct tenure_request request;
	/* Moves at each CPU_ON of this vCPU. */
	atomic_t power_ons;
	wait_queue_head_t power_wait;
};

/* An open /dev/tenure: pins belong to it. */
struct tn_session {
	struct mutex lock;
	struct list_head holders;
};

/* One holder of one page. */
struct tn_holder {
	struct list_head gmem_node;
	struct list_head session_node;
	/* NULL: observed. */
	struct tn_session *session;
	struct tenure_gmem *gmem;
	u64 pgoff;
	struct page *page;
	u32 kind;
	u32 count;
	pid_t pid;
	char tag[TENURE_TAG];
	char comm[TASK_COMM_LEN];
};

/* main.c */
extern struct list_head tn_vms;
extern struct mutex tn_vms_lock;
long tn_check_extension(unsigned long what);

/* notify.c */
int tn_notify_register(void);
void tn_notify_unregister(void);
long tn_host_reset(void);
void tn_panic_mode(void);

/* pages.c */
int tn_pool_topup(struct tenure_vm *vm, u64 mask);
void tn_reap(struct page *page, bool guests);
void tn_scrub_counts(unsigned long *back, unsigned long *dirty);
void tn_reap_kick(void);
void tn_reap_wait(void);
unsigned long tn_reap_pending(void);
unsigned long tn_host_pool_pages(void);
void tn_host_pool_return(void);
int tn_count_frames(struct tenure_count *count);

/* vm.c */
int tn_vm_create(unsigned long type);
void tn_vm_get(struct tenure_vm *vm);
void tn_vm_put(struct tenure_vm *vm);
void tn_vm_drop_user(struct tenure_vm *vm);
int tn_vm_activate(struct tenure_vm *vm);
void tn_vm_wake_drained(u64 handle);

/* slot.c */
int tn_slot_set(struct tenure_vm *vm, const struct kvm_userspace_memory_region2 *region);
struct tenure_slot *tn_slot_find(struct tenure_vm *vm, u64 gfn);
void tn_slot_free(struct tenure_slot *slot);

/* lend.c */
int tn_lend_open(struct tenure_slot *slot);
void tn_lend_close(struct tenure_slot *slot);
void tn_lend_stop(struct tenure_slot *slot, bool closed);
int tn_lend_map(struct tenure_slot *slot, u64 gfn);

/* vcpu.c */
int tn_vcpu_create(struct tenure_vm *vm, unsigned long id);
void tn_vcpu_free(struct tenure_vcpu *vcpu);

/* run.c */
int tn_vcpu_run(struct tenure_vcpu *vcpu);

/* regs.c */
int tn_reg_get(struct tenure_vcpu *vcpu, const struct kvm_one_reg *reg);
int tn_reg_set(struct tenure_vcpu *vcpu, const struct kvm_one_reg *reg);

/* gmem.c */
int tn_gmem_create(struct tenure_vm *vm, u64 size, u64 flags);
struct tenure_gmem *tn_gmem_of_fd(int fd);
struct tenure_gmem *tn_gmem_of_file(struct file *file);
void tn_gmem_get(struct tenure_gmem *gmem);
void tn_gmem_put(struct tenure_gmem *gmem);
int tn_gmem_ready(struct tenure_gmem *gmem, u64 pgoff, struct page **found);
void tn_gmem_zap(struct tenure_gmem *gmem, u64 pgoff, u64 pages);
void tn_gmem_kill(struct tenure_gmem *gmem);
unsigned long tn_gmem_live(void);

/* populate.c: callers hold gmem->sem */
struct tenure_slot *tn_gmem_slot(struct tenure_gmem *gmem, u64 pgoff);
long tn_gmem_populate(struct tenure_slot *slot, u64 gfn, u64 pages, u64 kind);
int tn_gmem_bind(struct tenure_gmem *gmem, struct tenure_slot *slot);
void tn_gmem_unbind(struct tenure_slot *slot);

/* reclaim.c: callers hold gmem->sem for writing */
void tn_gmem_unmap(struct tenure_gmem *gmem, u64 pgoff, u64 pages);
int tn_gmem_may_take(struct tenure_slot *slot, u64 pgoff, u64 pages);
int tn_gmem_take(struct tenure_slot *slot, u64 pgoff, u64 pages);
long tn_gmem_fallocate(struct file *file, int mode, loff_t offset, loff_t len);

/* convert.c */
int tn_convert(struct tenure_gmem *gmem, struct tenure_kvm_attributes2 *attributes);
int tn_consent(struct tenure_vcpu *vcpu, u64 *blocked);

/* ledger.c */
int tn_pin(struct tn_session *session, struct tenure_pin *pin);
int tn_unpin(struct tn_session *session, struct tenure_pin *pin);
int tn_observe(struct tenure_gmem *gmem, u64 pgoff, struct page *page);
void tn_observe_work(struct work_struct *work);
int tn_release_page(struct tenure_gmem *gmem, u64 pgoff, struct page *page, u32 kind, struct tn_reply *reply);
bool tn_held_by_others(struct page *page);

/* session.c */
struct tn_session *tn_session_open(void);
void tn_session_close(struct tn_session *session);
long tn_session_ioctl(struct tn_session *session, unsigned int cmd, unsigned long arg);
void tn_answer(struct tenure_answer *answer, const struct tn_reply *reply, u64 word);

/* debug.c */
void tn_debug_register(void);
void tn_debug_unregister(void);

#endif
