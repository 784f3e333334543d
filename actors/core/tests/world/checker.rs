//! The statements that every history of a group keeps, whatever happens to it.

use std::collections::{BTreeMap, BTreeSet};

use greenroom_core::{
    Choice, Effect, Finding, Group, Head, Json, PermissionId, PermissionOption, Rejected, RunId,
    RunPhase, Strategy, TaskId, TaskKind, TaskState, Terms, Work, Write, lock::Now,
};

use super::{
    Held, LIMITS,
    attempts::{Attempts, Happened},
    compactions::Compactions,
    ensure,
    permissions::Permissions,
};

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
    compactions: Compactions,
    attempts: Attempts,
    permissions: Permissions,
    terms: Option<Terms>,
    archived: bool,
    /// What the next fact has to be, if the last one is never alone.
    next: Option<Next>,
    /// Prompts ordered to be sent.
    ordered: BTreeSet<u64>,
    cancelled: BTreeSet<u64>,
    /// Runs whose prompt was called off.
    called_off: BTreeSet<RunId>,
    /// Requests for another session that were stated.
    openings: BTreeSet<u64>,
    /// Whether the prompt in flight had output, and whether any of it is an answer.
    output: bool,
    answer: bool,
}

/// What is never said without something right behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    TurnStarted(TaskId),
    PromptSent(TaskId),
    /// Its task ends, or is made again.
    Ends(TaskId),
    /// HL-14: an ordered compaction was not completed.
    Rests,
}

struct Seen {
    ordinal: u64,
    kind: TaskKind,
    prompt: Json,
    /// How it was to be done as it was accepted.
    strategy: Option<Strategy>,
    prompt_id: Option<u64>,
    sent: Option<Json>,
    /// Whether an attempt of it came to nothing: what began goes on first.
    again: bool,
    cancel_requested: bool,
    ended: bool,
}

impl Checker {
    /// The task whose prompt is in flight.
    pub fn in_flight(&self) -> Option<TaskId> {
        self.in_flight
    }

    /// The task that holds the lock.
    pub fn lock_holder(&self) -> Option<TaskId> {
        self.compactions.lock_holder()
    }

    /// The server died, and its lock with it.
    pub fn forget_lock(&mut self) {
        self.compactions.forget_lock();
    }

    /// What was seen of attempts.
    pub fn attempts(&self) -> &Attempts {
        &self.attempts
    }

    /// How often an agent was started.
    pub fn launches(&self) -> usize {
        self.attempts.launches()
    }

    /// Whether the task waits for its next attempt, or for the next run.
    pub fn backs_off(&self, task: TaskId) -> bool {
        self.attempts.backs_off(task)
    }

    /// The permission that was opened so many before the last.
    pub fn permission(&self, back: usize) -> Option<(PermissionId, &[PermissionOption])> {
        self.permissions.nth_last(back)
    }

    /// See [`Permissions::decided`].
    pub fn decided(&self, id: PermissionId, choice: &Choice, rejected: Option<Rejected>) -> Held {
        self.permissions.decided(id, choice, rejected)
    }

    /// A step begins.
    pub fn begin(&mut self, terms: &Terms, happened: Happened, now: Now) {
        self.compactions.begin(terms);
        let dead = matches!(happened, Happened::Exited(..) | Happened::Recovered);
        self.permissions.begin(dead);
        self.attempts.begin(terms, happened, now);
        self.terms = Some(terms.clone());
    }

