//! The invariants of permissions: AM-7, C22.

use std::collections::{BTreeMap, BTreeSet};

use greenroom_core::{
    Choice, Effect, EffectiveSettings, Fact, Group, Json, Permission, PermissionId,
    PermissionOption, PermissionState, Policy, Rejected, RunId, TaskId,
};

use super::{Checked, ensure};

/// The history of a group's permissions.
#[derive(Default)]
pub struct Permissions {
    open: BTreeMap<PermissionId, Permission>,
    /// All opened permissions, in order.
    all: Vec<(PermissionId, Vec<PermissionOption>)>,
    /// The turn that is being cancelled.
    cancelled: Option<TaskId>,
    /// In this step: the answers that the agent has to get, and the permissions that were opened.
    answers: Vec<(RunId, Json, Option<String>)>,
    opened: Vec<Opened>,
    resolved: BTreeSet<PermissionId>,
    /// In this step: whether the run is over, so that no agent can get an answer.
    dead: bool,
}

/// How a permission has to be resolved in the step that opens it.
struct Opened {
    permission: PermissionId,
    expected: Option<(PermissionState, Option<String>)>,
}

impl Permissions {
    /// Begins a step; `dead`: its event is the end of the run.
    pub fn begin(&mut self, dead: bool) {
        (self.answers, self.opened, self.dead) = (Vec::new(), Vec::new(), dead);
        self.resolved.clear();
    }

    /// Returns the permission that was opened `back` before the last.
    pub fn nth_last(&self, back: usize) -> Option<(PermissionId, &[PermissionOption])> {
        let place = self.all.len().checked_sub(1)?.saturating_sub(back);
        self.all.get(place).map(|(id, options)| (*id, &**options))
    }

    /// Of two answers only the first is accepted, and only an offered option.
    pub fn check_answer(
        &self,
        permission: PermissionId,
        choice: &Choice,
        rejected: Option<Rejected>,
    ) -> Checked {
        let expected = match (self.open.get(&permission), choice) {
            (None, _) => Some(Rejected::NotPending),
            (Some(open), Choice::Select(wanted))
                if open.options.iter().all(|option| option.id != *wanted) =>
            {
                Some(Rejected::NoSuchOption)
            }
            (Some(_), Choice::Select(_) | Choice::Cancel) => None,
        };
        ensure!(rejected == expected, "{permission}: {rejected:?} and not {expected:?}");
        Ok(())
    }

    /// Checks and applies one fact; `in_flight` is the task whose prompt is in flight.
    pub fn check_fact(
        &mut self,
        fact: &Fact,
        in_flight: Option<TaskId>,
        settings: &EffectiveSettings,
    ) -> Checked {
        match fact {
            Fact::PermissionOpened(new) => {
                let is_open = self.open.values().any(|open| open.request == new.request);
                ensure!(!is_open, "F14: request {:?} is open twice", new.request);
                ensure!(new.task == in_flight, "AM-7: {:?} asks, not {in_flight:?}", new.task);
                let expected = if self.cancelled.is_some() && self.cancelled == in_flight {
                    Some((PermissionState::Cancelled, None))
                } else {
                    by_policy(settings, new)
                };
                self.opened.push(Opened { permission: new.permission, expected });
                self.all.push((new.permission, new.options.clone()));
                let first = self.open.insert(new.permission, Permission::clone(new)).is_none();
                ensure!(first, "{} is opened twice", new.permission);
            }
            Fact::PermissionResolved { permission, request, state, selected, .. } => {
                let known = self.open.remove(permission);
                let known = known.ok_or_else(|| format!("{permission} is resolved twice"))?;
                ensure!(known.request == *request, "{permission} is request {:?}", known.request);
                self.resolved.insert(*permission);
                let offered = |id: &String| known.options.iter().any(|option| option.id == *id);
                let is_valid = match (state, selected) {
                    (PermissionState::Pending, _) => false,
                    (PermissionState::Selected, Some(id)) => offered(id),
                    (PermissionState::Selected, None) => false,
                    (PermissionState::Cancelled | PermissionState::Void, given) => given.is_none(),
                    (PermissionState::Expired, given) => *given == refusal(&known),
                };
                ensure!(is_valid, "C22: {known:?} ends {state:?} with {selected:?}");
                let void = *state == PermissionState::Void;
                ensure!(!self.dead || void, "{permission} ends {state:?} with its run");
                self.answers.push((known.run, known.request, selected.clone()));
            }
            Fact::CancelRequested { task } | Fact::TurnCut { task, .. } => {
                self.cancelled = Some(*task)
            }
            Fact::TurnSettled { task, .. } => {
                let left = self.open.values().find(|open| open.task == Some(*task));
                ensure!(left.is_none(), "AM-7: {task} settles before {left:?}");
                self.cancelled = None;
            }
            Fact::RunExited { run, .. } => {
                let left = self.open.values().find(|open| open.run == *run);
                ensure!(left.is_none(), "AM-7: {run} is over before {left:?}");
            }
            _ => {}
        }
        Ok(())
    }

