//! The statements about permissions: SEEDS AM-7, RELIABILITY C22.

use std::collections::{BTreeMap, BTreeSet};

use greenroom_core::{
    Choice, Effect, Group, Json, Permission, PermissionId, PermissionOption, PermissionState,
    Policy, Rejected, RunId, TaskId, Terms, Write,
};

use super::{Held, ensure};

/// What was seen of a group's permissions so far.
#[derive(Default)]
pub struct Permissions {
    open: BTreeMap<PermissionId, Permission>,
    /// All that were ever opened, in order.
    all: Vec<(PermissionId, Vec<PermissionOption>)>,
    /// Those of the turn that is being called off.
    cut: Option<TaskId>,
    /// In this step: what has to be answered, and what is decided at once by policy.
    answers: Vec<(RunId, Json, Option<String>)>,
    due: Vec<Due>,
    resolved: BTreeSet<PermissionId>,
    /// In this step: whether its run is over, so that nobody hears an answer.
    dead: bool,
}

/// What has to become of a permission in the step in which it is opened.
struct Due {
    permission: PermissionId,
    as_what: Option<(PermissionState, Option<String>)>,
}

impl Permissions {
    /// A step begins; `dead`: because the run is over.
    pub fn begin(&mut self, dead: bool) {
        (self.answers, self.due, self.dead) = (Vec::new(), Vec::new(), dead);
        self.resolved.clear();
    }

    /// The permission that was opened so many before the last.
    pub fn nth_last(&self, back: usize) -> Option<(PermissionId, &[PermissionOption])> {
        let place = self.all.len().checked_sub(1)?.saturating_sub(back);
        self.all.get(place).map(|(id, options)| (*id, &**options))
    }

    /// answer × answer: only the first is taken, and only what was offered.
    pub fn decided(
        &self,
        permission: PermissionId,
        choice: &Choice,
        rejected: Option<Rejected>,
    ) -> Held {
        let expected = match (self.open.get(&permission), choice) {
            (None, _) => Some(Rejected::NotPending),
            (Some(own), Choice::Select(wanted))
                if own.options.iter().all(|option| option.id != *wanted) =>
            {
                Some(Rejected::NoSuchOption)
            }
            (Some(_), Choice::Select(_) | Choice::Cancel) => None,
        };
        ensure!(rejected == expected, "{permission}: {rejected:?} and not {expected:?}");
        Ok(())
    }

    /// Takes in one fact; `in_flight` is the task whose prompt is in flight.
    pub fn fact(&mut self, write: &Write, in_flight: Option<TaskId>, terms: &Terms) -> Held {
        match write {
            Write::PermissionOpened(own) => {
                let twice = self.open.values().any(|open| open.request == own.request);
                ensure!(!twice, "F14: request {:?} is open twice", own.request);
                ensure!(own.task == in_flight, "AM-7: {:?} asks, not {in_flight:?}", own.task);
                let as_what = if self.cut.is_some() && self.cut == in_flight {
                    Some((PermissionState::Cancelled, None))
                } else {
                    by_policy(terms, own)
                };
                self.due.push(Due { permission: own.permission, as_what });
                self.all.push((own.permission, own.options.clone()));
                let new = self.open.insert(own.permission, Permission::clone(own)).is_none();
                ensure!(new, "{} is opened twice", own.permission);
            }
            Write::PermissionResolved { permission, request, state, selected, .. } => {
                let own = self.open.remove(permission);
                let own = own.ok_or_else(|| format!("{permission} is decided on twice"))?;
                ensure!(own.request == *request, "{permission} is request {:?}", own.request);
                self.resolved.insert(*permission);
                let offered = |id: &String| own.options.iter().any(|option| option.id == *id);
                let well = match (state, selected) {
                    (PermissionState::Pending, _) => false,
                    (PermissionState::Selected, Some(id)) => offered(id),
                    (PermissionState::Selected, None) => false,
                    (PermissionState::Cancelled | PermissionState::Void, given) => given.is_none(),
                    (PermissionState::Expired, given) => *given == refusal(&own),
                };
                ensure!(well, "C22: {own:?} ends {state:?} with {selected:?}");
                let void = *state == PermissionState::Void;
                ensure!(!self.dead || void, "{permission} ends {state:?} with its run");
                self.answers.push((own.run, own.request, selected.clone()));
            }
            Write::CancelRequested { task } | Write::TurnCut { task, .. } => self.cut = Some(*task),
            Write::TurnSettled { task, .. } => {
                let left = self.open.values().find(|own| own.task == Some(*task));
                ensure!(left.is_none(), "AM-7: {task} settles before {left:?}");
                self.cut = None;
            }
            Write::RunExited { run, .. } => {
                let left = self.open.values().find(|own| own.run == *run);
                ensure!(left.is_none(), "AM-7: {run} is over before {left:?}");
            }
            _ => {}
        }
        Ok(())
    }

