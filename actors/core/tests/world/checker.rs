//! The statements that every history of a group keeps, whatever happens to it.

use std::collections::{BTreeMap, BTreeSet};

use greenroom_core::{
    Effect, Group, Json, RunId, RunPhase, TaskId, TaskKind, TaskState, Work, Write,
};

use super::{Held, LIMITS, ensure};

/// What was seen of a group so far.
#[derive(Default)]
pub struct Checker {
    seq: u64,
    tasks: BTreeMap<TaskId, Seen>,
    /// The task between claim and end.
    holder: Option<TaskId>,
    /// The task whose prompt was committed to be sent and has not settled.
    in_flight: Option<TaskId>,
    runs: BTreeSet<RunId>,
    run: Option<RunId>,
    segment: u32,
    segment_open: bool,
    archived: bool,
    paused: bool,
    /// What the next fact has to be, if the last one is never alone.
    next: Option<Next>,
    /// Prompts ordered to be sent.
    ordered: BTreeSet<u64>,
    cancelled: BTreeSet<u64>,
}

/// What is never said without something right behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    TurnStarted(TaskId),
    PromptSent(TaskId),
    TaskEnded(TaskId),
    SegmentStarted,
}

struct Seen {
    ordinal: u64,
    kind: TaskKind,
    prompt: Json,
    prompt_id: Option<u64>,
    cancel_requested: bool,
    ended: bool,
}

impl Checker {
    /// The task whose prompt is in flight.
    pub fn in_flight(&self) -> Option<TaskId> {
        self.in_flight
    }

    /// Takes in one fact.
    pub fn fact(&mut self, write: &Write) -> Held {
        let seq = self.seq + 1;
        self.seq += write.frames();
        self.follows(write)?;
        match write {
            Write::GroupArchived {} => self.archived = true,
            Write::PurgeOrdered {} => ensure!(self.archived, "a group is purged that is in use"),
            Write::GroupCreated(_) | Write::GroupChanged(_) => self.archived = false,
            Write::GroupPaused {} => self.paused = true,
            Write::GroupResumed {} => self.paused = false,
            Write::TaskQueued { task, kind, record, .. } => {
                let ordinal = self.tasks.len() as u64 + 1;
                ensure!(!self.archived, "{task} was accepted by a deleted group");
                ensure!(record.ordinal == ordinal, "I8: {task} is number {}", record.ordinal);
                let compacts = |seen: &&Seen| seen.kind == TaskKind::Compaction && !seen.ended;
                let second =
                    *kind == TaskKind::Compaction && self.tasks.values().any(|s| compacts(&s));
                ensure!(!second, "DQ-3: {task} is a second compaction that waits or runs");
                let seen = Seen {
                    ordinal,
                    kind: *kind,
                    prompt: record.prompt().clone(),
                    prompt_id: None,
                    cancel_requested: false,
                    ended: false,
                };
                ensure!(self.tasks.insert(*task, seen).is_none(), "I2: {task} was accepted twice");
            }
            Write::TaskClaimed { task } => self.claimed(*task)?,
            Write::TaskReleased { task } => {
                ensure!(self.holder.take() == Some(*task), "I1: {task} had no slot");
                ensure!(self.in_flight.is_none(), "I7: {task} was released with its prompt sent");
            }
            Write::TaskStarted { task, attempt, run } => {
                if self.holder != Some(*task) {
                    self.claimed(*task)?;
                }
                ensure!(self.in_flight.is_none(), "I1: {task} starts beside another");
                ensure!(*attempt == 1, "I7: attempt {attempt} of {task}, and no retry is due");
                ensure!(self.run == Some(*run), "I7: {task} starts in {run}, which does not live");
                self.next = Some(Next::TurnStarted(*task));
            }
            Write::TurnStarted { task, prompt } => {
                ensure!(*prompt == self.tasks[task].prompt, "AM-2: not {task}'s own prompt");
                self.next = Some(Next::PromptSent(*task));
            }
            Write::PromptSent { id, prompt, .. } => {
                ensure!(*id == seq, "I3: prompt {id} is frame {seq}");
                let holder = self.holder.unwrap_or_else(|| unreachable!("`follows` saw it"));
                let seen = self.seen(holder)?;
                ensure!(*prompt == seen.prompt, "AM-2: not {holder}'s own prompt");
                ensure!(seen.prompt_id.is_none(), "I7: {holder} is sent twice");
                seen.prompt_id = Some(*id);
                self.in_flight = Some(holder);
            }
            Write::CancelRequested { task } => {
                ensure!(self.in_flight == Some(*task), "AM-5: {task} does not run");
                let again = std::mem::replace(&mut self.seen(*task)?.cancel_requested, true);
                ensure!(!again, "AM-5: {task} is asked to end twice");
            }
            Write::TurnCut { task, .. } => {
                ensure!(self.in_flight == Some(*task), "{task} is cut off and does not run");
            }
            Write::Said(said) => {
                ensure!(self.run == Some(said.run), "{} speaks and does not live", said.run);
                ensure!(said.task == self.in_flight, "what is said is not within {:?}", said.task);
            }
            Write::AgentOutputRejected { run, .. } => {
                ensure!(self.run == Some(*run), "{run} speaks and does not live");
            }
            Write::TurnSettled { task, .. } => {
                ensure!(self.in_flight.take() == Some(*task), "AM-3: {task} does not run");
                self.next = Some(Next::TaskEnded(*task));
            }
            Write::TaskEnded { task, state, record, .. } => {
                ensure!(self.in_flight != Some(*task), "AM-3: {task} ends before its turn");
                ensure!(state.is_terminal() && *state == record.state, "I9: {task} ends {state:?}");
                ensure!(record.seq_last == Some(seq), "I3: {task} ends at {seq}");
                if self.holder == Some(*task) {
                    self.holder = None;
                }
                let seen = self.seen(*task)?;
                ensure!(!std::mem::replace(&mut seen.ended, true), "I9: {task} ends twice");
                ensure!(record.cancel_requested == seen.cancel_requested, "AM-5: {record:?}");
                ensure!(record.ordinal == seen.ordinal, "I8: {task} changed its number");
                let skipped = *state == TaskState::Skipped;
                let compacts = matches!(record.work, Work::Compaction { .. });
                ensure!(!skipped || compacts, "DQ-3: {task} is a turn and was skipped");
                let sent = seen.prompt_id.is_some();
                let ran = matches!(state, TaskState::Completed | TaskState::Interrupted);
                ensure!(sent || !ran, "I7: {task} was not sent and is {state:?}");
            }
            Write::RunStarted { run, .. } => {
                ensure!(self.run.replace(*run).is_none(), "AM-1: {run} starts beside another");
                ensure!(self.runs.insert(*run), "AM-1: {run} starts twice");
            }
            Write::RunReady { run, .. } | Write::RunStopping { run } => {
                ensure!(self.run == Some(*run), "{run} does not live");
            }
            Write::RunExited { run, .. } => {
                ensure!(self.run.take() == Some(*run), "{run} ended and did not live");
                ensure!(self.in_flight.is_none(), "AM-3: {run} ended before its turn settled");
            }
            Write::SegmentEnded { segment, .. } => {
                let open = self.segment_open && self.segment == *segment;
                ensure!(open, "AM-11: segment {segment} is not the open one");
                self.segment_open = false;
                self.next = Some(Next::SegmentStarted);
            }
            Write::SegmentStarted { segment, .. } => {
                ensure!(!self.segment_open, "AM-11: segment {} is still open", self.segment);
                ensure!(*segment == self.segment + 1, "I4: {segment} after {}", self.segment);
                (self.segment, self.segment_open) = (*segment, true);
            }
            Write::PermissionResolved { .. } | Write::ContextLost { .. } => {}
        }
        Ok(())
    }

