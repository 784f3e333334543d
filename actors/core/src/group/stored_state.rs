//! The stored form of a group's state: flat, as the checkpoints of all versions have it.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::state::{
    CompactionHistory, CrashLoop, Existence, GroupState, Hold, LaunchWait, Session,
};
use crate::{HoldReason, PromptCapabilities, Provenance, SessionId, Settings, Timestamp, Usage};

/// [`GroupState`] in a checkpoint. A field that an earlier version did not write needs a default.
///
/// It can contradict itself, as [`GroupState`] cannot: what is stored of a session without the
/// session is left out.
#[derive(Serialize, Deserialize)]
struct StoredState {
    settings: Settings,
    created_at: Option<Timestamp>,
    last_seq: u64,
    tasks: u64,
    session: Option<SessionId>,
    unspoken: bool,
    segment: u32,
    usage: Option<Usage>,
    paused: bool,
    archived: bool,
    purging: bool,
    provenance: Option<Provenance>,
    compacting: CompactionHistory,
    lead_in: Option<String>,
    held: Option<HoldReason>,
    interruptions: u32,
    crashes: u32,
    launch_due: Option<LaunchWait>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unanswered: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompts: Option<PromptCapabilities>,
}

impl Serialize for GroupState {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        StoredState::from(self.clone()).serialize(to)
    }
}

impl<'de> Deserialize<'de> for GroupState {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        StoredState::deserialize(from).map(Self::from)
    }
}

impl From<StoredState> for GroupState {
    fn from(stored: StoredState) -> Self {
        let StoredState { unspoken: is_fresh, unanswered: is_unanswered, .. } = stored;
        let StoredState { usage, provenance, .. } = stored;
        Self {
            settings: stored.settings,
            created_at: stored.created_at,
            last_seq: stored.last_seq,
            tasks: stored.tasks,
            session: stored.session.map(|id| Session {
                id,
                is_fresh,
                is_unanswered,
                usage,
                provenance,
            }),
            segment: stored.segment,
            paused: stored.paused,
            existence: Existence::of(stored.archived, stored.purging),
            compacting: stored.compacting,
            pending_summary: stored.lead_in,
            hold: Hold { reason: stored.held, interruptions: stored.interruptions },
            crash_loop: CrashLoop { crashes: stored.crashes, launch_wait: stored.launch_due },
            prompts: stored.prompts,
        }
    }
}

impl From<GroupState> for StoredState {
    fn from(state: GroupState) -> Self {
        let (archived, purging) = (state.is_archived(), state.existence == Existence::Purging);
        let (is_fresh, is_unanswered, id, usage, provenance) = match state.session {
            Some(Session { id, is_fresh, is_unanswered, usage, provenance }) => {
                (is_fresh, is_unanswered, Some(id), usage, provenance)
            }
            None => (false, false, None, None, None),
        };
        Self {
            settings: state.settings,
            created_at: state.created_at,
            last_seq: state.last_seq,
            tasks: state.tasks,
            session: id,
            unspoken: is_fresh,
            segment: state.segment,
            usage,
            paused: state.paused,
            archived,
            purging,
            provenance,
            compacting: state.compacting,
            lead_in: state.pending_summary,
            held: state.hold.reason,
            interruptions: state.hold.interruptions,
            crashes: state.crash_loop.crashes,
            launch_due: state.crash_loop.launch_wait,
            unanswered: is_unanswered,
            prompts: state.prompts,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Deadline, Json};

    /// The keys of the stored form in their order, with the values of a group before its first
    /// commit.
    const FORM: &[(&str, &str)] = &[
        ("settings", r#"{"agent":""}"#),
        ("created_at", "null"),
        ("last_seq", "0"),
        ("tasks", "0"),
        ("session", "null"),
        ("unspoken", "false"),
        ("segment", "0"),
        ("usage", "null"),
        ("paused", "false"),
        ("archived", "false"),
        ("purging", "false"),
        ("provenance", "null"),
        ("compacting", ""),
        ("lead_in", "null"),
        ("held", "null"),
        ("interruptions", "0"),
        ("crashes", "0"),
        ("launch_due", "null"),
    ];

    /// A name, the keys whose values are not those of [`FORM`], and the state.
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], GroupState);

    /// Returns the stored form with these values in place of those of [`FORM`].
    fn stored(changed: &[(&str, &str)]) -> String {
        let settings = serde_json::to_string(&Settings::default()).unwrap();
        let history = serde_json::to_string(&CompactionHistory::default()).unwrap();
        let member = |(key, value): &(&str, &str)| {
            let changed = changed.iter().find(|(name, _)| name == key).map(|(_, value)| *value);
            let value = changed.unwrap_or(match *key {
                "settings" => &settings,
                "compacting" => &history,
                _ => value,
            });
            format!("{key:?}:{value}")
        };
        format!("{{{}}}", FORM.iter().map(member).collect::<Vec<_>>().join(","))
    }

