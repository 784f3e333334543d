//! Overlays the layers of the configuration key by key: the later layer wins.
//!
//! Knows sections and profiles, not the meaning of a value.

use super::{
    ConfigError,
    section::refuse_unknown,
    services::Services,
    source::{Entry, Origin, Table, Value},
};

/// Sections whose keys the environment can set.
const SECTIONS: [&str; 5] = ["server", "storage", "limits", "defaults", "otlp"];

/// All top-level tables of a file.
const TOP: [&str; 6] = ["server", "storage", "limits", "defaults", "otlp", "agents"];

/// `GREENROOM_…` variables that are not configuration keys, besides `GREENROOM_LOG…`.
const NOT_KEYS: [&str; 6] = [
    "GREENROOM_URL",
    "GREENROOM_TOKEN",
    "GREENROOM_RUN",
    "GREENROOM_DATA",
    "GREENROOM_CONFIG",
    "GREENROOM_BIN",
];

/// Returns the names of all keys of `[section]`, from the built-in file.
pub fn keys_of<'a>(known: &'a Table, section: &str) -> Vec<&'a str> {
    match known.get(section).map(|entry| &entry.value) {
        Some(Value::Table(table)) => table.keys().map(String::as_str).collect(),
        _ => Vec::new(),
    }
}

/// Overlays the user's keys over the built-in ones. A profile with its own command inherits nothing
/// from a built-in profile of the same name.
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

/// Overlays `GREENROOM_<SECTION>_<KEY>` over all layers; returns warnings of probable mistakes.
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
        if services.describe(name, text) && !is_key(known, rest) {
            warnings.push(format!(
                "{at}: ignored: not a key of the configuration; orchestrators set such variables \
                 for a service"
            ));
            continue;
        }
        if rest == "AGENTS" || rest.starts_with("AGENTS_") {
            return Err(ConfigError::at(&at, "agents can only be configured in the file"));
        }
        let Some((section, key)) = section_of(rest) else {
            warnings.push(format!("{at}: ignored: not a key of the configuration"));
            continue;
        };
        let Some(key) = key else {
            let keys = format!("keys of [{section}] are GREENROOM_{}_…", section.to_uppercase());
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

/// Returns the section that a variable's name begins with, and the key after it; no key if the
/// section is followed by anything but an underscore.
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

/// Sets one key of a section.
pub fn set(layers: &mut Table, section: &str, key: &str, at: Origin, value: Value) {
    if let Some(Value::Table(table)) = layers.get_mut(section).map(|entry| &mut entry.value) {
        table.insert(key.to_owned(), Entry { key_at: at.clone(), at, value });
    }
}

/// Parses a variable as the kind of value that `default` is. Text of another kind stays text, so
/// that reading the key reports the expected kind.
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

/// Parses `name=value,name=value`, the usual form for headers.
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

#[cfg(test)]
mod tests;
