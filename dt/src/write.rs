//! A device tree, written from front to back into a buffer.
//!
//! Why not a library: EL2 has no heap, and at the time of writing none that can add a node works without one. The
//! structure comes first, then the strings: those of the tree that is copied, unchanged, and new names behind them.

use arrayvec::ArrayVec;

use crate::check::{BEGIN_NODE, END, END_NODE, HEADER, MAGIC, PROP};

/// The buffer is too small, or there are too many new names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Writes one tree.
#[derive(Debug)]
pub struct Writer<'o, 's> {
    out: &'o mut [u8],
    at: usize,
    structure: usize,
    strings: &'s [u8],
    names: ArrayVec<(&'static str, u32), 24>,
    names_len: usize,
}

impl<'o, 's> Writer<'o, 's> {
    /// Begins a tree whose copied properties have their names in `strings`.
    pub fn new(
        out: &'o mut [u8],
        strings: &'s [u8],
        reservations: impl Iterator<Item = (u64, u64)>,
    ) -> Result<Self, Full> {
        let mut w = Self { out, at: HEADER, structure: 0, strings, names: ArrayVec::new(), names_len: 0 };
        for (address, size) in reservations.chain([(0, 0)]) {
            w.bytes(&address.to_be_bytes())?;
            w.bytes(&size.to_be_bytes())?;
        }
        w.structure = w.at;
        Ok(w)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Full> {
        let end = self.at.checked_add(bytes.len()).ok_or(Full)?;
        self.out.get_mut(self.at..end).ok_or(Full)?.copy_from_slice(bytes);
        self.at = end;
        Ok(())
    }

    fn word(&mut self, word: u32) -> Result<(), Full> {
        self.bytes(&word.to_be_bytes())
    }

    fn pad(&mut self) -> Result<(), Full> {
        let end = self.at.next_multiple_of(4);
        self.out.get_mut(self.at..end).ok_or(Full)?.fill(0);
        self.at = end;
        Ok(())
    }

    /// Begins a node.
    pub fn begin(&mut self, name: &[u8]) -> Result<(), Full> {
        self.word(BEGIN_NODE)?;
        self.bytes(name)?;
        self.bytes(&[0])?;
        self.pad()
    }

    /// Ends the node.
    pub fn end(&mut self) -> Result<(), Full> {
        self.word(END_NODE)
    }

    /// A property whose name is in the copied strings.
    pub fn copied(&mut self, name_at: u32, value: &[u8]) -> Result<(), Full> {
        self.word(PROP)?;
        self.word(u32::try_from(value.len()).map_err(|_| Full)?)?;
        self.word(name_at)?;
        self.bytes(value)?;
        self.pad()
    }

    /// A property of ours; the value is the parts, one after the other.
    pub fn property(&mut self, name: &'static str, parts: &[&[u8]]) -> Result<(), Full> {
        let name_at = self.name(name)?;
        self.word(PROP)?;
        self.word(u32::try_from(parts.iter().map(|p| p.len()).sum::<usize>()).map_err(|_| Full)?)?;
        self.word(name_at)?;
        for part in parts {
            self.bytes(part)?;
        }
        self.pad()
    }

    /// Place of a new name behind the copied strings.
    fn name(&mut self, name: &'static str) -> Result<u32, Full> {
        if let Some((_, at)) = self.names.iter().find(|(n, _)| *n == name) {
            return Ok(*at);
        }
        let at = u32::try_from(self.strings.len() + self.names_len).map_err(|_| Full)?;
        self.names.try_push((name, at)).map_err(|_| Full)?;
        self.names_len += name.len() + 1;
        Ok(at)
    }

    /// Ends the tree; gives its size in bytes.
    pub fn finish(mut self, boot_cpu: u32) -> Result<usize, Full> {
        self.word(END)?;
        let structure = self.at - self.structure;
        let strings_at = self.at;
        self.bytes(self.strings)?;
        for (name, _) in core::mem::take(&mut self.names) {
            self.bytes(name.as_bytes())?;
            self.bytes(&[0])?;
        }
        let total = self.at;
        let header = [
            MAGIC,
            total as u32,
            self.structure as u32,
            strings_at as u32,
            HEADER as u32,
            17,
            16,
            boot_cpu,
            (total - strings_at) as u32,
            structure as u32,
        ];
        self.at = 0;
        for field in header {
            self.word(field)?;
        }
        Ok(total)
    }
}
