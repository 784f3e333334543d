//! The lock that the next compaction needs: requested, waited for, kept, released (HL rules).

use super::{
    Group,
    compaction_ordered::{ALREADY_COMPACTED, LOCK_HELD},
    decide::Transition,
};
use crate::{Effect, Fact, LockAnswer, Origin, SessionId, TaskId};

/// How long until the group requests a refused lock again.
pub(super) const LOCK_RETRY_MS: u64 = 1_000;

/// The group's view of the lock that its next or running compaction needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum LockState {
    /// It is not requested.
    #[default]
    Unasked,
    /// Request number `tries` is under way; at the first, `count` compactions were completed.
    Asked { task: TaskId, tries: u64, count: u64 },
    /// Another holder has it.
    Refused { task: TaskId, tries: u64, count: u64 },
    /// The group has it, for the session `key`.
    Held { task: TaskId, key: SessionId, holder: String, token: u64 },
    /// The database has no lock table.
    Bypassed { task: TaskId },
    /// The group had it and lost it.
    Lost { task: TaskId },
}

impl LockState {
    /// Returns the task that needs it.
    pub(super) fn task(&self) -> Option<TaskId> {
        match self {
            Self::Unasked => None,
            Self::Asked { task, .. }
            | Self::Refused { task, .. }
            | Self::Held { task, .. }
            | Self::Bypassed { task }
            | Self::Lost { task } => Some(*task),
        }
    }

    /// Whether `task` may compact `session`.
    pub(super) fn may_compact(&self, task: TaskId, session: Option<&SessionId>) -> bool {
        match self {
            Self::Held { task: locker, key, .. } => *locker == task && Some(key) == session,
            Self::Bypassed { task: locker } => *locker == task,
            Self::Unasked | Self::Asked { .. } | Self::Refused { .. } | Self::Lost { .. } => false,
        }
    }
}

