//! One prompt, performed word by word.
//!
//! A word is `[[name]]` or `[[name:argument]]`; text around words is ignored, and a prompt without
//! words is echoed. A turn ends with `end_turn`, unless a word ended it otherwise. Between words,
//! and at a gate, a cancelled turn answers `cancelled` (after `[[ignore-cancel]]` it does not).
//! `${NAME}` in an argument is that variable of the agent's environment.
//!
//! | word | what happens |
//! |---|---|
//! | `reply:TEXT` | one `agent_message_chunk` |
//! | `message:ID:TEXT` | the same as a part of the message ID |
//! | `thought:TEXT` | one `agent_thought_chunk` |
//! | `chunks:N:BYTES` | N chunks in lines of BYTES bytes, in large writes |
//! | `usage:USED:SIZE` | a `usage_update` |
//! | `usage:USED:SIZE:AMOUNT:CURRENCY` | the same with the cost of the session so far |
//! | `tokens:IN:OUT` | the answer carries this usage |
//! | `model:NAME:IN:OUT` | the answer reports this usage of the model in `_meta` |
//! | `tool` · `tool:open` · `tool:failed` | a tool call that completes · stays open · fails |
//! | `update:KIND` | the smallest update of that kind, for kinds that no other word sends |
//! | `gate:NAME` | waits for the file NAME in the control directory |
//! | `ignore-cancel` | ignores a cancel from here on |
//! | `die:CODE` · `abort` | the process ends at once |
//! | `error:CODE:MESSAGE` · `refuse` | the answer is an error · `refusal` |
//! | `times:N:WORD` | that word, while at most N prompts of exactly this text were received |
//! | `garbage` · `utf8` | a line that is not JSON · not UTF-8 |
//! | `noise:N:BYTES` · `garbage-run:N` | N lines of log text · N that only begin as messages |
//! | `crlf` | a chunk whose line ends in CR LF |
//! | `huge-line:BYTES` · `deep:N` | a valid update of that length · nested that deep |
//! | `stderr:N` | N lines on stderr |
//! | `late:MS` | a chunk `late` that long after the answer |
//! | `no-answer` | never answers |
//! | `two-responses` | answers twice, the second time `refusal` |
//! | `no-newline-eof` | answers without a newline and exits |
//! | `env` | reports the names of its environment, sorted, with spaces between |
//! | `sh:NAME` | runs the shell script NAME of the control directory, and reports what it writes |
//! | `spawn-orphans` | starts three `sleep`s that leave the group, and reports their pids |
//! | `silent` | sends no text, not even the default one |
//! | `answer` · `answer:REASON` · `answer:error:CODE:TEXT` | answers now; later words follow |
//! | `on-cancel:WORD` | when cancelled: performs that word before the answer |
//! | `wedge` · `wedge:now` | a cancel wedges the session after this turn · with this turn |
//! | `wedge:queued` | a cancel wedges the session: the next prompts are only queued |
//!
//! Words for requests to the client are in `requests.rs`, those that report compactions in
//! `signals.rs`, faults in `faults.rs`.
//!
//! A prompt that begins with `/compact` replies `Compacted.` after its words, and a request for a
//! summary (not the first prompt of its session, with `summar` outside of words) replies `The
//! summary.`, unless `reply` or `silent` is among the words.

use std::{
    env,
    io::{self, Write},
    mem, process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    Agent, INVALID_PARAMS, lock, orphans,
    requests::Requests,
    updates::{chunk, update, usage_update},
    wedge::Wedge,
    words::{error_of, parted, plain, two_numbers, with_variables, words},
};

/// The bytes collected before `chunks` writes.
const WRITE_BYTES: usize = 256 * 1024;

/// How a prompt is answered.
pub enum Answer {
    Stop(String),
    Error { code: i64, message: String },
    Wedged,
    Nothing,
    Twice,
    WithoutNewline,
}

/// The further effect of a cancel on the session.
#[derive(Clone, Copy)]
enum Wedging {
    /// The next prompt fails.
    Next,
    /// The next prompt is only queued.
    Queued,
    /// The cancelled prompt fails.
    This,
}

/// The kind of a prompt.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    Compact,
    Summary,
}

impl Kind {
    fn of(text: &str, first: bool) -> Self {
        if text.starts_with("/compact") {
            Self::Compact
        } else if !first && plain(text).to_lowercase().contains("summar") {
            Self::Summary
        } else {
            Self::Plain
        }
    }

    /// Returns the script for a prompt without words.
    fn script(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Compact => Some("on-compact"),
            Self::Summary => Some("on-summary"),
        }
    }
}

