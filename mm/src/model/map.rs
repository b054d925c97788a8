//! A map from numbers, of frames or addresses, that is cheap to copy and to compare with an older copy of itself: tests keep the
//! model as it was before each call, and a model of a thousand frames is copied as often as one of ten.

use alloc::collections::{BTreeMap, btree_map};
use alloc::sync::Arc;
use core::ops::{Index, Range};

/// Numbers that are copied together, once one of them changes.
const PART: u64 = 64;

/// A map whose copies share what did not change since.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Map<T>(BTreeMap<u64, Arc<BTreeMap<u64, T>>>);

impl<T> Default for Map<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Map<T> {
    /// What stands at a number.
    pub fn get(&self, at: &u64) -> Option<&T> {
        self.0.get(&(at / PART))?.get(at)
    }

    /// Whether something does.
    pub fn contains_key(&self, at: &u64) -> bool {
        self.get(at).is_some()
    }

    /// All, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&u64, &T)> {
        self.0.values().flat_map(|part| part.iter())
    }

    /// All numbers, in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &u64> {
        self.iter().map(|(at, _)| at)
    }

    /// All that stands, in the order of the numbers.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.iter().map(|(_, value)| value)
    }

    /// Those of a range of numbers, in order.
    pub fn range(&self, range: Range<u64>) -> impl DoubleEndedIterator<Item = (&u64, &T)> {
        let parts = self.0.range(range.start / PART..range.end.div_ceil(PART));
        parts.flat_map(move |(_, part)| part.range(range.clone()))
    }

    /// Those that stand in a part of which something was touched since `before` was copied from this map, each with what it was
    /// then.
    pub fn since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = (u64, Option<&'a T>, &'a T)> {
        let touched = |(number, part): &(&u64, &Arc<_>)| {
            before.0.get(*number).is_none_or(|was: &Arc<_>| !Arc::ptr_eq(was, part))
        };
        let parts = self.0.iter().filter(touched);
        parts.flat_map(|(_, part)| part.iter()).map(|(at, now)| (*at, before.get(at), now))
    }
}

impl<T: Clone> Map<T> {
    /// To change what stands at a number.
    pub fn get_mut(&mut self, at: &u64) -> Option<&mut T> {
        let part = self.0.get_mut(&(at / PART)).filter(|part| part.contains_key(at))?;
        Arc::make_mut(part).get_mut(at)
    }

    /// To change all, in the order of the numbers.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.values_mut().flat_map(|part| Arc::make_mut(part).values_mut())
    }

    fn part(&mut self, at: u64) -> &mut BTreeMap<u64, T> {
        Arc::make_mut(self.0.entry(at / PART).or_default())
    }

    /// Puts something at a number; returns what stood there.
    pub fn insert(&mut self, at: u64, value: T) -> Option<T> {
        self.part(at).insert(at, value)
    }

    /// Takes away what stands at a number.
    pub fn remove(&mut self, at: &u64) -> Option<T> {
        let part = self.0.get_mut(&(at / PART))?;
        let was = Arc::make_mut(part).remove(at);
        if part.is_empty() {
            self.0.remove(&(at / PART));
        }
        was
    }

    /// A number of which more is to be said.
    pub fn entry(&mut self, at: u64) -> btree_map::Entry<'_, u64, T> {
        self.part(at).entry(at)
    }
}

impl<T> Index<&u64> for Map<T> {
    type Output = T;

    fn index(&self, at: &u64) -> &T {
        &self.0[&(at / PART)][at]
    }
}

impl<T: Clone> Extend<(u64, T)> for Map<T> {
    fn extend<I: IntoIterator<Item = (u64, T)>>(&mut self, more: I) {
        more.into_iter().for_each(|(at, value)| {
            self.insert(at, value);
        });
    }
}

impl<T: Clone> FromIterator<(u64, T)> for Map<T> {
    fn from_iter<I: IntoIterator<Item = (u64, T)>>(all: I) -> Self {
        let mut map = Self::default();
        map.extend(all);
        map
    }
}

impl<'a, T> IntoIterator for &'a Map<T> {
    type Item = (&'a u64, &'a T);
    type IntoIter = alloc::boxed::Box<dyn Iterator<Item = Self::Item> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        alloc::boxed::Box::new(self.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_a_plain_map_holds() {
        let mut plain = BTreeMap::new();
        let mut map = Map::default();
        for step in 0..4000u64 {
            let at = step * step * 7919 % 257;
            if step % 3 == 0 {
                assert_eq!(map.remove(&at), plain.remove(&at));
            } else {
                assert_eq!(map.insert(at, step), plain.insert(at, step));
            }
            let range = at / 2..at;
            assert!(map.range(range.clone()).eq(plain.range(range)), "step {step}");
        }
        assert!(map.iter().eq(plain.iter()) && map.iter().rev().eq(plain.iter().rev()));
        assert_eq!(map, plain.clone().into_iter().collect());
        map.remove(plain.keys().next().unwrap());
        assert_ne!(map, plain.into_iter().collect());
    }

    #[test]
    fn what_changed_since_a_copy_is_among_what_is_told_and_the_copy_stays() {
        let mut map: Map<u64> = (0..320).map(|at| (at, 0)).collect();
        let before = map.clone();
        *map.get_mut(&100).unwrap() = 7;
        map.insert(999, 8);
        let told: Vec<_> = map.since(&before).collect();
        assert!(told.contains(&(100, Some(&0), &7)) && told.contains(&(999, None, &8)));
        assert_eq!(told.len() as u64, PART + 1);
        assert_eq!((before[&100], before.get(&999)), (0, None));
    }
}
