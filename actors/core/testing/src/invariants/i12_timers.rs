//! I12: every wait for a time has a timer with what is left of it: a backoff, the next run of a
//! crash loop, the time to start by; and nothing starts while it waits, or later than it may.

use std::{collections::BTreeMap, rc::Rc};

use greenroom_core::{Deadline, Fact, Recorded, TaskId, TaskState, Timer};

use super::{Begun, Checked, Invariant, Played, Trigger, ensure, is_answer, left_ms, record};

/// Only worlds have timers.
#[derive(Default)]
pub struct Timers {
    step: Option<Rc<Begun>>,
    tasks: BTreeMap<TaskId, Waits>,
    holder: Option<TaskId>,
    has_run: bool,
    /// The end of the wait before the next run, and its timer.
    launch: Option<(Deadline, Timer)>,
}

#[derive(Default)]
struct Waits {
    attempts: u32,
    ever_sent: bool,
    is_retrying: bool,
    backoff: Option<Deadline>,
    expires: Option<Deadline>,
}

impl Timers {
    pub fn backs_off(&self, task: TaskId) -> bool {
        let wants_login = self.wants_login();
        let waits_for_run = wants_login || (!self.has_run && self.launch.is_some());
        self.tasks.get(&task).is_some_and(|waits| {
            let launches = !waits.is_retrying || wants_login;
            waits.backoff.is_some() || (launches && waits_for_run)
        })
    }

    pub fn wants_login(&self) -> bool {
        matches!(self.launch, Some((_, Timer::Login(_))))
    }

    fn waits(&mut self, task: TaskId) -> Checked<&mut Waits> {
        self.tasks.get_mut(&task).ok_or_else(|| format!("I2: {task} is not open"))
    }

    fn is_late(&self, task: TaskId, step: &Begun) -> bool {
        let due = self.tasks.get(&task).and_then(|waits| waits.expires);
        due.is_some_and(|due| left_ms(due, step.now) == 0)
    }

    fn claimed(&mut self, task: TaskId) -> Checked {
        let is_new = self.holder.replace(task) != Some(task);
        ensure!(!is_new || !self.backs_off(task), "I12: {task} is claimed and backs off");
        Ok(())
    }

    fn world_fact(&mut self, fact: &Fact, step: &Begun) -> Checked {
        match fact {
            Fact::TaskQueued { task, record: accepted, .. } => {
                let expires = record(*task, accepted).and_then(|accepted| accepted.expires);
                self.tasks.insert(*task, Waits { expires, ..Waits::default() });
            }
            Fact::TaskClaimed { task } => self.claimed(*task)?,
            Fact::TaskReleased { .. } => self.holder = None,
            Fact::TaskStarted { task, attempt, .. } => {
                self.claimed(*task)?;
                let is_late = self.is_late(*task, step);
                let waits = self.waits(*task)?;
                ensure!(!is_late || waits.ever_sent, "I12: {task} starts after it expired");
                (waits.attempts, waits.ever_sent) = (*attempt, true);
            }
            Fact::TaskRetrying { task, attempt, wait_ms, due, .. } => {
                self.holder = None;
                let is_due = *due == Deadline::after(step.now, *wait_ms);
                ensure!(is_due, "I12: {task} waits until {due:?}");
                let waits = self.waits(*task)?;
                (waits.attempts, waits.is_retrying, waits.backoff) = (*attempt, true, Some(*due));
            }
            Fact::BackoffEnded { task } => {
                let waits = self.waits(*task)?;
                let timer = Timer::Backoff(*task, waits.attempts);
                let (timed, waited) =
                    (step.trigger == Trigger::Expired(timer), waits.backoff.take());
                ensure!(timed && waited.is_some(), "{task} did not wait: {:?}", step.trigger);
            }
            Fact::TaskEnded { task, state, error, .. } => {
                self.holder = self.holder.filter(|holder| holder != task);
                if error.as_ref().is_some_and(|error| error.code == "expired") {
                    let timed = step.trigger == Trigger::Expired(Timer::Queued(*task));
                    ensure!(timed || self.is_late(*task, step), "I12: {task} expires too early");
                    ensure!(*state == TaskState::Failed, "{task} expires and is {state:?}");
                }
                self.tasks.remove(task);
            }
            Fact::GroupArchived {}
            | Fact::GroupChanged(_)
            | Fact::GroupResumed {}
            | Fact::LaunchAllowed {} => self.launch = None,
            Fact::TurnSettled { stop_reason, .. } if is_answer(*stop_reason) => self.launch = None,
            Fact::AgentDegraded { due, runs, .. } => {
                self.launch = Some((*due, Timer::Launch(*runs)));
            }
            Fact::AgentAuthRequired { due, starts, .. } => {
                self.launch = Some((*due, Timer::Login(*starts)));
            }
            Fact::RunStarted { run, .. } => {
                let task = self.holder.ok_or_else(|| format!("{run} starts without a task"))?;
                ensure!(!self.backs_off(task), "F8: {run} starts for {task}, which backs off");
                self.has_run = true;
            }
            Fact::RunExited { .. } => self.has_run = false,
            Fact::LockAsked { task } => {
                ensure!(!self.backs_off(*task), "{task} requests a lock and backs off");
            }
            _ => {}
        }
        Ok(())
    }

