//! One turn of the demo agent, from the prompt to the stop reason.

use std::{
    io::{self, Write},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    Agent, INTERNAL_ERROR, RequestError,
    inbox::Wait,
    session::{Session, WINDOW_TOKENS, chunk, tokens},
};

/// The pause between two chunks of an answer.
const CHUNK_PAUSE: Duration = Duration::from_millis(20);

/// The pause between the [`SLOW_CHUNKS`] additional chunks of a `slow` turn.
const SLOW_PAUSE: Duration = Duration::from_millis(100);

const SLOW_CHUNKS: usize = 40;

/// How long the pretended tool and the pretended compaction take.
const WORK_PAUSE: Duration = Duration::from_millis(150);

/// Characters of a prompt that the answer repeats.
const ECHO_MAX: usize = 200;

/// Why a turn ended early.
enum Stop {
    Cancelled,
    /// The client closed stdin, or stdout failed: no answer can be sent.
    Closed(io::Result<()>),
    Failed(RequestError),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Closed(Err(error))
    }
}

impl<W: Write> Agent<W> {
    /// Answers one `session/prompt`.
    pub(super) fn prompt(&mut self, id: &Value, params: &Value) -> io::Result<()> {
        let name = params["sessionId"].as_str().unwrap_or_default().to_owned();
        let Some(mut session) = self.sessions.remove(&name) else {
            return self
                .send_error(id, &RequestError::invalid_params(format!("unknown session: {name}")));
        };
        let before = session.used_tokens();
        let text = text_of(&params["prompt"]);
        let ended = match text.split_whitespace().next() {
            Some("/compact") => self.compact(&mut session),
            _ => self.answer_prompt(&mut session, &text),
        };
        let used = session.used_tokens();
        self.keep_session(session);
        match ended {
            Ok(output) => {
                let input = before + tokens(&text);
                let usage = json!({
                    "totalTokens": input + output,
                    "inputTokens": input,
                    "outputTokens": output,
                });
                self.send_update(&name, &usage_update(used))?;
                self.send_result(id, json!({"stopReason": "end_turn", "usage": usage}))
            }
            Err(Stop::Cancelled) => {
                let cancelled = json!({"stopReason": "cancelled"});
                self.send_result(id, cancelled.clone())?;
                // A cancel is for the session: it also cancels the prompts queued after this one.
                for waiting in self.inbox.take_prompts(&name) {
                    self.send_result(&waiting, cancelled.clone())?;
                }
                Ok(())
            }
            Err(Stop::Failed(error)) => self.send_error(id, &error),
            Err(Stop::Closed(result)) => result,
        }
    }

    /// Streams an answer to `prompt`; returns its tokens.
    fn answer_prompt(&mut self, session: &mut Session, prompt: &str) -> Result<u64, Stop> {
        let turn = session.begin_turn();
        let contains_word = |word: &str| {
            prompt.split(|c: char| !c.is_alphanumeric()).any(|part| part.eq_ignore_ascii_case(word))
        };
        let mut answer = String::new();
        let ended = self.stream_answer(session, prompt, turn, &contains_word, &mut answer);
        // A cancelled turn also records the part that was streamed.
        session.record_turn(prompt, &answer).map_err(not_saved)?;
        ended.map(|()| tokens(&answer))
    }

    fn stream_answer(
        &mut self,
        session: &Session,
        prompt: &str,
        turn: u64,
        contains_word: &dyn Fn(&str) -> bool,
        answer: &mut String,
    ) -> Result<(), Stop> {
        if contains_word("tool") {
            self.use_tool(session.id(), turn)?;
        }
        if contains_word("permission") {
            let allowed = self.ask_permission(session.id(), turn)?;
            let outcome = if allowed { "I was allowed to. " } else { "I was not allowed to. " };
            self.send_text(session.id(), outcome, answer)?;
        }
        let echo: String = prompt.trim().chars().take(ECHO_MAX).collect();
        let text = format!("You said: {echo}\nThis is turn {turn} of session {}.", session.id());
        for words in text.split_inclusive([' ', '\n']).collect::<Vec<_>>().chunks(3) {
            self.send_text(session.id(), &words.concat(), answer)?;
            self.pause(session.id(), CHUNK_PAUSE)?;
        }
        if contains_word("slow") {
            for number in 1..=SLOW_CHUNKS {
                self.send_text(session.id(), &format!(" {number}"), answer)?;
                self.pause(session.id(), SLOW_PAUSE)?;
            }
        }
        Ok(())
    }

    fn send_text(&mut self, session: &str, text: &str, answer: &mut String) -> Result<(), Stop> {
        answer.push_str(text);
        Ok(self.send_update(session, &chunk("agent_message_chunk", text))?)
    }

