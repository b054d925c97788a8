//! The corpora once more, and some seconds of random bytes: what every test run does of the fuzzing.
//!
//! `TENURE_FUZZ_SECONDS` says how long the random part of each target takes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tenure_fuzz::TARGETS;

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

fn replay(name: &str) {
    let run = TARGETS.iter().find(|(target, _)| *target == name).expect("a target").1;
    let inputs = corpus(name);
    assert!(inputs.len() >= 10, "{name} has a corpus of {}", inputs.len());
    for (path, data) in &inputs {
        println!("{}", path.display());
        run(data);
    }
    // Inputs of the corpus with a few bytes changed, and new ones.
    let seconds = std::env::var("TENURE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut dice = Dice(0x7e57_ab1e);
    while Instant::now() < end {
        let mut data = inputs[dice.below(inputs.len())].1.clone();
        match dice.below(4) {
            0 => data = (0..dice.below(400)).map(|_| dice.next() as u8).collect(),
            1 => data.truncate(dice.below(data.len() + 1)),
            _ => (),
        }
        for _ in 0..dice.below(8) {
            let (at, value) = (dice.below(data.len().max(1)), dice.next() as u8);
            if let Some(byte) = data.get_mut(at) {
                *byte = value;
            }
        }
        println!("{data:02x?}");
        run(&data);
    }
}

/// A small generator (xorshift64): the same bytes every time.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 8) as usize % end
    }
}

#[test]
fn any_calls_break_no_promise() {
    replay("calls");
}

#[test]
fn any_actions_agree_with_the_model() {
    replay("actions");
}

#[test]
fn any_tree_is_refused_or_read() {
    replay("tree");
}
