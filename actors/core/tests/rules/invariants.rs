//! A checker that cannot fail is worth nothing: each invariant is broken by a history, of a world
//! and, where the frames alone show it, of a stored log.

use std::sync::Arc;

use greenroom_core::{
    AgentOutput, Effect, Fact, Json, Kinds, Lines, OutputSummary, PermissionState, Recorded,
    SignalKind, Source, TaskId,
};
use greenroom_testing::{
    invariants::{LogFrame, Played, Trigger, check_log, check_steps},
    world::{Action, AgentMessage, DetectorSignal, TimerKind, World, situations::*},
};
use uuid::Uuid;

const CHUNK: &str = r#"{"params":{"update":{"sessionUpdate":"agent_message_chunk"}}}"#;
const BACKOFF_ENDS: Action = Action::FireTimerOf(TimerKind::Backoff);
const COMPACTS: Action = signal(Source::HermesStderr, SignalKind::Started);
const COMPACTED: Action = signal(Source::Acp, SignalKind::Completed);

const fn signal(source: Source, kind: SignalKind) -> Action {
    Action::CompactionSignal(DetectorSignal { source, kind, key: 0, lineage: (0, 0) })
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

/// A turn in which the agent compacts by itself; then an ordered compaction, an automatic one, and
/// one that gets no lock.
#[rustfmt::skip]
const COMPACTIONS: &[Action] = &[
    Action::ChangeSettings(32, 0), SUBMIT, Action::GrantSlot, READY, OUTPUT,
    Action::Provenance { number: 1, compacted: false }, COMPACTS, ANSWER,
    Action::Compact, LOCK_ACQUIRED, Action::GrantSlot, COMPACTED, ANSWER,
    SUBMIT, Action::GrantSlot, OUTPUT, Action::Output(AgentMessage::Usage(190)), ANSWER,
    LOCK_ACQUIRED, Action::GrantSlot, COMPACTED, ANSWER,
    Action::Compact, Action::AnswerLock(greenroom_testing::world::LockReply::Failed),
];

fn crashes() -> Vec<Action> {
    let start_fails = [SUBMIT, Action::GrantSlot, START_FAILS].repeat(6);
    [&[NEVER_RETRY], &*start_fails].concat()
}

fn play(actions: &[Action]) -> Vec<Played> {
    let mut world = World::default();
    world.trail = Some(Vec::new());
    for action in actions {
        world.play(*action).unwrap();
    }
    world.trail.unwrap()
}

fn check_frames(steps: &[Played]) -> Vec<String> {
    let facts = steps.iter().flat_map(|step| &step.facts);
    let frames = facts.filter(|recorded| recorded.fact.frames() > 0).map(|recorded| {
        let payload = match &recorded.fact {
            Fact::AgentOutput(output) => output.lines.text.to_string(),
            Fact::PromptSent { prompt, .. } => {
                format!(r#"{{"params":{{"prompt":{}}}}}"#, prompt.as_str())
            }
            fact => fact.payload(),
        };
        (recorded, payload)
    });
    let frames: Vec<(&Recorded, String)> = frames.collect();
    check_log(frames.iter().map(|(recorded, payload)| LogFrame {
        place: recorded.place,
        kind: recorded.fact.kind(),
        payload,
    }))
}

/// The step and the place in it of the `nth` fact of a kind.
fn find(steps: &[Played], kind: &str, nth: usize) -> (usize, usize) {
    let all = steps.iter().enumerate().flat_map(|(step, played)| {
        played.facts.iter().enumerate().map(move |(at, recorded)| (step, at, recorded))
    });
    let mut found = all.filter(|(.., it)| it.fact.kind() == format!("greenroom/{kind}"));
    let (step, at, _) = found.nth(nth).unwrap_or_else(|| panic!("no {nth} {kind}"));
    (step, at)
}

fn recorded<'a>(steps: &'a mut [Played], kind: &str) -> &'a mut Recorded {
    let (step, at) = find(steps, kind, 0);
    &mut steps[step].facts[at]
}

fn fact<'a>(steps: &'a mut [Played], kind: &str) -> &'a mut Fact {
    &mut recorded(steps, kind).fact
}

fn remove(steps: &mut [Played], kind: &str) {
    let (step, at) = find(steps, kind, 0);
    steps[step].facts.remove(at);
    renumber(steps);
}

fn insert(steps: &mut [Played], after: (&str, usize), change: impl FnOnce(&mut Recorded)) {
    let (step, at) = find(steps, after.0, after.1);
    let mut copy = steps[step].facts[at].clone();
    change(&mut copy);
    steps[step].facts.insert(at + 1, copy);
    renumber(steps);
}

fn repeat(steps: &mut [Played], kind: &str) {
    insert(steps, (kind, 0), |_| {});
}

fn renumber(steps: &mut [Played]) {
    let mut seq = 1;
    for recorded in steps.iter_mut().flat_map(|step| &mut step.facts) {
        recorded.place.seq = seq;
        seq += recorded.fact.frames();
    }
}

