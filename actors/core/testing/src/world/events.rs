//! The event of an action, if the action is possible now.

use greenroom_core::{
    Choice, CompactionSignal, Continuity, Deadline, Event, Exit, ExitReason, FailedStart, Json,
    LockAnswer, Loss, Origin, OwnWord, PromptReply, SessionId, Source, StopReason, Strategy, Task,
    TaskId, Timer, Work,
};
use uuid::Uuid;

use super::{
    Agent, World,
    actions::{
        Action, AgentMessage, DetectorSignal, LockReply, PermissionChoice, PermissionRequest,
        TimerKind,
    },
    messages::{self, exit, permission_asked, permission_lines, provenance, settings, spent, text},
};
use crate::driver::error_kind;

impl World {
    /// Whether the action must make no facts.
    pub(super) fn must_do_nothing(&self, next: Action) -> bool {
        match next {
            // With other settings a compaction may have nothing left to do.
            _ if self.settings_changed => false,
            Action::GrantSlot => !self.group.wants_slot(),
            Action::RepeatAnswer | Action::AnswerUnknownPrompt(_) => true,
            Action::LateTimer(_) => true,
            Action::LateOutput
            | Action::LatePermissionRequest
            | Action::LateReady
            | Action::LateExit => true,
            Action::LateSignal(_) | Action::LateProvenance(_) => true,
            Action::LateSessionOpened | Action::LateStdoutClosed | Action::LateAnswer => true,
            _ => false,
        }
    }

    pub(super) fn event(&mut self, next: Action) -> Option<Event> {
        Some(match next {
            Action::Crash | Action::StorageFailure | Action::Reboot(_) => return None,
            Action::SetClock(_) | Action::Wait(_) | Action::ChangeSettings(..) => return None,
            Action::Submit { bytes } => {
                let prompt = text(&"p".repeat(usize::from(bytes)));
                Event::Submitted(self.submit(Work::Turn { prompt }))
            }
            Action::SubmitBlocks(blocks) => {
                Event::Submitted(self.submit(Work::Turn { prompt: messages::blocks(blocks) }))
            }
            Action::SubmitWithin { ms } => {
                let mut task = self.submit(Work::Turn { prompt: text("soon") });
                task.expires = Some(Deadline::after(self.moment(), u64::from(ms) * 10));
                Event::Submitted(task)
            }
            Action::Compact => self.compact(Strategy::Command),
            Action::CompactByRotation => self.compact(Strategy::Rotate),
            Action::Cancel { back } => {
                let from_end = usize::from(back).min(self.offered.len().checked_sub(1)?);
                Event::CancelRequested(self.offered[self.offered.len() - 1 - from_end])
            }
            Action::Archive => Event::Archived,
            Action::Purge => Event::PurgeOrdered,
            Action::Pause => Event::Paused,
            Action::Resume => Event::Resumed,
            Action::Stop => Event::Stopped,
            Action::Configure(number) => Event::Configured(settings(number)),
            Action::GrantSlot => Event::SlotGranted,
            Action::FireTimer(index) => {
                let timers = self.timers();
                self.expire(*timers.get(usize::from(index) % timers.len().max(1))?)
            }
            Action::FireTimerOf(kind) => {
                let timers = self.timers();
                self.expire(*timers.iter().find(|(timer, _)| timer_kind(timer) == kind)?)
            }
            Action::LateTimer(index) => {
                let over: Vec<_> =
                    self.removed_timers.iter().filter(|timer| self.is_over(timer)).collect();
                Event::TimerFired(**over.get(usize::from(index) % over.len().max(1))?)
            }
            Action::AnswerPermission { back, choice } => self.decide(back, choice)?,
            Action::Drain => Event::DrainStarted,
            Action::Shutdown => Event::DrainTimedOut,
            Action::WithholdPrompt => {
                let agent = self.agent.as_mut().filter(|agent| agent.has_unread_prompt)?;
                agent.has_unread_prompt = false;
                Event::PromptWithheld { run: agent.run, id: agent.prompts.pop()? }
            }
            Action::Evict => Event::Evicted { run: self.group.run()?.id },
            Action::AnswerLock(reply) => self.lock(reply)?,
            Action::LoseLock => {
                self.group.lease()?;
                self.leases.clear();
                Event::LockLost { task: self.lock_holder()? }
            }
            Action::Ready(continuity) => self.ready(continuity, 0, None)?,
            Action::ReadyAs(continuity, number) => self.ready(continuity, number, None)?,
            Action::ReadyTaking(continuity, blocks) => self.ready(continuity, 0, Some(blocks))?,
            Action::OpenSession(succeeds) => {
                let session = self.session();
                let agent = self.agent.as_mut().filter(|agent| agent.can_write())?;
                let id = agent.opening.pop()?;
                let opened = if succeeds { Ok((session, None)) } else { Err("no more".into()) };
                Event::SessionOpened { run: agent.run, id, opened }
            }
            Action::CompactionSignal(signal) => self.signal(signal)?,
            _ => return self.agent_event(next).or_else(|| self.late_event(next)),
        })
    }

