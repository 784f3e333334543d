//! What recordings of real agents taught the rules (REAL-AGENTS), each as one short scene.
#![allow(clippy::unwrap_used)]

use greenroom_core::{
    CompactionOrder, CompactionStatus, Continuity, Details, Effect, EndReason, Event, Finding,
    Fold, FrameKind, Group, Json, Kinds, Lineage, Lines, LockAnswer, OnInterrupt, Origin, Patience,
    PermissionPolicy, PromptReply, Provenance, Retry, RunId, SessionId, Settings, Sign, Signal,
    Source, StopReason, Strategy, Task, TaskId, TaskState, Terms, Usage, Work, Write, lock::Now,
};
use uuid::Uuid;

const LIMITS: Patience = Patience {
    turn_ms: 1_000,
    compaction_ms: 1_000,
    idle_ms: 1_000,
    permission_ms: 1_000,
    retry_base_ms: 1_000,
    queue_max: 9,
    queue_bytes_max: 999,
};

/// A group whose agent is ready for what it is asked.
struct Play {
    group: Group,
    fresh: u128,
    facts: Vec<Write>,
    /// What the run answers when it opens its session.
    provenance: Option<Provenance>,
}

impl Play {
    fn new() -> Self {
        let group = Group::new(Settings::default());
        Self { group, fresh: 0, facts: Vec::new(), provenance: None }
    }

    fn run(&self) -> RunId {
        self.group.run().unwrap().id
    }

    fn apply(&mut self, event: Event) {
        let terms = Terms {
            patience: LIMITS,
            auto_compact: 0.0,
            retry: Retry::Never,
            on_interrupt: OnInterrupt::Auto,
            permissions: PermissionPolicy::default(),
            compaction: Some(CompactionOrder { strategy: Strategy::Command, text: "/c".into() }),
            listens: false,
        };
        let mut ids = self.fresh;
        let mut fresh = || {
            ids += 1;
            Uuid::from_u128(ids)
        };
        let step = self.group.apply(event, Now::default(), &terms, &mut fresh).unwrap();
        self.fresh = ids;
        self.facts.extend(step.writes);
        for effect in step.effects {
            match effect {
                Effect::Launch { run, session } => self.apply(Event::AgentReady {
                    run,
                    pid: 1,
                    continuity: session.map_or(Continuity::New, |_| Continuity::Loaded),
                    session: SessionId("a".into()),
                    provenance: self.provenance.clone(),
                }),
                Effect::TakeLock { task, key } => {
                    let answer = LockAnswer::Taken { holder: "me".into(), token: 1 };
                    self.apply(Event::LockAnswered { task, key, answer });
                }
                _ => {}
            }
        }
    }

    fn prompt(&mut self, compacts: bool) {
        self.fresh += 1;
        let prompt = Json::parse("[]".into()).unwrap();
        let work = match compacts {
            true => Work::Compaction { focus: None, prompt, strategy: Strategy::Command },
            false => Work::Turn { prompt },
        };
        let task = Task::new(TaskId(Uuid::from_u128(self.fresh)), work, Origin::Api);
        self.apply(Event::Submitted(task.into()));
        self.apply(Event::SlotGranted);
    }

    fn say(&mut self, fold: Fold) {
        let kinds = Kinds::All(FrameKind::from("session/update"));
        let lines = Lines { count: 1, kinds, text: String::from("{}").into() };
        self.apply(Event::AgentSaid { run: self.run(), lines, fold });
    }

    fn text(&mut self, text: &str) {
        self.say(Fold { output: true, answer: true, text: text.into(), ..Fold::default() });
    }

    fn usage(&mut self, used: u64) {
        self.say(Fold { usage: Some(Usage { used, size: 100, cost: None }), ..Fold::default() });
    }

    fn signal(&mut self, sign: Sign, error: Option<&str>) {
        let details = Details { error: error.map(str::to_owned), ..Details::default() };
        let (key, lineage) = (Some("c".into()), Lineage::default());
        let signal = Signal { source: Source::Acp, sign, key, lineage, details };
        self.apply(Event::Signalled { run: self.run(), signal: signal.into() });
    }

