//! A group that is led by hand, event by event.
#![allow(dead_code, reason = "each test crate that includes this module uses a part of it")]

use greenroom_core::{
    Compaction, CompactionOrder, CompactionStatus, Continuity, Details, Effect, Event, Exit,
    ExitReason, Expiry, Fold, Group, Json, Kinds, Lineage, Lines, LockAnswer, OnInterrupt, Origin,
    Patience, PermissionPolicy, PromptReply, Provenance, Retry, RunId, SessionId, Settings, Sign,
    Signal, Source, Step, StopReason, Strategy, Task, TaskId, TaskState, Terms, Timestamp, Usage,
    Work, Write,
    lock::{BootId, Now, Uptime},
};
use uuid::Uuid;

pub const PATIENCE: Patience = Patience {
    turn_ms: 60_000,
    compaction_ms: 3_000,
    idle_ms: 5_000,
    permission_ms: 20_000,
    retry_base_ms: 5_000,
    queue_max: 9,
    queue_bytes_max: 9_999,
};

/// A group, its clock and its terms; and all that it stated and ordered.
pub struct Hand {
    pub group: Group,
    pub terms: Terms,
    pub now: Timestamp,
    /// The clock that nobody sets.
    pub up_ms: u64,
    /// Which boot it counts from.
    pub boot: u128,
    pub writes: Vec<Write>,
    pub effects: Vec<Effect>,
    ids: u128,
}

impl Hand {
    pub fn new() -> Self {
        let compaction = Some(order(Strategy::Command, "/compact"));
        Self {
            group: Group::new(Settings::default()),
            terms: terms(0.8, compaction),
            now: Timestamp(1_000_000),
            up_ms: 1_000,
            boot: 1,
            writes: Vec::new(),
            effects: Vec::new(),
            ids: 0,
        }
    }

    /// A group whose agent is ready, with a first turn in flight.
    pub fn in_turn() -> Self {
        let mut hand = Self::new();
        hand.turn();
        hand.ready("s", None);
        hand.forget();
        hand
    }

    /// A group whose agent is ready and idle.
    pub fn idle() -> Self {
        Self::in_turn().settled()
    }

    /// Likewise, and its profile listens to more than ACP.
    pub fn listening() -> Self {
        let mut hand = Self::new();
        hand.terms.listens = true;
        hand.turn();
        hand.ready("s", None);
        hand.settled()
    }

    fn settled(mut self) -> Self {
        self.say("hello");
        self.answer(StopReason::EndTurn);
        self.forget();
        self
    }

    /// A group that runs a compaction under its lock.
    pub fn compacting(strategy: Strategy) -> Self {
        Self::compacting_in(Self::idle(), strategy)
    }

    pub fn compacting_in(mut hand: Self, strategy: Strategy) -> Self {
        hand.compact(strategy);
        hand.lock(taken());
        hand.grant();
        hand.forget();
        hand
    }

    pub fn forget(&mut self) {
        self.writes.clear();
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
        let step = self.group.apply(event, now, &self.terms, &mut fresh).unwrap();
        self.writes.extend(step.writes.iter().cloned());
        self.effects.extend(step.effects.iter().cloned());
        step
    }

    fn submit(&mut self, work: Work) -> TaskId {
        self.ids += 1;
        let task = TaskId(Uuid::from_u128(self.ids));
        self.apply(Event::Submitted(Box::new(Task::new(task, work, Origin::Api))));
        task
    }

    /// Asks for a turn and grants it the slot.
    pub fn turn(&mut self) -> TaskId {
        let task = self.queue_turn();
        self.grant();
        task
    }

    pub fn queue_turn(&mut self) -> TaskId {
        self.submit(Work::Turn { prompt: blocks("do it") })
    }

    /// Asks for a compaction of a profile that does it so.
    pub fn compact(&mut self, strategy: Strategy) -> TaskId {
        self.terms.compaction = Some(order(strategy, "/compact"));
        self.compact_on(None)
    }

    /// Asks for a compaction by the profile in force.
    pub fn compact_on(&mut self, focus: Option<&str>) -> TaskId {
        let order = self.terms.compaction.as_ref().expect("a way to compact");
        let work = order.work(focus.map(Into::into));
        self.submit(work)
    }

    /// A caller names another profile, or another directory.
    pub fn configure(&mut self, agent: &str, cwd: Option<&str>) -> Step {
        let cwd = cwd.map(str::to_owned);
        self.apply(Event::Configured(Settings { agent: agent.into(), cwd, ..Settings::default() }))
    }

