//! Words of the fault rig: deaths, silence and noise, and the journal of possible output.
//!
//! | word | what happens |
//! |---|---|
//! | `segv` | the process dies of SIGSEGV |
//! | `freeze` | the process stops itself with SIGSTOP |
//! | `sleep:MS` | nothing, that long; a cancel ends it |
//! | `die-once:NAME` | the process exits with 1, the first time that this name comes |
//! | `deaf` | the agent stops reading stdin |
//! | `asks:N` | N requests that the client must refuse; waits for no answer |
//! | `fill-stdin` | the same without reading stdin any more, until it is full |
//! | `fork-chain` | starts a process that forks the next and exits, repeatedly, for seconds |
//! | `line:TEXT` | that line, with `$id` for the prompt's id and `$session` for the session's |
//! | `answer-line:TEXT` | the same, in place of the answer |
//! | `stray:N` | N responses with ids of no request, the last with id null |

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    process::{self, Command, Stdio},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use memchr::memmem;
use serde_json::json;

use crate::{
    Agent, GATE_POLL,
    turn::{Answer, Turn},
};

/// The substrings by which a line counts as output of an attempt.
const OUTPUT_MARKS: [&str; 8] = [
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
    pub fn fault(&mut self, name: &str, argument: &str) -> Option<Answer> {
        match name {
            "segv" => self.agent().end_by("SEGV"),
            "freeze" => self.agent().end_by("STOP"),
            "sleep" => self.sleep(argument.parse().unwrap_or(0)),
            "die-once" => {
                let file = self.agent().directory.join(format!("met-{argument}"));
                if File::create_new(file).is_ok() {
                    self.agent().exit_with(1);
                }
            }
            "deaf" => self.agent().stop_reading(),
            "fill-stdin" => self.fill_stdin(),
            "asks" => self.ask_many(argument.parse().unwrap_or(1)),
            "fork-chain" => self.start_fork_chain(),
            "line" => self.line_as_is(argument),
            "answer-line" => {
                self.line_as_is(argument);
                return Some(Answer::Nothing);
            }
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

    /// Sends all requests in one write, as far as the pipe takes it.
    fn ask_many(&self, count: u64) {
        let line = |number| format!("{{\"id\":{number},\"method\":\"scripted/unknown\"}}\n");
        let lines: String = (1_000_000..1_000_000 + count).map(line).collect();
        self.agent().write(lines.as_bytes());
    }

    /// Returns when the client has read the last request, and its pipe has no room for the answer.
    fn fill_stdin(&self) {
        self.agent().stop_reading();
        let size = rustix::pipe::fcntl_getpipe_size(io::stdin()).unwrap_or(0) as u64;
        let unread = |fd: BorrowedFd<'_>| rustix::io::ioctl_fionread(fd).unwrap_or(u64::MAX);
        // The pipe holds whole pages, of which the last answers leave a part.
        while unread(io::stdin().as_fd()) < size - size / 8 {
            self.ask_many(1_000);
        }
        self.ask_many(5_000);
        while unread(io::stdout().as_fd()) > 0 {
            thread::sleep(GATE_POLL);
        }
    }

    /// Each process has a session of its own, and lives shorter than a scan of `/proc` takes.
    fn start_fork_chain(&self) {
        let chain = "use POSIX (); for (1 .. 5000) { my $next = fork; POSIX::_exit(0) if $next; \
                     POSIX::setsid(); select(undef, undef, undef, 0.0004); }";
        let started = Command::new("perl").args(["-e", chain]).stdin(Stdio::null()).spawn();
        self.agent().note("fork-chain", json!({ "started": started.is_ok() }));
    }

    fn line_as_is(&self, text: &str) {
        let session = json!(self.session()).to_string();
        let line = text.replace("$id", &self.request().to_string()).replace("$session", &session);
        self.agent().write(format!("{line}\n").as_bytes());
    }

    fn stray(&self, count: u64) {
        for number in 1..count {
            self.agent().answer(&json!(900_000 + number), json!({ "stopReason": "end_turn" }));
        }
        self.agent().answer(&json!(null), json!({ "stopReason": "end_turn" }));
    }
}

impl Agent {
    /// Sends itself a signal, after a note in the journal.
    fn end_by(&self, signal: &str) {
        self.note("signal", json!({ "signal": signal }));
        let pid = process::id().to_string();
        drop(Command::new("kill").args(["-s", signal, &pid]).status());
    }

    /// Reads no further line, and ignores the end of stdin too.
    fn stop_reading(&self) {
        self.note("deaf", json!({}));
        self.stopped_reading.store(true, Ordering::SeqCst);
    }

    /// Returns unless the agent stopped reading.
    pub fn wait_if_stopped(&self) {
        while self.stopped_reading.load(Ordering::SeqCst) {
            thread::park();
        }
    }

    /// Notes that the next line on stdout counts as output, or is no protocol line.
    pub fn note_output(&self, bytes: &[u8]) {
        if let Some(what) =
            OUTPUT_MARKS.iter().find(|what| memmem::find(bytes, what.as_bytes()).is_some())
        {
            return self.note("output", json!({ "what": what.trim_matches('"') }));
        }
        if !bytes.starts_with(b"{\"") || bytes.starts_with(b"{\"not\"") {
            self.note("rejected", json!({ "lines": memchr::memchr_iter(b'\n', bytes).count() }));
        }
    }
}
