//! The settings of a group.

use serde::{Deserialize, Serialize};

use crate::{Json, PermissionPolicy};

/// What a caller sets for a group. An absent setting follows the server's default.
///
/// A task uses the agent, directory and compaction strategy in force at its START, and a turn keeps
/// agent and directory to its end. The other settings are in force at once: for the next
/// permission, the next settlement, the next interruption.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The launch profile's name.
    pub agent: String,
    /// The agent's working directory, absolute.
    pub cwd: Option<String>,
    /// A title for people.
    pub title: Option<String>,
    /// The share of the context window at which the group orders a compaction; 0: never.
    pub auto_compact: Option<f64>,
    /// Who decides on permissions.
    pub permission_policy: Option<PermissionPolicy>,
    /// What happens to its queue after an interruption.
    pub on_interrupt: Option<OnInterrupt>,
    /// The caller's own data.
    pub metadata: Option<Json>,
}

/// What happens to a group's queue after a turn was interrupted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnInterrupt {
    /// It continues if the session is restored, except after two interruptions in a row.
    #[default]
    Auto,
    /// It waits for a caller's decision.
    Hold,
    /// It continues, also with an empty context.
    Continue,
}

impl Settings {
    /// Whether the change from `before` makes the present run outdated.
    pub(crate) fn invalidates_run(&self, before: &Self) -> bool {
        self.agent != before.agent || self.cwd != before.cwd
    }
}
