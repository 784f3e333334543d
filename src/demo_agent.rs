//! `greenroom demo-agent`: an ACP agent without a model, so that everything can be tried at once.
//!
//! Speaks ACP v1 on stdio and always answers the same. Keeps its sessions in files under their cwd,
//! so that it survives restarts as a real agent does. Words in a prompt steer it: `tool` shows a
//! tool call, `permission` asks for one, `slow` takes about four seconds; `/compact` compacts.
//! Needs nothing of the server; the server treats it like any other agent.

mod inbox;
mod session;
mod turn;

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use serde_json::{Value, json};

use self::inbox::{Inbox, Received};
use self::session::Session;

/// JSON-RPC error codes, the last one ACP's own.
const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
const INTERNAL_ERROR: i64 = -32603;
const RESOURCE_NOT_FOUND: i64 = -32002;

/// A request that cannot be met: JSON-RPC code and message.
#[derive(Debug)]
struct Refusal(i64, String);

impl Refusal {
    fn params(message: impl Into<String>) -> Self {
        Refusal(INVALID_PARAMS, message.into())
    }
}

/// Runs the agent on stdin and stdout until stdin ends.
///
/// # Errors
///
/// Stdout cannot be written any more.
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
    while let Some(received) = agent.inbox.next() {
        agent.take(received)?;
    }
    Ok(())
}

struct Agent<W> {
    inbox: Inbox,
    output: W,
    /// The client advertised `clientCapabilities.session.compaction`.
    shows_compaction: bool,
    sessions: BTreeMap<String, Session>,
    /// Id of our next request to the client.
    next_request: u64,
}

impl<W: Write> Agent<W> {
    fn take(&mut self, received: Received) -> io::Result<()> {
        match received {
            Received::Garbage => {
                self.refuse(&Value::Null, &Refusal(PARSE_ERROR, "this is not JSON".into()))
            }
            Received::Request { id, method, params } => self.request(&id, &method, &params),
            // A cancel with no prompt in flight, a notification that we do not know, an answer
            // that nobody waits for any more.
            Received::Notification { .. } | Received::Response { .. } => Ok(()),
            Received::Other => {
                let refusal = Refusal(INVALID_REQUEST, "this is no JSON-RPC message".into());
                self.refuse(&Value::Null, &refusal)
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
                        self.update(session.id(), update)?;
                    }
                    self.keep(session);
                    Ok(json!({}))
                }
                Err(refusal) => Err(refusal),
            },
            "session/resume" => self.open_session(params).map(|session| {
                self.keep(session);
                json!({})
            }),
            "session/prompt" => return self.prompt(id, params),
            _ => Err(Refusal(METHOD_NOT_FOUND, format!("method not found: {method}"))),
        };
        match answer {
            Ok(result) => {
                self.answer(id, result.clone())?;
                match (method, result["sessionId"].as_str()) {
                    ("session/new", Some(session)) => self.announce_commands(session),
                    _ => Ok(()),
                }
            }
            Err(refusal) => self.refuse(id, &refusal),
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

    fn new_session(&mut self, params: &Value) -> Result<Value, Refusal> {
        let session = Session::create(cwd(params)?)
            .map_err(|error| Refusal(INTERNAL_ERROR, format!("no session was made: {error}")))?;
        let id = session.id().to_owned();
        self.keep(session);
        Ok(json!({"sessionId": id}))
    }

    fn open_session(&self, params: &Value) -> Result<Session, Refusal> {
        let id = params["sessionId"].as_str().unwrap_or_default();
        let session = Session::open(cwd(params)?, id)
            .map_err(|error| Refusal(INTERNAL_ERROR, format!("session cannot be read: {error}")))?;
        session.ok_or_else(|| Refusal(RESOURCE_NOT_FOUND, format!("unknown session: {id}")))
    }

    fn keep(&mut self, session: Session) {
        self.sessions.insert(session.id().to_owned(), session);
    }

    fn announce_commands(&mut self, session: &str) -> io::Result<()> {
        let commands = json!([{
            "name": "compact",
            "description": "Forget all but a summary of this session",
        }]);
        let update = json!({
            "sessionUpdate": "available_commands_update",
            "availableCommands": commands,
        });
        self.update(session, &update)
    }

    /// Sends one `session/update`.
    fn update(&mut self, session: &str, update: &Value) -> io::Result<()> {
        self.send(&json!({
            "jsonrpc": "2.0",
            "method": "session/update",
            "params": {"sessionId": session, "update": update},
        }))
    }

    fn answer(&mut self, id: &Value, result: Value) -> io::Result<()> {
        self.send(&json!({"jsonrpc": "2.0", "id": id, "result": result}))
    }

    fn refuse(&mut self, id: &Value, Refusal(code, message): &Refusal) -> io::Result<()> {
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

fn cwd(params: &Value) -> Result<&Path, Refusal> {
    let cwd = params["cwd"].as_str().map(Path::new);
    cwd.filter(|cwd| cwd.is_absolute())
        .ok_or_else(|| Refusal::params("cwd must be an absolute path"))
}

#[cfg(test)]
#[path = "demo_agent/tests.rs"]
mod tests;
