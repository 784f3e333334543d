//! Unreadable rows, and the groups that they break. Each concerns one group only.

use std::{collections::BTreeMap, fmt};

use greenroom_core::GroupId;
use serde_json::error::Category;

use super::{GroupNo, StoreError};

/// The most unreadable rows of one group that are named; further ones only set a flag.
const ROWS_MAX: usize = 16;

/// Describes what is wrong with stored JSON, and where. The parser's own message quotes the value,
/// which may be a prompt or a key: it must not get into the log or an answer (C16).
pub fn fault_in(err: &serde_json::Error) -> String {
    let what = match err.classify() {
        Category::Data => "it is JSON of another form",
        Category::Syntax => "it is no JSON",
        Category::Eof => "it is JSON without its end",
        Category::Io => "it could not be read",
    };
    format!("{what} (line {}, column {})", err.line(), err.column())
}

/// How the description of a row begins that is part of the log.
pub(super) const FRAMES: &str = "frames from";
pub(super) const CHECKPOINT: &str = "the checkpoint";

/// An unreadable row of a group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Unreadable {
    /// The group's number.
    pub group: GroupNo,
    /// The group's name as it is stored, for the log.
    pub name: String,
    /// The row, its column, and what is wrong there.
    pub what: String,
    /// Whether the group cannot work without the row.
    pub stops: bool,
}

impl Unreadable {
    /// What the operator must do. Rows can be rebuilt from the log; the log cannot.
    pub fn remedy(&self) -> String {
        let otherwise = "restore a backup, or purge the group";
        if [FRAMES, CHECKPOINT].iter().any(|noun| self.what.starts_with(noun)) {
            return otherwise.to_owned();
        }
        // A placeholder, if the name is unknown.
        let is_known = self.group != 0 && self.name.parse::<GroupId>().is_ok();
        let group = if is_known { &self.name } else { "GROUP" };
        format!("stop the server and run greenroom verify --repair {group}, {otherwise}")
    }
}

impl From<Unreadable> for StoreError {
    fn from(row: Unreadable) -> Self {
        Self::Unreadable(row)
    }
}

/// Returns the descriptions of rows without duplicates: a row may have been read several times.
pub fn once(rows: Vec<Unreadable>) -> Vec<String> {
    let mut seen = Vec::new();
    for row in rows {
        if !seen.contains(&row.what) {
            seen.push(row.what);
        }
    }
    seen
}

/// A group with unreadable rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokenGroup {
    /// Whether the group cannot work.
    pub stops: bool,
    /// What is wrong, one entry a row.
    rows: Vec<String>,
    /// Whether more rows are unreadable than are named.
    more: bool,
}

impl fmt::Display for BrokenGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rows.join("; "))?;
        if self.more { f.write_str("; and more") } else { Ok(()) }
    }
}

/// The groups with unreadable rows.
#[derive(Clone, Debug, Default)]
pub(super) struct BrokenGroups(pub BTreeMap<GroupNo, BrokenGroup>);

impl BrokenGroups {
    /// Adds a row. Returns true if it was unknown and has to be logged.
    pub fn insert(&mut self, row: &Unreadable) -> bool {
        let group = self.0.entry(row.group).or_default();
        group.stops |= row.stops;
        if group.rows.contains(&row.what) {
            return false;
        }
        if group.rows.len() == ROWS_MAX {
            group.more = true;
            return false;
        }
        group.rows.push(row.what.clone());
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_remedy_is_a_command_as_it_is_typed() {
        let remedy = |group, name: &str, what: &str| {
            Unreadable { group, name: name.into(), what: what.into(), stops: true }.remedy()
        };
        assert!(remedy(7, "work", "task 1: prompt").contains("verify --repair work, restore"));
        assert!(remedy(7, "number 7", "the group: id").contains("verify --repair GROUP, restore"));
        assert!(remedy(0, "unknown", "a row").contains("verify --repair GROUP, restore"));
        for what in ["frames from 7: text cannot be read", "the checkpoint: state cannot be read"] {
            assert_eq!(remedy(7, "work", what), "restore a backup, or purge the group");
        }
    }

    #[test]
    fn a_fault_in_json_quotes_nothing_of_it() {
        let fault = |text: &str| fault_in(&serde_json::from_str::<u8>(text).unwrap_err());
        assert_eq!(fault("\"secret\""), "it is JSON of another form (line 1, column 8)");
        assert_eq!(fault("{secret"), "it is JSON of another form (line 1, column 0)");
        assert_eq!(fault("1 secret"), "it is no JSON (line 1, column 3)");
        assert_eq!(fault(""), "it is JSON without its end (line 1, column 0)");
    }

    #[test]
    fn a_row_is_named_once_up_to_a_limit() {
        let row = |n: usize, stops| Unreadable {
            group: 7,
            name: "work".into(),
            what: format!("task {n}"),
            stops,
        };
        let mut groups = BrokenGroups::default();
        assert!(groups.insert(&row(0, false)) && !groups.insert(&row(0, true)));
        assert!(groups.0[&7].stops, "what is known later counts");
        assert!((1..ROWS_MAX).all(|n| groups.insert(&row(n, false))));
        assert_eq!(groups.0[&7].to_string().matches("task").count(), ROWS_MAX);
        assert!(!groups.insert(&row(ROWS_MAX, false)));
        assert!(groups.0[&7].to_string().ends_with("; and more") && groups.0[&7].stops);
    }
}
