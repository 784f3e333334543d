//! A model of the world around one group: a server that grants slots, an agent that does whatever
//! an agent may do, and crashes at any point. What it leads to is checked at every step.
//!
//! It is played by the rules' own tests and, against real rows, by those of the storage.

#![allow(dead_code, reason = "each test crate that includes this module uses a part of it")]

mod checker;
mod moves;
mod reference;

use greenroom_core::{
    Continuity, Effect, Event, Exit, ExitReason, Expiry, Fold, Group, Json, Kinds, Lines, Origin,
    Patience, Permission, PromptReply, RunId, RunPhase, SessionId, Settings, Step, StopReason,
    Task, TaskId, TaskState, Timestamp, Usage, Work, Write,
};
use uuid::Uuid;

use self::checker::Checker;
pub use self::{
    moves::{Move, Spoken, moves},
    reference::Reference,
};

/// A statement that did not hold, by name.
pub type Held<T = ()> = Result<T, String>;

macro_rules! ensure {
    ($holds:expr, $($said:tt)+) => {
        if !$holds {
            return Err(format!($($said)+));
        }
    };
}
pub(crate) use ensure;

/// Small, so that random play reaches them.
pub const LIMITS: Patience =
    Patience { turn_ms: 60_000, idle_ms: 5_000, queue_max: 6, queue_bytes_max: 400 };

/// The facts of one step and when they were stated.
pub type Committed = (Timestamp, Vec<Write>);

/// A group and everything around it.
pub struct World {
    /// The group as it lives.
    pub group: Group,
    /// What a database would hold of it.
    pub reference: Reference,
    /// The clock, which may jump.
    pub now: Timestamp,
    /// The group as it comes out of its facts alone (I13).
    shadow: Group,
    checker: Checker,
    agent: Option<Agent>,
    /// Every task that was ever offered, accepted or not.
    offered: Vec<TaskId>,
    /// How often the group's agent or directory changed, and how often it had when the task that
    /// has the slot got it.
    moves: u32,
    moves_at_claim: u32,
    /// Runs that are over, and prompts that were answered.
    past_runs: Vec<RunId>,
    answered: Vec<(RunId, u64)>,
    ids: u128,
}

/// The model agent.
struct Agent {
    run: RunId,
    wanted: Option<SessionId>,
    /// [`World::moves`] when it was launched.
    moves: u32,
    ready: bool,
    told_to_end: bool,
    prompts: Vec<u64>,
}

impl Default for World {
    fn default() -> Self {
        let group = Group::new(settings(0));
        Self {
            reference: Reference::new(settings(0)),
            shadow: group.clone(),
            group,
            now: Timestamp(1_000),
            checker: Checker::default(),
            agent: None,
            offered: Vec::new(),
            moves: 0,
            moves_at_claim: 0,
            past_runs: Vec::new(),
            answered: Vec::new(),
            ids: 0,
        }
    }
}

impl World {
    /// A world whose ids are above `from`: several may share a database.
    pub fn numbered(from: u128) -> Self {
        Self { ids: from, ..Self::default() }
    }

    /// Makes one move, if the world is such that it can happen.
    pub fn play(&mut self, next: Move) -> Held<Option<Committed>> {
        self.now.0 += 1;
        match next {
            Move::Clock(jump) => {
                self.now.0 += i64::from(jump) * 1000;
                Ok(None)
            }
            Move::Crash => self.crash(),
            _ => {
                let Some(event) = self.event(next) else { return Ok(None) };
                let nothing = self.means_nothing(next);
                let committed = self.take(event)?;
                let led_to = committed.as_ref().map_or(0, |(_, writes)| writes.len());
                ensure!(!nothing || led_to == 0, "{next:?} means nothing and led to {committed:?}");
                Ok(committed)
            }
        }
    }

    /// Lets the world do what it should until nothing is left to do (I12). A `silent` agent starts
    /// and then never answers, nor heeds a cancel.
    pub fn drain(&mut self, silent: bool) -> Held<Vec<Committed>> {
        let mut committed = Vec::new();
        for _ in 0..200 {
            let Some(next) = self.next_in_order(silent) else { break };
            committed.extend(self.play(next)?);
        }
        ensure!(self.group.waiting().len() == 0, "I12: tasks wait for ever: {:?}", self.group);
        ensure!(self.group.current().is_none(), "I12: a task hangs for ever: {:?}", self.group);
        self.checker.all_ended()?;
        Ok(committed)
    }

