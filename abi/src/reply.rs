//! The one shape of an answer: status, pages done, first blocker, what blocks it.

use core::fmt;

macro_rules! statuses {
    ($( $(#[doc = $doc:literal])+ $name:ident = $value:literal, $c:ident; )+) => {
        /// Result of a call (x0, sign-extended).
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(i64)]
        pub enum Status { $( $(#[doc = $doc])+ $name = $value, )+ }

        impl Status {
            /// Reads a status back from x0.
            pub const fn from_raw(raw: u64) -> Option<Self> {
                match raw as i64 { $( $value => Some(Self::$name), )+ _ => None }
            }
        }

        /// Every status, for the generated C header.
        pub const STATUS_TABLE: &[crate::header::Constant] = &[
            $( crate::header::Constant {
                name: concat!("TENURE_", stringify!($c)),
                value: ($value as i64) as u64,
                doc: concat!($($doc),+),
            }, )+
        ];
    };
}

statuses! {
    /// Done as far as `done` says; where `done` is less than the count, call again for the rest.
    Success = 0, SUCCESS;
    /// No such call, or not on this machine.
    NotSupported = -1, NOT_SUPPORTED;
    /// An argument is malformed: alignment, zero, wrap, end of RAM, reserved bits, stale handle.
    Invalid = -3, INVALID;
    /// Wrong owner, state or address status: it will not pass by waiting.
    Denied = -4, DENIED;
    /// A pin stands in the way: its holder must let go.
    Busy = -5, BUSY;
    /// It will pass: a leaf that the host can drop, or a transition in flight.
    Retry = -6, RETRY;
    /// The pool is short of table memory: top it up and call again.
    NoMemory = -7, NO_MEMORY;
    /// The page is draining already: it becomes private at its last unpin.
    Pending = -8, PENDING;
    /// The frame has been poisoned and is never used again.
    Poisoned = -9, POISONED;
}

constants! { "TENURE_BLOCK_";
    /// The host's stage 2 may still map the page.
    HOST_LEAF = 1 << 0;
    /// An IOMMU table may still map the page.
    DMA_LEAF = 1 << 1;
    /// The host declared a CPU use that cannot be revoked now.
    CPU_PIN = 1 << 2;
    /// The host declared a DMA use that cannot be revoked now.
    DMA_PIN = 1 << 3;
    /// The hypervisor itself is reading or writing the page.
    HYP_PIN = 1 << 4;
    /// Another CPU is in the middle of a transition.
    FROZEN = 1 << 5;
    /// A guest's stage 2 may still map the page.
    GUEST_LEAF = 1 << 6;
    /// The page's state or owner, or the address's status, forbids it.
    STATE = 1 << 7;
    /// Nothing stands at this address.
    UNPOPULATED = 1 << 8;
    /// A counter of the page's word is at its limit.
    COUNT_LIMIT = 1 << 9;
    /// A vCPU or another call still uses the VM.
    VM_IN_USE = 1 << 10;
    /// The VM's pool is short of table memory.
    VM_POOL = 1 << 11;
    /// The host's own pool is short of table memory.
    HOST_POOL = 1 << 12;
}

/// What blocks a page: a set of the `TENURE_BLOCK_*` bits.
pub type Mask = u64;

/// Value of [`Reply::first`] when no page blocks.
pub const NO_INDEX: u64 = u64::MAX;

/// The answer of every call that names pages: x0 to x3.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Reply {
    /// x0: the verdict.
    pub status: Status,
    /// x1: pages done, from the start of the range.
    pub done: u64,
    /// x2: index in the range of the lowest page that blocks, or [`NO_INDEX`].
    pub first: u64,
    /// x3: what blocks that page.
    pub mask: Mask,
}

impl Reply {
    /// `done` pages were done and nothing blocks.
    pub const fn done(done: u64) -> Self {
        Self { status: Status::Success, done, first: NO_INDEX, mask: 0 }
    }

    /// Nothing was done, and no single page is to blame.
    pub const fn refused(status: Status) -> Self {
        Self { status, done: 0, first: NO_INDEX, mask: 0 }
    }

    /// Nothing was done because of page `first`, which `mask` blocks.
    pub const fn blocked(status: Status, first: u64, mask: Mask) -> Self {
        Self { status, done: 0, first, mask }
    }

    /// True for [`Status::Success`].
    pub const fn is_success(&self) -> bool {
        matches!(self.status, Status::Success)
    }

    /// The four result registers.
    pub const fn to_regs(self) -> [u64; 4] {
        [self.status as i64 as u64, self.done, self.first, self.mask]
    }

    /// Reads an answer back from the four result registers.
    pub const fn from_regs(regs: [u64; 4]) -> Option<Self> {
        match Status::from_raw(regs[0]) {
            Some(status) => Some(Self { status, done: regs[1], first: regs[2], mask: regs[3] }),
            None => None,
        }
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} done={}", self.status, self.done)?;
        if self.first != NO_INDEX {
            write!(f, " first={} mask={:#x}", self.first, self.mask)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_survives_the_registers() {
        let reply = Reply::blocked(Status::Busy, 2, CPU_PIN | DMA_PIN);
        assert_eq!(Reply::from_regs(reply.to_regs()), Some(reply));
    }

    #[test]
    fn unknown_status_is_not_read() {
        assert_eq!(Reply::from_regs([77, 0, 0, 0]), None);
        assert_eq!(Status::from_raw(-2i64 as u64), None);
    }
}
