//! The wedge of hermes: a session that a cancel has broken until the process ends.

use serde_json::{Value, json};

use crate::{Agent, INTERNAL_ERROR, lock};

/// How a wedged session answers its next prompt.
pub enum Wedge {
    /// With the error -32603.
    Fails,
    /// With a false `end_turn`, and the number of prompts that it reports as queued.
    Queues(u64),
}

impl Agent {
    /// Answers the prompt of a wedged session; returns `false` if the session is not wedged.
    pub fn answer_if_wedged(&self, request: &Value, session: &str) -> bool {
        let mut wedged = lock(&self.wedged);
        let Some(wedge) = wedged.get_mut(session) else { return false };
        let queued = match wedge {
            Wedge::Fails => 0,
            Wedge::Queues(before) => *before + 1,
        };
        *wedge = Wedge::Queues(queued);
        drop(wedged);
        self.note("wedged", json!({ "session": session, "queued": queued }));
        if queued == 0 {
            self.fail_wedged(request);
            return true;
        }
        let text = format!("Queued for the next turn. ({queued} queued)");
        let content = json!({ "type": "text", "text": text });
        let update = json!({ "sessionUpdate": "agent_message_chunk", "content": content });
        self.update(session, &update);
        self.answer(request, json!({ "stopReason": "end_turn" }));
        true
    }

    /// Answers with the error of a fresh wedge.
    pub fn fail_wedged(&self, request: &Value) {
        let details = "'NoneType' object has no attribute 'startswith'";
        let data = json!({ "details": details });
        let error = json!({ "code": INTERNAL_ERROR, "message": "Internal error", "data": data });
        self.send(&json!({ "jsonrpc": "2.0", "id": request, "error": error }));
    }
}
