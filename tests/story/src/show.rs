//! How words and answers are shown.

use tenure_abi::page::{self, State};
use tenure_abi::{Reply, reply};

/// A page word in words.
pub fn word(word: u64) -> String {
    let Some(state) = State::of(word) else { return format!("{word:#x}") };
    let mut text = format!("{state:?}");
    let owner = page::OWNER.get(word);
    if owner != 0 {
        text += &format!("(vm {owner})");
    }
    let flags = [
        (page::FROZEN, "frozen"),
        (page::WAITER, "waiter"),
        (page::HOST_LEAF, "host-leaf"),
        (page::SCRAP, "scrap"),
        (page::SCRUB, "scrub"),
    ];
    for (field, name) in flags {
        if field.get(word) != 0 {
            text += &format!(" {name}");
        }
    }
    let counts = [
        (page::GUEST_LEAVES, "guest-leaves"),
        (page::CPU_PINS, "cpu-pins"),
        (page::DMA_PINS, "dma-pins"),
        (page::HYP_PINS, "hyp-pins"),
    ];
    for (field, name) in counts {
        let count = field.get(word);
        if count != 0 {
            text += &format!(" {name}={count}");
        }
    }
    text
}

/// A mask of blockers in words.
pub fn mask(mask: u64) -> String {
    let names: Vec<&str> = reply::TABLE
        .iter()
        .filter(|constant| mask & constant.value != 0)
        .map(|constant| constant.name.trim_start_matches("TENURE_BLOCK_"))
        .collect();
    if names.is_empty() { "nothing".into() } else { names.join("+") }
}

/// An answer in words.
pub fn answer(reply: &Reply) -> String {
    let mut text = format!("{:?} done={}", reply.status, reply.done);
    if reply.first != tenure_abi::NO_INDEX {
        text += &format!(" first={} blocked-by={}", reply.first, mask(reply.mask));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_masks_are_spelled_out() {
        let shared = page::CPU_PINS.set(page::OWNER.set(State::Shared as u64, 3), 2);
        assert_eq!(word(shared), "Shared(vm 3) cpu-pins=2");
        assert_eq!(mask(reply::CPU_PIN | reply::FROZEN), "CPU_PIN+FROZEN");
        assert_eq!(mask(0), "nothing");
    }
}
