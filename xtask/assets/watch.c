/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A QEMU TCG plugin that logs what the hypervisor does to stage-2 translation tables: every store of a descriptor, every TLBI and
 * DSB, every load of VTTBR_EL2, and when EL2 is left. The events go through a Unix socket to the checker (xtask's `watch`).
 *
 * It watches the production image: instructions inside the address range (begin, end) are recognised by their encodings (DDI 0487
 * C4.1). A page is a table once a table descriptor of a known table names it, or VTTBR_EL2 does; its contents are then sent whole,
 * since it was filled before anybody could know what it is.
 *
 * The declarations follow QEMU's documented plugin interface, version 4 (QEMU 9.2 and later take it), and GLib's: the headers are
 * not packaged everywhere.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_register;
typedef struct {
	uint8_t *data;
	unsigned int len;
} GByteArray;
typedef struct {
	char *data;
	unsigned int len;
} GArray;
typedef struct {
	struct qemu_plugin_register *handle;
	const char *name;
	const char *feature;
} qemu_plugin_reg_descriptor;
typedef struct {
	int type;
	union {
		uint64_t u64;
		struct {
			uint64_t low, high;
		} u128;
	} data;
} qemu_plugin_mem_value;
enum { CB_NO_REGS = 0, CB_R_REGS = 1 };
enum { MEM_W = 2 };
enum { MEM_U128 = 4 };

GByteArray *g_byte_array_new(void);
GByteArray *g_byte_array_set_size(GByteArray *, unsigned int);
uint8_t *g_byte_array_free(GByteArray *, int);
void qemu_plugin_register_vcpu_init_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, unsigned int));
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *, size_t);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned int, void *), int, void *);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *,
				      void (*)(unsigned int, qemu_plugin_meminfo_t, uint64_t, void *), int, int, void *);
qemu_plugin_mem_value qemu_plugin_mem_get_value(qemu_plugin_meminfo_t);
GArray *qemu_plugin_get_registers(void);
int qemu_plugin_read_register(struct qemu_plugin_register *, GByteArray *);
bool qemu_plugin_read_memory_vaddr(uint64_t, GByteArray *, size_t);

__attribute__((visibility("default"))) int qemu_plugin_version = 4;

/* What an event says; `where` and `value` are as the comment tells. */
enum kind {
	WRITE = 1, /* a store to the entry at `where` */
	PAGE,      /* the table at `where`, of level `value`, is sent: its entries follow */
	ENTRY,     /* an entry at `where` that is not zero */
	TLBI,      /* encoding `where`, operand `value` */
	DSB,       /* CRm in `value` */
	VTTBR,     /* VTTBR_EL2 is `value` now */
	ERET,      /* EL2 is left, and something of the above was done since it was entered */
	STEP,      /* the machine's program marks `value` */
	SAME,      /* as PAGE: the table must be what the log says */
};

struct event {
	uint64_t kind; /* and the CPU in bits 63:32 */
	uint64_t where, value, pc;
};

#define CPUS 8
#define PAGE_BYTES 4096ull
#define ADDRESS 0x0000fffffffff000ull
/* Frames from the start of the address space whose level is remembered. */
#define FRAMES (1ull << 22)
#define VMIDS 65536
/* Marks of the program between two comparisons of the log with all tables. */
#define COMPARE_EVERY 4096

static uint64_t begin, end;
static int sink = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct event events[2048];
static size_t pending;
/* Level of the table that a frame is or was, 0 for none. */
static uint8_t level[FRAMES];
/* Root that was sent for a VMID. */
static uint64_t sent[VMIDS];
static struct qemu_plugin_register *registers[CPUS][31];
static uint64_t vttbr[CPUS], vtcr[CPUS];
static bool busy[CPUS];
static bool compare;

static void flush(void)
{
	const char *at = (const char *)events;
	size_t left = pending * sizeof(*events);

	pending = 0;
	while (sink >= 0 && left) {
		ssize_t n = write(sink, at, left);

		if (n <= 0) {
			close(sink);
			sink = -1;
			return;
		}
		at += n;
		left -= n;
	}
}

static void emit(unsigned int cpu, enum kind kind, uint64_t where, uint64_t value, uint64_t pc)
{
	if (pending == sizeof(events) / sizeof(*events))
		flush();
	events[pending++] = (struct event){ (uint64_t)cpu << 32 | kind, where, value, pc };
	busy[cpu % CPUS] = true;
}

