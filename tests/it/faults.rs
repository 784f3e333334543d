//! Agents that cannot start, and agents that break the protocol.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::support::{Server, Setup};

/// F7: if an agent cannot start, its task fails with an error that states it; the queue drains and
/// other groups are not affected.
#[test]
fn an_agent_that_cannot_start_fails_its_tasks() {
    let setup = Setup::new()
        .command("missing", "greenroom-it-no-such-program")
        .command("directory", "/")
        .agent("exits", &["--exit-at-start", "3"])
        .agent("refuses", &["--fail-initialize"])
        .agent("future", &["--wrong-version"])
        .agent("silent", &["--hang-initialize"])
        .text("agents.silent", "start_timeout", "1s");
    let server = setup.start();
    let profiles = ["missing", "directory", "exits", "refuses", "future", "silent"];
    let tasks: Vec<(&str, Value)> = profiles
        .iter()
        .flat_map(|agent| {
            server.put(&format!("/v1/groups/{agent}"), &json!({ "agent": agent })).expect(201);
            [(*agent, server.submit(agent, "one")), (*agent, server.submit(agent, "two"))]
        })
        .collect();
    for (agent, task) in &tasks {
        let failed = server.finish_as(task, "failed");
        let error = &failed["error"];
        assert!(!error["code"].is_null(), "{agent}: {failed}");
        let message = error["message"].as_str().unwrap_or_default();
        assert!(!message.is_empty(), "{agent}: {failed}");
    }
    assert!(server.journal.prompts().is_empty());
    server.complete("work", "fine");
}

/// F7: the error of a failed start states the agent's exit code, or its protocol version if that is
/// unsupported.
#[test]
fn start_errors_state_the_cause() {
    let setup = Setup::new()
        .agent("exits", &["--exit-at-start", "37"])
        .agent("refuses", &["--fail-initialize"])
        .agent("future", &["--wrong-version"]);
    let server = setup.start();
    for (agent, word) in [("exits", "37"), ("refuses", "as scripted"), ("future", "4242")] {
        server.put(&format!("/v1/groups/{agent}"), &json!({ "agent": agent })).expect(201);
        let failed = server.turn(agent, "x");
        assert!(failed["error"].to_string().contains(word), "{agent}: {failed}");
    }
}

/// AM-6: greenroom does not advertise the fs and terminal capabilities, which it does not serve.
#[test]
fn initialize_advertises_only_served_capabilities() {
    let server = Server::usual();
    server.complete("work", "x");
    let initialize = server.journal.events_named("initialize");
    assert_eq!(initialize.len(), 1);
    let params = &initialize[0]["params"];
    assert_eq!(params["protocolVersion"], 1);
    let capabilities = &params["clientCapabilities"];
    for path in ["/fs/readTextFile", "/fs/writeTextFile", "/terminal"] {
        let advertised = capabilities.pointer(path).unwrap_or(&Value::Null);
        assert!(advertised.is_null() || *advertised == false, "{path} in {params}");
    }
}

/// AM-6: `fs/*` and unknown requests are answered -32601, and the turn continues.
#[test]
fn unserved_requests_are_answered_with_an_error() {
    let server = Server::usual();
    let task = server.complete("work", "[[fs]][[unknown-request]]");
    assert_eq!(task["text"], "fs: -32601unknown-request: -32601");
}

/// AM-7, C22: policy `reject` selects the first `reject_once`, else `reject_always`, else answers
/// `cancelled`; the request is a frame, and so is its outcome.
#[test]
fn policy_reject_selects_a_rejecting_option() {
    let server = Server::usual();
    for (word, outcome) in [
        ("[[permission]]", "permission: selected not-now"),
        ("[[permission:always]]", "permission: selected never"),
        ("[[permission:none]]", "permission: cancelled -"),
    ] {
        assert_eq!(server.complete("work", word)["text"], outcome);
    }
    let requests = server.frames_of_kind("work", "session/request_permission");
    assert_eq!(requests.len(), 3);
    let options = requests[0]["payload"]["params"]["options"].as_array().unwrap();
    assert_eq!(options.len(), 4, "the payload is the agent's message");
    let resolved = server.frames_of_kind("work", "greenroom/permission_resolved");
    assert_eq!(resolved.len(), 3);
}

