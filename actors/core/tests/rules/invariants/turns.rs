//! Turns, and how their histories are broken.

use greenroom_core::{
    Effect, Fact, Json, PermissionState, PromptCapabilities, Recorded, StopReason, TaskId, TaskKind,
};
use greenroom_testing::{
    invariants::Trigger,
    world::{Action, situations::*},
};
use uuid::Uuid;

use super::{
    BACKOFF_ENDS, History, Row, fact, find, insert, other_task, output, put_before, recorded,
    remove, renumber, repeat,
};

/// Returns each sound history with what breaks it.
pub fn broken() -> Vec<History> {
    vec![(TURNS.to_vec(), BROKEN_TURNS)]
}

/// Two turns wait as the first is claimed; it asks for a permission and is cancelled, the second is
/// retried in a run that lost the context, the third is interrupted.
#[rustfmt::skip]
const TURNS: &[Action] = &[
    HOLD, SUBMIT, SUBMIT, SUBMIT, Action::GrantSlot, READY, REQUEST_PERMISSION, ALLOW,
    Action::Cancel { back: 2 }, CONFIRM_CANCEL, Action::GrantSlot, EXITS, BACKOFF_ENDS,
    Action::GrantSlot, READY_LOST, Action::Resume, Action::GrantSlot, ANSWER, Action::GrantSlot, OUTPUT,
    EXITS,
];

