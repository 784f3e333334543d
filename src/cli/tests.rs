//! Tests of the command line with prepared answers: requests, output and exit codes.
#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;

use serde_json::json;

use super::*;
use crate::client::fake::{Reply, Server};

fn parse(args: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(["greenroom"].into_iter().chain(args.split_whitespace()))
}

#[test]
fn every_command_parses() {
    <Cli as clap::CommandFactory>::command().debug_assert();
    let cases = [
        "serve",
        "serve --config x.toml --log-format json --listen 127.0.0.1:1",
        "demo",
        "demo --dir x",
        "demo-agent",
        "turn work hello",
        "turn work -",
        "turn work -5",
        "--url http://h:1 turn work hello",
        "turn --json --url http://h:1 work hello",
        "compact work",
        "groups --json",
        "tasks work",
        "digest work",
        "digest work --run run_1",
        "watch",
        "watch work",
        "cancel tsk_1",
        "retry tsk_1",
        "pause work",
        "resume work",
        "stop work",
        "permissions",
        "permissions --group work",
        "permissions answer prm_1 allow",
        "permissions cancel prm_1",
        "check-config --config x.toml",
        "agents check",
        "agents check codex --config x.toml --json",
    ];
    for args in cases {
        parse(args).unwrap_or_else(|error| panic!("{args}: {error}"));
    }
}

