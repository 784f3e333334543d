//! Durable state: the words in which greenroom speaks to a database, and the actor that commits.
//!
//! All commits go through one actor on a thread of its own. Whatever waits in its mailbox, of all
//! groups, becomes one transaction: that is worth more than a laxer sync.

mod actor;
mod digests;
mod error;
mod fault;
mod filter;
mod health;
pub mod holder;
pub mod lease;
mod ledger;
mod lock;
mod reader;
mod salvage;
pub mod sqlite;
mod tally;
mod unreadable;

use std::collections::BTreeMap;

use greenroom_core::{
    Blocked, Compaction, Digest, Digests, EndReason, Exit, GroupId, Head, Permission, PermissionId,
    PermissionState, Provenance, Run, RunId, SessionId, Status, Task, TaskId, Timestamp, Trust,
    Write,
    lock::{Holder, Lease, Lock, LockKey, Now, Uptime},
};

pub(crate) use self::actor::KEY_MS;
pub use self::{
    actor::{
        Adopt, Commit, Found, Purge, PutClosed, PutDigests, PutExported, Storage, Sweep, Trusted,
    },
    digests::{
        ClosedRows, DigestRows, EndedAt, EndedFilter, EndedTurn, RunStanding, TurnEntry,
        TurnFilter, TurnRow,
    },
    error::StoreError,
    fault::{Failing, Fault},
    filter::{CurrentView, FrameFilter, PermissionFilter, TaskFilter},
    health::{Sizes, StorageHealth},
    ledger::Ledger,
    lock::{Granted, LockAcquire, LockAsk, LockError, LockRefresh, LockRelease},
    reader::{Query, Reader},
    salvage::{Rebuilt, Salvage, SalvagedPermission, SalvagedTask},
    tally::Tally,
    unreadable::{Broken, Unreadable, fault_in, once},
};
use serde::{Deserialize, Serialize};

use crate::{base::Ended, frames::Block};

/// Where, below the data directory, the agents of groups work if nobody says where: each in a
/// directory that has its group's number for a name.
pub const WORK_DIR: &str = "work";

/// A group's number in the database.
pub type GroupNo = u32;
/// The last number that a frame or a task of a group can have.
pub const SEQ_MAX: u64 = (1 << 36) - 1;
/// The last number that a group can have.
pub const GROUP_MAX: GroupNo = (1 << 27) - 2;

/// One group's facts, all of them durable together or none.
#[derive(Debug)]
pub struct Writes {
    /// The group.
    pub group: GroupNo,
    /// The owner's epoch (I14).
    pub epoch: u64,
    /// The wall clock's time.
    pub at: Timestamp,
    /// The group after the facts.
    pub standing: Standing,
    /// The facts.
    pub writes: Vec<Write>,
    /// The facts' frames.
    pub blocks: Vec<Block>,
    /// The digests after the facts, unless they are no frames (I6).
    pub digests: Option<DigestRows>,
    /// The caller's idempotency key, if the facts answer one.
    pub key: Option<KeyUse>,
}

/// A group as lists show it.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// Its name.
    pub id: GroupId,
    /// What is kept of it.
    pub head: Head,
    /// What it does.
    pub status: Status,
    /// What its next task waits for.
    pub blocked_by: Option<Blocked>,
    /// How many tasks wait.
    pub queue_length: u64,
    /// The task that has its slot.
    pub current_task: Option<TaskId>,
    /// The run that is alive.
    pub current_run: Option<RunId>,
    /// Whether a compaction may be going on.
    pub is_compacting: bool,
}

/// An idempotency key as it is kept: hashes only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// SHA-256 of caller, method, path and key.
    pub key: [u8; 32],
    /// SHA-256 of the body.
    pub body: [u8; 32],
    /// The task that the request made.
    pub task: TaskId,
}

/// What a group's log came to, in the words of whoever cut it: see [`crate::base::Base`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBase {
    /// The last frame that it covers.
    pub seq: u64,
    /// All the rest, JSON.
    pub state: String,
}

/// A group's log is to be kept from behind a frame on.
#[derive(Clone, Debug)]
pub struct Cut {
    /// The group.
    pub group: GroupNo,
    /// What the log came to there. It is the last frame of a block.
    pub base: StoredBase,
    /// What ended up to there.
    pub ended: Ended,
    /// Idempotency keys from before this moment are forgotten first: none may outlive its task.
    pub keys_before: Timestamp,
}

/// What one transaction deleted of a group's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swept {
    /// How many frames.
    pub frames: u64,
    /// How many bytes they had.
    pub bytes: u64,
    /// Whether there may be more.
    pub more: bool,
}

