//! AM-7, C22: a permission is resolved once, at the latest with its turn or its run, as its policy
//! says; the agent gets each decision once.

use std::{collections::BTreeMap, rc::Rc};

use greenroom_core::{
    Choice, Effect, EffectiveSettings, Fact, Json, Permission, PermissionId, PermissionOption,
    PermissionState, Policy, Recorded, Rejected, RunId, TaskId,
};

use super::{Begun, Checked, Invariant, Played, Trigger, ensure};

#[derive(Default)]
pub struct Permissions {
    step: Option<Rc<Begun>>,
    open: BTreeMap<PermissionId, Permission>,
    /// All opened permissions, in order.
    all: Vec<(PermissionId, Vec<PermissionOption>)>,
    in_flight: Option<TaskId>,
    /// The turn that is being cancelled.
    cancelled: Option<TaskId>,
    /// In this step: the decisions, and the permissions that were opened.
    answers: Vec<(RunId, Json, Option<String>)>,
    opened: Vec<Opened>,
}

/// How a permission has to be resolved in the step that opens it.
struct Opened {
    permission: PermissionId,
    expected: Option<(PermissionState, Option<String>)>,
}

impl Permissions {
    /// Returns the permission that was opened `back` before the last.
    pub fn nth_last(&self, back: usize) -> Option<(PermissionId, &[PermissionOption])> {
        let place = self.all.len().checked_sub(1)?.saturating_sub(back);
        self.all.get(place).map(|(id, options)| (*id, &**options))
    }

    /// Checks that of two answers only the first is accepted, and only an offered option.
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

    /// Whether the event of the step is the end of the run: no agent can get an answer.
    fn is_dead(&self) -> bool {
        let trigger = self.step.as_ref().map(|step| step.trigger);
        matches!(trigger, Some(Trigger::Exited(..) | Trigger::Recovered))
    }

    fn opened(&mut self, new: &Permission) -> Checked {
        let is_open = self.open.values().any(|open| open.request == new.request);
        ensure!(!is_open, "F14: request {:?} is open twice", new.request);
        let in_flight = self.in_flight;
        ensure!(new.task == in_flight, "AM-7: {:?} asks, not {in_flight:?}", new.task);
        let is_cancelled = self.cancelled.is_some() && self.cancelled == in_flight;
        let expected = match &self.step {
            _ if is_cancelled => Some((PermissionState::Cancelled, None)),
            Some(step) => by_policy(&step.settings, new),
            None => None,
        };
        self.opened.push(Opened { permission: new.permission, expected });
        self.all.push((new.permission, new.options.clone()));
        let first = self.open.insert(new.permission, new.clone()).is_none();
        ensure!(first, "{} is opened twice", new.permission);
        Ok(())
    }

    fn resolved(
        &mut self,
        permission: PermissionId,
        state: PermissionState,
        selected: &Option<String>,
    ) -> Checked {
        let known = self.open.remove(&permission);
        let known = known.ok_or_else(|| format!("{permission} is resolved twice"))?;
        let offered = |id: &String| known.options.iter().any(|option| option.id == *id);
        let is_valid = match (state, selected) {
            (PermissionState::Pending, _) | (PermissionState::Selected, None) => false,
            (PermissionState::Selected, Some(id)) => offered(id),
            (PermissionState::Cancelled | PermissionState::Void, given) => given.is_none(),
            (PermissionState::Expired, given) => *given == refusal(&known),
        };
        ensure!(is_valid, "C22: {known:?} ends {state:?} with {selected:?}");
        let void = state == PermissionState::Void;
        ensure!(!self.is_dead() || void, "{permission} ends {state:?} with its run");
        self.answers.push((known.run, known.request, selected.clone()));
        Ok(())
    }
}

impl Invariant for Permissions {
    #[rustfmt::skip]
    fn follows(&self) -> &'static [&'static str] {
        &[
            "permission_opened", "permission_resolved", "session/prompt", "cancel_requested",
            "turn_cut", "turn_settled", "run_exited",
        ]
    }

    fn begin(&mut self, step: &Rc<Begun>) {
        self.step = Some(Rc::clone(step));
        (self.answers, self.opened) = (Vec::new(), Vec::new());
    }

    fn fact(&mut self, Recorded { place, fact }: &Recorded) -> Checked {
        match fact {
            Fact::PermissionOpened(new) => self.opened(new)?,
            Fact::PermissionResolved { permission, request, state, selected, .. } => {
                let known = self.open.get(permission).map(|open| &open.request);
                ensure!(known == Some(request), "{permission} is request {known:?}");
                self.resolved(*permission, *state, selected)?;
            }
            Fact::PromptSent { .. } => self.in_flight = place.task,
            Fact::CancelRequested { task } | Fact::TurnCut { task, .. } => {
                self.cancelled = Some(*task)
            }
            Fact::TurnSettled { task, .. } => {
                let left = self.open.values().find(|open| open.task == Some(*task));
                ensure!(left.is_none(), "AM-7: {task} settles before {left:?}");
                (self.in_flight, self.cancelled) = (None, None);
            }
            Fact::RunExited { run, .. } => {
                let left = self.open.values().find(|open| open.run == *run);
                ensure!(left.is_none(), "AM-7: {run} is over before {left:?}");
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, step: &Played) -> Checked {
        let sent = step.effects.iter().filter_map(|effect| match effect {
            Effect::Answer { run, answer } => {
                Some((*run, answer.request.clone(), answer.selected.clone()))
            }
            _ => None,
        });
        let sent: Vec<_> = sent.collect();
        let expected = if self.is_dead() { Vec::new() } else { std::mem::take(&mut self.answers) };
        ensure!(sent == expected, "AM-7: sent are {sent:?}, resolved {expected:?}");
        let cancelled = self
            .open
            .values()
            .find(|open| self.cancelled.is_some_and(|task| open.task == Some(task)));
        ensure!(cancelled.is_none(), "AM-7: the turn is cancelled, and open is {cancelled:?}");
        for Opened { permission: opened, expected } in &self.opened {
            let ends = step.facts.iter().find_map(|recorded| match &recorded.fact {
                Fact::PermissionResolved { permission, state, selected, .. }
                    if permission == opened =>
                {
                    Some((*state, selected.clone()))
                }
                _ => None,
            });
            ensure!(ends == *expected, "C22: {opened} ends {ends:?}, not {expected:?}");
        }
        let mut held: Vec<_> = step.group.permissions().iter().map(|it| it.permission).collect();
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