    /// The agent answers, and the task is as it ended.
    fn answer(&mut self) -> Task {
        let (run, id) = (self.run(), self.group.turn().unwrap().prompt_id);
        let reply = PromptReply::Stopped { stop_reason: StopReason::EndTurn, tokens: None };
        self.apply(Event::PromptAnswered { run, id, reply });
        let ended = self.facts.iter().rev().find_map(|fact| match fact {
            Write::TaskEnded { record, .. } => Some(Task::clone(record)),
            _ => None,
        });
        ended.unwrap()
    }
}

/// codex tells why a compaction failed, behind whatever it warns of, and does not answer.
#[test]
fn an_excuse_is_no_answer() {
    #[rustfmt::skip]
    let cases = [
        ("the excuse alone",    &["no model"][..],                    Some("no model"), true),
        ("behind a warning",    &["Warning: x.\n\n", "no model\n\n"], Some("no model"), true),
        ("an answer behind it", &["no model", "42"],                  Some("no model"), false),
        ("it says nothing why", &["42"],                              Some(""),         false),
        ("no reason",           &["42"],                              None,             false),
    ];
    for (name, texts, error, is_empty) in cases {
        let mut play = Play::new();
        play.prompt(false);
        play.signal(Sign::Started, None);
        play.signal(Sign::Failed, error);
        texts.iter().for_each(|text| play.text(text));
        let task = play.answer();
        assert_eq!(task.state, TaskState::Completed, "{name}");
        assert_eq!(task.ending.findings == [Finding::EmptyAnswer], is_empty, "{name}");
    }
}

/// opencode answers a compaction that failed as if it were done, with a usage of nothing.
#[test]
fn no_context_is_empty() {
    #[rustfmt::skip]
    let cases = [
        ("nothing in use", Some(0), CompactionStatus::Failed,    TaskState::Failed,    0),
        ("a summary",      Some(1), CompactionStatus::Completed, TaskState::Completed, 1),
        ("not measured",   None,    CompactionStatus::Completed, TaskState::Completed, 1),
        ("freed nothing",  Some(9), CompactionStatus::Noop,      TaskState::Skipped,   0),
    ];
    for (name, after, status, state, count) in cases {
        let mut play = Play::new();
        play.prompt(false);
        play.usage(9);
        play.answer();
        play.prompt(true);
        after.into_iter().for_each(|used| play.usage(used));
        let task = play.answer();
        let told: Vec<_> = play.group.compactions().map(|own| own.status).collect();
        assert_eq!((told, task.state), (vec![status], state), "{name}");
        assert_eq!(play.group.head().compacting.count, count, "{name}");
    }
}

/// AM-13: hermes restores what it compacted if the id that ACP knows is loaded: another context
/// under the same id.
#[test]
fn another_session_behind_the_same_id_opens_a_segment() {
    let of = |current: &str| {
        let (current, given) = (current.to_owned(), Json::parse("{}".into()).unwrap());
        Provenance { current, previous: None, compacted: false, given }
    };
    #[rustfmt::skip]
    let cases = [
        ("the same",    Some(of("a")), Some(of("a")), vec![]),
        ("another",     Some(of("a")), Some(of("b")), vec![EndReason::Reset]),
        ("not told",    Some(of("a")), None,          vec![]),
        ("first told",  None,          Some(of("a")), vec![]),
    ];
    for (name, first, second, expected) in cases {
        let mut play = Play::new();
        play.provenance = first;
        play.prompt(false);
        play.answer();
        let exit = greenroom_core::Exit::unseen(greenroom_core::ExitReason::Exited, "");
        play.apply(Event::AgentExited { run: play.run(), exit });
        play.provenance = second;
        play.prompt(false);
        let ended = play.facts.iter().filter_map(|fact| match fact {
            Write::SegmentEnded { end_reason, .. } => Some(*end_reason),
            _ => None,
        });
        assert_eq!(ended.collect::<Vec<_>>(), expected, "{name}");
    }
}
