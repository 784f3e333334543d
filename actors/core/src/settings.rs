//! What a caller may set about a group.

use serde::{Deserialize, Serialize};

use crate::{Json, PermissionPolicy};

/// A group's own settings; what is absent follows the server's defaults.
///
/// A task takes agent, directory and the way to compact as they are at its START, and a turn keeps
/// agent and directory to its end. The others hold from the moment on that they are set: the next
/// permission that is asked for, the next settlement, the next turn that is cut off.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The launch profile's name.
    pub agent: String,
    /// The agent's working directory, absolute.
    pub cwd: Option<String>,
    /// A name for people.
    pub title: Option<String>,
    /// The share of the context window at which a compaction is ordered; 0 turns it off.
    pub auto_compact: Option<f64>,
    /// Who decides on what its agent asks for.
    pub permission_policy: Option<PermissionPolicy>,
    /// What becomes of its queue after a turn was cut off.
    pub on_interrupt: Option<OnInterrupt>,
    /// Whatever the caller keeps with the group.
    pub metadata: Option<Json>,
}

/// What becomes of a group's queue after a turn was cut off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnInterrupt {
    /// It goes on if the session could be taken up again; but not after two in a row.
    #[default]
    Auto,
    /// It waits for somebody to decide.
    Hold,
    /// It goes on, with an empty context if need be.
    Continue,
}

impl Settings {
    /// Whether a run that was started under `before` is outdated.
    pub(crate) fn moves(&self, before: &Self) -> bool {
        self.agent != before.agent || self.cwd != before.cwd
    }
}
