//! Tests of the demo agent, with a client on pipes.
#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, PipeReader, PipeWriter},
    thread::{self, JoinHandle},
};

use agent_client_protocol_schema::v1;
use tempfile::TempDir;

use super::*;

struct Client {
    to_agent: Option<PipeWriter>,
    from_agent: BufReader<PipeReader>,
    agent: Option<JoinHandle<io::Result<()>>>,
    next_id: u64,
}

impl Client {
    fn start() -> Self {
        let (input, to_agent) = io::pipe().unwrap();
        let (from_agent, output) = io::pipe().unwrap();
        let agent = Some(thread::spawn(move || serve(input, output)));
        let from_agent = BufReader::new(from_agent);
        Client { to_agent: Some(to_agent), from_agent, agent, next_id: 1 }
    }

    /// Starts a client and creates a session in `directory`.
    fn with_session(directory: &TempDir, compaction: bool) -> (Self, String) {
        let mut client = Client::start();
        let session = if compaction { json!({"compaction": {}}) } else { json!({}) };
        client.request(
            "initialize",
            json!({"protocolVersion": 1, "clientCapabilities": {"session": session}}),
        );
        client.read();
        client.request("session/new", json!({"cwd": directory.path(), "mcpServers": []}));
        let session = client.read()["result"]["sessionId"].as_str().unwrap().to_owned();
        let commands = client.read();
        assert_eq!(commands["params"]["update"]["sessionUpdate"], "available_commands_update");
        (client, session)
    }

    fn write(&mut self, line: &str) {
        writeln!(self.to_agent.as_mut().unwrap(), "{line}").unwrap();
    }

    fn request(&mut self, method: &str, params: Value) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.write(
            &json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string(),
        );
        id
    }

    fn prompt(&mut self, session: &str, text: &str) -> u64 {
        let prompt = json!([{"type": "text", "text": text}]);
        self.request("session/prompt", json!({"sessionId": session, "prompt": prompt}))
    }

    fn cancel(&mut self, session: &str) {
        let params = json!({"sessionId": session});
        self.write(
            &json!({"jsonrpc": "2.0", "method": "session/cancel", "params": params}).to_string(),
        );
    }

    /// Reads the next message, and checks it against the types of the ACP schema.
    fn read(&mut self) -> Value {
        let mut line = String::new();
        assert_ne!(self.from_agent.read_line(&mut line).unwrap(), 0, "the agent closed stdout");
        let message: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(message["jsonrpc"], "2.0");
        let params = message["params"].clone();
        match message["method"].as_str() {
            Some("session/update") => {
                let _: v1::SessionNotification = serde_json::from_value(params).unwrap();
            }
            Some("session/request_permission") => {
                let _: v1::RequestPermissionRequest = serde_json::from_value(params).unwrap();
            }
            Some(other) => panic!("unexpected {other}"),
            None => {}
        }
        message
    }

    /// Reads up to the response to request `id`; returns the updates before it, and the response.
    fn read_until(&mut self, id: u64) -> (Vec<Value>, Value) {
        let mut updates = Vec::new();
        loop {
            let message = self.read();
            if message["id"] == id && message.get("method").is_none() {
                return (updates, message);
            }
            updates.push(message["params"]["update"].clone());
        }
    }

    /// Closes stdin and waits until the agent ends.
    fn close(mut self) {
        drop(self.to_agent.take());
        self.agent.take().unwrap().join().unwrap().unwrap();
    }
}

fn kinds(updates: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<&str> =
        updates.iter().map(|update| update["sessionUpdate"].as_str().unwrap()).collect();
    kinds.dedup();
    kinds
}

fn text(updates: &[Value]) -> String {
    let chunks = updates.iter().filter(|update| update["sessionUpdate"] == "agent_message_chunk");
    chunks.filter_map(|update| update["content"]["text"].as_str()).collect()
}

#[test]
fn initialize_returns_the_capabilities() {
    let mut client = Client::start();
    let id = client.request("initialize", json!({"protocolVersion": 7}));
    let answer = client.read();
    assert_eq!(answer["id"], id);
    let initialized: v1::InitializeResponse =
        serde_json::from_value(answer["result"].clone()).unwrap();
    assert!(initialized.agent_capabilities.load_session);
    assert_eq!(answer["result"]["protocolVersion"], 1);
    assert_eq!(answer["result"]["agentCapabilities"]["sessionCapabilities"]["resume"], json!({}));
    client.close();
}

