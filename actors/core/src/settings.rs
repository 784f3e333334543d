//! What a caller may set about a group.

use serde::{Deserialize, Serialize};

use crate::Json;

/// A group's own settings; what is absent follows the server's defaults.
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
    /// `ask`, `allow` or `reject`.
    pub permission_policy: Option<String>,
    /// `auto`, `hold` or `continue`.
    pub on_interrupt: Option<String>,
    /// Whatever the caller keeps with the group.
    pub metadata: Option<Json>,
}

impl Settings {
    /// Whether an agent that was started under `before` is not the one to work any more.
    pub(crate) fn moves(&self, before: &Self) -> bool {
        self.agent != before.agent || self.cwd != before.cwd
    }
}