pub struct Turn {
    agent: Arc<Agent>,
    session: String,
    request: Value,
    cancelled: Arc<AtomicBool>,
    ignores_cancel: bool,
    on_cancel: Vec<String>,
    wedging: Option<Wedging>,
    usage: Option<Value>,
    /// The usage of each model in the answer.
    models: Vec<Value>,
    late: Option<Duration>,
    answered: bool,
    /// How often a prompt of this text was received, including this one; 0 if no word needs it.
    received: usize,
    pub requests: Requests,
}

impl Turn {
    pub fn new(
        agent: Arc<Agent>,
        session: String,
        request: Value,
        cancelled: Arc<AtomicBool>,
    ) -> Self {
        Self {
            agent,
            session,
            request,
            cancelled,
            ignores_cancel: false,
            on_cancel: Vec::new(),
            wedging: None,
            usage: None,
            models: Vec::new(),
            late: None,
            answered: false,
            received: 0,
            requests: Requests::default(),
        }
    }

    pub fn agent(&self) -> &Arc<Agent> {
        &self.agent
    }

    pub fn request(&self) -> &Value {
        &self.request
    }

    pub fn session(&self) -> &str {
        &self.session
    }

    /// Plays the prompt and answers it.
    pub fn play(mut self, text: &str) {
        if text.contains("[[times:") {
            self.received = self.agent.received(text);
        }
        let first = self.agent.is_fresh(&self.session);
        self.agent.remember(&self.session, &chunk("user_message_chunk", text));
        if first && self.agent.switches.first_turn_marker {
            self.reply("[first turn]");
        }
        let kind = Kind::of(text, first);
        let script = kind.script().map(|name| self.agent.script(name)).unwrap_or_default();
        let mut all = words(text);
        if all.is_empty() {
            all = words(&script);
        }
        if !all.iter().any(|(name, _)| ["reply", "silent"].contains(name)) {
            match kind {
                Kind::Compact => all.push_back(("reply", "Compacted.")),
                Kind::Summary => all.push_back(("reply", "The summary.")),
                Kind::Plain => {}
            }
        }
        if all.is_empty() {
            self.reply(&format!("echo: {text}"));
        }
        let mut answer =
            all.iter().find_map(|(name, argument)| self.perform(name, &with_variables(argument)));
        if answer.is_none() && self.is_cancelled() {
            answer = Some(self.stop("cancelled"));
        }
        self.finish(answer);
    }

