//! Tests of the plan: which facts change which rows, in which order.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use greenroom_core::{EndFrame, EndState, Ending, Group, GroupState, Origin, TaskKind, Work};
use uuid::Uuid;

use super::*;
use crate::{
    acp,
    storage::{DigestRows, GroupSummary, SealedDigests},
    transcript::frame,
};

const AT: Timestamp = Timestamp(5);
const RUN: RunId = RunId(Uuid::from_u128(9));

fn id(number: u64) -> TaskId {
    TaskId(Uuid::from_u128(number.into()))
}

fn task(number: u64) -> Task {
    let work = Work::Turn { prompt: acp::empty_prompt() };
    Task { ordinal: number, ..Task::new(id(number), work, Origin::Api) }
}

fn queued(number: u64) -> Fact {
    let record = Box::new(task(number));
    Fact::TaskQueued { task: id(number), kind: TaskKind::Turn, origin: Origin::Api, record }
}

fn started(number: u64) -> Fact {
    Fact::TaskStarted { task: id(number), attempt: 1, run: RUN }
}

fn turn_started(strategy: Option<Strategy>) -> Fact {
    Fact::TurnStarted { task: id(1), prompt: acp::empty_prompt(), strategy, after_restore: false }
}

fn ready(provenance: Option<Provenance>) -> Fact {
    let session = SessionId("one".into());
    let (continuity, is_forgetful) = (Continuity::New, false);
    Fact::RunReady {
        run: RUN,
        pid: 1,
        session,
        continuity,
        provenance,
        is_forgetful,
        prompts: None,
    }
}

fn provenance() -> Provenance {
    let given = acp::empty_prompt();
    Provenance { current: "one".into(), previous: None, compacted: false, given }
}

fn rotation() -> [Fact; 3] {
    let session = SessionId("two".into());
    [
        Fact::SegmentEnded { segment: 2, end_reason: EndReason::Compaction },
        Fact::SegmentStarted {
            segment: 3,
            parent: Some(2),
            session: session.clone(),
            provenance: None,
        },
        Fact::LockReleased { key: session, holder: "we".into(), token: 1, fences: true },
    ]
}

/// Returns the commit of these facts of a group whose log ends with frame 4, in segment 2.
fn commit(facts: Vec<Fact>) -> GroupCommit {
    let state = GroupState { last_seq: 4, segment: 2, ..GroupState::new(Settings::default()) };
    let mut group = Group::restore(state, Vec::new(), None, None, [], Vec::new());
    let facts: Vec<_> = facts.into_iter().map(|fact| group.record(fact, AT)).collect();
    GroupCommit {
        group: 1,
        epoch: 1,
        at: AT,
        summary: GroupSummary::of("work".parse().unwrap(), &group),
        blocks: frame::pack(AT, &facts),
        facts,
        digests: None,
        key: None,
    }
}

/// Returns the changes before the frames: of tasks with their numbers, of others the names.
fn rows(commit: &GroupCommit) -> Vec<String> {
    let name = |change: &RowChange<'_>| match change {
        RowChange::AcceptTask { task, start } => match start {
            None => format!("accept {}", task.ordinal),
            Some(start) => format!("accept {}, START {}", task.ordinal, start.seq),
        },
        RowChange::StartTask { task, start } => {
            format!("START {} of {}", start.seq, task.0.as_u128())
        }
        other => {
            let text = format!("{other:?}");
            text.split(|letter: char| !letter.is_alphabetic()).next().unwrap().to_owned()
        }
    };
    let planned = plan(commit);
    planned.changes.iter().map(name).filter(|name| name != "InsertBlock").collect()
}

