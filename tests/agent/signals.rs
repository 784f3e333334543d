//! The words by which an agent reports a compaction, in the forms of real agents.
//!
//! | word | what happens |
//! |---|---|
//! | `compaction:STATUS:ID` | ACP's `compaction_update` |
//! | `compaction:STATUS:ID:TEXT` | the same with a summary, or with the error of one that failed |
//! | `summary-chunk:ID:TEXT` | ACP's `compaction_summary_chunk` |
//! | `compact-tool:STATUS:ID` | a `tool_call` "Compact conversation" (`in_progress`), its update |
//! | `compression:PHASE` | a chunk with `_meta.contextCompression` |
//! | `compression:PHASE:BEFORE:AFTER` | the same with counts of tokens |
//! | `provenance:CURRENT` | a `session_info_update` with hermes' provenance of a root session |
//! | `provenance:CURRENT:PREVIOUS` | the same of a session that a compression created |
//! | `provenance:CURRENT:PREVIOUS:REASON` | the same for another reason |
//! | `old-provenance:ID` · `old-provenance:ID:MODE` | hermes' older form · with its `lastMode` |
//! | `stderr-line:TEXT` | that line on stderr |
//! | `session:ID:TEXT` | a chunk under another `sessionId`, which continues this session |
//!
//! `CURRENT` and `session`'s `ID` can be restored later, like the session itself. An empty
//! `PREVIOUS` is the session's own id.

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::{
    sessions::root_provenance,
    turn::{Answer, Turn, unknown},
    updates::chunk,
    words::two_numbers,
};

impl Turn {
    /// Performs one of these words; an answer ends the turn.
    pub fn signal(&mut self, name: &str, argument: &str) -> Option<Answer> {
        let parts: Vec<&str> = argument.splitn(3, ':').collect();
        match (name, parts.as_slice()) {
            ("compaction", [status, id]) => self.update(&compaction(status, id, "")),
            ("compaction", [status, id, text]) => self.update(&compaction(status, id, text)),
            ("summary-chunk", [id, rest @ ..]) => self.update(&json!({
                "sessionUpdate": "compaction_summary_chunk",
                "compactionId": id,
                "content": { "type": "text", "text": rest.join(":") },
            })),
            ("compact-tool", [status, id]) => self.update(&compact_tool(status, id)),
            ("compression", [phase, ..]) => self.compression(phase, argument),
            ("provenance", [current]) if !current.is_empty() => {
                let provenance = root_provenance(self.session(), current);
                self.send_provenance(current, &json!({ "sessionProvenance": provenance }));
            }
            ("provenance", [current, previous]) => {
                self.continuation(current, previous, "compression")
            }
            ("provenance", [current, previous, reason]) => {
                self.continuation(current, previous, reason)
            }
            ("old-provenance", [id, mode @ ..]) => {
                let mut hermes = json!({ "hermesSessionId": id });
                if let [mode] = mode {
                    hermes["compaction"] = json!({ "lastMode": mode });
                }
                self.send_provenance(id, &hermes);
            }
            ("stderr-line", _) => {
                drop(io::stderr().lock().write_all(format!("{argument}\n").as_bytes()));
            }
            ("session", [id, rest @ ..]) => {
                self.agent().continue_as(self.session(), id);
                self.agent().update(id, &chunk("agent_message_chunk", &rest.join(":")));
            }
            _ => return Some(unknown(name, argument)),
        }
        None
    }

    fn compression(&self, phase: &str, argument: &str) {
        let mut compression = json!({ "phase": phase });
        let counts = argument.split_once(':').and_then(|(_, counts)| two_numbers(counts));
        if let Some((before, after)) = counts {
            compression["originalTokenCount"] = json!(before);
            compression["newTokenCount"] = json!(after);
        }
        let mut update = chunk("agent_message_chunk", &format!("compression {phase}"));
        update["_meta"] = json!({ "contextCompression": compression, "source": "slash_command" });
        self.update(&update);
    }

    fn continuation(&self, current: &str, previous: &str, reason: &str) {
        let previous = if previous.is_empty() { self.session() } else { previous };
        let provenance = json!({
            "acpSessionId": self.session(),
            "currentHermesSessionId": current,
            "rootHermesSessionId": previous,
            "parentHermesSessionId": previous,
            "previousHermesSessionId": previous,
            "sessionKind": "continuation",
            "compressionDepth": 1,
            "reason": reason,
            "creatorKind": reason,
        });
        self.send_provenance(current, &json!({ "sessionProvenance": provenance }));
    }

    fn send_provenance(&self, current: &str, hermes: &Value) {
        if current != self.session() {
            self.agent().continue_as(self.session(), current);
        }
        self.update(&json!({
            "sessionUpdate": "session_info_update",
            "title": "scripted",
            "_meta": { "hermes": hermes },
        }));
    }
}

fn compaction(status: &str, id: &str, text: &str) -> Value {
    let mut update = json!({
        "sessionUpdate": "compaction_update",
        "compactionId": id,
        "status": status,
    });
    if text.is_empty() {
        return update;
    }
    if status == "failed" {
        update["error"] = json!(text);
    } else {
        update["summary"] = json!([{ "type": "text", "text": text }]);
    }
    update
}

/// Returns the update of codex and claude for a client that did not advertise `session.compaction`.
fn compact_tool(status: &str, id: &str) -> Value {
    let mut update = json!({
        "sessionUpdate": "tool_call_update",
        "toolCallId": id,
        "status": status,
    });
    if status == "in_progress" {
        update["sessionUpdate"] = json!("tool_call");
        update["title"] = json!("Compact conversation");
        update["kind"] = json!("think");
    }
    update
}