/* Sends a table and all tables under it. */
static void send_table(unsigned int cpu, uint64_t page, unsigned int of_level, enum kind kind)
{
	GByteArray *bytes;

	if (page / PAGE_BYTES >= FRAMES)
		return;
	level[page / PAGE_BYTES] = of_level;
	emit(cpu, kind, page, of_level, 0);
	bytes = g_byte_array_new();
	if (!qemu_plugin_read_memory_vaddr(page, bytes, PAGE_BYTES) || bytes->len != PAGE_BYTES) {
		g_byte_array_free(bytes, 1);
		return;
	}
	for (size_t i = 0; i < 512; i++) {
		uint64_t value;

		memcpy(&value, bytes->data + i * 8, 8);
		if (value)
			emit(cpu, ENTRY, page + i * 8, value, 0);
	}
	for (size_t i = 0; of_level < 3 && i < 512; i++) {
		uint64_t value;

		memcpy(&value, bytes->data + i * 8, 8);
		if ((value & 3) == 3)
			send_table(cpu, value & ADDRESS, of_level + 1, kind);
	}
	g_byte_array_free(bytes, 1);
}

static uint64_t register_value(unsigned int cpu, unsigned int number)
{
	static __thread GByteArray *bytes;
	uint64_t value = 0;

	if (number == 31 || !registers[cpu % CPUS][number])
		return 0;
	if (!bytes)
		bytes = g_byte_array_new();
	g_byte_array_set_size(bytes, 0);
	if (qemu_plugin_read_register(registers[cpu % CPUS][number], bytes) >= 8)
		memcpy(&value, bytes->data, 8);
	return value;
}

static void stored_entry(unsigned int cpu, uint64_t address, uint64_t value, uint64_t pc)
{
	unsigned int of_level = level[address / PAGE_BYTES];

	emit(cpu, WRITE, address, value, pc);
	if (of_level < 3 && (value & 3) == 3)
		send_table(cpu, value & ADDRESS, of_level + 1, PAGE);
}

static void stored(unsigned int cpu, qemu_plugin_meminfo_t info, uint64_t address, void *pc)
{
	uint64_t frame = address / PAGE_BYTES;
	qemu_plugin_mem_value value;

	if (frame >= FRAMES || !level[frame])
		return;
	value = qemu_plugin_mem_get_value(info);
	pthread_mutex_lock(&lock);
	stored_entry(cpu, address, value.type == MEM_U128 ? value.data.u128.low : value.data.u64, (uint64_t)pc);
	if (value.type == MEM_U128)
		stored_entry(cpu, address + 8, value.data.u128.high, (uint64_t)pc);
	pthread_mutex_unlock(&lock);
}

/* Tables that a root consists of: concatenated ones where the address is longer than one can resolve (DDI 0487 D8.2.10). */
static unsigned int roots(uint64_t control)
{
	unsigned int bits = 64 - (control & 63);

	return bits > 39 ? 1u << (bits - 39) : 1;
}

static void send_root(unsigned int cpu, enum kind kind)
{
	uint64_t root = vttbr[cpu % CPUS] & ADDRESS;

	for (unsigned int i = 0; i < roots(vtcr[cpu % CPUS]); i++)
		send_table(cpu, root + i * PAGE_BYTES, 1, kind);
}

static void loads_vttbr(unsigned int cpu, void *word)
{
	uint64_t value = register_value(cpu, (uintptr_t)word & 31), root = value & ADDRESS;

	pthread_mutex_lock(&lock);
	vttbr[cpu % CPUS] = value;
	emit(cpu, VTTBR, 0, value, 0);
	/* A root inside the image maps nothing: it stands for its VMID only. */
	if (root && (root < begin || root >= end) && sent[value >> 48] != root) {
		sent[value >> 48] = root;
		send_root(cpu, PAGE);
	}
	pthread_mutex_unlock(&lock);
}

static void loads_vtcr(unsigned int cpu, void *word)
{
	vtcr[cpu % CPUS] = register_value(cpu, (uintptr_t)word & 31);
}

static void invalidates(unsigned int cpu, void *word)
{
	uint64_t code = (uintptr_t)word, value = register_value(cpu, code & 31);

	pthread_mutex_lock(&lock);
	emit(cpu, TLBI, code & ~31ull, value, 0);
	/* VMALLS12E1(IS): a guest's tables may change unseen from here to their next load. */
	if ((code & 0xfff8f0e0) == 0xd50880c0 && (code >> 16 & 7) == 4)
		sent[vttbr[cpu % CPUS] >> 48] *= !(vttbr[cpu % CPUS] >> 48);
	pthread_mutex_unlock(&lock);
}

static void synchronizes(unsigned int cpu, void *word)
{
	if (!busy[cpu % CPUS])
		return;
	pthread_mutex_lock(&lock);
	emit(cpu, DSB, 0, (uintptr_t)word >> 8 & 15, 0);
	pthread_mutex_unlock(&lock);
}