fn output() -> Fact {
    let summary = OutputSummary { has_output: true, ..OutputSummary::default() };
    let (kinds, text) = (Kinds::All("session/update".into()), Arc::new(CHUNK.to_owned()));
    Fact::AgentOutput(AgentOutput { lines: Lines { count: 1, kinds, text }, summary })
}

fn other_task(steps: &[Played], nth: usize) -> TaskId {
    let (step, at) = find(steps, "task_queued", nth);
    steps[step].facts[at].fact.task().unwrap()
}

type Spoil = fn(&mut Vec<Played>);

/// What the error names, whether a log alone shows it, what is wrong, and how it is made so.
type Row = (&'static str, bool, &'static str, Spoil);

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
        let (step, at) = find(h, "turn_settled", 1);
        let place = h[step].facts[at].place;
        h[step].facts.insert(at, Recorded { place, fact: output() });
        renumber(h);
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
    ("I9", true, "a task ends twice", |h| repeat(h, "task_ended")),
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

#[rustfmt::skip]
const BROKEN_COMPACTIONS: &[Row] = &[
    ("I4", true, "a segment has another parent", |h| {
        let (step, at) = find(h, "segment_started", 1);
        if let Fact::SegmentStarted { parent, .. } = &mut h[step].facts[at].fact {
            *parent = Some(7);
        }
    }),
    ("AM-11", true, "a second segment is open", |h| repeat(h, "segment_started")),
    ("AM-12", true, "a segment without a successor", |h| {
        let (step, at) = find(h, "segment_started", 1);
        h[step].facts.remove(at);
        renumber(h);
    }),
    ("AM-22", true, "a compaction that does not rotate", |h| {
        let (step, at) = find(h, "segment_ended", 0);
        h[step].facts.drain(at..at + 2);
        renumber(h);
    }),
    ("AM-23", true, "a failed compaction rotates", |h| {
        let (step, at) = find(h, "segment_ended", 0);
        if let Fact::CompactionEnded(ended) = &mut h[step].facts[at - 1].fact {
            ended.status = greenroom_core::CompactionStatus::Failed;
        }
    }),
    ("AM-25", true, "a turn settles while it is compacting", |h| remove(h, "compaction_ended")),
    ("I5", true, "two compactions at once", |h| repeat(h, "compaction_started")),
    ("AM-13", false, "a provenance is noted twice", |h| repeat(h, "provenance_noted")),
    ("DQ-3", false, "a second compaction waits", |h| insert(h, ("task_queued", 1), |it| {
        let id = TaskId(Uuid::nil());
        if let Fact::TaskQueued { task, record, .. } = &mut it.fact {
            (*task, record.id, record.ordinal) = (id, id, record.ordinal + 1);
        }
        it.place.task = Some(id);
    })),
    ("DQ-6", false, "a compaction is ordered below the threshold", |h| {
        let (step, _) = find(h, "task_queued", 3);
        h[step].begun.settings.auto_compact = 0.99;
    }),
    ("HL-2", false, "a compaction starts without its lock", |h| remove(h, "lock_taken")),
    ("HL-3", false, "two locks", |h| repeat(h, "lock_taken")),
    ("HL-4", false, "a lock is released twice", |h| repeat(h, "lock_released")),
    ("HL-11", false, "a publication is not fenced", |h| {
        if let Fact::LockReleased { fences, .. } = fact(h, "lock_released") {
            *fences = false;
        }
    }),
    ("HL-14", false, "two pauses for one compaction", |h| repeat(h, "compaction_rests")),
    ("HL-14", false, "a pause of another length", |h| {
        if let Fact::CompactionRests { due } = fact(h, "compaction_rests") {
            due.ms += 1;
        }
    }),
];

const BROKEN_CRASHES: &[Row] = &[
    ("F8", true, "no backoff in a crash loop", |h| remove(h, "agent_degraded")),
    ("F8", true, "a backoff of another length", |h| {
        if let Fact::AgentDegraded { wait_ms, .. } = fact(h, "agent_degraded") {
            *wait_ms += 1;
        }
    }),
];

#[test]
fn every_invariant_is_broken_by_some_history() {
    let mut missed = Vec::new();
    let crashes = crashes();
    let histories =
        [(TURNS, BROKEN_TURNS), (COMPACTIONS, BROKEN_COMPACTIONS), (&*crashes, BROKEN_CRASHES)];
    for (actions, rows) in histories {
        let sound = play(actions);
        let (in_world, in_log) = (check_steps(&sound), check_frames(&sound));
        assert!(in_world.is_empty() && in_log.is_empty(), "{in_world:?}\n{in_log:?}");
        for (rule, is_in_log, name, spoil) in rows {
            let mut steps = sound.clone();
            spoil(&mut steps);
            let mut ways = vec![("world", check_steps(&steps))];
            ways.extend(is_in_log.then(|| ("log", check_frames(&steps))));
            for (way, found) in ways {
                let is_named = |why: &String| {
                    let (rules, _) = why.split_once(':').unwrap_or_default();
                    rules.split(", ").any(|named| named == *rule)
                };
                if !found.iter().any(is_named) {
                    missed.push(format!("{rule}: {name} ({way}): {found:?}"));
                }
            }
        }
    }
    assert!(missed.is_empty(), "not found:\n{}", missed.join("\n"));
}
