/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A QEMU TCG plugin that counts what the hypervisor executes: instructions inside an address range (begin, end), entries
 * into it, the first stretch in it (the start), the longest later one, and all instructions. Written to a file (out) when the machine ends.
 *
 * The declarations follow QEMU's documented plugin interface, version 3 (QEMU 9.1 and later take it): the header
 * itself is not packaged everywhere.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_scoreboard;
typedef struct {
	struct qemu_plugin_scoreboard *score;
	size_t offset;
} qemu_plugin_u64;
enum { OP_ADD_U64 = 0 };
enum { CB_NO_REGS = 0 };
enum { COND_NE = 3 };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t);
void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct qemu_plugin_tb *, int, qemu_plugin_u64, uint64_t);
void qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(struct qemu_plugin_insn *, int, qemu_plugin_u64, uint64_t);
void qemu_plugin_register_vcpu_tb_exec_cond_cb(struct qemu_plugin_tb *, void (*)(unsigned int, void *), int, int,
					       qemu_plugin_u64, uint64_t, void *);
uint64_t qemu_plugin_u64_sum(qemu_plugin_u64);
uint64_t qemu_plugin_u64_get(qemu_plugin_u64, unsigned int);
void qemu_plugin_u64_set(qemu_plugin_u64, unsigned int, uint64_t);

__attribute__((visibility("default"))) int qemu_plugin_version = 3;

static uint64_t begin, end;
static const char *out;
static qemu_plugin_u64 inside, outside, stretch;
static uint64_t entries, start, longest;

/* Outside again after a stretch inside: the first block that a CPU executes there. */
static void left(unsigned int cpu, void *unused)
{
	uint64_t length = qemu_plugin_u64_get(stretch, cpu), seen;

	(void)unused;
	qemu_plugin_u64_set(stretch, cpu, 0);
	if (!__atomic_fetch_add(&entries, 1, __ATOMIC_RELAXED)) {
		start = length;
		return;
	}
	seen = __atomic_load_n(&longest, __ATOMIC_RELAXED);
	while (seen < length &&
	       !__atomic_compare_exchange_n(&longest, &seen, length, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	uint64_t address = qemu_plugin_tb_vaddr(tb);
	size_t count = qemu_plugin_tb_n_insns(tb);

	(void)id;
	if (address < begin || address >= end) {
		qemu_plugin_register_vcpu_tb_exec_cond_cb(tb, left, CB_NO_REGS, COND_NE, stretch, 0, NULL);
		qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(tb, OP_ADD_U64, outside, count);
		return;
	}
	/* One by one: a block that an exception cuts short counts what it did. */
	for (size_t i = 0; i < count; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);

		qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(insn, OP_ADD_U64, inside, 1);
		qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(insn, OP_ADD_U64, stretch, 1);
	}
}

static void ended(qemu_plugin_id_t id, void *unused)
{
	FILE *file = fopen(out, "w");
	uint64_t own = qemu_plugin_u64_sum(inside);

	(void)id;
	(void)unused;
	if (!file)
		return;
	fprintf(file, "inside %" PRIu64 "\nall %" PRIu64 "\nentries %" PRIu64 "\nstart %" PRIu64 "\nlongest %" PRIu64 "\n",
		own, own + qemu_plugin_u64_sum(outside), entries, start, longest);
	fclose(file);
}

static qemu_plugin_u64 counter(void)
{
	return (qemu_plugin_u64){ qemu_plugin_scoreboard_new(sizeof(uint64_t)), 0 };
}

__attribute__((visibility("default")))
int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
	(void)info;
	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "begin=", 6))
			begin = strtoull(argv[i] + 6, NULL, 0);
		else if (!strncmp(argv[i], "end=", 4))
			end = strtoull(argv[i] + 4, NULL, 0);
		else if (!strncmp(argv[i], "out=", 4))
			out = strdup(argv[i] + 4);
	}
	if (!out || begin >= end)
		return -1;
	inside = counter();
	outside = counter();
	stretch = counter();
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	qemu_plugin_register_atexit_cb(id, ended, NULL);
	return 0;
}