#[test]
fn a_turn_streams_an_answer_and_costs_context() {
    let directory = tempfile::tempdir().unwrap();
    let (mut client, session) = Client::with_session(&directory, true);
    let mut used = 0;
    for turn in 1..=2 {
        let id = client.prompt(&session, "Hello there");
        let (updates, answer) = client.read_until(id);
        assert_eq!(kinds(&updates), ["agent_message_chunk", "usage_update"]);
        assert!(3 < updates.len(), "several chunks");
        let expected = format!("You said: Hello there\nThis is turn {turn} of session {session}.");
        assert_eq!(text(&updates), expected);
        assert_eq!(answer["result"]["stopReason"], "end_turn");
        let usage = &answer["result"]["usage"];
        let total = usage["totalTokens"].as_u64().unwrap();
        let output = usage["outputTokens"].as_u64().unwrap();
        assert_eq!(total, usage["inputTokens"].as_u64().unwrap() + output);
        let now = updates.last().unwrap()["used"].as_u64().unwrap();
        assert!(used < now && now < updates.last().unwrap()["size"].as_u64().unwrap());
        used = now;
    }
    client.close();
}

#[test]
fn only_whole_words_control_the_agent() {
    let directory = tempfile::tempdir().unwrap();
    let (mut client, session) = Client::with_session(&directory, true);
    let id = client.prompt(&session, "toolbox permissions slowly");
    assert_eq!(kinds(&client.read_until(id).0), ["agent_message_chunk", "usage_update"]);
    let id = client.prompt(&session, "Use a TOOL.");
    let (updates, _) = client.read_until(id);
    let expected = ["tool_call", "tool_call_update", "agent_message_chunk", "usage_update"];
    assert_eq!(kinds(&updates), expected);
    assert_eq!(updates[0]["toolCallId"], updates[1]["toolCallId"]);
    assert_eq!(updates[1]["status"], "completed");
    client.close();
}

#[test]
fn a_cancel_ends_the_running_prompt_and_the_queued_ones() {
    let directory = tempfile::tempdir().unwrap();
    let (mut client, session) = Client::with_session(&directory, true);
    let running = client.prompt(&session, "slow please");
    client.read();
    let waiting = client.prompt(&session, "and then this");
    client.cancel("demo-another");
    client.cancel(&session);
    let (updates, answer) = client.read_until(running);
    assert_eq!(answer["result"]["stopReason"], "cancelled");
    assert!(updates.len() < 40, "truncated");
    assert_eq!(
        client.read(),
        json!({"jsonrpc": "2.0", "id": waiting, "result": {"stopReason": "cancelled"}})
    );
    // A cancel while idle does nothing to the next turn.
    client.cancel(&session);
    let id = client.prompt(&session, "still there?");
    assert_eq!(client.read_until(id).1["result"]["stopReason"], "end_turn");
    client.close();
}

#[test]
fn a_turn_waits_for_its_permission() {
    let directory = tempfile::tempdir().unwrap();
    let (mut client, session) = Client::with_session(&directory, true);
    let outcomes = [
        (json!({"outcome": {"outcome": "selected", "optionId": "allow"}}), "I was allowed to."),
        (json!({"outcome": {"outcome": "selected", "optionId": "reject"}}), "I was not allowed"),
        (json!({"outcome": {"outcome": "cancelled"}}), "I was not allowed to."),
    ];
    for (number, (outcome, expected)) in outcomes.into_iter().enumerate() {
        let id = client.prompt(&session, "permission");
        assert_eq!(client.read()["params"]["update"]["status"], "pending");
        let request = client.read();
        assert_eq!(request["method"], "session/request_permission");
        assert_eq!(request["id"], number);
        client.write(&json!({"jsonrpc": "2.0", "id": 99, "result": {}}).to_string());
        client.write(&json!({"jsonrpc": "2.0", "id": number, "result": outcome}).to_string());
        let (updates, answer) = client.read_until(id);
        assert!(text(&updates).starts_with(expected), "{updates:?}");
        assert_eq!(answer["result"]["stopReason"], "end_turn");
    }
    let id = client.prompt(&session, "permission");
    client.read();
    client.read();
    client.cancel(&session);
    assert_eq!(client.read_until(id).1["result"]["stopReason"], "cancelled");
    client.close();
}

