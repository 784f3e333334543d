//! What only stored logs have: messages as agents write them, frames of earlier versions, and
//! frames that cannot be read.

use greenroom_testing::world::{Action, situations::*};

use super::{Stored, check_frames, frames, histories, is_expected, play};

/// An attempt fails without output, and its task is retried.
const RETRIED: &[Action] = &[CONTINUE, SUBMIT, Action::GrantSlot, READY, EXITS];
/// A prompt is withheld.
const WITHHELD: &[Action] = &[CONTINUE, SUBMIT, Action::GrantSlot, READY, Action::WithholdPrompt];
/// No agent starts, and its task fails at once.
const FAILS: &[Action] = &[NEVER_RETRY, SUBMIT, Action::GrantSlot, START_FAILS];
/// A turn, and a compaction that is a no-op.
const COMPACTION: &[Action] = &[
    SUBMIT,
    Action::GrantSlot,
    READY,
    OUTPUT,
    ANSWER,
    Action::Compact,
    LOCK_ACQUIRED,
    Action::GrantSlot,
    ANSWER,
];

fn place_of(log: &[Stored], kind: &str, nth: usize) -> usize {
    let kind = format!("greenroom/{kind}");
    let mut found = log.iter().enumerate().filter(|(_, frame)| frame.kind == kind);
    found.nth(nth).unwrap_or_else(|| panic!("no {nth} {kind}")).0
}

/// Puts a message of the agent before the first settled attempt.
fn put(log: &mut Vec<Stored>, kind: &str, payload: &str) {
    let at = place_of(log, "turn_settled", 0);
    let place = log[at].place;
    log.insert(at, Stored { place, kind: kind.into(), payload: payload.into() });
    for (frame, seq) in log.iter_mut().zip(1..) {
        frame.place.seq = seq;
    }
}

fn put_update(log: &mut Vec<Stored>, session: &str, update: &str) {
    let session = match session {
        "" => first_session(log),
        other => other.to_owned(),
    };
    let update = format!(r#"{{"sessionUpdate":"{update}"}}"#);
    let line = format!(r#"{{"params":{{"sessionId":"{session}","update":{update}}}}}"#);
    put(log, "session/update", &line);
}

/// Returns the session that was prompted first.
fn first_session(log: &[Stored]) -> String {
    let prompt = log.iter().find(|frame| frame.kind == "session/prompt").unwrap();
    let (_, rest) = prompt.payload.split_once(r#""sessionId":""#).unwrap();
    rest.split_once('"').unwrap().0.to_owned()
}

/// Replaces text in the payload of the `nth` frame of a kind.
fn replace(log: &mut [Stored], (kind, nth): (&str, usize), old: &str, new: &str) {
    let frame = &mut log[place_of(log, kind, nth)];
    assert!(frame.payload.contains(old), "{frame:?}");
    frame.payload = frame.payload.replacen(old, new, 1);
}

type Change = fn(&mut Vec<Stored>);

/// A-4, I7, I13, AM-18: what proves no output, and what an earlier version stored, is no violation.
#[test]
fn a_sound_log_raises_no_alarm() {
    #[rustfmt::skip]
    let cases: &[(&str, &[Action], Change)] = &[
        ("output of another session",      RETRIED,  |log| put_update(log, "other", "agent_message_chunk")),
        ("an update that is no output",    RETRIED,  |log| put_update(log, "", "usage_update")),
        ("a notification of any method",   RETRIED,  |log| put(log, "fs/changed", r#"{"params":{}}"#)),
        ("a permission as a notification", RETRIED,  |log| {
            put(log, "session/request_permission", r#"{"params":{}}"#);
        }),
        ("a tool call without a text id",  RETRIED,  |log| {
            let update = r#"{"sessionUpdate":"tool_call","toolCallId":7}"#;
            put(log, "session/update", &format!(r#"{{"params":{{"update":{update}}}}}"#));
        }),
        ("late output before a withheld prompt", WITHHELD, |log| put_update(log, "", "agent_message_chunk")),
        ("an end without its attempt",     FAILS,    |log| {
            replace(log, ("task_ended", 0), r#""attempt":1,"#, "");
        }),
        ("an ended compaction without its kind", COMPACTION, |log| {
            replace(log, ("task_ended", 1), r#""kind":"compaction","#, "");
        }),
    ];
    let alarms = cases.iter().filter_map(|(name, actions, change)| {
        let mut log = frames(&play(actions));
        change(&mut log);
        Some((name, check_frames(&log))).filter(|(_, found)| !found.is_empty())
    });
    assert_eq!(alarms.collect::<Vec<_>>(), []);
}

/// A-4, I7, AM-18: a log shows output by the agent's messages; an unreadable frame ends only the
/// checks that depend on it.
#[test]
fn a_log_shows_how_it_is_broken() {
    #[rustfmt::skip]
    let cases: &[(&str, &str, &[Action], Change)] = &[
        ("I7: is retried: End", "output of its session", RETRIED,  |log| {
            put_update(log, "", "agent_message_chunk");
        }),
        ("I7: is retried: End", "a chunk of a summary",  RETRIED,  |log| {
            put_update(log, "", "compaction_summary_chunk");
        }),
        ("I7: is retried: End", "a request",             RETRIED,  |log| {
            put(log, "_any/method", r#"{"id":1,"params":{}}"#);
        }),
        ("I7: is retried: End", "a permission request",  RETRIED,  |log| {
            put(log, "session/request_permission", r#"{"id":"a"}"#);
        }),
        ("I7: is retried: End", "a retry after an answer", RETRIED,  |log| {
            replace(log, ("turn_settled", 0), "_process_exited", "max_tokens");
        }),
        ("I7: is retried: End", "a retry after a deadline", RETRIED,  |log| {
            replace(log, ("turn_settled", 0), "_process_exited", "_deadline");
        }),
        ("I9: is a", "a turn ends as a compaction", FAILS, |log| {
            replace(log, ("task_ended", 0), r#"{"#, r#"{"kind":"compaction","#);
        }),
        ("I3: is no", "an unreadable frame", RETRIED, |log| {
            replace(log, ("run_ready", 0), r#""pid":7"#, r#""pid":"x""#);
        }),
        ("I7: is retried: End", "a retry after an unreadable frame", RETRIED, |log| {
            replace(log, ("segment_started", 0), r#""segment":1"#, r#""segment":"x""#);
            put_update(log, "", "agent_message_chunk");
        }),
        ("I3: is no", "a prompt without a session", RETRIED, |log| {
            let prompt = log.iter_mut().find(|frame| frame.kind == "session/prompt").unwrap();
            prompt.payload = r#"{"params":{"prompt":[]}}"#.into();
        }),
    ];
    let missed = cases.iter().filter_map(|(rule, name, actions, change)| {
        let mut log = frames(&play(actions));
        change(&mut log);
        let found = check_frames(&log);
        (!found.iter().any(|why| is_expected(rule, why))).then_some((name, found))
    });
    assert_eq!(missed.collect::<Vec<_>>(), []);
}

/// AM-18: of a log with an unreadable frame, what does not depend on it is no violation.
#[test]
fn an_unreadable_frame_is_the_only_alarm_of_a_sound_log() {
    for (actions, _) in histories() {
        let sound = frames(&play(&actions));
        for at in 0..sound.len() {
            let mut log = sound.clone();
            if log[at].kind.starts_with("greenroom/") {
                log[at].payload = "7".into();
                let found = check_frames(&log);
                let is_alone = found.len() == 1 && is_expected("I3: is no", &found[0]);
                assert!(is_alone, "{:?}: {found:?}", log[at]);
            }
        }
    }
}
