//! Keys that are read and checked, and whose feature this version does not have.
//!
//! Whoever builds one deletes its row. Until then an operator who sets it is told (I16).

use super::source::{Entry, Table, Value};

/// (section, key, value that asks for nothing this version would not do anyway).
const KEYS: [(&str, &str, Idle); 7] = [
    ("storage", "retention_days", Idle::Zero),
    ("limits", "resident_agents", Idle::Never),
    ("defaults", "permission_policy", Idle::Word("reject")),
    ("defaults", "permission_timeout", Idle::Never),
    ("defaults", "on_interrupt", Idle::Word("continue")),
    ("defaults", "retry", Idle::Word("never")),
    ("defaults", "retry_base", Idle::Never),
];

/// The same for every profile.
const AGENT_KEYS: [(&str, Idle); 2] =
    [("auto_compact", Idle::Zero), ("compaction", Idle::NotRotate)];

/// When a key that was set asks for nothing.
#[derive(Clone, Copy)]
enum Idle {
    Never,
    Zero,
    Word(&'static str),
    NotRotate,
}

impl Idle {
    fn holds(self, value: &Value) -> bool {
        match (self, value) {
            (Idle::Zero, Value::Integer(number)) => *number == 0,
            (Idle::Zero, Value::Float(number)) => *number == 0.0,
            (Idle::Word(word), Value::Text(text)) => word == text,
            (Idle::NotRotate, Value::Table(table)) => !matches!(
                table.get("strategy").map(|strategy| &strategy.value),
                Some(Value::Text(text)) if text == "rotate"
            ),
            _ => false,
        }
    }
}

/// A warning for every such key that somebody set.
pub fn warnings(layers: &Table) -> Vec<String> {
    let sections = KEYS
        .iter()
        .filter_map(|(section, key, idle)| warning(table(layers, section)?, section, key, *idle));
    let mut warnings: Vec<String> = sections.collect();
    for (agent, profile) in table(layers, "agents").into_iter().flatten() {
        let Value::Table(keys) = &profile.value else { continue };
        let title = format!("agents.{agent}");
        let found = AGENT_KEYS.iter().filter_map(|(key, idle)| warning(keys, &title, key, *idle));
        warnings.extend(found);
    }
    warnings
}

fn table<'a>(layers: &'a Table, name: &str) -> Option<&'a Table> {
    match layers.get(name) {
        Some(Entry { value: Value::Table(table), .. }) => Some(table),
        _ => None,
    }
}

fn warning(keys: &Table, section: &str, key: &str, idle: Idle) -> Option<String> {
    let entry = keys.get(key).filter(|entry| entry.at.is_set() && !idle.holds(&entry.value))?;
    let what = match idle {
        Idle::NotRotate => "strategy \"rotate\" of compaction",
        _ => key,
    };
    Some(format!("{}: {what} in [{section}] has no effect in this version yet", entry.at))
}