/// Everything that a group's actor needs to go on where the last one stopped.
#[derive(Debug)]
pub struct Hydration {
    /// The owner's epoch from now on.
    pub epoch: u64,
    /// What is kept of the group.
    pub head: Head,
    /// Its tasks that are not terminal, in the order of acceptance.
    pub tasks: Vec<Task>,
    /// The run that was alive.
    pub run: Option<Run>,
    /// The compaction that nobody saw to end, and those that were completed within the current
    /// task.
    pub compactions: Vec<Compaction>,
    /// The permissions that nobody answered.
    pub permissions: Vec<Permission>,
    /// Its digests; absent: there are none, or not of this version's form, or not up to the last
    /// frame, and they have to be made again (SEEDS TD-6).
    pub digests: Option<Digests>,
}

/// The writing side.
pub trait Store: Send + 'static {
    /// Makes all of `batch` durable in one transaction; the answers are in its order. A group's
    /// writes under an old epoch are left out and answered [`StoreError::Fenced`].
    ///
    /// # Errors
    ///
    /// The database's error; then nothing of the batch was written.
    fn commit(&mut self, batch: &[Writes]) -> Result<Vec<Result<(), StoreError>>, StoreError>;

    /// Makes the caller the group's only owner, and reads what it needs; `None` if there is no
    /// such group.
    ///
    /// Locks that an earlier owner took for the group are free then, and a last segment that was
    /// closed without a successor is open again, unless somebody holds its lock (SEEDS HL-12).
    ///
    /// # Errors
    ///
    /// The database's error.
    fn adopt(&mut self, group: GroupNo, now: Uptime) -> Result<Option<Hydration>, StoreError>;

    /// Stores digests of runs and tasks that were made again from the frames, under the owner's
    /// `epoch`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`], or the database's error; then nothing was stored.
    fn put_closed(
        &mut self,
        group: GroupNo,
        epoch: u64,
        rows: &ClosedRows,
    ) -> Result<(), StoreError>;

    /// Stores a group's digests that were made again from the frames, under the owner's `epoch`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`], or the database's error; then nothing was stored.
    fn put_digests(
        &mut self,
        group: GroupNo,
        epoch: u64,
        rows: &DigestRows,
    ) -> Result<(), StoreError>;

    /// Stores how far ended tasks were handed on to whoever `name` is.
    ///
    /// # Errors
    ///
    /// The database's error; then the last place stays.
    fn put_exported(&mut self, name: &str, place: EndedAt) -> Result<(), StoreError>;

    /// Deletes all rows of a group, its locks with them.
    ///
    /// # Errors
    ///
    /// The database's error; then nothing was deleted.
    fn purge(&mut self, group: GroupNo) -> Result<(), StoreError>;

    /// Makes something durable that changes nothing and needs room, to see whether the database
    /// works. Waits for nobody.
    ///
    /// # Errors
    ///
    /// The database's error.
    fn probe(&mut self) -> Result<(), StoreError>;

    /// Looks whether the files are those that were opened, and how large they are. Cheap enough
    /// for every second; it also shortens a write-ahead log that nobody else shortened.
    ///
    /// # Errors
    ///
    /// A database error with [`Fault::Replaced`], or the database's error.
    fn check(&mut self) -> Result<Sizes, StoreError> {
        Ok(Sizes::default())
    }

    /// Gives a few free pages back to the file system; takes milliseconds. Whether there are more.
    ///
    /// # Errors
    ///
    /// The database's error.
    fn shrink(&mut self) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// The file that an operator knows the database by.
    fn file(&self) -> String {
        String::new()
    }

    /// The trusted time as it was last stored, if it ever was.
    ///
    /// # Errors
    ///
    /// The database's error.
    fn trust(&mut self) -> Result<Option<Trust>, StoreError> {
        Ok(None)
    }

    /// The newest moment up to `until` that anything stored tells of.
    ///
    /// # Errors
    ///
    /// The database's error.
    fn newest(&mut self, _until: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        Ok(None)
    }

    /// Stores the trusted time. It was set by `set_ms` milliseconds, and idempotency keys are moved
    /// by as much, so that they are as old as before.
    ///
    /// # Errors
    ///
    /// The database's error; then nothing was changed.
    fn put_trust(&mut self, _trust: &Trust, _set_ms: i64) -> Result<(), StoreError> {
        Ok(())
    }

    /// From now on idempotency keys are stored as of this trusted time.
    fn stamp_keys(&mut self, _at: Timestamp) {}

    /// Forgets idempotency keys from before `before`, by the trusted time.
    ///
    /// # Errors
    ///
    /// The database's error.
    fn forget_keys(&mut self, before: Timestamp) -> Result<usize, StoreError>;

    /// Cuts a group's log: from now on nobody sees a frame up to the base, and the rows of what
    /// ended up to there are gone. `false`, and nothing done, if the group is no more, or its log
    /// was cut there or later already.
    ///
    /// # Errors
    ///
    /// The database's error; then nothing was cut.
    fn cut(&mut self, cut: &Cut) -> Result<bool, StoreError>;

    /// Deletes some of the frames that nobody sees since a group's log was cut, few enough that
    /// commits do not wait for long.
    ///
    /// # Errors
    ///
    /// The database's error; then nothing was deleted.
    fn sweep(&mut self, group: GroupNo) -> Result<Swept, StoreError>;

    /// Gives a lock to whoever asks, if nobody else has it: see [`greenroom_core::lock::acquire`].
    /// `is_dead` says whether a holder's process is provably gone.
    ///
    /// # Errors
    ///
    /// [`LockError::Held`] if another has it, [`LockError::Absent`] if the database knows no locks,
    /// or the database's error.
    fn lock_acquire(
        &mut self,
        ask: &LockAsk,
        now: Now,
        is_dead: &dyn Fn(&Holder) -> bool,
    ) -> Result<Granted, LockError>;

    /// Extends a lease by its time to live, also past its expiry if nobody has taken it over: see
    /// [`greenroom_core::lock::refresh`].
    ///
    /// # Errors
    ///
    /// [`LockError::Held`] or [`LockError::Lost`] if it is its holder's no more, as for every call
    /// here [`LockError::Absent`], or the database's error.
    fn lock_refresh(&mut self, lease: &Lease, now: Now) -> Result<Lock, LockError>;

    /// Gives a lease up; `false` if it was its holder's no more, which changes nothing.
    ///
    /// # Errors
    ///
    /// [`LockError::Absent`] or the database's error.
    fn lock_release(&mut self, lease: &Lease) -> Result<bool, LockError>;

    /// Forgets leases that nobody can mean any more: from another boot, or expired for longer than
    /// any lease lasts.
    ///
    /// # Errors
    ///
    /// [`LockError::Absent`] or the database's error.
    fn forget_locks(&mut self, now: Uptime) -> Result<usize, LockError>;
}

