//! The errata table: which CPUs need which workaround.
//!
//! One row a CPU family and range of revisions; who applies a workaround asks for its [`Workaround`] here. Sources: the
//! software developer errata notices of the CPUs (SDEN) and Arm's advisory for CVE-2025-10263.

use core::sync::atomic::{AtomicU32, Ordering};

use bitflags::bitflags;

bitflags! {
    /// What a CPU needs.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Workaround: u32 {
        /// A TLBI with its DSB may complete before another CPU's stores through the old translation are seen, or
        /// before its walk ends: a second TLBI and DSB must follow (A55 2441007, A76 1286807, A510 2441009;
        /// CVE-2025-10263).
        const REPEAT_TLBI = 1 << 0;
        /// A speculative `AT` may fill the TLB with half of one world's registers and half of another's: stage 1 walks
        /// must be off while a world is switched (A55 1530923, A57 1319537, A72 1319367, A76 and N1 1165522). They
        /// always are ([`crate::el1::El1State::load`]): it costs two barriers.
        const SPECULATIVE_AT = 1 << 1;
    }
}

/// A row: part number (Arm's, `MIDR_EL1.PartNum`), last revision that is affected (variant << 4 | revision), needs.
struct Row(u16, u8, Workaround);

const ARM: u64 = 0x41;
const ALL: u8 = 0xff;
const REPEAT: Workaround = Workaround::REPEAT_TLBI;
const AT: Workaround = Workaround::SPECULATIVE_AT;

const TABLE: [Row; 29] = [
    Row(0xd05, ALL, REPEAT), // Cortex-A55
    Row(0xd05, 0x20, AT),
    Row(0xd46, 0x11, REPEAT), // Cortex-A510
    Row(0xd07, ALL, AT),      // Cortex-A57
    Row(0xd08, ALL, AT),      // Cortex-A72
    Row(0xd0b, ALL, REPEAT),  // Cortex-A76
    Row(0xd0b, 0x20, AT),
    Row(0xd0e, ALL, REPEAT), // Cortex-A76AE
    Row(0xd0d, ALL, REPEAT), // Cortex-A77
    Row(0xd41, ALL, REPEAT), // Cortex-A78
    Row(0xd42, ALL, REPEAT), // Cortex-A78AE
    Row(0xd4b, ALL, REPEAT), // Cortex-A78C
    Row(0xd47, ALL, REPEAT), // Cortex-A710
    Row(0xd44, ALL, REPEAT), // Cortex-X1
    Row(0xd4c, ALL, REPEAT), // Cortex-X1C
    Row(0xd48, ALL, REPEAT), // Cortex-X2
    Row(0xd4e, ALL, REPEAT), // Cortex-X3
    Row(0xd82, ALL, REPEAT), // Cortex-X4
    Row(0xd85, ALL, REPEAT), // Cortex-X925
    Row(0xd0c, ALL, REPEAT), // Neoverse N1
    Row(0xd0c, 0x20, AT),
    Row(0xd49, ALL, REPEAT), // Neoverse N2
    Row(0xd8e, ALL, REPEAT), // Neoverse N3
    Row(0xd40, ALL, REPEAT), // Neoverse V1
    Row(0xd4f, ALL, REPEAT), // Neoverse V2
    Row(0xd84, ALL, REPEAT), // Neoverse V3
    Row(0xd83, ALL, REPEAT), // Neoverse V3AE
    Row(0xd4d, ALL, REPEAT), // Cortex-A715
    Row(0xd81, ALL, REPEAT), // Cortex-A720
];

/// What the CPU with this `MIDR_EL1` needs.
pub const fn needs(midr: u64) -> Workaround {
    if (midr >> 24) & 0xff != ARM {
        return Workaround::empty();
    }
    let part = ((midr >> 4) & 0xfff) as u16;
    let revision = (((midr >> 16) & 0xf0) | (midr & 0xf)) as u8;
    let mut row = 0;
    let mut found = Workaround::empty();
    while row < TABLE.len() {
        if TABLE[row].0 == part && revision <= TABLE[row].1 {
            found = found.union(TABLE[row].2);
        }
        row += 1;
    }
    found
}

/// What any CPU of the machine that has started needs.
static MACHINE: AtomicU32 = AtomicU32::new(0);

/// Notes what this CPU needs. Each CPU calls it before it runs the host.
pub fn note_this_cpu() {
    MACHINE.fetch_or(needs(crate::sysreg::midr_el1()).bits(), Ordering::Relaxed);
}

/// Whether any CPU of the machine needs a workaround: invalidations reach all of them.
#[inline(always)]
pub fn machine_needs(workaround: Workaround) -> bool {
    MACHINE.load(Ordering::Relaxed) & workaround.bits() != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn affected_families_are_found_in_every_revision() {
        for midr in [0x413f_d0b1, 0x414f_d0b1, 0x413f_d0c1, 0x410f_d4f1, 0x412f_d051, 0x411f_d461] {
            assert_eq!(needs(midr), Workaround::REPEAT_TLBI, "{midr:#x}");
        }
        assert_eq!(needs(0x410f_d083), Workaround::SPECULATIVE_AT);
    }

    #[test]
    fn a_revision_that_is_mended_needs_no_more_than_the_rest_of_its_family() {
        // Cortex-A76, Neoverse N1 and Cortex-A55 to r2p0; Cortex-A510 to r1p1.
        for midr in [0x412f_d0b0, 0x412f_d0c0, 0x412f_d050] {
            assert_eq!(needs(midr), Workaround::all(), "{midr:#x}");
        }
        assert_eq!(needs(0x411f_d462), Workaround::empty());
    }

    #[test]
    fn others_need_nothing() {
        // Cortex-A53, QEMU's max, another implementer with a part number of Arm's.
        for midr in [0x410f_d034, 0x000f_0510, 0x510f_d0b1] {
            assert!(needs(midr).is_empty(), "{midr:#x}");
        }
    }
}
