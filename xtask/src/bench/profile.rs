//! What executed instructions are: their kind by the opcode, their function by the debug information.

use std::collections::BTreeMap;
use std::fs;
use std::ops::AddAssign;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use gimli::{Dwarf, EndianArcSlice, LittleEndian};
use object::{Object, ObjectSection};

/// Executions of each instruction, by its offset in the hypervisor's image.
pub type Profile = BTreeMap<u64, u64>;

type Slice = EndianArcSlice<LittleEndian>;

/// The hypervisor with its debug information. Its addresses are offsets in the image.
pub struct Image {
    text: Vec<u8>,
    lines: addr2line::Context<Slice>,
}

/// What was executed, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    /// All instructions.
    pub instructions: u64,
    /// TLB invalidations.
    pub tlbis: u64,
    /// DSBs.
    pub dsbs: u64,
    /// Atomic read-modify-writes: store-exclusives and the atomics of FEAT_LSE.
    pub atomics: u64,
    /// Of these, the ones that take a lock.
    pub locks: u64,
}

impl AddAssign for Kinds {
    fn add_assign(&mut self, other: Self) {
        self.instructions += other.instructions;
        self.tlbis += other.tlbis;
        self.dsbs += other.dsbs;
        self.atomics += other.atomics;
        self.locks += other.locks;
    }
}

impl Image {
    /// Reads the linked hypervisor.
    ///
    /// # Errors
    /// If the file is not there or has no debug information.
    pub fn load(elf: &Path) -> Result<Self> {
        let bytes = fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
        let file = object::File::parse(&*bytes)?;
        let text = file.section_by_name(".text").context("no .text")?.data()?.to_vec();
        let dwarf = Dwarf::load(|section| {
            let data = file.section_by_name(section.name()).and_then(|section| section.data().ok());
            Ok::<_, anyhow::Error>(Slice::new(Arc::from(data.unwrap_or_default()), LittleEndian))
        })?;
        Ok(Self { text, lines: addr2line::Context::from_dwarf(dwarf)? })
    }

    /// What a profile holds, by kind.
    pub fn kinds(&self, profile: &Profile) -> Kinds {
        let mut sum = Kinds::default();
        for (&pc, &count) in profile {
            let mut kinds = Kinds { instructions: count, ..Kinds::default() };
            match self.opcode(pc).map(Opcode::of) {
                Some(Opcode::Tlbi) => kinds.tlbis = count,
                Some(Opcode::Dsb) => kinds.dsbs = count,
                Some(Opcode::Atomic) => {
                    kinds.atomics = count;
                    kinds.locks = if self.frames(pc).iter().any(|name| is_lock(name)) { count } else { 0 };
                }
                _ => {}
            }
            sum += kinds;
        }
        sum
    }

    /// Instructions by function of ours, inlined ones apart; the most first.
    pub fn functions(&self, profile: &Profile) -> Vec<(String, u64)> {
        let mut sums = BTreeMap::<String, u64>::new();
        for (&pc, &count) in profile {
            *sums.entry(self.function(pc)).or_default() += count;
        }
        let mut list: Vec<_> = sums.into_iter().collect();
        list.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        list
    }

    fn opcode(&self, pc: u64) -> Option<u32> {
        let at = usize::try_from(pc).ok()?;
        Some(u32::from_le_bytes(*self.text.get(at..)?.first_chunk()?))
    }

    /// The functions that an instruction belongs to, the innermost inlined one first.
    fn frames(&self, pc: u64) -> Vec<String> {
        let mut names = Vec::new();
        if let Ok(mut frames) = self.lines.find_frames(pc).skip_all_loads() {
            while let Ok(Some(frame)) = frames.next() {
                names.extend(
                    frame.function.and_then(|function| function.demangle().map(|n| n.into_owned()).ok()),
                );
            }
        }
        names
    }