/// A task with what only its place shows.
#[derive(Clone, Debug)]
pub struct TaskView {
    /// The task.
    pub task: Task,
    /// Its group.
    pub group: GroupId,
    /// How many tasks of the group stand before it, if it waits.
    pub position: Option<u64>,
    /// What it waits for.
    pub blocked_by: Option<Blocked>,
}

/// All groups that there are.
#[derive(Clone, Debug, Default)]
pub struct GroupIndex {
    /// Their numbers and names, and whether they have something to go on with.
    pub groups: Vec<(GroupNo, GroupId, bool)>,
    /// The greatest number that any group ever had: a number is not used again, so that nothing
    /// of a deleted group is taken for another's.
    pub last_no: GroupNo,
}

/// One incarnation of a group's agent, as it is kept.
#[derive(Clone, Debug)]
pub struct RunRecord {
    /// Its name.
    pub id: RunId,
    /// The launch profile.
    pub agent: String,
    /// The agent's process, if it came to one.
    pub pid: Option<u32>,
    /// When its start was ordered.
    pub started_at: Timestamp,
    /// When it took prompts.
    pub ready_at: Option<Timestamp>,
    /// When it was over, and how.
    pub ended: Option<(Timestamp, Exit)>,
}

/// A stretch of a transcript in which one context is in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// Its number, from 1.
    pub segment: u32,
    /// The one that it continues.
    pub parent: Option<u32>,
    /// The session in force.
    pub session: SessionId,
    /// Which of hermes' sessions that is.
    pub provenance: Option<Provenance>,
    /// Its first frame, and when that was stored.
    pub opened: (u64, Timestamp),
    /// Its last frame, when that was stored, and why it is the last.
    pub closed: Option<(u64, Timestamp, EndReason)>,
}

/// A permission as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct PermissionRecord {
    /// The group whose agent asked.
    pub group: GroupId,
    /// What it asked for.
    pub permission: Permission,
    /// When it was stored.
    pub opened_at: Timestamp,
    /// Where it stands.
    pub state: PermissionState,
    /// The option that was chosen.
    pub selected: Option<String>,
    /// Who chose.
    pub resolved_by: Option<String>,
    /// When it was decided on.
    pub resolved_at: Option<Timestamp>,
}

/// A group as somebody who joins late needs it, in one consistent cut.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The group.
    pub standing: Standing,
    /// All its segments.
    pub segments: Vec<SegmentRecord>,
    /// The task that has its slot.
    pub current_task: Option<TaskView>,
    /// The permissions that nobody answered.
    pub permissions: Vec<PermissionRecord>,
}

/// A group in a list, also one whose own row cannot be read.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its number.
    pub no: GroupNo,
    /// Its name.
    pub id: GroupId,
    /// The group.
    pub standing: Result<Box<Standing>, Unreadable>,
}

