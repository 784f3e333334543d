//! A scripted ACP agent on stdio, for tests only: it performs the words of a prompt.
//!
//! It owns a control directory (`SCRIPT_DIR`, else the working directory) with its sessions, the
//! gates that tests open, and `journal.jsonl`, the fsynced ground truth of what it received. It
//! keeps ACP's rules unless a word or a switch breaks one. Prompt words: `turn.rs`, `requests.rs`,
//! `signals.rs` and `faults.rs`. Switches in its arguments: [`Switches`].
//!
//! Files in the control directory script the rest; the agent reads them each time: `on-compact` for
//! a `/compact` and `on-summary` for a request to summarize, if these have no words of their own;
//! `on-new` for `session/new` (only `error` and `gate`), `on-load` for `session/load` (only
//! `error`, `null`, `die` and `drip`).

use std::{
    collections::{HashMap, HashSet},
    env, fs,
    io::{self, BufRead, Write},
    os::fd::AsFd,
    path::PathBuf,
    process,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};

mod faults;
mod orphans;
mod requests;
mod sessions;
mod signals;
mod switches;
mod turn;
mod updates;
mod wedge;
mod words;

use switches::Switches;
use wedge::Wedge;

/// The error codes of JSON-RPC and ACP.
const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
const INTERNAL_ERROR: i64 = -32603;
const RESOURCE_NOT_FOUND: i64 = -32002;

/// How often a gate looks for its file.
const GATE_POLL: Duration = Duration::from_millis(2);

/// The process: its pipes, its files, and what its threads share.
struct Agent {
    switches: Switches,
    directory: PathBuf,
    journal: Mutex<fs::File>,
    output: Mutex<fs::File>,
    known: Mutex<HashSet<String>>,
    /// Whether the prompt that a session is busy with was cancelled.
    running: Mutex<HashMap<String, Arc<AtomicBool>>>,
    wedged: Mutex<HashMap<String, Wedge>>,
    pending: Mutex<HashMap<u64, Sender<Value>>>,
    next_number: AtomicU64,
    stopped_reading: AtomicBool,
}