    /// Checks the invariants of a step: the agent gets each decision once, and nothing else; a
    /// cancelled turn has no open permission.
    pub fn step(&mut self, effects: &[Effect]) -> Checked {
        let sent = effects.iter().filter_map(|effect| match effect {
            Effect::Answer { run, answer } => {
                Some((*run, answer.request.clone(), answer.selected.clone()))
            }
            _ => None,
        });
        let sent: Vec<_> = sent.collect();
        let expected = if self.dead { Vec::new() } else { std::mem::take(&mut self.answers) };
        ensure!(sent == expected, "AM-7: sent are {sent:?}, resolved {expected:?}");
        let left =
            self.open.values().find(|open| self.cancelled.is_some() && open.task == self.cancelled);
        ensure!(left.is_none(), "AM-7: the turn is cancelled, and open is {left:?}");
        for Opened { permission, expected } in &self.opened {
            let open = self.open.contains_key(permission);
            ensure!(open == expected.is_none(), "C22: {permission} has to be {expected:?}");
        }
        Ok(())
    }

    /// Checks how a permission was resolved in the step that opened it.
    pub fn check_resolved_at_once(&self, facts: &[Fact]) -> Checked {
        for Opened { permission: opened, expected } in &self.opened {
            let ends = facts.iter().find_map(|fact| match fact {
                Fact::PermissionResolved { permission, state, selected, .. }
                    if permission == opened =>
                {
                    Some((*state, selected.clone()))
                }
                _ => None,
            });
            ensure!(ends == *expected, "C22: {opened} ends {ends:?}, not {expected:?}");
        }
        Ok(())
    }

    /// Checks the invariants between two steps.
    pub fn at_rest(&self, group: &Group) -> Checked {
        let mut held: Vec<_> = group.permissions().iter().map(|held| held.permission).collect();
        held.sort();
        let open: Vec<_> = self.open.keys().copied().collect();
        ensure!(held == open, "AM-7: open are {open:?}, not {held:?}");
        Ok(())
    }
}

fn of_kind(permission: &Permission, kind: &str) -> Option<String> {
    permission.options.iter().find(|option| option.kind == kind).map(|option| option.id.clone())
}

/// Returns the option that a timeout or policy `reject` selects (API).
fn refusal(permission: &Permission) -> Option<String> {
    of_kind(permission, "reject_once").or_else(|| of_kind(permission, "reject_always"))
}

fn by_policy(
    settings: &EffectiveSettings,
    permission: &Permission,
) -> Option<(PermissionState, Option<String>)> {
    let kind = permission.tool_kind.as_deref().unwrap_or("other");
    let policy = settings.permissions.kinds.get(kind).unwrap_or(&settings.permissions.default);
    let allowance =
        of_kind(permission, "allow_once").or_else(|| of_kind(permission, "allow_always"));
    let selected = match policy {
        Policy::Ask => return None,
        Policy::Allow => allowance.or_else(|| refusal(permission)),
        Policy::Reject => refusal(permission),
    };
    let state =
        if selected.is_some() { PermissionState::Selected } else { PermissionState::Cancelled };
    Some((state, selected))
}
