//! Drives a group event by event.

// What an agent sends beside updates and answers.
mod requests;

use greenroom_core::{
    BootId, Compaction, CompactionOrder, CompactionSignal, CompactionStatus, Continuity, Details,
    Effect, EffectiveSettings, ErrorKind, Event, Exit, ExitReason, Fact, Group, Json, Kinds,
    Limits, Lineage, Lines, LockAnswer, Loss, Now, OnInterrupt, Origin, OutputSummary,
    PermissionPolicy, PromptCapabilities, PromptReply, Provenance, RetryPolicy, RunId, SessionId,
    Settings, SignalKind, Source, StopReason, Strategy, Task, TaskId, TaskState, Timer, Timestamp,
    Uptime, Usage, Work,
};
use uuid::Uuid;

pub const LIMITS: Limits = Limits {
    turn_ms: 60_000,
    compaction_ms: 3_000,
    idle_ms: 5_000,
    permission_ms: 20_000,
    retry_base_ms: 5_000,
    queue_max: 9,
    queue_bytes_max: 9_999,
};

/// Returns what an adapter makes of an error that has this code and nothing else.
pub fn error_kind(code: i64) -> ErrorKind {
    match code {
        -32000 => ErrorKind::Auth,
        -32602..=-32600 => ErrorKind::Lasting,
        _ => ErrorKind::Passing,
    }
}

/// The facts of one event without their places, and its effects.
#[derive(Debug, Default, PartialEq)]
pub struct Step {
    pub facts: Vec<Fact>,
    pub effects: Vec<Effect>,
}

/// A group, its clock and its settings; and all its facts and effects.
pub struct Driver {
    pub group: Group,
    pub settings: EffectiveSettings,
    pub now: Timestamp,
    /// The uptime, which cannot be set.
    pub up_ms: u64,
    /// The boot that the uptime counts from.
    pub boot: u128,
    pub facts: Vec<Fact>,
    pub effects: Vec<Effect>,
    ids: u128,
}

impl Default for Driver {
    fn default() -> Self {
        let compaction = Some(order(Strategy::Command, "/compact"));
        Self {
            group: Group::new(Settings::default()),
            settings: effective_settings(0.8, compaction),
            now: Timestamp(1_000_000),
            up_ms: 1_000,
            boot: 1,
            facts: Vec::new(),
            effects: Vec::new(),
            ids: 0,
        }
    }
}

impl Driver {
    /// Returns a group whose agent is ready, with a first turn in flight.
    pub fn in_turn() -> Self {
        let mut driver = Self::default();
        driver.turn();
        driver.ready("s", None);
        driver.clear();
        driver
    }

    /// Returns a group whose agent is ready and idle.
    pub fn idle() -> Self {
        Self::in_turn().settled()
    }

    /// Likewise; its profile has more detectors than ACP.
    pub fn listening() -> Self {
        let mut driver = Self::default();
        driver.settings.has_detectors = true;
        driver.turn();
        driver.ready("s", None);
        driver.settled()
    }

    fn settled(mut self) -> Self {
        self.say("hello");
        self.answer(StopReason::EndTurn);
        self.clear();
        self
    }

    /// Returns a group that runs a compaction under its lock.
    pub fn compacting(strategy: Strategy) -> Self {
        Self::compacting_in(Self::idle(), strategy)
    }

    pub fn compacting_in(mut driver: Self, strategy: Strategy) -> Self {
        driver.compact(strategy);
        driver.lock(acquired());
        driver.grant();
        driver.clear();
        driver
    }

    pub fn clear(&mut self) {
        self.facts.clear();
        self.effects.clear();
    }

    /// Both clocks.
    pub fn moment(&self) -> Now {
        let boot = BootId(Uuid::from_u128(self.boot));
        Now { wall: self.now, up: Uptime { boot, ms: self.up_ms } }
    }