    fn session(is_fresh: bool, usage: Option<Usage>, provenance: Option<Provenance>) -> GroupState {
        let (id, is_unanswered) = (SessionId("s".into()), false);
        let session = Session { id, is_fresh, is_unanswered, usage, provenance };
        GroupState { session: Some(session), segment: 1, ..GroupState::new(Settings::default()) }
    }

    #[test]
    fn the_stored_form_is_flat_and_keeps_its_keys() {
        let new = || GroupState::new(Settings::default());
        let usage = Usage { used: 1, size: 2, cost: None };
        let given = Json::parse("{}".into()).unwrap();
        let known = Provenance { current: "h".into(), previous: None, compacted: false, given };
        let (usage_text, known_text) =
            (serde_json::to_string(&usage).unwrap(), serde_json::to_string(&known).unwrap());
        let due = Deadline::after(crate::Now::default(), 9);
        let due_text = serde_json::to_string(&due).unwrap();
        let crashed = CrashLoop { crashes: 6, launch_wait: Some(due.into()) };
        let login = LaunchWait { due, logins: 2, is_over: false };
        let login_text = due_text.strip_suffix('}').unwrap();
        let login_text = format!(r#"{login_text},"logins":2}}"#);
        let login = CrashLoop { crashes: 0, launch_wait: Some(login) };
        let hold = Hold { reason: Some(HoldReason::Interrupted), interruptions: 1 };
        let summary = Some("all of it".to_owned());
        #[rustfmt::skip]
        let cases: &[Case<'_>] = &[
            ("new",      &[], new()),
            ("fresh",    &[("session", "\"s\""), ("segment", "1"), ("unspoken", "true")], session(true, None, None)),
            ("prompted", &[("session", "\"s\""), ("segment", "1"), ("usage", &usage_text)], session(false, Some(usage), None)),
            ("own",      &[("session", "\"s\""), ("segment", "1"), ("provenance", &known_text)], session(false, None, Some(known))),
            ("summary",  &[("lead_in", "\"all of it\"")], GroupState { pending_summary: summary, ..new() }),
            ("archived", &[("archived", "true")], GroupState { existence: Existence::Archived, ..new() }),
            ("purging",  &[("archived", "true"), ("purging", "true")], GroupState { existence: Existence::Purging, ..new() }),
            ("held",     &[("held", "\"interrupted\""), ("interruptions", "1")], GroupState { hold, ..new() }),
            ("degraded", &[("crashes", "6"), ("launch_due", &due_text)], GroupState { crash_loop: crashed, ..new() }),
            ("login",    &[("launch_due", &login_text)], GroupState { crash_loop: login, ..new() }),
        ];
        for (name, changed, state) in cases {
            let text = stored(changed);
            assert_eq!(serde_json::from_str::<GroupState>(&text).unwrap(), *state, "{name}");
            assert_eq!(serde_json::to_string(state).unwrap(), text, "{name}");
        }
    }

    /// What an earlier version did not store is left out where it says nothing.
    #[test]
    fn the_stored_form_of_an_earlier_version_is_read() {
        let new = session(false, None, None);
        let changed = [("session", "\"s\""), ("segment", "1")];
        let mut state = new.clone();
        state.prompts = Some(PromptCapabilities { image: true, ..PromptCapabilities::default() });
        state.session.as_mut().unwrap().is_unanswered = true;
        let earlier = stored(&changed);
        let text = earlier.strip_suffix('}').unwrap();
        let prompts = r#"{"image":true,"audio":false,"embedded_context":false}"#;
        let text = format!(r#"{text},"unanswered":true,"prompts":{prompts}}}"#);
        assert_eq!(serde_json::to_string(&state).unwrap(), text);
        assert_eq!(serde_json::from_str::<GroupState>(&text).unwrap(), state);
        let row = serde_json::from_str::<GroupState>(&earlier).unwrap();
        assert_eq!(row, new);
        state.forget_unstored(&row);
        assert_eq!(state, new);
    }

    #[test]
    fn a_stored_form_that_contradicts_itself_is_read() {
        let new = || GroupState::new(Settings::default());
        #[rustfmt::skip]
        let cases: &[Case<'_>] = &[
            ("fresh, no session",       &[("unspoken", "true")], new()),
            ("usage, no session",       &[("usage", r#"{"used":1,"size":2}"#)], new()),
            ("purging, not archived",   &[("purging", "true")], GroupState { existence: Existence::Purging, ..new() }),
        ];
        for (name, changed, state) in cases {
            let text = stored(changed);
            assert_eq!(serde_json::from_str::<GroupState>(&text).unwrap(), *state, "{name}");
        }
    }
}
