//! Sets of steps, and how one that fails is made small.

use std::fmt::{self, Write};
use std::str::FromStr;

/// Numbers of steps, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps(Vec<u64>);

impl Steps {
    /// All up to and with `last`.
    pub fn up_to(last: u64) -> Self {
        Self((0..=last).collect())
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The last of them.
    pub fn last(&self) -> Option<u64> {
        self.0.last().copied()
    }

    /// Those up to and with `last`.
    pub fn until(&self, last: u64) -> Self {
        Self(self.0.iter().copied().filter(|step| *step <= last).collect())
    }

    /// All but the part number `part` of `parts` parts of about one size.
    fn without(&self, part: usize, parts: usize) -> Self {
        let edge = |part: usize| self.len() * part / parts;
        let (head, tail) = (&self.0[..edge(part)], &self.0[edge(part + 1)..]);
        Self([head, tail].concat())
    }

    /// Leaves out what is not needed to fail (delta debugging, Zeller's ddmin over complements): `fails` takes a set and says up to
    /// which step it was needed, if it failed; `None` ends the search.
    pub fn shorten<E>(
        mut self,
        mut fails: impl FnMut(&Self) -> Result<Option<Verdict>, E>,
    ) -> Result<Self, E> {
        let mut parts = 2;
        while self.len() > 1 {
            let mut shorter = None;
            for part in 0..parts {
                let trial = self.without(part, parts);
                match fails(&trial)? {
                    None => return Ok(self),
                    Some(Verdict::Fails(last)) => {
                        shorter = Some(trial.until(last));
                        break;
                    }
                    Some(Verdict::Passes) => {}
                }
            }
            match shorter {
                Some(shorter) => {
                    parts = (parts - 1).max(2).min(shorter.len().max(2));
                    self = shorter;
                }
                None if parts >= self.len() => break,
                None => parts = (parts * 2).min(self.len()),
            }
        }
        Ok(self)
    }
}

/// What came of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All went well.
    Passes,
    /// It failed at this step.
    Fails(u64),
}

impl fmt::Display for Steps {
    /// As the tester's `only=` takes it: `0-17,40`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self.0.chunk_by(|a, b| a + 1 == *b);
        for (index, run) in runs.enumerate() {
            if index > 0 {
                f.write_char(',')?;
            }
            match run {
                [one] => write!(f, "{one}")?,
                [first, .., last] => write!(f, "{first}-{last}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

impl FromStr for Steps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number =
            |text: &str| text.trim().parse::<u64>().map_err(|_| format!("`{text}` is no number of a step"));
        let mut steps = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                Some((first, last)) => steps.extend(number(first)?..=number(last)?),
                None => steps.push(number(part)?),
            }
        }
        steps.sort_unstable();
        steps.dedup();
        Ok(Self(steps))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(text: &str) -> Steps {
        text.parse().unwrap()
    }

    #[test]
    fn a_list_reads_as_it_is_written() {
        assert_eq!(steps("7,0-3,3,5").to_string(), "0-3,5,7");
        assert_eq!(Steps::up_to(4).to_string(), "0-4");
        assert!("a-b".parse::<Steps>().is_err());
    }

    #[test]
    fn what_is_not_needed_is_left_out() {
        let needed = [3, 70, 71, 500];
        let mut trials = 0;
        let short = Steps::up_to(999).shorten(|trial| {
            trials += 1;
            let fails = needed.iter().all(|step| trial.0.contains(step));
            Ok::<_, ()>(Some(if fails { Verdict::Fails(500) } else { Verdict::Passes }))
        });
        assert_eq!(short, Ok(steps("3,70-71,500")));
        assert!(trials < 200, "{trials} trials");
    }

    #[test]
    fn a_search_that_is_ended_keeps_what_it_has() {
        let mut trials = 0;
        let short = Steps::up_to(99).shorten(|_| {
            trials += 1;
            Ok::<_, ()>((trials < 2).then_some(Verdict::Fails(80)))
        });
        assert_eq!(short, Ok(steps("50-80")));
    }
}
