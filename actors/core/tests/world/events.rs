//! What a move is to the rules: the event, if the world is such that it can happen.

use greenroom_core::{
    Choice, Continuity, Due, Event, ExitReason, Expiry, LockAnswer, Origin, PromptReply, SessionId,
    Signal, Source, StopReason, Strategy, Task, TaskId, Work,
};
use uuid::Uuid;

use super::{
    World,
    moves::{Bound, Chosen, LockSaid, Move, Seen, Spoken},
    spoken::{self, asked, exit, provenance, request, settings, spent, text},
};

impl World {
    /// Whether the move must lead to nothing at all.
    pub(super) fn means_nothing(&self, next: Move) -> bool {
        match next {
            // After a shutdown, whatever comes makes it ask for its lock again.
            _ if self.shut_down => false,
            // With other settings a compaction may have nothing to do any more.
            _ if self.terms_changed => false,
            Move::Grant => !self.group.wants_slot(),
            Move::AnswerAgain | Move::AnswerUnknown(_) => true,
            Move::LateExpire(_) => true,
            Move::LateSay | Move::LateAsk | Move::LateReady | Move::LateExit => true,
            Move::LateSignal(_) | Move::LateProvenance(_) | Move::LateName => true,
            Move::LateOpen | Move::LateClose | Move::LateAnswer => true,
            _ => false,
        }
    }

    pub(super) fn event(&mut self, next: Move) -> Option<Event> {
        Some(match next {
            Move::Crash | Move::Unstored | Move::Reboot(_) => return None,
            Move::Clock(_) | Move::Wait(_) | Move::Terms(..) => return None,
            Move::Submit { bytes } => {
                let prompt = text(&"p".repeat(usize::from(bytes)));
                Event::Submitted(self.offer(Work::Turn { prompt }))
            }
            Move::SubmitWithin { ms } => {
                let mut task = self.offer(Work::Turn { prompt: text("soon") });
                task.expires = Some(Due::after(self.moment(), u64::from(ms) * 10));
                Event::Submitted(task)
            }
            Move::Compact => self.compact(Strategy::Command),
            Move::CompactByRotation => self.compact(Strategy::Rotate),
            Move::Cancel { back } => {
                let from_end = usize::from(back).min(self.offered.len().checked_sub(1)?);
                Event::CancelRequested(self.offered[self.offered.len() - 1 - from_end])
            }
            Move::Archive => Event::Archived,
            Move::Pause => Event::Paused,
            Move::Resume => Event::Resumed,
            Move::Stop => Event::Stopped,
            Move::Configure(number) => Event::Configured(settings(number)),
            Move::Grant => Event::SlotGranted,
            Move::Expire(which) => {
                let bounds = self.bounds();
                self.expire(*bounds.get(usize::from(which) % bounds.len().max(1))?)
            }
            Move::ExpireA(kind) => {
                let bounds = self.bounds();
                self.expire(*bounds.iter().find(|(expiry, _)| bound(expiry) == kind)?)
            }
            Move::LateExpire(which) => {
                let over: Vec<_> = self.gone.iter().filter(|expiry| self.is_over(expiry)).collect();
                Event::Expired(**over.get(usize::from(which) % over.len().max(1))?)
            }
            Move::Decide { back, choice } => self.decide(back, choice)?,
            Move::Shutdown => Event::Shutdown,
            Move::Evict => {
                let run = self.group.run().filter(|_| !self.group.needs_run())?;
                Event::Expired(Expiry::Idle(run.id, self.group.head().last_seq))
            }
            Move::Lock(said) => self.lock(said)?,
            Move::LoseLock => {
                self.group.lease()?;
                self.leases.clear();
                Event::LockLost { task: self.holder()? }
            }
            Move::Ready(continuity) => self.ready(continuity, 0)?,
            Move::ReadyAs(continuity, number) => self.ready(continuity, number)?,
            Move::Open(well) => {
                let session = self.session();
                let agent = self.agent.as_mut().filter(|agent| agent.speaks())?;
                let id = agent.opening.pop()?;
                let opened = if well { Ok((session, None)) } else { Err("no more".into()) };
                Event::SessionOpened { run: agent.run, id, opened }
            }
            Move::Signal(seen) => self.signal(seen)?,
            _ => return self.spoken(next).or_else(|| self.late(next)),
        })
    }

