//! The invariants over a stored log alone: its frames, without what only the live rules knew.

use std::sync::Arc;

use greenroom_core::{
    AgentOutput, Fact, FrameKind, Json, Kinds, Lines, OutputSummary, Place, Recorded, SessionId,
};
use serde_json::Value;

use super::{Checked, Checker};

/// The `session/update`s that count as output of an attempt.
const OUTPUT: [&str; 6] = [
    "agent_message_chunk",
    "agent_thought_chunk",
    "tool_call",
    "tool_call_update",
    "plan",
    "compaction_update",
];

/// One stored frame.
#[derive(Clone, Copy, Debug)]
pub struct LogFrame<'a> {
    pub place: Place,
    pub kind: &'a str,
    pub payload: &'a str,
}

/// Checks a group's whole log, from its first frame. Returns how each broken invariant is broken
/// first.
pub fn check_log<'a>(frames: impl IntoIterator<Item = LogFrame<'a>>) -> Vec<String> {
    let facts = frames.into_iter().map(|frame| {
        let recorded = Recorded { place: frame.place, fact: fact(&frame)? };
        Ok((recorded, frame.kind))
    });
    let facts: Vec<(Recorded, &str)> = match facts.collect::<Checked<_>>() {
        Ok(facts) => facts,
        Err(why) => return vec![why],
    };
    Checker::violations(|invariant| {
        facts.iter().try_for_each(|(recorded, kind)| {
            let at = recorded.place.seq;
            invariant.fact(recorded).map_err(|why| format!("{why}, at frame {at} {kind}"))
        })
    })
}

fn fact(frame: &LogFrame<'_>) -> Checked<Fact> {
    let LogFrame { place, kind, payload } = *frame;
    if let Some(fact) = Fact::read(kind, payload) {
        return fact.map_err(|err| format!("I3: frame {} is no {kind}: {err}", place.seq));
    }
    // A payload that nests too deep for a value is output, if anything.
    let message: Value = serde_json::from_str(payload).unwrap_or_default();
    let params = &message["params"];
    if kind == "session/prompt" {
        let session = params["sessionId"].as_str().unwrap_or_default();
        let prompt = Json::parse(params["prompt"].to_string());
        let prompt = prompt.map_err(|_| format!("I3: frame {} has no prompt", place.seq))?;
        return Ok(Fact::PromptSent { session: SessionId(session.into()), prompt });
    }
    let update = params["update"]["sessionUpdate"].as_str();
    let has_output = match kind {
        "session/update" => update.is_some_and(|update| OUTPUT.contains(&update)),
        _ => kind == "session/request_permission" || kind.starts_with("fs/"),
    };
    Ok(Fact::AgentOutput(AgentOutput {
        lines: Lines {
            count: 1,
            kinds: Kinds::All(FrameKind::from(kind.to_owned())),
            text: Arc::new(payload.to_owned()),
        },
        summary: OutputSummary { has_output, ..OutputSummary::default() },
    }))
}
