//! Rules that come from recordings of real agents (RA), each as one short test.

use greenroom_core::{
    CompactionOrder, CompactionSignal, CompactionStatus, Continuity, Details, Effect,
    EffectiveSettings, EndReason, Event, Fact, FrameKind, Group, Json, Kinds, Limits, Lineage,
    Lines, LockAnswer, Now, OnInterrupt, Origin, OutputSummary, PermissionPolicy, PromptReply,
    Provenance, RetryPolicy, RunId, SessionId, Settings, SignalKind, Source, StopReason, Strategy,
    Task, TaskId, TaskState, Usage, Work,
};
use uuid::Uuid;

const LIMITS: Limits = Limits {
    turn_ms: 1_000,
    compaction_ms: 1_000,
    idle_ms: 1_000,
    permission_ms: 1_000,
    retry_base_ms: 1_000,
    queue_max: 9,
    queue_bytes_max: 999,
};

/// A group whose agent is always ready.
struct Driver {
    group: Group,
    fresh: u128,
    facts: Vec<Fact>,
    /// The provenance that the run answers when it opens its session.
    provenance: Option<Provenance>,
}

impl Driver {
    fn new() -> Self {
        let group = Group::new(Settings::default());
        Self { group, fresh: 0, facts: Vec::new(), provenance: None }
    }

    fn run(&self) -> RunId {
        self.group.run().unwrap().id
    }

    fn apply(&mut self, event: Event) {
        let settings = EffectiveSettings {
            limits: LIMITS,
            auto_compact: 0.0,
            retry: RetryPolicy::Never,
            on_interrupt: OnInterrupt::Auto,
            permissions: PermissionPolicy::default(),
            compaction: Some(CompactionOrder { strategy: Strategy::Command, text: "/c".into() }),
            has_detectors: false,
        };
        let mut ids = self.fresh;
        let mut fresh = || {
            ids += 1;
            Uuid::from_u128(ids)
        };
        let step = self.group.apply(event, Now::default(), &settings, &mut fresh).unwrap();
        self.fresh = ids;
        self.facts.extend(step.facts.into_iter().map(|recorded| recorded.fact));
        for effect in step.effects {
            match effect {
                Effect::Launch { run, session } => self.apply(Event::AgentReady {
                    run,
                    pid: 1,
                    continuity: session.map_or(Continuity::New, |_| Continuity::Loaded),
                    session: SessionId("a".into()),
                    provenance: self.provenance.clone(),
                }),
                Effect::AcquireLock { task, key } => {
                    let answer = LockAnswer::Acquired { holder: "me".into(), token: 1 };
                    self.apply(Event::LockAnswered { task, key, answer });
                }
                _ => {}
            }
        }
    }

    fn prompt(&mut self, compaction: bool) {
        self.fresh += 1;
        let prompt = Json::parse("[]".into()).unwrap();
        let work = match compaction {
            true => Work::Compaction { focus: None, prompt, strategy: Strategy::Command },
            false => Work::Turn { prompt },
        };
        let task = Task::new(TaskId(Uuid::from_u128(self.fresh)), work, Origin::Api);
        self.apply(Event::Submitted(task.into()));
        self.apply(Event::SlotGranted);
    }

    fn say(&mut self, summary: OutputSummary) {
        let kinds = Kinds::All(FrameKind::from("session/update"));
        let lines = Lines { count: 1, kinds, text: String::from("{}").into() };
        self.apply(Event::OutputReceived { run: self.run(), lines, summary, session: None });
    }

    fn text(&mut self, text: &str) {
        self.say(OutputSummary {
            has_output: true,
            has_answer: true,
            text: text.into(),
            ..OutputSummary::default()
        });
    }

    fn usage(&mut self, used: u64) {
        self.say(OutputSummary {
            usage: Some(Usage { used, size: 100, cost: None }),
            ..OutputSummary::default()
        });
    }

    fn signal(&mut self, kind: SignalKind, error: Option<&str>) {
        let details = Details { error: error.map(str::to_owned), ..Details::default() };
        let (key, lineage) = (Some("c".into()), Lineage::default());
        let signal = CompactionSignal { source: Source::Acp, kind, key, lineage, details };
        self.apply(Event::Signalled { run: self.run(), signal: signal.into() });
    }

