//! The checkpoint: a group's projected state at one frame.
//!
//! It replaces the frames that retention deleted, and a replay of the log begins with it (I13).
//!
//! A log is truncated only between tasks, so that the transcript of a task is kept whole or not at
//! all. The agent may be running there and tasks may wait, so the transcript of a group that is
//! never idle is bounded too.

use greenroom_core::{
    Compaction, Digests, GroupState, MessageOwners, Origin, Run, SessionCursor, Task, TaskId,
    TaskKind, Timestamp, digest::SCHEMA_VERSION,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::storage::{SegmentRecord, StoredCheckpoint, fault_in};

/// The projected log up to the frame [`Checkpoint::seq`], which is included.
///
/// Later versions read it: a field that this version does not write needs a default there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The group's state; its `last_seq` is the last projected frame.
    #[serde(rename = "head")]
    pub state: GroupState,
    /// The waiting tasks. The callers' values are in their rows, which stay until the tasks end.
    pub waiting: Vec<WaitingTask>,
    /// The run that was alive.
    pub run: Option<ResidentRun>,
    /// The compactions that later signals may still concern.
    pub compactions: Vec<KnownCompaction>,
    /// The open segment.
    pub segment: Option<SegmentRecord>,
    /// The segments before it.
    pub closed: ClosedSegments,
    /// How the following frames are read.
    #[serde(rename = "reread")]
    pub cursor: SessionCursor,
    /// Whose the messages of the run are; absent in a checkpoint of an earlier version.
    #[serde(default)]
    pub message_owners: MessageOwners,
    /// The latest time of a projected frame: the clock may have been set back since.
    pub newest_at: Timestamp,
    /// The digests up to the frame; absent in a checkpoint of a version without digests.
    #[serde(default)]
    pub digests: Option<Digests>,
}

impl Checkpoint {
    /// Returns the last projected frame.
    pub fn seq(&self) -> u64 {
        self.state.last_seq
    }

    /// Returns the digests that the projection of the following frames continues.
    pub fn digests(&self) -> Digests {
        let Some(digests) = &self.digests else {
            let run = self.run.as_ref().map(|alive| (alive.run.id, alive.agent.as_str()));
            let waits = self.waiting.iter().find(|task| task.kind == TaskKind::Compaction);
            return Digests::after_truncation(&self.state, run, waits.map(|task| task.id));
        };
        let mut digests = digests.clone();
        // An earlier form is continued in this version's form.
        digests.run.iter_mut().for_each(|run| run.schema_version = SCHEMA_VERSION);
        digests
    }
}

impl From<&Checkpoint> for StoredCheckpoint {
    fn from(checkpoint: &Checkpoint) -> Self {
        let state = serde_json::to_string(checkpoint).unwrap_or_else(|_| "null".into());
        Self { seq: checkpoint.seq(), state }
    }
}

impl StoredCheckpoint {
    /// Parses the stored checkpoint.
    ///
    /// # Errors
    ///
    /// Why this version cannot read it, in words that quote nothing of it.
    pub fn read(&self) -> Result<Checkpoint, String> {
        let mut read: Checkpoint =
            serde_json::from_str(&self.state).map_err(|err| fault_in(&err))?;
        read.cursor = read.cursor.in_session(read.state.session_id());
        Ok(read)
    }
}

/// A task that is accepted and not started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaitingTask {
    /// The task.
    pub id: TaskId,
    /// Its place in the order of acceptance.
    pub ordinal: u64,
    /// Its kind.
    pub kind: TaskKind,
    /// Its origin.
    pub origin: Origin,
}

impl WaitingTask {
    /// The stored part of a waiting task.
    pub fn of(task: &Task) -> Self {
        Self { id: task.id, ordinal: task.ordinal, kind: task.kind(), origin: task.origin }
    }
}

/// A run that is alive, with the columns of its row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResidentRun {
    /// The run in core's state.
    pub run: Run,
    /// The launch profile.
    pub agent: String,
    /// The agent's process, if it was spawned.
    pub pid: Option<u32>,
    /// When its start was ordered.
    pub started_at: Timestamp,
    /// When it was ready for prompts.
    pub ready_at: Option<Timestamp>,
}

/// A compaction with the times that are not in its frames.
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
    /// The stored part of a compaction.
    pub fn of(compaction: &Compaction) -> Self {
        let Compaction { started_at, ended_at, .. } = *compaction;
        Self { record: compaction.clone(), started_at, ended_at }
    }

    /// Returns the compaction with its times.
    pub fn into_compaction(self) -> Compaction {
        let Self { mut record, started_at, ended_at } = self;
        (record.started_at, record.ended_at) = (started_at, ended_at);
        record
    }
}

/// The closed segments. Their rows stay. The checkpoint only has their number and hash, so that it
/// does not grow with the lineage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedSegments {
    /// Their number.
    pub count: u32,
    /// SHA-256 in hexadecimal of the previous digest and the next segment; begins with the first.
    pub digest: String,
}

impl ClosedSegments {
    /// Adds the next segment, without its provenance, which may become known late.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use greenroom_core::{OutputSummary, Usage};
    use greenroom_testing::driver::Driver;

    use super::*;

    /// I13, AM-13: the frames after a checkpoint are read as they were live, also after one of an
    /// earlier version, which has no session in force for its cursor.
    #[test]
    fn a_checkpoint_of_an_earlier_version_has_its_session_in_force() {
        let state = Driver::idle().group.state().clone();
        let cursor = SessionCursor::between_runs(state.session_id().cloned());
        let checkpoint = Checkpoint {
            state,
            waiting: Vec::new(),
            run: None,
            compactions: Vec::new(),
            segment: None,
            closed: ClosedSegments::default(),
            cursor,
            message_owners: MessageOwners::default(),
            newest_at: Timestamp(0),
            digests: None,
        };
        let stored = StoredCheckpoint::from(&checkpoint);
        let earlier = stored.state.replace(r#","session":"s","moves""#, r#","moves""#);
        assert_ne!(earlier, stored.state);
        let read = StoredCheckpoint { state: earlier, ..stored.clone() }.read().unwrap();
        assert_eq!((&read, stored.read().as_ref()), (&checkpoint, Ok(&checkpoint)));
        let usage = Some(Usage { used: 1, size: 2, cost: None });
        for (named, counts) in [("s", true), ("other", false)] {
            let summary = OutputSummary { usage: usage.clone(), ..OutputSummary::default() };
            let counted = read.cursor.counted(Some(named), summary);
            assert_eq!(counted.usage.is_some(), counts, "{named}");
        }
    }
}
