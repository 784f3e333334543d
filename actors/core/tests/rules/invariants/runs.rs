//! What a group knows of its run, and how such histories are broken.

use greenroom_core::{
    Continuity, Effect, EndReason, Fact, OutputSummary, SessionId, SignalKind, Source, StopReason,
    Strategy, ToolProgress, ToolUpdate,
};
use greenroom_testing::{
    invariants::Played,
    world::{Action, DetectorSignal, TimerKind, situations::*},
};

use super::{History, Row, fact, find, forget, remove, renumber, stopped_by};

/// Returns each sound history with what breaks it.
pub fn broken() -> Vec<History> {
    let then = |first: &[Action], rest: &[Action]| [first, rest].concat();
    vec![
        (then(FRESH, IN_TURN_AGAIN), BROKEN_PROGRESS),
        (then(&then(&[LISTENS], IN_TURN), CANCELLED), BROKEN_HEALTH),
        (then(IDLE, &[Action::FireTimerOf(TimerKind::Idle)]), BROKEN_IDLENESS),
        (then(IDLE, ROTATES), BROKEN_ROTATION),
        (then(IN_TURN, MOVES), BROKEN_MOVE),
        (then(IDLE, COMPACTS_ELSEWHERE), BROKEN_COMPACTION),
    ]
}

/// A run that is ready without a task, and has a new session.
const FRESH: &[Action] = &[SUBMIT, Action::GrantSlot, CANCEL, READY];
/// It gets a prompt, and its agent is exchanged meanwhile.
const IN_TURN_AGAIN: &[Action] = &[SUBMIT, Action::GrantSlot, Action::Configure(2), OUTPUT];

/// A prompt is cancelled, the next one is answered; a later one is cancelled, and the next one
/// shows that the agent is wedged.
const CANCELLED: &[Action] = &[
    CANCEL,
    CONFIRM_CANCEL,
    SUBMIT,
    Action::GrantSlot,
    OUTPUT,
    ANSWER,
    SUBMIT,
    Action::GrantSlot,
    CANCEL,
    CONFIRM_CANCEL,
    SUBMIT,
    Action::GrantSlot,
    Action::QueuePrompt,
];

/// A compaction by another session; ACP reports it, too.
const ROTATES: &[Action] = &[
    Action::CompactByRotation,
    LOCK_ACQUIRED,
    Action::GrantSlot,
    OUTPUT,
    ANSWER,
    Action::OpenSession(true),
    Action::CompactionSignal(DetectorSignal {
        source: Source::Acp,
        kind: SignalKind::Completed,
        key: 0,
        lineage: (0, 0),
    }),
];

/// The agent continues its turn in another session, and ends it there.
const MOVES: &[Action] = &[OUTPUT, Action::OutputOfSession(3), ANSWER, SUBMIT, Action::GrantSlot];

/// The agent's command continues in another session, and completes there.
const COMPACTS_ELSEWHERE: &[Action] = &[
    Action::Compact,
    LOCK_ACQUIRED,
    Action::GrantSlot,
    OUTPUT,
    Action::OutputOfSession(3),
    ANSWER,
];

const BROKEN_PROGRESS: &[Row] = &[
    ("I13: by the facts", false, "a profile with other detectors", |h| {
        if let Fact::RunStarted { has_detectors, .. } = fact(h, "run_started") {
            *has_detectors = true;
        }
    }),
    ("I13: by the facts", false, "a new session that was restored", |h| {
        if let Fact::RunReady { continuity, .. } = fact(h, "run_ready") {
            *continuity = Continuity::Loaded;
        }
    }),
    ("I16", false, "a session that is given up at the first failure", |h| {
        let (step, _) = find(h, "run_started", 0);
        for effect in &mut h[step].effects {
            if let Effect::Launch { may_replace, .. } = effect {
                *may_replace = true;
            }
        }
    }),
    ("I13: by the facts", false, "a session that stays new with its prompt", |h| {
        let (step, at) = find(h, "turn_started", 0);
        h[step].facts.remove(at + 1);
    }),
    ("I13: by the facts", false, "a run that is ready and starts", |h| forget(h, "run_ready", 0)),
    ("I13: by the facts", false, "an exchanged agent that stays", |h| remove(h, "group_changed")),
];

const BROKEN_HEALTH: &[Row] = &[
    ("I13: by the facts", false, "a cancel without a trace", |h| remove(h, "cancel_sent")),
    ("I13: by the facts", false, "a run that survived, and not its answer", |h| {
        stopped_by(h, 1, StopReason::Error);
    }),
    ("I13: by the facts", false, "a run that survived, and no answer shows it", |h| {
        stopped_by(h, 1, StopReason::ServerRestart);
    }),
    ("I13: by the facts", false, "a wedged run that is sound", |h| remove(h, "agent_wedged")),
    ("I13: by the facts", false, "a run that is wedged and takes prompts", |h| {
        remove(h, "run_stopping");
    }),
];

const BROKEN_IDLENESS: &[Row] = &[("I16", false, "a context that is lost for being idle", |h| {
    if let Fact::RunReady { is_forgetful, .. } = fact(h, "run_ready") {
        *is_forgetful = true;
    }
})];

const BROKEN_ROTATION: &[Row] =
    &[("I13: by the facts", false, "a report by another detector", |h| {
        if let Fact::CompactionUpdated(updated) = fact(h, "compaction_updated") {
            updated.sources = vec![Source::Task, Source::HermesMeta];
        }
    })];

/// Changes the summary of the output in another session.
fn elsewhere(steps: &mut [Played], change: fn(&mut OutputSummary)) {
    let facts = steps.iter_mut().flat_map(|step| &mut step.facts);
    for recorded in facts {
        if let Fact::AgentOutput(output) = &mut recorded.fact
            && output.summary.elsewhere().is_some()
        {
            change(&mut output.summary);
        }
    }
}

const BROKEN_MOVE: &[Row] = &[
    ("AM-13", false, "a move to a session without output", |h| {
        elsewhere(h, |summary| summary.other_sessions = None);
    }),
    ("AM-13", false, "a move away from a session that continued", |h| {
        elsewhere(h, |summary| {
            *summary =
                OutputSummary { has_output: true, is_named: true, ..OutputSummary::default() };
        });
    }),
    ("AM-13", false, "a move before the turn's end", |h| remove(h, "turn_settled")),
    ("AM-13: in a compaction", false, "a move in a rotation", |h| {
        if let Fact::TurnStarted { strategy, .. } = fact(h, "turn_started") {
            *strategy = Some(Strategy::Rotate);
        }
    }),
    ("AM-13: are open", false, "a move with an open tool call", |h| {
        elsewhere(h, |summary| {
            let step = ToolProgress::Called { tool: "task".into(), ended: None };
            summary.tools.push(ToolUpdate { call: "1".into(), step });
        });
    }),
];

const BROKEN_COMPACTION: &[Row] =
    &[("AM-13: in one step", false, "a compaction that rotates twice", |h| {
        let (step, at) = find(h, "segment_started", 1);
        let mut again = h[step].facts[at - 1..=at].to_vec();
        if let Fact::SegmentEnded { end_reason, .. } = &mut again[0].fact {
            *end_reason = EndReason::AcpSessionIdChanged;
        }
        if let Fact::SegmentStarted { session, .. } = &mut again[1].fact {
            *session = SessionId("n4".into());
        }
        h[step].facts.splice(at + 1..at + 1, again);
        renumber(h);
    })];
