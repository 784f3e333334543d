//! The scripted agent, driven on its pipes: the other tests rely on this behaviour.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
};

use agent_client_protocol_schema::v1::SessionUpdate;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    Journal, Log, TIMEOUT, eventually,
    process::{KillOnDrop, is_alive},
    setup::scripted_agent,
};

/// The scripted agent's process, driven as a client would drive it.
struct Driver {
    directory: TempDir,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Vec<u8>>,
    journal: Journal,
    next_id: u64,
}

impl Driver {
    fn start(arguments: &[&str]) -> Self {
        Self::start_in(TempDir::new().unwrap(), arguments)
    }

    fn start_in(directory: TempDir, arguments: &[&str]) -> Self {
        let mut child = Command::new(scripted_agent())
            .args(arguments)
            .env("SCRIPT_DIR", directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            stdout.split(b'\n').map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let log = Log::default();
        log.follow(child.stderr.take().unwrap());
        let journal = Journal::new(directory.path().to_owned(), log);
        let stdin = child.stdin.take();
        Self { directory, child, stdin, lines, journal, next_id: 0 }
    }

    /// Starts, initializes, and opens a session.
    fn ready() -> (Self, String) {
        let mut driver = Self::start(&[]);
        let result = driver.call("initialize", json!({ "protocolVersion": 1 }));
        assert_eq!(result["result"]["protocolVersion"], 1);
        let result = driver.call("session/new", json!({ "cwd": "/", "mcpServers": [] }));
        let session = result["result"]["sessionId"].as_str().unwrap().to_owned();
        assert!(driver.line().contains("available_commands_update"));
        (driver, session)
    }

    fn send(&mut self, message: &Value) {
        let line = format!("{message}\n");
        self.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }

    fn ask(&mut self, method: &str, params: Value) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }));
        id
    }

    /// Sends a request and skips to its response.
    fn call(&mut self, method: &str, params: Value) -> Value {
        let id = self.ask(method, params);
        self.until_response(id).pop().unwrap()
    }

    fn prompt(&mut self, session: &str, text: &str) -> u64 {
        let prompt = json!([{ "type": "text", "text": text }]);
        self.ask("session/prompt", json!({ "sessionId": session, "prompt": prompt }))
    }

    /// Plays a prompt; returns its updates and, last, its response.
    fn play(&mut self, session: &str, text: &str) -> Vec<Value> {
        let id = self.prompt(session, text);
        self.until_response(id)
    }

    fn bytes(&self) -> Vec<u8> {
        self.lines.recv_timeout(TIMEOUT).expect("a line from the agent")
    }

    fn line(&self) -> String {
        String::from_utf8(self.bytes()).unwrap()
    }

    fn message(&self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    fn until_response(&self, id: u64) -> Vec<Value> {
        let mut messages = Vec::new();
        loop {
            let message = self.message();
            let found = message["id"] == id && message.get("method").is_none();
            messages.push(message);
            if found {
                return messages;
            }
        }
    }

    /// Waits until the agent ends by itself.
    fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// Closes the agent's stdin and waits for its end.
    fn close(&mut self) -> Option<i32> {
        self.stdin = None;
        self.exit_code()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn text(message: &Value) -> &str {
    message["params"]["update"]["content"]["text"].as_str().unwrap_or_default()
}

/// Words that produce output: replies, chunks of an exact length, usage, tools; a prompt without
/// words is echoed.
#[test]
fn words_produce_their_output() {
    let (mut agent, session) = Driver::ready();
    let messages = agent.play(&session, "plain");
    assert_eq!(text(&messages[0]), "echo: plain");
    assert_eq!(messages[1]["result"]["stopReason"], "end_turn");
    let messages = agent.play(&session, "x [[reply:a: b]] y [[usage:5:10]][[tokens:3:4]][[tool]]");
    assert_eq!(text(&messages[0]), "a: b");
    assert_eq!(messages[1]["params"]["update"]["used"], 5);
    assert_eq!(messages[2]["params"]["update"]["sessionUpdate"], "tool_call");
    assert_eq!(messages[3]["params"]["update"]["status"], "completed");
    assert_eq!(messages[4]["result"]["usage"]["totalTokens"], 7);
    let id = agent.prompt(&session, "[[chunks:1000:300]]");
    for number in 1..=1000 {
        let line = agent.line();
        assert_eq!(line.len() + 1, 300);
        let message: Value = serde_json::from_str(&line).unwrap();
        assert!(text(&message).starts_with(&format!("{number} ")));
    }
    assert_eq!(agent.until_response(id).len(), 1);
    let messages = agent.play(&session, "[[refuse]]");
    assert_eq!(messages[0]["result"]["stopReason"], "refusal");
    let messages = agent.play(&session, "[[error:-32603:out: of luck]]");
    assert_eq!(messages[0]["error"], json!({ "code": -32603, "message": "out: of luck" }));
    let messages = agent.play(&session, "[[no such word]]");
    assert_eq!(messages[0]["error"]["code"], -32602);
    let messages = agent.play(&session, "/compact all of it");
    assert_eq!(text(&messages[0]), "Compacted.");
    let messages = agent.play(&session, "[[env]]");
    assert!(text(&messages[0]).split(' ').any(|name| name == "SCRIPT_DIR"));
    assert_eq!(agent.close(), Some(0));
}

/// Words that break the protocol.
#[test]
fn words_can_break_the_protocol() {
    let (mut agent, session) = Driver::ready();
    let id =
        agent.prompt(&session, "[[garbage]][[garbage-run:2]][[utf8]][[crlf]][[huge-line:70000]]");
    assert_eq!(agent.line(), "this line is not JSON");
    assert_eq!(agent.line(), "garbage line 1");
    assert_eq!(agent.line(), "garbage line 2");
    assert!(String::from_utf8(agent.bytes()).is_err());
    assert!(agent.line().ends_with("}\r"));
    assert_eq!(agent.line().len() + 1, 70_000);
    agent.until_response(id);
    let id = agent.prompt(&session, "[[deep:40]]");
    let deep = agent.line();
    assert!(deep.contains(&"[".repeat(40)) && serde_json::from_str::<Value>(&deep).is_ok());
    agent.until_response(id);
    let id = agent.prompt(&session, "[[deep:10000]]");
    assert!(serde_json::from_str::<Value>(&agent.line()).is_err());
    agent.until_response(id);
    let messages = agent.play(&session, "[[two-responses]]");
    assert_eq!(messages[0]["result"]["stopReason"], "end_turn");
    assert_eq!(agent.message()["result"]["stopReason"], "refusal");
    agent.play(&session, "[[late:20]]");
    assert_eq!(text(&agent.message()), "late");
    agent.prompt(&session, "[[no-answer]]");
    agent.journal.wait("silence", |event| event["stop"] == "nothing");
    let messages = agent.play(&session, "[[stderr:3]][[reply:after silence]]");
    assert_eq!(text(&messages[0]), "after silence");
    agent.prompt(&session, "[[no-newline-eof]]");
    assert_eq!(agent.message()["result"]["stopReason"], "end_turn");
    assert_eq!(agent.exit_code(), Some(0));
}

/// Requests to the client, and reports of the client's answers.
#[test]
fn client_answers_are_reported() {
    let (mut agent, session) = Driver::ready();
    let id = agent.prompt(&session, "[[permission]][[fs]][[unknown-request]]");
    let request = agent.message();
    assert_eq!(request["method"], "session/request_permission");
    assert_eq!(request["params"]["options"].as_array().unwrap().len(), 4);
    let outcome = json!({ "outcome": { "outcome": "selected", "optionId": "not-now" } });
    agent.send(&json!({ "jsonrpc": "2.0", "id": request["id"], "result": outcome }));
    assert_eq!(text(&agent.message()), "permission: selected not-now");
    for (method, report) in
        [("fs/read_text_file", "fs: -32601"), ("scripted/unknown", "unknown-request: -32601")]
    {
        let request = agent.message();
        assert_eq!(request["method"], method);
        let error = json!({ "code": -32601, "message": "no" });
        agent.send(&json!({ "jsonrpc": "2.0", "id": request["id"], "error": error }));
        assert_eq!(text(&agent.message()), report);
    }
    agent.until_response(id);
}

/// Permissions with other options, for tools of a kind, and several at a time.
#[test]
fn permission_words_choose_options_tools_and_concurrency() {
    let (mut agent, session) = Driver::ready();
    let words = "[[tool:open]][[permission-open:none:known]][[permission-open:lasting:edit]]";
    let id = agent.prompt(&session, &format!("{words}[[await-permissions]][[reply:all]]"));
    let tool = agent.message()["params"]["update"]["toolCallId"].clone();
    let requests = [agent.message(), agent.message()];
    let offered = requests.each_ref().map(|request| {
        let options = request["params"]["options"].as_array().unwrap().iter();
        options.map(|option| option["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    });
    assert_eq!(offered[0], ["allow_always", "allow_once"]);
    assert_eq!(offered[1], ["allow_always", "reject_always"]);
    assert_eq!(requests[0]["params"]["toolCall"], json!({ "toolCallId": tool }));
    assert_eq!(requests[1]["params"]["toolCall"]["kind"], "edit");
    for request in &requests {
        let outcome = json!({ "outcome": { "outcome": "cancelled" } });
        agent.send(&json!({ "jsonrpc": "2.0", "id": request["id"], "result": outcome }));
    }
    assert_eq!(text(&agent.until_response(id)[0]), "all");
    let answered = agent.journal.events_named("permission");
    assert_eq!(answered.len(), 2, "{answered:?}");
    assert!(answered.iter().any(|event| event["tool"] == tool), "{answered:?}");
    let messages = agent.play(&session, "[[unknown-request:open]]");
    assert_eq!(messages[0]["method"], "scripted/unknown");
    assert_eq!(messages.len(), 2, "the turn continued without an answer");
}

/// Words for some attempts only, minimal updates, and a start that fails until a gate is open.
#[test]
fn words_and_starts_can_depend_on_the_attempt() {
    let (mut agent, session) = Driver::ready();
    let prompt = "[[times:2:error:-32603:not yet]][[times:1:reply:no]][[reply:now]]";
    for _ in 0..2 {
        assert_eq!(agent.play(&session, prompt)[0]["error"]["message"], "not yet");
    }
    let messages = agent.play(&session, prompt);
    assert_eq!((text(&messages[0]), messages.len()), ("now", 2));
    let other = agent.play(&session, "[[times:1:reply:first]][[times:x:reply:y]]");
    assert_eq!(text(&other[0]), "first", "attempts are counted per prompt");
    assert_eq!(other[1]["error"]["code"], -32602);
    for kind in [
        "plan",
        "tool_call_update",
        "available_commands_update",
        "current_mode_update",
        "config_option_update",
        "session_info_update",
    ] {
        let messages = agent.play(&session, &format!("[[update:{kind}]]"));
        let update = &messages[0]["params"]["update"];
        assert_eq!(update["sessionUpdate"], kind);
        let parsed: Result<SessionUpdate, _> = serde_json::from_value(update.clone());
        assert!(parsed.is_ok(), "{update}: {parsed:?}");
    }
    assert_eq!(agent.play(&session, "[[update:else]]")[0]["error"]["code"], -32602);
    let mut closed = Driver::start(&["--exit-until", "open"]);
    assert_eq!(closed.exit_code(), Some(1));
    let directory = std::mem::replace(&mut closed.directory, TempDir::new().unwrap());
    closed.journal.open_gate("open");
    let mut open = Driver::start_in(directory, &["--exit-until", "open"]);
    let answered = open.call("initialize", json!({ "protocolVersion": 1 }));
    assert_eq!(answered["result"]["protocolVersion"], 1);
}

/// Gates, cancel, and the refusal of a second prompt; the journal has all of them.
#[test]
fn gates_block_and_cancel_ends_the_turn() {
    let (mut agent, session) = Driver::ready();
    let cancel =
        json!({ "jsonrpc": "2.0", "method": "session/cancel", "params": { "sessionId": session } });
    let id = agent.prompt(&session, "[[gate:one]][[reply:through]]");
    agent.journal.wait_gate("one");
    let refused = agent.play(&session, "second");
    assert_eq!(refused[0]["error"]["code"], -32600);
    agent.journal.open_gate("one");
    assert_eq!(text(&agent.until_response(id)[0]), "through");
    let id = agent.prompt(&session, "[[gate:two]][[reply:never]]");
    agent.journal.wait_gate("two");
    agent.send(&cancel);
    let messages = agent.until_response(id);
    assert_eq!(messages.last().unwrap()["result"]["stopReason"], "cancelled");
    assert_eq!(messages.len(), 1);
    let id = agent.prompt(&session, "[[ignore-cancel]][[gate:three]][[reply:deaf]]");
    agent.journal.wait_gate("three");
    agent.send(&cancel);
    agent.journal.wait("two cancels", |_| agent.journal.events_named("cancel").len() == 2);
    agent.journal.open_gate("three");
    assert_eq!(text(&agent.until_response(id)[0]), "deaf");
    assert_eq!(agent.journal.prompts().len(), 4);
    assert_eq!(agent.journal.events_named("overlap").len(), 1);
    assert_eq!(agent.journal.most_at_once(), 1);
}

/// A session survives the process: load replays it, resume does not; an unknown id is -32002.
#[test]
fn sessions_survive_a_restart_of_the_agent() {
    let (mut agent, session) = Driver::ready();
    agent.play(&session, "[[reply:remember me]]");
    agent.prompt(&session, "[[die:7]]");
    assert_eq!(agent.exit_code(), Some(7));
    let empty = TempDir::new().unwrap();
    let directory = std::mem::replace(&mut agent.directory, empty);
    let mut agent = Driver::start_in(directory, &["--load-empty", "--first-turn-marker"]);
    agent.call("initialize", json!({ "protocolVersion": 1 }));
    let load = agent.ask("session/load", json!({ "sessionId": session }));
    let replayed = agent.until_response(load);
    assert_eq!(text(&replayed[1]), "remember me");
    assert_eq!(replayed.last().unwrap()["result"], json!({}));
    let messages = agent.play(&session, "again");
    assert_eq!(text(&messages[0]), "echo: again", "not a first turn");
    let resumed = agent.call("session/resume", json!({ "sessionId": session }));
    assert_eq!(resumed["result"], json!({}));
    let unknown = agent.call("session/resume", json!({ "sessionId": "absent" }));
    assert_eq!(unknown["error"]["code"], -32002);
    let empty = agent.call("session/load", json!({ "sessionId": "absent" }));
    assert_eq!(empty["result"], json!({}), "--load-empty");
    let opened = agent.call("session/new", json!({ "cwd": "/" }));
    let opened = opened["result"]["sessionId"].as_str().unwrap().to_owned();
    agent.message();
    assert_eq!(text(&agent.play(&opened, "one")[0]), "[first turn]");
}

/// The switches that make a start fail.
#[test]
fn switches_make_a_start_fail() {
    assert_eq!(Driver::start(&["--exit-at-start", "3"]).exit_code(), Some(3));
    let version = json!({ "protocolVersion": 1 });
    let failed = Driver::start(&["--fail-initialize"]).call("initialize", version.clone());
    assert_eq!(failed["error"]["code"], -32603);
    let wrong = Driver::start(&["--wrong-version"]).call("initialize", version.clone());
    assert_ne!(wrong["result"]["protocolVersion"], 1);
    let mut bare = Driver::start(&["--no-resume", "--no-load"]);
    let capabilities = bare.call("initialize", version.clone())["result"].take();
    assert_eq!(capabilities["agentCapabilities"]["loadSession"], false);
    assert!(capabilities["agentCapabilities"].get("sessionCapabilities").is_none());
    let refused = bare.call("session/resume", json!({ "sessionId": "x" }));
    assert_eq!(refused["error"]["code"], -32601);
    let mut gated = Driver::start(&["--gate-initialize", "start"]);
    let id = gated.ask("initialize", version.clone());
    gated.journal.wait_gate("start");
    gated.journal.open_gate("start");
    gated.until_response(id);
    let mut silent = Driver::start(&["--hang-initialize"]);
    silent.ask("initialize", version);
    assert_eq!(silent.close(), Some(0), "the agent ends with its stdin");
    assert!(silent.lines.try_recv().is_err(), "the agent wrote nothing");
}

/// `[[spawn-orphans]]` starts three processes that survive the end of the agent.
#[test]
fn orphans_survive_the_agent() {
    let (mut agent, session) = Driver::ready();
    let messages = agent.play(&session, "[[spawn-orphans]]");
    let orphans = KillOnDrop::reported(&json!({ "text": text(&messages[0]) }));
    assert_eq!(orphans.0.len(), 3);
    assert!(orphans.all_live());
    assert_eq!(agent.close(), Some(0));
    assert!(orphans.all_live(), "the orphans died with the agent");
    let pids = orphans.0.clone();
    drop(orphans);
    eventually("the end of the orphans", &Log::default(), || {
        (!pids.iter().any(|pid| is_alive(*pid))).then_some(())
    });
}
