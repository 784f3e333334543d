//! The settings of a group, and how a caller changes them.

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

/// A caller's change of a group's settings. A field that is absent or null changes nothing.
///
/// `expecting` is the type in the API's answer to a body that is no object: callers know it as a
/// group's request, beside `TurnRequest` and `CompactionRequest`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, expecting = "struct GroupRequest")]
pub struct SettingsPatch {
    /// See [`Settings::agent`].
    pub agent: Option<String>,
    /// See [`Settings::cwd`].
    pub cwd: Option<String>,
    /// See [`Settings::title`].
    pub title: Option<String>,
    /// See [`Settings::auto_compact`].
    pub auto_compact: Option<f64>,
    /// See [`Settings::permission_policy`].
    pub permission_policy: Option<PermissionPolicy>,
    /// See [`Settings::on_interrupt`].
    pub on_interrupt: Option<OnInterrupt>,
    /// See [`Settings::metadata`].
    pub metadata: Option<Json>,
}

impl Settings {
    /// Returns these settings with the fields that `patch` sets replaced.
    pub fn patched(&self, patch: SettingsPatch) -> Self {
        let old = self.clone();
        Self {
            agent: patch.agent.unwrap_or(old.agent),
            cwd: patch.cwd.or(old.cwd),
            title: patch.title.or(old.title),
            auto_compact: patch.auto_compact.or(old.auto_compact),
            permission_policy: patch.permission_policy.or(old.permission_policy),
            on_interrupt: patch.on_interrupt.or(old.on_interrupt),
            metadata: patch.metadata.or(old.metadata),
        }
    }

    /// Whether the change from `before` makes the present run outdated.
    pub(crate) fn invalidates_run(&self, before: &Self) -> bool {
        self.agent != before.agent || self.cwd != before.cwd
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn settings(value: &Value) -> Settings {
        serde_json::from_str(&value.to_string()).unwrap()
    }

    /// API-2: a change keeps the fields that it does not name, and a null names none.
    #[test]
    fn a_patch_replaces_the_fields_that_it_sets() {
        let old = json!({
            "agent": "a", "cwd": "/a", "title": "A", "auto_compact": 0.5,
            "permission_policy": "ask", "on_interrupt": "hold", "metadata": { "a": 1 },
        });
        let new = json!({
            "agent": "b", "cwd": "/b", "title": "", "auto_compact": 0.0,
            "permission_policy": { "default": "allow", "read": "reject" }, "on_interrupt": "auto",
            "metadata": [],
        });
        let bare = json!({ "agent": "a" });
        for (name, value) in new.as_object().unwrap() {
            for before in [&old, &bare] {
                let mut after = before.clone();
                after[name] = value.clone();
                for (patch, expected) in [
                    (json!({}), before),
                    (json!({ name: null }), before),
                    (json!({ name: value }), &after),
                ] {
                    let parsed: SettingsPatch = serde_json::from_str(&patch.to_string()).unwrap();
                    let patched = settings(before).patched(parsed);
                    assert_eq!(patched, settings(expected), "{patch} on {before}");
                }
            }
        }
        let refused = serde_json::from_str::<SettingsPatch>("7").unwrap_err().to_string();
        let expected = "invalid type: integer `7`, expected struct GroupRequest at line 1 column 1";
        assert_eq!(refused, expected);
        let whole: SettingsPatch = serde_json::from_str(&new.to_string()).unwrap();
        assert_eq!(settings(&old).patched(whole), settings(&new));
    }
}
