//! The log ring: the last [`SIZE`] bytes of what Tenure said.
//!
//! Writers take their place with one atomic addition and never wait; a reader that is overtaken sees newer text, never
//! a torn structure, since there is none.

use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Bytes that are kept.
pub const SIZE: usize = 16 << 10;

static BYTES: [AtomicU8; SIZE] = [const { AtomicU8::new(0) }; SIZE];
/// Bytes ever written.
static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// Appends to the ring.
pub struct Writer;

impl fmt::Write for Writer {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let start = WRITTEN.fetch_add(s.len() as u64, Ordering::Relaxed);
        for (at, byte) in (start..).zip(s.bytes()) {
            if let Some(slot) = BYTES.get(at as usize % SIZE) {
                slot.store(byte, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// Copies log text from `offset` on (bytes since the start of time; what has been overwritten is skipped) into `out`.
/// Returns how many bytes were copied and the offset to go on from.
pub fn log_read(offset: u64, out: &mut [u8]) -> (usize, u64) {
    let end = WRITTEN.load(Ordering::Relaxed);
    let start = offset.clamp(end.saturating_sub(SIZE as u64), end);
    let mut copied = 0;
    for (at, byte) in (start..end).zip(out.iter_mut()) {
        *byte = BYTES.get(at as usize % SIZE).map_or(0, |slot| slot.load(Ordering::Relaxed));
        copied += 1;
    }
    (copied, start + copied as u64)
}