impl Transition<'_> {
    /// Whether the next task could start once it has a lock and a slot, and the server does not
    /// shut down.
    fn may_request_lock(&self) -> bool {
        !self.settings.is_draining && self.group.may_request_lock()
    }

    /// Requests the lock that the next compaction needs, and releases one that it does not need. A
    /// compaction that has nothing to do needs none, and ends.
    pub(super) fn reconcile_lock(&mut self) {
        let group = &self.group;
        let session = group.state.session_id().cloned();
        if let LockState::Held { key, .. } = &group.lock
            && group.current.is_none()
            && (!self.may_request_lock() || session.as_ref() != Some(key))
        {
            self.release_lock(false);
        }
        let group = &self.group;
        let next = match &group.current {
            None => group.waiting.front().filter(|_| self.may_request_lock()),
            Some(current) => Some(&current.task).filter(|_| current.attempt.is_none()),
        };
        let next = next.map(|next| next.id);
        if next.is_some_and(|next| self.end_if_nothing_to_do(next)) {
            return;
        }
        let group = &self.group;
        let (Some(next), Some(key)) = (group.waiting.front(), session) else { return };
        let free =
            self.may_request_lock() && group.current.is_none() && group.lock == LockState::Unasked;
        if free && group.needs_lock(next) {
            let task = next.id;
            self.request_lock(task, key);
        }
    }

    /// Records and emits the request for a session's lock.
    pub(super) fn request_lock(&mut self, task: TaskId, key: SessionId) {
        self.record(Fact::LockAsked { task });
        self.emit(Effect::AcquireLock { task, key });
    }

    /// Requests the lock again after [`LOCK_RETRY_MS`].
    pub(super) fn lock_expired(&mut self, id: TaskId, at_try: u64) {
        match (&self.group.lock, self.group.state.session_id().cloned()) {
            (LockState::Refused { task, tries, .. }, Some(key))
                if (*task, *tries) == (id, at_try) && self.may_request_lock() =>
            {
                self.request_lock(id, key);
            }
            _ => {}
        }
    }

    /// Takes the lock, waits for it, proceeds without it, or skips the compaction.
    pub(super) fn lock_answered(&mut self, id: TaskId, key: SessionId, answer: LockAnswer) {
        let LockState::Asked { task, tries, count } = self.group.lock else {
            return self.release_late_lock(key, answer);
        };
        if task != id {
            return self.release_late_lock(key, answer);
        }
        let (waited_ms, done) =
            ((tries - 1) * LOCK_RETRY_MS, count != self.group.state.compacting.count);
        match answer {
            // HL-10: the session was compacted while the task waited.
            LockAnswer::Acquired { holder, token } if done => {
                self.record(Fact::LockTaken { task: id, key, holder, token });
                self.skip(id, ALREADY_COMPACTED, "the session was compacted in the meantime");
            }
            LockAnswer::Acquired { holder, token } => {
                self.record(Fact::LockTaken { task: id, key, holder, token });
            }
            LockAnswer::Busy { holder } if self.was_ordered_by_usage(id) => {
                let why = format!("{holder:?} holds the session's lock");
                self.skip(id, LOCK_HELD, &why);
            }
            LockAnswer::Busy { holder } if waited_ms >= self.settings.limits.compaction_ms => {
                let why = format!("{holder:?} held the session's lock for the whole wait");
                self.skip(id, LOCK_HELD, &why);
            }
            LockAnswer::Busy { holder } => {
                self.record(Fact::LockRefused { task: id, holder, again: tries > 1 });
            }
            LockAnswer::Absent => {
                let remedy = "the database has no lock table: upgrade and restart all programs \
                              that share it";
                self.record(Fact::LockBypassed { task: id, remedy: remedy.into() });
            }
            LockAnswer::Failed => {
                self.skip(id, "lock_failed", "the request for the session's lock failed");
            }
        }
    }

    /// Whether the group ordered the compaction by itself: no caller waits for it, and it must not
    /// delay those who wait behind it. It may be ordered again after the pause (HL-14).
    fn was_ordered_by_usage(&self, id: TaskId) -> bool {
        self.group.task(id).is_some_and(|task| task.origin == Origin::Auto)
    }

    /// Releases a lock that arrived after its task no longer needed it.
    pub(super) fn release_late_lock(&mut self, key: SessionId, answer: LockAnswer) {
        if let LockAnswer::Acquired { holder, token } = answer {
            self.emit(Effect::ReleaseLock { key, holder, token });
        }
    }

    /// HL-2: a compaction that loses its lock before START is skipped. A running one learns of the
    /// loss when it ends.
    pub(super) fn lock_lost(&mut self, id: TaskId) {
        if !matches!(&self.group.lock, LockState::Held { task, .. } if *task == id) {
            return;
        }
        self.record(Fact::LockLost { task: id });
        if self.group.attempt().is_none() {
            self.skip(id, "lock_lost", "the lock was lost before the compaction began");
        }
    }

    /// Whether the running compaction lost its lock, so that it must not be published (HL-11).
    pub(super) fn lost_lock(&self) -> bool {
        matches!(self.group.lock, LockState::Lost { .. })
    }

    /// Releases the lock, if the group has it. `fences`: the commit succeeds only under the lock.
    pub(super) fn release_lock(&mut self, fences: bool) {
        if let LockState::Held { key, holder, token, .. } = self.group.lock.clone() {
            self.record(Fact::LockReleased { key, holder, token, fences });
        }
    }
}

impl Group {
    /// Counts a request for the lock.
    pub(super) fn apply_lock_asked(&mut self, id: TaskId) {
        let (tries, count) = match self.lock {
            LockState::Refused { tries, count, .. } => (tries + 1, count),
            _ => (1, self.state.compacting.count),
        };
        self.lock = LockState::Asked { task: id, tries, count };
    }

    /// Remembers that another holder has the lock.
    pub(super) fn apply_lock_refused(&mut self, task: TaskId) {
        if let LockState::Asked { tries, count, .. } = self.lock {
            self.lock = LockState::Refused { task, tries, count };
        }
    }

    /// Remembers that the group has the lock.
    pub(super) fn apply_lock_taken(
        &mut self,
        task: TaskId,
        key: &SessionId,
        holder: &str,
        token: u64,
    ) {
        let (key, holder) = (key.clone(), holder.to_owned());
        self.lock = LockState::Held { task, key, holder, token };
    }

    /// Forgets the lock that `id` needed.
    pub(super) fn forget_lock_of(&mut self, id: TaskId) {
        if self.lock.task() == Some(id) {
            self.lock = LockState::Unasked;
        }
    }
}
