//! What becomes of the permissions that an agent asks for: opened, decided by a policy, a person or
//! the deadline, and void once nothing depends on them (SEEDS AM-7).

use std::borrow::Cow;

use super::{Rejected, scene::Scene};
use crate::{
    Answer, Choice, Effect, Fold, Lines, Permission, PermissionAsked, PermissionId,
    PermissionState, Policy, RunId, Said, TaskId, Timestamp, Write, permission,
};

/// So many permissions of a group may be open at once; more are refused (I11).
const OPEN_MAX: usize = 100;

impl Scene<'_> {
    pub(super) fn permission_asked(&mut self, run: RunId, lines: Lines, asked: PermissionAsked) {
        let task = self.group.turn_of(run);
        let fold = Fold { output: true, ..Fold::default() };
        self.write(Write::Said(Said { run, task, lines, fold }));
        let open = &self.group.permissions;
        if open.iter().any(|own| own.request == asked.request) {
            // A request that is not answered yet, once more: one answer is enough (F14).
            return;
        }
        let is_full = open.len() >= OPEN_MAX;
        // A turn that is being cut off is answered as ACP says, not by the policy.
        let is_cut = self.group.turn().is_some_and(|turn| turn.cut.is_some());
        let policy = self.terms.permissions.on(asked.tool_kind.as_deref());
        let wait_ms = self.terms.patience.permission_ms;
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
        self.write(Write::PermissionOpened(Box::new(permission)));
        match policy {
            _ if is_cut => self.resolve(id, PermissionState::Cancelled, None, "cancel".into()),
            _ if is_full => self.refuse(id, PermissionState::Selected, "limit"),
            Policy::Ask => {}
            Policy::Reject => self.refuse(id, PermissionState::Selected, "policy"),
            Policy::Allow => {
                let options =
                    self.pending(id).map(|own| own.options.as_slice()).unwrap_or_default();
                match permission::allowing(options) {
                    Some(yes) => {
                        self.resolve(id, PermissionState::Selected, Some(yes), "policy".into());
                    }
                    None => self.refuse(id, PermissionState::Selected, "policy"),
                }
            }
        }
    }

    /// The first answer wins; a later one is told so.
    pub(super) fn permission_answered(
        &mut self,
        id: PermissionId,
        choice: Choice,
        by: Cow<'static, str>,
    ) -> Result<(), Rejected> {
        let permission = self.pending(id).ok_or(Rejected::NotPending)?;
        match choice {
            Choice::Cancel => self.resolve(id, PermissionState::Cancelled, None, by),
            Choice::Select(option) => {
                if !permission.options.iter().any(|own| own.id == option) {
                    return Err(Rejected::NoSuchOption);
                }
                self.resolve(id, PermissionState::Selected, Some(option), by);
            }
        }
        Ok(())
    }

    /// Nobody answered in time: the answer is no (RELIABILITY C22).
    pub(super) fn permission_expired(&mut self, id: PermissionId) {
        self.refuse(id, PermissionState::Expired, "deadline");
    }

    /// Answers everything that the running turn asked for as ACP wants it for one that is called
    /// off.
    pub(super) fn cancel_permissions(&mut self) {
        let task = self.group.current().map(|task| task.id);
        for id in self.pending_of(|own| own.task == task) {
            self.resolve(id, PermissionState::Cancelled, None, "cancel".into());
        }
    }

    /// The turn is about to settle: what it asked for means nothing any more.
    pub(super) fn void_permissions_of(&mut self, task: TaskId) {
        for id in self.pending_of(|own| own.task == Some(task)) {
            self.resolve(id, PermissionState::Void, None, "settlement".into());
        }
    }

    /// The run is about to end: what it asked for outside of a turn becomes void before its stdin
    /// is closed, so that no later answer is accepted and lost.
    pub(super) fn void_permissions_outside(&mut self) {
        for id in self.pending_of(|own| own.task.is_none()) {
            self.resolve(id, PermissionState::Void, None, "run_ended".into());
        }
    }

    /// The run is over: there is nobody to answer.
    pub(super) fn void_permissions(&mut self) {
        for id in self.pending_of(|_| true) {
            self.state_resolved(id, PermissionState::Void, None, "run_ended".into());
        }
    }

    fn pending(&self, id: PermissionId) -> Option<&Permission> {
        self.group.permissions.iter().find(|own| own.permission == id)
    }

    fn pending_of(&self, wanted: impl Fn(&Permission) -> bool) -> Vec<PermissionId> {
        let wanted = self.group.permissions.iter().filter(|own| wanted(own));
        wanted.map(|own| own.permission).collect()
    }

    fn refuse(&mut self, id: PermissionId, state: PermissionState, by: &'static str) {
        let Some(permission) = self.pending(id) else { return };
        let no = permission::rejecting(&permission.options);
        let state = match (state, &no) {
            (PermissionState::Selected, None) => PermissionState::Cancelled,
            (state, _) => state,
        };
        self.resolve(id, state, no, by.into());
    }

    fn resolve(
        &mut self,
        id: PermissionId,
        state: PermissionState,
        selected: Option<String>,
        by: Cow<'static, str>,
    ) {
        let Some(permission) = self.pending(id) else { return };
        let (run, request) = (permission.run, permission.request.clone());
        self.state_resolved(id, state, selected.clone(), by);
        self.order(Effect::Answer { run, answer: Answer { request, selected } });
    }

    fn state_resolved(
        &mut self,
        permission: PermissionId,
        state: PermissionState,
        selected: Option<String>,
        resolved_by: Cow<'static, str>,
    ) {
        let Some(own) = self.pending(permission) else { return };
        let request = own.request.clone();
        self.write(Write::PermissionResolved { permission, request, state, selected, resolved_by });
    }
}
