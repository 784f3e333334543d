//! The invariants of every history of a group.

use std::collections::{BTreeMap, BTreeSet};

use greenroom_core::{
    Choice, Effect, EffectiveSettings, Existence, Fact, Group, GroupState, Json, Now, PermissionId,
    PermissionOption, Place, Recorded, Rejected, RunId, RunPhase, Strategy, TaskId, TaskKind,
    TaskState, Work,
};

use super::{
    Checked, LIMITS,
    attempts::{Attempts, Trigger},
    compactions::Compactions,
    ensure,
    permissions::Permissions,
};

/// The history of a group so far.
#[derive(Default)]
pub struct Checker {
    seq: u64,
    tasks: BTreeMap<TaskId, SeenTask>,
    /// The task between claim and end.
    holder: Option<TaskId>,
    /// The task whose prompt was committed and has not settled.
    in_flight: Option<TaskId>,
    runs: BTreeSet<RunId>,
    run: Option<RunId>,
    compactions: Compactions,
    attempts: Attempts,
    permissions: Permissions,
    settings: Option<EffectiveSettings>,
    archived: bool,
    /// The next fact, if the last one requires one.
    next: Option<Next>,
    /// Prompts with an effect to send them.
    ordered: BTreeSet<u64>,
    cancelled: BTreeSet<u64>,
    /// Runs whose prompt was cancelled.
    cancelled_runs: BTreeSet<RunId>,
    /// Requested sessions without an effect yet.
    openings: BTreeSet<u64>,
    /// Whether the prompt in flight had output, and whether any of it is an answer.
    output: bool,
    answer: bool,
}

/// A fact that has to come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    TurnStarted(TaskId),
    PromptSent(TaskId),
    /// The task ends or is retried.
    Ends(TaskId),
    /// HL-14: an ordered compaction ended uncompleted.
    Rests,
}

struct SeenTask {
    ordinal: u64,
    kind: TaskKind,
    prompt: Json,
    /// The strategy at acceptance.
    strategy: Option<Strategy>,
    prompt_id: Option<u64>,
    /// Whether an attempt of it failed: started tasks go first.
    retried: bool,
    cancel_requested: bool,
    ended: bool,
}

impl Checker {
    /// Returns the task whose prompt is in flight.
    pub fn in_flight(&self) -> Option<TaskId> {
        self.in_flight
    }

    /// Returns the task that holds the lock.
    pub fn lock_holder(&self) -> Option<TaskId> {
        self.compactions.lock_holder()
    }

    /// Forgets the lock: the server died.
    pub fn forget_lock(&mut self) {
        self.compactions.forget_lock();
    }

    /// Returns the history of attempts.
    pub fn attempts(&self) -> &Attempts {
        &self.attempts
    }

    /// Returns the number of agent starts.
    pub fn launches(&self) -> usize {
        self.attempts.launches()
    }

    /// Whether the task waits for its next attempt, or for the next run.
    pub fn backs_off(&self, task: TaskId) -> bool {
        self.attempts.backs_off(task)
    }

    /// Returns the permission that was opened `back` before the last.
    pub fn permission(&self, back: usize) -> Option<(PermissionId, &[PermissionOption])> {
        self.permissions.nth_last(back)
    }

    /// See [`Permissions::check_answer`].
    pub fn check_answer(
        &self,
        id: PermissionId,
        choice: &Choice,
        rejected: Option<Rejected>,
    ) -> Checked {
        self.permissions.check_answer(id, choice, rejected)
    }

    /// Begins a step.
    pub fn begin(&mut self, settings: &EffectiveSettings, trigger: Trigger, now: Now) {
        self.compactions.begin(settings);
        let dead = matches!(trigger, Trigger::Exited(..) | Trigger::Recovered);
        self.permissions.begin(dead);
        self.attempts.begin(settings, trigger, now);
        self.settings = Some(settings.clone());
    }

    /// Checks and applies one fact, and checks its place (I3, AM-11, AM-12).
    pub fn check_fact(&mut self, Recorded { place, fact }: &Recorded) -> Checked {
        let (seq, run, holder) = (self.seq + 1, self.run, self.holder);
        self.apply_fact(fact)?;
        // A frame is of the run and the task that it begins or ends.
        let task = match fact {
            Fact::AgentOutput(_) => self.in_flight,
            fact => fact.task().or(holder).or(self.holder),
        };
        let segment = self.compactions.segment;
        let expected = Place { seq, segment, run: run.or(self.run), task };
        ensure!(*place == expected, "AM-11: {fact:?} is at {place:?}, not at {expected:?}");
        Ok(())
    }