    /// Returns the event of a live agent's output or exit.
    fn agent_event(&mut self, next: Action) -> Option<Event> {
        if let Action::Exit(reason) = next {
            let agent = self.agent.take()?;
            let ended = agent.is_stopping || agent.closed;
            let reason = match reason {
                ExitReason::StartFailed | ExitReason::AgentAuth if agent.ready => {
                    ExitReason::Exited
                }
                ExitReason::ServerRestart | ExitReason::Stopped if !ended => ExitReason::Exited,
                reason => reason,
            };
            self.past_runs.push(agent.run);
            self.owed.extend(agent.prompts.iter().map(|id| (agent.run, *id)));
            return Some(Event::AgentExited { run: agent.run, exit: exit(reason) });
        }
        if let Action::FailStart(failed_start) = next {
            let starts = |agent: &Agent| {
                let restores = failed_start != FailedStart::InRestore || agent.session.is_some();
                !agent.ready && !agent.is_stopping && !agent.closed && restores
            };
            self.agent.as_ref().filter(|agent| starts(agent))?;
            let agent = self.agent.take()?;
            self.past_runs.push(agent.run);
            let exit = Exit { failed_start, ..exit(ExitReason::StartFailed) };
            return Some(Event::AgentExited { run: agent.run, exit });
        }
        let agent = self.agent.as_mut().filter(|agent| agent.can_write())?;
        agent.has_unread_prompt = false;
        let (run, after_prompt) = (agent.run, agent.last_prompt);
        Some(match next {
            Action::Output(message) => {
                let (lines, summary) = message.lines();
                Event::OutputReceived { run, lines, summary, session: None, after_prompt }
            }
            Action::EarlyOutput(message) => {
                let (lines, summary) = message.lines();
                let after_prompt = after_prompt.filter(|_| agent.prompts.is_empty());
                Event::OutputReceived { run, lines, summary, session: None, after_prompt }
            }
            Action::UnsupportedRequest => {
                Event::RequestRefused { run, method: "fs/read_text_file".into() }
            }
            Action::InvalidOutput => {
                let (reason, bytes) = ("no JSON".into(), "eA==".into());
                Event::OutputRejected { run, reason, bytes }
            }
            Action::BrokenMessage => {
                let (reason, bytes) = ("it ends early".into(), "eyJqc29u".into());
                Event::OutputRejected { run, reason, bytes }
            }
            Action::Provenance { number, compacted } => {
                let known = self.group.state().provenance();
                let known = known.map(|known| known.current.clone());
                let previous = known.filter(|_| number.is_multiple_of(2));
                let provenance = provenance(number, previous, compacted);
                Event::ProvenanceGiven { run, provenance }
            }
            Action::OutputOfSession(number) => {
                let in_force = self.group.state().session_id().cloned().filter(|_| number == 0);
                let session = in_force.unwrap_or_else(|| SessionId(format!("n{number}").into()));
                let (lines, summary) = AgentMessage::Chunk(number).lines_of(&session);
                let session = Some(session);
                Event::OutputReceived { run, lines, summary, session, after_prompt }
            }
            Action::UsageOfSession(used, whose) => {
                let in_force = self.group.state().session_id().cloned();
                let session = match whose {
                    0 => in_force?,
                    1 => agent.prompted.clone()?,
                    other => SessionId(format!("n{other}").into()),
                };
                let (lines, summary) = AgentMessage::Usage(used).lines_of(&session);
                let session = Some(session);
                Event::OutputReceived { run, lines, summary, session, after_prompt }
            }
            Action::RequestPermission(request) => {
                agent.requests += i64::from(!request.repeated || agent.requests == 0);
                let asked = Box::new(permission_asked(request, agent.requests));
                let lines = permission_lines();
                Event::PermissionAsked { run, lines, asked }
            }
            Action::AnswerPrompt(stop_reason) => {
                let tokens = spent(self.group.state().last_seq);
                self.answer(PromptReply::Stopped { stop_reason, tokens })?
            }
            Action::QueuePrompt => {
                let tokens = spent(self.group.state().last_seq);
                self.answer(PromptReply::Queued { tokens })?
            }
            Action::AnswerPromptWithError(code) => self.answer(PromptReply::Failed {
                code,
                kind: error_kind(code),
                message: "broken".into(),
            })?,
            Action::AnswerUnclearly(kind) => {
                let own = OwnWord::new("done").map_or(StopReason::Unclear, StopReason::Other);
                self.answer(match kind % 3 {
                    0 => PromptReply::Unclear { message: "no object".into() },
                    1 => PromptReply::Stopped { stop_reason: StopReason::Unclear, tokens: None },
                    _ => PromptReply::Stopped { stop_reason: own, tokens: None },
                })?
            }
            Action::AnswerUnknownPrompt(id) => {
                let id = 1_000_000 + u64::from(id);
                let reply = PromptReply::Stopped { stop_reason: StopReason::EndTurn, tokens: None };
                Event::PromptAnswered { run, id, reply, response: Some(response()) }
            }
            Action::CloseStdout => {
                agent.closed = true;
                Event::AgentClosed(run)
            }
            _ => return None,
        })
    }

