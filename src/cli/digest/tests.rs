//! Tests of the digest card: golden texts.
#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;
use crate::client::fake::{Reply, Server};

fn full() -> Value {
    let mut counts = vec![0; 24];
    (counts[4], counts[6], counts[23]) = (12, 3, 1);
    let bounds: Vec<u64> = (0..23).map(|power| 1 << power).collect();
    json!({
        "group": "work", "run": null, "agent": null, "schema_version": 1,
        "watermark_seq": 1141, "frame_count": 1141, "turn_count": 16,
        "first_at": "2026-11-20T19:35:02.100Z", "last_at": "2026-11-20T19:36:20.256Z",
        "duration_ms": 78_156,
        "usage": { "used": 54_000, "size": 200_000, "input": 1234, "output": 567, "cached": 89 },
        "cost": { "amount": 0.069129, "currency": "EUR" },
        "more_costs": [{ "amount": 2.0, "currency": "USD" }],
        "by_model": { "m-1\u{1b}[2J": { "input": 1, "output": 2, "cached": 0 } },
        "stop_reasons": { "end_turn": 13, "_process_exited": 3 },
        "errors": {
            "agent_error": { "count": 7, "samples": [64, 99] },
            "lock_lost": { "count": 1, "samples": [3] },
        },
        "tools": {
            "bash": { "calls": 12, "failed": 0 },
            "\u{202e}edit\nnow": { "calls": 2, "failed": 1 },
        },
        "permissions": { "asked": 3, "selected": 2, "cancelled": 0, "expired": 1, "void": 0 },
        "compactions": {
            "completed": 1, "failed": 0, "cancelled": 0, "abandoned": 0, "skipped": 2, "noop": 0,
            "tokens_before": 9000, "tokens_after": 100,
        },
        "latency_histogram": {
            "bounds_ms": bounds, "counts": counts, "count": 16, "sum_ms": 5_000_300,
            "p50_ms": 16, "p90_ms": 64, "p99_ms": null,
        },
        "outcome": null, "outcomes": { "crashed": 1, "stopped": 2 },
        "findings_count": 30,
        "findings": [
            { "seq": 70, "kind": "tool_without_result", "tool": "bash", "tool_call": "call-1" },
            {
                "seq": 71, "kind": "abnormal_stop", "outcome": "crashed",
                "detail": "the agent's process ended with code 7\u{7} before it had answered, \
                           and so did much else",
            },
        ],
    })
}

fn shown(digest: &Value) -> String {
    let mut out = Vec::new();
    card(&mut out, digest).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_full_card_is_printed() {
    let expected = "\
work                                                                        live
time         2026-11-20T19:35:02.100Z to 2026-11-20T19:36:20.256Z 1.3 min
frames       1141, up to #1141
context      ████████░░░░░░░░░░░░░░░░░░░░░░ 27% (54000 of 200000)
tokens       1234 in (89 of them cached), 567 out
             m-1\\u{1b}[2J: 1 in (0 of them cached), 2 out
cost         0.069129 EUR, 2.0 USD
turns        16: end_turn 13, _process_exited 3
latency      p50 16 ms, p90 64 ms, p99 longer
                ≤ 16 ms ████████████████████████████████████████ 12
                ≤ 64 ms ██████████ 3
                > 1.2 h ███ 1
tools        bash              12 called
             \\u{202e}edit now  2 called, 1 failed
errors       agent_error  7, see #64 #99
             lock_lost    1, see #3
permissions  asked 3, selected 2, expired 1
compactions  completed 1, skipped 2; 9000 -> 100 tokens
runs ended   stopped 2, crashed 1
findings     30, the newest of them:
             #70 tool_without_result tool=bash tool_call=call-1
             #71 abnormal_stop detail=the agent's process ended with code 7\\u{7}
             before it had answered, and so did much else outcome=crashed
#71 is GET /v1/groups/work/frames?after=70&limit=1
";
    assert_eq!(shown(&full()), expected);
}

/// Names from agents and callers can be long: every line fits, without control characters.
#[test]
fn every_line_fits_the_width() {
    let mut digest = full();
    let long = "x".repeat(128);
    digest["group"] = json!(long);
    digest["outcome"] = json!("server_restart");
    digest["run"] = json!("run_01a1fa75-b3c0-7670-b8e4-2f0a4703e7a2");
    digest["agent"] = json!("a\u{1b}".repeat(60));
    digest["findings"][1]["detail"] = json!(long);
    digest["latency_histogram"]["counts"][4] = json!(1_000_000_000);
    for field in ["tools", "errors", "by_model", "stop_reasons"] {
        digest[field][long.as_str()] =
            digest[field].as_object().unwrap().values().next().unwrap().clone();
    }
    let shown = shown(&digest);
    for line in shown.lines().filter(|line| !line.starts_with('#')) {
        assert!(text::width(line) <= WIDTH && !line.contains('\u{1b}'), "{line}");
    }
    assert!(shown.lines().next().unwrap().ends_with("…  server_restart"), "{shown}");
    assert!(!shown.contains("runs ended"), "{shown}");
}

/// An empty group, or an answer of a server with other fields.
#[test]
fn an_empty_card_is_printed() {
    let expected = "\
g                                                                           live
time         - to - -
frames       0, up to #-
context      unknown
tokens       0 in (0 of them cached), 0 out
cost         unknown
turns        0
tools        none
errors       none
permissions  none
compactions  none
runs ended   none
findings     0
";
    assert_eq!(shown(&json!({ "group": "g" })), expected);
}

#[test]
fn the_digest_of_a_group_or_of_one_run_is_requested() {
    let answer = json!({ "group": "a", "run": "run_1", "outcome": "crashed\u{9b}" });
    let replies = (0..3).map(|_| Reply::json(200, &answer.to_string()));
    let server = Server::start(replies.collect());
    let client = Client::new(server.url(), None).unwrap();
    let mut out = Vec::new();
    digest(&client, "a", None, true, &mut out).unwrap();
    let json = String::from_utf8(std::mem::take(&mut out)).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), answer);
    assert!(!json.contains('\u{9b}'), "{json:?}");
    digest(&client, "a", Some("run/1"), false, &mut out).unwrap();
    assert!(String::from_utf8(out).unwrap().contains("run          run_1 of -"));
    let other = digest(&client, "b", Some("run_1"), false, &mut Vec::new()).unwrap_err();
    assert!(matches!(&other, CliError::Usage(_)), "{other}");
    let requests = server.requests();
    let lines: Vec<&str> = requests.iter().map(|request| request.lines().next().unwrap()).collect();
    assert_eq!(lines[0], "GET /v1/groups/a/digest HTTP/1.1");
    assert_eq!(lines[1], "GET /v1/runs/run%2F1/digest HTTP/1.1");
}
