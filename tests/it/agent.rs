//! The scripted agent on its own: what other tests take the absence of for a proof. The words that
//! they wait for need no test of their own.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Journal, Log, setup::scripted_agent};

/// I1: the journal notes a prompt that arrives while another of its session is open, which is what
/// `assert_one_at_a_time` looks for.
#[test]
fn the_journal_notes_overlapping_prompts() {
    let directory = TempDir::new().unwrap();
    let mut agent = Command::new(scripted_agent())
        .env("SCRIPT_DIR", directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = agent.stdin.take().unwrap();
    let mut lines = BufReader::new(agent.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut ask = |id: u64, method: &str, params: Value| {
        writeln!(stdin, "{}", json!({ "id": id, "method": method, "params": params })).unwrap();
    };
    ask(1, "initialize", json!({ "protocolVersion": 1 }));
    ask(2, "session/new", json!({ "cwd": "/", "mcpServers": [] }));
    let mut answer = |id: u64| {
        let mut messages = lines.by_ref().map(|line| serde_json::from_str::<Value>(&line).unwrap());
        messages.find(|message| message["id"] == id).unwrap()
    };
    let session = answer(2)["result"]["sessionId"].clone();
    let prompt = |text: &str| json!({ "sessionId": session, "prompt": [{ "text": text }] });
    let journal = Journal::new(directory.path().to_owned(), Log::default());
    ask(3, "session/prompt", prompt("[[gate:go]]"));
    journal.wait_gate("go");
    assert_eq!(journal.most_at_once(), 1);
    ask(4, "session/prompt", prompt("second"));
    assert_eq!(answer(4)["error"]["code"], -32600);
    assert_eq!(journal.events_named("overlap").len(), 1);
    journal.open_gate("go");
    assert_eq!(answer(3)["result"]["stopReason"], "end_turn");
    drop(stdin);
    assert_eq!(agent.wait().unwrap().code(), Some(0));
}
