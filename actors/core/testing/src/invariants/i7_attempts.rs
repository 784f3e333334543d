//! I7: attempts count up from 1, each but the first is a retry, and a task's state says whether its
//! prompt was sent.

use std::{collections::BTreeMap, rc::Rc};

use greenroom_core::{Fact, Recorded, TaskError, TaskId, TaskState};

use super::{Begun, Checked, Invariant, Played, ensure, record};

#[derive(Default)]
pub struct Attempts {
    in_world: bool,
    tasks: BTreeMap<TaskId, OpenTask>,
    /// The task whose prompt is in flight.
    running: Option<TaskId>,
}

#[derive(Default)]
struct OpenTask {
    attempts: u32,
    /// Whether the prompt of its last attempt was sent, and that of any.
    is_sent: bool,
    ever_sent: bool,
    /// Whether it waits for a retry.
    is_retrying: bool,
}

impl Attempts {
    fn open_task(&mut self, task: TaskId) -> Checked<&mut OpenTask> {
        self.tasks.get_mut(&task).ok_or_else(|| format!("I2: {task} is not open"))
    }

    fn started(&mut self, task: TaskId, attempt: u32) -> Checked {
        let running = self.running.replace(task);
        ensure!(running.is_none(), "AM-2: {task} starts beside {running:?}");
        let open_task = self.open_task(task)?;
        let may = open_task.attempts == 0 || open_task.is_retrying;
        ensure!(may, "I7: {task} starts again and is not retried");
        open_task.attempts += 1;
        (open_task.is_sent, open_task.ever_sent, open_task.is_retrying) = (true, true, false);
        let attempts = open_task.attempts;
        ensure!(attempt == attempts, "I7: attempt {attempt} of {task} is {attempts}");
        Ok(())
    }

    fn retrying(&mut self, task: TaskId, attempt: u32) -> Checked {
        let runs = self.running == Some(task);
        ensure!(!runs, "I7: {task} is retried while its attempt runs");
        let open_task = self.open_task(task)?;
        // An attempt counts also if its agent did not start.
        open_task.attempts += u32::from(!open_task.is_sent);
        (open_task.is_retrying, open_task.is_sent) = (true, false);
        let attempts = open_task.attempts;
        ensure!(attempt == attempts, "I7: {task} fails at {attempts}, not {attempt}");
        Ok(())
    }

    fn ended(
        &mut self,
        task: TaskId,
        attempt: u32,
        state: TaskState,
        error: Option<&TaskError>,
    ) -> Checked {
        let open_task = self.tasks.remove(&task).ok_or_else(|| format!("I9: {task} ends twice"))?;
        let code = error.map(|error| &*error.code);
        let expires = code == Some("expired");
        ensure!(!expires || !open_task.ever_sent, "I7: {task} was sent and expires");
        let ran = matches!(state, TaskState::Completed | TaskState::Interrupted);
        ensure!(open_task.is_sent || !ran, "I7: {task} was not sent and is {state:?}");
        let attempts = open_task.attempts + u32::from(code == Some("agent_start_failed"));
        // A frame of an earlier version lacks it.
        let is_given = self.in_world || attempt != 0;
        ensure!(!is_given || attempt == attempts, "I7: {task} ends at {attempts}, not {attempt}");
        Ok(())
    }
}

impl Invariant for Attempts {
    fn follows(&self) -> &'static [&'static str] {
        &["task_queued", "task_started", "turn_settled", "task_retrying", "task_ended"]
    }

    fn begin(&mut self, _step: &Rc<Begun>) {
        self.in_world = true;
    }

    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        match fact {
            Fact::TaskQueued { task, .. } => drop(self.tasks.insert(*task, OpenTask::default())),
            Fact::TaskStarted { task, attempt, .. } => self.started(*task, *attempt)?,
            Fact::TurnSettled { .. } => self.running = None,
            Fact::TaskRetrying { task, attempt, .. } => self.retrying(*task, *attempt)?,
            Fact::TaskEnded { task, attempt, state, error, record: ended, .. } => {
                self.ended(*task, *attempt, *state, error.as_ref())?;
                let recorded = record(*task, ended).map_or(*attempt, |ended| ended.attempt);
                ensure!(*attempt == recorded, "I7: attempt {attempt} of {ended:?}");
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, step: &Played) -> Checked {
        for task in step.group.waiting().chain(step.group.current()) {
            let Some(open_task) = self.tasks.get(&task.id) else { continue };
            let attempts = open_task.attempts;
            ensure!(task.attempt == attempts, "I7: {} is at {attempts}", task.id);
            let expected = match self.running == Some(task.id) {
                true => TaskState::Running,
                false if open_task.is_retrying => TaskState::Retrying,
                false => TaskState::Queued,
            };
            let state = task.state();
            ensure!(state == expected, "I7: {} is {state:?}, not {expected:?}", task.id);
        }
        Ok(())
    }
}