    /// Answers the prompt, and returns the ended task.
    fn answer(&mut self) -> Task {
        let (run, id) = (self.run(), self.group.attempt().unwrap().prompt_id);
        let reply = PromptReply::Stopped { stop_reason: StopReason::EndTurn, tokens: None };
        self.apply(Event::PromptAnswered { run, id, reply });
        let ended = self.facts.iter().rev().find_map(|fact| match fact {
            Fact::TaskEnded { record, .. } => Some(Task::clone(record)),
            _ => None,
        });
        ended.unwrap()
    }
}

/// Some agents write why a compaction failed, after their warnings, and give no answer.
#[test]
fn the_reason_of_a_failed_compaction_is_no_answer() {
    #[rustfmt::skip]
    let cases = [
        ("the reason alone",   &["no model"][..],                    Some("no model"), true),
        ("after a warning",    &["Warning: x.\n\n", "no model\n\n"], Some("no model"), true),
        ("an answer after it", &["no model", "42"],                  Some("no model"), false),
        ("it gives no reason", &["42"],                              Some(""),         false),
        ("no reason",          &["42"],                              None,             false),
    ];
    for (name, texts, error, is_empty) in cases {
        let mut driver = Driver::new();
        driver.prompt(false);
        driver.signal(SignalKind::Started, None);
        driver.signal(SignalKind::Failed, error);
        texts.iter().for_each(|text| driver.text(text));
        let task = driver.answer();
        assert_eq!(task.state(), TaskState::Completed, "{name}");
        assert_eq!(task.ending().has_empty_answer, is_empty, "{name}");
    }
}

/// Some agents answer a failed compaction as if it had completed, with a usage of zero.
#[test]
fn zero_usage_after_a_compaction_means_it_failed() {
    #[rustfmt::skip]
    let cases = [
        ("nothing in use", Some(0), CompactionStatus::Failed,    TaskState::Failed,    0),
        ("a summary",      Some(1), CompactionStatus::Completed, TaskState::Completed, 1),
        ("not measured",   None,    CompactionStatus::Completed, TaskState::Completed, 1),
        ("freed nothing",  Some(9), CompactionStatus::Noop,      TaskState::Skipped,   0),
    ];
    for (name, after, status, state, count) in cases {
        let mut driver = Driver::new();
        driver.prompt(false);
        driver.usage(9);
        driver.answer();
        driver.prompt(true);
        after.into_iter().for_each(|used| driver.usage(used));
        let task = driver.answer();
        let statuses: Vec<_> =
            driver.group.compactions().map(|compaction| compaction.status).collect();
        assert_eq!((statuses, task.state()), (vec![status], state), "{name}");
        assert_eq!(driver.group.state().compacting.count, count, "{name}");
    }
}

/// AM-13: an agent may restore its own session from before a compaction if a client loads the id
/// that ACP knows: another context under the same id.
#[test]
fn another_own_session_under_the_same_id_opens_a_segment() {
    let of = |current: &str| {
        let (current, given) = (current.to_owned(), Json::parse("{}".into()).unwrap());
        Provenance { current, previous: None, compacted: false, given }
    };
    #[rustfmt::skip]
    let cases = [
        ("the same",    Some(of("a")), Some(of("a")), vec![]),
        ("another",     Some(of("a")), Some(of("b")), vec![EndReason::Reset]),
        ("none given",  Some(of("a")), None,          vec![]),
        ("first given", None,          Some(of("a")), vec![]),
    ];
    for (name, first, second, expected) in cases {
        let mut driver = Driver::new();
        driver.provenance = first;
        driver.prompt(false);
        driver.answer();
        let exit = greenroom_core::Exit::unseen(greenroom_core::ExitReason::Exited, "");
        driver.apply(Event::AgentExited { run: driver.run(), exit });
        driver.provenance = second;
        driver.prompt(false);
        let ended = driver.facts.iter().filter_map(|fact| match fact {
            Fact::SegmentEnded { end_reason, .. } => Some(*end_reason),
            _ => None,
        });
        assert_eq!(ended.collect::<Vec<_>>(), expected, "{name}");
    }
}