    fn next_in_order(&self, silent: bool) -> Option<Move> {
        match &self.agent {
            Some(agent) if agent.told_to_end => return Some(Move::Exit(ExitReason::Stopped)),
            Some(agent) if !agent.ready => return Some(Move::Ready(Continuity::New)),
            Some(agent) if !agent.prompts.is_empty() && !silent => {
                return Some(Move::Answer(StopReason::EndTurn));
            }
            Some(_) | None => {}
        }
        if self.group.wants_slot() {
            return Some(Move::Grant);
        }
        if self.group.head().paused && self.group.waiting().len() > 0 {
            return Some(Move::Resume);
        }
        // An idle agent may stay; anything else that is bounded in time gets that time.
        match self.group.patience(&LIMITS) {
            Some((Expiry::Turn(_) | Expiry::Cancel(_), _)) => Some(Move::Expire),
            Some((Expiry::Idle(..), _)) | None => None,
        }
    }

    fn means_nothing(&self, next: Move) -> bool {
        match next {
            Move::Grant => !self.group.wants_slot(),
            Move::AnswerAgain | Move::AnswerUnknown(_) => true,
            Move::LateSay | Move::LateAsk | Move::LateReady | Move::LateExit => true,
            _ => false,
        }
    }

    fn event(&mut self, next: Move) -> Option<Event> {
        Some(match next {
            Move::Crash | Move::Clock(_) => return None,
            Move::Submit { bytes } => {
                let prompt = text(&"p".repeat(usize::from(bytes)));
                Event::Submitted(self.offer(Work::Turn { prompt }))
            }
            Move::Compact => {
                Event::Submitted(self.offer(Work::Compaction { focus: None, prompt: text("/c") }))
            }
            Move::Cancel { back } => {
                let from_end = usize::from(back).min(self.offered.len().checked_sub(1)?);
                Event::CancelRequested(self.offered[self.offered.len() - 1 - from_end])
            }
            Move::Archive => Event::Archived,
            Move::Pause => Event::Paused,
            Move::Resume => Event::Resumed,
            Move::Stop => Event::Stopped,
            Move::Configure(number) => Event::Configured(settings(number)),
            Move::Grant => Event::SlotGranted { fresh: self.run_id() },
            Move::Expire => Event::Expired(self.group.patience(&LIMITS)?.0),
            Move::Shutdown => Event::Shutdown,
            Move::Ready(continuity) => self.ready(continuity)?,
            Move::Say(spoken) => {
                let run = self.agent.as_ref()?.run;
                let (lines, fold) = spoken.lines();
                Event::AgentSaid { run, lines, fold }
            }
            Move::SayNonsense => {
                let run = self.agent.as_ref()?.run;
                let (reason, bytes) = ("no JSON".into(), "eA==".into());
                Event::OutputRejected { run, reason, bytes }
            }
            Move::Ask { can_refuse } => {
                let run = self.agent.as_ref()?.run;
                let reject = can_refuse.then(|| "no".to_owned());
                let id = number(self.now.0);
                let line = r#"{"jsonrpc":"2.0","id":1,"method":"session/request_permission"}"#;
                let kinds = Kinds::All("session/request_permission".into());
                let lines = Lines { count: 1, kinds, text: line.to_owned().into() };
                Event::PermissionAsked { run, lines, permission: Permission { id, reject } }
            }
            Move::Answer(stop_reason) => {
                let reply = PromptReply::Stopped { stop_reason, tokens: None };
                self.answer(reply)?
            }
            Move::AnswerError => {
                self.answer(PromptReply::Failed { code: -32603, message: "broken".into() })?
            }
            Move::AnswerAgain => {
                let (run, id) = *self.answered.last()?;
                let reply = PromptReply::Stopped { stop_reason: StopReason::EndTurn, tokens: None };
                Event::PromptAnswered { run, id, reply }
            }
            Move::AnswerUnknown(id) => {
                let run = self.agent.as_ref()?.run;
                let id = 1_000_000 + u64::from(id);
                let reply = PromptReply::Stopped { stop_reason: StopReason::EndTurn, tokens: None };
                Event::PromptAnswered { run, id, reply }
            }
            Move::Exit(reason) => {
                let agent = self.agent.take()?;
                let reason = match reason {
                    ExitReason::StartFailed if agent.ready => ExitReason::Exited,
                    ExitReason::ServerRestart | ExitReason::Stopped if !agent.told_to_end => {
                        ExitReason::Exited
                    }
                    reason => reason,
                };
                self.past_runs.push(agent.run);
                Event::AgentExited { run: agent.run, exit: exit(reason), fresh: self.run_id() }
            }
            Move::LateSay => {
                let (lines, fold) = Spoken::Chunk(1).lines();
                Event::AgentSaid { run: *self.past_runs.last()?, lines, fold }
            }
            Move::LateAsk => {
                let (lines, _) = Spoken::Chunk(1).lines();
                let permission = Permission { id: number(0), reject: None };
                Event::PermissionAsked { run: *self.past_runs.last()?, lines, permission }
            }
            Move::LateReady => Event::AgentReady {
                run: *self.past_runs.last()?,
                pid: 1,
                session: SessionId("late".into()),
                continuity: Continuity::New,
            },
            Move::LateExit => {
                let fresh = self.run_id();
                let run = *self.past_runs.last()?;
                Event::AgentExited { run, exit: exit(ExitReason::Exited), fresh }
            }
        })
    }