    fn apply_fact(&mut self, fact: &Fact) -> Checked {
        let seq = self.seq + 1;
        self.seq += fact.frames();
        self.check_order(fact)?;
        let compacts = |task: &TaskId| self.tasks[task].kind == TaskKind::Compaction;
        self.compactions.check_fact(fact, self.in_flight.filter(compacts))?;
        let settings = self.settings.as_ref().unwrap_or_else(|| unreachable!("a step began"));
        self.permissions.check_fact(fact, self.in_flight, settings)?;
        self.attempts.check_fact(fact)?;
        match fact {
            Fact::GroupArchived {} => self.archived = true,
            Fact::PurgeOrdered {} => ensure!(self.archived, "a group in use is purged"),
            Fact::GroupCreated(_) | Fact::GroupChanged(_) => self.archived = false,
            Fact::TaskQueued { task, kind, record, .. } => {
                let ordinal = self.tasks.len() as u64 + 1;
                ensure!(!self.archived, "{task} was accepted by a deleted group");
                ensure!(record.ordinal == ordinal, "I8: {task} is number {}", record.ordinal);
                let compacts = |seen: &&SeenTask| seen.kind == TaskKind::Compaction && !seen.ended;
                let second =
                    *kind == TaskKind::Compaction && self.tasks.values().any(|s| compacts(&s));
                ensure!(!second, "DQ-3: {task} is a second compaction that waits or runs");
                let seen = SeenTask {
                    ordinal,
                    kind: *kind,
                    prompt: record.prompt().clone(),
                    strategy: match record.work {
                        Work::Compaction { strategy, .. } => Some(strategy),
                        Work::Turn { .. } => None,
                    },
                    prompt_id: None,
                    retried: false,
                    cancel_requested: false,
                    ended: false,
                };
                ensure!(self.tasks.insert(*task, seen).is_none(), "I2: {task} was accepted twice");
            }
            Fact::TaskClaimed { task } => self.claimed(*task)?,
            Fact::TaskReleased { task } => {
                ensure!(self.holder.take() == Some(*task), "I1: {task} had no slot");
                ensure!(self.in_flight.is_none(), "I7: {task} was released with its prompt sent");
            }
            Fact::TaskStarted { task, run, .. } => {
                if self.holder != Some(*task) {
                    self.claimed(*task)?;
                }
                ensure!(self.in_flight.is_none(), "I1: {task} starts beside another");
                ensure!(self.run == Some(*run), "I7: {task} starts in {run}, which is not live");
                if self.seen(*task)?.kind == TaskKind::Compaction {
                    self.compactions.starts(*task)?;
                }
                self.next = Some(Next::TurnStarted(*task));
            }
            Fact::TurnStarted { task, prompt, strategy } => {
                let order = self.settings.as_ref().and_then(|settings| settings.compaction.clone());
                let seen = self.seen(*task)?;
                if seen.kind == TaskKind::Compaction {
                    let order = order.ok_or_else(|| format!("{task} has no way to compact"))?;
                    let (accepted, way) = (seen.strategy, strategy.or(seen.strategy));
                    ensure!(way == Some(order.strategy), "{task} was {accepted:?}, is {way:?}");
                    seen.prompt = order.prompt(None);
                }
                ensure!(*prompt == seen.prompt, "AM-2: not the prompt of {task}");
                self.next = Some(Next::PromptSent(*task));
            }
            Fact::PromptSent { prompt, .. } => {
                let holder =
                    self.holder.unwrap_or_else(|| unreachable!("`check_order` checked it"));
                let pending_summary = self.compactions.pending_summary.clone();
                let seen = self.seen(holder)?;
                let pending_summary = pending_summary.filter(|_| seen.kind == TaskKind::Turn);
                check_prompt(prompt, &seen.prompt, pending_summary.as_deref())?;
                ensure!(seen.prompt_id.is_none(), "I7: {holder} is sent twice");
                seen.prompt_id = Some(seq);
                self.in_flight = Some(holder);
                (self.output, self.answer) = (false, false);
            }
            Fact::SummaryGiven { task, .. } => {
                ensure!(self.in_flight == Some(*task), "AM-5: {task} does not run");
                self.openings.insert(seq);
            }
            Fact::CancelSent { run } => {
                ensure!(self.run == Some(*run) && self.in_flight.is_some(), "{run} runs nothing");
                self.cancelled_runs.insert(*run);
            }
            Fact::CancelRequested { task } => {
                ensure!(self.in_flight == Some(*task), "AM-5: {task} does not run");
                let was_requested =
                    std::mem::replace(&mut self.seen(*task)?.cancel_requested, true);
                ensure!(!was_requested, "AM-5: {task} is cancelled twice");
            }
            Fact::TurnCut { task, .. } => {
                ensure!(self.in_flight == Some(*task), "{task} is interrupted and does not run");
            }
            Fact::AgentOutput(output) => {
                ensure!(self.run.is_some(), "an agent has output and no run is live");
                self.output |= output.summary.has_output;
                self.answer |= output.summary.has_answer;
            }
            Fact::RequestRefused { run, .. } => {
                ensure!(self.run == Some(*run), "{run} sends a request and is not live");
                self.output = true;
            }
            Fact::AgentOutputRejected { run, .. } => {
                ensure!(self.run == Some(*run), "{run} has output and is not live");
            }
            Fact::TurnSettled { task, .. } => {
                ensure!(self.in_flight.take() == Some(*task), "AM-3: {task} does not run");
                // I7: prompts carry a summary until the agent has output.
                if self.output && self.seen(*task)?.kind == TaskKind::Turn {
                    self.compactions.pending_summary = None;
                }
                self.next = Some(Next::Ends(*task));
            }
            Fact::AgentWedged { run, .. } => {
                let cancelled = self.cancelled_runs.contains(run);
                ensure!(cancelled, "{run} is wedged, and no prompt was cancelled");
                self.output = false;
            }
            Fact::TaskRetrying { task, .. } => {
                ensure!(
                    self.in_flight.is_none(),
                    "AM-3: {task} is retried before its turn settled"
                );
                ensure!(self.holder.take() == Some(*task), "I1: {task} had no slot");
                let seen = self.seen(*task)?;
                (seen.prompt_id, seen.retried) = (None, true);
                ensure!(!seen.ended, "I9: {task} ended and is retried");
            }
            Fact::TaskEnded { task, state, record, attempt, .. } => {
                ensure!(*attempt == record.attempt, "I7: attempt {attempt} of {record:?}");
                ensure!(self.in_flight != Some(*task), "AM-3: {task} ends before its turn settled");
                ensure!(
                    state.is_terminal() && *state == record.state(),
                    "I9: {task} ends {state:?}"
                );
                ensure!(
                    record.last_frame().is_some_and(|last| last.seq == seq),
                    "I3: {task} ends at {seq}"
                );
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
                    && record.ending().stop_reason == Some(greenroom_core::StopReason::EndTurn);
                let found = record.ending().has_empty_answer;
                let answered = self.answer;
                ensure!(found == (empty && !answered), "{task}: {found} and {answered}");
                let code = record.ending().error.as_ref().map(|error| &*error.code);
                let uncompleted = match state {
                    TaskState::Skipped => code.is_some_and(|code| code != "already_compacted"),
                    state => *state != TaskState::Completed,
                };
                self.next = (compacts && uncompleted).then_some(Next::Rests);
                let ran = matches!(state, TaskState::Completed | TaskState::Interrupted);
                ensure!(sent || !ran, "I7: {task} was not sent and is {state:?}");
            }
            Fact::RunStarted { run, .. } => {
                ensure!(self.run.replace(*run).is_none(), "AM-1: {run} starts beside another");
                ensure!(self.runs.insert(*run), "AM-1: {run} starts twice");
            }
            Fact::RunReady { run, .. } | Fact::RunStopping { run } => {
                ensure!(self.run == Some(*run), "{run} is not live");
            }
            Fact::RunExited { run, .. } => {
                ensure!(self.run.take() == Some(*run), "{run} ended and was not live");
                ensure!(self.in_flight.is_none(), "AM-3: {run} ended before its turn settled");
            }
            _ => {}
        }
        Ok(())
    }