    /// Performs one word; an answer ends the turn.
    fn perform(&mut self, name: &str, argument: &str) -> Option<Answer> {
        if self.is_cancelled() {
            return Some(self.stop("cancelled"));
        }
        match name {
            "reply" => self.reply(argument),
            "message" => {
                let (id, text) = argument.split_once(':').unwrap_or((argument, ""));
                let mut chunk = chunk("agent_message_chunk", text);
                chunk["messageId"] = id.into();
                self.update(&chunk);
            }
            "thought" => self.update(&chunk("agent_thought_chunk", argument)),
            "chunks" => match two_numbers(argument) {
                Some((count, bytes)) => self.chunks(count, bytes),
                None => return Some(unknown(name, argument)),
            },
            "usage" => match usage_update(argument) {
                Some(update) => self.update(&update),
                None => return Some(unknown(name, argument)),
            },
            "model" => match argument.split_once(':').map(|(m, rest)| (m, two_numbers(rest))) {
                Some((model, Some((input, output)))) => self.models.push(json!({
                    "model": model,
                    "token_count": { "inputTokens": input, "outputTokens": output },
                })),
                _ => return Some(unknown(name, argument)),
            },
            "tokens" => match two_numbers(argument) {
                Some((input, output)) => {
                    self.usage = Some(json!({
                        "inputTokens": input,
                        "outputTokens": output,
                        "totalTokens": input + output,
                    }));
                }
                None => return Some(unknown(name, argument)),
            },
            "tool" => self.tool(argument),
            "update" => match update(argument) {
                Some(update) => self.update(&update),
                None => return Some(unknown(name, argument)),
            },
            "times" => match argument.split_once(':').map(|(most, word)| (most.parse(), word)) {
                Some((Ok(most), word)) => {
                    let (name, argument) = parted(word);
                    return if self.received <= most { self.perform(name, argument) } else { None };
                }
                _ => return Some(unknown(name, argument)),
            },
            "gate" => {
                let open = self.agent.wait_at_gate(argument, || self.is_cancelled());
                return (!open).then(|| self.stop("cancelled"));
            }
            "ignore-cancel" => self.ignores_cancel = true,
            "die" => self.agent.exit_with(argument.parse().unwrap_or(1)),
            "abort" => process::abort(),
            "error" => {
                let Some((code, message)) = error_of(argument) else {
                    return Some(unknown(name, argument));
                };
                return Some(Answer::Error { code, message: message.to_owned() });
            }
            "refuse" => return Some(self.stop("refusal")),
            "garbage" => self.agent.write(b"this line is not JSON\n"),
            "noise" => {
                let (count, bytes) = argument.split_once(':').unwrap_or((argument, "80"));
                let line = format!("{}\n", "n".repeat(bytes.parse().unwrap_or(80)));
                for _ in 0..count.parse().unwrap_or(1) {
                    self.agent.write(line.as_bytes());
                }
            }
            "garbage-run" => {
                for number in 1..=argument.parse().unwrap_or(1) {
                    self.agent.write(format!("{{\"not\" a message {number}\n").as_bytes());
                }
            }
            "utf8" => self.agent.write(b"{\"not\":\"utf-8 \xff\xfe\"}\n"),
            "crlf" => {
                let line = self.line(&chunk("agent_message_chunk", "crlf"));
                self.agent.write(format!("{line}\r\n").as_bytes());
            }
            "huge-line" => self.chunks(1, argument.parse().unwrap_or(0)),
            "deep" => self.deep(argument.parse().unwrap_or(1)),
            "stderr" => stderr_lines(argument.parse().unwrap_or(1)),
            "late" => self.late = Some(Duration::from_millis(argument.parse().unwrap_or(0))),
            "no-answer" => return Some(Answer::Nothing),
            "two-responses" => return Some(Answer::Twice),
            "no-newline-eof" => return Some(Answer::WithoutNewline),
            "env" => self.reply(&environment_names()),
            "sh" => match self.agent.shell(argument) {
                Ok(text) => self.reply(&text),
                Err(err) => return Some(failed(&format!("cannot run a shell: {err}"))),
            },
            "spawn-orphans" => match orphans::start() {
                Ok(pids) => self.reply(&format!("orphans: {pids}")),
                Err(err) => return Some(failed(&format!("cannot start orphans: {err}"))),
            },
            "silent" => {}
            "answer" => {
                let error = argument.strip_prefix("error:").and_then(error_of);
                let answer = match error {
                    Some((code, message)) => Answer::Error { code, message: message.to_owned() },
                    None => self.stop(if argument.is_empty() { "end_turn" } else { argument }),
                };
                self.settle(answer);
            }
            "on-cancel" => self.on_cancel.push(argument.to_owned()),
            "wedge" if argument == "now" => self.wedging = Some(Wedging::This),
            "wedge" if argument == "queued" => self.wedging = Some(Wedging::Queued),
            "wedge" => self.wedging = Some(Wedging::Next),
            _ if self.ask(name, argument) => {}
            _ => return self.fault(name, argument),
        }
        None
    }

    /// Answers a turn that no word answered, and sends the late chunk.
    fn finish(mut self, answer: Option<Answer>) {
        if !self.answered {
            let mut answer = answer.unwrap_or_else(|| self.stop("end_turn"));
            if matches!(&answer, Answer::Stop(reason) if reason == "cancelled") {
                answer = self.perform_on_cancel(answer);
            }
            self.settle(answer);
        }
        if let Some(delay) = self.late {
            thread::sleep(delay);
            self.reply("late");
        }
    }

    /// Performs the words for a cancel. Returns the answer of the cancelled prompt.
    fn perform_on_cancel(&mut self, answer: Answer) -> Answer {
        self.ignores_cancel = true;
        for word in mem::take(&mut self.on_cancel) {
            let (name, argument) = parted(&word);
            if let Some(other) = self.perform(name, argument) {
                return other;
            }
        }
        let (wedge, answer) = match self.wedging {
            None => return answer,
            Some(Wedging::Next) => (Wedge::Fails, answer),
            Some(Wedging::Queued) => (Wedge::Queues(0), answer),
            Some(Wedging::This) => (Wedge::Queues(0), Answer::Wedged),
        };
        lock(&self.agent.wedged).insert(self.session.clone(), wedge);
        answer
    }

    fn stop(&self, reason: &str) -> Answer {
        Answer::Stop(reason.to_owned())
    }

