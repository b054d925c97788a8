//! A node of the walk: its properties, and the cells that its children's addresses have.

use arrayvec::ArrayVec;

use crate::check::MAX_DEPTH;
use crate::tokens::{Token, Tokens};

/// A node: its name, and its properties to look at.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    pub name: &'a [u8],
    pub properties: Tokens<'a>,
}

/// The nodes from the root to the current one, which is last.
pub type Path<'a> = ArrayVec<Node<'a>, MAX_DEPTH>;

impl<'a> Node<'a> {
    /// The name, for messages.
    pub fn title(&self) -> &'a str {
        match core::str::from_utf8(self.name) {
            Ok("") | Err(_) => "/",
            Ok(name) => name,
        }
    }

    pub fn property(&self, name: &str) -> Option<&'a [u8]> {
        self.properties.peek_prop(name.as_bytes())
    }

    pub fn has(&self, name: &str) -> bool {
        self.property(name).is_some()
    }

    /// A string property, without its NUL.
    pub fn text(&self, name: &str) -> Option<&'a str> {
        core::str::from_utf8(self.property(name)?.split(|&b| b == 0).next()?).ok()
    }

    /// A number of one or two cells.
    pub fn number(&self, name: &str) -> Option<u64> {
        number(self.property(name)?)
    }

    /// Bytes of an address and of a size of the node's children (DTSpec 2.3.5).
    pub fn cells(&self) -> (usize, usize) {
        let count = |name, default| self.number(name).map_or(default, |v| v as usize * 4);
        (count("#address-cells", 8), count("#size-cells", 4))
    }

    /// `status` is absent or says that the device works (DTSpec 2.3.4).
    pub fn is_enabled(&self) -> bool {
        matches!(self.text("status"), None | Some("okay" | "ok"))
    }
}

/// The properties that say what a node is.
#[derive(Clone, Copy, Default)]
pub struct Nature<'a> {
    compatible: &'a [u8],
    pub device_type: &'a [u8],
    /// Other nodes name it as what translates their addresses (`#iommu-cells`).
    pub is_iommu: bool,
}

impl<'a> Nature<'a> {
    /// One look at the node's properties: most nodes are none of ours.
    pub fn of(node: &Node<'a>) -> Self {
        let mut nature = Self::default();
        for token in node.properties.clone() {
            match token {
                Token::Prop(_, b"compatible", value) => nature.compatible = value,
                Token::Prop(_, b"device_type", value) => nature.device_type = value,
                Token::Prop(_, b"#iommu-cells", _) => nature.is_iommu = true,
                Token::Prop(..) => {}
                Token::Begin(_) | Token::End => break,
            }
        }
        nature
    }

    pub fn is(&self, names: &[&str]) -> bool {
        self.compatible.split(|&b| b == 0).any(|c| names.iter().any(|n| n.as_bytes() == c))
    }
}

/// A big-endian number of one or two cells.
pub fn number(bytes: &[u8]) -> Option<u64> {
    match bytes.len() {
        4 => Some(u64::from(u32::from_be_bytes(bytes.try_into().ok()?))),
        8 => Some(u64::from_be_bytes(bytes.try_into().ok()?)),
        _ => None,
    }
}