    /// START, a settlement and a rotation are each said in one breath (AM-2, AM-3, AM-12).
    fn follows(&mut self, write: &Write) -> Held {
        let Some(next) = self.next.take() else { return Ok(()) };
        let so = match (next, write) {
            (Next::TurnStarted(own), Write::TurnStarted { task, .. })
            | (Next::TaskEnded(own), Write::TaskEnded { task, .. }) => own == *task,
            (Next::PromptSent(own), Write::PromptSent { .. }) => self.holder == Some(own),
            (Next::SegmentStarted, Write::SegmentStarted { .. }) => true,
            _ => false,
        };
        ensure!(so, "AM-2, AM-3, AM-12: {next:?} is not right behind, but {write:?}");
        Ok(())
    }

    fn seen(&mut self, task: TaskId) -> Held<&mut Seen> {
        self.tasks.get_mut(&task).ok_or_else(|| format!("I2: {task} was never accepted"))
    }

    fn claimed(&mut self, task: TaskId) -> Held {
        let before = self.holder.replace(task);
        ensure!(before.is_none(), "I1, DQ-1: {task} has the slot beside {before:?}");
        ensure!(!self.archived, "{task} starts in a deleted group");
        ensure!(!self.paused, "{task} starts in a paused group");
        let own = self.tasks.get(&task).ok_or_else(|| format!("I2: {task} was never accepted"))?;
        ensure!(!own.ended, "I9: {task} starts after its end");
        let rank = |seen: &Seen| (seen.kind != TaskKind::Compaction, seen.ordinal);
        let passed = self.tasks.values().find(|seen| !seen.ended && rank(seen) < rank(own));
        ensure!(
            passed.is_none(),
            "I8, DQ-4: number {} starts before number {:?}",
            own.ordinal,
            passed.map(|seen| seen.ordinal)
        );
        Ok(())
    }

