//! Switches that drop calls of the manager before they reach the machine.

/// What is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mutation {
    /// TLBI IPAS2E1IS.
    SkipTlbiIpa,
    /// TLBI VMALLE1IS.
    SkipTlbiStage1,
    /// TLBI VMALLS12E1IS.
    SkipTlbiAll,
    /// DSB ISH.
    SkipDsbIsh,
    /// DSB ISHST.
    SkipDsbIshst,
    /// A whole scrub: contents and maintenance.
    SkipScrub,
    /// The maintenance of a scrub: the zeroes stay in dirty lines.
    SkipScrubClean,
    /// Clean to the point of coherency.
    SkipCleanPoc,
    /// Instruction-cache maintenance.
    SkipIcache,
    /// Zeroing of a new table.
    SkipZero,
    /// Selection of another VMID than the host's.
    SkipSelectVmid,
    /// Selection of the host's VMID.
    SkipRestoreVmid,
    /// The break of break-before-make: the write of an invalid descriptor over a valid one.
    SkipBreak,
}

/// Which calls of that sort.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Which {
    /// All of them.
    All,
    /// The one with this number from now on, from 0.
    Nth(u64),
}

#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Mutations {
    armed: Vec<(Mutation, Which, u64)>,
    dropped: u64,
}

impl Mutations {
    pub(super) fn arm(&mut self, mutation: Mutation, which: Which) {
        self.armed.push((mutation, which, 0));
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// True if this call is to be dropped. Counts it.
    pub(super) fn drops(&mut self, mutation: Mutation) -> bool {
        let mut drop = false;
        for (armed, which, seen) in &mut self.armed {
            if *armed == mutation {
                drop |= matches!(which, Which::All) || *which == Which::Nth(*seen);
                *seen += 1;
            }
        }
        self.dropped += u64::from(drop);
        drop
    }
}
