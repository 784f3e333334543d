//! The trait `ReadStore`: what readers ask of a database.

use std::collections::{BTreeMap, BTreeSet};

use greenroom_core::{
    Compaction, Digest, PermissionId, RunId, TaskId, Uptime,
    lock::{Lock, LockKey},
};

use super::{
    CurrentView, DigestRows, EndedAt, EndedFilter, EndedTurn, FrameFilter, GaugeSnapshot,
    GroupIndex, GroupNo, GroupSummary, KeyUse, Listed, LockError, PermissionFilter,
    PermissionRecord, RunDigestRow, RunRecord, SegmentRecord, Snapshot, StoreError,
    StoredCheckpoint, TaskFilter, TaskView, TurnEntry, TurnFilter, Unreadable,
};
use crate::transcript::frame::Block;

/// What a database must be able to read. Each call sees one committed state. Lists leave out
/// unreadable rows (AM-18), and [`ReadStore::left_out`] returns them.
pub trait ReadStore: Send + 'static {
    /// Takes the rows that were left out since the last call.
    fn left_out(&self) -> Vec<Unreadable> {
        Vec::new()
    }

    /// Sets how many bytes of rows the next lists may read together: a list that reaches the limit
    /// ends after that row. `None`: all. The limit lasts for one query.
    fn limit_bytes(&self, _bytes: Option<usize>) {}

    /// Whether a list has ended at the limit of bytes since it was set. More may follow then.
    fn is_cut(&self) -> bool {
        false
    }

    /// All groups.
    ///
    /// # Errors
    ///
    /// The database's error, as for every call here.
    fn group_index(&self) -> Result<GroupIndex, StoreError>;

    /// One group.
    fn group(&self, group: GroupNo) -> Result<Option<GroupSummary>, StoreError>;

    /// The epoch of a group's owner; `None` if there is no such group, or none that can be read.
    fn epoch(&self, group: GroupNo) -> Result<Option<u64>, StoreError>;

    /// Groups with numbers above `after`, in the order of their numbers.
    fn groups(
        &self,
        status: Option<&str>,
        after: GroupNo,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError>;

    /// The number of groups by status, and the number of their waiting tasks; `broken` groups are
    /// left out.
    fn status_counts(&self, broken: &[GroupNo])
    -> Result<(BTreeMap<String, u64>, u64), StoreError>;

    /// The gauges of a scrape, at one moment, without the `broken` groups.
    fn gauges(&self, broken: &[GroupNo]) -> Result<GaugeSnapshot, StoreError>;

    /// One task.
    fn task(&self, task: TaskId) -> Result<Option<TaskView>, StoreError>;

    /// Tasks of a group in the order of acceptance.
    fn tasks(&self, group: GroupNo, filter: &TaskFilter) -> Result<Vec<TaskView>, StoreError>;

    /// Returns the group's tasks whose rows have columns that their state cannot have. Of such a
    /// row the state counts.
    ///
    /// # Errors
    ///
    /// The database's error.
    fn contradictory_tasks(&self, group: GroupNo) -> Result<BTreeSet<TaskId>, StoreError>;

    /// Names the group's runs, segments and permissions of the same kind.
    ///
    /// # Errors
    ///
    /// The database's error.
    fn contradictory_rows(&self, group: GroupNo) -> Result<Vec<String>, StoreError>;

    /// Runs of a group before the run `before`, the newest first.
    fn runs(
        &self,
        group: GroupNo,
        before: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<RunRecord>, StoreError>;

    /// Segments of a group above `after`, in order.
    fn segments(
        &self,
        group: GroupNo,
        after: u32,
        limit: usize,
    ) -> Result<Vec<SegmentRecord>, StoreError>;

    /// Compactions of a group before the seq `before`, the newest first, each with the seq of its
    /// first frame.
    fn compactions(
        &self,
        group: GroupNo,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<(u64, Compaction)>, StoreError>;

    /// One permission.
    fn permission(&self, id: PermissionId) -> Result<Option<PermissionRecord>, StoreError>;

    /// Permissions in the order in which agents asked for them.
    fn permissions(&self, filter: &PermissionFilter) -> Result<Vec<PermissionRecord>, StoreError>;

    /// A group's digest: one row. `None` if there is none in this version's form.
    fn digest(&self, group: GroupNo) -> Result<Option<Digest>, StoreError>;

    /// A run's digest: one row, once the run has ended.
    fn run_digest(&self, run: RunId) -> Result<Option<RunDigestRow>, StoreError>;

    /// All digests of a group as they are stored, for a comparison. `None` if there are none in
    /// this version's form.
    fn digest_rows(&self, group: GroupNo) -> Result<Option<DigestRows>, StoreError>;

    /// Started turns of a group, in the order of acceptance or in reverse.
    fn turns(&self, group: GroupNo, filter: &TurnFilter) -> Result<Vec<TurnEntry>, StoreError>;

    /// Started tasks of all groups that ended within a time and after a place, in the order of
    /// their ends.
    fn ended_turns(&self, filter: &EndedFilter) -> Result<Vec<EndedTurn>, StoreError>;

    /// Up to which ended task the exporter `name` has exported; `None` if it never has.
    fn exported(&self, name: &str) -> Result<Option<EndedAt>, StoreError>;

    /// What a client needs that joins late.
    fn snapshot(&self, group: GroupNo) -> Result<Option<Snapshot>, StoreError>;

    /// The part of a group's transcript that is in force.
    fn current_view(&self, group: GroupNo) -> Result<CurrentView, StoreError>;

    /// Blocks with frames of a group; the caller filters the frames.
    fn blocks(&self, group: GroupNo, filter: &FrameFilter) -> Result<Vec<Block>, StoreError>;

    /// The checkpoint of a group whose log was truncated; `None` if all of the log is kept.
    fn checkpoint(&self, group: GroupNo) -> Result<Option<StoredCheckpoint>, StoreError>;

    /// The number of the first frame that is kept of a group's log, or of its next frame if none is
    /// kept.
    fn earliest_seq(&self, group: GroupNo) -> Result<u64, StoreError>;

    /// The request that an idempotency key was used for.
    fn key(&self, key: &[u8; 32]) -> Result<Option<KeyUse>, StoreError>;

    /// Calls `read` with a store that shows the same committed state for all of its calls.
    fn in_one_snapshot(&self, read: &mut dyn FnMut(&dyn ReadStore)) -> Result<(), StoreError>;

    /// A lock as it is stored, even if it has expired.
    ///
    /// # Errors
    ///
    /// [`LockError::Absent`] if the database has no table of locks, or the database's error.
    fn lock(&self, key: &LockKey) -> Result<Option<Lock>, LockError>;

    /// The number of locks whose lease has not expired.
    ///
    /// # Errors
    ///
    /// [`LockError::Absent`] if the database has no table of locks, or the database's error.
    fn lock_count(&self, now: Uptime) -> Result<u64, LockError>;
}
