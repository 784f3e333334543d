//! Words of the fault rig: deaths, silences and noise that nobody asked for, and the journal of
//! what an attempt may have shown.
//!
//! | word | what happens |
//! |---|---|
//! | `segv` | the process dies of SIGSEGV |
//! | `freeze` | the process stops itself with SIGSTOP |
//! | `sleep:MS` | nothing, that long; a cancel ends it |
//! | `die-once:NAME` | the process exits with 1, the first time that this name is met |
//! | `deaf` | nothing is read from stdin any more |
//! | `asks:N` | N requests that the client must refuse; no answer is waited for |
//! | `stray:N` | N responses with ids that nobody asked with, the last with id null |

use std::fs::File;
use std::process::{self, Command};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use memchr::memmem;
use serde_json::json;

use crate::turn::{Answer, Turn};
use crate::{Agent, GATE_POLL};

/// What makes a line count as output of an attempt, by what stands in it.
const SHOWS: [&str; 8] = [
    "\"agent_message_chunk\"",
    "\"agent_thought_chunk\"",
    "\"tool_call\"",
    "\"tool_call_update\"",
    "\"plan\"",
    "\"compaction_update\"",
    "\"session/request_permission\"",
    "\"fs/read_text_file\"",
];

impl Turn {
    /// Performs one of these words, or one of `signals.rs`; an answer ends the turn.
    pub fn misbehave(&mut self, name: &str, argument: &str) -> Option<Answer> {
        match name {
            "segv" => self.agent().end_by("SEGV"),
            "freeze" => self.agent().end_by("STOP"),
            "sleep" => self.sleep(argument.parse().unwrap_or(0)),
            "die-once" => {
                let file = self.agent().directory.join(format!("met-{argument}"));
                if File::create_new(file).is_ok() {
                    self.agent().leave(1);
                }
            }
            "deaf" => self.agent().go_deaf(),
            "asks" => self.ask_many(argument.parse().unwrap_or(1)),
            "stray" => self.stray(argument.parse().unwrap_or(1)),
            _ => return self.signal(name, argument),
        }
        None
    }

    fn sleep(&self, milliseconds: u64) {
        let until = Instant::now() + Duration::from_millis(milliseconds);
        while Instant::now() < until && !self.is_cancelled() {
            thread::sleep(GATE_POLL);
        }
    }

    /// In one write, as far as the pipe takes it.
    fn ask_many(&self, count: u64) {
        let line = |number| format!("{{\"id\":{number},\"method\":\"scripted/unknown\"}}\n");
        let lines: String = (1_000_000..1_000_000 + count).map(line).collect();
        self.agent().write(lines.as_bytes());
    }

    fn stray(&self, count: u64) {
        for number in 1..count {
            self.agent().answer(&json!(900_000 + number), json!({ "stopReason": "end_turn" }));
        }
        self.agent().answer(&json!(null), json!({ "stopReason": "end_turn" }));
    }
}

impl Agent {
    /// Sends itself a signal, once the journal says so.
    fn end_by(&self, signal: &str) {
        self.note("signal", json!({ "signal": signal }));
        let own = process::id().to_string();
        drop(Command::new("kill").args(["-s", signal, &own]).status());
    }

    /// Takes no further line, and does not notice the end of stdin either.
    fn go_deaf(&self) {
        self.note("deaf", json!({}));
        self.deaf.store(true, Ordering::SeqCst);
    }

    /// Comes back unless the agent went deaf.
    pub fn listen(&self) {
        while self.deaf.load(Ordering::SeqCst) {
            thread::park();
        }
    }

    /// Notes that what follows on stdout counts as output, or is no protocol line.
    pub fn note_output(&self, bytes: &[u8]) {
        if let Some(what) = SHOWS.iter().find(|what| memmem::find(bytes, what.as_bytes()).is_some())
        {
            return self.note("output", json!({ "what": what.trim_matches('"') }));
        }
        if !bytes.starts_with(b"{\"") || bytes.starts_with(b"{\"not\"") {
            self.note("rejected", json!({ "lines": memchr::memchr_iter(b'\n', bytes).count() }));
        }
    }
}