    /// Returns the late event of an ended run or an answered prompt.
    fn late_event(&mut self, next: Action) -> Option<Event> {
        let unexpected = match next {
            Action::RepeatAnswer => Some(*self.answered.last()?),
            Action::LateAnswer => Some(*self.owed.last()?),
            _ => None,
        };
        if let Some((run, id)) = unexpected {
            let reply = PromptReply::Stopped { stop_reason: StopReason::EndTurn, tokens: None };
            return Some(Event::PromptAnswered { run, id, reply, response: Some(response()) });
        }
        let run = *self.past_runs.last()?;
        let (lines, summary) = AgentMessage::Chunk(1).lines();
        let session = SessionId("late".into());
        Some(match next {
            Action::LateOutput => {
                let after_prompt = None;
                Event::OutputReceived { run, lines, summary, session: None, after_prompt }
            }
            Action::LatePermissionRequest => {
                let request = PermissionRequest { options: 0, tool: 0, repeated: false };
                Event::PermissionAsked { run, lines, asked: Box::new(permission_asked(request, 0)) }
            }
            Action::LateReady => Event::AgentReady {
                run,
                pid: 1,
                session,
                continuity: Continuity::New,
                is_forgetful: false,
                provenance: None,
                prompts: None,
                loss: None,
            },
            Action::LateExit => Event::AgentExited { run, exit: exit(ExitReason::Exited) },
            Action::LateSignal(signal) if signal.source == Source::HermesStderr => {
                let signal = Box::new(signal.signal());
                Event::StderrMatched { run, line: "late".into(), signal }
            }
            Action::LateSignal(late) => Event::Signalled { run, signal: Box::new(late.signal()) },
            Action::LateProvenance(number) => {
                let provenance = provenance(number, None, number.is_multiple_of(2));
                Event::ProvenanceGiven { run, provenance }
            }
            Action::LateSessionOpened => {
                let opened = Ok((session, None));
                Event::SessionOpened { run, id: self.group.state().last_seq, opened }
            }
            Action::LateStdoutClosed => Event::AgentClosed(run),
            _ => return None,
        })
    }

    /// Lets the time of this timer pass, and fires it.
    fn expire(&mut self, (timer, ms): (Timer, u64)) -> Event {
        self.pass(ms);
        Event::TimerFired(timer)
    }

    /// Whether the timer is over for good: not only hidden, and it cannot run again as the same.
    fn is_over(&self, timer: &Timer) -> bool {
        let unsent = |task| self.group.task(task).is_some_and(|task| task.start().is_none());
        let still_runs = self.timers().iter().any(|(running, _)| running == timer);
        !still_runs
            && match timer {
                Timer::Attempt(task) | Timer::Cancel(task) => self.group.task(*task).is_none(),
                Timer::Launch(_) => self.group.run().is_none(),
                Timer::Queued(task) => !unsent(*task),
                _ => true,
            }
    }

    fn decide(&mut self, back: u8, choice: PermissionChoice) -> Option<Event> {
        let (permission, options) = self.checker.permission(usize::from(back))?;
        let choice = match choice {
            PermissionChoice::Cancel => Choice::Cancel,
            PermissionChoice::Unknown => Choice::Select("no such option".into()),
            PermissionChoice::Option(number) if options.is_empty() => {
                Choice::Select(format!("{number}"))
            }
            PermissionChoice::Option(number) => {
                Choice::Select(options[usize::from(number) % options.len()].id.clone())
            }
        };
        Some(Event::PermissionAnswered { permission, choice, by: "someone".into() })
    }

