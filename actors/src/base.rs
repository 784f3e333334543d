//! What a group's log came to up to a frame: what is kept in place of the frames that retention
//! deleted, and where [`verify`](crate::verify) begins (I13).
//!
//! A log is cut where no task has begun that is not over, so that no transcript of a task is ever
//! kept in part. The agent may be resident there, and tasks may wait: in a group that is never idle
//! the transcript is bounded all the same.

use greenroom_core::{
    Compaction, CompactionId, Digests, Head, Origin, PermissionId, Run, RunId, Task, TaskId,
    TaskKind, Timestamp, digest::SCHEMA_VERSION,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    agent::sessions::Reread,
    storage::{SegmentRecord, StoredBase, fault_in},
};

/// The folded log up to and with the frame [`Base::seq`].
///
/// It is read by later versions: a field that this one does not write needs a default there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Base {
    /// What is kept of the group; its `last_seq` is the last frame that was folded.
    pub head: Head,
    /// The tasks that waited. What callers gave is in their rows, which stay until they end.
    pub waiting: Vec<WaitingTask>,
    /// The run that was alive.
    pub run: Option<ResidentRun>,
    /// The compactions that it told of: more may be heard of them.
    pub compactions: Vec<KnownCompaction>,
    /// The open segment.
    pub segment: Option<SegmentRecord>,
    /// All before it.
    pub closed: ClosedSegments,
    /// How the frames that follow are read.
    pub reread: Reread,
    /// The latest time of a frame that was folded: a clock may have been set back since.
    pub newest_at: Timestamp,
    /// The digests up to there; absent in one of a version that knew none.
    #[serde(default)]
    pub digests: Option<Digests>,
}

impl Base {
    /// The last frame that was folded.
    pub fn seq(&self) -> u64 {
        self.head.last_seq
    }

    /// What the digests of the frames that follow are folded on from.
    pub fn digests(&self) -> Digests {
        let Some(digests) = &self.digests else {
            let run = self.run.as_ref().map(|own| (own.run.id, own.agent.as_str()));
            let waits = self.waiting.iter().find(|own| own.kind == TaskKind::Compaction);
            return Digests::behind(&self.head, run, waits.map(|own| own.id));
        };
        let mut digests = digests.clone();
        // It was perhaps written in an earlier form, and is of this one from here on.
        digests.run.iter_mut().for_each(|run| run.schema_version = SCHEMA_VERSION);
        digests
    }
}

impl From<&Base> for StoredBase {
    fn from(base: &Base) -> Self {
        let state = serde_json::to_string(base).unwrap_or_else(|_| "null".into());
        Self { seq: base.seq(), state }
    }
}

impl StoredBase {
    /// The base that was stored.
    ///
    /// # Errors
    ///
    /// It is none that this version knows: where, in words that quote nothing of it.
    pub fn read(&self) -> Result<Base, String> {
        serde_json::from_str(&self.state).map_err(|err| fault_in(&err))
    }
}

/// A task that was accepted and not started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaitingTask {
    /// The task.
    pub id: TaskId,
    /// Its place in the order of acceptance.
    pub ordinal: u64,
    /// Its kind.
    pub kind: TaskKind,
    /// Who asked for it.
    pub origin: Origin,
}

impl WaitingTask {
    /// What is kept of a task that waits.
    pub fn of(task: &Task) -> Self {
        Self { id: task.id, ordinal: task.ordinal, kind: task.kind(), origin: task.origin }
    }
}

/// A run that was alive, with what its row says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResidentRun {
    /// The run as the rules see it.
    pub run: Run,
    /// The launch profile.
    pub agent: String,
    /// The agent's process, if it had come to one.
    pub pid: Option<u32>,
    /// When its start was ordered.
    pub started_at: Timestamp,
    /// When it took prompts.
    pub ready_at: Option<Timestamp>,
}

/// A compaction with the times that its frames do not hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KnownCompaction {
    /// The compaction.
    pub record: Compaction,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

impl KnownCompaction {
    /// What is kept of a compaction.
    pub fn of(compaction: &Compaction) -> Self {
        let Compaction { started_at, ended_at, .. } = *compaction;
        Self { record: compaction.clone(), started_at, ended_at }
    }

    /// The compaction again.
    pub fn whole(self) -> Compaction {
        let Self { mut record, started_at, ended_at } = self;
        (record.started_at, record.ended_at) = (started_at, ended_at);
        record
    }
}

/// The segments that were closed. Their rows stay; they are counted here and hashed, so that a base
/// does not grow with the lineage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedSegments {
    /// How many.
    pub count: u32,
    /// SHA-256 in hexadecimal of the one before and the next segment, from the first on.
    pub digest: String,
}

impl ClosedSegments {
    /// Takes in the next one. Its provenance may become known late, and is no part of it.
    pub fn push(&mut self, segment: &SegmentRecord) {
        let SegmentRecord { segment, parent, session, opened, closed, provenance: _ } = segment;
        let next = serde_json::to_vec(&(segment, parent, session, opened, closed));
        let mut hash = Sha256::new();
        hash.update(&self.digest);
        hash.update(next.unwrap_or_default());
        self.count += 1;
        self.digest = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    }
}

/// What a stretch of a log leaves without further use: it ended there, and nothing that follows can
/// change it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Tasks.
    pub tasks: Vec<TaskId>,
    /// Runs.
    pub runs: Vec<RunId>,
    /// Compactions.
    pub compactions: Vec<CompactionId>,
    /// Permissions.
    pub permissions: Vec<PermissionId>,
}
