//! The path of frames within greenroom, on one thread and without processes: lines are parsed, the
//! rules decide, facts are packed, projected into digests, and committed to a database on disk.

use greenroom_actors::{
    acp::{self, Message},
    projections::digest,
    storage::{
        GroupCommit, GroupSummary, Store as _,
        sqlite::{Database, SqliteStore},
    },
    transcript::frame::pack,
};
use greenroom_core::{
    BootId, Continuity, Digests, EffectiveSettings, Event, Group, Json, Kinds, Limits, Lines, Now,
    OnInterrupt, Origin, OutputSummary, PermissionPolicy, PromptReply, RetryPolicy, RunId,
    SessionId, Settings, Step, StopReason, Task, TaskId, Timestamp, Uptime, Work as Asked,
};
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;
use uuid::Uuid;

use crate::Result;

/// The lines in one report of a streaming agent: the size of its batches under load.
const BATCH: usize = 1_024;
const LINE_BYTES: usize = 200;
/// A response to a prompt, as agents write it.
const RESPONSE: &str = r#"{"jsonrpc":"2.0","id":7,"result":{"stopReason":"end_turn"}}"#;
const MS: u64 = 3_600_000;

/// The measured work.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Chunks of one turn; counted in frames.
    Stream,
    /// Turns that are answered at once; counted in turns.
    Turns,
}

/// One group and its database.
pub struct FramePath {
    _dir: TempDir,
    _database: Database,
    store: SqliteStore,
    group: Group,
    digests: Option<Digests>,
    terms: EffectiveSettings,
    run: RunId,
    ids: u128,
    at: i64,
    batch: Vec<String>,
}

impl FramePath {
    /// Creates a group whose agent is ready, with or without digests.
    pub fn start(digests: bool) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let database = Database::open(&dir.path().join("greenroom.db"))?;
        let store = database.store()?;
        let chunk = r#"{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s","update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":""}}}}"#;
        let text = "x".repeat(LINE_BYTES - chunk.len());
        let chunk = chunk.replace(r#""text":"""#, &format!(r#""text":"{text}""#));
        let mut path = Self {
            _dir: dir,
            _database: database,
            store,
            group: Group::new(Settings { agent: "bench".into(), ..Settings::default() }),
            digests: digests.then(Digests::default),
            terms: terms(),
            run: RunId(Uuid::nil()),
            ids: 0,
            at: 0,
            batch: vec![chunk; BATCH],
        };
        path.submit()?;
        path.run = path.group.run().ok_or("no run was launched")?.id;
        path.take(vec![Event::AgentReady {
            run: path.run,
            pid: 1,
            session: SessionId("s".into()),
            continuity: Continuity::New,
            provenance: None,
            is_forgetful: false,
            prompts: None,
            loss: None,
        }])?;
        path.answer()?;
        Ok(path)
    }

    /// Returns the processor time of one frame, or one turn, in seconds.
    pub fn cpu_seconds(&mut self, work: Work, count: usize) -> Result<f64> {
        let start = cpu_now();
        match work {
            Work::Turns => {
                for _ in 0..count {
                    self.submit()?;
                    self.answer()?;
                }
                Ok((cpu_now() - start) / count as f64)
            }
            Work::Stream => {
                self.submit()?;
                let batches = count.div_ceil(BATCH);
                for _ in 0..batches {
                    let said = self.hear()?;
                    self.take(vec![said])?;
                }
                self.answer()?;
                Ok((cpu_now() - start) / (batches * BATCH) as f64)
            }
        }
    }

    fn hear(&self) -> Result<Event> {
        let mut fold = OutputSummary::default();
        for line in &self.batch {
            let Ok(Message::Notification(notification)) = acp::parse(line) else {
                return Err("no notice".into());
            };
            fold.join(notification.summary);
        }
        let kinds = Kinds::All("session/update".into());
        let lines = Lines { count: BATCH as u64, kinds, text: self.batch.join("\n").into() };
        let (session, after_prompt) = (None, Some(u64::MAX));
        Ok(Event::OutputReceived { run: self.run, lines, summary: fold, session, after_prompt })
    }

    fn submit(&mut self) -> Result<()> {
        let task = TaskId(self.fresh());
        let work = Asked::Turn { prompt: acp::text_prompt("empty")? };
        let submitted = Event::Submitted(Box::new(Task::new(task, work, Origin::Api)));
        self.take(vec![submitted, Event::SlotGranted])
    }

    fn answer(&mut self) -> Result<()> {
        let id = self.group.attempt().ok_or("no turn runs")?.prompt_id;
        let reply = PromptReply::Stopped { stop_reason: StopReason::EndTurn, tokens: None };
        self.take(vec![Event::PromptAnswered {
            run: self.run,
            id,
            reply,
            response: Json::parse(RESPONSE.into()).ok(),
        }])
    }

    /// Handles an event as a group's actor does: one commit for all its facts.
    fn take(&mut self, events: Vec<Event>) -> Result<()> {
        self.at += 1;
        let boot = BootId(Uuid::nil());
        let now = Now { wall: Timestamp(self.at), up: Uptime { boot, ms: self.at.unsigned_abs() } };
        let mut step = Step::default();
        for event in events {
            let mut fresh = || {
                self.ids += 1;
                Uuid::from_u128(self.ids)
            };
            step.extend(self.group.apply(event, now, &self.terms, &mut fresh)?);
        }
        let blocks = pack(now.wall, &step.facts);
        let digests = self.digests.as_mut();
        let digests = digests.and_then(|digests| digest::project(digests, &step.facts, now.wall));
        let facts = GroupCommit {
            group: 1,
            epoch: 1,
            at: now.wall,
            summary: GroupSummary::of("bench".parse()?, &self.group),
            facts: step.facts,
            blocks,
            digests,
            key: None,
        };
        for answer in self.store.commit(&[facts])? {
            answer?;
        }
        Ok(())
    }

    fn fresh(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(self.ids)
    }
}

fn cpu_now() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

fn terms() -> EffectiveSettings {
    EffectiveSettings {
        limits: Limits {
            turn_ms: MS,
            compaction_ms: MS,
            idle_ms: MS,
            permission_ms: MS,
            retry_base_ms: MS,
            queue_max: 10,
            queue_bytes_max: 1 << 20,
        },
        auto_compact: 0.0,
        retry: RetryPolicy::Never,
        on_interrupt: OnInterrupt::Auto,
        permissions: PermissionPolicy::default(),
        compaction: None,
        has_detectors: false,
        is_draining: false,
        has_permission_room: true,
    }
}
