//! Why a task does not move, and the text that says so. Sends no request and writes nothing.

use std::time::Duration;

use greenroom_core::{Blocked, HoldReason, Timestamp};

/// Why a task, or the next task of a group, does not move.
///
/// Two reasons are equal if they have the same text at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Other tasks of the group run first.
    Tasks {
        group: String,
        /// How many.
        before: u64,
        /// Why the first of them does not move, if it does not.
        first: Option<Box<Reason>>,
    },
    /// The server has no slot for it.
    Slot {
        /// How many slots the server has.
        total: Option<u64>,
        /// Whether the server shuts down.
        drains: bool,
    },
    /// Its agent is not ready.
    Agent {
        /// How many places the server has for agents, if all are in use and a run waits for one.
        full: Option<u64>,
    },
    /// The last attempt failed, and the next one waits.
    Backoff {
        group: String,
        until: Option<Timestamp>,
        /// What the last attempt failed with.
        error: Option<String>,
        /// Whether the group's agent failed repeatedly, so that `resume` ends the wait.
        degraded: bool,
    },
    /// The agent wants a login.
    Login {
        group: String,
        /// The launch profile.
        agent: Option<String>,
        /// When the agent is started again by itself.
        until: Option<Timestamp>,
        /// What the agent answered.
        error: Option<String>,
    },
    Paused {
        group: String,
    },
    Held {
        group: String,
        why: Option<HoldReason>,
    },
    /// Another holder has the session's lock.
    Lock {
        /// The holder; `None` if the lock is free by now. The end of its lease moves with each
        /// renewal, and would make it another reason.
        held: Option<String>,
    },
    /// The database refuses commits.
    Storage {
        /// The server's word for the cause.
        cause: Option<String>,
    },
    /// The agent asks a question.
    Permission {
        id: String,
        /// What the agent wants to do.
        title: Option<String>,
        /// The ids of the options, one of which is the answer.
        options: Vec<String>,
    },
    /// The agent has the prompt and writes nothing.
    Works,
    /// A word of `blocked_by` that this client does not know.
    Other(String),
}

/// The value of a task's or a group's `blocked_by`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockedBy {
    Known(Blocked),
    /// The word of a server that knows more of them.
    Unknown(String),
}

impl BlockedBy {
    /// Reads the field; `None` if it is null.
    pub fn read(field: &serde_json::Value) -> Option<Self> {
        let word = field.as_str()?;
        Some(match serde_json::from_value(field.clone()) {
            Ok(blocked) => Self::Known(blocked),
            Err(_) => Self::Unknown(word.to_owned()),
        })
    }
}

impl Reason {
    /// Whether the turn moves as far as greenroom can see: only a terminal shows this.
    pub fn is_progress(&self) -> bool {
        *self == Self::Works
    }

    /// Returns the reason in words. `program` is how a person calls this program for the same
    /// server.
    pub fn text(&self, program: &str, now: Timestamp) -> String {
        match self {
            Self::Tasks { group, before, first } => {
                let (tasks, it) = match before {
                    1 => ("1 task is".to_owned(), "it"),
                    count => (format!("{count} tasks are"), "the first of them"),
                };
                let text = format!("{tasks} before this one in group \"{group}\"");
                match first {
                    Some(first) => format!("{text}; {it} waits: {}", first.text(program, now)),
                    None => text,
                }
            }
            Self::Slot { drains: true, .. } => {
                "the server shuts down; the task stays queued for its next start".to_owned()
            }
            Self::Slot { total: Some(total), .. } => {
                format!("all {total} slots of the server for running tasks are in use")
            }
            Self::Slot { total: None, .. } => {
                "all slots of the server for running tasks are in use".to_owned()
            }
            Self::Agent { full: Some(places) } => {
                format!("the agent is starting, or all {places} places for agents are in use")
            }
            Self::Agent { full: None } => "the agent is starting".to_owned(),
            Self::Backoff { group, until, error, degraded } => {
                backoff(program, now, group, *until, error.as_deref(), *degraded)
            }
            Self::Login { group, agent, until, error } => {
                login(program, now, group, agent.as_deref(), *until, error.as_deref())
            }
            Self::Paused { group } => {
                format!("group \"{group}\" is paused; resume it with: {program} resume {group}")
            }
            Self::Held { group, why } => format!(
                "group \"{group}\" is held, because {}; resume it with: {program} resume {group}",
                hold(*why)
            ),
            Self::Lock { held: Some(holder) } => {
                format!("the compaction lock of the session is held by \"{holder}\"")
            }
            Self::Lock { held: None } => "the compaction lock of the session".to_owned(),
            Self::Storage { cause } => {
                let cause = cause.as_ref().map(|cause| format!(" ({cause})")).unwrap_or_default();
                format!("the server's database fails{cause}; the server's log has the remedy")
            }
            Self::Permission { id, title, options } => {
                permission(program, id, title.as_deref(), options)
            }
            Self::Works => "the agent is at work".to_owned(),
            Self::Other(word) => word.clone(),
        }
    }
}

