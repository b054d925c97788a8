//! The page word as QUERY shows it (x4): one 64-bit value a frame.
//!
//! The hypervisor keeps exactly this layout in memory, so that what a caller is shown is what decides.

/// Position and width of one field of the word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// Lowest bit.
    pub shift: u32,
    /// Number of bits.
    pub bits: u32,
}

impl Field {
    /// Field of `bits` bits from bit `shift` up.
    pub const fn new(shift: u32, bits: u32) -> Self {
        Self { shift, bits }
    }
    /// Largest value that fits.
    pub const fn max(self) -> u64 {
        (1 << self.bits) - 1
    }
    /// The field's bits in place.
    pub const fn mask(self) -> u64 {
        self.max() << self.shift
    }
    /// Reads the field.
    pub const fn get(self, word: u64) -> u64 {
        (word >> self.shift) & self.max()
    }
    /// Replaces the field; bits of `value` that do not fit are dropped.
    pub const fn set(self, word: u64, value: u64) -> u64 {
        (word & !self.mask()) | ((value & self.max()) << self.shift)
    }
}

/// State of the frame, see [`State`].
pub const STATE: Field = Field::new(0, 3);
/// A transition is under way on some CPU.
pub const FROZEN: Field = Field::new(3, 1);
/// A vCPU waits for the page to drain.
pub const WAITER: Field = Field::new(4, 1);
/// The host's stage 2 may map the frame (meaningful outside state `Host` only).
pub const HOST_LEAF: Field = Field::new(5, 1);
/// The host's stage 2 may map the VM's scrap frame at this frame's address.
pub const SCRAP: Field = Field::new(6, 1);
/// The frame must be scrubbed before it goes back to the host.
pub const SCRUB: Field = Field::new(7, 1);
/// Reserved by firmware or by the host's device tree: stays with the host for ever.
pub const FIRMWARE: Field = Field::new(8, 1);
/// VM slot that owns the frame; 0 for the host, the hypervisor, or nobody.
pub const OWNER: Field = Field::new(9, 8);
/// Guest stage-2 entries that may map the frame.
pub const GUEST_LEAVES: Field = Field::new(17, 8);
/// IOMMU entries that may map the frame.
pub const DMA_LEAVES: Field = Field::new(25, 6);
/// CPU pins of the host.
pub const CPU_PINS: Field = Field::new(31, 10);
/// DMA pins of the host.
pub const DMA_PINS: Field = Field::new(41, 6);
/// Pins of the hypervisor itself.
pub const HYP_PINS: Field = Field::new(47, 4);
/// Moves whenever a guest leaf of the frame is made or removed.
pub const VERSION: Field = Field::new(51, 13);

/// Every field with its C name, for the generated header.
pub const FIELDS: &[(&str, Field)] = &[
    ("STATE", STATE),
    ("FROZEN", FROZEN),
    ("WAITER", WAITER),
    ("HOST_LEAF", HOST_LEAF),
    ("SCRAP", SCRAP),
    ("SCRUB", SCRUB),
    ("FIRMWARE", FIRMWARE),
    ("OWNER", OWNER),
    ("GUEST_LEAVES", GUEST_LEAVES),
    ("DMA_LEAVES", DMA_LEAVES),
    ("CPU_PINS", CPU_PINS),
    ("DMA_PINS", DMA_PINS),
    ("HYP_PINS", HYP_PINS),
    ("VERSION", VERSION),
];

macro_rules! states {
    ($( $(#[doc = $doc:literal])+ $name:ident = $value:literal, $c:ident; )+) => {
        /// State of a page frame.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u8)]
        pub enum State { $( $(#[doc = $doc])+ $name = $value, )+ }

        impl State {
            /// Reads the state of a word; `None` for the one unused encoding.
            pub const fn of(word: u64) -> Option<Self> {
                match STATE.get(word) { $( $value => Some(Self::$name), )+ _ => None }
            }
            /// All states.
            pub const ALL: &[Self] = &[$(Self::$name),+];
        }

        /// Every state, for the generated C header.
        pub const STATE_TABLE: &[crate::header::Constant] = &[
            $( crate::header::Constant {
                name: concat!("TENURE_STATE_", stringify!($c)),
                value: $value,
                doc: concat!($($doc),+),
            }, )+
        ];
    };
}

states! {
    /// The host's; counts as mapped in the host's stage 2.
    Host = 0, HOST;
    /// A guest's; no one else reaches it.
    Private = 1, PRIVATE;
    /// A guest's; the host may map and pin it.
    Shared = 2, SHARED;
    /// A guest's; becomes private at the last unpin.
    Draining = 3, DRAINING;
    /// Nobody's; goes back to the host when unpinned and scrubbed.
    Quarantine = 4, QUARANTINE;
    /// The hypervisor's.
    Hyp = 5, HYP;
    /// Broken memory; never used again.
    Poison = 6, POISON;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_fill_the_word_without_overlap() {
        let mut seen = 0u64;
        for (name, field) in FIELDS {
            assert_eq!(seen & field.mask(), 0, "{name} overlaps");
            seen |= field.mask();
        }
        assert_eq!(seen, u64::MAX);
    }
}
