// SPDX-License-Identifier: GPL-2.0
/* Registers by the KVM API's ids. The hypervisor refuses them (EPERM) for an active protected VM. */
#include <linux/uaccess.h>

#include "driver.h"

#define CORE(field) \
	(KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | (offsetof(struct kvm_regs, field) / sizeof(u32)))
#define SYS(op0, op1, crn, crm, op2) ARM64_SYS_REG(op0, op1, crn, crm, op2)

static const struct {
	u64 id;
	u64 reg;
} tn_regs[] = {
	{ CORE(regs.sp), TENURE_REG_SP_EL0 },
	{ CORE(regs.pc), TENURE_REG_PC },
	{ CORE(regs.pstate), TENURE_REG_PSTATE },
	{ CORE(sp_el1), TENURE_REG_SP_EL1 },
	{ CORE(elr_el1), TENURE_REG_ELR_EL1 },
	{ CORE(spsr[0]), TENURE_REG_SPSR_EL1 },
	{ SYS(3, 0, 1, 0, 0), TENURE_REG_SCTLR_EL1 },
	{ SYS(3, 0, 0, 0, 5), TENURE_REG_MPIDR_EL1 },
	{ SYS(3, 0, 12, 0, 0), TENURE_REG_VBAR_EL1 },
	{ SYS(3, 0, 2, 0, 0), TENURE_REG_TTBR0_EL1 },
	{ SYS(3, 0, 2, 0, 1), TENURE_REG_TTBR1_EL1 },
	{ SYS(3, 0, 2, 0, 2), TENURE_REG_TCR_EL1 },
	{ SYS(3, 0, 10, 2, 0), TENURE_REG_MAIR_EL1 },
	{ SYS(3, 0, 5, 2, 0), TENURE_REG_ESR_EL1 },
	{ SYS(3, 0, 6, 0, 0), TENURE_REG_FAR_EL1 },
	{ KVM_REG_ARM_TIMER_CTL, TENURE_REG_CNTV_CTL },
	{ KVM_REG_ARM_TIMER_CVAL, TENURE_REG_CNTV_CVAL },
};

/* The hypervisor's number of a register, or ~0. */
static u64 tn_reg_number(u64 id)
{
	int i;

	/* x0 to x30 are two u32 steps apart. */
	if (id >= CORE(regs.regs[0]) && id <= CORE(regs.regs[30]) && !((id - CORE(regs.regs[0])) & 1))
		return TENURE_REG_X0 + (id - CORE(regs.regs[0])) / 2;
	for (i = 0; i < ARRAY_SIZE(tn_regs); i++)
		if (tn_regs[i].id == id)
			return tn_regs[i].reg;
	return ~0ULL;
}

int tn_reg_get(struct tenure_vcpu *vcpu, const struct kvm_one_reg *reg)
{
	u64 number = tn_reg_number(reg->id);
	struct tn_reply reply;

	if (number == ~0ULL)
		return -ENOENT;
	if (tn_call(vcpu->vm, &reply, TENURE_CALL_REG_GET, vcpu->vm->handle, vcpu->id, number, 0, 0) != TENURE_SUCCESS)
		return tn_errno(reply.status);
	return put_user(reply.x[0], (u64 __user *)u64_to_user_ptr(reg->addr));
}

int tn_reg_set(struct tenure_vcpu *vcpu, const struct kvm_one_reg *reg)
{
	u64 number = tn_reg_number(reg->id), value;
	struct tn_reply reply;

	if (number == ~0ULL)
		return -ENOENT;
	if (get_user(value, (u64 __user *)u64_to_user_ptr(reg->addr)))
		return -EFAULT;
	tn_call(vcpu->vm, &reply, TENURE_CALL_REG_SET, vcpu->vm->handle, vcpu->id, number, value, 0);
	return tn_errno(reply.status);
}
