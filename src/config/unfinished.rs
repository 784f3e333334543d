//! Keys that are read and checked, and whose feature this version does not have.
//!
//! Whoever builds one deletes its row. Until then an operator who sets it is told (I16).

use super::source::{Entry, Table, Value};

/// (section, key, value that asks for nothing this version would not do anyway).
const KEYS: [(&str, &str, Idle); 6] = [
    ("limits", "resident_agents", Idle::Never),
    ("defaults", "permission_policy", Idle::Word("reject")),
    ("defaults", "permission_timeout", Idle::Never),
    ("defaults", "on_interrupt", Idle::Word("continue")),
    ("defaults", "retry", Idle::Word("never")),
    ("defaults", "retry_base", Idle::Never),
];

/// When a key that was set asks for nothing.
#[derive(Clone, Copy)]
enum Idle {
    Never,
    Word(&'static str),
}

impl Idle {
    fn holds(self, value: &Value) -> bool {
        match (self, value) {
            (Idle::Word(word), Value::Text(text)) => word == text,
            _ => false,
        }
    }
}

/// A warning for every such key that somebody set.
pub fn warnings(layers: &Table) -> Vec<String> {
    KEYS.iter()
        .filter_map(|(section, key, idle)| warning(table(layers, section)?, section, key, *idle))
        .collect()
}

fn table<'a>(layers: &'a Table, name: &str) -> Option<&'a Table> {
    match layers.get(name) {
        Some(Entry { value: Value::Table(table), .. }) => Some(table),
        _ => None,
    }
}

fn warning(keys: &Table, section: &str, key: &str, idle: Idle) -> Option<String> {
    let entry = keys.get(key).filter(|entry| entry.at.is_set() && !idle.holds(&entry.value))?;
    Some(format!("{}: {key} in [{section}] has no effect in this version yet", entry.at))
}
