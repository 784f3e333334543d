//! What a run leaves to be judged: every request and answer, what readers saw, the agents'
//! journal, and all that the server has in the end.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use crate::Result;

/// A request and what came of it.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    /// In which of the server's lives it was sent, from 1.
    pub life: usize,
    /// When, in microseconds since the run began.
    pub sent: u64,
    /// When the answer was there, or given up.
    pub answered: u64,
    pub method: &'static str,
    pub path: String,
    /// The idempotency key.
    pub key: Option<String>,
    pub body: Value,
    /// 0 if no answer came: nobody knows whether it was done.
    pub status: u16,
    pub answer: Value,
}

impl Exchange {
    /// The id of the task that this request was promised: it asked for one, and got 2xx.
    pub fn accepted(&self) -> Option<&str> {
        let asks = ["/turns", "/compactions", "/retry"];
        let path = self.path.split('?').next().unwrap_or_default();
        let asked = self.method == "POST" && asks.iter().any(|end| path.ends_with(end));
        (asked && (200..300).contains(&self.status)).then(|| self.answer["id"].as_str())?
    }
}

/// One frame as it was served.
#[derive(Clone, Debug)]
pub struct Frame {
    pub seq: u64,
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
    /// It is none.
    pub fn read(text: &str) -> Result<Self> {
        let Shape { seq, kind, run, task, payload } =
            serde_json::from_str(text).map_err(|err| format!("no frame ({err}): {text:?}"))?;
        let payload_text = payload.get().to_owned();
        // What nests too deep for a value is compared by its bytes alone.
        let payload = serde_json::from_str(&payload_text).unwrap_or_default();
        Ok(Self { seq, kind, run, task, payload, payload_text, text: text.to_owned() })
    }

    /// Whether it is this fact of greenroom's own.
    pub fn is(&self, fact: &str) -> bool {
        self.kind.strip_prefix("greenroom/") == Some(fact)
    }

    /// The task that the fact names.
    pub fn names(&self) -> &str {
        self.payload["task"].as_str().unwrap_or_default()
    }
}

/// All that the server has of one group in the end.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// When its frames were read, in microseconds since the run began.
    pub read_at: u64,
    pub shown: Value,
    pub tasks: Vec<Value>,
    pub frames: Vec<Frame>,
    pub segments: Vec<Value>,
    pub compactions: Vec<Value>,
    pub runs: Vec<Value>,
    /// Its digest.
    pub digest: Value,
    /// Its runs' digests.
    pub run_digests: Vec<Value>,
}

/// A frame that a reader saw at some time.
#[derive(Clone, Debug)]
pub struct Seen {
    pub life: usize,
    /// When, in microseconds since the run began.
    pub at: u64,
    pub group: String,
    pub seq: u64,
    pub text: String,
}

/// The tasks that the server had after one of its starts.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    pub life: usize,
    /// When it was begun, in microseconds since the run began.
    pub at: u64,
    /// When all of it was read.
    pub until: u64,
    /// By group.
    pub tasks: BTreeMap<String, Vec<Value>>,
}

/// What was broken, and whether it was.
#[derive(Clone, Debug)]
pub struct Injected {
    pub life: usize,
    pub fault: String,
    /// What shows it; absent: nothing does.
    pub proof: Option<String>,
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub exchanges: Vec<Exchange>,
    pub seen: Vec<Seen>,
    pub audits: Vec<Audit>,
    /// The agents' journal, with the rig's own `server-start` and `server-end` between.
    pub journal: Vec<Value>,
    pub groups: BTreeMap<String, Group>,
    pub injected: Vec<Injected>,
    /// What `greenroom verify` and SQLite's own check found wrong, by life.
    pub damage: Vec<String>,
    /// Processes that outlived their run or their server by more than 5 s (I10).
    pub orphans: Vec<String>,
    /// Groups that did not come to rest, and servers that did not start or end (I12).
    pub stuck: Vec<String>,
    /// What a group must do whatever becomes of the others: its name, and the stop reasons that
    /// the faults of this run excuse (I15).
    pub witness: Option<(String, Vec<&'static str>)>,
    /// The most memory that a server had resident, in bytes (I11).
    pub memory: u64,
    /// Anything else that the rig saw go wrong.
    pub wrong: Vec<String>,
}

/// The states that a task never leaves.
pub const TERMINAL: [&str; 5] = ["completed", "failed", "cancelled", "interrupted", "skipped"];

/// Whether a task, as it was shown, is over.
pub fn is_over(task: &Value) -> bool {
    task["state"].as_str().is_some_and(|state| TERMINAL.contains(&state))
}

/// A text out of a value, empty if there is none.
pub fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}