    pub fn apply(&mut self, event: Event) -> Step {
        let now = self.moment();
        let ids = &mut self.ids;
        let mut fresh = || {
            *ids += 1;
            Uuid::from_u128(*ids)
        };
        let step = self.group.apply(event, now, &self.settings, &mut fresh).unwrap();
        let facts: Vec<_> = step.facts.into_iter().map(|recorded| recorded.fact).collect();
        self.facts.extend(facts.iter().cloned());
        self.effects.extend(step.effects.iter().cloned());
        Step { facts, effects: step.effects }
    }

    fn submit(&mut self, work: Work) -> TaskId {
        self.ids += 1;
        let task = TaskId(Uuid::from_u128(self.ids));
        self.apply(Event::Submitted(Box::new(Task::new(task, work, Origin::Api))));
        task
    }

    /// Submits a turn and grants it the slot.
    pub fn turn(&mut self) -> TaskId {
        let task = self.queue_turn();
        self.grant();
        task
    }

    pub fn queue_turn(&mut self) -> TaskId {
        self.submit(Work::Turn { prompt: blocks("do it") })
    }

    /// Submits a compaction by a profile with this strategy.
    pub fn compact(&mut self, strategy: Strategy) -> TaskId {
        self.settings.compaction = Some(order(strategy, "/compact"));
        self.compact_on(None)
    }

    /// Submits a compaction by the profile in force.
    pub fn compact_on(&mut self, focus: Option<&str>) -> TaskId {
        let order = self.settings.compaction.as_ref().expect("a way to compact");
        let work = order.work(focus.map(Into::into));
        self.submit(work)
    }

    /// Changes the profile and the directory, as a caller does.
    pub fn configure(&mut self, agent: &str, cwd: Option<&str>) -> Step {
        let cwd = cwd.map(str::to_owned);
        self.apply(Event::Configured(Settings { agent: agent.into(), cwd, ..Settings::default() }))
    }

    /// Ends the agent's process.
    pub fn exit(&mut self, reason: ExitReason) -> Step {
        self.apply(Event::AgentExited { run: self.run(), exit: Exit::unseen(reason, "") })
    }

    pub fn grant(&mut self) -> Step {
        self.apply(Event::SlotGranted)
    }

    pub fn run(&self) -> RunId {
        self.group.run().unwrap().id
    }

    pub fn ready(&mut self, session: &str, provenance: Option<Provenance>) -> Step {
        let continuity =
            if self.group.state().session.is_some() { Continuity::Loaded } else { Continuity::New };
        self.ready_as(session, continuity, provenance, false)
    }

    /// An agent that can neither load nor resume opens its session, which is new.
    pub fn ready_forgetful(&mut self, session: &str) -> Step {
        let continuity =
            if self.group.state().session.is_some() { Continuity::Lost } else { Continuity::New };
        self.ready_as(session, continuity, None, true)
    }

    /// The agent opens this session in this way.
    pub fn ready_as(
        &mut self,
        session: &str,
        continuity: Continuity,
        provenance: Option<Provenance>,
        is_forgetful: bool,
    ) -> Step {
        self.open(session, continuity, provenance, is_forgetful, None)
    }

    /// The agent opens this session, as it did not restore the one before in this way.
    pub fn ready_with(
        &mut self,
        session: &str,
        continuity: Continuity,
        loss: Option<Loss>,
    ) -> Step {
        self.open(session, continuity, None, false, loss)
    }

    fn open(
        &mut self,
        session: &str,
        continuity: Continuity,
        provenance: Option<Provenance>,
        is_forgetful: bool,
        loss: Option<Loss>,
    ) -> Step {
        let (run, session) = (self.run(), SessionId(session.into()));
        self.apply(Event::AgentReady {
            run,
            pid: 1,
            session,
            continuity,
            provenance,
            is_forgetful,
            prompts: Some(PromptCapabilities::ALL),
            loss,
        })
    }

    /// Returns from the agent that it could not restore the session, and opened this one.
    pub fn ready_lost(&mut self, session: &str) -> Step {
        self.ready_as(session, Continuity::Lost, None, false)
    }

    pub fn output(&mut self, summary: OutputSummary) -> Step {
        self.output_in(None, summary)
    }

    /// Writes output that may name its session.
    pub fn output_in(&mut self, session: Option<SessionId>, summary: OutputSummary) -> Step {
        let after_prompt = self.group.attempt().map(|attempt| attempt.prompt_id);
        self.received(session, summary, after_prompt)
    }

