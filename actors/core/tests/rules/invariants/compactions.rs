//! Compactions, and how their histories are broken.

use greenroom_core::{CompactionStatus, Fact, SignalKind, Source, TaskId};
use greenroom_testing::world::{Action, AgentMessage, DetectorSignal, LockReply, situations::*};
use uuid::Uuid;

use super::{History, Row, fact, find, forget, insert, remove, renumber, repeat};

const COMPACTS: Action = signal(Source::HermesStderr, SignalKind::Started);
const COMPACTED: Action = signal(Source::Acp, SignalKind::Completed);

const fn signal(source: Source, kind: SignalKind) -> Action {
    Action::CompactionSignal(DetectorSignal { source, kind, key: 0, lineage: (0, 0) })
}

/// Returns each sound history with what breaks it.
pub fn broken() -> Vec<History> {
    let summary_only = [IDLE, SUMMARY_ONLY].concat();
    let likewise = [&*summary_only, &[Action::CompactByRotation, ANSWER]].concat();
    vec![
        (COMPACTIONS.to_vec(), BROKEN_COMPACTIONS),
        ([&*summary_only, &[ANSWER]].concat(), &[]),
        (likewise, &[]),
    ]
}

/// A turn without output, in a session that is full and holds only a summary.
#[rustfmt::skip]
const SUMMARY_ONLY: &[Action] = &[
    Action::CompactByRotation, LOCK_ACQUIRED, Action::GrantSlot, OUTPUT, ANSWER,
    Action::OpenSession(true), SUBMIT, Action::GrantSlot, Action::Output(AgentMessage::Usage(190)),
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
    Action::Compact, Action::AnswerLock(LockReply::Failed),
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
            ended.status = CompactionStatus::Failed;
        }
    }),
    ("AM-23: were completed", false, "a completed compaction is not counted", |h| {
        forget(h, "compaction_ended", 1);
    }),
    ("AM-31", false, "another source than the first one's", |h| {
        if let Fact::CompactionStarted(started) = fact(h, "compaction_started") {
            started.source = Source::Acp;
        }
    }),
    ("AM-31", false, "another time of a start", |h| {
        let (step, _) = find(h, "compaction_started", 0);
        h[step].begun.now.wall.0 += 1;
    }),
    ("AM-31", false, "another time of a completion", |h| {
        let (step, _) = find(h, "segment_ended", 0);
        h[step].begun.now.wall.0 += 1;
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
        if let Fact::CompactionRests { due, .. } = fact(h, "compaction_rests") {
            due.ms += 1;
        }
    }),
];
