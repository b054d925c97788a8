/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A QEMU TCG plugin that watches what the hypervisor executes, in an address range (begin, end), and writes to a file
 * (out) when the machine ends:
 *
 *   inside N, all N       instructions in the range and everywhere
 *   entries N, start N    how often the range was left again; the first stretch in it
 *   longest N             the longest later stretch between an entry and an exit of one CPU
 *   stretch KEY N         the longest for each KEY: the vector's offset << 32 | the function id in x0 (0 if it is none)
 *   section N             what was executed in windows of this section (below)
 *   at PC N               under the last stretch or section: executions of the instruction at begin + PC
 *
 * A host, guest or program marks what it does by an instruction that does nothing, MOVZ XZR, #n:
 * 2 begins the next section (the first is 1), 1 opens a window, 0 closes it. One CPU is assumed where windows are used.
 *
 * The declarations follow QEMU's documented plugin interface, version 3 (QEMU 9.1 and later take it): the header
 * itself is not packaged everywhere. Those of GLib are what that interface's registers are read with; QEMU brings it.
 */
#include <inttypes.h>
#include <pthread.h>
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
struct qemu_plugin_register;
typedef struct {
	struct qemu_plugin_scoreboard *score;
	size_t offset;
} qemu_plugin_u64;
typedef struct {
	struct qemu_plugin_register *handle;
	const char *name;
	const char *feature;
} qemu_plugin_reg_descriptor;
typedef struct {
	uint8_t *data;
	unsigned int len;
} GByteArray;
typedef struct {
	char *data;
	unsigned int len;
} GArray;
enum { OP_ADD_U64 = 0 };
enum { CB_NO_REGS = 0, CB_R_REGS = 1 };
enum { COND_NE = 3 };

void qemu_plugin_register_vcpu_init_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, unsigned int));
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *, size_t);
struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t);
void *qemu_plugin_scoreboard_find(struct qemu_plugin_scoreboard *, unsigned int);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned int, void *), int, void *);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned int, void *), int, void *);
void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct qemu_plugin_tb *, int, qemu_plugin_u64, uint64_t);
void qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(struct qemu_plugin_insn *, int, qemu_plugin_u64, uint64_t);
void qemu_plugin_register_vcpu_tb_exec_cond_cb(struct qemu_plugin_tb *, void (*)(unsigned int, void *), int, int,
					       qemu_plugin_u64, uint64_t, void *);
uint64_t qemu_plugin_u64_sum(qemu_plugin_u64);
uint64_t qemu_plugin_u64_get(qemu_plugin_u64, unsigned int);
void qemu_plugin_u64_set(qemu_plugin_u64, unsigned int, uint64_t);
GArray *qemu_plugin_get_registers(void);
int qemu_plugin_read_register(struct qemu_plugin_register *, GByteArray *);
GByteArray *g_byte_array_new(void);
GByteArray *g_byte_array_set_size(GByteArray *, unsigned int);

__attribute__((visibility("default"))) int qemu_plugin_version = 3;

enum {
	CPUS = 16,
	TRAIL = 1 << 16, /* Blocks of the longest stretch that are remembered. */
	KEYS = 256,
	SECTIONS = 512,
	MARKER = 0xd280001f, /* MOVZ XZR, #0; the number stands in bits 20:5. */
	MARKER_MASK = (int)0xffe0001f,
};

/* A translated block in the range. */
struct block {
	uint64_t address;
	size_t count;
};

struct cpu {
	struct qemu_plugin_register *x0;
	GByteArray *bytes;
	uint64_t key;
	size_t length;
	struct block **trail;
};

/* The longest stretch of a key. */
struct stretch {
	uint64_t key, instructions;
	size_t length;
	struct block **trail;
};

static uint64_t begin, end;
static const char *out;
/* Per CPU: instructions outside, those of the present stretch, and executions of each instruction inside. */
static qemu_plugin_u64 outside, present;
static struct qemu_plugin_scoreboard *executed;
static struct cpu cpus[CPUS];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t entries, start, longest;
static struct stretch stretches[KEYS];
static size_t keys;

static uint64_t *opened, *sections[SECTIONS];
static size_t section;

static size_t places(void)
{
	return (end - begin) / 4;
}

static uint64_t key_of(unsigned int cpu, uint64_t address)
{
	uint64_t vector = (address - begin) & 0x7ff, x0 = 0;
	struct cpu *own = &cpus[cpu % CPUS];

	if (own->x0 && own->bytes) {
		g_byte_array_set_size(own->bytes, 0);
		if (qemu_plugin_read_register(own->x0, own->bytes) == 8)
			memcpy(&x0, own->bytes->data, 8);
	}
	/* A fast call's id; anything else is what a register held at an exception of another kind. */
	return vector << 32 | (x0 >> 32 || !(x0 & 0x80000000) || x0 & 0x00ff0000 ? 0 : x0);
}

/* A block in the range begins. */
static void inside(unsigned int cpu, void *data)
{
	struct cpu *own = &cpus[cpu % CPUS];
	struct block *block = data;

	if (!own->trail)
		own->trail = calloc(TRAIL, sizeof(*own->trail));
	if (!own->length)
		own->key = key_of(cpu, block->address);
	if (own->trail && own->length < TRAIL)
		own->trail[own->length++] = block;
}

static struct stretch *longest_of(uint64_t key)
{
	for (size_t i = 0; i < keys; i++)
		if (stretches[i].key == key)
			return &stretches[i];
	if (keys == KEYS)
		return NULL;
	stretches[keys].key = key;
	stretches[keys].trail = calloc(TRAIL, sizeof(struct block *));
	return stretches[keys].trail ? &stretches[keys++] : NULL;
}

