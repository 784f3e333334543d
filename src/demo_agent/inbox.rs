//! The client's messages, read by a thread so that a cancel arrives during a turn.

use std::{
    collections::VecDeque,
    io::BufRead,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// One message from the client.
#[derive(Debug)]
pub enum Message {
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
    /// JSON, but not a JSON-RPC message.
    Other,
    /// Not JSON.
    NotJson,
}

impl Message {
    fn parse(line: &[u8]) -> Self {
        let Ok(mut message) = serde_json::from_slice::<Value>(line) else {
            return Message::NotJson;
        };
        let Some(fields) = message.as_object_mut() else { return Message::Other };
        let id = fields.remove("id");
        let params = fields.remove("params").unwrap_or_default();
        match (fields.remove("method"), id) {
            (Some(Value::String(method)), Some(id)) => Message::Request { id, method, params },
            (Some(Value::String(method)), None) => Message::Notification { method, params },
            (None, Some(id)) => {
                Message::Response { id, result: fields.remove("result").unwrap_or_default() }
            }
            _ => Message::Other,
        }
    }

    /// Whether this is a `session/cancel` of `session`.
    fn cancels(&self, session: &str) -> bool {
        matches!(self, Message::Notification { method, params }
            if method == "session/cancel" && params["sessionId"] == session)
    }
}

/// How a wait within a turn ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Wait {
    /// The time has elapsed.
    Elapsed,
    /// The client cancelled the session's turn.
    Cancelled,
    /// The client closed stdin.
    Closed,
    /// The client responded to the request: its result, or null for an error.
    Response(Value),
}

/// The messages in order; those that arrive during a turn are deferred until its end.
pub struct Inbox {
    messages: Receiver<Message>,
    deferred: VecDeque<Message>,
}

impl Inbox {
    /// Starts reading `input`, in a thread that ends at the end of `input`.
    pub fn start(mut input: impl BufRead + Send + 'static) -> Self {
        let (sender, messages) = mpsc::channel();
        thread::spawn(move || {
            let mut line = Vec::new();
            loop {
                line.clear();
                match input.read_until(b'\n', &mut line) {
                    Ok(0) | Err(_) => return,
                    Ok(_) if line.trim_ascii().is_empty() => {}
                    Ok(_) if sender.send(Message::parse(&line)).is_err() => return,
                    Ok(_) => {}
                }
            }
        });
        Inbox { messages, deferred: VecDeque::new() }
    }

    /// Returns the next message; `None` at the end of the input.
    pub fn next(&mut self) -> Option<Message> {
        self.deferred.pop_front().or_else(|| self.messages.recv().ok())
    }

    /// Waits for `time`, or until `session` is cancelled.
    pub fn pause(&mut self, session: &str, time: Duration) -> Wait {
        let end = Instant::now() + time;
        self.wait(session, None, |messages| {
            messages.recv_timeout(end.saturating_duration_since(Instant::now()))
        })
    }

    /// Waits until the client responds to request `id`, or `session` is cancelled.
    pub fn await_response(&mut self, session: &str, id: u64) -> Wait {
        self.wait(session, Some(id), |messages| {
            messages.recv().map_err(|_| RecvTimeoutError::Disconnected)
        })
    }

    fn wait(
        &mut self,
        session: &str,
        request: Option<u64>,
        receive: impl Fn(&Receiver<Message>) -> Result<Message, RecvTimeoutError>,
    ) -> Wait {
        loop {
            match receive(&self.messages) {
                Ok(message) if message.cancels(session) => return Wait::Cancelled,
                Ok(Message::Response { id, result }) => {
                    if request.is_some_and(|request| id == request) {
                        return Wait::Response(result);
                    }
                }
                Ok(message) => self.deferred.push_back(message),
                Err(RecvTimeoutError::Timeout) => return Wait::Elapsed,
                Err(RecvTimeoutError::Disconnected) => return Wait::Closed,
            }
        }
    }

    /// Removes the deferred prompts of `session`; returns their request ids.
    pub fn take_prompts(&mut self, session: &str) -> Vec<Value> {
        let mut prompts = Vec::new();
        for message in std::mem::take(&mut self.deferred) {
            match message {
                Message::Request { id, method, params }
                    if method == "session/prompt" && params["sessionId"] == session =>
                {
                    prompts.push(id);
                }
                other => self.deferred.push_back(other),
            }
        }
        prompts
    }
}
