//! The trait `Store`: what the writer asks of a database.

use greenroom_core::{
    Now, Timestamp, Trust, Uptime,
    lock::{Holder, Lease, Lock},
};

use super::{
    DigestRows, EndedAt, GroupCommit, GroupNo, LockError, LockGrant, LockRequest, LogTruncation,
    SealedDigests, Sizes, StoreError, StoredGroup, Swept,
};

/// What a database must be able to write. The writer calls it, one call at a time: for the owner of
/// a group (`commit` to `purge`), for itself (`probe` to `forget_locks`), for retention
/// (`forget_keys`, `truncate_log`, `sweep`), for the exporter of spans (`put_exported`), and for
/// the holders of locks.
pub trait Store: Send + 'static {
    /// Stores all of `batch` in one transaction. Returns an answer for each commit, in order: one
    /// under an old epoch is left out and answered [`StoreError::Fenced`].
    ///
    /// # Errors
    ///
    /// The database's error; then nothing of the batch is stored.
    fn commit(&mut self, batch: &[GroupCommit]) -> Result<Vec<Result<(), StoreError>>, StoreError>;

    /// Makes the callers the only owners of these groups in one transaction, and reads their rows.
    /// Returns `None` for a group that does not exist.
    ///
    /// Frees the locks that earlier owners took for the groups. Reopens a last segment that was
    /// closed without a successor, unless its lock is held (HL-12).
    ///
    /// # Errors
    ///
    /// The database's error, or [`StoreError::Unreadable`] because of one group's row; then no
    /// group has another owner.
    fn adopt_all(
        &mut self,
        groups: &[GroupNo],
        now: Uptime,
    ) -> Result<Vec<Option<StoredGroup>>, StoreError>;

    /// [`Self::adopt_all`] of one group.
    ///
    /// # Errors
    ///
    /// The database's error.
    fn adopt(&mut self, group: GroupNo, now: Uptime) -> Result<Option<StoredGroup>, StoreError> {
        Ok(self.adopt_all(&[group], now)?.pop().flatten())
    }

    /// Makes the caller the group's only owner without reading its rows, and returns the epoch: for
    /// a group that [`Self::adopt`] cannot read. Returns `None` if the group does not exist, or if
    /// its epoch is unreadable: then no owner can store anything.
    ///
    /// # Errors
    ///
    /// The database's error.
    fn claim(&mut self, group: GroupNo) -> Result<Option<u64>, StoreError>;

    /// Stores rebuilt digests of ended runs and tasks, under the owner's `epoch`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`], or the database's error; then nothing was stored.
    fn put_sealed(
        &mut self,
        group: GroupNo,
        epoch: u64,
        rows: &SealedDigests,
    ) -> Result<(), StoreError>;

    /// Stores a group's rebuilt digests, under the owner's `epoch`.
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

    /// Deletes all rows of a group, including its locks, under the owner's `epoch`; `None` for a
    /// group that has no readable one.
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`], or the database's error; then nothing was deleted.
    fn purge(&mut self, group: GroupNo, epoch: Option<u64>) -> Result<(), StoreError>;

    /// Tests whether the database works: makes something durable that takes room and changes
    /// nothing. Does not wait for another program's lock.
    ///
    /// # Errors
    ///
    /// The database's error.
    fn probe(&mut self) -> Result<(), StoreError>;

    /// Checks that the files are those that were opened, and returns their sizes. Cheap enough
    /// for every second. Also moves a write-ahead log that the checkpointer has not moved.
    ///
    /// # Errors
    ///
    /// A database error with [`super::Fault::Replaced`], or the database's error.
    fn check(&mut self) -> Result<Sizes, StoreError> {
        Ok(Sizes::default())
    }

    /// Gives a few free pages back to the file system, which takes milliseconds. Returns whether
    /// more may be left.
    ///
    /// # Errors
    ///
    /// The database's error.
    fn shrink(&mut self) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// The path of the database file, for the log.
    fn file(&self) -> String {
        String::new()
    }

    /// Returns the trusted time as it was last stored, if it ever was.
    ///
    /// # Errors
    ///
    /// The database's error.
    fn trust(&mut self) -> Result<Option<Trust>, StoreError> {
        Ok(None)
    }

    /// Returns the newest stored moment up to `until`.
    ///
    /// # Errors
    ///
    /// The database's error.
    fn newest(&mut self, _until: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        Ok(None)
    }

    /// Stores the trusted time, which was set by `set_ms` milliseconds. Moves the times of the
    /// idempotency keys by as much, so that their ages stay the same.
    ///
    /// # Errors
    ///
    /// The database's error; then nothing was changed.
    fn put_trust(&mut self, _trust: &Trust, _set_ms: i64) -> Result<(), StoreError> {
        Ok(())
    }

    /// Sets the trusted time under which the next commits store idempotency keys.
    fn stamp_keys(&mut self, _at: Timestamp) {}

    /// Deletes idempotency keys from before `before`, by the trusted time. Returns how many.
    ///
    /// # Errors
    ///
    /// The database's error.
    fn forget_keys(&mut self, before: Timestamp) -> Result<usize, StoreError>;

    /// Deletes stale leases: from another boot, or expired for longer than any lease lasts.
    /// Returns how many.
    ///
    /// # Errors
    ///
    /// [`LockError::Absent`] or the database's error.
    fn forget_locks(&mut self, now: Uptime) -> Result<usize, LockError>;

    /// Truncates a group's log: stores the checkpoint, hides the frames up to it from all readers,
    /// and deletes the rows of what ended up to it. Returns `false`, without a change, if the group
    /// does not exist or its log is truncated there or later already.
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`] if the group has another owner than when the truncation was decided,
    /// or the database's error; then nothing was changed.
    fn truncate_log(&mut self, truncation: &LogTruncation) -> Result<bool, StoreError>;

    /// Sweeps a truncated log: deletes some of the frames that [`Self::truncate_log`] hid, few
    /// enough that commits do not wait for long. Needs no epoch: the stored checkpoint decides, and
    /// no reader sees what it hides.
    ///
    /// # Errors
    ///
    /// The database's error; then nothing was deleted.
    fn sweep(&mut self, group: GroupNo) -> Result<Swept, StoreError>;

    /// Stores up to which ended task the exporter `name` has exported.
    ///
    /// # Errors
    ///
    /// The database's error; then the last stored place stays.
    fn put_exported(&mut self, name: &str, place: EndedAt) -> Result<(), StoreError>;

    /// Acquires a lock, if it is free: see [`greenroom_core::lock::acquire`]. `is_dead` returns
    /// whether a holder's process is provably gone.
    ///
    /// # Errors
    ///
    /// [`LockError::Conflict`] if another holder has it, [`LockError::Absent`] if the database has
    /// no table of locks, or the database's error.
    fn lock_acquire(
        &mut self,
        request: &LockRequest,
        now: Now,
        is_dead: &dyn Fn(&Holder) -> bool,
    ) -> Result<LockGrant, LockError>;

    /// Extends a lease by its time to live; also one that has expired, if no other holder has taken
    /// the lock: see [`greenroom_core::lock::refresh`].
    ///
    /// # Errors
    ///
    /// [`LockError::Conflict`] or [`LockError::Lost`] if its holder has lost it,
    /// [`LockError::Absent`], or the database's error.
    fn lock_refresh(&mut self, lease: &Lease, now: Now) -> Result<Lock, LockError>;

    /// Releases a lease. Returns `false`, without a change, if its holder has lost it.
    ///
    /// # Errors
    ///
    /// [`LockError::Absent`] or the database's error.
    fn lock_release(&mut self, lease: &Lease) -> Result<bool, LockError>;
}
