//! The group itself: created, changed, paused, resumed, archived, purged.

use super::{CrashLoop, Existence, Group, Hold, Rejected, decide::Transition};
use crate::{
    Effect, EndState, Fact, OnInterrupt, PromptCapabilities, Settings, Stop, TaskId, Timestamp,
};

impl Transition<'_> {
    /// Creates, changes or revives the group.
    pub(super) fn configure(&mut self, settings: Settings) -> Result<(), Rejected> {
        let state = &self.group.state;
        if state.existence == Existence::Purging {
            return Err(Rejected::Purging);
        }
        if state.created_at.is_none() {
            self.record(Fact::GroupCreated(settings));
            return Ok(());
        }
        let is_revived = state.is_archived();
        if is_revived || state.settings != settings {
            self.record(Fact::GroupChanged(settings));
        }
        if is_revived {
            self.resume_work();
        }
        Ok(())
    }

    /// Cancels all tasks, archives the group and stops its run.
    pub(super) fn archive(&mut self) {
        if self.group.state.created_at.is_none() {
            return;
        }
        let waiting: Vec<TaskId> = self.group.waiting.iter().map(|task| task.id).collect();
        for task in waiting {
            self.end_unsent(task, EndState::Cancelled, None);
        }
        self.cancel_current();
        if !self.group.state.is_archived() {
            self.record(Fact::GroupArchived {});
        }
        self.stop(Stop::Firmly);
    }

    /// Orders the rows of the archived group to be deleted.
    pub(super) fn order_purge(&mut self) {
        if self.group.state.existence == Existence::Archived {
            self.record(Fact::PurgeOrdered {});
        }
    }

    /// Orders the deletion of the rows once a purge is stored and nothing runs. A successor of the
    /// group's actor repeats that.
    pub(super) fn reconcile_purge(&mut self) {
        let group = &self.group;
        if group.state.existence == Existence::Purging
            && group.run.is_none()
            && group.current.is_none()
        {
            self.emit(Effect::Purge);
        }
    }

    /// Pauses the group.
    pub(super) fn pause(&mut self) -> Result<(), Rejected> {
        let state = &self.group.state;
        if state.is_archived() {
            return Err(Rejected::Archived);
        }
        if state.created_at.is_some() && !state.paused {
            self.record(Fact::GroupPaused {});
        }
        Ok(())
    }

    /// Resumes the group, unless it is archived.
    pub(super) fn resume(&mut self) -> Result<(), Rejected> {
        if self.group.state.is_archived() {
            return Err(Rejected::Archived);
        }
        self.resume_work();
        Ok(())
    }

    /// Ends pause, hold, crash loop and the wait for a login, if there are any, and forgets which
    /// blocks an agent refuses that does not run.
    pub(super) fn resume_work(&mut self) {
        let state = &self.group.state;
        let is_suspended = state.paused || state.hold.reason.is_some();
        let launch_waits = state.crash_loop != CrashLoop::default();
        let has_known_prompts = self.group.run.is_none()
            && state.prompts.is_some_and(|prompts| prompts != PromptCapabilities::ALL);
        if has_known_prompts || is_suspended || launch_waits || state.hold.interruptions > 0 {
            self.record(Fact::GroupResumed {});
        }
    }
}

impl Group {
    /// Sets the first settings.
    pub(super) fn apply_created(&mut self, settings: &Settings, at: Timestamp) {
        self.state.settings = settings.clone();
        self.state.created_at = Some(at);
    }

    /// Replaces the settings. Revives an archived group.
    pub(super) fn apply_changed(&mut self, settings: &Settings) {
        if let Some(run) = &mut self.run {
            run.outdated |= settings.invalidates_run(&self.state.settings);
        }
        if settings.agent != self.state.settings.agent {
            self.state.prompts = None;
        }
        self.forget_prompts();
        self.state.settings = settings.clone();
        if self.state.existence == Existence::Archived {
            self.state.existence = Existence::Live;
        }
        self.state.compacting.reset_auto_compact();
        self.clear_launch_backoff();
        if settings.on_interrupt == Some(OnInterrupt::Continue) {
            self.release_hold();
        }
    }

    /// Marks the group as archived.
    pub(super) fn apply_archived(&mut self, fact: &Fact) {
        self.apply_to_attempt(fact);
        if self.state.existence == Existence::Live {
            self.state.existence = Existence::Archived;
        }
        self.clear_launch_backoff();
        self.release_hold();
    }

    /// Ends pause, hold and crash loop.
    pub(super) fn apply_resumed(&mut self) {
        self.forget_prompts();
        self.state.paused = false;
        self.clear_launch_backoff();
        self.release_hold();
    }

    /// Forgets which blocks the agent takes, if it does not run: it may have been replaced by
    /// another version since.
    fn forget_prompts(&mut self) {
        self.state.prompts = self.state.prompts.filter(|_| self.run.is_some());
    }

    /// Ends the crash loop and the wait for a login: the next run need not wait.
    pub(super) fn clear_launch_backoff(&mut self) {
        self.state.crash_loop = CrashLoop::default();
    }

    /// Ends the hold, and forgets the interruptions.
    pub(super) fn release_hold(&mut self) {
        self.state.hold = Hold::default();
    }
}