    fn use_tool(&mut self, session: &str, turn: u64) -> Result<(), Stop> {
        let id = format!("look-{turn}");
        let call = json!({
            "sessionUpdate": "tool_call",
            "toolCallId": id,
            "title": "Look around",
            "kind": "read",
            "status": "in_progress",
        });
        self.send_update(session, &call)?;
        let wait = self.pause(session, WORK_PAUSE);
        let status = if wait.is_ok() { "completed" } else { "failed" };
        let content = json!([{
            "type": "content",
            "content": {"type": "text", "text": "Nothing but a stage."},
        }]);
        let mut update = json!({
            "sessionUpdate": "tool_call_update",
            "toolCallId": id,
            "status": status,
        });
        if wait.is_ok() {
            update["content"] = content;
        }
        self.send_update(session, &update)?;
        wait
    }

    /// Requests a permission; true if the client allowed it.
    fn ask_permission(&mut self, session: &str, turn: u64) -> Result<bool, Stop> {
        let id = format!("step-{turn}");
        let call = json!({
            "toolCallId": id,
            "title": "Go on stage",
            "kind": "execute",
            "status": "pending",
        });
        let mut shown = call.clone();
        shown["sessionUpdate"] = json!("tool_call");
        self.send_update(session, &shown)?;

        let request = self.next_request;
        self.next_request += 1;
        let options = json!([
            {"optionId": "allow", "name": "Allow once", "kind": "allow_once"},
            {"optionId": "reject", "name": "Reject", "kind": "reject_once"},
        ]);
        self.send(&json!({
            "jsonrpc": "2.0",
            "id": request,
            "method": "session/request_permission",
            "params": {"sessionId": session, "toolCall": call, "options": options},
        }))?;
        let wait = self.inbox.await_response(session, request);
        let allowed = matches!(&wait, Wait::Response(result)
            if result["outcome"]["outcome"] == "selected"
                && result["outcome"]["optionId"] == "allow");
        let status = if allowed { "completed" } else { "failed" };
        let update = json!({
            "sessionUpdate": "tool_call_update",
            "toolCallId": id,
            "status": status,
        });
        self.send_update(session, &update)?;
        continue_or_stop(&wait)?;
        // A client that cancels the turn answers the permission with `cancelled`, and its cancel
        // may follow; a short wait lets it arrive first.
        if matches!(&wait, Wait::Response(result) if result["outcome"]["outcome"] == "cancelled") {
            self.pause(session, WORK_PAUSE)?;
        }
        Ok(allowed)
    }

    /// Simulates a compaction; returns the tokens of its summary.
    fn compact(&mut self, session: &mut Session) -> Result<u64, Stop> {
        let id = session.begin_compaction().map_err(not_saved)?;
        let before = session.used_tokens();
        self.show_compaction(session.id(), &id, "in_progress", None)?;
        if let Err(stop) = self.pause(session.id(), WORK_PAUSE) {
            if matches!(stop, Stop::Cancelled) {
                self.show_compaction(session.id(), &id, "cancelled", None)?;
            }
            return Err(stop);
        }
        let summary = format!("Summary of {} turns, all of them echoes.", session.turns());
        session.compact(&summary).map_err(not_saved)?;
        self.show_compaction(session.id(), &id, "completed", Some(&summary))?;
        if !self.shows_compaction {
            let text = format!("Compacted: {before} tokens became {}.", session.used_tokens());
            self.send_update(session.id(), &chunk("agent_message_chunk", &text))?;
        }
        Ok(tokens(&summary))
    }

    /// Sends a `compaction_update` if the client advertised support: ACP forbids it otherwise.
    fn show_compaction(
        &mut self,
        session: &str,
        id: &str,
        status: &str,
        summary: Option<&str>,
    ) -> io::Result<()> {
        if !self.shows_compaction {
            return Ok(());
        }
        let mut update = json!({
            "sessionUpdate": "compaction_update",
            "compactionId": id,
            "status": status,
        });
        if let Some(summary) = summary {
            update["summary"] = json!([{"type": "text", "text": summary}]);
        }
        self.send_update(session, &update)
    }

    fn pause(&mut self, session: &str, time: Duration) -> Result<(), Stop> {
        let wait = self.inbox.pause(session, time);
        continue_or_stop(&wait)
    }
}

fn continue_or_stop(wait: &Wait) -> Result<(), Stop> {
    match wait {
        Wait::Elapsed | Wait::Response(_) => Ok(()),
        Wait::Cancelled => Err(Stop::Cancelled),
        Wait::Closed => Err(Stop::Closed(Ok(()))),
    }
}

fn not_saved(error: io::Error) -> Stop {
    Stop::Failed(RequestError(INTERNAL_ERROR, format!("cannot save the session: {error}")))
}

fn usage_update(used: u64) -> Value {
    json!({"sessionUpdate": "usage_update", "used": used, "size": WINDOW_TOKENS})
}

/// Joins the text blocks of a prompt with line feeds.
fn text_of(prompt: &Value) -> String {
    let blocks = prompt.as_array().into_iter().flatten();
    blocks.filter_map(|block| block["text"].as_str()).collect::<Vec<_>>().join("\n")
}