    /// Writes output that the server reads before it sends the running prompt.
    pub fn output_before(&mut self, summary: OutputSummary) -> Step {
        self.received(None, summary, None)
    }

    fn received(
        &mut self,
        session: Option<SessionId>,
        summary: OutputSummary,
        after_prompt: Option<u64>,
    ) -> Step {
        let kinds = Kinds::All("session/update".into());
        let lines = Lines { count: 1, kinds, text: "{}".to_owned().into() };
        let run = self.run();
        self.apply(Event::OutputReceived { run, lines, summary, session, after_prompt })
    }

    /// Writes a text that names its session.
    pub fn say_in(&mut self, session: &str, text: &str) -> Step {
        self.output_in(Some(SessionId(session.into())), says(text))
    }

    pub fn say(&mut self, text: &str) -> Step {
        self.output(says(text))
    }

    /// Reports `used` tokens of 100.
    pub fn usage(&mut self, used: u64) -> Step {
        let usage = Some(Usage { used, size: 100, cost: None });
        self.output(OutputSummary { usage, ..OutputSummary::default() })
    }

    pub fn answer(&mut self, stop_reason: StopReason) -> Step {
        self.reply(PromptReply::Stopped { stop_reason, tokens: None })
    }

    pub fn fail(&mut self, code: i64) -> Step {
        self.reply(PromptReply::Failed { code, kind: error_kind(code), message: "no".into() })
    }

    pub fn reply(&mut self, reply: PromptReply) -> Step {
        let id = self.group.attempt().unwrap().prompt_id;
        self.apply(Event::PromptAnswered { run: self.run(), id, reply, response: None })
    }

    /// Runs a whole turn that leaves `used` tokens in use.
    pub fn run_turn_to(&mut self, used: u64) -> Step {
        self.turn();
        self.say("done");
        self.usage(used);
        self.answer(StopReason::EndTurn)
    }

    pub fn signal(&mut self, source: Source, kind: SignalKind) -> Step {
        self.report(signal(source, kind, None, None))
    }

    pub fn report(&mut self, signal: CompactionSignal) -> Step {
        let (run, signal) = (self.run(), Box::new(signal));
        if signal.source == Source::HermesStderr {
            return self.apply(Event::StderrMatched { run, line: "line".into(), signal });
        }
        self.apply(Event::Signalled { run, signal })
    }

    pub fn provenance(&mut self, given: Provenance) -> Step {
        self.apply(Event::ProvenanceGiven { run: self.run(), provenance: given })
    }

    /// Answers the last lock request.
    pub fn lock(&mut self, answer: LockAnswer) -> Step {
        let (task, key) = self.requested_lock().expect("a lock was requested");
        self.apply(Event::LockAnswered { task, key, answer })
    }

    /// Returns the last lock request.
    pub fn requested_lock(&self) -> Option<(TaskId, SessionId)> {
        self.effects.iter().rev().find_map(|effect| match effect {
            Effect::AcquireLock { task, key } => Some((*task, key.clone())),
            _ => None,
        })
    }

    /// Returns the number of lock requests.
    pub fn lock_requests(&self) -> usize {
        self.effects.iter().filter(|effect| matches!(effect, Effect::AcquireLock { .. })).count()
    }

    pub fn open_session(&mut self, opened: Result<&str, &str>) -> Step {
        let id = self.group.attempt().and_then(|attempt| attempt.opening).unwrap_or_default();
        let opened = opened.map(|id| (SessionId(id.into()), None)).map_err(str::to_owned);
        self.apply(Event::SessionOpened { run: self.run(), id, opened })
    }

    /// Fires the timer that `which` selects.
    pub fn expire(&mut self, which: impl Fn(&Timer) -> bool) -> Step {
        let now = self.moment();
        let mut timers = self.group.timers(&self.settings.limits, now).map(|(timer, _)| timer);
        let timer = timers.find(which).expect("the timer runs");
        drop(timers);
        self.apply(Event::TimerFired(timer))
    }

