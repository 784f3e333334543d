//! The kinds of an agent's tool calls: a permission request may name a call without its kind.

use std::collections::{HashMap, VecDeque};

/// The number of calls remembered (I11).
const CALLS_MAX: usize = 256;
/// The longest id and kind together.
const BYTES_MAX: usize = 1024;

/// The kinds of a run's newest tool calls.
#[derive(Debug, Default)]
pub struct ToolKinds {
    kinds: HashMap<String, String>,
    order: VecDeque<String>,
}

impl ToolKinds {
    /// Records the kind of a call.
    pub fn insert(&mut self, id: String, kind: String) {
        if id.len() + kind.len() > BYTES_MAX {
            return;
        }
        if self.kinds.insert(id.clone(), kind).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > CALLS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.kinds.remove(&oldest);
        }
    }

    /// Returns the kind of a call.
    pub fn kind(&self, id: &str) -> Option<&str> {
        self.kinds.get(id).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_calls_are_remembered() {
        let mut tools = ToolKinds::default();
        for number in 0..=CALLS_MAX {
            tools.insert(format!("{number}"), "read".into());
            tools.insert(format!("{number}"), "edit".into());
        }
        tools.insert("x".repeat(BYTES_MAX), "read".into());
        let kinds = [tools.kind("0"), tools.kind("1"), tools.kind(&CALLS_MAX.to_string())];
        assert_eq!(kinds, [None, Some("edit"), Some("edit")]);
        assert_eq!(tools.kinds.len(), CALLS_MAX);
    }
}