    /// The facts of a START and of a settlement are adjacent (AM-2, AM-3).
    fn check_order(&mut self, fact: &Fact) -> Checked {
        let Some(next) = self.next.take() else {
            let rests = matches!(fact, Fact::CompactionRests { .. });
            ensure!(!rests, "HL-14: a rest without an uncompleted ordered compaction");
            return Ok(());
        };
        let is_next = match (next, fact) {
            (Next::Rests, Fact::CompactionRests { .. }) => true,
            (Next::TurnStarted(expected), Fact::TurnStarted { task, .. })
            | (Next::Ends(expected), Fact::TaskEnded { task, .. })
            | (Next::Ends(expected), Fact::TaskRetrying { task, .. }) => expected == *task,
            (Next::PromptSent(expected), Fact::PromptSent { .. }) => self.holder == Some(expected),
            _ => false,
        };
        ensure!(is_next, "AM-2, AM-3: {fact:?} comes instead of {next:?}");
        Ok(())
    }

    fn seen(&mut self, task: TaskId) -> Checked<&mut SeenTask> {
        self.tasks.get_mut(&task).ok_or_else(|| format!("I2: {task} was never accepted"))
    }

    fn claimed(&mut self, task: TaskId) -> Checked {
        let before = self.holder.replace(task);
        ensure!(before.is_none(), "I1, DQ-1: {task} has the slot beside {before:?}");
        ensure!(!self.archived, "{task} starts in a deleted group");
        let claimed =
            self.tasks.get(&task).ok_or_else(|| format!("I2: {task} was never accepted"))?;
        ensure!(!claimed.ended, "I9: {task} starts after its end");
        let rank =
            |seen: &SeenTask| (!seen.retried, seen.kind != TaskKind::Compaction, seen.ordinal);
        let earlier = self.tasks.values().find(|seen| !seen.ended && rank(seen) < rank(claimed));
        ensure!(
            earlier.is_none(),
            "I8, DQ-4: number {} starts before number {:?}",
            claimed.ordinal,
            earlier.map(|seen| seen.ordinal)
        );
        Ok(())
    }