    /// Takes in a step's orders, once its facts were taken in.
    pub fn orders(&mut self, writes: &[Write], effects: &[Effect], group: &Group) -> Held {
        ensure!(self.next.is_none(), "AM-2, AM-3, AM-12: the step ends before {:?}", self.next);
        for effect in effects {
            let run = match effect {
                Effect::Launch { run, .. }
                | Effect::Prompt { run, .. }
                | Effect::Cancel { run, .. }
                | Effect::Answer { run, .. }
                | Effect::Stop { run, .. } => *run,
            };
            let own = group.run().filter(|own| own.id == run);
            ensure!(own.is_some(), "an order for {run}, which is not the group's: {effect:?}");
            match effect {
                Effect::Launch { .. } => {
                    let stated = |write: &Write| match write {
                        Write::RunStarted { run: stated, .. } => *stated == run,
                        _ => false,
                    };
                    ensure!(writes.iter().any(stated), "{run} is launched and not stated");
                }
                Effect::Prompt { id, prompt, session, .. } => {
                    let task = self.in_flight;
                    let seen = task.and_then(|task| self.tasks.get(&task));
                    let due = seen
                        .is_some_and(|seen| seen.prompt_id == Some(*id) && seen.prompt == *prompt);
                    ensure!(due, "I7, AM-2: prompt {id} is sent and was not stated before");
                    ensure!(self.ordered.insert(*id), "I7: prompt {id} is sent twice");
                    let ready = own.is_some_and(|own| own.phase == RunPhase::Ready);
                    ensure!(ready, "I7: prompt {id} goes to a run that takes none: {own:?}");
                    let in_force = group.head().session.as_ref() == Some(session);
                    ensure!(in_force, "prompt {id} goes to another session");
                }
                Effect::Cancel { .. } => {
                    let task = self.in_flight.ok_or("a cancel is sent and nothing runs")?;
                    let id = self.tasks[&task].prompt_id.unwrap_or_default();
                    ensure!(self.cancelled.insert(id), "prompt {id} is cancelled twice");
                }
                Effect::Answer { .. } | Effect::Stop { .. } => {}
            }
        }
        self.carried_out(writes, effects)
    }

    /// What was stated to be done is ordered in the same step.
    fn carried_out(&self, writes: &[Write], effects: &[Effect]) -> Held {
        for write in writes {
            let ordered = match write {
                Write::PromptSent { id, .. } => self.ordered.contains(id),
                Write::PermissionResolved { request, selected, .. } => {
                    effects.iter().any(|effect| {
                        matches!(effect, Effect::Answer { answer, .. }
                        if answer.request == *request && answer.selected == *selected)
                    })
                }
                Write::RunStarted { .. } => {
                    effects.iter().any(|effect| matches!(effect, Effect::Launch { .. }))
                }
                Write::RunStopping { .. } => {
                    effects.iter().any(|effect| matches!(effect, Effect::Stop { .. }))
                }
                Write::TurnCut { task, .. } | Write::CancelRequested { task } => {
                    let id = self.tasks[task].prompt_id.unwrap_or_default();
                    let ends = |effect: &Effect| matches!(effect, Effect::Stop { .. });
                    self.cancelled.contains(&id) || effects.iter().any(ends)
                }
                _ => true,
            };
            ensure!(ordered, "I12: {write:?} was stated and nothing ordered");
        }
        Ok(())
    }

    /// What holds between two steps.
    pub fn at_rest(&self, group: &Group) -> Held {
        let head = group.head();
        ensure!(head.last_seq == self.seq, "I3: {} frames, last_seq {}", self.seq, head.last_seq);
        ensure!(head.tasks == self.tasks.len() as u64, "I2: {} tasks accepted", head.tasks);
        let open: BTreeSet<TaskId> =
            self.tasks.iter().filter(|(_, seen)| !seen.ended).map(|(id, _)| *id).collect();
        let held: Vec<TaskId> =
            group.current().into_iter().chain(group.waiting()).map(|task| task.id).collect();
        ensure!(
            held.len() == open.len() && held.iter().all(|id| open.contains(id)),
            "I2: open are {open:?}, held are {held:?}"
        );
        let current = group.current().map(|task| task.id);
        ensure!(current == self.holder, "I1: {:?} has the slot, not {current:?}", self.holder);
        let compactions =
            group.waiting().filter(|task| task.kind() == TaskKind::Compaction).count();
        ensure!(compactions <= 1, "I8: {compactions} compactions wait");
        // One task may have come back from its claim.
        ensure!(
            group.waiting().len() <= LIMITS.queue_max + 1,
            "I11: {} wait",
            group.waiting().len()
        );
        ensure!(!self.archived || group.waiting().len() == 0, "a deleted group has work waiting");
        ensure!(self.segment == head.segment, "AM-11: {} is open", self.segment);
        ensure!(self.segment_open == (self.segment > 0), "AM-11: not exactly one is open");
        ensure!(head.session.is_none() || self.segment_open, "AM-11: a session and no segment");
        ensure!(head.created_at.is_some() || self.seq == 0, "facts of a group that is none");
        Ok(())
    }

    /// Nothing is left open (I2).
    pub fn all_ended(&self) -> Held {
        let open: Vec<_> = self.tasks.iter().filter(|(_, seen)| !seen.ended).collect();
        ensure!(open.is_empty(), "I2: {} tasks never ended", open.len());
        Ok(())
    }
}
