//! The C header of the Linux driver, written from the definitions of this crate.

use core::fmt::{Result, Write};

use crate::{call, exit, flags, guest, info, page, reg, reply, run, smccc, trace};

/// One `#define` of the header.
#[derive(Clone, Copy, Debug)]
pub struct Constant {
    /// C name.
    pub name: &'static str,
    /// Value; statuses are negative numbers as `u64`.
    pub value: u64,
    /// Documentation.
    pub doc: &'static str,
}

const TABLES: &[(&str, &[Constant])] = &[
    ("Results (x0)", reply::STATUS_TABLE),
    ("What blocks a page (x3)", reply::TABLE),
    ("Calls of the host", call::TABLE),
    ("Flags of VM_CREATE", flags::vm::TABLE),
    ("Flags of UNSHARE", flags::unshare::TABLE),
    ("Kinds of pins", flags::pin::TABLE),
    ("Status of a guest address", flags::status::TABLE),
    ("Operations of QUERY_GUEST", flags::query::TABLE),
    ("What VCPU_INJECT injects", flags::inject::TABLE),
    ("Features", info::feature::TABLE),
    ("Figures of INFO", info::TABLE),
    ("Registers of a vCPU", reg::TABLE),
    ("Exits of a vCPU", exit::TABLE),
    ("Kinds of a SYSTEM exit", exit::system::TABLE),
    ("Events of the trace (beside the ids of calls)", trace::TABLE),
    ("Calls of guests", guest::TABLE),
    ("SMCCC and KVM's vendor service", smccc::TABLE),
    ("States of a page", page::STATE_TABLE),
];

/// Writes the header.
///
/// # Errors
/// Only those of `out`.
pub fn write(out: &mut dyn Write) -> Result {
    writeln!(out, "/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */")?;
    writeln!(out, "/* Generated from the crate `tenure-abi` by `cargo xtask build`: do not edit. */")?;
    writeln!(out, "#ifndef TENURE_ABI_H\n#define TENURE_ABI_H\n\n#include <linux/types.h>\n")?;
    writeln!(out, "#define TENURE_ABI_VERSION {:#x}UL", crate::ABI_VERSION)?;
    writeln!(out, "#define TENURE_MAX_ATOMIC_PAGES {}UL", crate::MAX_ATOMIC_PAGES)?;
    writeln!(out, "#define TENURE_NO_INDEX (~0UL)")?;
    for (title, table) in TABLES {
        writeln!(out, "\n/* {title} */")?;
        for constant in *table {
            writeln!(out, "/*{} */", constant.doc)?;
            match constant.value as i64 {
                value if value < 0 => writeln!(out, "#define {} ({value})", constant.name)?,
                value => writeln!(out, "#define {} {value:#x}UL", constant.name)?,
            }
        }
    }
    writeln!(out, "\n/* Fields of the page word (x4 of QUERY): lowest bit and mask after the shift */")?;
    for (name, field) in page::FIELDS {
        writeln!(out, "#define TENURE_WORD_{name}_SHIFT {}", field.shift)?;
        writeln!(out, "#define TENURE_WORD_{name}_MASK {:#x}UL", field.max())?;
    }
    writeln!(out, "\n/* The run page of a vCPU */\nstruct tenure_run_page {{")?;
    for (name, doc) in run::FIELDS {
        writeln!(out, "\t/*{doc} */\n\t__u64 {name};")?;
    }
    writeln!(out, "\t/* Arguments a1..a6 of a HYPERCALL exit. */\n\t__u64 args[6];\n}};\n\n#endif")
}