#[test]
fn permissions_are_listed_and_answered() {
    let pending = json!({
        "id": "prm_1", "group": "work", "expires_at": "2026-01-01T00:00:00.000Z",
        "tool_call": { "title": "Run rm\u{1b}[2J" },
        "options": [{ "optionId": "yes" }, { "optionId": "no" }],
    });
    let page = |next: Option<&str>| json!({ "items": [pending.clone()], "next_cursor": next });
    let answers = [
        page(Some("c 1")),
        page(None),
        json!({ "id": "prm_1", "state": "selected" }),
        json!({ "id": "prm_1", "state": "cancelled" }),
    ];
    let replies = answers.iter().map(|answer| Reply::json(200, &answer.to_string()));
    let server = Server::start(replies.collect());
    let client = Client::new(server.url(), None).unwrap();
    let mut out = Vec::new();
    permissions::list(&client, Some("a b"), false, &mut out).unwrap();
    let answered = permissions::Answer::Answer { permission: "prm_1".into(), option: "yes".into() };
    permissions::answer(&client, &answered, false, &mut out).unwrap();
    let cancelled = permissions::Answer::Cancel { permission: "prm_1".into() };
    permissions::answer(&client, &cancelled, false, &mut out).unwrap();
    let out = String::from_utf8(out).unwrap();
    let row = "prm_1       work   2026-01-01T00:00:00.000Z  yes no   Run rm\\u{1b}[2J";
    assert!(out.contains(row) && !out.contains('\u{1b}'), "{out:?}");
    assert!(out.ends_with("prm_1 is selected\nprm_1 is cancelled\n"), "{out}");
    let requests = server.requests();
    let lines: Vec<&str> = requests.iter().map(|request| request.lines().next().unwrap()).collect();
    assert_eq!(
        lines,
        [
            "GET /v1/permissions?state=pending&group=a%20b HTTP/1.1",
            "GET /v1/permissions?state=pending&group=a%20b&cursor=c%201 HTTP/1.1",
            "POST /v1/permissions/prm_1 HTTP/1.1",
            "POST /v1/permissions/prm_1 HTTP/1.1",
        ]
    );
    assert!(requests[2].ends_with(r#"{"option_id":"yes"}"#), "{}", requests[2]);
    assert!(requests[3].ends_with(r#"{"cancel":true}"#), "{}", requests[3]);
}

#[test]
fn wrong_usage_exits_2() {
    let cases = [
        "",
        "frobnicate",
        "turn",
        "turn work",
        "turn work a b",
        "serve --log-format xml",
        "cancel",
        "digest",
        "permissions answer prm_1",
        "permissions --group work cancel prm_1",
        "resume",
    ];
    for args in cases {
        assert_eq!(parse(args).unwrap_err().exit_code(), 2, "{args}");
    }
    assert_eq!(parse("--help").unwrap_err().exit_code(), 0);
    assert_eq!(parse("--version").unwrap_err().exit_code(), 0);
}

#[test]
fn the_help_lists_every_exit_code() {
    let codes = [
        Exit::Done,
        Exit::Failed,
        Exit::Usage,
        Exit::Cancelled,
        Exit::Interrupted,
        Exit::Unreachable,
    ];
    assert_eq!(codes.map(|code| code as u8), [0, 1, 2, 3, 4, 5]);
    for code in codes {
        assert!(EXIT_CODES.contains(&format!("\n  {}  ", code as u8)), "{code:?}");
    }
}

#[test]
fn errors_have_their_exit_codes() {
    let io = |kind: ErrorKind| io::Error::from(kind);
    let problem = ClientError::Problem { status: 404, message: "no".into(), document: None };
    #[rustfmt::skip]
    let cases: [(CliError, Exit); 7] = [
        (CliError::Client(problem),                                Exit::Unreachable),
        (CliError::Client(Client::new("x", None).err().unwrap()),  Exit::Usage),
        (CliError::Io(io(ErrorKind::BrokenPipe)),                  Exit::Done),
        (CliError::Io(io(ErrorKind::StorageFull)),                 Exit::Failed),
        (CliError::Serve(Box::new(io(ErrorKind::AddrInUse))),      Exit::Usage),
        (CliError::Serve(Box::new(io(ErrorKind::NotFound))),       Exit::Failed),
        (CliError::Usage("x".into()),                              Exit::Usage),
    ];
    for (error, exit) in cases {
        assert_eq!(error.exit(), exit, "{error:?}");
    }
    let deep = CliError::Io(io::Error::other("x"));
    assert_eq!(CliError::Serve(Box::new(deep)).exit(), Exit::Failed);
    #[derive(Debug, thiserror::Error)]
    #[error("cannot listen")]
    struct Listen(#[source] io::Error);
    let wrapped = CliError::Serve(Box::new(Listen(io(ErrorKind::AddrInUse))));
    assert_eq!(wrapped.exit(), Exit::Usage);
}

fn client(server: &Server) -> Client {
    Client::new(server.url(), None).unwrap()
}

fn turn(client: &Client, text: &str, out: &mut Vec<u8>) -> Result<Exit, CliError> {
    turn::turn(client, "work", text.into(), false, out, &Waiting::silent())
}

fn watch(client: &Client, group: Option<&str>, json: bool, out: &mut Vec<u8>) -> CliError {
    watch::watch(client, group, json, out, &Waiting::silent()).unwrap_err()
}

fn compact(client: &Client, json: bool, out: &mut Vec<u8>) -> Result<Exit, CliError> {
    turn::compact(client, "work", json, out, &Waiting::silent())
}

fn frame(seq: u64, task: &str, kind: &str, payload: &serde_json::Value) -> String {
    let frame = json!({"seq": seq, "at": "2026-11-20T12:00:00.000Z", "group": "work",
        "task": task, "kind": kind, "payload": payload});
    format!("id: {seq}\nevent: {kind}\ndata: {frame}\n\n")
}

fn answer_frame(seq: u64, task: &str, text: &str) -> String {
    let update = json!({"sessionUpdate": "agent_message_chunk",
        "content": {"type": "text", "text": text}});
    let message = json!({"jsonrpc": "2.0", "method": "session/update",
        "params": {"sessionId": "s", "update": update}});
    frame(seq, task, "session/update", &message)
}

#[test]
fn a_turn_prints_only_its_own_clean_answer_across_a_broken_stream() {
    let server = Server::start(vec![
        Reply::json(200, r#"{"id":"work","last_seq":7}"#),
        Reply::json(202, r#"{"id":"tsk_2","state":"queued"}"#),
        Reply::events(
            &(answer_frame(8, "tsk_1", "before")
                + &answer_frame(9, "tsk_2", "one\u{1b}[31m 👩\u{200d}")),
        ),
        // The stream ended; the task has not.
        Reply::json(200, r#"{"id":"tsk_2","state":"running"}"#),
        Reply::events(
            &(answer_frame(10, "tsk_2", "💻two\r")
                + &frame(11, "tsk_1", "greenroom/task_ended", &json!({}))
                + &frame(12, "tsk_2", "greenroom/task_ended", &json!({}))
                + &answer_frame(13, "tsk_3", "after")),
        ),
        Reply::json(200, r#"{"id":"tsk_2","state":"completed","stop_reason":"end_turn"}"#),
    ]);
    let mut out = Vec::new();
    let exit = turn(&client(&server), "hi", &mut out).unwrap();
    assert_eq!(
        (String::from_utf8(out).unwrap().as_str(), exit),
        ("one\\u{1b}[31m 👩\u{200d}💻two\\u{d}\n", Exit::Done)
    );

    let requests = server.requests();
    assert!(requests[1].starts_with("POST /v1/groups/work/turns "), "{}", requests[1]);
    assert!(requests[1].ends_with(r#"{"prompt":"hi"}"#), "{}", requests[1]);
    let last_id = |request: &str| {
        let request = request.to_ascii_lowercase();
        request.split("last-event-id: ").nth(1).unwrap().split("\r\n").next().unwrap().to_owned()
    };
    assert_eq!((last_id(&requests[2]), last_id(&requests[4])), ("7".into(), "9".into()));
}

/// Returns the idempotency key of a POST, and the first line of any request.
fn key_and_line(request: &str) -> (Option<String>, &str) {
    let head = request.to_ascii_lowercase();
    let key = head.split("idempotency-key: ").nth(1);
    (key.map(|key| key.split("\r\n").next().unwrap().to_owned()), request.lines().next().unwrap())
}

/// Every request of a turn is retried while the server is unreachable; the turn is enqueued once,
/// and each word of the answer is printed once.
#[test]
fn a_turn_retries_every_request_while_the_server_is_unreachable() {
    let running = r#"{"id":"tsk_2","state":"running"}"#;
    let ended = r#"{"id":"tsk_2","state":"completed","stop_reason":"end_turn"}"#;
    let words = answer_frame(8, "tsk_2", "one ") + &answer_frame(9, "tsk_2", "two");
    let end = frame(10, "tsk_2", "greenroom/task_ended", &json!({}));
    let server = Server::start(vec![
        Reply::json(503, ""),
        Reply::json(200, "{}").truncate(usize::MAX),
        Reply::json(200, r#"{"id":"work","last_seq":7}"#),
        Reply::json(502, "<html>"),
        Reply::json(202, running).truncate(4),
        Reply::json(202, running),
        Reply::json(504, ""),
        // The stream breaks within the event of the second word.
        Reply::events(&words).truncate(9),
        Reply::json(502, "<html>"),
        Reply::events(&answer_frame(9, "tsk_2", "two")),
        Reply::json(200, running).truncate(1),
        Reply::events(&end),
        Reply::json(504, ""),
        Reply::json(200, running),
        Reply::json(200, ended).truncate(2),
        Reply::json(200, ended),
    ]);
    let mut out = Vec::new();
    let exit = turn(&client(&server), "hi", &mut out).unwrap();
    assert_eq!((String::from_utf8(out).unwrap().as_str(), exit), ("one two\n", Exit::Done));
    let requests = server.requests();
    let sent: Vec<_> = requests.iter().map(|request| key_and_line(request)).collect();
    let key = sent[3].0.clone().unwrap();
    for (sent_key, line) in &sent[3..6] {
        assert_eq!(sent_key.as_ref(), Some(&key));
        assert_eq!(*line, "POST /v1/groups/work/turns HTTP/1.1");
    }
    assert!(sent[6..].iter().all(|(key, line)| key.is_none() && line.starts_with("GET ")));
    let ends: Vec<&str> = sent[12..].iter().map(|(_, line)| *line).collect();
    let (plain, waits) = ("GET /v1/tasks/tsk_2 HTTP/1.1", "GET /v1/tasks/tsk_2?wait=60 HTTP/1.1");
    assert_eq!(ends, [waits, plain, waits, plain]);
}

/// API-5: a stream that breaks after the task's end is resumed until that end; if the server has no
/// more frames, the answer stays as it is.
#[test]
fn a_stream_that_breaks_after_the_end_of_the_task_is_resumed() {
    let ended = || Reply::json(200, r#"{"id":"tsk_2","state":"completed","seq_last":10}"#);
    let two = answer_frame(9, "tsk_2", "two");
    let end = frame(10, "tsk_2", "greenroom/task_ended", &json!({}));
    let synced = "event: greenroom/synced\ndata: {}\n\n";
    let conversations = [
        (vec![Reply::events(&(two.clone() + &end)), ended()], "one two\n", 6),
        (vec![Reply::events(&two), ended(), Reply::events(&end), ended()], "one two\n", 8),
        // The server has no more frames, so the last reply is not requested.
        (vec![Reply::events(synced), ended()], "one \n", 5),
    ];
    for (rest, expected, count) in conversations {
        let mut replies = vec![
            Reply::json(200, r#"{"id":"work","last_seq":7}"#),
            Reply::json(202, r#"{"id":"tsk_2","state":"queued"}"#),
            Reply::events(&answer_frame(8, "tsk_2", "one ")),
            ended(),
        ];
        replies.extend(rest);
        let server = Server::start(replies);
        let mut out = Vec::new();
        let exit = turn(&client(&server), "hi", &mut out).unwrap();
        assert_eq!((String::from_utf8(out).unwrap().as_str(), exit), (expected, Exit::Done));
        assert_eq!(server.requests().len(), count);
    }
}

/// A final error ends a turn at once, and so does a server that was never reached.
#[test]
fn a_turn_ends_with_a_final_error() {
    let group = || Reply::json(200, r#"{"id":"work","last_seq":7}"#);
    let task = || Reply::json(202, r#"{"id":"tsk_2","state":"queued"}"#);
    let no = |status| Reply::json(status, r#"{"title":"No","detail":"really"}"#);
    let conversations = [
        vec![no(400)],
        vec![group(), no(422)],
        vec![group(), no(429)],
        vec![group(), task(), no(404)],
        vec![group(), task(), Reply::events(""), no(404)],
        vec![
            group(),
            task(),
            Reply::events(&frame(9, "tsk_2", "greenroom/task_ended", &json!({}))),
            no(403),
        ],
    ];
    for conversation in conversations {
        let count = conversation.len();
        let server = Server::start(conversation);
        let refused = turn(&client(&server), "hi", &mut Vec::new());
        let error = refused.unwrap_err();
        assert_eq!((error.to_string().as_str(), error.exit()), ("No: really", Exit::Unreachable));
        assert_eq!(server.requests().len(), count);
    }
    let absent = Client::new("http://127.0.0.1:1", None).unwrap();
    let empty = turn(&absent, " \n", &mut Vec::new());
    assert_eq!(empty.unwrap_err().exit(), Exit::Usage, "an empty prompt is not sent");
    let error = compact(&absent, false, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().starts_with("cannot reach "), "{error}");
}

/// A command creates one task, also if its request is retried.
#[test]
fn a_compaction_and_a_retry_keep_their_key_when_they_are_retried() {
    let task = r#"{"id":"tsk_1","state":"completed"}"#;
    let server = Server::start(vec![
        Reply::json(202, task).truncate(1),
        Reply::json(202, task),
        Reply::json(200, task),
        Reply::json(503, ""),
        Reply::json(202, task),
    ]);
    let client = client(&server);
    compact(&client, false, &mut Vec::new()).unwrap();
    turn::retry(&client, "tsk_1", false, &mut Vec::new(), &Waiting::silent()).unwrap();
    let requests = server.requests();
    let keys: Vec<_> = requests.iter().map(|request| key_and_line(request).0).collect();
    assert!(keys[0].is_some() && keys[0] == keys[1] && keys[2].is_none(), "{keys:?}");
    assert!(keys[3].is_some() && keys[3] == keys[4] && keys[0] != keys[3], "{keys:?}");
}

#[test]
fn a_turn_exits_by_its_outcome() {
    #[rustfmt::skip]
    let cases = [
        (json!({"state": "completed", "stop_reason": "end_turn", "text": "late"}), "late\n", Exit::Done),
        (json!({"state": "completed", "stop_reason": "max_tokens", "text": ""}),   "",       Exit::Done),
        (json!({"state": "failed", "error": {"code": "c", "message": "m"}}),       "",       Exit::Failed),
        (json!({"state": "cancelled", "stop_reason": "cancelled"}),                "",       Exit::Cancelled),
        (json!({"state": "interrupted", "stop_reason": "_process_exited"}),        "",       Exit::Interrupted),
        (json!({"state": "skipped"}),                                              "",       Exit::Done),
    ];
    for (task, printed, expected) in cases {
        let server = Server::start(vec![
            Reply::json(404, r#"{"title":"No such group"}"#),
            Reply::json(202, r#"{"id":"tsk_1","state":"queued"}"#),
            Reply::events(&frame(3, "tsk_1", "greenroom/task_ended", &json!({}))),
            Reply::json(200, &task.to_string()),
        ]);
        let mut out = Vec::new();
        let exit = turn(&client(&server), "hi", &mut out).unwrap();
        assert_eq!((String::from_utf8(out).unwrap().as_str(), exit), (printed, expected), "{task}");
    }
}

#[test]
fn json_prints_the_task_as_it_ended() {
    let task = json!({"id": "tsk_1", "state": "failed", "text": "\u{9b}31m"});
    let server = Server::start(vec![
        Reply::json(202, r#"{"id":"tsk_1","state":"running"}"#),
        Reply::json(202, r#"{"id":"tsk_1","state":"running"}"#),
        Reply::json(200, &task.to_string()),
    ]);
    let mut out = Vec::new();
    let exit = compact(&client(&server), true, &mut out).unwrap();
    let out = String::from_utf8(out).unwrap();
    assert_eq!(exit, Exit::Failed);
    assert!(out.contains(r"\u009b31m") && out.ends_with("}\n"), "{out}");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap(), task);
    assert!(server.requests()[2].starts_with("GET /v1/tasks/tsk_1?wait=60 "));
}

#[test]
fn a_cancel_prints_the_outcome() {
    let cases = [("cancelled", "tsk_1 is cancelled\n"), ("running", "tsk_1 will be cancelled\n")];
    for (state, expected) in cases {
        let task = json!({"id": "tsk_1", "state": state}).to_string();
        let server = Server::start(vec![Reply::json(202, &task)]);
        let mut out = Vec::new();
        let exit = turn::cancel(&client(&server), "tsk_1", false, &mut out).unwrap();
        assert_eq!((String::from_utf8(out).unwrap().as_str(), exit), (expected, Exit::Done));
    }
}

#[test]
fn lists_are_tables() {
    let groups = json!({"next_cursor": null, "items": [
        {"id": "work", "status": "waiting", "blocked_by": "slot", "agent": "demo",
         "queue_length": 3, "usage": {"used": 500, "size": 2000}, "current_task": null},
        {"id": "b", "status": "idle", "blocked_by": null, "agent": "demo",
         "queue_length": 0, "usage": null, "current_task": "tsk_1"},
    ]});
    let tasks = json!({"next_cursor": null, "items": [
        {"id": "tsk_1", "kind": "turn", "state": "queued", "blocked_by": "turn",
         "created_at": "T", "prompt": "two\nlines \u{1b}[2J"},
        {"id": "tsk_2", "kind": "compaction", "state": "completed", "created_at": "T"},
        {"id": "tsk_3", "kind": "turn", "state": "failed", "created_at": "T",
         "prompt": [{"type": "text", "text": "a"}, {"type": "image"}]},
    ]});
    let server = Server::start(vec![
        Reply::json(200, &groups.to_string()),
        Reply::json(200, &tasks.to_string()),
    ]);
    let client = client(&server);
    let mut out = Vec::new();
    lists::groups(&client, false, &mut out).unwrap();
    lists::tasks(&client, "work", false, &mut out).unwrap();
    let expected = "\
GROUP  STATUS          AGENT  QUEUED  CONTEXT  TASK
work   waiting (slot)  demo   3       25%      -
b      idle            demo   0       -        tsk_1
TASK   KIND        STATE          CREATED  PROMPT
tsk_1  turn        queued (turn)  T        two lines \\u{1b}[2J
tsk_2  compaction  completed      T        -
tsk_3  turn        failed         T        a […]
";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[test]
fn a_watch_starts_at_the_end_and_resumes_after_a_broken_stream() {
    let server = Server::start(vec![
        Reply::json(200, r#"{"last_seq":7}"#),
        Reply::events(&answer_frame(8, "tsk_1", "one\ntwo")),
        Reply::events(
            &("event: greenroom/synced\ndata: {}\n\n".to_owned() + &answer_frame(9, "t", "x")),
        ),
        Reply::json(404, r#"{"title":"No such group"}"#),
    ]);
    let mut out = Vec::new();
    let error = watch(&client(&server), Some("work"), false, &mut out);
    assert_eq!((error.to_string().as_str(), error.exit()), ("No such group", Exit::Unreachable));
    let expected = "\
12:00:00.000 work #8 session/update: agent_message_chunk \"one\\ntwo\"
12:00:00.000 work #9 session/update: agent_message_chunk \"x\"
";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
    let requests = server.requests();
    for (request, id) in [(1, 7), (2, 8), (3, 9)] {
        let request = requests[request].to_ascii_lowercase();
        assert!(request.contains(&format!("last-event-id: {id}\r\n")), "{request}");
    }
}

#[test]
fn a_watch_of_all_groups_skips_history_and_prints_every_status_change() {
    let change = |at: &str| {
        json!({
            "at": at, "group": "work", "from": "idle", "status": "running",
            "blocked_by": null, "queue_length": 2, "current_task": "tsk_1",
        })
    };
    let (old, new) = (change("2020-01-01T00:00:00.000Z"), change("2999-01-01T00:00:00.000Z"));
    let event = |id: u64, change| format!("id: {id}\nevent: greenroom/status\ndata: {change}\n\n");
    let synced = "event: greenroom/synced\ndata: {}\n\n";
    let events = [&event(1, &old), &event(2, &new), synced, &event(3, &old)].concat();
    let line = "00:00:00.000 work idle -> running task=tsk_1 queued=2\n";
    for (json, expected) in [(true, format!("{new}\n{old}\n")), (false, line.repeat(2))] {
        let replies = [Reply::events(&events), Reply::json(401, r#"{"title":"Token wanted"}"#)];
        let mut out = Vec::new();
        let server = Server::start(replies.into());
        watch(&client(&server), None, json, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
