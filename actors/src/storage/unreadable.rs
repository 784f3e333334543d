//! Rows that cannot be understood. Each concerns one group: the others do not notice.

use std::{collections::BTreeMap, fmt};

use greenroom_core::GroupId;
use serde_json::error::Category;

use super::{GroupNo, StoreError};

/// The most rows of one group that are named; of further rows only the existence is kept.
const ROWS_MAX: usize = 16;

/// What is wrong with stored JSON, and where. The parser's own words quote the value, which may be
/// a prompt or a key: they must not get into the log or into an answer (RELIABILITY C16).
pub fn fault_in(err: &serde_json::Error) -> String {
    let what = match err.classify() {
        Category::Data => "it is JSON of another form",
        Category::Syntax => "it is no JSON",
        Category::Eof => "it is JSON without its end",
        Category::Io => "it could not be read",
    };
    format!("{what} (line {}, column {})", err.line(), err.column())
}

/// How the words about a row begin that is part of the log.
pub(super) const FRAMES: &str = "frames from";
pub(super) const BASE: &str = "the base";

/// A row of a group that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Unreadable {
    /// The group's number.
    pub group: GroupNo,
    /// Its name as it is stored, for the log.
    pub name: String,
    /// Which row, which column of it, and what is wrong there.
    pub what: String,
    /// Whether the group cannot work without the row.
    pub stops: bool,
}

impl Unreadable {
    /// What to do about it. The rows can be made from the log; the log from nothing.
    pub fn remedy(&self) -> String {
        let otherwise = "restore a backup, or purge the group";
        if [FRAMES, BASE].iter().any(|noun| self.what.starts_with(noun)) {
            return otherwise.to_owned();
        }
        // A name that is not known here is described.
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

/// What is wrong with rows, each told once: a row may have been read several times.
pub fn once(rows: Vec<Unreadable>) -> Vec<String> {
    let mut told = Vec::new();
    for row in rows {
        if !told.contains(&row.what) {
            told.push(row.what);
        }
    }
    told
}

/// What is known of a group some rows of which cannot be understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Broken {
    /// Whether the group cannot work.
    pub stops: bool,
    /// What is wrong, a row each.
    rows: Vec<String>,
    /// Whether there are more rows than are named.
    more: bool,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rows.join("; "))?;
        if self.more { f.write_str("; and more") } else { Ok(()) }
    }
}

/// The groups with rows that cannot be understood.
#[derive(Clone, Debug, Default)]
pub(super) struct BrokenGroups(pub BTreeMap<GroupNo, Broken>);

impl BrokenGroups {
    /// Takes in a row. True if it was not known and should be named in the log.
    pub fn take(&mut self, row: &Unreadable) -> bool {
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
        for what in ["frames from 7: text cannot be read", "the base: state cannot be read"] {
            assert_eq!(remedy(7, "work", what), "restore a backup, or purge the group");
        }
    }

    #[test]
    fn what_is_wrong_with_json_quotes_nothing_of_it() {
        let told = |text: &str| fault_in(&serde_json::from_str::<u8>(text).unwrap_err());
        assert_eq!(told("\"secret\""), "it is JSON of another form (line 1, column 8)");
        assert_eq!(told("{secret"), "it is JSON of another form (line 1, column 0)");
        assert_eq!(told("1 secret"), "it is no JSON (line 1, column 3)");
        assert_eq!(told(""), "it is JSON without its end (line 1, column 0)");
    }

    #[test]
    fn a_row_is_named_once_and_only_so_many_are() {
        let row = |n: usize, stops| Unreadable {
            group: 7,
            name: "work".into(),
            what: format!("task {n}"),
            stops,
        };
        let mut groups = BrokenGroups::default();
        assert!(groups.take(&row(0, false)) && !groups.take(&row(0, true)));
        assert!(groups.0[&7].stops, "what is known later counts");
        assert!((1..ROWS_MAX).all(|n| groups.take(&row(n, false))));
        assert_eq!(groups.0[&7].to_string().matches("task").count(), ROWS_MAX);
        assert!(!groups.take(&row(ROWS_MAX, false)));
        assert!(groups.0[&7].to_string().ends_with("; and more") && groups.0[&7].stops);
    }
}