static void leaves(unsigned int cpu, void *pc)
{
	if (!busy[cpu % CPUS])
		return;
	pthread_mutex_lock(&lock);
	/* The host's tree is the one that lives as long as the machine. */
	if (compare && !(vttbr[cpu % CPUS] >> 48)) {
		compare = false;
		send_root(cpu, SAME);
	}
	emit(cpu, ERET, 0, 0, (uint64_t)pc);
	busy[cpu % CPUS] = false;
	pthread_mutex_unlock(&lock);
}

static void marks(unsigned int cpu, void *unused)
{
	uint64_t value = register_value(cpu, 0);

	(void)unused;
	pthread_mutex_lock(&lock);
	emit(cpu, STEP, 0, value, 0);
	compare |= !(value % COMPARE_EVERY);
	pthread_mutex_unlock(&lock);
}

/* Stores of 64 bits that a descriptor may be written by: STR, STUR, STP, STLR, STLUR, STXR, STLXR, and LSE's SWP and CAS. */
static bool is_store(uint32_t word)
{
	return (word & 0xffc00000) == 0xf9000000 || (word & 0xffe00000) == 0xf8000000 ||
	       (word & 0xfe400000) == 0xa8000000 || (word & 0xffc00000) == 0xd9000000 ||
	       (word & 0xff400000) == 0xc8000000 || (word & 0xffa07c00) == 0xc8a07c00 ||
	       (word & 0xff200c00) == 0xf8200000 || (word & 0xff200c00) == 0xf8200800;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	(void)id;
	for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		uint64_t pc = qemu_plugin_insn_vaddr(insn);
		uint32_t word = 0;

		if (qemu_plugin_insn_data(insn, &word, sizeof(word)) != sizeof(word))
			continue;
		if (pc < begin || pc >= end) {
			/* HINT #86. */
			if (word == 0xd5032adf)
				qemu_plugin_register_vcpu_insn_exec_cb(insn, marks, CB_R_REGS, NULL);
			continue;
		}
		if (is_store(word))
			qemu_plugin_register_vcpu_mem_cb(insn, stored, CB_NO_REGS, MEM_W, (void *)pc);
		else if ((word & 0xffffffe0) == 0xd51c2100)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, loads_vttbr, CB_R_REGS, (void *)(uintptr_t)word);
		else if ((word & 0xffffffe0) == 0xd51c2140)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, loads_vtcr, CB_R_REGS, (void *)(uintptr_t)word);
		else if ((word & 0xfff8f000) == 0xd5088000)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, invalidates, CB_R_REGS, (void *)(uintptr_t)word);
		else if ((word & 0xfffff0ff) == 0xd503309f)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, synchronizes, CB_NO_REGS, (void *)(uintptr_t)word);
		else if (word == 0xd69f03e0)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, leaves, CB_NO_REGS, (void *)pc);
	}
}

static void started(qemu_plugin_id_t id, unsigned int cpu)
{
	GArray *all = qemu_plugin_get_registers();

	(void)id;
	for (unsigned int i = 0; cpu < CPUS && i < all->len; i++) {
		qemu_plugin_reg_descriptor *one = (qemu_plugin_reg_descriptor *)all->data + i;
		char *rest;
		unsigned long number;

		if (one->name[0] != 'x' || one->name[1] < '0' || one->name[1] > '9')
			continue;
		number = strtoul(one->name + 1, &rest, 10);
		if (!*rest && number < 31)
			registers[cpu][number] = one->handle;
	}
}

static void ended(qemu_plugin_id_t id, void *unused)
{
	(void)id;
	(void)unused;
	pthread_mutex_lock(&lock);
	flush();
	if (sink >= 0)
		close(sink);
	sink = -1;
	pthread_mutex_unlock(&lock);
}

__attribute__((visibility("default")))
int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX };

	(void)info;
	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "begin=", 6))
			begin = strtoull(argv[i] + 6, NULL, 0);
		else if (!strncmp(argv[i], "end=", 4))
			end = strtoull(argv[i] + 4, NULL, 0);
		else if (!strncmp(argv[i], "out=", 4))
			strncpy(name.sun_path, argv[i] + 4, sizeof(name.sun_path) - 1);
	}
	sink = socket(AF_UNIX, SOCK_STREAM, 0);
	if (begin >= end || sink < 0 || connect(sink, (struct sockaddr *)&name, sizeof(name)))
		return -1;
	qemu_plugin_register_vcpu_init_cb(id, started);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	qemu_plugin_register_atexit_cb(id, ended, NULL);
	return 0;
}
