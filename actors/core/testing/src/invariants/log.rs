//! The invariants over a stored log alone: its frames, without what only the live rules knew.

use std::sync::Arc;

use greenroom_core::{
    AgentOutput, Fact, FrameKind, Json, Kinds, Lines, OutputSummary, Place, Recorded,
    SessionCursor, SessionId, TaskId,
};
use serde::Deserialize;
use serde_json::{Error, value::RawValue};

use super::{Checked, Checker, Invariant};

/// The `session/update`s that count as output of an attempt.
const OUTPUT: [&str; 7] = [
    "agent_message_chunk",
    "agent_thought_chunk",
    "tool_call",
    "tool_call_update",
    "plan",
    "compaction_update",
    "compaction_summary_chunk",
];

/// One stored frame.
#[derive(Clone, Copy, Debug)]
pub struct LogFrame<'a> {
    pub place: Place,
    pub kind: &'a str,
    pub payload: &'a str,
}

/// A frame's kind and number, and its fact if it can be read.
struct Read<'a> {
    kind: &'a str,
    seq: u64,
    fact: Checked<Recorded>,
}

/// Checks a group's whole log, from its first frame. Returns which frames are unreadable, and how
/// each broken invariant is broken first. An invariant that follows frames of the kind of an
/// unreadable one is checked up to there.
pub fn check_log<'a>(frames: impl IntoIterator<Item = LogFrame<'a>>) -> Vec<String> {
    let mut cursor = Cursor::default();
    let read = frames.into_iter().map(|frame| {
        let LogFrame { place, kind, .. } = frame;
        let fact = cursor.fact(&frame).map(|fact| Recorded { place, fact });
        let fact = fact.map_err(|err| format!("I3: frame {} is no {kind}: {err}", place.seq));
        Read { kind, seq: place.seq, fact }
    });
    let log: Vec<Read<'_>> = read.collect();
    let mut found: Vec<String> =
        log.iter().filter_map(|read| read.fact.as_ref().err().cloned()).collect();
    found.extend(Checker::violations(|invariant| check(invariant, &log)));
    found
}

fn check(invariant: &mut dyn Invariant, log: &[Read<'_>]) -> Checked {
    for Read { kind, seq, fact } in log {
        let name = kind.strip_prefix("greenroom/").unwrap_or(kind);
        match fact {
            Ok(recorded) => {
                invariant.fact(recorded).map_err(|why| format!("{why}, at frame {seq} {kind}"))?;
            }
            Err(_) if invariant.follows().contains(&name) => return Ok(()),
            Err(_) => invariant.skip(),
        }
    }
    Ok(())
}

/// What the frames so far say about the next ones.
#[derive(Default)]
struct Cursor {
    session: SessionCursor,
    /// The task whose attempt runs.
    running: Option<TaskId>,
}

impl Cursor {
    /// Reads the fact of a frame. Of output that names another session than the one that was
    /// prompted last, nothing counts. Output of another task than the running one is late.
    fn fact(&mut self, frame: &LogFrame<'_>) -> Result<Fact, Error> {
        let LogFrame { kind, payload, place } = *frame;
        let fact = match Fact::read(kind, payload) {
            Some(fact) => fact?,
            None if kind == "session/prompt" => prompt(payload)?,
            None => {
                let has_output = has_output(kind, payload, &self.session).unwrap_or_default();
                let kinds = Kinds::All(FrameKind::from(kind.to_owned()));
                let lines = Lines { count: 1, kinds, text: Arc::new(payload.to_owned()) };
                let summary = OutputSummary { has_output, ..OutputSummary::default() };
                let late = place.task.filter(|task| self.running != Some(*task));
                return Ok(Fact::AgentOutput(AgentOutput { lines, summary, late }));
            }
        };
        match &fact {
            Fact::PromptSent { .. } => self.running = place.task,
            Fact::TurnSettled { .. } => self.running = None,
            _ => {}
        }
        self.session.apply(&fact);
        Ok(fact)
    }
}

fn prompt(payload: &str) -> Result<Fact, Error> {
    #[derive(Deserialize)]
    struct Request {
        params: Params,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        session_id: SessionId,
        prompt: Json,
    }
    let Request { params: Params { session_id, prompt } } = serde_json::from_str(payload)?;
    Ok(Fact::PromptSent { session: session_id, prompt })
}

/// Whether a message proves that the agent got its prompt: each request does, and of the
/// notifications the updates that count.
fn has_output(kind: &str, payload: &str, cursor: &SessionCursor) -> Result<bool, Error> {
    #[derive(Deserialize)]
    struct Message<'a> {
        #[serde(borrow)]
        id: Option<&'a RawValue>,
        #[serde(borrow)]
        params: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params<'a> {
        #[serde(borrow)]
        session_id: Option<&'a RawValue>,
        update: Update,
    }
    /// An update with a field of another type is none.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Update {
        session_update: String,
        #[serde(rename = "used")]
        _used: Option<u64>,
        #[serde(rename = "size")]
        _size: Option<u64>,
        #[serde(rename = "toolCallId")]
        _tool_call_id: Option<String>,
        #[serde(rename = "status")]
        _status: Option<String>,
    }
    let Message { id, params } = serde_json::from_str(payload)?;
    let (None, "session/update", Some(params)) = (id, kind, params) else {
        return Ok(id.is_some());
    };
    let Params { session_id, update } = serde_json::from_str(params.get())?;
    let named = session_id.and_then(|id| serde_json::from_str::<String>(id.get()).ok());
    Ok(cursor.counts(named.as_deref()) && OUTPUT.contains(&&*update.session_update))
}
