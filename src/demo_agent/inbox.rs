//! What the client sends, read by a thread so that a cancel is seen in mid-turn.

use std::collections::VecDeque;
use std::io::BufRead;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// One line from the client.
#[derive(Debug)]
pub enum Received {
    Request {
        id: Value,
        method: String,
        params: Value,
    },
    Notification {
        method: String,
        params: Value,
    },
    Response {
        id: Value,
        result: Value,
    },
    /// JSON, but no JSON-RPC message.
    Other,
    /// No JSON.
    Garbage,
}

impl Received {
    fn read(line: &[u8]) -> Self {
        let Ok(mut message) = serde_json::from_slice::<Value>(line) else {
            return Received::Garbage;
        };
        let Some(fields) = message.as_object_mut() else { return Received::Other };
        let id = fields.remove("id");
        let params = fields.remove("params").unwrap_or_default();
        match (fields.remove("method"), id) {
            (Some(Value::String(method)), Some(id)) => Received::Request { id, method, params },
            (Some(Value::String(method)), None) => Received::Notification { method, params },
            (None, Some(id)) => {
                Received::Response { id, result: fields.remove("result").unwrap_or_default() }
            }
            _ => Received::Other,
        }
    }

    fn cancels(&self, session: &str) -> bool {
        matches!(self, Received::Notification { method, params }
            if method == "session/cancel" && params["sessionId"] == session)
    }
}

/// How a wait within a turn ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Wait {
    /// The time is over.
    Over,
    /// The client cancelled the session's turn.
    Cancelled,
    /// The client closed stdin.
    Closed,
    /// The client answered the request: its result, or null for an error.
    Answered(Value),
}

/// Lines in order; those that came during a turn are kept for after it.
pub struct Inbox {
    lines: Receiver<Received>,
    waiting: VecDeque<Received>,
}

impl Inbox {
    /// Starts reading `input`, in a thread that ends with it.
    pub fn start(mut input: impl BufRead + Send + 'static) -> Self {
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut line = Vec::new();
            loop {
                line.clear();
                match input.read_until(b'\n', &mut line) {
                    Ok(0) | Err(_) => return,
                    Ok(_) if line.trim_ascii().is_empty() => {}
                    Ok(_) if sender.send(Received::read(&line)).is_err() => return,
                    Ok(_) => {}
                }
            }
        });
        Inbox { lines, waiting: VecDeque::new() }
    }

    /// The next line, or None when there will be none.
    pub fn next(&mut self) -> Option<Received> {
        self.waiting.pop_front().or_else(|| self.lines.recv().ok())
    }

    /// Waits for `time`, or until `session` is cancelled.
    pub fn pause(&mut self, session: &str, time: Duration) -> Wait {
        let end = Instant::now() + time;
        self.wait(session, None, |lines| {
            lines.recv_timeout(end.saturating_duration_since(Instant::now()))
        })
    }

    /// Waits until the client answers our request `id`, or `session` is cancelled.
    pub fn await_answer(&mut self, session: &str, id: u64) -> Wait {
        self.wait(session, Some(id), |lines| {
            lines.recv().map_err(|_| RecvTimeoutError::Disconnected)
        })
    }

    fn wait(
        &mut self,
        session: &str,
        request: Option<u64>,
        receive: impl Fn(&Receiver<Received>) -> Result<Received, RecvTimeoutError>,
    ) -> Wait {
        loop {
            match receive(&self.lines) {
                Ok(line) if line.cancels(session) => return Wait::Cancelled,
                Ok(Received::Response { id, result }) => {
                    if request.is_some_and(|request| id == request) {
                        return Wait::Answered(result);
                    }
                }
                Ok(line) => self.waiting.push_back(line),
                Err(RecvTimeoutError::Timeout) => return Wait::Over,
                Err(RecvTimeoutError::Disconnected) => return Wait::Closed,
            }
        }
    }

    /// Takes out the prompts of `session` that wait; their request ids.
    pub fn take_prompts(&mut self, session: &str) -> Vec<Value> {
        let mut prompts = Vec::new();
        for line in std::mem::take(&mut self.waiting) {
            match line {
                Received::Request { id, method, params }
                    if method == "session/prompt" && params["sessionId"] == session =>
                {
                    prompts.push(id);
                }
                other => self.waiting.push_back(other),
            }
        }
        prompts
    }
}
