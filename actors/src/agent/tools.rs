//! Of what kind an agent's tool calls are: it says so once, and a later request for permission may
//! name the call alone.

use std::collections::{HashMap, VecDeque};

/// So many calls are remembered (I11).
const CALLS_MAX: usize = 256;
/// Longer names are no tool call's.
const BYTES_MAX: usize = 1024;

/// What the run told of its tool calls, the newest only.
#[derive(Debug, Default)]
pub struct Tools {
    kinds: HashMap<String, String>,
    order: VecDeque<String>,
}

impl Tools {
    /// The call with this id is of this kind.
    pub fn tell(&mut self, id: String, kind: String) {
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

    /// The kind of the call with this id.
    pub fn kind(&self, id: &str) -> Option<&str> {
        self.kinds.get(id).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_calls_are_remembered() {
        let mut tools = Tools::default();
        for number in 0..=CALLS_MAX {
            tools.tell(format!("{number}"), "read".into());
            tools.tell(format!("{number}"), "edit".into());
        }
        tools.tell("x".repeat(BYTES_MAX), "read".into());
        let kinds = [tools.kind("0"), tools.kind("1"), tools.kind(&CALLS_MAX.to_string())];
        assert_eq!(kinds, [None, Some("edit"), Some("edit")]);
        assert_eq!(tools.kinds.len(), CALLS_MAX);
    }
}