fn main() {
    let directory = env::var_os("SCRIPT_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from);
    let switches = Switches::parse(env::args().skip(1)).unwrap_or_else(|err| {
        eprintln!("scripted-agent: {err}");
        process::exit(64);
    });
    let agent = Agent::open(directory, switches).unwrap_or_else(|err| {
        eprintln!("scripted-agent: cannot open the control directory or stdout: {err}");
        process::exit(74);
    });
    let agent = Arc::new(agent);
    let arguments: Vec<String> = env::args().skip(1).collect();
    let run = env::var("GREENROOM_RUN").ok();
    agent.note("start", json!({ "args": arguments, "run": run }));
    if let Some(code) = agent.switches.exit_at_start {
        agent.exit_with(code);
    }
    if agent.switches.exit_until.as_ref().is_some_and(|gate| !agent.directory.join(gate).exists()) {
        agent.exit_with(1);
    }
    for line in io::stdin().lock().split(b'\n') {
        let Ok(line) = line else { break };
        agent.wait_if_stopped();
        let line = String::from_utf8_lossy(&line).into_owned();
        match serde_json::from_str(&line) {
            Ok(message) => agent.take(message, &line),
            Err(err) => agent.note("unreadable", json!({ "line": line, "error": err.to_string() })),
        }
    }
    if agent.switches.outlives_eof {
        agent.wait_at_gate("outlived-eof", || false);
    }
    agent.wait_if_stopped();
    agent.exit_with(0);
}

impl Agent {
    fn open(directory: PathBuf, switches: Switches) -> io::Result<Self> {
        fs::create_dir_all(directory.join("sessions"))?;
        let journal =
            fs::File::options().append(true).create(true).open(directory.join("journal.jsonl"))?;
        let output = fs::File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Ok(Self {
            switches,
            directory,
            journal: Mutex::new(journal),
            output: Mutex::new(output),
            known: Mutex::default(),
            running: Mutex::default(),
            wedged: Mutex::default(),
            pending: Mutex::default(),
            next_number: AtomicU64::new(0),
            stopped_reading: AtomicBool::new(false),
        })
    }

    /// Handles one message from the client; prompts get a thread of their own.
    fn take(self: &Arc<Self>, message: Value, line: &str) {
        let id = message.get("id").cloned();
        let params = message.get("params").cloned().unwrap_or_default();
        let session = params["sessionId"].as_str().unwrap_or_default().to_owned();
        match (message["method"].as_str(), id) {
            (Some("initialize"), Some(id)) => self.initialize(id, &params),
            (Some("session/new"), Some(id)) => self.new_session(id, params),
            (Some("session/load"), Some(id)) if !self.switches.no_load => {
                self.load(&id, &session);
            }
            (Some("session/resume"), Some(id)) if !self.switches.no_resume => {
                self.resume(&id, &session);
            }
            (Some("session/prompt"), Some(id)) => self.prompt(id, session, &params, line),
            (Some("session/cancel"), None) => self.cancel(&session),
            (Some(method), Some(id)) => {
                self.note("unknown-request", json!({ "method": method }));
                self.fail(&id, METHOD_NOT_FOUND, "method not found");
            }
            (Some(method), None) => self.note("notification", json!({ "method": method })),
            (None, Some(id)) => self.deliver(&id, message),
            (None, None) => self.note("unreadable", json!({ "line": line })),
        }
    }

    fn initialize(self: &Arc<Self>, id: Value, params: &Value) {
        self.note("initialize", json!({ "params": params }));
        if self.switches.hang_initialize {
            return;
        }
        if self.switches.fail_initialize {
            return self.fail(&id, INTERNAL_ERROR, "initialize fails as scripted");
        }
        let agent = Arc::clone(self);
        let answer = move || {
            let mut capabilities = json!({
                "loadSession": !agent.switches.no_load,
                "promptCapabilities": { "embeddedContext": true },
            });
            if !agent.switches.no_resume {
                capabilities["sessionCapabilities"] = json!({ "resume": {} });
            }
            let version = if agent.switches.wrong_version { 4_242 } else { 1 };
            agent.answer(
                &id,
                json!({
                    "protocolVersion": version,
                    "agentCapabilities": capabilities,
                    "agentInfo": { "name": "scripted-agent", "version": "1" },
                    "authMethods": [],
                }),
            );
        };
        match self.switches.gate_initialize.clone() {
            None => answer(),
            Some(gate) => {
                let agent = Arc::clone(self);
                thread::spawn(move || {
                    agent.wait_at_gate(&gate, || false);
                    answer();
                });
            }
        }
    }

    fn prompt(self: &Arc<Self>, id: Value, session: String, params: &Value, line: &str) {
        let text = prompt_text(&params["prompt"]);
        let first = self.is_fresh(&session);
        let fields = json!({ "session": session, "text": text, "line": line, "first": first });
        self.note("prompt", fields);
        if !lock(&self.known).contains(&session) {
            return self.fail(&id, RESOURCE_NOT_FOUND, "no such session");
        }
        if self.answer_if_wedged(&id, &session) {
            return;
        }
        let cancelled = Arc::new(AtomicBool::new(false));
        {
            let mut running = lock(&self.running);
            if running.contains_key(&session) {
                drop(running);
                self.note("overlap", json!({ "session": session, "text": text }));
                return self.fail(&id, INVALID_REQUEST, "a prompt of this session is running");
            }
            running.insert(session.clone(), Arc::clone(&cancelled));
        }
        let agent = Arc::clone(self);
        thread::spawn(move || turn::Turn::new(agent, session, id, cancelled).play(&text));
    }

    fn cancel(&self, session: &str) {
        self.note("cancel", json!({ "session": session }));
        if let Some(cancelled) = lock(&self.running).get(session) {
            cancelled.store(true, Ordering::SeqCst);
        }
    }

    /// Passes the client's response to the turn that sent the request.
    fn deliver(&self, id: &Value, response: Value) {
        let waiting = id.as_u64().and_then(|id| lock(&self.pending).remove(&id));
        match waiting {
            Some(waiting) => drop(waiting.send(response)),
            None => self.note("stray-response", json!({ "response": response })),
        }
    }

    /// Sends a request to the client; the response comes from the receiver.
    fn ask(&self, method: &str, params: &Value) -> Receiver<Value> {
        let (sender, receiver) = channel();
        let id = self.number();
        lock(&self.pending).insert(id, sender);
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }));
        receiver
    }

    fn update(&self, session: &str, update: &Value) {
        self.send(&json!({
            "jsonrpc": "2.0",
            "method": "session/update",
            "params": { "sessionId": session, "update": update },
        }));
    }

    fn answer(&self, id: &Value, result: Value) {
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "result": result }));
    }

    fn fail(&self, id: &Value, code: i64, message: &str) {
        let error = json!({ "code": code, "message": message });
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "error": error }));
    }

    fn send(&self, message: &Value) {
        let mut line = message.to_string();
        line.push('\n');
        self.write(line.as_bytes());
    }

    /// Writes bytes to stdout as they are, in one piece; a closed pipe ends the process.
    fn write(&self, bytes: &[u8]) {
        if self.switches.journal_output {
            self.note_output(bytes);
        }
        let written = lock(&self.output).write_all(bytes);
        if written.is_err() {
            self.exit_with(0);
        }
    }

    /// Appends an event to the journal, and returns when it is on disk.
    fn note(&self, event: &str, mut fields: Value) {
        fields["event"] = json!(event);
        fields["pid"] = json!(process::id());
        let mut line = fields.to_string();
        line.push('\n');
        let mut journal = lock(&self.journal);
        if journal.write_all(line.as_bytes()).and_then(|()| journal.sync_data()).is_err() {
            eprintln!("scripted-agent: the journal cannot be written");
            process::exit(74);
        }
    }

    /// Counts the prompts of exactly this text in the journal, of all agents.
    fn received(&self, text: &str) -> usize {
        let journal = fs::read_to_string(self.directory.join("journal.jsonl")).unwrap_or_default();
        let events = journal.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter(|event| event["event"] == "prompt" && event["text"] == text).count()
    }

    fn exit_with(&self, code: i32) -> ! {
        self.note("exit", json!({ "code": code }));
        process::exit(code)
    }

    /// Waits until the gate's file exists or `interrupted` holds. Returns whether the gate opened.
    ///
    /// If the control directory is gone, the test is over: the process exits.
    fn wait_at_gate(&self, name: &str, interrupted: impl Fn() -> bool) -> bool {
        self.note("gate", json!({ "name": name }));
        let file = self.directory.join(name);
        while !file.exists() {
            if interrupted() {
                return false;
            }
            if !self.directory.exists() {
                process::exit(0);
            }
            thread::sleep(GATE_POLL);
        }
        true
    }

    /// Runs a shell script of the control directory; returns what it writes.
    fn shell(&self, name: &str) -> io::Result<String> {
        let mut command = process::Command::new("sh");
        command.arg(self.directory.join(name)).stdin(process::Stdio::null());
        let output = command.output()?;
        Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    fn number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::SeqCst)
    }
}

/// Joins the text blocks of a prompt; blocks of other types are left out.
fn prompt_text(prompt: &Value) -> String {
    let blocks = prompt.as_array().map(Vec::as_slice).unwrap_or_default();
    blocks.iter().filter_map(|block| block["text"].as_str()).collect::<Vec<_>>().join("\n")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