    /// What a living agent says.
    fn spoken(&mut self, next: Move) -> Option<Event> {
        if let Move::Exit(reason) = next {
            let agent = self.agent.take()?;
            let ended = agent.told_to_end || agent.closed;
            let reason = match reason {
                ExitReason::StartFailed if agent.ready => ExitReason::Exited,
                ExitReason::ServerRestart | ExitReason::Stopped if !ended => ExitReason::Exited,
                reason => reason,
            };
            self.past_runs.push(agent.run);
            self.owed.extend(agent.prompts.iter().map(|id| (agent.run, *id)));
            return Some(Event::AgentExited { run: agent.run, exit: exit(reason) });
        }
        let agent = self.agent.as_mut().filter(|agent| agent.speaks())?;
        let run = agent.run;
        Some(match next {
            Move::Say(spoken) => {
                let (lines, fold) = spoken.lines();
                Event::AgentSaid { run, lines, fold }
            }
            Move::AskUnoffered => Event::RequestRefused { run, method: "fs/read_text_file".into() },
            Move::SayNonsense => {
                let (reason, bytes) = ("no JSON".into(), "eA==".into());
                Event::OutputRejected { run, reason, bytes }
            }
            Move::Provenance { number, compacted } => {
                let head = self.group.head();
                let known = head.provenance.as_ref().map(|known| known.current.clone());
                let previous = known.filter(|_| number.is_multiple_of(2));
                let provenance = provenance(number, previous, compacted);
                Event::ProvenanceGiven { run, provenance }
            }
            Move::NameSession(number) => {
                let in_force = self.group.head().session.clone().filter(|_| number == 0);
                let session = in_force.unwrap_or_else(|| SessionId(format!("n{number}").into()));
                Event::SessionNamed { run, session }
            }
            Move::Ask(what) => {
                agent.requests += i64::from(!what.again || agent.requests == 0);
                let (lines, asked) = (request(), Box::new(asked(what, agent.requests)));
                Event::PermissionAsked { run, lines, asked }
            }
            Move::Answer(stop_reason) => {
                let tokens = spent(self.group.head().last_seq);
                self.answer(PromptReply::Stopped { stop_reason, tokens })?
            }
            Move::AnswerError(code) => {
                self.answer(PromptReply::Failed { code, message: "broken".into() })?
            }
            Move::AnswerUnknown(id) => {
                let id = 1_000_000 + u64::from(id);
                let reply = PromptReply::Stopped { stop_reason: StopReason::EndTurn, tokens: None };
                Event::PromptAnswered { run, id, reply }
            }
            Move::Close => {
                agent.closed = true;
                Event::AgentClosed(run)
            }
            _ => return None,
        })
    }

    /// What is heard of a run, or of a prompt, that is over.
    fn late(&mut self, next: Move) -> Option<Event> {
        let past = match next {
            Move::AnswerAgain => Some(*self.answered.last()?),
            Move::LateAnswer => Some(*self.owed.last()?),
            _ => None,
        };
        if let Some((run, id)) = past {
            let reply = PromptReply::Stopped { stop_reason: StopReason::EndTurn, tokens: None };
            return Some(Event::PromptAnswered { run, id, reply });
        }
        let run = *self.past_runs.last()?;
        let (lines, fold) = Spoken::Chunk(1).lines();
        let session = SessionId("late".into());
        Some(match next {
            Move::LateSay => Event::AgentSaid { run, lines, fold },
            Move::LateAsk => {
                let what = super::moves::Asked { options: 0, tool: 0, again: false };
                Event::PermissionAsked { run, lines, asked: Box::new(asked(what, 0)) }
            }
            Move::LateReady => Event::AgentReady {
                run,
                pid: 1,
                session,
                continuity: Continuity::New,
                provenance: None,
            },
            Move::LateExit => Event::AgentExited { run, exit: exit(ExitReason::Exited) },
            Move::LateSignal(seen) if seen.source == Source::HermesStderr => {
                let signal = Box::new(seen.signal());
                Event::StderrMatched { run, line: "late".into(), signal }
            }
            Move::LateSignal(seen) => Event::Signalled { run, signal: Box::new(seen.signal()) },
            Move::LateProvenance(number) => {
                let provenance = provenance(number, None, number.is_multiple_of(2));
                Event::ProvenanceGiven { run, provenance }
            }
            Move::LateName => Event::SessionNamed { run, session },
            Move::LateOpen => {
                let opened = Ok((session, None));
                Event::SessionOpened { run, id: self.group.head().last_seq, opened }
            }
            Move::LateClose => Event::AgentClosed(run),
            _ => return None,
        })
    }

    /// What is bounded took its time: that much passes.
    fn expire(&mut self, (expiry, ms): (Expiry, u64)) -> Event {
        self.pass(ms);
        Event::Expired(expiry)
    }

    /// Whether what was bounded is over, and not only hidden, and cannot come back as the same.
    fn is_over(&self, expiry: &Expiry) -> bool {
        let unsent = |task| self.group.task(task).is_some_and(|task| task.started_at.is_none());
        let is_bound = self.bounds().iter().any(|(bound, _)| bound == expiry);
        !is_bound
            && match expiry {
                Expiry::Turn(task) | Expiry::Cancel(task) => self.group.task(*task).is_none(),
                Expiry::Launch(_) => self.group.run().is_none(),
                Expiry::Queued(task) => !unsent(*task),
                _ => true,
            }
    }