    fn offer(&mut self, work: Work) -> Box<Task> {
        self.ids += 1;
        let id = TaskId(Uuid::from_u128(self.ids));
        self.offered.push(id);
        Box::new(Task {
            id,
            ordinal: 0,
            work,
            origin: Origin::Api,
            metadata: None,
            deadline_ms: None,
            state: TaskState::Queued,
            attempt: 0,
            cancel_requested: false,
            created_at: Timestamp::default(),
            claimed_at: None,
            started_at: None,
            ended_at: None,
            run: None,
            segment: None,
            seq_first: None,
            seq_last: None,
            ending: greenroom_core::Ending::default(),
        })
    }

    fn run_id(&mut self) -> RunId {
        self.ids += 1;
        RunId(Uuid::from_u128(self.ids))
    }

    fn ready(&mut self, continuity: Continuity) -> Option<Event> {
        self.ids += 1;
        let fresh = SessionId(format!("s{}", self.ids).into());
        let agent = self.agent.as_mut().filter(|agent| !agent.ready)?;
        agent.ready = true;
        let (session, continuity) = match (&agent.wanted, continuity) {
            (None, _) => (fresh, Continuity::New),
            (Some(_), Continuity::Lost) => (fresh, Continuity::Lost),
            (Some(wanted), Continuity::Resumed) => (wanted.clone(), Continuity::Resumed),
            (Some(wanted), _) => (wanted.clone(), Continuity::Loaded),
        };
        Some(Event::AgentReady { run: agent.run, pid: 7, session, continuity })
    }

    fn answer(&mut self, reply: PromptReply) -> Option<Event> {
        let agent = self.agent.as_mut().filter(|agent| !agent.prompts.is_empty())?;
        let (run, id) = (agent.run, agent.prompts.remove(0));
        self.answered.push((run, id));
        Some(Event::PromptAnswered { run, id, reply })
    }

    fn take(&mut self, event: Event) -> Held<Option<Committed>> {
        let before = self.group.clone();
        let said = format!("{event:?}");
        let step = match self.group.apply(event, self.now, &LIMITS) {
            Ok(step) => step,
            Err(rejected) => {
                ensure!(self.group == before, "{said} was rejected ({rejected}) and changed state");
                return Ok(None);
            }
        };
        let place = |group: &Group| {
            let settings = &group.head().settings;
            (settings.agent.clone(), settings.cwd.clone())
        };
        self.moves += u32::from(place(&before) != place(&self.group));
        if before.current().is_none() && self.group.current().is_some() {
            self.moves_at_claim = self.moves;
        }
        self.commit(step).map(Some).map_err(|why| format!("{why}\n  at {said}\n  in {before:?}"))
    }