/// The reading side: each call sees one committed state. A list leaves out rows that cannot be
/// understood (SEEDS AM-18); [`Archive::left_out`] names them.
pub trait Archive: Send + 'static {
    /// Takes the rows that were left out since this was last called.
    fn left_out(&self) -> Vec<Unreadable> {
        Vec::new()
    }

    /// All groups that there are.
    ///
    /// # Errors
    ///
    /// The database's error, as for every call here.
    fn group_index(&self) -> Result<GroupIndex, StoreError>;

    /// One group.
    fn group(&self, group: GroupNo) -> Result<Option<Standing>, StoreError>;

    /// Groups in the order of their numbers, above `after`.
    fn groups(
        &self,
        status: Option<&str>,
        after: GroupNo,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError>;

    /// How many groups but the `broken` ones have each status, and how many tasks of theirs wait.
    fn census(&self, broken: &[GroupNo]) -> Result<(BTreeMap<String, u64>, u64), StoreError>;

    /// The numbers of a scrape, of one moment, without the `broken` groups.
    fn tally(&self, broken: &[GroupNo]) -> Result<Tally, StoreError>;

    /// One task.
    fn task(&self, task: TaskId) -> Result<Option<TaskView>, StoreError>;

    /// Tasks of a group in the order of acceptance.
    fn tasks(&self, group: GroupNo, filter: &TaskFilter) -> Result<Vec<TaskView>, StoreError>;

    /// Runs of a group, the newest first, before the run `before`.
    fn runs(
        &self,
        group: GroupNo,
        before: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<RunRecord>, StoreError>;

    /// Segments of a group in order, above `after`.
    fn segments(
        &self,
        group: GroupNo,
        after: u32,
        limit: usize,
    ) -> Result<Vec<SegmentRecord>, StoreError>;

    /// Compactions of a group, the newest first, each with the seq of its first frame; only those
    /// before the seq `before`.
    fn compactions(
        &self,
        group: GroupNo,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<(u64, Compaction)>, StoreError>;

    /// One permission.
    fn permission(&self, id: PermissionId) -> Result<Option<PermissionRecord>, StoreError>;

    /// Permissions in the order in which they were asked for.
    fn permissions(&self, filter: &PermissionFilter) -> Result<Vec<PermissionRecord>, StoreError>;

    /// A group's digest: one row. `None` if there is none of this version's form.
    fn digest(&self, group: GroupNo) -> Result<Option<Digest>, StoreError>;

    /// A run's digest: one row, once the run is over.
    fn run_digest(&self, run: RunId) -> Result<Option<RunStanding>, StoreError>;

    /// A group's digests as the rows have them, all of them, to be compared; `None` if there are
    /// none of this version's form.
    fn digest_rows(&self, group: GroupNo) -> Result<Option<DigestRows>, StoreError>;

    /// Turns of a group that were started, in the order of acceptance or the other way round.
    fn turns(&self, group: GroupNo, filter: &TurnFilter) -> Result<Vec<TurnEntry>, StoreError>;

    /// Tasks of all groups that were started and ended in a time, in the order of their ends, and
    /// only those behind a place.
    fn ended_turns(&self, filter: &EndedFilter) -> Result<Vec<EndedTurn>, StoreError>;

    /// How far ended tasks were handed on to whoever `name` is; `None`: not one, ever.
    fn exported(&self, name: &str) -> Result<Option<EndedAt>, StoreError>;

    /// All that somebody who joins late needs.
    fn snapshot(&self, group: GroupNo) -> Result<Option<Snapshot>, StoreError>;

    /// What is in force of a group's transcript.
    fn current_view(&self, group: GroupNo) -> Result<CurrentView, StoreError>;

    /// Blocks that hold frames of a group; the caller picks the frames out of them.
    fn blocks(&self, group: GroupNo, filter: &FrameFilter) -> Result<Vec<Block>, StoreError>;

    /// What a group's log came to where it was cut; `None` if all of it is kept.
    fn base(&self, group: GroupNo) -> Result<Option<StoredBase>, StoreError>;

    /// The first frame that is kept of a group's log, or will be the first.
    fn earliest_seq(&self, group: GroupNo) -> Result<u64, StoreError>;

    /// What a key was used for.
    fn key(&self, key: &[u8; 32]) -> Result<Option<KeyUse>, StoreError>;

    /// Calls `read` with one committed state that stays the same for all of its calls.
    fn in_one_snapshot(&self, read: &mut dyn FnMut(&dyn Archive)) -> Result<(), StoreError>;

    /// A lock as it is stored, expired or not.
    ///
    /// # Errors
    ///
    /// [`LockError::Absent`] if the database knows no locks, or the database's error.
    fn lock(&self, key: &LockKey) -> Result<Option<Lock>, LockError>;
}

/// An error and all its causes on one line.
pub fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text.push_str(": ");
        text.push_str(&err.to_string());
        cause = err.source();
    }
    text
}
