//! The lock of the session that is compacted: when it is asked for, waited for, kept and given back
//! (SEEDS HL).

use super::{LOCK_RETRY_MS, Lock, compacting::ALREADY_COMPACTED, scene::Scene};
use crate::{Effect, LockAnswer, SessionId, TaskId, Write};

impl Scene<'_> {
    /// Asks for the lock that the next compaction needs, and gives back one that it does not. One
    /// that has nothing to do needs none, and ends.
    pub(super) fn see_to_lock(&mut self) {
        let group = &self.group;
        let session = group.head.session.clone();
        if let Lock::Held { key, .. } = &group.lock
            && group.current.is_none()
            && (!group.may_lock() || session.as_ref() != Some(key))
        {
            self.release_lock(false);
        }
        let group = &self.group;
        let next = match &group.current {
            None => group.waiting.front().filter(|_| group.may_lock()),
            Some(current) => Some(&current.task).filter(|_| current.turn.is_none()),
        };
        let next = next.map(|next| next.id);
        if next.is_some_and(|next| self.end_if_idle(next)) {
            return;
        }
        let group = &self.group;
        let (Some(next), Some(key)) = (group.waiting.front(), session) else { return };
        let free = group.may_lock() && group.current.is_none() && group.lock == Lock::Unasked;
        if free && group.needs_lock(next) {
            let task = next.id;
            self.ask_for_lock(task, key);
        }
    }

    fn ask_for_lock(&mut self, task: TaskId, key: SessionId) {
        self.write(Write::LockAsked { task });
        self.order(Effect::TakeLock { task, key });
    }

    /// The wait for a lock that somebody else holds has lasted another moment.
    pub(super) fn lock_expired(&mut self, id: TaskId, at_try: u64) {
        match (&self.group.lock, self.group.head.session.clone()) {
            (Lock::Refused { task, tries, .. }, Some(key))
                if (*task, *tries) == (id, at_try) && self.group.may_lock() =>
            {
                self.ask_for_lock(id, key);
            }
            _ => {}
        }
    }

    pub(super) fn lock_answered(&mut self, id: TaskId, key: SessionId, answer: LockAnswer) {
        let Lock::Asked { task, tries, count } = self.group.lock else {
            return self.drop_lock(key, answer);
        };
        if task != id {
            return self.drop_lock(key, answer);
        }
        let (waited_ms, done) =
            ((tries - 1) * LOCK_RETRY_MS, count != self.group.head.compacting.count);
        match answer {
            // HL-10: whoever had it before did the work.
            LockAnswer::Taken { holder, token } if done => {
                self.write(Write::LockTaken { task: id, key, holder, token });
                self.skip(id, ALREADY_COMPACTED, "the session was compacted in the meantime");
            }
            LockAnswer::Taken { holder, token } => {
                self.write(Write::LockTaken { task: id, key, holder, token });
            }
            LockAnswer::Held { holder } if waited_ms >= self.terms.patience.compaction_ms => {
                let why = format!("the session is being compacted by {holder:?} all the time");
                self.skip(id, "lock_held", &why);
            }
            LockAnswer::Held { holder } => {
                self.write(Write::LockRefused { task: id, holder, again: tries > 1 });
            }
            LockAnswer::Absent => {
                let remedy = "the database has no table of locks: upgrade and restart whatever \
                              shares it";
                self.write(Write::LockBypassed { task: id, remedy: remedy.into() });
            }
            LockAnswer::Failed => {
                self.skip(id, "lock_failed", "nobody knows whether somebody else compacts it");
            }
        }
    }

    /// A lock that came too late for its task.
    fn drop_lock(&mut self, key: SessionId, answer: LockAnswer) {
        if let LockAnswer::Taken { holder, token } = answer {
            self.order(Effect::DropLock { key, holder, token });
        }
    }

    /// HL-2: a compaction that loses its lock before it began is not begun. One that runs is told
    /// by its end.
    pub(super) fn lock_lost(&mut self, id: TaskId) {
        if !matches!(&self.group.lock, Lock::Held { task, .. } if *task == id) {
            return;
        }
        self.write(Write::LockLost { task: id });
        if self.group.turn().is_none() {
            self.skip(id, "lock_lost", "its lock was lost before it began");
        }
    }

    /// HL-11: whether the running compaction lost its lock, so that it may not be published.
    pub(super) fn lost_lock(&self) -> bool {
        matches!(self.group.lock, Lock::Lost { .. })
    }

    /// Gives the lock back. What is stated beside it may hold only under the lock.
    pub(super) fn release_lock(&mut self, fences: bool) {
        if let Lock::Held { key, holder, token, .. } = self.group.lock.clone() {
            self.write(Write::LockReleased { key, holder, token, fences });
        }
    }
}
