//! Conversions of a protected VM before it is active, and their place in its measurement: a page at a time, hashed in
//! parts, so that no entry to EL2 hashes more than 256 bytes.
//!
//! The page under way stands in [`Inner::measuring`] from before its conversion until its record is in the measurement;
//! meanwhile no other page of the VM is converted, and the VM does not become active. A page that changed hands while
//! it was hashed (its word tells: the version moves) is hashed from its start again.

use core::fmt;

use sha2::{Digest, Sha256};
use tenure_abi::reply::Reply;

use super::Seen;
use super::status::measure;
use crate::addr::{Gfn, Pfn};
use crate::machine::Machine;
use crate::manager::Mm;
use crate::stage2::guest::Cursor;
use crate::state::Refusal;
use crate::vm::{Inner, Vm};
use crate::word::Word;

/// Words that one step hashes.
const PART: usize = 32;
/// Words of a page.
const PAGE: usize = 512;

/// A page between the begin of its conversion and its record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Measuring {
    gfn: Gfn,
    to: u64,
    /// Nothing before the conversion is done.
    hash: Option<PageHash>,
}

/// The hash of a page, as far as it has come.
#[derive(Clone)]
struct PageHash {
    frame: Option<(Pfn, Word)>,
    /// The next word.
    next: usize,
    state: Sha256,
}

impl PartialEq for PageHash {
    fn eq(&self, other: &Self) -> bool {
        self.frame == other.frame && self.next == other.next
    }
}

impl Eq for PageHash {}

impl fmt::Debug for PageHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} up to word {}", self.frame, self.next)
    }
}

impl PageHash {
    fn new(frame: Option<(Pfn, Word)>) -> Self {
        Self { frame, next: 0, state: Sha256::new() }
    }
}

impl<M: Machine> Mm<'_, M> {
    /// One step of the conversion and measurement of a page; `convert` converts it. `None`: there is more to do.
    pub(super) fn convert_measured(
        &self,
        vm: &Vm,
        gfn: Gfn,
        to: u64,
        convert: impl FnOnce() -> Reply,
    ) -> Option<Reply> {
        {
            let mut inner = vm.lock();
            if vm.is_sealed() {
                return Some(Refusal::STATE.whole());
            }
            match &inner.measuring {
                Some(Measuring { gfn: at, to: what, hash: Some(_) }) if (*at, *what) == (gfn, to) => {
                    return self.measure_part(vm, &mut inner);
                }
                Some(_) => return Some(Refusal::FROZEN.whole()),
                None => inner.measuring = Some(Measuring { gfn, to, hash: None }),
            }
        }
        let reply = convert();
        let mut inner = vm.lock();
        if !reply.is_success() {
            inner.measuring = None;
            return Some(reply);
        }
        inner.measuring = Some(Measuring { gfn, to, hash: Some(PageHash::new(None)) });
        None
    }

    fn measure_part(&self, vm: &Vm, inner: &mut Inner) -> Option<Reply> {
        let Some(Measuring { gfn, to, hash: Some(hash) }) = &mut inner.measuring else { return None };
        let (gfn, to) = (*gfn, *to);
        let stands = match self.look(&mut Cursor::new(vm.root()?), gfn) {
            Ok(Seen::Frame { frame, word, .. }) => Some((frame, word)),
            Ok(Seen::Empty(_)) => None,
            // In the middle of a change.
            Err(_) => return None,
        };
        if stands != hash.frame {
            *hash = PageHash::new(stands);
        }
        let digest = match hash.frame {
            None => [0; 32],
            Some((frame, _)) if hash.next < PAGE => {
                for word in self.machine.read_words(frame, hash.next) {
                    hash.state.update(word.to_le_bytes());
                }
                hash.next += PART;
                return None;
            }
            Some(_) => hash.state.clone().finalize().into(),
        };
        inner.measuring = None;
        measure(inner, &[b"page", &gfn.0.to_le_bytes(), &to.to_le_bytes(), &digest]);
        Some(Reply::done(1))
    }
}