#[rustfmt::skip]
const BROKEN_TURNS: &[Row] = &[
    ("I1", true, "a second task is claimed", |h| {
        let second = other_task(h, 1);
        insert(h, ("task_claimed", 0), |it| it.fact = Fact::TaskClaimed { task: second });
    }),
    ("AM-1", true, "a second run starts", |h| repeat(h, "run_started")),
    ("AM-1", true, "a run becomes ready that never started", |h| remove(h, "run_started")),
    ("AM-2", true, "START has no turn", |h| remove(h, "turn_started")),
    ("AM-3", true, "a turn settles and does not end", |h| remove(h, "task_ended")),
    ("I2", true, "a task was never accepted", |h| remove(h, "task_queued")),
    ("I2", true, "a task is accepted twice", |h| repeat(h, "task_queued")),
    ("I2", false, "an accepted task is nowhere", |h| {
        let (step, _) = find(h, "task_queued", 1);
        h[step].group = h[step - 1].group.clone();
    }),
    ("I3", true, "a number is left out", |h| recorded(h, "task_started").place.seq += 1),
    ("I3", true, "no fact of its kind", |h| *fact(h, "group_held") = Fact::LockAsked { task: TaskId(Uuid::nil()) }),
    ("AM-11", true, "a frame of another segment", |h| recorded(h, "turn_settled").place.segment = 7),
    ("AM-11", true, "a frame of another task", |h| recorded(h, "run_ready").place.task = None),
    ("AM-11", true, "a session without a segment", |h| remove(h, "segment_started")),
    ("AM-2", false, "another prompt than the caller's", |h| {
        if let Fact::TurnStarted { prompt, .. } = fact(h, "turn_started") {
            *prompt = Json::parse("[]".into()).unwrap();
        }
    }),
    ("AM-2", true, "a block that the agent did not advertise", |h| {
        if let Fact::RunReady { prompts, .. } = fact(h, "run_ready") {
            *prompts = Some(PromptCapabilities::default());
        }
        if let Fact::TurnStarted { prompt, .. } = fact(h, "turn_started") {
            *prompt = Json::parse(r#"[{"type":"image"}]"#.into()).unwrap();
        }
    }),
    ("AM-2", false, "a prompt is sent without its fact", |h| {
        let (step, _) = find(h, "turn_started", 0);
        let sent = h[step].effects.iter().find(|it| matches!(it, Effect::Prompt { .. })).cloned();
        h[step + 1].effects.extend(sent);
    }),
    ("I12", false, "a prompt is not sent", |h| {
        let (step, _) = find(h, "turn_started", 1);
        h[step].effects.clear();
    }),
    ("I7", true, "an attempt's number is wrong", |h| {
        if let Fact::TaskStarted { attempt, .. } = fact(h, "task_started") {
            *attempt = 3;
        }
    }),
    ("I7", true, "a retry after output", |h| {
        put_before(h, ("turn_settled", 1), output());
    }),
    ("I7", true, "a retry after a cancel", |h| {
        let (step, at) = find(h, "turn_settled", 1);
        let Recorded { place, fact } = h[step].facts[at].clone();
        let fact = Fact::CancelRequested { task: fact.task().unwrap() };
        h[step - 1].facts.push(Recorded { place, fact });
        renumber(h);
    }),
    ("I7", false, "a retry after a restart", |h| {
        let (step, _) = find(h, "task_retrying", 0);
        h[step].begun.trigger = Trigger::Recovered;
    }),
    ("I12", false, "a backoff without a timer", |h| {
        let (step, _) = find(h, "task_retrying", 0);
        h[step].timers.clear();
    }),
    ("I8", true, "a later turn starts first", |h| {
        let third = other_task(h, 2);
        let claimed = recorded(h, "task_claimed");
        (claimed.fact, claimed.place.task) = (Fact::TaskClaimed { task: third }, Some(third));
    }),
    ("F14", true, "a prompt is answered twice", |h| repeat(h, "prompt_answered")),
    ("F14", true, "an answer to no prompt", |h| {
        let answered = fact(h, "prompt_answered").clone();
        remove(h, "prompt_answered");
        put_before(h, ("task_started", 0), answered);
    }),
    ("I9", true, "a task ends twice", |h| repeat(h, "task_ended")),
    ("I9: ends as a Compaction", true, "a turn ends as a compaction", |h| {
        if let Fact::TaskEnded { kind, .. } = fact(h, "task_ended") {
            *kind = TaskKind::Compaction;
        }
    }),
    ("I9: ends otherwise", false, "a record with another stop reason", |h| {
        if let Fact::TaskEnded { stop_reason, .. } = fact(h, "task_ended") {
            *stop_reason = Some(StopReason::Refusal);
        }
    }),
    ("I9: ends otherwise", false, "a record without the error", |h| {
        let (step, at) = find(h, "task_ended", 2);
        if let Fact::TaskEnded { error, .. } = &mut h[step].facts[at].fact {
            assert!(error.take().is_some());
        }
    }),
    ("TD-10: true, not false", false, "an empty answer that is none", |h| {
        let (step, at) = find(h, "task_ended", 2);
        if let Fact::TaskEnded { findings, .. } = &mut h[step].facts[at].fact {
            findings.has_empty_answer = true;
        }
    }),
    ("TD-10: false, not true", false, "an empty answer without a finding", |h| {
        let (step, at) = find(h, "task_ended", 1);
        if let Fact::TaskEnded { findings, .. } = &mut h[step].facts[at].fact {
            findings.has_empty_answer = false;
        }
    }),
    ("RA", false, "the summary of a compaction that never was", |h| {
        let (step, at) = find(h, "task_ended", 1);
        if let Fact::TaskEnded { findings, .. } = &mut h[step].facts[at].fact {
            findings.is_answered_by_compaction = true;
        }
    }),
    ("DQ-11: shuts down", false, "a task is claimed as the server shuts down", |h| {
        let (step, _) = find(h, "task_claimed", 0);
        h[step].begun.settings.is_draining = true;
    }),
    ("AM-5", true, "a turn is cancelled twice", |h| repeat(h, "cancel_requested")),
    ("AM-5", false, "a cancel is forgotten", |h| {
        if let Fact::TaskEnded { record, .. } = fact(h, "task_ended") {
            record.cancel_requested = false;
        }
    }),
    ("AM-7", true, "a turn settles before its permission", |h| remove(h, "permission_resolved")),
    ("AM-7", false, "an agent gets no answer", |h| {
        let (step, _) = find(h, "permission_resolved", 0);
        h[step].effects.clear();
    }),
    ("C22", true, "an option that was not offered", |h| {
        if let Fact::PermissionResolved { selected, .. } = fact(h, "permission_resolved") {
            *selected = Some("no such option".into());
        }
    }),
    ("C22", true, "an answer that never was", |h| {
        if let Fact::PermissionResolved { state, .. } = fact(h, "permission_resolved") {
            *state = PermissionState::Pending;
        }
    }),
    ("I16", false, "a lost context is not reported", |h| remove(h, "context_lost")),
    ("DQ-8", false, "no hold after an interrupted turn", |h| remove(h, "group_held")),
    ("DQ-8", true, "held twice", |h| repeat(h, "group_held")),
];
