/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* Generated from the crate tenure-test-protocol, whose test compares it: do not edit. */
#ifndef TENURE_TEST_PROTOCOL_H
#define TENURE_TEST_PROTOCOL_H

/* Where RAM starts and the flat binary is loaded; its first byte is the entry point. (The image is position-independent: any 4 KiB-aligned address in the same GiB works.) */
#define GUEST_ENTRY 0x40000000UL
/* Bytes at ENTRY that the image, its stack and its page tables take: all of them private RAM, the host's to fill from the file and zero behind it before activation. */
#define GUEST_IMAGE_BYTES 0x10000UL
/* First address that no part of the payload uses: memory for the host's experiments. */
#define GUEST_FREE 0x40100000UL
/* Device address (one page, status DEVICE): each byte written to it is a character of the guest's console. */
#define GUEST_CONSOLE 0x9000000UL
/* Value of x0 at entry: bytes of RAM from ENTRY; x1.. are zero. */
#define GUEST_DEFAULT_RAM_BYTES 0x1000000UL

/* (r0, r1, r2, r3, r4): results of the last command; the answer is the next command. */
#define GUEST_OP_NEXT 0x100UL
/* (i): the answer is argument i of the command. */
#define GUEST_OP_ARG 0x101UL

/* () -> r0 = 0: nothing. */
#define GUEST_CMD_NOP 0x0UL
/* (ipa, count) -> reply of TENURE_GUEST_SHARE. */
#define GUEST_CMD_SHARE 0x1UL
/* (ipa, count, flags) -> reply of TENURE_GUEST_UNSHARE. */
#define GUEST_CMD_UNSHARE 0x2UL
/* (ipa, count) -> reply of TENURE_GUEST_RELINQUISH. */
#define GUEST_CMD_RELINQUISH 0x3UL
/* (ipa) -> reply of TENURE_GUEST_QUERY. */
#define GUEST_CMD_QUERY 0x4UL
/* (ipa) -> r0 = KVM_MEM_SHARE's answer, as a stock guest makes it. */
#define GUEST_CMD_STOCK_SHARE 0x5UL
/* (ipa) -> r0 = KVM_MEM_UNSHARE's answer, as a stock guest makes it. */
#define GUEST_CMD_STOCK_UNSHARE 0x6UL
/* (id, x1, x2, x3, x4, x5) -> reply of HVC with these registers: every other call, PSCI too. */
#define GUEST_CMD_HVC 0x7UL
/* (id, x1, x2, x3, x4, x5) -> reply of SMC with these registers. */
#define GUEST_CMD_SMC 0x8UL
/* () -> r0..r4 = x5..x9 of the last call. */
#define GUEST_CMD_MORE 0x9UL
/* (address) -> r0 = OUTCOME_*, r1 = the 64-bit value, r2 = ESR, r3 = FAR if it faulted. */
#define GUEST_CMD_READ 0xaUL
/* (address, value) -> as READ: writes 64 bits. */
#define GUEST_CMD_WRITE 0xbUL
/* (address, pages, value) -> as READ, r4 = pages done: fills whole pages with a 64-bit value. */
#define GUEST_CMD_FILL 0xcUL
/* (address, pages, value) -> r0 = OUTCOME_*, r1 = number of 64-bit words that differ, r2.. as READ, r4 = pages done. */
#define GUEST_CMD_CHECK 0xdUL
/* (address, pages) -> as READ, r4 = pages done: reads one word of each page. */
#define GUEST_CMD_TOUCH 0xeUL
/* (address, width) -> as READ: one access of 1, 2, 4 or 8 bytes. */
#define GUEST_CMD_LOAD 0xfUL
/* (address, width, value) -> as READ: one access of 1, 2, 4 or 8 bytes. */
#define GUEST_CMD_STORE 0x10UL
/* (address) -> as READ: jumps there (link register set; a RET comes back). */
#define GUEST_CMD_EXECUTE 0x11UL
/* () -> r0 = OUTCOME_*: prints a line on the guest's console. */
#define GUEST_CMD_PRINT 0x12UL
/* (n) -> r0 = 0: executes about n instructions. */
#define GUEST_CMD_SPIN 0x13UL
/* () -> r0 = OUTCOME_*: executes WFI. */
#define GUEST_CMD_WFI 0x14UL
/* () -> r0 = times an SError was taken since the last such command. */
#define GUEST_CMD_SERRORS 0x15UL
/* (which) -> r0 = OUTCOME_*, r1 = value: TENURE test register number, see `sysreg`. */
#define GUEST_CMD_SYSREG 0x16UL
/* (value) -> r0 = number of FP/SIMD registers v0..v31 that were not zero before; all are set to the value. */
#define GUEST_CMD_FP_SWAP 0x17UL
/* (what, ipa, n) -> r0 = n, r1 = CNTVCT ticks, r2 = all answers (x0) together by OR: a loop of `work` for measuring. */
#define GUEST_CMD_LOOP 0x18UL
/* () : PSCI SYSTEM_OFF. */
#define GUEST_CMD_OFF 0x19UL
/* (mpidr, address, bytes) -> r0 = PSCI CPU_ON's answer: that vCPU, its stack in this memory, asks for commands too. */
#define GUEST_CMD_START 0x1aUL

