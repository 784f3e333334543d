//! What a database restores is what the rules made: rows, frames, and the gauges.

use std::collections::BTreeMap;

use greenroom_actors::{
    acp::session,
    storage::{FrameFilter, GaugeSnapshot, GroupCommit, ReadStore, Store, StoredGroup},
};
use greenroom_core::{
    Blocked, Compaction, Fact, Group, RunId, SessionCursor, SignalKind, Source, Task, TaskState,
    Timestamp,
};
use greenroom_testing::{
    invariants::{LogFrame, check_log},
    world::{Action, DetectorSignal, TimerKind, actions},
};
use proptest::{prelude::*, test_runner::TestRunner};

use super::{
    Engine,
    actor::{Actor, READY, SUBMIT, commit},
    conformance::{EVERYTHING, UP, tasks},
};

/// I13 through the database, I3, and byte for byte (AM-10): a new server restores every history,
/// stored in batches of any size, to the state that made it.
pub fn any_history_is_restored_as_it_was<E: Engine>() {
    let config = ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() };
    let strategy = (actions(150), prop::collection::vec((1..6_usize, any::<bool>()), 1..8));
    TestRunner::new(config)
        .run(&strategy, |(history, batches)| {
            let dir = tempfile::tempdir().unwrap();
            let mut engine = E::open(dir.path()).unwrap();
            let mut store = engine.store();
            let mut actor = Actor::new(7);
            let mut batch: Vec<GroupCommit> = Vec::new();
            let mut sizes = batches.iter().cycle();
            let (mut size, mut merged) = (1, false);
            for next in history {
                if matches!(next, Action::Crash) {
                    commit(&mut store, &batch);
                    batch.clear();
                    drop((store, engine));
                    engine = E::open(dir.path()).unwrap();
                    store = engine.store();
                    check(&actor, &mut store, &engine.read_store());
                    actor.epoch += u64::from(actor.world.group.state().created_at.is_some());
                }
                // Facts of the same time may be one commit.
                let moment = actor.world.now;
                actor.world.now.0 -= i64::from(merged && !batch.is_empty());
                let Some(facts) = actor.play(next) else {
                    actor.world.now = actor.world.now.max(moment);
                    continue;
                };
                match batch.last_mut() {
                    Some(last) if merged && last.at == facts.at => {
                        last.summary = facts.summary;
                        last.facts.extend(facts.facts);
                        last.blocks.extend(facts.blocks);
                    }
                    _ => batch.push(facts),
                }
                if batch.len() >= size {
                    commit(&mut store, &batch);
                    batch.clear();
                    (size, merged) = *sizes.next().unwrap();
                }
            }
            commit(&mut store, &batch);
            check(&actor, &mut store, &engine.read_store());
            if actor.world.group.state().created_at.is_some() {
                check_gauges(&actor, &engine.read_store());
            }
            Ok(())
        })
        .unwrap();
}

/// I13: after a restart, a retried task gets no compaction of its first attempt as its outcome, as
/// before the restart; the count stays.
pub fn an_attempt_is_restored_without_the_compactions_of_earlier_ones<E: Engine>() {
    let dir = tempfile::tempdir().unwrap();
    let engine = E::open(dir.path()).unwrap();
    let (mut store, mut actor) = (engine.store(), Actor::new(7));
    let (source, kind) = (Source::HermesStderr, SignalKind::Completed);
    let completed =
        Action::CompactionSignal(DetectorSignal { source, kind, key: 0, lineage: (1, 0) });
    let retry = [
        Action::AnswerPromptWithError(-32603),
        Action::FireTimerOf(TimerKind::Backoff),
        Action::GrantSlot,
    ];
    for next in [Action::ChangeSettings(0, 12), SUBMIT, Action::GrantSlot, READY, completed]
        .into_iter()
        .chain(retry)
    {
        let facts = actor.play(next);
        commit(&mut store, facts.as_slice());
    }
    let current = actor.world.group.current().unwrap();
    assert_eq!((current.state(), current.attempt), (TaskState::Running, 2));
    assert_eq!(actor.world.restorable_compactions().len(), 0);
    assert_eq!(actor.world.group.state().compacting.count, 1);
    check(&actor, &mut store, &engine.read_store());
}

/// Returns the compactions as their rows hold them: a run's expected signals end with it.
fn shown(compactions: &[Compaction]) -> Vec<(String, Timestamp, Option<Timestamp>)> {
    let text = |compaction| serde_json::to_string(compaction).unwrap();
    compactions.iter().map(|row| (text(row), row.started_at, row.ended_at)).collect()
}

