//! What the plugin (`assets/watch.c`) tells, 32 bytes an event.

/// Bytes of an event.
pub const SIZE: usize = 32;

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The entry at `at` was stored.
    Write {
        /// Its physical address.
        at: u64,
        /// The descriptor.
        value: u64,
    },
    /// A table is sent, entry by entry: those that are zero are left out.
    Page {
        /// Its physical address.
        page: u64,
        /// Its level.
        level: u32,
    },
    /// An entry of the table that is being sent.
    Entry {
        /// Its physical address.
        at: u64,
        /// The descriptor.
        value: u64,
    },
    /// A TLB invalidation was issued.
    Tlbi {
        /// The instruction without its register.
        code: u32,
        /// The register.
        value: u64,
    },
    /// A DSB.
    Dsb {
        /// CRm: domain and types of access.
        option: u64,
    },
    /// VTTBR_EL2 was written.
    Vttbr(u64),
    /// EL2 was left.
    Eret,
    /// The program in the machine marks a step.
    Step(u64),
    /// As `Page`, to be compared with what the log says.
    Same {
        /// Its physical address.
        page: u64,
    },
}

/// An event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// The CPU.
    pub cpu: usize,
    /// What it did.
    pub kind: Kind,
    /// Where in the program, if the plugin says so.
    pub pc: u64,
}

impl Event {
    /// Reads an event; `None` for one that is malformed.
    pub fn read(bytes: &[u8; SIZE]) -> Option<Self> {
        let mut words = bytes
            .chunks_exact(8)
            .map(|word| word.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
        let (head, at, value, pc) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let kind = match head as u32 {
            1 => Kind::Write { at, value },
            2 => Kind::Page { page: at, level: value as u32 },
            3 => Kind::Entry { at, value },
            4 => Kind::Tlbi { code: at as u32, value },
            5 => Kind::Dsb { option: value },
            6 => Kind::Vttbr(value),
            7 => Kind::Eret,
            8 => Kind::Step(value),
            9 => Kind::Same { page: at },
            _ => return None,
        };
        Some(Self { cpu: (head >> 32) as usize, kind, pc })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_four_little_endian_words() {
        let mut bytes = [0; SIZE];
        bytes[0] = 1;
        bytes[4] = 3;
        bytes[9] = 0x12;
        bytes[16] = 7;
        bytes[24] = 9;
        let expected = Event { cpu: 3, kind: Kind::Write { at: 0x1200, value: 7 }, pc: 9 };
        assert_eq!(Event::read(&bytes), Some(expected));
        bytes[0] = 99;
        assert_eq!(Event::read(&bytes), None);
    }
}
