//! What a database holds of a group, folded from its facts by other code than the rules' own.

use std::collections::BTreeMap;

use greenroom_core::{
    Cause, CutBy, Group, Head, Run, RunPhase, Settings, Task, TaskId, TaskState, Timestamp, Turn,
    Write,
};

/// The rows of one group.
pub struct Reference {
    head: Head,
    /// All tasks ever accepted, by ordinal.
    tasks: BTreeMap<u64, Task>,
    run: Option<Run>,
    /// The attempt that runs; a database hears it again from the frames.
    turn: Option<Turn>,
}

impl Reference {
    /// A group that nobody stored, with the settings that it would have.
    pub fn new(settings: Settings) -> Self {
        let head = Head {
            settings,
            created_at: None,
            last_seq: 0,
            tasks: 0,
            session: None,
            segment: 0,
            usage: None,
            paused: false,
            archived: false,
            purging: false,
        };
        Self { head, tasks: BTreeMap::new(), run: None, turn: None }
    }

    /// What is kept beside tasks and run.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// All tasks ever accepted, in that order.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.tasks.values()
    }

    /// The run that is alive.
    pub fn run(&self) -> Option<&Run> {
        self.run.as_ref()
    }

    /// The attempt that runs.
    pub fn turn(&self) -> Option<&Turn> {
        self.turn.as_ref()
    }

    /// The group, with all that was ever stated.
    pub fn restore(&self) -> Group {
        Group::restore(self.head.clone(), self.open(), self.run.clone(), self.turn.clone())
    }

    /// The group as a database gives it back, which keeps no phase of a run, and of an attempt
    /// neither its prompt's id nor who cut it off.
    pub fn restore_forgetful(&self) -> Group {
        let run = self.run.clone().map(|run| Run {
            id: run.id,
            phase: RunPhase::Stopping,
            outdated: false,
        });
        let turn = self.turn.clone().map(|mut turn| {
            (turn.prompt_id, turn.cut) = (0, None);
            turn
        });
        Group::restore(self.head.clone(), self.open(), run, turn)
    }

    fn open(&self) -> Vec<Task> {
        self.tasks.values().filter(|task| !task.state.is_terminal()).cloned().collect()
    }

    fn task(&mut self, id: TaskId) -> &mut Task {
        let task = self.tasks.values_mut().find(|task| task.id == id);
        task.unwrap_or_else(|| panic!("a fact names {id}, which was never queued"))
    }

    /// Takes in one fact.
    pub fn store(&mut self, write: &Write, at: Timestamp) {
        let first_seq = self.head.last_seq + 1;
        self.head.last_seq += write.frames();
        match write {
            Write::GroupCreated(settings) => {
                self.head.settings = settings.clone();
                self.head.created_at = Some(at);
            }
            Write::GroupChanged(settings) => {
                let (old, run) = (&self.head.settings, &mut self.run);
                if (&settings.agent, &settings.cwd) != (&old.agent, &old.cwd) {
                    run.iter_mut().for_each(|run| run.outdated = true);
                }
                self.head.settings = settings.clone();
                self.head.archived = false;
            }
            Write::GroupArchived {} => self.head.archived = true,
            Write::PurgeOrdered {} => self.head.purging = true,
            Write::GroupPaused {} => self.head.paused = true,
            Write::GroupResumed {} => self.head.paused = false,
            Write::TaskQueued { record, .. } => {
                self.head.tasks += 1;
                self.tasks.insert(record.ordinal, Task::clone(record));
            }
            Write::TaskClaimed { task } => self.task(*task).claimed_at = Some(at),
            Write::TaskReleased { task } => self.task(*task).claimed_at = None,
            Write::TaskStarted { task, attempt, run } => {
                let segment = self.head.segment;
                let task = self.task(*task);
                task.state = TaskState::Running;
                task.claimed_at = task.claimed_at.or(Some(at));
                (task.attempt, task.run) = (*attempt, Some(*run));
                (task.started_at, task.segment) = (Some(at), Some(segment));
                task.seq_first = Some(first_seq);
            }
            Write::PromptSent { id, .. } => {
                let run = self.run.as_ref().map(|run| run.id);
                self.turn = run.map(|run| Turn::new(run, *id));
            }
            Write::Said(said) => {
                if let Some(usage) = &said.fold.usage {
                    self.head.usage = Some(usage.clone());
                }
                if let (Some(_), Some(turn)) = (said.task, &mut self.turn) {
                    turn.hear(&said.fold);
                }
            }
            Write::CancelRequested { task } => {
                self.task(*task).cancel_requested = true;
                self.cut(CutBy::Caller);
            }
            Write::TurnCut { cause, .. } => self.cut(match cause {
                Cause::Deadline => CutBy::Deadline,
                _ => CutBy::Shutdown,
            }),
            Write::TaskEnded { task, record, .. } => {
                if self.task(*task).state == TaskState::Running {
                    self.turn = None;
                }
                *self.task(*task) = Task::clone(record);
            }
            Write::RunStarted { run, .. } => {
                self.run = Some(Run { id: *run, phase: RunPhase::Starting, outdated: false });
            }
            Write::RunReady { .. } => self.phase(RunPhase::Ready),
            Write::RunStopping { .. } => self.phase(RunPhase::Stopping),
            Write::RunExited { .. } => self.run = None,
            Write::SegmentStarted { segment, session } => {
                self.head.segment = *segment;
                self.head.session = Some(session.clone());
            }
            Write::ContextLost { .. } => (self.head.session, self.head.usage) = (None, None),
            Write::TurnStarted { .. }
            | Write::AgentOutputRejected { .. }
            | Write::PermissionResolved { .. }
            | Write::TurnSettled { .. }
            | Write::SegmentEnded { .. } => {}
        }
    }

    fn cut(&mut self, by: CutBy) {
        if let Some(turn) = &mut self.turn {
            turn.cut = turn.cut.or(Some(by));
        }
    }

    fn phase(&mut self, phase: RunPhase) {
        self.run.iter_mut().for_each(|run| run.phase = phase);
    }
}
