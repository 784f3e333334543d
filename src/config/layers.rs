//! Layers of the configuration laid over each other, key by key: later ones win.
//!
//! Knows sections and profiles, not what a value means.

use super::ConfigError;
use super::section::refuse_unknown;
use super::services::Services;
use super::source::{Entry, Origin, Table, Value};

/// Sections whose single keys the environment can set.
const SECTIONS: [&str; 5] = ["server", "storage", "limits", "defaults", "otlp"];

/// Everything that a file may have at its top.
const TOP: [&str; 6] = ["server", "storage", "limits", "defaults", "otlp", "agents"];

/// Variables of our name that are no configuration keys; `GREENROOM_LOG…` are none either.
const NOT_KEYS: [&str; 6] = [
    "GREENROOM_URL",
    "GREENROOM_TOKEN",
    "GREENROOM_RUN",
    "GREENROOM_DATA",
    "GREENROOM_CONFIG",
    "GREENROOM_BIN",
];

/// Names of the keys that `[section]` has in the built-in file, which has them all.
pub fn keys_of<'a>(known: &'a Table, section: &str) -> Vec<&'a str> {
    match known.get(section).map(|entry| &entry.value) {
        Some(Value::Table(table)) => table.keys().map(String::as_str).collect(),
        _ => Vec::new(),
    }
}

/// Puts the user's keys over the built-in ones. A profile that names its own command owes nothing
/// to a built-in one of the same name.
pub fn overlay(layers: &mut Table, known: &Table, user: Table) -> Result<(), ConfigError> {
    refuse_unknown("at the top level", &user, &TOP)?;
    for (name, entry) in user {
        let Value::Table(table) = entry.value else {
            let problem = format!("[{name}] must be a table, found {}", entry.value.kind());
            return Err(ConfigError::at(&entry.key_at, problem));
        };
        if name == "agents" {
            overlay_agents(layers, table);
            continue;
        }
        refuse_unknown(&format!("in [{name}]"), &table, &keys_of(known, &name))?;
        if let Some(Value::Table(below)) = layers.get_mut(&name).map(|entry| &mut entry.value) {
            below.extend(table);
        }
    }
    Ok(())
}

fn overlay_agents(layers: &mut Table, user: Table) {
    let Some(Value::Table(agents)) = layers.get_mut("agents").map(|entry| &mut entry.value) else {
        return;
    };
    for (name, mut entry) in user {
        if let (Value::Table(keys), Some(Entry { value: Value::Table(below), .. })) =
            (&mut entry.value, agents.get(&name))
            && !keys.contains_key("command")
        {
            for (key, value) in below {
                keys.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        agents.insert(name, entry);
    }
}

/// Puts `GREENROOM_<SECTION>_<KEY>` over everything; returns what looks like a slip.
pub fn overlay_environment(
    layers: &mut Table,
    known: &Table,
    environment: &[(String, String)],
) -> Result<Vec<String>, ConfigError> {
    let mut warnings = Vec::new();
    let services = Services::of(environment);
    for (name, text) in environment {
        let Some(rest) = name.strip_prefix("GREENROOM_") else { continue };
        if NOT_KEYS.contains(&name.as_str()) || rest == "LOG" || rest.starts_with("LOG_") {
            continue;
        }
        let at = Origin::Env(name.clone());
        if services.have(name, text) && !is_key(known, rest) {
            warnings.push(format!(
                "{at}: is not a key of the configuration, and was ignored: an orchestrator sets \
                 such variables for a service"
            ));
            continue;
        }
        if rest == "AGENTS" || rest.starts_with("AGENTS_") {
            return Err(ConfigError::at(&at, "agents are configured in the file only"));
        }
        let Some((section, key)) = section_of(rest) else {
            warnings.push(format!("{at}: is not a key of the configuration, and was ignored"));
            continue;
        };
        let Some(key) = key else {
            let keys = format!("a key of [{section}] is GREENROOM_{}_…", section.to_uppercase());
            return Err(ConfigError::at(&at, format!("unknown key; {keys}")));
        };
        let Some(default) = default_of(known, section, &key) else {
            let known = keys_of(known, section).join(", ");
            let problem = format!("unknown key {key:?} in [{section}]; known keys: {known}");
            return Err(ConfigError::at(&at, problem));
        };
        let value = from_text(&default.value, text, &at);
        set(layers, section, &key, at, value);
    }
    Ok(warnings)
}

/// The section that a variable's name begins with, and the key that follows; no key if anything but
/// an underscore follows the section.
fn section_of(rest: &str) -> Option<(&'static str, Option<String>)> {
    let section = SECTIONS.into_iter().find(|name| rest.starts_with(&name.to_uppercase()))?;
    let key = match &rest[section.len()..] {
        "" => Some(String::new()),
        key => key.strip_prefix('_').map(str::to_lowercase),
    };
    Some((section, key))
}

fn is_key(known: &Table, rest: &str) -> bool {
    section_of(rest).is_some_and(|(section, key)| {
        key.is_some_and(|key| default_of(known, section, &key).is_some())
    })
}

fn default_of<'a>(known: &'a Table, section: &str, key: &str) -> Option<&'a Entry> {
    match &known.get(section)?.value {
        Value::Table(table) => table.get(key),
        _ => None,
    }
}

pub fn set(layers: &mut Table, section: &str, key: &str, at: Origin, value: Value) {
    if let Some(Value::Table(table)) = layers.get_mut(section).map(|entry| &mut entry.value) {
        table.insert(key.to_owned(), Entry { key_at: at.clone(), at, value });
    }
}

/// Reads a variable as the kind of value that `default` is. Text that is no such value stays text,
/// so that the key itself says what it wants.
fn from_text(default: &Value, text: &str, at: &Origin) -> Value {
    let as_text = || Value::Text(text.to_owned());
    let number = text.trim();
    match default {
        Value::Integer(_) => number.parse().map_or_else(|_| as_text(), Value::Integer),
        Value::Float(_) => number.parse().map_or_else(|_| as_text(), Value::Float),
        Value::List(_) => Value::List(
            text.split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| Entry {
                    key_at: at.clone(),
                    at: at.clone(),
                    value: Value::Text(item.to_owned()),
                })
                .collect(),
        ),
        Value::Bool(_) => number.parse().map_or_else(|_| as_text(), Value::Bool),
        Value::Table(_) => table_of(text, at).map_or_else(as_text, Value::Table),
        Value::Text(_) | Value::Date => as_text(),
    }
}

/// `name=value,name=value`, as it is usual for headers.
fn table_of(text: &str, at: &Origin) -> Option<Table> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let value = Value::Text(value.trim().to_owned());
            Some((name.trim().to_owned(), Entry { key_at: at.clone(), at: at.clone(), value }))
        })
        .collect()
}
