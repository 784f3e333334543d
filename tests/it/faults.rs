//! Agents that cannot start, and agents that break the protocol.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::support::{Server, Setup};

/// F7: if an agent cannot start, its task fails with an error that states the cause; the queue
/// drains and other groups are not affected.
#[test]
fn an_agent_that_cannot_start_fails_its_tasks() {
    let setup = Setup::new()
        .command("missing", "greenroom-it-no-such-program")
        .command("directory", "/")
        .agent("exits", &["--exit-at-start", "37"])
        .agent("refuses", &["--fail-initialize"])
        .agent("future", &["--wrong-version"])
        .agent("silent", &["--hang-initialize"])
        .text("agents.silent", "start_timeout", "1s");
    let server = setup.start();
    let causes = [
        ("missing", "greenroom-it-no-such-program"),
        ("directory", "not executable"),
        ("exits", "37"),
        ("refuses", "as scripted"),
        ("future", "4242"),
        ("silent", "1000 ms"),
    ];
    let tasks = causes.map(|(agent, _)| {
        server.put(&format!("/v1/groups/{agent}"), &json!({ "agent": agent })).expect(201);
        ["one", "two"].map(|prompt| server.submit(agent, prompt))
    });
    for (tasks, (agent, cause)) in tasks.iter().zip(causes) {
        for task in tasks {
            let failed = server.finish_as(task, "failed");
            assert!(failed["error"]["code"].is_string(), "{agent}: {failed}");
            let message = failed["error"]["message"].as_str().unwrap();
            assert!(message.contains(cause), "{agent}: {failed}");
        }
    }
    assert!(server.journal.prompts().is_empty());
    server.complete("work", "fine");
}

/// C16: what an agent says on stderr before it ends is shown, with its keys redacted.
#[test]
fn the_last_words_of_an_agent_name_no_secret() {
    let words = r#"["-c", "echo 'key sk-proj-abcDEF123456 is refused' >&2; exit 3"]"#;
    let server =
        Setup::new().command("leaks", "/bin/sh").set("agents.leaks", "args", words).start();
    server.put("/v1/groups/work", &json!({ "agent": "leaks" })).expect(201);
    let failed = server.finish_as(&server.submit("work", "x"), "failed");
    let message = failed["error"]["message"].as_str().unwrap();
    assert!(message.contains("key [redacted] is refused"), "{failed}");
    let runs = server.list("work", "runs");
    let tail = runs[0]["stderr_tail"].as_str().unwrap();
    assert!(tail.contains("key [redacted] is refused"), "{runs:?}");
    let shown = format!("{:?}{:?}", server.frames("work"), server.log.lines());
    assert!(!shown.contains("abcDEF123456"), "{shown}");
}

