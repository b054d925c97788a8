//! The model's frame, and a page word read by the layout that callers are shown: made comparable.

use tenure_abi::page::{self, State};

use super::Frame;

/// What of a frame is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the fields are the words of the design")]
pub struct View {
    pub state: Option<State>,
    /// Owner, by the slot that the test knows the VM by; 0 for none.
    pub owner: u64,
    pub host_leaf: bool,
    pub scrap: bool,
    pub guest_leaves: u64,
    pub dma_leaves: u64,
    pub cpu_pins: u64,
    pub dma_pins: u64,
    pub hyp_pins: u64,
    pub waiter: bool,
    pub frozen: bool,
}

impl View {
    /// Reads a word. A leaf or redirection of a `Host` frame means nothing.
    pub fn of_word(word: u64) -> Self {
        let state = State::of(word);
        let foreign = state != Some(State::Host);
        let owned = matches!(state, Some(State::Private | State::Shared | State::Draining | State::Hyp))
            || state == Some(State::Quarantine);
        Self {
            state,
            owner: if owned { page::OWNER.get(word) } else { 0 },
            host_leaf: foreign && page::HOST_LEAF.get(word) != 0,
            scrap: foreign && page::SCRAP.get(word) != 0,
            guest_leaves: page::GUEST_LEAVES.get(word),
            dma_leaves: page::DMA_LEAVES.get(word),
            cpu_pins: page::CPU_PINS.get(word),
            dma_pins: page::DMA_PINS.get(word),
            hyp_pins: page::HYP_PINS.get(word),
            waiter: page::WAITER.get(word) != 0,
            frozen: page::FROZEN.get(word) != 0,
        }
    }

    /// Reads a frame of the model; `slot_of` names its owner's slot.
    pub fn of_frame(frame: &Frame, slot_of: impl Fn(usize) -> u64) -> Self {
        let foreign = frame.state != State::Host;
        Self {
            state: Some(frame.state),
            owner: frame.owner.map_or(0, slot_of),
            host_leaf: foreign && frame.host_leaf,
            scrap: foreign && frame.scrap,
            guest_leaves: frame.guest_leaves,
            dma_leaves: frame.dma_leaves,
            cpu_pins: frame.cpu_pins,
            dma_pins: frame.dma_pins,
            hyp_pins: frame.hyp_pins,
            waiter: frame.waiter,
            frozen: false,
        }
    }
}