    /// Frees the session, notes the end, and answers.
    fn settle(&mut self, answer: Answer) {
        self.answered = true;
        let word = match &answer {
            Answer::Stop(reason) => reason,
            Answer::Error { .. } | Answer::Wedged => "error",
            Answer::Nothing => "nothing",
            Answer::Twice => "twice",
            Answer::WithoutNewline => "without-newline",
        };
        lock(&self.agent.running).remove(&self.session);
        self.agent.note("answer", json!({ "session": self.session, "stop": word }));
        match answer {
            Answer::Stop(reason) => self.agent.answer(&self.request, self.result(&reason)),
            Answer::Error { code, message } => self.agent.fail(&self.request, code, &message),
            Answer::Wedged => self.agent.fail_wedged(&self.request),
            Answer::Nothing => {}
            Answer::Twice => {
                self.agent.answer(&self.request, self.result("end_turn"));
                self.agent.answer(&self.request, self.result("refusal"));
            }
            Answer::WithoutNewline => {
                let result = self.result("end_turn");
                let line = json!({ "jsonrpc": "2.0", "id": self.request, "result": result });
                self.agent.write(line.to_string().as_bytes());
                self.agent.exit_with(0);
            }
        }
    }

    fn result(&self, reason: &str) -> Value {
        let mut result = json!({ "stopReason": reason });
        if let Some(usage) = &self.usage {
            result["usage"] = usage.clone();
        }
        if !self.models.is_empty() {
            result["_meta"] = json!({ "quota": { "model_usage": self.models } });
        }
        result
    }

    pub fn is_cancelled(&self) -> bool {
        !self.ignores_cancel && self.cancelled.load(Ordering::SeqCst)
    }

    pub fn reply(&self, text: &str) {
        let update = chunk("agent_message_chunk", text);
        self.agent.remember(&self.session, &update);
        self.update(&update);
    }

    pub fn update(&self, update: &Value) {
        self.agent.update(&self.session, update);
    }

    /// Returns an update's line, without its newline.
    fn line(&self, update: &Value) -> String {
        json!({
            "jsonrpc": "2.0",
            "method": "session/update",
            "params": { "sessionId": self.session, "update": update },
        })
        .to_string()
    }

    /// Sends `count` chunks, numbered from 1, each filled up to a line of `bytes` bytes.
    fn chunks(&self, count: u64, bytes: u64) {
        let empty = self.line(&chunk("agent_message_chunk", ""));
        let (head, tail) = empty.split_at(empty.find("\"text\":\"").map_or(0, |at| at + 8));
        let mut batch = Vec::with_capacity(WRITE_BYTES + 4096);
        for number in 1..=count {
            let start = batch.len();
            batch.extend_from_slice(head.as_bytes());
            batch.extend_from_slice(format!("{number} ").as_bytes());
            let taken = batch.len() - start + tail.len() + 1;
            let filler = usize::try_from(bytes).unwrap_or(0).saturating_sub(taken);
            batch.resize(batch.len() + filler, b'x');
            batch.extend_from_slice(tail.as_bytes());
            batch.push(b'\n');
            if WRITE_BYTES <= batch.len() {
                self.agent.write(&batch);
                batch.clear();
                if self.is_cancelled() {
                    return;
                }
            }
        }
        self.agent.write(&batch);
    }

    fn deep(&self, depth: usize) {
        let nested = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let line = self.line(&chunk("agent_message_chunk", "deep"));
        let (head, tail) = line.split_at(line.len() - 2);
        self.agent.write(format!("{head},\"_meta\":{{\"deep\":{nested}}}{tail}\n").as_bytes());
    }

    fn tool(&mut self, argument: &str) {
        let id = format!("tool-{}", self.agent.number());
        self.update(&json!({
            "sessionUpdate": "tool_call",
            "toolCallId": id,
            "title": "scripted tool",
            "kind": "execute",
            "status": "in_progress",
        }));
        self.requests.last_tool.clone_from(&id);
        if argument != "open" {
            self.update(&json!({
                "sessionUpdate": "tool_call_update",
                "toolCallId": id,
                "status": if argument == "failed" { "failed" } else { "completed" },
            }));
        }
    }
}

pub fn unknown(name: &str, argument: &str) -> Answer {
    failed(&format!("no such word: [[{name}:{argument}]]"))
}

fn failed(message: &str) -> Answer {
    Answer::Error { code: INVALID_PARAMS, message: message.to_owned() }
}

fn environment_names() -> String {
    let names = env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names.join(" ")
}

fn stderr_lines(count: u64) {
    let mut batch = Vec::new();
    for number in 1..=count {
        batch.extend_from_slice(format!("stderr line {number}\n").as_bytes());
    }
    drop(io::stderr().lock().write_all(&batch));
}