    /// What holds of a step: each decision is told to the agent, once, and nothing else is; a turn
    /// that is called off has nothing open.
    pub fn step(&mut self, effects: &[Effect]) -> Held {
        let told = effects.iter().filter_map(|effect| match effect {
            Effect::Answer { run, answer } => {
                Some((*run, answer.request.clone(), answer.selected.clone()))
            }
            _ => None,
        });
        let told: Vec<_> = told.collect();
        let expected = if self.dead { Vec::new() } else { std::mem::take(&mut self.answers) };
        ensure!(told == expected, "AM-7: answered are {told:?}, decided on {expected:?}");
        let left = self.open.values().find(|own| self.cut.is_some() && own.task == self.cut);
        ensure!(left.is_none(), "AM-7: called off, and open is {left:?}");
        for Due { permission, as_what } in &self.due {
            let open = self.open.contains_key(permission);
            ensure!(open == as_what.is_none(), "C22: {permission} has to be {as_what:?}");
        }
        Ok(())
    }

    /// What became of a permission that is opened and decided on in one breath.
    pub fn as_decided(&self, writes: &[Write]) -> Held {
        for Due { permission: own, as_what } in &self.due {
            let ends = writes.iter().find_map(|write| match write {
                Write::PermissionResolved { permission, state, selected, .. }
                    if permission == own =>
                {
                    Some((*state, selected.clone()))
                }
                _ => None,
            });
            ensure!(ends == *as_what, "C22: {own} ends {ends:?}, not {as_what:?}");
        }
        Ok(())
    }

    /// What holds between two steps.
    pub fn at_rest(&self, group: &Group) -> Held {
        let mut held: Vec<_> = group.permissions().iter().map(|own| own.permission).collect();
        held.sort();
        let own: Vec<_> = self.open.keys().copied().collect();
        ensure!(held == own, "AM-7: open are {own:?}, not {held:?}");
        Ok(())
    }
}

fn of_kind(own: &Permission, kind: &str) -> Option<String> {
    own.options.iter().find(|option| option.kind == kind).map(|option| option.id.clone())
}

/// API: what a permission's timeout, or policy `reject`, selects.
fn refusal(own: &Permission) -> Option<String> {
    of_kind(own, "reject_once").or_else(|| of_kind(own, "reject_always"))
}

fn by_policy(terms: &Terms, own: &Permission) -> Option<(PermissionState, Option<String>)> {
    let kind = own.tool_kind.as_deref().unwrap_or("other");
    let policy = terms.permissions.kinds.get(kind).unwrap_or(&terms.permissions.default);
    let yes = of_kind(own, "allow_once").or_else(|| of_kind(own, "allow_always"));
    let said = match policy {
        Policy::Ask => return None,
        Policy::Allow => yes.or_else(|| refusal(own)),
        Policy::Reject => refusal(own),
    };
    let state = if said.is_some() { PermissionState::Selected } else { PermissionState::Cancelled };
    Some((state, said))
}