    pub fn count(&self) -> u64 {
        self.group.state().compacting.count
    }

    pub fn segment(&self) -> u32 {
        self.group.state().segment
    }

    pub fn active(&self) -> bool {
        self.group.active_compaction().is_some()
    }

    /// Returns the status of each reported compaction.
    pub fn statuses(&self) -> Vec<CompactionStatus> {
        self.group.compactions().map(|compaction| compaction.status).collect()
    }

    /// Returns the state and the error code of the ended task.
    pub fn ended(&self, task: TaskId) -> Option<(TaskState, Option<String>)> {
        self.facts.iter().find_map(|fact| match fact {
            Fact::TaskEnded { task: ended, state, error, .. } if *ended == task => {
                Some((*state, error.as_ref().map(|error| error.code.clone())))
            }
            _ => None,
        })
    }

    /// Returns the text of an ended task.
    pub fn answer_text(&self, task: TaskId) -> Option<String> {
        self.facts.iter().find_map(|fact| match fact {
            Fact::TaskEnded { task: ended, record, .. } if *ended == task => {
                Some(record.ending().text.clone())
            }
            _ => None,
        })
    }

    /// Whether the ended turn has an empty answer.
    pub fn has_empty_answer(&self, task: TaskId) -> bool {
        self.facts.iter().any(|fact| match fact {
            Fact::TaskEnded { task: ended, findings, .. } => {
                *ended == task && findings.has_empty_answer
            }
            _ => false,
        })
    }

    /// Returns the last compaction that ended.
    pub fn last_ended(&self) -> Option<&Compaction> {
        self.facts.iter().rev().find_map(|fact| match fact {
            Fact::CompactionEnded(compaction) => Some(&**compaction),
            _ => None,
        })
    }

    /// Returns the automatic compaction, if one waits.
    pub fn ordered(&self) -> Option<TaskId> {
        self.group.waiting().find(|task| task.origin == Origin::Auto).map(|task| task.id)
    }
}

/// Returns effective settings that never retry.
pub fn effective_settings(
    auto_compact: f64,
    compaction: Option<CompactionOrder>,
) -> EffectiveSettings {
    EffectiveSettings {
        limits: LIMITS,
        auto_compact,
        retry: RetryPolicy::Never,
        on_interrupt: OnInterrupt::Continue,
        permissions: PermissionPolicy::default(),
        compaction,
        has_detectors: false,
        is_draining: false,
        has_permission_room: true,
    }
}

/// Returns the way in which a profile compacts.
pub fn order(strategy: Strategy, text: &str) -> CompactionOrder {
    CompactionOrder { strategy, text: text.into() }
}

/// Returns the kinds of the facts without their common prefix.
pub fn kinds(facts: &[Fact]) -> Vec<&'static str> {
    facts.iter().map(|fact| fact.kind().trim_start_matches("greenroom/")).collect()
}

fn says(text: &str) -> OutputSummary {
    OutputSummary {
        has_output: true,
        has_answer: true,
        text: text.into(),
        ..OutputSummary::default()
    }
}

pub fn blocks(text: &str) -> Json {
    Json::write(&[serde_json::json!({ "type": "text", "text": text })]).unwrap()
}

pub fn acquired() -> LockAnswer {
    LockAnswer::Acquired { holder: "we".into(), token: 7 }
}

pub fn busy() -> LockAnswer {
    LockAnswer::Busy { holder: "they".into() }
}

pub fn signal(
    source: Source,
    kind: SignalKind,
    before: Option<&str>,
    either: Option<&str>,
) -> CompactionSignal {
    let lineage = Lineage {
        before: before.map(Into::into),
        after: None,
        either: either.map(Into::into),
        given: either.map(|name| Json::write(&serde_json::json!({ "name": name })).unwrap()),
    };
    CompactionSignal { source, kind, key: None, lineage, details: Details::default() }
}

pub fn hermes(current: &str, previous: Option<&str>, compacted: bool) -> Provenance {
    Provenance {
        current: current.into(),
        previous: previous.map(Into::into),
        compacted,
        given: Json::write(&current).unwrap(),
    }
}
