//! HL-2, HL-3, HL-4, HL-7, HL-11: a compaction of a session starts with that session's lock, and is
//! published in one step with the lock's release, which fences it.

use std::{collections::BTreeSet, rc::Rc};

use greenroom_core::{Compaction, CompactionStatus, Fact, Recorded, SessionId, TaskId, TaskKind};

use super::{Begun, Checked, Invariant, Played, Trigger, ensure};

/// Only worlds see locks: no frame shows that one was taken or released.
#[derive(Default)]
pub struct Lock {
    in_world: bool,
    state: State,
    session: Option<SessionId>,
    /// The accepted compaction tasks, and the one whose prompt is in flight.
    tasks: BTreeSet<TaskId>,
    in_flight: Option<TaskId>,
    /// In this step: whether a compaction that needed the lock was published, and whether the lock
    /// was released with its facts.
    is_published: bool,
    is_fenced: bool,
}

/// The lock as the facts report it.
#[derive(Debug, Default, PartialEq)]
enum State {
    #[default]
    None,
    Held {
        task: TaskId,
        key: SessionId,
    },
    Bypassed(TaskId),
    Lost(TaskId),
}

impl Lock {
    pub fn holder(&self) -> Option<TaskId> {
        match self.state {
            State::Held { task, .. } => Some(task),
            State::None | State::Bypassed(_) | State::Lost(_) => None,
        }
    }

    fn started(&self, task: TaskId) -> Checked {
        let Some(session) = self.session.as_ref().filter(|_| self.tasks.contains(&task)) else {
            return Ok(());
        };
        let may = match &self.state {
            State::Held { task: holder, key } => (holder, key) == (&task, session),
            State::Bypassed(holder) => *holder == task,
            State::None | State::Lost(_) => false,
        };
        ensure!(may, "HL-2: {task} starts in {session} with {:?}", self.state);
        Ok(())
    }

    fn compaction_ended(&mut self, compaction: &Compaction) -> Checked {
        if compaction.status != CompactionStatus::Completed {
            return Ok(());
        }
        let is_ordered = compaction.task.is_some() && compaction.task == self.in_flight;
        if is_ordered {
            let lost = matches!(self.state, State::Lost(_));
            ensure!(!lost, "HL-11: {} is published without its lock", compaction.id);
            self.is_published |= self.holder() == compaction.task;
        }
        let carries = compaction.carries_summary;
        ensure!(is_ordered || !carries, "{} carries a summary, not ordered", compaction.id);
        Ok(())
    }

    fn world_fact(&mut self, fact: &Fact) -> Checked {
        match fact {
            Fact::TaskQueued { task, kind: TaskKind::Compaction, .. } => {
                self.tasks.insert(*task);
            }
            Fact::SegmentStarted { session, .. } | Fact::RunReady { session, .. } => {
                self.session = Some(session.clone());
            }
            Fact::ContextLost { .. } => self.session = None,
            Fact::TaskStarted { task, .. } => {
                self.started(*task)?;
                self.in_flight = Some(*task).filter(|task| self.tasks.contains(task));
            }
            Fact::TurnSettled { .. } => self.in_flight = None,
            Fact::CompactionEnded(ended) => self.compaction_ended(ended)?,
            Fact::TaskEnded { task, .. } | Fact::TaskRetrying { task, .. } => {
                ensure!(self.holder() != Some(*task), "HL-7: {task} ended with its lock");
                if [State::Bypassed(*task), State::Lost(*task)].contains(&self.state) {
                    self.state = State::None;
                }
            }
            Fact::LockTaken { task, key, .. } => {
                let is_free = self.state == State::None;
                ensure!(is_free, "HL-3: {task} takes a lock beside {:?}", self.state);
                self.state = State::Held { task: *task, key: key.clone() };
            }
            Fact::LockBypassed { task, .. } => self.state = State::Bypassed(*task),
            Fact::LockLost { task } => {
                let held = self.holder() == Some(*task);
                ensure!(held, "HL-4: {task} loses a lock that it did not hold");
                self.state = State::Lost(*task);
            }
            Fact::LockReleased { key, fences, .. } => {
                let held = matches!(&self.state, State::Held { key: held, .. } if held == key);
                ensure!(held, "HL-4: {key} is released, held is {:?}", self.state);
                self.state = State::None;
                ensure!(!self.is_fenced, "HL-11: one step, two fences");
                self.is_fenced = *fences;
            }
            _ => {}
        }
        Ok(())
    }
}

impl Invariant for Lock {
    fn begin(&mut self, step: &Rc<Begun>) {
        (self.in_world, self.is_published, self.is_fenced) = (true, false, false);
        // The server that held it is gone.
        if step.trigger == Trigger::Recovered {
            self.state = State::None;
        }
    }

    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        if self.in_world { self.world_fact(fact) } else { Ok(()) }
    }

    fn end(&mut self, _step: &Played) -> Checked {
        let (published, fenced) = (self.is_published, self.is_fenced);
        ensure!(published == fenced, "HL-11: published {published}, fenced {fenced}");
        Ok(())
    }
}