/* It went through. */
#define GUEST_OUTCOME_OK 0x0UL
/* It ended in an exception, which r2 (ESR_EL1) and r3 (FAR_EL1) describe. */
#define GUEST_OUTCOME_FAULT 0x1UL
/* No such command, register or width. */
#define GUEST_OUTCOME_UNKNOWN 0x2UL

/* Nothing: what the loop itself costs. */
#define GUEST_WORK_EMPTY 0x0UL
/* PSCI_VERSION. */
#define GUEST_WORK_PSCI_VERSION 0x1UL
/* SHARE of page after page. */
#define GUEST_WORK_SHARE 0x2UL
/* UNSHARE of page after page. */
#define GUEST_WORK_UNSHARE 0x3UL
/* SHARE and UNSHARE of the one page. */
#define GUEST_WORK_PAIR 0x4UL
/* SHARE of the n pages in one call, n up to 512. */
#define GUEST_WORK_SHARE_RANGE 0x5UL
/* UNSHARE of the n pages in one call, n up to 512. */
#define GUEST_WORK_UNSHARE_RANGE 0x6UL
/* KVM's MEM_SHARE of page after page. */
#define GUEST_WORK_STOCK_SHARE 0x7UL
/* HOST_CALL with a1 = 0, which the host must answer n times: a whole exit and entry. */
#define GUEST_WORK_HOST_CALL 0x8UL
/* A one-word read of page after page, each of which the host must populate. */
#define GUEST_WORK_TOUCH 0x9UL
/* n times: writes PUBLIC to the page, shares it, takes it back (again while BUSY or RETRY), writes SECRET; r3 = refusals. */
#define GUEST_WORK_SECRETS 0xaUL
/* As SECRETS, taking it back with DRAIN and WAIT. */
#define GUEST_WORK_SECRETS_DRAIN 0xbUL
/* What a page holds while it is shared. */
#define GUEST_WORK_PUBLIC 0xb1c0b1c0b1c0b1cUL
/* What a page holds while it is private: the host must never read it. */
#define GUEST_WORK_SECRET 0x5ec7e75ec7e75ec7UL

/* MIDR_EL1. */
#define GUEST_SYSREG_MIDR 0x0UL
/* MPIDR_EL1. */
#define GUEST_SYSREG_MPIDR 0x1UL
/* ID_AA64PFR0_EL1. */
#define GUEST_SYSREG_PFR0 0x2UL
/* ID_AA64DFR0_EL1. */
#define GUEST_SYSREG_DFR0 0x3UL
/* CNTVCT_EL0. */
#define GUEST_SYSREG_CNTVCT 0x4UL
/* PMCR_EL0 (hidden from guests: a fault is expected). */
#define GUEST_SYSREG_PMCR 0x5UL
/* MDSCR_EL1. */
#define GUEST_SYSREG_MDSCR 0x6UL
/* CNTPCT_EL0. */
#define GUEST_SYSREG_CNTPCT 0x7UL

#endif