/// F13, I16: lines that are not JSON, or not UTF-8, are tolerated, and kept byte for byte in the
/// transcript.
#[test]
fn rejected_lines_are_kept_byte_for_byte() {
    let server = Server::usual();
    let task = server.complete("work", "[[garbage]][[reply:a]][[utf8]][[crlf]]");
    assert_eq!(task["text"], "acrlf");
    let rejected = server.frames_of_kind("work", "greenroom/agent_output_rejected");
    let lines: [&[u8]; 2] = [b"this line is not JSON", b"{\"not\":\"utf-8 \xff\xfe\"}"];
    assert_eq!(rejected.len(), 2, "{rejected:?}");
    for (frame, line) in rejected.iter().zip(lines) {
        assert!(base64_texts(&frame["payload"]).any(|bytes| bytes == line), "{frame}");
    }
}

/// F13: nine rejected lines in a row are tolerated, ten stop the run (`_protocol`); the next turn
/// runs.
#[test]
fn ten_rejected_lines_in_a_row_stop_the_run() {
    let server = Server::usual();
    let run = "[[garbage-run:9]][[reply:ok]][[garbage-run:9]][[reply:ok]]";
    assert_eq!(server.complete("work", run)["text"], "okok");
    let stopped = server.submit("work", "[[reply:x]][[garbage-run:10]][[gate:never]]");
    let next = server.submit("work", "next");
    let stopped = server.finish_as(&stopped, "interrupted");
    assert_eq!(stopped["stop_reason"], "_protocol", "{stopped}");
    server.finish_as(&next, "completed");
    assert_eq!(server.journal.events_named("start").len(), 2, "a new run");
}

/// F12, I11: a line over `limits.line` stops the run (`_protocol`); a line below it is kept whole.
#[test]
fn a_line_over_the_limit_stops_the_run() {
    let server = Setup::new().text("limits", "line", "64KiB").start();
    let long = server.complete("work", "[[huge-line:65000]]");
    assert!(64_000 < long["text"].as_str().unwrap().len());
    let stopped = server.submit("work", "[[reply:x]][[huge-line:70000]][[gate:never]]");
    let next = server.submit("work", "next");
    let stopped = server.finish_as(&stopped, "interrupted");
    assert_eq!(stopped["stop_reason"], "_protocol", "{stopped}");
    server.finish_as(&next, "completed");
}

/// F12, I11: JSON that is nested too deeply stops the run (`_protocol`) without a crash; a usual
/// depth is accepted.
#[test]
fn json_nested_too_deeply_stops_the_run() {
    let server = Server::usual();
    assert_eq!(server.complete("work", "[[deep:40]]")["text"], "deep");
    let stopped = server.submit("work", "[[reply:x]][[deep:10000]][[gate:never]]");
    let next = server.submit("work", "next");
    let stopped = server.finish_as(&stopped, "interrupted");
    assert_eq!(stopped["stop_reason"], "_protocol", "{stopped}");
    server.finish_as(&next, "completed");
}

/// AM-40, F11: much output on stderr never blocks the agent.
#[test]
fn stderr_never_blocks_the_agent() {
    let server = Server::usual();
    for count in [4_096, 50_000] {
        let task = server.complete("work", &format!("[[stderr:{count}]][[reply:alive]]"));
        assert_eq!(task["text"], "alive");
    }
}

/// AM-20: stderr is not in the transcript unless the profile enables it.
#[test]
fn stderr_is_not_in_the_transcript() {
    let server = Server::usual();
    server.complete("work", "[[stderr:10]]");
    assert!(server.frames_of_kind("work", "greenroom/stderr").is_empty());
}

/// F11: a flood of output is stored whole and in order.
#[test]
fn a_flood_of_output_is_stored_whole() {
    let server = Server::usual();
    server.complete("work", "[[chunks:20000:300]]");
    let mut expected = 1;
    for frame in server.frames_of_kind("work", "session/update") {
        let update = &frame["payload"]["params"]["update"];
        if update["sessionUpdate"] == "agent_message_chunk" {
            let text = update["content"]["text"].as_str().unwrap();
            assert!(text.starts_with(&format!("{expected} ")), "{expected}: {frame}");
            expected += 1;
        }
    }
    assert_eq!(expected, 20_001);
}

/// Returns the payload's base64 texts, decoded, without line ends.
fn base64_texts(payload: &Value) -> impl Iterator<Item = Vec<u8>> {
    let texts = payload.as_object().into_iter().flat_map(|object| object.values());
    let decoded = texts.filter_map(|text| STANDARD.decode(text.as_str()?).ok());
    decoded.map(|mut bytes| {
        while bytes.last().is_some_and(|byte| b"\r\n".contains(byte)) {
            bytes.pop();
        }
        bytes
    })
}