    /// Stderr is a pipe of its own: greenroom still reads it after stdout was closed.
    fn signal(&mut self, reported: DetectorSignal) -> Option<Event> {
        let agent = self.agent.as_ref()?;
        let (run, signal): (_, Box<CompactionSignal>) = (agent.run, Box::new(reported.signal()));
        if reported.source == Source::HermesStderr {
            return Some(Event::StderrMatched { run, line: "matched".into(), signal });
        }
        agent.can_write().then_some(Event::Signalled { run, signal })
    }

    /// The profile in force accepts the compaction; one without a way to compact may follow.
    fn compact(&mut self, strategy: Strategy) -> Event {
        if let Some(order) = &mut self.settings.compaction {
            self.settings_changed |= order.strategy != strategy;
            order.strategy = strategy;
        }
        let default = || messages::compaction(strategy, 9);
        let order = self.settings.compaction.clone().unwrap_or_else(default);
        Event::Submitted(self.submit(order.work(None)))
    }

    fn submit(&mut self, work: Work) -> Box<Task> {
        self.ids += 1;
        let id = TaskId(Uuid::from_u128(self.ids));
        self.offered.push(id);
        Box::new(Task::new(id, work, Origin::Api))
    }

    fn session(&mut self) -> SessionId {
        self.ids += 1;
        SessionId(format!("s{}", self.ids).into())
    }

    /// Returns the compaction task whose lock the group holds.
    fn lock_holder(&self) -> Option<TaskId> {
        self.checker.lock_holder()
    }

    fn lock(&mut self, reply: LockReply) -> Option<Event> {
        if self.lock_requests.is_empty() {
            return None;
        }
        let (task, key) = self.lock_requests.remove(0);
        let answer = match reply {
            LockReply::Acquired => {
                self.ids += 1;
                let (holder, token) = (format!("g{}", self.ids), self.ids as u64);
                self.leases.push((key.clone(), holder.clone(), token));
                LockAnswer::Acquired { holder, token }
            }
            LockReply::Busy => LockAnswer::Busy { holder: "someone".into() },
            LockReply::Absent => LockAnswer::Absent,
            LockReply::Failed => LockAnswer::Failed,
        };
        Some(Event::LockAnswered { task, key, answer })
    }

    fn ready(&mut self, continuity: Continuity, own: u8, blocks: Option<u8>) -> Option<Event> {
        let fresh = self.session();
        let agent = self.agent.as_mut().filter(|agent| !agent.ready && agent.can_write())?;
        agent.ready = true;
        let is_forgetful = continuity == Continuity::Lost;
        let (session, continuity) = match (&agent.session, continuity) {
            (None, _) => (fresh, Continuity::New),
            (Some(_), Continuity::Lost) => (fresh, Continuity::Lost),
            (Some(wanted), Continuity::Resumed) => (wanted.clone(), Continuity::Resumed),
            (Some(wanted), _) => (wanted.clone(), Continuity::Loaded),
        };
        let provenance = (own > 0).then(|| provenance(own, None, own == 3));
        let run = agent.run;
        // The agent of some runs says that it does not know the session.
        let is_lost = continuity == Continuity::Lost;
        let loss = is_lost.then(|| Loss { cause: "gone".into(), is_unknown: own == 2 });
        Some(Event::AgentReady {
            run,
            pid: 7,
            session,
            continuity,
            provenance,
            is_forgetful,
            prompts: blocks.map(messages::taking),
            loss,
        })
    }

    fn answer(&mut self, reply: PromptReply) -> Option<Event> {
        let agent = self.agent.as_mut().filter(|agent| !agent.prompts.is_empty())?;
        let (run, id) = (agent.run, agent.prompts.remove(0));
        self.answered.push((run, id));
        Some(Event::PromptAnswered { run, id, reply, response: Some(response()) })
    }
}

/// Returns a response as agents write it.
fn response() -> Json {
    Json::parse(r#"{"jsonrpc":"2.0","id":1,"result":null}"#.into()).unwrap()
}

/// Returns the kind of a timer.
pub(super) fn timer_kind(timer: &Timer) -> TimerKind {
    match timer {
        Timer::Attempt(_) => TimerKind::Attempt,
        Timer::Cancel(_) => TimerKind::Cancel,
        Timer::Compaction(_) => TimerKind::Compaction,
        Timer::Lock(..) => TimerKind::Lock,
        Timer::Permission(_) => TimerKind::Permission,
        Timer::Backoff(..) => TimerKind::Backoff,
        Timer::Launch(_) => TimerKind::Launch,
        Timer::Login(_) => TimerKind::Login,
        Timer::Queued(_) => TimerKind::Queued,
        Timer::Idle(..) => TimerKind::Idle,
    }
}