/// AM-6: greenroom does not advertise the fs and terminal capabilities, which it does not serve:
/// `fs/*` and unknown requests are answered -32601, and the turn continues. A served request is a
/// frame whose payload is the agent's message.
#[test]
fn unserved_requests_are_not_advertised_and_get_an_error() {
    let server = Server::usual();
    let task = server.complete("work", "[[fs]][[unknown-request]][[permission]]");
    let answers = "fs: -32601unknown-request: -32601permission: selected not-now";
    assert_eq!(task["text"], answers);
    let requests = server.frames_of_kind("work", "session/request_permission");
    let options = requests[0]["payload"]["params"]["options"].as_array().unwrap();
    assert_eq!((requests.len(), options.len()), (1, 4));
    let initialize = server.journal.events_named("initialize");
    assert_eq!(initialize.len(), 1);
    let params = &initialize[0]["params"];
    assert_eq!(params["protocolVersion"], 1);
    for path in ["/fs/readTextFile", "/fs/writeTextFile", "/terminal"] {
        let advertised = params["clientCapabilities"].pointer(path).unwrap_or(&Value::Null);
        assert!(advertised.is_null() || *advertised == false, "{path} in {params}");
    }
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

/// F12, F13, I11: ten lines in a row that only begin as messages, a line over `limits.line`, and
/// JSON that is nested too deeply stop the run (`_protocol`) without a crash, and the next turn
/// runs in another; what is below the limit is kept whole.
#[test]
fn lines_over_a_limit_stop_the_run() {
    let server = Setup::new().text("limits", "line", "64KiB").start();
    for (group, below, above, text_bytes_min) in [
        ("rejected", "garbage-run:9]][[reply:ok]][[garbage-run:9", "garbage-run:10", 2),
        ("long", "huge-line:65000", "huge-line:70000", 64_000),
        ("deep", "deep:40", "deep:10000", 4),
    ] {
        let whole = server.complete(group, &format!("[[{below}]]"));
        assert!(text_bytes_min <= whole["text"].as_str().unwrap().len(), "{whole}");
        let stopped = server.submit(group, &format!("[[reply:x]][[{above}]][[gate:never]]"));
        let next = server.submit(group, "next");
        let stopped = server.finish_as(&stopped, "interrupted");
        assert_eq!(stopped["stop_reason"], "_protocol", "{stopped}");
        let next = server.finish_as(&next, "completed");
        assert_ne!(next["run"], stopped["run"]);
    }
}

/// F13, I11, I16: a stack trace and log lines on stdout end no turn, and are in the transcript
/// whole; the log shows a few of them and says how many others there are. A flood of them stops the
/// run, whose detail says why.
#[test]
fn noise_on_stdout_ends_no_turn() {
    let server = Server::usual();
    let task = server.complete("work", "[[noise:300:80]][[reply:ok]]");
    assert_eq!(task["text"], "ok");
    assert_eq!(server.frames_of_kind("work", "greenroom/agent_output_rejected").len(), 300);
    server.log.wait("how many lines are left out", |line| line.contains("left_out=290"));
    let is_logged = |line: &String| line.contains("agent output rejected group=");
    assert_eq!(server.log.lines().iter().filter(|line| is_logged(line)).count(), 10);
    let flooded = server.submit("work", "[[reply:x]][[noise:9000:500]][[gate:never]]");
    let flooded = server.finish_as(&flooded, "interrupted");
    assert_eq!(flooded["stop_reason"], "_protocol", "{flooded}");
    let message = flooded["error"]["message"].as_str().unwrap();
    assert!(message.contains("more than 4 MiB in 60 s"), "{flooded}");
    server.complete("work", "next");
}

/// F13, A-4: log lines that are whole JSON objects end no turn; they count as output, as all lines
/// do that begin as messages. Ten objects in a row with a member of a message stop the run.
#[test]
fn log_lines_in_json_end_no_turn() {
    let server = Setup::new().retries("10ms").start();
    let log = r#"[[line:{"level":"info","msg":"a log line","error":null}]]"#;
    let task = server.complete("work", &format!("{}[[reply:ok]]", log.repeat(30)));
    assert_eq!(task["text"], "ok");
    assert_eq!(server.frames_of_kind("work", "greenroom/agent_output_rejected").len(), 30);
    let died = server.submit("work", &format!("{log}[[die:1]]"));
    assert_eq!(server.finish_as(&died, "interrupted")["attempt"], 1);
    server.resume("work");
    let odd = r#"[[line:{"jsonrpc":"2.0","id":"x"}]]"#.repeat(10);
    let stopped = server.submit("work", &format!("{odd}[[gate:never]]"));
    assert_eq!(server.finish_as(&stopped, "interrupted")["stop_reason"], "_protocol");
}

/// F11, AM-40: a flood of output is stored whole and in order; one on stderr never blocks the
/// agent, and is not in the transcript unless the profile enables it (AM-20).
#[test]
fn a_flood_of_output_is_stored_whole() {
    let server = Server::usual();
    server.complete("work", "[[chunks:20000:300]][[stderr:50000]][[reply:20001 alive]]");
    let mut expected = 1;
    for frame in server.frames_of_kind("work", "session/update") {
        let update = &frame["payload"]["params"]["update"];
        if update["sessionUpdate"] == "agent_message_chunk" {
            let text = update["content"]["text"].as_str().unwrap();
            assert!(text.starts_with(&format!("{expected} ")), "{expected}: {frame}");
            expected += 1;
        }
    }
    assert_eq!(expected, 20_002);
    assert!(server.frames_of_kind("work", "greenroom/stderr").is_empty());
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
