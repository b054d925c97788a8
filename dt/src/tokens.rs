//! The tokens of a checked tree's structure block, one after the other (DTSpec 5.4).

use crate::check::{BEGIN_NODE, END, END_NODE, HEADER, NOP, PROP, word};

/// A token with what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// A node begins; its name.
    Begin(&'a [u8]),
    /// A property: where its name stands in the strings, the name, the value.
    Prop(u32, &'a [u8], &'a [u8]),
    /// The node ends.
    End,
}

/// Walks a tree that [`check`](crate::check::check) has passed. Should it be another, the walk just ends early.
#[derive(Clone, Debug)]
pub struct Tokens<'a> {
    structure: &'a [u8],
    /// The strings block.
    pub strings: &'a [u8],
    at: usize,
}

impl<'a> Tokens<'a> {
    /// From the root node on.
    pub fn new(tree: &'a [u8]) -> Option<Self> {
        Some(Self { structure: block(tree, 8, 36)?, strings: block(tree, 12, 32)?, at: 0 })
    }

    /// The value of the property `name` of the node whose begin was the last token.
    pub fn peek_prop(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.clone()
            .map_while(|token| match token {
                Token::Prop(_, n, value) => Some((n, value)),
                _ => None,
            })
            .find_map(|(n, value)| (n == name).then_some(value))
    }
}

/// A block of the tree, by the places of its offset and its size in the header.
fn block(tree: &[u8], offset: usize, size: usize) -> Option<&[u8]> {
    let start = word(tree, offset)? as usize;
    tree.get(start..start.checked_add(word(tree, size)? as usize)?)
}

/// The entries of the reservation block: (address, size).
pub fn reservations(tree: &[u8]) -> impl Iterator<Item = (u64, u64)> + '_ {
    let start = word(tree, 16).map_or(HEADER, |v| v as usize);
    let number = |b: &[u8]| b.try_into().map_or(0, u64::from_be_bytes);
    let entries = tree.get(start..).unwrap_or_default().chunks_exact(16);
    entries.map(move |e| (number(&e[..8]), number(&e[8..]))).take_while(|e| *e != (0, 0))
}

/// The bytes up to a NUL.
fn string(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(..bytes.iter().position(|&b| b == 0)?)
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            let token = word(self.structure, self.at)?;
            self.at += 4;
            match token {
                BEGIN_NODE => {
                    let name = string(self.structure.get(self.at..)?)?;
                    self.at = (self.at + name.len() + 1).next_multiple_of(4);
                    return Some(Token::Begin(name));
                }
                PROP => {
                    let len = word(self.structure, self.at)? as usize;
                    let name_at = word(self.structure, self.at + 4)?;
                    let value = self.structure.get(self.at + 8..)?.get(..len)?;
                    self.at = (self.at + 8 + len).next_multiple_of(4);
                    return Some(Token::Prop(name_at, string(self.strings.get(name_at as usize..)?)?, value));
                }
                END_NODE => return Some(Token::End),
                NOP => {}
                END => return None,
                _ => return None,
            }
        }
    }
}
