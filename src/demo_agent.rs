//! `greenroom demo-agent`: an ACP agent without a model, for trying greenroom out.
//!
//! Speaks ACP v1 on stdio; its answers are deterministic. Stores its sessions in files under their
//! cwd, so that they survive restarts as a real agent's do. Words in a prompt control it: `tool`
//! shows a tool call, `permission` requests a permission, `slow` takes about four seconds;
//! `/compact` compacts. Knows nothing of the server; the server treats it like any other agent.

mod inbox;
mod session;
mod turn;

use std::{
    collections::BTreeMap,
    io::{self, BufReader, Read, Write},
    path::Path,
};

use serde_json::{Value, json};

use self::{
    inbox::{Inbox, Message},
    session::Session,
};

/// JSON-RPC error codes; the last one is ACP's.
const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
const INTERNAL_ERROR: i64 = -32603;
const RESOURCE_NOT_FOUND: i64 = -32002;

/// A failed request: JSON-RPC code and message.
#[derive(Debug)]
struct RequestError(i64, String);

impl RequestError {
    fn invalid_params(message: impl Into<String>) -> Self {
        RequestError(INVALID_PARAMS, message.into())
    }
}

/// Runs the agent on stdin and stdout until stdin ends.
///
/// # Errors
///
/// Stdout cannot be written.
pub fn run() -> io::Result<()> {
    serve(io::stdin(), io::stdout())
}

fn serve(input: impl Read + Send + 'static, output: impl Write) -> io::Result<()> {
    let mut agent = Agent {
        inbox: Inbox::start(BufReader::new(input)),
        output,
        shows_compaction: false,
        sessions: BTreeMap::new(),
        next_request: 0,
    };
    while let Some(message) = agent.inbox.next() {
        agent.handle(message)?;
    }
    Ok(())
}

struct Agent<W> {
    inbox: Inbox,
    output: W,
    /// The client advertised `clientCapabilities.session.compaction`.
    shows_compaction: bool,
    sessions: BTreeMap<String, Session>,
    /// Id of the next request to the client.
    next_request: u64,
}

impl<W: Write> Agent<W> {
    fn handle(&mut self, message: Message) -> io::Result<()> {
        match message {
            Message::NotJson => {
                self.send_error(&Value::Null, &RequestError(PARSE_ERROR, "not JSON".into()))
            }
            Message::Request { id, method, params } => self.request(&id, &method, &params),
            // A cancel without a running prompt, an unknown notification, or a late response.
            Message::Notification { .. } | Message::Response { .. } => Ok(()),
            Message::Other => {
                let error = RequestError(INVALID_REQUEST, "not a JSON-RPC message".into());
                self.send_error(&Value::Null, &error)
            }
        }
    }

    fn request(&mut self, id: &Value, method: &str, params: &Value) -> io::Result<()> {
        let answer = match method {
            "initialize" => Ok(self.initialize(params)),
            "session/new" => self.new_session(params),
            "session/load" => match self.open_session(params) {
                Ok(session) => {
                    for update in session.history() {
                        self.send_update(session.id(), update)?;
                    }
                    self.keep_session(session);
                    Ok(json!({}))
                }
                Err(error) => Err(error),
            },
            "session/resume" => self.open_session(params).map(|session| {
                self.keep_session(session);
                json!({})
            }),
            "session/prompt" => return self.prompt(id, params),
            _ => Err(RequestError(METHOD_NOT_FOUND, format!("method not found: {method}"))),
        };
        match answer {
            Ok(result) => {
                self.send_result(id, result.clone())?;
                match (method, result["sessionId"].as_str()) {
                    ("session/new", Some(session)) => self.announce_commands(session),
                    _ => Ok(()),
                }
            }
            Err(error) => self.send_error(id, &error),
        }
    }

    fn initialize(&mut self, params: &Value) -> Value {
        self.shows_compaction = params["clientCapabilities"]["session"]["compaction"].is_object();
        json!({
            "protocolVersion": 1,
            "agentInfo": {
                "name": "greenroom-demo-agent",
                "title": "greenroom's demo agent",
                "version": env!("CARGO_PKG_VERSION"),
            },
            "agentCapabilities": {"loadSession": true, "sessionCapabilities": {"resume": {}}},
            "authMethods": [],
        })
    }

    fn new_session(&mut self, params: &Value) -> Result<Value, RequestError> {
        let session = Session::create(cwd(params)?).map_err(|error| {
            RequestError(INTERNAL_ERROR, format!("cannot create a session: {error}"))
        })?;
        let id = session.id().to_owned();
        self.keep_session(session);
        Ok(json!({"sessionId": id}))
    }

    fn open_session(&self, params: &Value) -> Result<Session, RequestError> {
        let id = params["sessionId"].as_str().unwrap_or_default();
        let session = Session::open(cwd(params)?, id).map_err(|error| {
            RequestError(INTERNAL_ERROR, format!("cannot read the session: {error}"))
        })?;
        session.ok_or_else(|| RequestError(RESOURCE_NOT_FOUND, format!("unknown session: {id}")))
    }

    fn keep_session(&mut self, session: Session) {
        self.sessions.insert(session.id().to_owned(), session);
    }

    fn announce_commands(&mut self, session: &str) -> io::Result<()> {
        let commands = json!([{
            "name": "compact",
            "description": "Replace this session's history by a summary",
        }]);
        let update = json!({
            "sessionUpdate": "available_commands_update",
            "availableCommands": commands,
        });
        self.send_update(session, &update)
    }

    /// Sends one `session/update` notification.
    fn send_update(&mut self, session: &str, update: &Value) -> io::Result<()> {
        self.send(&json!({
            "jsonrpc": "2.0",
            "method": "session/update",
            "params": {"sessionId": session, "update": update},
        }))
    }

    fn send_result(&mut self, id: &Value, result: Value) -> io::Result<()> {
        self.send(&json!({"jsonrpc": "2.0", "id": id, "result": result}))
    }

    fn send_error(
        &mut self,
        id: &Value,
        RequestError(code, message): &RequestError,
    ) -> io::Result<()> {
        let error = json!({"code": code, "message": message});
        self.send(&json!({"jsonrpc": "2.0", "id": id, "error": error}))
    }

    fn send(&mut self, message: &Value) -> io::Result<()> {
        let mut line = message.to_string();
        line.push('\n');
        self.output.write_all(line.as_bytes())?;
        self.output.flush()
    }
}

fn cwd(params: &Value) -> Result<&Path, RequestError> {
    let cwd = params["cwd"].as_str().map(Path::new);
    cwd.filter(|cwd| cwd.is_absolute())
        .ok_or_else(|| RequestError::invalid_params("cwd must be an absolute path"))
}

#[cfg(test)]
#[path = "demo_agent/tests.rs"]
mod tests;
