//! Sums by name, with a limit on the names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How many names are kept (I11): agents choose those of their tools and models.
const NAMES_MAX: usize = 48;
/// Longer names are truncated.
const NAME_BYTES_MAX: usize = 64;
/// The name for all further names.
const OTHERS: &str = "_others";

/// A value for each of a limited number of names; further names share `_others`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bounded<T>(BTreeMap<String, T>);

/// Truncates a name to the length that is kept.
pub fn truncate_name(name: &str) -> &str {
    &name[..name.floor_char_boundary(NAME_BYTES_MAX)]
}

impl<T> Default for Bounded<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Clone + Default> Bounded<T> {
    /// A single name.
    pub fn one(name: &str, value: T) -> Self {
        Self(BTreeMap::from([(truncate_name(name).to_owned(), value)]))
    }

    /// Returns all names in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &T)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Returns the value of a name.
    pub fn get(&self, name: &str) -> Option<&T> {
        self.0.get(name)
    }

    /// Returns the value of a name for a change; that of `_others` if there are too many names.
    pub fn slot(&mut self, name: &str) -> &mut T {
        let name = truncate_name(name);
        let fits = self.0.len() < NAMES_MAX || self.0.contains_key(name);
        self.0.entry(if fits { name } else { OTHERS }.to_owned()).or_default()
    }

    /// Adds all values of `later`, name by name.
    pub fn merge(&mut self, later: &Self, add: impl Fn(&mut T, &T)) {
        for (name, value) in &later.0 {
            match self.0.get_mut(name) {
                Some(sum) => add(sum, value),
                None => add(self.slot(name), value),
            }
        }
    }

    /// Changes every value.
    pub fn for_each(&mut self, change: impl FnMut(&mut T)) {
        self.0.values_mut().for_each(change);
    }
}

/// Tokens that prompts spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tokens {
    /// Tokens that the model read.
    pub input: u64,
    /// Tokens that it wrote.
    pub output: u64,
    /// Of the tokens that it read, those from a cache.
    pub cached: u64,
}

impl Tokens {
    /// Returns what was spent since `earlier`, unless any count fell.
    pub(crate) fn since(&self, earlier: &Self) -> Option<Self> {
        Some(Self {
            input: self.input.checked_sub(earlier.input)?,
            output: self.output.checked_sub(earlier.output)?,
            cached: self.cached.checked_sub(earlier.cached)?,
        })
    }

    /// Adds later ones.
    pub fn add(&mut self, later: &Self) {
        self.input = self.input.saturating_add(later.input);
        self.output = self.output.saturating_add(later.output);
        self.cached = self.cached.saturating_add(later.cached);
    }
}

/// Counts of a tool's calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ToolUse {
    /// The number of calls.
    pub calls: u64,
    /// How many of the calls failed.
    pub failed: u64,
}

impl ToolUse {
    /// Adds later ones.
    pub fn add(&mut self, later: &Self) {
        self.calls += later.calls;
        self.failed += later.failed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// I11: any number of names uses a bounded row, and the sums are complete.
    #[test]
    fn further_names_are_counted_together() {
        let mut sums = Bounded::default();
        for number in 0..1000 {
            *sums.slot(&format!("{number:04}")) += 1_u64;
        }
        let mut others = Bounded::default();
        for number in 500..1500 {
            *others.slot(&format!("{number:04}")) += 1_u64;
        }
        sums.merge(&others, |sum, more| *sum += more);
        assert_eq!(sums.iter().len(), NAMES_MAX + 1);
        assert_eq!(sums.iter().map(|(_, count)| count).sum::<u64>(), 2000);
        assert_eq!(sums.slot(&"ä".repeat(100)), &1952);
        assert_eq!(Bounded::one(&"ä".repeat(100), 1).iter().next(), Some((&*"ä".repeat(32), &1)));
    }
}