/* Outside again after a stretch inside: the first block that a CPU executes there. */
static void left(unsigned int cpu, void *unused)
{
	uint64_t length = qemu_plugin_u64_get(present, cpu);
	struct cpu *own = &cpus[cpu % CPUS];
	struct stretch *known;

	(void)unused;
	qemu_plugin_u64_set(present, cpu, 0);
	pthread_mutex_lock(&lock);
	if (!entries++) {
		start = length;
	} else {
		known = longest_of(own->key);
		if (known && known->instructions < length) {
			known->instructions = length;
			known->length = own->length;
			memcpy(known->trail, own->trail, own->length * sizeof(*own->trail));
		}
		if (longest < length)
			longest = length;
	}
	pthread_mutex_unlock(&lock);
	own->length = 0;
}

static void copy_executed(uint64_t *to, unsigned int cpu)
{
	memcpy(to, qemu_plugin_scoreboard_find(executed, cpu), places() * sizeof(uint64_t));
}

static void marked(unsigned int cpu, void *data)
{
	uintptr_t what = (uintptr_t)data;
	uint64_t *now;

	if (what == 2 && section + 1 < SECTIONS) {
		section++;
	} else if (what == 1 && section && !opened) {
		opened = malloc(places() * sizeof(uint64_t));
		if (opened)
			copy_executed(opened, cpu);
	} else if (what == 0 && opened) {
		if (!sections[section])
			sections[section] = calloc(places(), sizeof(uint64_t));
		now = qemu_plugin_scoreboard_find(executed, cpu);
		for (size_t i = 0; sections[section] && i < places(); i++)
			sections[section][i] += now[i] - opened[i];
		free(opened);
		opened = NULL;
	}
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	uint64_t address = qemu_plugin_tb_vaddr(tb);
	size_t count = qemu_plugin_tb_n_insns(tb);
	struct block *block;

	(void)id;
	if (address < begin || address >= end) {
		qemu_plugin_register_vcpu_tb_exec_cond_cb(tb, left, CB_NO_REGS, COND_NE, present, 0, NULL);
		qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(tb, OP_ADD_U64, outside, count);
		for (size_t i = 0; i < count; i++) {
			struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
			uint32_t code = 0;

			if (qemu_plugin_insn_data(insn, &code, 4) == 4 &&
			    (code & (uint32_t)MARKER_MASK) == (uint32_t)MARKER)
				qemu_plugin_register_vcpu_insn_exec_cb(insn, marked, CB_NO_REGS,
								       (void *)(uintptr_t)(code >> 5 & 0xffff));
		}
		return;
	}
	block = malloc(sizeof(*block));
	if (block) {
		*block = (struct block){ address, count };
		qemu_plugin_register_vcpu_tb_exec_cb(tb, inside, CB_R_REGS, block);
	}
	/* One by one: a block that an exception cuts short counts what it did. */
	for (size_t i = 0; i < count && address + 4 * i < end; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		qemu_plugin_u64 place = { executed, (address - begin) / 4 * 8 + 8 * i };

		qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(insn, OP_ADD_U64, place, 1);
		qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(insn, OP_ADD_U64, present, 1);
	}
}

static void created(qemu_plugin_id_t id, unsigned int cpu)
{
	GArray *registers = qemu_plugin_get_registers();
	const qemu_plugin_reg_descriptor *known;

	(void)id;
	cpus[cpu % CPUS].bytes = g_byte_array_new();
	for (unsigned int i = 0; registers && i < registers->len; i++) {
		known = (const qemu_plugin_reg_descriptor *)registers->data + i;
		if (!strcmp(known->name, "x0"))
			cpus[cpu % CPUS].x0 = known->handle;
	}
}

static void write_profile(FILE *file, const uint64_t *counts)
{
	for (size_t i = 0; counts && i < places(); i++)
		if (counts[i])
			fprintf(file, "at %zx %" PRIu64 "\n", i * 4, counts[i]);
}

static void write_stretch(FILE *file, const struct stretch *known)
{
	uint64_t *counts = calloc(places(), sizeof(uint64_t));

	fprintf(file, "stretch %" PRIx64 " %" PRIu64 "\n", known->key, known->instructions);
	for (size_t i = 0; counts && i < known->length; i++)
		for (size_t j = 0; j < known->trail[i]->count; j++)
			if ((known->trail[i]->address - begin) / 4 + j < places())
				counts[(known->trail[i]->address - begin) / 4 + j]++;
	write_profile(file, counts);
	free(counts);
}

static void ended(qemu_plugin_id_t id, void *unused)
{
	uint64_t own = 0;
	FILE *file = fopen(out, "w");

	(void)id;
	(void)unused;
	if (!file)
		return;
	for (size_t i = 0; i < places(); i++)
		own += qemu_plugin_u64_sum((qemu_plugin_u64){ executed, i * 8 });
	fprintf(file, "inside %" PRIu64 "\nall %" PRIu64 "\nentries %" PRIu64 "\nstart %" PRIu64 "\nlongest %" PRIu64 "\n",
		own, own + qemu_plugin_u64_sum(outside), entries, start, longest);
	for (size_t i = 0; i < keys; i++)
		write_stretch(file, &stretches[i]);
	for (size_t i = 1; i <= section; i++) {
		fprintf(file, "section %zu\n", i);
		write_profile(file, sections[i]);
	}
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
	outside = counter();
	present = counter();
	executed = qemu_plugin_scoreboard_new((end - begin) / 4 * sizeof(uint64_t));
	qemu_plugin_register_vcpu_init_cb(id, created);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	qemu_plugin_register_atexit_cb(id, ended, NULL);
	return 0;
}