    fn commit(&mut self, Step { writes, effects }: Step) -> Held<Committed> {
        for write in &writes {
            self.shadow.replay(write, self.now);
            self.reference.store(write, self.now);
            self.checker.fact(write)?;
        }
        ensure!(
            self.shadow == self.group,
            "I13: replay is not live:\n  replayed {:?}\n  live {:?}",
            self.shadow,
            self.group
        );
        let restored = self.reference.restore();
        ensure!(
            restored == self.group,
            "I13: restore is not live:\n  restored {restored:?}\n  live {:?}",
            self.group
        );
        self.forgets_well()?;
        self.checker.orders(&writes, &effects, &self.group)?;
        for effect in effects {
            self.perform(effect)?;
        }
        self.at_rest()?;
        Ok((self.now, writes))
    }

    /// A database does not keep a run's phase, nor a prompt's id, nor who cut a turn off: none of
    /// them makes a difference once the group has recovered.
    fn forgets_well(&self) -> Held {
        let recovered = |mut group: Group| {
            group
                .apply(Event::Recovered, self.now, &LIMITS)
                .map(|_| group)
                .map_err(|e| e.to_string())
        };
        let (live, forgetful) =
            (recovered(self.group.clone())?, recovered(self.reference.restore_forgetful())?);
        ensure!(
            live == forgetful,
            "I13: what is not stored makes a difference:\n  {forgetful:?}\n  {live:?}"
        );
        Ok(())
    }

    fn perform(&mut self, effect: Effect) -> Held {
        let own = self.agent.as_ref().map(|agent| agent.run);
        match effect {
            Effect::Launch { run, session } => {
                ensure!(own.is_none(), "AM-1: {run} is launched beside {own:?}");
                self.agent = Some(Agent {
                    run,
                    wanted: session,
                    moves: self.moves,
                    ready: false,
                    told_to_end: false,
                    prompts: Vec::new(),
                });
            }
            Effect::Prompt { run, id, .. } => {
                let agent = self.agent.as_mut().filter(|agent| agent.run == run);
                let Some(agent) = agent else { return Err(format!("I7: {run} cannot hear {id}")) };
                ensure!(agent.ready && !agent.told_to_end, "I7: {run} takes no prompt now");
                let moved = agent.moves < self.moves_at_claim;
                ensure!(!moved, "prompt {id} goes to an agent, or a directory, of the past");
                agent.prompts.push(id);
            }
            Effect::Cancel { run, .. } => {
                ensure!(own == Some(run), "{run} is not there to hear a cancel");
            }
            Effect::Answer { run, .. } => {
                ensure!(own == Some(run), "{run} is not there to hear an answer");
            }
            Effect::Stop { run, .. } => {
                let agent = self.agent.as_mut().filter(|agent| agent.run == run);
                let Some(agent) = agent else { return Err(format!("{run} is not there to end")) };
                agent.told_to_end = true;
            }
        }
        Ok(())
    }

    /// What holds between two events: whatever waits has somebody who ends the wait (I12).
    fn at_rest(&self) -> Held {
        self.checker.at_rest(&self.group)?;
        let (group, agent) = (&self.group, self.agent.as_ref());
        let run = group.run();
        ensure!(
            run.map(|run| run.id) == agent.map(|agent| agent.run),
            "the group believes in run {run:?}, which is not the one that lives"
        );
        let in_flight = self.checker.in_flight();
        let ready = run.is_some_and(|run| run.phase == RunPhase::Ready);
        let stopping = run.is_some_and(|run| run.phase == RunPhase::Stopping);
        ensure!(
            stopping == agent.is_some_and(|agent| agent.told_to_end),
            "a run that was told to end is ending, and no other: {run:?}"
        );
        if let Some(current) = group.current() {
            ensure!(run.is_some(), "I12: {} has no run to wait for", current.id);
            ensure!(in_flight.is_some() || !ready, "I12: {} is not started", current.id);
        } else {
            let waits = group.waiting().len() > 0 && !group.head().paused;
            ensure!(group.wants_slot() == waits, "I12: tasks wait and no slot is wanted");
        }
        match group.patience(&LIMITS) {
            None => ensure!(!ready, "I12: a ready run has no deadline: {group:?}"),
            Some((Expiry::Turn(task) | Expiry::Cancel(task), _)) => {
                ensure!(in_flight == Some(task), "a deadline for {task}, which does not run");
            }
            Some((Expiry::Idle(id, seq), _)) => {
                let idle = group.current().is_none() && group.head().last_seq == seq;
                ensure!(idle && run.is_some_and(|run| run.id == id), "{id} is not idle at {seq}");
            }
        }
        Ok(())
    }