/// Describes the wait before the next attempt.
fn backoff(
    program: &str,
    now: Timestamp,
    group: &str,
    until: Option<Timestamp>,
    error: Option<&str>,
    degraded: bool,
) -> String {
    let what = if degraded { "the agent failed repeatedly; next start" } else { "retry" };
    let mut text = match until.map(|until| until.0.saturating_sub(now.0)) {
        Some(left) if left > 0 => {
            let left = Duration::from_millis(left.unsigned_abs().next_multiple_of(1000));
            format!("{what} in {}", span(left))
        }
        Some(_) => format!("{what} now"),
        None => format!("{what} later"),
    };
    if let Some(error) = error {
        text.push_str(&format!(", after: {error}"));
    }
    if degraded {
        text.push_str(&format!("; start it now with: {program} resume {group}"));
    }
    text
}

/// Describes which login an agent wants, and what to do after it.
fn login(
    program: &str,
    now: Timestamp,
    group: &str,
    agent: Option<&str>,
    until: Option<Timestamp>,
    error: Option<&str>,
) -> String {
    let agent = agent.map(|agent| format!(" of profile \"{agent}\"")).unwrap_or_default();
    let error = error.map(|error| format!(" ({error})")).unwrap_or_default();
    let next = match until.map(|until| until.0.saturating_sub(now.0)).filter(|left| *left > 0) {
        Some(left) => {
            let left = Duration::from_millis(left.unsigned_abs().next_multiple_of(1000));
            format!("; next start in {}", span(left))
        }
        None => String::new(),
    };
    format!(
        "the agent{agent} wants a login{error}{next}; log in to it on the server, then start it \
         with: {program} resume {group}"
    )
}

/// Describes why a group is held.
fn hold(why: Option<HoldReason>) -> &'static str {
    match why {
        Some(HoldReason::ContextLost) => "the agent lost its context",
        Some(HoldReason::InterruptedTwice) => "two turns in a row were interrupted",
        Some(HoldReason::Interrupted) | None => "a turn was interrupted",
    }
}

/// Describes a permission and how to answer it. No option is chosen for the reader.
fn permission(program: &str, id: &str, title: Option<&str>, options: &[String]) -> String {
    let title = title.map(|title| format!(": \"{title}\"")).unwrap_or_default();
    let answer = match options {
        [] => format!("cancel it with: {program} permissions cancel {id}"),
        options => format!(
            "answer with: {program} permissions answer {id} OPTION (OPTION is one of: {})",
            options.join(", ")
        ),
    };
    format!("the agent asks for permission {id}{title}; {answer}")
}

