//! Whether what came out of an interleaving may come out.

use tenure_mm::model::{Model, View};

use super::calls::{Answer, BASE, Call, World};

/// A call that has been made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Made {
    pub call: Call,
    pub answer: Answer,
    /// Calls that had ended when it began, by number.
    pub before: u32,
}

/// True if the calls, each at one moment between its begin and its end, explain all answers and the words. A call that
/// met a transition in flight counts as not made; it must have met one. A VM dies at one moment, and after it each of
/// its pages leaves it at one.
pub fn is_explained(world: World, model: &Model, calls: &[Made], views: &[View]) -> bool {
    let mut calls = calls.to_vec();
    for death in 0..calls.len() {
        if calls[death].call == Call::Destroy && calls[death].answer == Answer::Gone {
            // Pages that no call names leave together: nobody can tell.
            let is_named = |page: &u64| calls.iter().any(|made| made.call.names(*page));
            let (named, unnamed): (Vec<u64>, Vec<u64>) = (0..world.pages()).partition(is_named);
            let unnamed = unnamed.into_iter().fold(0, |pages, page| pages | 1 << page);
            for pages in named.into_iter().map(|page| 1 << page).chain([unnamed]) {
                let bit = 1 << calls.len();
                let before = 1 << death | calls[death].before;
                calls
                    .iter_mut()
                    .filter(|made| made.before >> death & 1 == 1)
                    .for_each(|made| made.before |= bit);
                calls.push(Made { call: Call::Retire(pages), answer: Answer::Gone, before });
            }
        }
    }
    explain(world, model, &calls, (1 << calls.len()) - 1, views)
}

fn explain(world: World, model: &Model, calls: &[Made], left: u32, views: &[View]) -> bool {
    if left == 0 {
        let slot = |vm| vm as u64;
        return (BASE..).zip(views).all(|(pfn, view)| View::of_frame(&model.frames[&pfn], slot) == *view);
    }
    (0..calls.len()).filter(|number| left >> number & 1 == 1).any(|number| {
        let made = &calls[number];
        if made.before & left != 0 {
            return false;
        }
        let rest = left & !(1 << number);
        if made.answer.is_interrupted()
            && overlaps(calls, number)
            && explain(world, model, calls, rest, views)
        {
            return true;
        }
        let mut next = model.clone();
        world.agrees(&mut next, made.call, made.answer) && explain(world, &next, calls, rest, views)
    })
}

/// True if some other call was under way while this one was.
fn overlaps(calls: &[Made], number: usize) -> bool {
    calls.iter().enumerate().any(|(other, made)| {
        let apart = calls[number].before >> other & 1 == 1 || made.before >> number & 1 == 1;
        other != number && !apart
    })
}