#[test]
fn a_compaction_frees_context_and_is_reported_to_clients_that_support_it() {
    for shown in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let (mut client, session) = Client::with_session(&directory, shown);
        let long = "words ".repeat(2_000);
        let id = client.prompt(&session, &long);
        let before = client.read_until(id).0.last().unwrap()["used"].as_u64().unwrap();
        let id = client.prompt(&session, "/compact");
        let (updates, answer) = client.read_until(id);
        assert_eq!(answer["result"]["stopReason"], "end_turn");
        let after = updates.last().unwrap()["used"].as_u64().unwrap();
        assert!(after < before / 2, "{before} became {after}");
        if !shown {
            assert_eq!(kinds(&updates), ["agent_message_chunk", "usage_update"]);
            continue;
        }
        assert_eq!(kinds(&updates), ["compaction_update", "usage_update"]);
        assert_eq!(updates[0]["status"], "in_progress");
        assert_eq!(updates[1]["status"], "completed");
        assert_eq!(updates[0]["compactionId"], updates[1]["compactionId"]);
        assert_eq!(updates[1]["summary"][0]["text"], "Summary of 1 turns, all of them echoes.");
        // A second compaction has another id, and can be cancelled.
        let id = client.prompt(&session, "/compact");
        let first = client.read();
        client.cancel(&session);
        let (second, answer) = client.read_until(id);
        assert_ne!(first["params"]["update"]["compactionId"], updates[0]["compactionId"]);
        assert_eq!(second[0]["status"], "cancelled");
        assert_eq!(answer["result"]["stopReason"], "cancelled");
        client.close();
    }
}

#[test]
fn sessions_survive_the_process_and_have_ids_of_their_own() {
    let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut client, session) = Client::with_session(&directory, true);
    let others = [&directory, &other].map(|directory| Client::with_session(directory, true).1);
    assert!(!others.contains(&session) && others[0] != others[1], "{session} {others:?}");
    let id = client.prompt(&session, "remember me");
    client.read_until(id);
    client.close();

    let mut client = Client::start();
    let params = json!({"sessionId": session, "cwd": directory.path(), "mcpServers": []});
    let id = client.request("session/load", params.clone());
    let (replayed, answer) = client.read_until(id);
    assert_eq!(kinds(&replayed), ["user_message_chunk", "agent_message_chunk"]);
    assert_eq!(answer["result"], json!({}));
    let id = client.prompt(&session, "and now?");
    assert!(text(&client.read_until(id).0).contains("This is turn 2"));
    client.close();

    let mut client = Client::start();
    let id = client.request("session/resume", params);
    let (replayed, answer) = client.read_until(id);
    assert_eq!((replayed.len(), &answer["result"]), (0, &json!({})));
    let id = client.prompt(&session, "and now?");
    assert!(text(&client.read_until(id).0).contains("This is turn 3"));
    client.close();
}

#[test]
fn an_invalid_request_gets_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let cwd = directory.path();
    #[rustfmt::skip]
    let cases = [
        ("session/load",   json!({"cwd": cwd, "sessionId": "demo-0-1"}),      RESOURCE_NOT_FOUND),
        ("session/resume", json!({"cwd": cwd, "sessionId": "demo-0-1"}),      RESOURCE_NOT_FOUND),
        ("session/load",   json!({"cwd": cwd, "sessionId": "../x"}),          RESOURCE_NOT_FOUND),
        ("session/load",   json!({"cwd": cwd}),                               RESOURCE_NOT_FOUND),
        ("session/new",    json!({"cwd": "relative"}),                        INVALID_PARAMS),
        ("session/new",    json!({}),                                         INVALID_PARAMS),
        ("session/new",    json!({"cwd": cwd.join("missing\0")}),             INTERNAL_ERROR),
        ("session/prompt", json!({"sessionId": "demo-0-1", "prompt": []}),    INVALID_PARAMS),
        ("authenticate",   json!({"methodId": "x"}),                          METHOD_NOT_FOUND),
        ("_ext/anything",  json!({}),                                         METHOD_NOT_FOUND),
    ];
    // A valid session file outside the directory of the sessions.
    let state = r#"{"turns":0,"compactions":0,"used_tokens":0,"history":[]}"#;
    std::fs::create_dir(cwd.join(".greenroom-demo")).unwrap();
    std::fs::write(cwd.join("x.json"), state).unwrap();
    let mut client = Client::start();
    for (method, params, code) in cases {
        let id = client.request(method, params.clone());
        let answer = client.read();
        assert_eq!(
            (&answer["id"], &answer["error"]["code"]),
            (&id.into(), &code.into()),
            "{method} {params}"
        );
    }
    for (line, code) in [("{", PARSE_ERROR), ("[]", INVALID_REQUEST), ("7", INVALID_REQUEST)] {
        client.write(line);
        let answer = client.read();
        assert_eq!((&answer["id"], &answer["error"]["code"]), (&Value::Null, &code.into()));
    }
    client.write("");
    client.write(r#"{"jsonrpc":"2.0","method":"unknown/notification"}"#);
    client.close();
}

#[test]
fn the_agent_ends_with_stdin_even_during_a_turn() {
    let directory = tempfile::tempdir().unwrap();
    let (mut client, session) = Client::with_session(&directory, true);
    client.prompt(&session, "slow");
    client.read();
    let start = std::time::Instant::now();
    client.close();
    assert!(start.elapsed() < std::time::Duration::from_secs(2));
}