    fn decide(&mut self, back: u8, choice: Chosen) -> Option<Event> {
        let (permission, options) = self.checker.permission(usize::from(back))?;
        let choice = match choice {
            Chosen::Cancel => Choice::Cancel,
            Chosen::Unknown => Choice::Select("no such option".into()),
            Chosen::Option(number) if options.is_empty() => Choice::Select(format!("{number}")),
            Chosen::Option(number) => {
                Choice::Select(options[usize::from(number) % options.len()].id.clone())
            }
        };
        Some(Event::PermissionAnswered { permission, choice, by: "somebody".into() })
    }

    /// Stderr is a pipe of its own: it is read on after stdout was closed.
    fn signal(&mut self, seen: Seen) -> Option<Event> {
        let agent = self.agent.as_ref()?;
        let (run, signal): (_, Box<Signal>) = (agent.run, Box::new(seen.signal()));
        if seen.source == Source::HermesStderr {
            return Some(Event::StderrMatched { run, line: "matched".into(), signal });
        }
        agent.speaks().then_some(Event::Signalled { run, signal })
    }

    /// A caller is answered by the profile in force; one that has no way to compact may follow.
    fn compact(&mut self, strategy: Strategy) -> Event {
        if let Some(order) = &mut self.terms.compaction {
            order.strategy = strategy;
        }
        let given = || spoken::compaction(strategy, 9);
        let order = self.terms.compaction.clone().unwrap_or_else(given);
        Event::Submitted(self.offer(order.work(None)))
    }

    fn offer(&mut self, work: Work) -> Box<Task> {
        self.ids += 1;
        let id = TaskId(Uuid::from_u128(self.ids));
        self.offered.push(id);
        Box::new(Task::new(id, work, Origin::Api))
    }

    fn session(&mut self) -> SessionId {
        self.ids += 1;
        SessionId(format!("s{}", self.ids).into())
    }

    /// The compaction task that the group holds its lock for.
    fn holder(&self) -> Option<TaskId> {
        self.checker.lock_holder()
    }

    fn lock(&mut self, said: LockSaid) -> Option<Event> {
        if self.lock_requests.is_empty() {
            return None;
        }
        let (task, key) = self.lock_requests.remove(0);
        let answer = match said {
            LockSaid::Taken => {
                self.ids += 1;
                let (holder, token) = (format!("g{}", self.ids), self.ids as u64);
                self.leases.push((key.clone(), holder.clone(), token));
                LockAnswer::Taken { holder, token }
            }
            LockSaid::Held => LockAnswer::Held { holder: "somebody".into() },
            LockSaid::Absent => LockAnswer::Absent,
            LockSaid::Failed => LockAnswer::Failed,
        };
        Some(Event::LockAnswered { task, key, answer })
    }

    fn ready(&mut self, continuity: Continuity, hermes: u8) -> Option<Event> {
        let fresh = self.session();
        let agent = self.agent.as_mut().filter(|agent| !agent.ready && agent.speaks())?;
        agent.ready = true;
        let (session, continuity) = match (&agent.wanted, continuity) {
            (None, _) => (fresh, Continuity::New),
            (Some(_), Continuity::Lost) => (fresh, Continuity::Lost),
            (Some(wanted), Continuity::Resumed) => (wanted.clone(), Continuity::Resumed),
            (Some(wanted), _) => (wanted.clone(), Continuity::Loaded),
        };
        let provenance = (hermes > 0).then(|| provenance(hermes, None, hermes == 3));
        Some(Event::AgentReady { run: agent.run, pid: 7, session, continuity, provenance })
    }

    fn answer(&mut self, reply: PromptReply) -> Option<Event> {
        let agent = self.agent.as_mut().filter(|agent| !agent.prompts.is_empty())?;
        let (run, id) = (agent.run, agent.prompts.remove(0));
        self.answered.push((run, id));
        Some(Event::PromptAnswered { run, id, reply })
    }
}

/// What kind of bound it is.
pub(super) fn bound(expiry: &Expiry) -> Bound {
    match expiry {
        Expiry::Turn(_) => Bound::Turn,
        Expiry::Cancel(_) => Bound::Cancel,
        Expiry::Compaction(_) => Bound::Compaction,
        Expiry::Lock(..) => Bound::Lock,
        Expiry::Permission(_) => Bound::Permission,
        Expiry::Backoff(..) => Bound::Backoff,
        Expiry::Launch(_) => Bound::Launch,
        Expiry::Queued(_) => Bound::Queued,
        Expiry::Idle(..) => Bound::Idle,
    }
}