/// One line a commit. A task that starts as it is accepted is written once.
#[test]
fn facts_change_rows_in_their_order() {
    #[rustfmt::skip]
    let cases: [(&str, Vec<Fact>, &[&str]); 13] = [
        ("accepted",                   vec![queued(1)],                                        &["accept 1"]),
        ("accepted and started",       vec![queued(1), started(1), turn_started(None)],        &["accept 1, START 6"]),
        ("accepted and claimed",       vec![queued(1), Fact::TaskClaimed { task: id(1) }],     &["accept 1", "ClaimTask"]),
        ("started after another fact", vec![queued(1), Fact::GroupPaused {}, started(1)],      &["accept 1", "START 7 of 1"]),
        ("two accepted",               vec![queued(1), queued(2)],                             &["accept 1", "accept 2"]),
        ("two accepted, the first started", vec![queued(1), queued(2), started(1)],            &["accept 1", "START 7 of 1", "accept 2"]),
        ("accepted while an earlier one starts", vec![queued(2), started(1)],                  &["START 6 of 1", "accept 2"]),
        ("a compaction by the same profile", vec![turn_started(None)],                         &[]),
        ("a compaction by another profile", vec![turn_started(Some(Strategy::Rotate))],        &["ChangeCompactionTask"]),
        ("ready",                      vec![ready(None)],                                      &["SetRunReady"]),
        ("ready, with provenance",     vec![ready(Some(provenance()))],                        &["SetRunReady", "SetProvenance"]),
        ("a rotation",                 rotation().into(),                                      &["CloseSegment", "OpenSegment", "ReleaseLock"]),
        ("the group's own row",        vec![Fact::GroupPaused {}, Fact::GroupResumed {}, Fact::GroupArchived {}], &[]),
    ];
    for (name, facts, expected) in cases {
        assert_eq!(rows(&commit(facts)), expected, "{name}");
    }
}

/// I3, AM-11: rows have the places of their facts.
#[test]
fn rows_have_the_places_of_their_facts() {
    let [closed, opened, _] = rotation();
    let commit = commit(vec![closed, opened, queued(1), started(1)]);
    let planned = plan(&commit);
    let [
        RowChange::CloseSegment { segment: 2, seq: 5, .. },
        RowChange::OpenSegment(segment),
        RowChange::AcceptTask { start: Some(start), .. },
        ..,
    ] = &planned.changes[..]
    else {
        panic!("{planned:?}")
    };
    assert_eq!((segment.segment, segment.opened), (3, (6, AT)));
    assert_eq!(*start, AttemptStart { attempt: 1, run: RUN, segment: 3, seq: 8 });
}

/// The frames follow the rows of the facts; then digests, which are of these rows; then the key.
#[test]
fn frames_digests_and_the_key_come_last() {
    let turn = || TurnRow { ended_at: AT, agent: None, digest: "{}".into() };
    let sealed = SealedDigests {
        runs: [(RUN, "{}".into())].into(),
        turns: BTreeMap::from([(id(1), turn()), (id(2), turn())]),
    };
    let (frame, ending) = (EndFrame { at: AT, seq: 5 }, Ending::default());
    let ended = task(1).ended(1, EndState::Completed, frame, ending);
    let mut commit = commit(vec![Fact::task_ended(TaskKind::Turn, ended)]);
    commit.digests = Some(DigestRows { sealed, ..DigestRows::default() });
    commit.key = Some(KeyUse { key: [0; 32], body: [0; 32], task: id(1) });
    let planned = plan(&commit);
    let [
        RowChange::EndTask(_),
        RowChange::InsertBlock(_),
        RowChange::SealRun { .. },
        RowChange::SealTurn { ordinal: Some(1), .. },
        RowChange::SealTurn { ordinal: None, .. },
        RowChange::UseKey(_),
    ] = &planned.changes[..]
    else {
        panic!("{planned:?}")
    };
}

/// I3: the log has to end right before the commit's first fact, also if that is no frame.
#[test]
fn a_commit_follows_the_frame_before_it() {
    let created = Fact::GroupCreated(Settings::default());
    #[rustfmt::skip]
    let cases = [
        ("no fact",               vec![],                                 (false, 4)),
        ("frames",                vec![queued(1), started(1)],            (false, 4)),
        ("a fact without frames", vec![Fact::LockAsked { task: id(1) }],  (false, 4)),
        ("a new group",           vec![created, queued(1)],               (true, 4)),
    ];
    for (name, facts, expected) in cases {
        let commit = commit(facts);
        let Plan { created, last_seq_before, .. } = plan(&commit);
        assert_eq!((created.is_some(), last_seq_before), expected, "{name}");
    }
}