    /// The innermost function that is not of a library.
    fn function(&self, pc: u64) -> String {
        let frames = self.frames(pc);
        let own = frames.iter().find(|name| name.contains("tenure_"));
        own.or(frames.last()).map_or_else(|| "assembly (vectors, entry, exit)".to_owned(), |name| short(name))
    }
}

/// The kinds of instruction that are counted apart (Arm ARM DDI 0487 C4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opcode {
    Tlbi,
    Dsb,
    Atomic,
    Other,
}

impl Opcode {
    fn of(code: u32) -> Self {
        let is = |mask, value| code & mask == value;
        // SYS with CRn = 8.
        if is(0xfff8_f000, 0xd508_8000) {
            Self::Tlbi
        } else if is(0xffff_f0ff, 0xd503_309f) {
            Self::Dsb
        // STXR and STLXR of any size; LDADD, SWP and their like; CAS.
        } else if is(0x3fe0_0000, 0x0800_0000) || is(0x3f20_0c00, 0x3820_0000) || is(0x3fa0_7c00, 0x08a0_7c00)
        {
            Self::Atomic
        } else {
            Self::Other
        }
    }
}

/// The functions that take a lock: those of the crate `spin`.
fn is_lock(name: &str) -> bool {
    let of_spin = name.contains("spin::") || name.contains("spin[");
    of_spin && ["lock", "try_lock", "read", "write"].iter().any(|verb| name.ends_with(&format!("::{verb}")))
}

/// A path without hash, crate prefix and parameters: `mm::transition::run::freeze_table`.
fn short(name: &str) -> String {
    let mut text = String::new();
    let mut depth = 0_u32;
    for letter in name.chars() {
        match letter {
            '<' | '[' => depth += 1,
            '>' | ']' => depth = depth.saturating_sub(1),
            _ if depth == 0 => text.push(letter),
            _ => {}
        }
    }
    let parts: Vec<&str> =
        text.split("::").filter(|part| !part.is_empty() && *part != "{closure#0}").collect();
    parts.join("::").replace("tenure_", "").replace("::{{closure}}", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_are_told_apart() {
        for (code, kind) in [
            (0xd508_831f, Opcode::Tlbi),   // tlbi vmalle1is
            (0xd50c_8028, Opcode::Tlbi),   // tlbi ipas2e1is, x8
            (0xd503_3b9f, Opcode::Dsb),    // dsb ish
            (0xd503_3a9f, Opcode::Dsb),    // dsb ishst
            (0xd503_3fdf, Opcode::Other),  // isb
            (0xd503_3bbf, Opcode::Other),  // dmb ish
            (0xc809_fd6a, Opcode::Atomic), // stlxr w9, x10, [x11]
            (0x885f_fd6a, Opcode::Other),  // ldaxr w10, [x11]
            (0xc89f_fd6a, Opcode::Other),  // stlr x10, [x11]
            (0xf8e9_016a, Opcode::Atomic), // ldaddal x9, x10, [x11]
            (0xc8e9_fd6a, Opcode::Atomic), // casal x9, x10, [x11]
            (0xf869_696a, Opcode::Other),  // ldr x10, [x11, x9]
            (0xd50b_7e29, Opcode::Other),  // dc civac, x9
        ] {
            assert_eq!(Opcode::of(code), kind, "{code:#x}");
        }
    }

    #[test]
    fn locks_are_known_by_name() {
        assert!(is_lock("spin::mutex::ticket::TicketMutex<T,C,R>::lock"));
        assert!(!is_lock("<spin::mutex::ticket::TicketMutexGuard<T> as core::ops::drop::Drop>::drop"));
        assert!(!is_lock("tenure_mm::vm::Vm::unlock"));
    }

    #[test]
    fn paths_are_short() {
        let name = "tenure_mm::transition::run::<impl tenure_mm::manager::Mm<M>>::freeze_table";
        assert_eq!(short(name), "mm::transition::run::freeze_table");
    }
}