    /// Checks the effects of a step, after its facts.
    pub fn check_effects(
        &mut self,
        facts: &[Fact],
        effects: &[Effect],
        group: &Group,
        closed: bool,
    ) -> Checked {
        self.compactions.step()?;
        self.permissions.step(effects)?;
        self.permissions.check_resolved_at_once(facts)?;
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
                Effect::AcquireLock { .. } | Effect::ReleaseLock { .. } => continue,
                Effect::Purge => {
                    let is_over = group.run().is_none() && group.current().is_none();
                    ensure!(
                        is_over && group.state().existence == Existence::Purging,
                        "{group:?} is purged"
                    );
                    continue;
                }
            };
            let live = group.run().filter(|live| live.id == run);
            ensure!(live.is_some(), "an effect for {run}, which is not the group's: {effect:?}");
            match effect {
                Effect::Launch { .. } => {
                    let stated = |fact: &Fact| match fact {
                        Fact::RunStarted { run: stated, .. } => *stated == run,
                        _ => false,
                    };
                    ensure!(facts.iter().any(stated), "{run} is launched without a fact");
                }
                Effect::Prompt { id, session, .. } => {
                    let task = self.in_flight;
                    let seen = task.and_then(|task| self.tasks.get(&task));
                    let due = seen.is_some_and(|seen| seen.prompt_id == Some(*id));
                    ensure!(due, "I7, AM-2: prompt {id} is sent without a fact before");
                    ensure!(self.ordered.insert(*id), "I7: prompt {id} is sent twice");
                    let ready = live.is_some_and(|live| live.phase == RunPhase::Ready);
                    ensure!(ready, "I7: prompt {id} goes to a run that is not ready: {live:?}");
                    let in_force = group.state().session_id() == Some(session);
                    ensure!(in_force, "prompt {id} goes to another session");
                }
                Effect::Cancel { .. } => {
                    let task = self.in_flight.ok_or("a cancel is sent and no prompt runs")?;
                    let id = self.tasks[&task].prompt_id.unwrap_or_default();
                    ensure!(self.cancelled.insert(id), "prompt {id} is cancelled twice");
                }
                Effect::OpenSession { id, .. } => {
                    ensure!(self.openings.remove(id), "{id} opens a session with no summary given");
                }
                Effect::Answer { .. } | Effect::Stop { .. } => {}
                Effect::AcquireLock { .. } | Effect::ReleaseLock { .. } | Effect::Purge => {}
            }
        }
        ensure!(self.openings.is_empty(), "I12: a summary was given and no session opens");
        self.check_fact_effects(facts, effects, closed)
    }

    /// Checks that each fact has its effect in the same step.
    fn check_fact_effects(&self, facts: &[Fact], effects: &[Effect], closed: bool) -> Checked {
        for fact in facts {
            let ordered = match fact {
                Fact::PromptSent { .. } => {
                    let ids = self.tasks.values().filter_map(|seen| seen.prompt_id);
                    ids.max().is_some_and(|newest| self.ordered.contains(&newest))
                }
                Fact::RunStarted { .. } => {
                    effects.iter().any(|effect| matches!(effect, Effect::Launch { .. }))
                }
                Fact::RunStopping { .. } => {
                    closed || effects.iter().any(|effect| matches!(effect, Effect::Stop { .. }))
                }
                Fact::TurnCut { task, .. } | Fact::CancelRequested { task } => {
                    let id = self.tasks[task].prompt_id.unwrap_or_default();
                    let ends = |effect: &Effect| matches!(effect, Effect::Stop { .. });
                    let settled = self.in_flight != Some(*task);
                    settled || self.cancelled.contains(&id) || effects.iter().any(ends)
                }
                Fact::CancelSent { run } => effects.iter().any(|effect| match effect {
                    Effect::Cancel { run: target, .. } => target == run,
                    _ => false,
                }),
                Fact::LockAsked { task } => effects.iter().any(|effect| match effect {
                    Effect::AcquireLock { task: requester, .. } => requester == task,
                    _ => false,
                }),
                _ => true,
            };
            ensure!(ordered, "I12: {fact:?} has no effect");
        }
        Ok(())
    }

    /// See [`Compactions::check_automatic`].
    pub fn check_automatic(&self, facts: &[Fact], state: &GroupState, rested: bool) -> Checked {
        let is_new = |id: &TaskId| {
            facts.iter().any(|fact| matches!(fact, Fact::TaskQueued { task, .. } if task == id))
        };
        let pending = self
            .tasks
            .iter()
            .any(|(id, seen)| seen.kind == TaskKind::Compaction && !seen.ended && !is_new(id));
        let turn = |id| self.tasks.get(&id).is_some_and(|seen| seen.kind == TaskKind::Turn);
        self.compactions.check_automatic(facts, state, rested, pending, turn)
    }

    /// Checks the invariants between two steps.
    pub fn at_rest(&self, group: &Group) -> Checked {
        let state = group.state();
        ensure!(state.last_seq == self.seq, "I3: {} frames, last_seq {}", self.seq, state.last_seq);
        ensure!(state.tasks == self.tasks.len() as u64, "I2: {} tasks accepted", state.tasks);
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
        // One task may have returned from its claim.
        ensure!(
            group.waiting().len() <= LIMITS.queue_max + 1,
            "I11: {} wait",
            group.waiting().len()
        );
        ensure!(!self.archived || group.waiting().len() == 0, "a deleted group has work waiting");
        self.compactions.at_rest(group)?;
        self.permissions.at_rest(group)?;
        self.attempts.at_rest(group)?;
        ensure!(state.created_at.is_some() || self.seq == 0, "a group without creation has facts");
        Ok(())
    }

    /// Checks that every task ended (I2).
    pub fn all_ended(&self) -> Checked {
        let open: Vec<_> = self.tasks.iter().filter(|(_, seen)| !seen.ended).collect();
        ensure!(open.is_empty(), "I2: {} tasks never ended", open.len());
        Ok(())
    }
}

/// Checks that `sent` is the caller's prompt after the session's summary, if there is one (I7,
/// AM-2).
fn check_prompt(sent: &Json, prompt: &Json, summary: Option<&str>) -> Checked {
    let Some(summary) = summary else {
        ensure!(sent == prompt, "AM-2: not the caller's prompt: {sent:?}");
        return Ok(());
    };
    let blocks = |json: &Json| serde_json::from_str::<Vec<serde_json::Value>>(json.as_str());
    let (sent, prompt) = (blocks(sent).map_err(|e| e.to_string())?, blocks(prompt));
    let prompt = prompt.map_err(|e| e.to_string())?;
    let (first, rest) = sent.split_first().ok_or("AM-2: nothing is sent")?;
    ensure!(rest == prompt, "AM-2: not the caller's blocks: {rest:?}");
    let text = first["text"].as_str().unwrap_or_default();
    ensure!(text.contains(summary), "I7: {summary:?} is not carried: {text:?}");
    Ok(())
}
