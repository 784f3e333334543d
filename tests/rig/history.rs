//! The history of a run for the checker: every request and answer, the frames of the readers, the
//! agents' journal, and the server's final state.

use std::collections::BTreeMap;

use greenroom_core::{InvalidId, Place};
use greenroom_test_support::server::TERMINAL;
use greenroom_testing::invariants::LogFrame;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use crate::Result;

/// A request and its answer.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    /// The server's life in which it was sent, from 1.
    pub life: usize,
    /// When, in microseconds since the run began.
    pub sent: u64,
    /// When the answer came, or the caller gave up.
    pub answered: u64,
    pub method: &'static str,
    pub path: String,
    /// The idempotency key.
    pub key: Option<String>,
    pub body: Value,
    /// 0 if no answer came: the request may or may not have been served.
    pub status: u16,
    pub answer: Value,
}

impl Exchange {
    /// The id of the task that the server promised: the request submitted one, and got 2xx.
    pub fn accepted(&self) -> Option<&str> {
        let asks = ["/turns", "/compactions", "/retry"];
        let path = self.path.split('?').next().unwrap_or_default();
        let asked = self.method == "POST" && asks.iter().any(|end| path.ends_with(end));
        (asked && (200..300).contains(&self.status)).then(|| self.answer["id"].as_str())?
    }
}

/// One frame as the server sent it.
#[derive(Clone, Debug)]
pub struct Frame {
    pub seq: u64,
    pub segment: u32,
    pub kind: String,
    pub run: Option<String>,
    pub task: Option<String>,
    pub payload: Value,
    /// The payload, byte for byte.
    pub payload_text: String,
    /// The frame, byte for byte.
    pub text: String,
}

#[derive(Deserialize)]
struct Shape {
    seq: u64,
    segment: u32,
    kind: String,
    run: Option<String>,
    task: Option<String>,
    payload: Box<RawValue>,
}

impl Frame {
    /// Reads a frame.
    ///
    /// # Errors
    ///
    /// The text is no frame.
    pub fn read(text: &str) -> Result<Self> {
        let Shape { seq, segment, kind, run, task, payload } =
            serde_json::from_str(text).map_err(|err| format!("no frame ({err}): {text:?}"))?;
        let payload_text = payload.get().to_owned();
        // A payload that nests too deep for a value is compared by its bytes alone.
        let payload = serde_json::from_str(&payload_text).unwrap_or_default();
        let text = text.to_owned();
        Ok(Self { seq, segment, kind, run, task, payload, payload_text, text })
    }

    /// Returns the frame as the invariants of a log take it.
    ///
    /// # Errors
    ///
    /// The id of its run or its task is none.
    pub fn in_log(&self) -> Result<LogFrame<'_>> {
        let run = self.run.as_deref().map(str::parse).transpose();
        let task = self.task.as_deref().map(str::parse).transpose();
        let wrong = |err: InvalidId| format!("frame {}: {err}", self.seq);
        let (run, task) = (run.map_err(wrong)?, task.map_err(wrong)?);
        let place = Place { seq: self.seq, segment: self.segment, run, task };
        Ok(LogFrame { place, kind: &self.kind, payload: &self.payload_text })
    }

    /// Whether the frame is this fact of greenroom.
    pub fn is(&self, fact: &str) -> bool {
        self.kind.strip_prefix("greenroom/") == Some(fact)
    }

    /// Returns the task that the fact names.
    pub fn names(&self) -> &str {
        self.payload["task"].as_str().unwrap_or_default()
    }
}

/// The server's final state of one group.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// When its frames were read, in microseconds since the run began.
    pub read_at: u64,
    pub shown: Value,
    pub tasks: Vec<Value>,
    pub frames: Vec<Frame>,
    pub compactions: Vec<Value>,
    pub runs: Vec<Value>,
    /// Its digest.
    pub digest: Value,
    /// Its runs' digests.
    pub run_digests: Vec<Value>,
}

/// A frame that a reader received.
#[derive(Clone, Debug)]
pub struct Seen {
    pub life: usize,
    /// When, in microseconds since the run began.
    pub at: u64,
    pub group: String,
    pub seq: u64,
    pub text: String,
}

/// The server's tasks after one of its starts.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    pub life: usize,
    /// When the reading began, in microseconds since the run began.
    pub at: u64,
    /// When the reading ended.
    pub until: u64,
    /// By group.
    pub tasks: BTreeMap<String, Vec<Value>>,
}

/// What a server showed of a group as soon as it listened.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    pub life: usize,
    pub shown: Value,
    /// Null if it was refused, as the lists are then empty: the group was not recovered yet.
    pub snapshot: Value,
    pub tasks: Vec<Value>,
    pub runs: Vec<Value>,
}

/// An injected fault, and the proof of its effect.
#[derive(Clone, Debug)]
pub struct Injected {
    pub life: usize,
    pub fault: String,
    /// The proof of its effect, if there is one.
    pub proof: Option<String>,
}

/// The whole history.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub exchanges: Vec<Exchange>,
    pub seen: Vec<Seen>,
    pub audits: Vec<Audit>,
    /// What each server showed first.
    pub sights: Vec<Sight>,
    /// The agents' journal, with the rig's own `server-start` and `server-end` between.
    pub journal: Vec<Value>,
    pub groups: BTreeMap<String, Group>,
    pub injected: Vec<Injected>,
    /// The findings of `greenroom verify` and SQLite's own check, by life.
    pub damage: Vec<String>,
    /// Processes that outlived their run or their server by more than 5 s (I10).
    pub orphans: Vec<String>,
    /// Groups that did not become idle, and servers that did not start or end (I12).
    pub stuck: Vec<String>,
    /// The group that must work regardless of the others: its name, and the stop reasons that the
    /// faults of this run excuse (I15).
    pub witness: Option<(String, Vec<&'static str>)>,
    /// The most resident memory of a server, in bytes (I11).
    pub memory: u64,
    /// Any other failure that the rig saw.
    pub wrong: Vec<String>,
}

/// Whether a task, as the server showed it, is over.
pub fn is_over(task: &Value) -> bool {
    task["state"].as_str().is_some_and(|state| TERMINAL.contains(&state))
}

/// Returns a text field of a value, empty if there is none.
pub fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}