    /// The server dies at this very point; another one reads the group back.
    fn crash(&mut self) -> Held<Option<Committed>> {
        self.past_runs.extend(self.agent.take().map(|agent| agent.run));
        self.group = self.reference.restore_forgetful();
        self.shadow = self.group.clone();
        let used = self.group.run().is_some() || self.group.current().is_some();
        if !used {
            return Ok(None);
        }
        let committed = self.take(Event::Recovered)?;
        let left = (self.group.run(), self.group.current());
        ensure!(left == (None, None), "RELIABILITY 1: alive after a restart: {left:?}");
        Ok(committed)
    }
}

/// One of a few settings; the agent and the directory differ.
pub fn settings(number: u8) -> Settings {
    let number = number % 4;
    Settings {
        agent: if number < 2 { "one" } else { "two" }.into(),
        cwd: Some(if number == 3 { "/b" } else { "/a" }.into()),
        title: (number == 1).then(|| "titled".to_owned()),
        ..Settings::default()
    }
}

fn exit(reason: ExitReason) -> Exit {
    Exit {
        pid: None,
        code: Some(1),
        signal: None,
        reason,
        detail: "it ended".into(),
        stderr_tail: "last words".into(),
        stderr_dropped: 0,
    }
}

fn text(text: &str) -> Json {
    json(format!(r#"[{{"type":"text","text":"{text}"}}]"#))
}

fn number(number: i64) -> Json {
    json(number.to_string())
}

fn json(text: String) -> Json {
    Json::parse(text).unwrap_or_else(|err| unreachable!("the test writes JSON: {err}"))
}

impl Spoken {
    /// The lines as an agent writes them, and what the rules need to know of them.
    pub fn lines(self) -> (Lines, Fold) {
        let update = |fields: &str| {
            format!(
                r#"{{"jsonrpc":"2.0","method":"session/update","params":{{"sessionId":"s","update":{fields}}}}}"#
            )
        };
        let tool = |id: u8, begun: bool| {
            let (word, status) =
                if begun { ("tool_call", "pending") } else { ("tool_call_update", "completed") };
            update(&format!(
                r#"{{"sessionUpdate":"{word}","toolCallId":"t{id}","title":"t","status":"{status}"}}"#
            ))
        };
        let chunk =
            r#"{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"ab"}}"#;
        let fold = Fold::default();
        let (lines, fold) = match self {
            Self::Chunk(count) => {
                let count = usize::from(count % 3) + 1;
                (
                    vec![update(chunk); count],
                    Fold { output: true, text: "ab".repeat(count), ..fold },
                )
            }
            Self::Usage(used) => {
                let line =
                    format!(r#"{{"sessionUpdate":"usage_update","used":{used},"size":200}}"#);
                let usage = Some(Usage { used: used.into(), size: 200, cost: None });
                (vec![update(&line)], Fold { usage, ..fold })
            }
            Self::ToolBegins(id) => {
                let tools = vec![(format!("t{id}"), true)];
                (vec![tool(id, true)], Fold { output: true, tools, ..fold })
            }
            Self::ToolEnds(id) => {
                let tools = vec![(format!("t{id}"), false)];
                (vec![tool(id, false)], Fold { output: true, tools, ..fold })
            }
            Self::Mode => (vec![update(r#"{"sessionUpdate":"current_mode_update"}"#)], fold),
        };
        let kinds = Kinds::All("session/update".into());
        (Lines { count: lines.len() as u64, kinds, text: lines.join("\n").into() }, fold)
    }
}