    /// Checks that each wait has its timer.
    fn check_waits(&self, timers: &[(Timer, u64)], step: &Begun) -> Checked {
        let has = |timer, due| timers.contains(&(timer, left_ms(due, step.now)));
        for (id, waits) in &self.tasks {
            if let Some(due) = waits.backoff {
                let bounded = has(Timer::Backoff(*id, waits.attempts), due);
                ensure!(bounded, "I12: {id} backs off for ever: {timers:?}");
            }
        }
        if let Some((due, timer)) = self.launch.filter(|_| !self.has_run || self.wants_login()) {
            let bounded = has(timer, due);
            ensure!(bounded, "I12: the next run waits for ever: {timers:?}");
        }
        let unsent = |waits: &&Waits| !waits.ever_sent;
        let dues = self.tasks.values().filter(unsent).filter_map(|waits| waits.expires);
        let soonest = dues.map(|due| left_ms(due, step.now)).min();
        let first = timers.iter().find_map(|(timer, left)| match timer {
            Timer::Queued(task) => Some((*task, *left)),
            _ => None,
        });
        ensure!(soonest == first.map(|(_, left)| left), "I12: {soonest:?} is left, not {first:?}");
        let sent = |task| self.tasks.get(&task).is_none_or(|waits| waits.ever_sent);
        let wrong = first.filter(|(task, _)| sent(*task));
        ensure!(wrong.is_none(), "I7: {wrong:?} would expire, and was sent");
        Ok(())
    }

    /// Checks that each timer has its wait.
    fn check_timers(&self, timers: &[(Timer, u64)]) -> Checked {
        for (timer, _) in timers {
            let known = match timer {
                Timer::Backoff(task, _) => {
                    self.tasks.get(task).is_some_and(|waits| waits.backoff.is_some())
                }
                Timer::Launch(_) => self.launch.is_some() && !self.has_run,
                Timer::Login(_) => self.wants_login(),
                _ => true,
            };
            ensure!(known, "{timer:?} has no wait");
        }
        Ok(())
    }
}

impl Invariant for Timers {
    fn begin(&mut self, step: &Rc<Begun>) {
        self.step = Some(Rc::clone(step));
    }

    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        match self.step.clone() {
            Some(step) => self.world_fact(fact, &step),
            None => Ok(()),
        }
    }

    fn end(&mut self, step: &Played) -> Checked {
        let Some(begun) = &self.step else { return Ok(()) };
        for task in step.group.waiting().chain(step.group.current()) {
            let backoff = self.tasks.get(&task.id).and_then(|waits| waits.backoff);
            ensure!(task.retry_at() == backoff, "{} backs off: {backoff:?}", task.id);
        }
        let current = step.group.current().and_then(|current| current.retry_at());
        ensure!(current.is_none(), "the current task backs off until {current:?}");
        self.check_waits(&step.timers, begun)?;
        self.check_timers(&step.timers)
    }
}
