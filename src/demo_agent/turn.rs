//! One prompt of the demo agent, from its words to its stop reason.

use std::io::{self, Write};
use std::time::Duration;

use serde_json::{Value, json};

use super::inbox::Wait;
use super::session::{Session, WINDOW_TOKENS, chunk, tokens};
use super::{Agent, INTERNAL_ERROR, Refusal};

/// Between two chunks of an answer.
const CHUNK_PAUSE: Duration = Duration::from_millis(20);

/// The same in a `slow` turn, which has [`SLOW_CHUNKS`] more of them.
const SLOW_PAUSE: Duration = Duration::from_millis(100);

const SLOW_CHUNKS: usize = 40;

/// How long the pretended tool and the pretended compaction take.
const WORK_PAUSE: Duration = Duration::from_millis(150);

/// Characters of a prompt that the answer repeats.
const ECHO_MAX: usize = 200;

/// Why a turn ended early.
enum Stop {
    Cancelled,
    /// The client is gone, or stdout is: there is nobody to answer.
    Closed(io::Result<()>),
    Refused(Refusal),
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
            return self.refuse(id, &Refusal::params(format!("unknown session: {name}")));
        };
        let before = session.used_tokens();
        let text = text_of(&params["prompt"]);
        let ended = match text.split_whitespace().next() {
            Some("/compact") => self.compact(&mut session),
            _ => self.converse(&mut session, &text),
        };
        let used = session.used_tokens();
        self.keep(session);
        match ended {
            Ok(output) => {
                let input = before + tokens(&text);
                let usage = json!({
                    "totalTokens": input + output,
                    "inputTokens": input,
                    "outputTokens": output,
                });
                self.update(&name, &usage_update(used))?;
                self.answer(id, json!({"stopReason": "end_turn", "usage": usage}))
            }
            Err(Stop::Cancelled) => {
                let cancelled = json!({"stopReason": "cancelled"});
                self.answer(id, cancelled.clone())?;
                // A cancel is for the session: prompts behind this one are not to run either.
                for waiting in self.inbox.take_prompts(&name) {
                    self.answer(&waiting, cancelled.clone())?;
                }
                Ok(())
            }
            Err(Stop::Refused(refusal)) => self.refuse(id, &refusal),
            Err(Stop::Closed(result)) => result,
        }
    }

    /// Answers in words; gives the tokens of the answer.
    fn converse(&mut self, session: &mut Session, prompt: &str) -> Result<u64, Stop> {
        let turn = session.begin_turn();
        let says = |word: &str| {
            prompt.split(|c: char| !c.is_alphanumeric()).any(|part| part.eq_ignore_ascii_case(word))
        };
        let mut answer = String::new();
        let ended = self.speak(session, prompt, turn, &says, &mut answer);
        // What was said so far was said, even if the turn was cancelled.
        session.remember(prompt, &answer).map_err(not_saved)?;
        ended.map(|()| tokens(&answer))
    }

    fn speak(
        &mut self,
        session: &Session,
        prompt: &str,
        turn: u64,
        says: &dyn Fn(&str) -> bool,
        answer: &mut String,
    ) -> Result<(), Stop> {
        if says("tool") {
            self.use_tool(session.id(), turn)?;
        }
        if says("permission") {
            let allowed = self.ask_permission(session.id(), turn)?;
            let outcome = if allowed { "I was allowed to. " } else { "I was not allowed to. " };
            self.say(session.id(), outcome, answer)?;
        }
        let echo: String = prompt.trim().chars().take(ECHO_MAX).collect();
        let text = format!("You said: {echo}\nThis is turn {turn} of session {}.", session.id());
        for words in text.split_inclusive([' ', '\n']).collect::<Vec<_>>().chunks(3) {
            self.say(session.id(), &words.concat(), answer)?;
            self.pause(session.id(), CHUNK_PAUSE)?;
        }
        if says("slow") {
            for number in 1..=SLOW_CHUNKS {
                self.say(session.id(), &format!(" {number}"), answer)?;
                self.pause(session.id(), SLOW_PAUSE)?;
            }
        }
        Ok(())
    }

    fn say(&mut self, session: &str, text: &str, answer: &mut String) -> Result<(), Stop> {
        answer.push_str(text);
        Ok(self.update(session, &chunk("agent_message_chunk", text))?)
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
        self.update(session, &call)?;
        let waited = self.pause(session, WORK_PAUSE);
        let status = if waited.is_ok() { "completed" } else { "failed" };
        let content = json!([{
            "type": "content",
            "content": {"type": "text", "text": "Nothing but a stage."},
        }]);
        let mut update = json!({
            "sessionUpdate": "tool_call_update",
            "toolCallId": id,
            "status": status,
        });
        if waited.is_ok() {
            update["content"] = content;
        }
        self.update(session, &update)?;
        waited
    }

    /// Asks the client; true if it allowed.
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
        self.update(session, &shown)?;

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
        let waited = self.inbox.await_answer(session, request);
        let allowed = matches!(&waited, Wait::Answered(result)
            if result["outcome"]["outcome"] == "selected"
                && result["outcome"]["optionId"] == "allow");
        let status = if allowed { "completed" } else { "failed" };
        let update = json!({
            "sessionUpdate": "tool_call_update",
            "toolCallId": id,
            "status": status,
        });
        self.update(session, &update)?;
        stop_or_go(&waited)?;
        // The client answers `cancelled` to a permission when it cancels the turn, and its cancel
        // may be right behind; a short wait lets it arrive first.
        if matches!(&waited, Wait::Answered(result) if result["outcome"]["outcome"] == "cancelled")
        {
            self.pause(session, WORK_PAUSE)?;
        }
        Ok(allowed)
    }

    /// Pretends a compaction; gives the tokens of its summary.
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
            self.update(session.id(), &chunk("agent_message_chunk", &text))?;
        }
        Ok(tokens(&summary))
    }

    /// Agents must not send `compaction_update` to a client that did not ask for it.
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
        self.update(session, &update)
    }

    fn pause(&mut self, session: &str, time: Duration) -> Result<(), Stop> {
        let waited = self.inbox.pause(session, time);
        stop_or_go(&waited)
    }
}

fn stop_or_go(waited: &Wait) -> Result<(), Stop> {
    match waited {
        Wait::Over | Wait::Answered(_) => Ok(()),
        Wait::Cancelled => Err(Stop::Cancelled),
        Wait::Closed => Err(Stop::Closed(Ok(()))),
    }
}

fn not_saved(error: io::Error) -> Stop {
    Stop::Refused(Refusal(INTERNAL_ERROR, format!("session was not saved: {error}")))
}

fn usage_update(used: u64) -> Value {
    json!({"sessionUpdate": "usage_update", "used": used, "size": WINDOW_TOKENS})
}

/// The text blocks of a prompt, one below the other.
fn text_of(prompt: &Value) -> String {
    let blocks = prompt.as_array().into_iter().flatten();
    blocks.filter_map(|block| block["text"].as_str()).collect::<Vec<_>>().join("\n")
}
