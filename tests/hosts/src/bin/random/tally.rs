//! How often each kind of step was taken and what came of it: a tester whose steps are all refused tests nothing.

use alloc::vec::Vec;
use core::mem::{Discriminant, discriminant};

use tenure_test_rt::note;

use crate::op::{Op, Order};

/// Steps, and what was done and refused, by kind.
#[derive(Debug, Default)]
pub struct Tally(Vec<Row>);

#[derive(Debug)]
struct Row {
    op: Op,
    kind: (Discriminant<Op>, Option<Discriminant<Order>>),
    counts: [u64; 3],
}

impl Tally {
    /// A step was taken; so much was done and refused in it.
    pub fn add(&mut self, op: Op, [done, refused]: [u64; 2]) {
        let order = if let Op::Guest { order, .. } = op { Some(discriminant(&order)) } else { None };
        let kind = (discriminant(&op), order);
        let row = match self.0.iter_mut().position(|row| row.kind == kind) {
            Some(at) => self.0.get_mut(at),
            None => {
                self.0.push(Row { op, kind, counts: [0; 3] });
                self.0.last_mut()
            }
        };
        for (sum, more) in row.into_iter().flat_map(|row| &mut row.counts).zip([1, done, refused]) {
            *sum += more;
        }
    }

    /// Tells all, one line a kind.
    pub fn tell(&self) {
        for Row { op, counts: [steps, done, refused], .. } in &self.0 {
            let text = match op {
                Op::Guest { order, .. } => alloc::format!("{order:?}"),
                op => alloc::format!("{op:?}"),
            };
            let name = text.split(' ').next().unwrap_or("");
            note!("{name}: {steps} steps, {done} done, {refused} refused");
        }
    }
}