/// Compares the stored rows with the world.
fn check(actor: &Actor, store: &mut impl Store, read_store: &impl ReadStore) {
    let (group, world) = (&actor.world.group, &actor.world);
    let Some(StoredGroup {
        state, tasks: open, run, compactions, permissions, known_sessions, ..
    }) = store.adopt(actor.no, UP).unwrap()
    else {
        assert_eq!(group.state().created_at, None);
        return;
    };
    // A run's phase and an attempt's cancel reason are not stored: the tests of the rules show that
    // recovery does not depend on them.
    assert_eq!(run.map(|run| run.id), group.run().map(|run| run.id));
    let (kept, run) = (world.restorable_compactions(), group.run().cloned());
    assert_eq!(shown(&compactions), shown(&kept));
    let attempt = group.attempt().cloned();
    let restored = Group::restore(state, open, run, attempt, kept, permissions);
    assert_eq!(restored.with_known_sessions(known_sessions), world.restored());
    let stored = read_store.compactions(actor.no, None, 10_000).unwrap();
    let mut stored: Vec<_> = stored.into_iter().map(|(_, compaction)| compaction).collect();
    stored.sort_by_key(|compaction| compaction.id);
    let all: Vec<_> = world.compactions().cloned().collect();
    assert_eq!(shown(&stored), shown(&all));
    assert_eq!(read_store.group(actor.no).unwrap(), Some(actor.summary()));
    let all = world.tasks();
    assert_eq!(tasks(read_store, actor.no), all);
    let blocks = read_store.blocks(actor.no, &EVERYTHING).unwrap();
    assert_eq!(blocks, actor.blocks);
    let frames = blocks.iter().flat_map(|block| block.frames().map(move |frame| (block, frame)));
    let frames = frames.map(|(block, frame)| LogFrame {
        place: block.place(frame),
        kind: frame.kind,
        payload: frame.payload,
    });
    let violations = check_log(frames);
    assert!(violations.is_empty(), "{violations:?}");
    let seqs: Vec<u64> = blocks.iter().flat_map(|b| b.frames().map(|f| f.seq)).collect();
    assert_eq!(seqs, (1..=group.state().last_seq).collect::<Vec<_>>());
    let segments = read_store.segments(actor.no, 0, 10_000).unwrap();
    let numbers: Vec<u32> = segments.iter().map(|segment| segment.segment).collect();
    assert_eq!(numbers, (1..=group.state().segment).collect::<Vec<_>>());
    for pair in segments.windows(2) {
        let last = pair[0].closed.as_ref().map(|(seq, ..)| *seq);
        assert_eq!(last, Some(pair[1].opened.0 - 1), "AM-12: {pair:?}");
    }
    assert!(segments.last().is_none_or(|open| open.closed.is_none()), "AM-11: {segments:?}");
    let runs = read_store.runs(actor.no, None, 10_000).unwrap();
    let alive: Vec<RunId> = runs.iter().filter(|r| r.ended.is_none()).map(|run| run.id).collect();
    assert_eq!(alive, group.run().map(|run| run.id).into_iter().collect::<Vec<_>>());
    if let (Some(live), Some(task)) = (group.attempt(), group.current()) {
        let mut restored = greenroom_core::Attempt::new(live.run, live.prompt_id);
        (restored.cancel_reason, restored.is_archived) = (live.cancel_reason, live.is_archived);
        // No frame holds the request for another session.
        restored.opening = live.opening;
        let after = task.start().unwrap().seq - 1;
        let filter = FrameFilter { after, task: Some(task.id), ..EVERYTHING };
        let blocks = read_store.blocks(actor.no, &filter).unwrap();
        let frames = blocks
            .iter()
            .flat_map(|block| block.frames().filter(|frame| filter.takes(block, *frame)));
        let mut cursor = SessionCursor::default();
        for frame in frames {
            let summary = session::summarize(&mut cursor, frame.kind, frame.payload);
            restored.add_output(&summary);
            if let Some(Ok(fact @ (Fact::TurnStarted { .. } | Fact::AgentOutputRejected { .. }))) =
                Fact::read(frame.kind, frame.payload)
            {
                restored.apply(&fact);
            }
        }
        assert_eq!(&restored, live, "the frames hold the output of an attempt");
    }
}

/// Compares the gauges with the only group.
fn check_gauges(actor: &Actor, read_store: &impl ReadStore) {
    let (summary, tasks) = (actor.summary(), actor.world.tasks());
    let open: Vec<&Task> = tasks.iter().filter(|task| !task.state().is_terminal()).collect();
    let mut expected = GaugeSnapshot {
        groups: BTreeMap::from([(wire_name(&summary.status), 1)]),
        queued: summary.queue_length,
        wait_for_slot: u64::from(summary.blocked_by == Some(Blocked::Slot)),
        permissions: actor.world.group.permissions().len() as u64,
        compactions: u64::from(summary.is_compacting),
        ..GaugeSnapshot::default()
    };
    for task in &open {
        *expected.tasks.entry((wire_name(&task.kind()), wire_name(&task.state()))).or_default() +=
            1;
        if task.state() == TaskState::Running {
            expected.running_since.insert(wire_name(&task.kind()), task.start().unwrap().at);
        }
    }
    // The oldest is the first accepted: the wall clock may have been set back since.
    let waits = |task: &&&Task| task.state() != TaskState::Running;
    let (claimed, waiting): (Vec<&Task>, Vec<&Task>) =
        open.iter().filter(waits).partition(|task| task.has_slot());
    if let Some(first) = waiting.iter().min_by_key(|task| task.ordinal) {
        expected.waiting_since.insert(wire_name(&summary.blocked_by), first.created_at);
    }
    for task in claimed {
        let by = wire_name(&Some(Blocked::Agent));
        let oldest = expected.waiting_since.entry(by).or_insert(task.created_at);
        *oldest = task.created_at.min(*oldest);
    }
    assert_eq!(read_store.gauges(&[]).unwrap(), expected, "{open:#?}");
}

/// Returns the API's name of a value.
fn wire_name(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).unwrap().as_str().unwrap().to_owned()
}