/// Formats a time span in whole seconds, as `2 min 35 s`.
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const WORDS: [(&str, Blocked); 9] = [
        ("turn", Blocked::Turn),
        ("slot", Blocked::Slot),
        ("agent", Blocked::Agent),
        ("agent_auth", Blocked::AgentAuth),
        ("backoff", Blocked::Backoff),
        ("paused", Blocked::Paused),
        ("held", Blocked::Held),
        ("lock", Blocked::Lock),
        ("storage", Blocked::Storage),
    ];

    #[test]
    fn every_word_of_blocked_by_is_read() {
        for (word, blocked) in WORDS {
            assert_eq!(BlockedBy::read(&json!(word)), Some(BlockedBy::Known(blocked)), "{word}");
        }
        assert_eq!(BlockedBy::read(&json!(null)), None);
        let newer = Some(BlockedBy::Unknown("agent_moon".into()));
        assert_eq!(BlockedBy::read(&json!("agent_moon")), newer, "a newer server's word");
    }

    #[test]
    fn every_reason_has_a_text_that_says_what_to_do() {
        let work = || "work".to_owned();
        let tasks = |before, first: Option<Reason>| {
            let first = first.map(Box::new);
            Reason::Tasks { group: work(), before, first }
        };
        let backoff = |until: Option<i64>, error: Option<&str>, degraded| Reason::Backoff {
            group: work(),
            until: until.map(Timestamp),
            error: error.map(str::to_owned),
            degraded,
        };
        let login = |agent: Option<&str>, until: Option<i64>, error: Option<&str>| Reason::Login {
            group: work(),
            agent: agent.map(str::to_owned),
            until: until.map(Timestamp),
            error: error.map(str::to_owned),
        };
        let held = |why| Reason::Held { group: work(), why };
        let asks = |title: Option<&str>, options: &[&str]| Reason::Permission {
            id: "prm_1".into(),
            title: title.map(str::to_owned),
            options: options.iter().map(|&option| option.to_owned()).collect(),
        };
        let slot = |total, drains| Reason::Slot { total, drains };
        let storage = |cause: Option<&str>| Reason::Storage { cause: cause.map(str::to_owned) };
        let lock = |held: Option<&str>| Reason::Lock { held: held.map(str::to_owned) };
        #[rustfmt::skip]
        let cases = [
            (tasks(1, None), r#"1 task is before this one in group "work""#),
            (tasks(3, None), r#"3 tasks are before this one in group "work""#),
            (tasks(1, Some(Reason::Agent { full: None })), r#"1 task is before this one in group "work"; it waits: the agent is starting"#),
            (tasks(2, Some(slot(Some(4), false))), r#"2 tasks are before this one in group "work"; the first of them waits: all 4 slots of the server for running tasks are in use"#),
            (slot(Some(4), false), "all 4 slots of the server for running tasks are in use"),
            (slot(None, false), "all slots of the server for running tasks are in use"),
            (slot(Some(4), true), "the server shuts down; the task stays queued for its next start"),
            (Reason::Agent { full: None }, "the agent is starting"),
            (Reason::Agent { full: Some(2) }, "the agent is starting, or all 2 places for agents are in use"),
            (backoff(Some(20_000), Some("agent_error: no"), false), "retry in 20 s, after: agent_error: no"),
            (backoff(Some(1), None, false), "retry in 1 s"),
            (backoff(Some(0), None, false), "retry now"),
            (backoff(Some(-9), None, false), "retry now"),
            (backoff(None, None, false), "retry later"),
            (backoff(Some(155_000), Some("exit code 1"), true), "the agent failed repeatedly; next start in 2 min 35 s, after: exit code 1; start it now with: gr resume work"),
            (Reason::Paused { group: work() }, r#"group "work" is paused; resume it with: gr resume work"#),
            (held(None), r#"group "work" is held, because a turn was interrupted; resume it with: gr resume work"#),
            (held(Some(HoldReason::Interrupted)), r#"group "work" is held, because a turn was interrupted; resume it with: gr resume work"#),
            (held(Some(HoldReason::InterruptedTwice)), r#"group "work" is held, because two turns in a row were interrupted; resume it with: gr resume work"#),
            (held(Some(HoldReason::ContextLost)), r#"group "work" is held, because the agent lost its context; resume it with: gr resume work"#),
            (lock(Some("nightly")), r#"the compaction lock of the session is held by "nightly""#),
            (lock(None), "the compaction lock of the session"),
            (storage(Some("disk_full")), "the server's database fails (disk_full); the server's log has the remedy"),
            (storage(None), "the server's database fails; the server's log has the remedy"),
            (asks(Some("Edit /etc/hosts"), &["yes", "no"]), r#"the agent asks for permission prm_1: "Edit /etc/hosts"; answer with: gr permissions answer prm_1 OPTION (OPTION is one of: yes, no)"#),
            (asks(None, &[]), "the agent asks for permission prm_1; cancel it with: gr permissions cancel prm_1"),
            (Reason::Works, "the agent is at work"),
            (login(Some("gemini"), Some(61_000), Some("no key")), r#"the agent of profile "gemini" wants a login (no key); next start in 1 min 1 s; log in to it on the server, then start it with: gr resume work"#),
            (login(None, Some(0), None), "the agent wants a login; log in to it on the server, then start it with: gr resume work"),
            (Reason::Other("agent_moon".into()), "agent_moon"),
        ];
        for (reason, text) in cases {
            assert_eq!(reason.text("gr", Timestamp(0)), text);
            assert_eq!(reason.is_progress(), reason == Reason::Works);
        }
    }

    #[test]
    fn spans_are_short() {
        #[rustfmt::skip]
        let cases = [(0, "0 s"), (59, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (3600, "1 h 0 min"), (7322, "2 h 2 min")];
        for (seconds, text) in cases {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
        assert_eq!(span(Duration::from_millis(1999)), "1 s");
    }
}
