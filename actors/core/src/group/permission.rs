//! Permissions: opened, resolved by a policy, a person or the deadline, or void (AM-7).

use std::borrow::Cow;

use super::{Group, Rejected, decide::Transition};
use crate::{
    AgentOutput, Answer, Choice, Effect, Fact, Lines, OutputSummary, Permission, PermissionAsked,
    PermissionId, PermissionState, Policy, RunId, TaskId, Timestamp, permission,
};

/// The most permissions of a group that may be open at once; greenroom rejects more, and those for
/// which the server as a whole has no room (I11).
const OPEN_MAX: usize = 100;

impl Transition<'_> {
    /// Opens a permission, and resolves it if no person has to.
    pub(super) fn permission_asked(&mut self, run: RunId, lines: Lines, asked: PermissionAsked) {
        let task = self.group.task_of_attempt();
        let summary = OutputSummary { has_output: true, ..OutputSummary::default() };
        let late = self.group.task_between_attempts();
        self.end_retry_of(late);
        self.record(Fact::AgentOutput(AgentOutput { lines, summary, late }));
        let open = &self.group.permissions;
        if open.iter().any(|permission| permission.request == asked.request) {
            // The agent repeats an open request: one answer is enough (F14).
            return;
        }
        let is_full = open.len() >= OPEN_MAX || !self.settings.has_permission_room;
        // While the turn is being cancelled, ACP requires the answer `cancelled`.
        let is_cancelling =
            self.group.attempt().is_some_and(|attempt| attempt.cancel_reason.is_some());
        let policy = self.settings.permissions.on(asked.tool_kind.as_deref());
        let wait_ms = self.settings.limits.permission_ms;
        let id = PermissionId((self.fresh)());
        let permission = Permission {
            permission: id,
            run,
            task,
            request: asked.request,
            tool_kind: asked.tool_kind,
            options: asked.options,
            expires_at: Timestamp(self.now.wall.0.saturating_add_unsigned(wait_ms)),
            shown: Some(Box::new(asked.shown)),
        };
        self.record(Fact::PermissionOpened(Box::new(permission)));
        match policy {
            _ if is_cancelling => {
                self.resolve(id, PermissionState::Cancelled, None, "cancel".into())
            }
            _ if is_full => self.reject(id, PermissionState::Selected, "limit"),
            Policy::Ask => {}
            Policy::Reject => self.reject(id, PermissionState::Selected, "policy"),
            Policy::Allow => {
                let options = self
                    .pending(id)
                    .map(|permission| permission.options.as_slice())
                    .unwrap_or_default();
                match permission::allow_option(options) {
                    Some(option) => {
                        self.resolve(id, PermissionState::Selected, Some(option), "policy".into());
                    }
                    None => self.reject(id, PermissionState::Selected, "policy"),
                }
            }
        }
    }

    /// Resolves a permission by a caller's answer. The first answer wins; a later one is rejected.
    pub(super) fn permission_answered(
        &mut self,
        id: PermissionId,
        choice: Choice,
        by: Cow<'static, str>,
    ) -> Result<(), Rejected> {
        let permission = self.pending(id).ok_or(Rejected::NotPending)?;
        match choice {
            Choice::Cancel => self.resolve(id, PermissionState::Cancelled, None, by),
            Choice::Select(selected) => {
                if !permission.options.iter().any(|option| option.id == selected) {
                    return Err(Rejected::NoSuchOption);
                }
                self.resolve(id, PermissionState::Selected, Some(selected), by);
            }
        }
        Ok(())
    }

    /// Rejects a permission that reached its deadline (C22).
    pub(super) fn permission_expired(&mut self, id: PermissionId) {
        self.reject(id, PermissionState::Expired, "deadline");
    }

    /// Answers the running turn's permissions with `cancelled`, as ACP requires after a cancel.
    pub(super) fn cancel_permissions(&mut self) {
        let task = self.group.current().map(|task| task.id);
        for id in self.pending_of(|permission| permission.task == task) {
            self.resolve(id, PermissionState::Cancelled, None, "cancel".into());
        }
    }

    /// Voids the permissions of a turn that is about to settle.
    pub(super) fn void_permissions_of(&mut self, task: TaskId) {
        for id in self.pending_of(|permission| permission.task == Some(task)) {
            self.resolve(id, PermissionState::Void, None, "settlement".into());
        }
    }

    /// Voids the permissions outside of a turn, before the run's stdin is closed: so no later
    /// answer is accepted and lost.
    pub(super) fn void_permissions_outside(&mut self) {
        for id in self.pending_of(|permission| permission.task.is_none()) {
            self.resolve(id, PermissionState::Void, None, "run_ended".into());
        }
    }

    /// Voids all permissions of a run that has ended, without an answer.
    pub(super) fn void_permissions(&mut self) {
        for id in self.pending_of(|_| true) {
            self.record_resolved(id, PermissionState::Void, None, "run_ended".into());
        }
    }

    /// Returns an open permission.
    fn pending(&self, id: PermissionId) -> Option<&Permission> {
        self.group.permissions.iter().find(|open| open.permission == id)
    }

    /// Returns the ids of the open permissions that `is_wanted` selects.
    fn pending_of(&self, is_wanted: impl Fn(&Permission) -> bool) -> Vec<PermissionId> {
        let wanted = self.group.permissions.iter().filter(|open| is_wanted(open));
        wanted.map(|open| open.permission).collect()
    }

    /// Answers with the option that rejects, or with `cancelled` if the agent offers none.
    fn reject(&mut self, id: PermissionId, state: PermissionState, by: &'static str) {
        let Some(permission) = self.pending(id) else { return };
        let option = permission::reject_option(&permission.options);
        let state = match (state, &option) {
            (PermissionState::Selected, None) => PermissionState::Cancelled,
            (state, _) => state,
        };
        self.resolve(id, state, option, by.into());
    }

    /// Records a resolution, and answers the agent.
    fn resolve(
        &mut self,
        id: PermissionId,
        state: PermissionState,
        selected: Option<String>,
        by: Cow<'static, str>,
    ) {
        let Some(permission) = self.pending(id) else { return };
        let (run, request) = (permission.run, permission.request.clone());
        self.record_resolved(id, state, selected.clone(), by);
        self.emit(Effect::Answer { run, answer: Answer { request, selected } });
    }

    /// Records a resolution without an answer to the agent.
    fn record_resolved(
        &mut self,
        permission: PermissionId,
        state: PermissionState,
        selected: Option<String>,
        resolved_by: Cow<'static, str>,
    ) {
        let Some(open) = self.pending(permission) else { return };
        let request = open.request.clone();
        self.record(Fact::PermissionResolved { permission, request, state, selected, resolved_by });
    }
}

impl Group {
    /// Opens a permission.
    pub(super) fn apply_permission_opened(&mut self, permission: &Permission) {
        self.permissions.push(permission.clone());
    }

    /// Removes a resolved permission.
    pub(super) fn apply_permission_resolved(&mut self, id: PermissionId) {
        self.permissions.retain(|open| open.permission != id);
    }
}