    /// The agent's process ends.
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
        let (run, session) = (self.run(), SessionId(session.into()));
        let continuity =
            if self.group.head().session.is_some() { Continuity::Loaded } else { Continuity::New };
        self.apply(Event::AgentReady { run, pid: 1, session, continuity, provenance })
    }

    fn said(&mut self, fold: Fold) -> Step {
        let kinds = Kinds::All("session/update".into());
        let lines = Lines { count: 1, kinds, text: "{}".to_owned().into() };
        self.apply(Event::AgentSaid { run: self.run(), lines, fold })
    }

    pub fn say(&mut self, text: &str) -> Step {
        self.said(Fold { output: true, answer: true, text: text.into(), ..Fold::default() })
    }

    /// Reports so many tokens in use, of 100.
    pub fn usage(&mut self, used: u64) -> Step {
        let usage = Some(Usage { used, size: 100, cost: None });
        self.said(Fold { usage, ..Fold::default() })
    }

    pub fn answer(&mut self, stop_reason: StopReason) -> Step {
        self.reply(PromptReply::Stopped { stop_reason, tokens: None })
    }

    pub fn fail(&mut self, code: i64) -> Step {
        self.reply(PromptReply::Failed { code, message: "no".into() })
    }

    pub fn reply(&mut self, reply: PromptReply) -> Step {
        let id = self.group.turn().unwrap().prompt_id;
        self.apply(Event::PromptAnswered { run: self.run(), id, reply })
    }

    /// A whole turn that leaves so many tokens in use.
    pub fn turn_to(&mut self, used: u64) -> Step {
        self.turn();
        self.say("done");
        self.usage(used);
        self.answer(StopReason::EndTurn)
    }

    pub fn signal(&mut self, source: Source, sign: Sign) -> Step {
        self.tell(signal(source, sign, None, None))
    }

    pub fn tell(&mut self, signal: Signal) -> Step {
        let (run, signal) = (self.run(), Box::new(signal));
        if signal.source == Source::HermesStderr {
            return self.apply(Event::StderrMatched { run, line: "line".into(), signal });
        }
        self.apply(Event::Signalled { run, signal })
    }

    pub fn provenance(&mut self, given: Provenance) -> Step {
        self.apply(Event::ProvenanceGiven { run: self.run(), provenance: given })
    }

    pub fn name(&mut self, session: &str) -> Step {
        self.apply(Event::SessionNamed { run: self.run(), session: SessionId(session.into()) })
    }

    /// Answers the lock that was asked for last.
    pub fn lock(&mut self, answer: LockAnswer) -> Step {
        let (task, key) = self.asked().expect("a lock was asked for");
        self.apply(Event::LockAnswered { task, key, answer })
    }

    /// The lock that was asked for last.
    pub fn asked(&self) -> Option<(TaskId, SessionId)> {
        self.effects.iter().rev().find_map(|effect| match effect {
            Effect::TakeLock { task, key } => Some((*task, key.clone())),
            _ => None,
        })
    }

    /// How often a lock was asked for.
    pub fn asks(&self) -> usize {
        self.effects.iter().filter(|effect| matches!(effect, Effect::TakeLock { .. })).count()
    }

    pub fn open(&mut self, opened: Result<&str, &str>) -> Step {
        let id = self.group.turn().and_then(|turn| turn.opening).unwrap_or_default();
        let opened = opened.map(|id| (SessionId(id.into()), None)).map_err(str::to_owned);
        self.apply(Event::SessionOpened { run: self.run(), id, opened })
    }

    /// Lets the bound that `which` picks run out.
    pub fn expire(&mut self, which: impl Fn(&Expiry) -> bool) -> Step {
        let now = self.moment();
        let mut bounds = self.group.patience(&self.terms.patience, now).map(|(expiry, _)| expiry);
        let expiry = bounds.find(which).expect("it is bounded");
        drop(bounds);
        self.apply(Event::Expired(expiry))
    }

    pub fn count(&self) -> u64 {
        self.group.head().compacting.count
    }

    pub fn segment(&self) -> u32 {
        self.group.head().segment
    }

    pub fn active(&self) -> bool {
        self.group.active_compaction().is_some()
    }

    /// Where the compactions stand that were told of.
    pub fn statuses(&self) -> Vec<CompactionStatus> {
        self.group.compactions().map(|own| own.status).collect()
    }

    /// How the task ended.
    pub fn ended(&self, task: TaskId) -> Option<(TaskState, Option<String>)> {
        self.writes.iter().find_map(|write| match write {
            Write::TaskEnded { task: own, state, error, .. } if *own == task => {
                Some((*state, error.as_ref().map(|error| error.code.clone())))
            }
            _ => None,
        })
    }

    /// The last compaction that ended.
    pub fn last_ended(&self) -> Option<&Compaction> {
        self.writes.iter().rev().find_map(|write| match write {
            Write::CompactionEnded(own) => Some(&**own),
            _ => None,
        })
    }

    /// The compaction that the group ordered by itself, if it waits.
    pub fn ordered(&self) -> Option<TaskId> {
        self.group.waiting().find(|task| task.origin == Origin::Auto).map(|task| task.id)
    }
}

/// What the settings and the profile come to, with nothing made again.
pub fn terms(auto_compact: f64, compaction: Option<CompactionOrder>) -> Terms {
    Terms {
        patience: PATIENCE,
        auto_compact,
        retry: Retry::Never,
        on_interrupt: OnInterrupt::Continue,
        permissions: PermissionPolicy::default(),
        compaction,
        listens: false,
    }
}

/// How a profile compacts.
pub fn order(strategy: Strategy, text: &str) -> CompactionOrder {
    CompactionOrder { strategy, text: text.into() }
}

/// What a step stated, without what the prefix is the same of.
pub fn kinds(writes: &[Write]) -> Vec<&'static str> {
    writes.iter().map(|write| write.kind().trim_start_matches("greenroom/")).collect()
}

pub fn blocks(text: &str) -> Json {
    Json::write(&[serde_json::json!({ "type": "text", "text": text })]).unwrap()
}

pub fn taken() -> LockAnswer {
    LockAnswer::Taken { holder: "we".into(), token: 7 }
}

pub fn held() -> LockAnswer {
    LockAnswer::Held { holder: "they".into() }
}

pub fn signal(source: Source, sign: Sign, before: Option<&str>, either: Option<&str>) -> Signal {
    let lineage =
        Lineage { before: before.map(Into::into), after: None, either: either.map(Into::into) };
    Signal { source, sign, key: None, lineage, details: Details::default() }
}

pub fn hermes(current: &str, previous: Option<&str>, compacted: bool) -> Provenance {
    Provenance {
        current: current.into(),
        previous: previous.map(Into::into),
        compacted,
        given: Json::write(&current).unwrap(),
    }
}