    /// Takes in one fact.
    pub fn fact(&mut self, write: &Write) -> Held {
        let seq = self.seq + 1;
        self.seq += write.frames();
        self.follows(write)?;
        let compacts = |task: &TaskId| self.tasks[task].kind == TaskKind::Compaction;
        self.compactions.fact(write, self.in_flight.filter(compacts))?;
        let terms = self.terms.as_ref().unwrap_or_else(|| unreachable!("a step began"));
        self.permissions.fact(write, self.in_flight, terms)?;
        self.attempts.fact(write)?;
        match write {
            Write::GroupArchived {} => self.archived = true,
            Write::PurgeOrdered {} => ensure!(self.archived, "a group is purged that is in use"),
            Write::GroupCreated(_) | Write::GroupChanged(_) => self.archived = false,
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
                    strategy: match record.work {
                        Work::Compaction { strategy, .. } => Some(strategy),
                        Work::Turn { .. } => None,
                    },
                    prompt_id: None,
                    sent: None,
                    again: false,
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
            Write::TaskStarted { task, run, .. } => {
                if self.holder != Some(*task) {
                    self.claimed(*task)?;
                }
                ensure!(self.in_flight.is_none(), "I1: {task} starts beside another");
                ensure!(self.run == Some(*run), "I7: {task} starts in {run}, which does not live");
                if self.seen(*task)?.kind == TaskKind::Compaction {
                    self.compactions.starts(*task)?;
                }
                self.next = Some(Next::TurnStarted(*task));
            }
            Write::TurnStarted { task, prompt, strategy } => {
                let order = self.terms.as_ref().and_then(|terms| terms.compaction.clone());
                let seen = self.seen(*task)?;
                if seen.kind == TaskKind::Compaction {
                    let order = order.ok_or_else(|| format!("{task} has no way to compact"))?;
                    let (accepted, way) = (seen.strategy, strategy.or(seen.strategy));
                    ensure!(way == Some(order.strategy), "{task} was {accepted:?}, is {way:?}");
                    seen.prompt = order.prompt(None);
                }
                ensure!(*prompt == seen.prompt, "AM-2: not {task}'s own prompt");
                self.next = Some(Next::PromptSent(*task));
            }
            Write::PromptSent { id, prompt, .. } => {
                ensure!(*id == seq, "I3: prompt {id} is frame {seq}");
                let holder = self.holder.unwrap_or_else(|| unreachable!("`follows` saw it"));
                let lead_in = self.compactions.lead_in.clone();
                let seen = self.seen(holder)?;
                let lead_in = lead_in.filter(|_| seen.kind == TaskKind::Turn);
                carries(prompt, &seen.prompt, lead_in.as_deref())?;
                seen.sent.clone_from(&Some(prompt.clone()));
                ensure!(seen.prompt_id.is_none(), "I7: {holder} is sent twice");
                seen.prompt_id = Some(*id);
                self.in_flight = Some(holder);
                (self.output, self.answer) = (false, false);
            }
            Write::SummaryGiven { task, .. } => {
                ensure!(self.in_flight == Some(*task), "AM-5: {task} does not run");
                self.openings.insert(seq);
            }
            Write::CancelSent { run } => {
                ensure!(self.run == Some(*run) && self.in_flight.is_some(), "{run} runs nothing");
                self.called_off.insert(*run);
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
                self.output |= said.fold.output;
                self.answer |= said.fold.answer;
            }
            Write::RequestRefused { run, .. } => {
                ensure!(self.run == Some(*run), "{run} asks and does not live");
                self.output = true;
            }
            Write::AgentOutputRejected { run, .. } => {
                ensure!(self.run == Some(*run), "{run} speaks and does not live");
            }
            Write::TurnSettled { task, .. } => {
                ensure!(self.in_flight.take() == Some(*task), "AM-3: {task} does not run");
                // I7: a summary is carried until the agent was heard.
                if self.output && self.seen(*task)?.kind == TaskKind::Turn {
                    self.compactions.lead_in = None;
                }
                self.next = Some(Next::Ends(*task));
            }
            Write::AgentWedged { run, .. } => {
                let off = self.called_off.contains(run);
                ensure!(off, "{run} is said to be wedged, and nothing was called off");
                self.output = false;
            }
            Write::TaskRetrying { task, .. } => {
                ensure!(self.in_flight.is_none(), "AM-3: {task} is made again before its turn");
                ensure!(self.holder.take() == Some(*task), "I1: {task} had no slot");
                let seen = self.seen(*task)?;
                (seen.prompt_id, seen.sent, seen.again) = (None, None, true);
                ensure!(!seen.ended, "I9: {task} ended, and is made again");
            }
            Write::TaskEnded { task, state, record, attempt, .. } => {
                ensure!(*attempt == record.attempt, "I7: attempt {attempt} of {record:?}");
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
                let empty = seen.kind == TaskKind::Turn
                    && *state == TaskState::Completed
                    && record.ending.stop_reason == Some(greenroom_core::StopReason::EndTurn);
                let found = record.ending.findings.contains(&Finding::EmptyAnswer);
                let answered = self.answer;
                ensure!(found == (empty && !answered), "{task}: {found} and {answered}");
                let code = record.ending.error.as_ref().map(|error| &*error.code);
                let in_vain = match state {
                    TaskState::Skipped => code.is_some_and(|code| code != "already_compacted"),
                    state => *state != TaskState::Completed,
                };
                self.next = (compacts && in_vain).then_some(Next::Rests);
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
            _ => {}
        }
        Ok(())
    }

    /// START and a settlement are each said in one breath (AM-2, AM-3).
    fn follows(&mut self, write: &Write) -> Held {
        let Some(next) = self.next.take() else {
            let rests = matches!(write, Write::CompactionRests { .. });
            ensure!(!rests, "HL-14: a rest without an ordered compaction that failed");
            return Ok(());
        };
        let so = match (next, write) {
            (Next::Rests, Write::CompactionRests { .. }) => true,
            (Next::TurnStarted(own), Write::TurnStarted { task, .. })
            | (Next::Ends(own), Write::TaskEnded { task, .. })
            | (Next::Ends(own), Write::TaskRetrying { task, .. }) => own == *task,
            (Next::PromptSent(own), Write::PromptSent { .. }) => self.holder == Some(own),
            _ => false,
        };
        ensure!(so, "AM-2, AM-3: {next:?} is not right behind, but {write:?}");
        Ok(())
    }

    fn seen(&mut self, task: TaskId) -> Held<&mut Seen> {
        self.tasks.get_mut(&task).ok_or_else(|| format!("I2: {task} was never accepted"))
    }

    fn claimed(&mut self, task: TaskId) -> Held {
        let before = self.holder.replace(task);
        ensure!(before.is_none(), "I1, DQ-1: {task} has the slot beside {before:?}");
        ensure!(!self.archived, "{task} starts in a deleted group");
        let own = self.tasks.get(&task).ok_or_else(|| format!("I2: {task} was never accepted"))?;
        ensure!(!own.ended, "I9: {task} starts after its end");
        let rank = |seen: &Seen| (!seen.again, seen.kind != TaskKind::Compaction, seen.ordinal);
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
    pub fn orders(
        &mut self,
        writes: &[Write],
        effects: &[Effect],
        group: &Group,
        closed: bool,
    ) -> Held {
        self.compactions.step()?;
        self.permissions.step(effects)?;
        self.permissions.as_decided(writes)?;
        self.attempts.step()?;
        ensure!(self.next.is_none(), "AM-2, AM-3: the step ends before {:?}", self.next);
        for effect in effects {
            let run = match effect {
                Effect::Launch { run, .. }
                | Effect::Prompt { run, .. }
                | Effect::Cancel { run, .. }
                | Effect::OpenSession { run, .. }
                | Effect::Answer { run, .. }
                | Effect::Stop { run, .. } => *run,
                Effect::TakeLock { .. } | Effect::DropLock { .. } => continue,
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
                    let due = seen.is_some_and(|seen| {
                        seen.prompt_id == Some(*id) && seen.sent.as_ref() == Some(prompt)
                    });
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
                Effect::OpenSession { id, .. } => {
                    ensure!(self.openings.remove(id), "{id} opens a session with no summary given");
                }
                Effect::Answer { .. } | Effect::Stop { .. } => {}
                Effect::TakeLock { .. } | Effect::DropLock { .. } => {}
            }
        }
        ensure!(self.openings.is_empty(), "I12: a summary was given and no session is opened");
        self.carried_out(writes, effects, closed)
    }

    /// What was stated to be done is ordered in the same step.
    fn carried_out(&self, writes: &[Write], effects: &[Effect], closed: bool) -> Held {
        for write in writes {
            let ordered = match write {
                Write::PromptSent { id, .. } => self.ordered.contains(id),
                Write::RunStarted { .. } => {
                    effects.iter().any(|effect| matches!(effect, Effect::Launch { .. }))
                }
                Write::RunStopping { .. } => {
                    closed || effects.iter().any(|effect| matches!(effect, Effect::Stop { .. }))
                }
                Write::TurnCut { task, .. } | Write::CancelRequested { task } => {
                    let id = self.tasks[task].prompt_id.unwrap_or_default();
                    let ends = |effect: &Effect| matches!(effect, Effect::Stop { .. });
                    let settled = self.in_flight != Some(*task);
                    settled || self.cancelled.contains(&id) || effects.iter().any(ends)
                }
                Write::CancelSent { run } => effects
                    .iter()
                    .any(|effect| matches!(effect, Effect::Cancel { run: own, .. } if own == run)),
                Write::LockAsked { task } => effects.iter().any(
                    |effect| matches!(effect, Effect::TakeLock { task: own, .. } if own == task),
                ),
                _ => true,
            };
            ensure!(ordered, "I12: {write:?} was stated and nothing ordered");
        }
        Ok(())
    }

    /// See [`Compactions::ordered_by_itself`].
    pub fn ordered_by_itself(&self, writes: &[Write], head: &Head, rested: bool) -> Held {
        let made = |id: &TaskId| {
            writes.iter().any(|write| matches!(write, Write::TaskQueued { task, .. } if task == id))
        };
        let pending = self
            .tasks
            .iter()
            .any(|(id, seen)| seen.kind == TaskKind::Compaction && !seen.ended && !made(id));
        let turn = |id| self.tasks.get(&id).is_some_and(|seen| seen.kind == TaskKind::Turn);
        self.compactions.ordered_by_itself(writes, head, rested, pending, turn)
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
        self.compactions.at_rest(group)?;
        self.permissions.at_rest(group)?;
        self.attempts.at_rest(group)?;
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

/// I7, AM-2: what is sent is the caller's prompt, behind the summary that the session has to begin
/// with, if there is one.
fn carries(sent: &Json, own: &Json, summary: Option<&str>) -> Held {
    let Some(summary) = summary else {
        ensure!(sent == own, "AM-2: not the caller's own prompt: {sent:?}");
        return Ok(());
    };
    let blocks = |json: &Json| serde_json::from_str::<Vec<serde_json::Value>>(json.as_str());
    let (sent, own) = (blocks(sent).map_err(|e| e.to_string())?, blocks(own));
    let own = own.map_err(|e| e.to_string())?;
    let (lead, rest) = sent.split_first().ok_or("AM-2: nothing is sent")?;
    ensure!(rest == own, "AM-2: not the caller's own blocks: {rest:?}");
    let text = lead["text"].as_str().unwrap_or_default();
    ensure!(text.contains(summary), "I7: {summary:?} is not carried: {text:?}");
    Ok(())
}
