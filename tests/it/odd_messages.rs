//! Messages with parts that greenroom does not understand, or that no protocol has.

use serde_json::{Value, json};

use crate::support::{Server, Setup};

/// Returns the word that sends this update of the prompt's session.
fn update(fields: &str) -> String {
    format!(
        r#"[[line:{{"method":"session/update","params":{{"sessionId":$session,"update":{{{fields}}}}}}}]]"#
    )
}

/// I7, A-4: whatever an agent sends after START is output, also if a part of it cannot be read; the
/// prompt is not sent again, whether the agent then answers with an error or dies.
#[test]
fn an_odd_message_forbids_a_retry() {
    let server = Setup::new().retries("10ms").start();
    let call = |fields: &str| {
        update(&format!(r#""sessionUpdate":"tool_call","title":"rm -rf build",{fields}"#))
    };
    let words = [
        call(r#""toolCallId":5,"status":"in_progress""#),
        call(r#""toolCallId":"a","status":{"x":1}"#),
        call(r#""toolCallId":"cut \ud83d""#),
        update(r#""sessionUpdate":"agent_message_chunk","size":"12KB","content":{"text":"gone"}"#),
        update(r#""sessionUpdate":"from_the_future""#),
        update(r#""sessionUpdate":{"x":1}"#),
        r#"[[line:{"method":"session/update","params":7}]]"#.to_owned(),
        r#"[[line:{"method":"_vendor/acted","params":{"x":"\ud83d"}}]]"#.to_owned(),
        r#"[[line:{"id":"cut \ud83d","method":"session/request_permission","params":7}]]"#
            .to_owned(),
        update(r#""sessionUpdate":"tool_call","rawInput":NaN"#),
        r#"[[line:{"method":"session/update","params":{"upda]]"#.to_owned(),
        "[[line:\u{feff} {\"method\":\"session/update\",\"params\":{\"upda]]".to_owned(),
        "[[line: \t{\"method\":\"session/up]]".to_owned(),
        "[[utf8]]".to_owned(),
    ];
    let ends = [("[[error:-32603:no]]", "failed"), ("[[die:5]]", "interrupted")];
    let prompts =
        words.iter().flat_map(|word| ends.map(|(end, state)| (format!("{word}{end}"), state)));
    let tasks = prompts.enumerate().map(|(number, (prompt, state))| {
        let task = server.submit(&format!("odd-{number}"), &prompt);
        (task, prompt, state)
    });
    for (task, prompt, state) in tasks.collect::<Vec<_>>() {
        let ended = server.finish_as(&task, state);
        assert_eq!((&ended["attempt"], server.journal.times(&prompt)), (&json!(1), 1), "{prompt}");
        if prompt.contains("rm -rf") && state == "interrupted" {
            assert_eq!(ended["interrupted"]["side_effects"], "possible", "{ended}");
        }
    }
    let unasked = r#"[[line:{"method":"_auth/status_update"}]]"#;
    for (group, word) in [("unasked", unasked), ("log", "[[garbage]]")] {
        let task = server.submit(group, &format!("{word}[[times:1:die:5]]"));
        server.assert_attempts(&server.finish_as(&task, "completed"), 2);
    }
}

/// I7, I9: any response with the prompt's id ends the turn at once, and a result is never followed
/// by another attempt. The agent's own word for the end is kept over a restart; text that is cut in
/// the middle of an emoji is in the answer, with U+FFFD in place of the rest.
#[test]
fn any_answer_ends_a_turn() {
    let mut server = Setup::new().retries("10ms").start();
    let text = r#""sessionUpdate":"agent_message_chunk","content":{"text":"42 \ud83d"}"#;
    let (silent, speaks) = (String::new(), update(text));
    let unclear = json!("agent_answer_unclear");
    let error = json!("agent_error");
    #[rustfmt::skip]
    let cases = [
        (&speaks, r#""id":$id,"result":{"stopReason":"_vendor_pause"}"#, "completed", "_vendor_pause", Value::Null, ""),
        (&speaks, r#""id":$id,"result":null"#,                           "completed", "_unclear",      Value::Null, ""),
        (&speaks, r#""id":"$id","result":{"stopReason":"end_turn"}"#,    "completed", "end_turn",      Value::Null, ""),
        (&speaks, r#""id":$id,"result":{"stopReason":"end_turn","x":NaN}"#, "completed", "end_turn",  Value::Null, ""),
        (&silent, r#""id":$id,"result":{"stopReason":"_vendor_pause"}"#, "failed",    "_vendor_pause", unclear.clone(), "without output"),
        (&silent, r#""id":$id,"result":{"stopReason":"_deadline"}"#,     "failed",    "_unclear",      unclear.clone(), "without output"),
        (&silent, r#""id":$id.0,"result":{}"#,                           "failed",    "_unclear",      unclear.clone(), "without output"),
        (&silent, r#""jsonrpc":"2.0","id":$id"#,                         "failed",    "_unclear",      unclear, "without output"),
        (&silent, r#""id":$id,"error":"boom""#,                          "failed",    "_error",        error.clone(), "boom"),
        (&silent, r#""id":$id,"error":{"code":-32600.0,"message":null}"#, "failed",   "_error",        error.clone(), "error -32600"),
        (&silent, r#""id":$id,"error":{"code":"x","message":"cut \ud83d"}"#, "failed", "_error",       error.clone(), "cut \u{fffd}"),
        (&silent, r#""id":$id,"error":{"code":-32602,"message":"Internal error","data":{"details":"overloaded"}}"#, "failed", "_error", error.clone(), "Internal error: overloaded"),
        (&speaks, r#""id":$id,"error":{},"result":{"stopReason":"end_turn"}"#, "completed", "end_turn", Value::Null, ""),
        (&silent, r#""jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error"}"#, "failed", "_error", error.clone(), "Parse error"),
        (&silent, r#""id":$id,"error":{"code":-32603},"result":{}"#,     "failed",    "_error",        error, "-32603"),
    ];
    for (before, answer, state, stop_reason, code, message) in &cases {
        let task = server.submit("work", &format!("{before}[[answer-line:{{{answer}}}]]"));
        let ended = server.finish_as(&task, state);
        assert_eq!(ended["stop_reason"], *stop_reason, "{answer}: {ended}");
        assert_eq!(ended["error"]["code"], *code, "{answer}: {ended}");
        let shown = ended["error"]["message"].as_str().unwrap_or_default();
        assert!(shown.contains(message), "{answer}: {ended}");
        assert_eq!(ended["text"], if before.is_empty() { "" } else { "42 \u{fffd}" }, "{answer}");
        assert_eq!(ended["attempt"], 1, "{answer}: {ended}");
    }
    let before: Vec<Value> = server.list("work", "tasks");
    server.kill_and_boot();
    assert_eq!(server.list("work", "tasks"), before);
    let digest = server.get("/v1/groups/work/digest").expect(200);
    assert_eq!(digest["stop_reasons"]["_unclear"], 6, "{digest}");
}

/// I7, F13: an answer ends its turn, also if the agent wrote other text on the same line; what
/// stands around it is kept. A message that a log line quotes is none.
#[test]
fn an_answer_on_a_line_with_other_text_ends_its_turn() {
    let server = Server::usual();
    let answer = r#"{"jsonrpc":"2.0","id":$id,"result":{"stopReason":"end_turn"}}"#;
    let chunk = r#"{"method":"session/update","params":{"sessionId":$session,"update":{"sessionUpdate":"agent_message_chunk","content":{"text":"said"}}}}"#;
    #[rustfmt::skip]
    let cases = [
        ("two",    format!("{chunk}{answer}"),                        "said", 0),
        ("text",   format!("Thinking...{answer}"),                    "",     1),
        ("cut",    format!(r#"{{"method":"session/up{answer}"#),      "",     1),
        ("cut-2",  format!(r#"{{"method":"session/up{chunk}{answer}"#), "",   1),
        ("after",  format!("{chunk}{answer}Done."),                   "said", 1),
        ("quoted", format!("sent: {chunk}\n{answer}"),                "",     1),
    ];
    for (group, line, text, rejected) in cases {
        let ended = server.complete(group, &format!("[[answer-line:{line}]]"));
        assert_eq!((&ended["stop_reason"], &ended["text"]), (&json!("end_turn"), &json!(text)));
        let frames = server.frames_of_kind(group, "greenroom/agent_output_rejected");
        assert_eq!(frames.len(), rejected, "{group}: {frames:?}");
    }
}

/// An error without an id answers the prompt only if nothing else is to be answered.
#[test]
fn an_error_without_an_id_may_be_about_another_line() {
    let server = Setup::new().text("defaults", "permission_policy", "allow").start();
    let error = r#"[[line:{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"no"}}]]"#;
    server.complete("work", &format!("[[permission]]{error}[[reply:done]]"));
    let failed = server.submit("work", &format!("{error}[[reply:late]]"));
    server.finish_as(&failed, "failed");
}

/// I7: an error that is none of an unknown request is no answer to a cancel, which an agent that
/// knows it never answers: it ends the next turn.
#[test]
fn an_error_without_an_id_may_follow_a_cancel_that_was_obeyed() {
    let server = Setup::new().start();
    let line = |code| {
        let error = format!(r#""error":{{{code}"message":"no"}}"#);
        format!(r#"[[line:{{"jsonrpc":"2.0","id":null,{error}}}]]"#)
    };
    for (number, code) in [r#""code":-32603,"#, r#""code":-32700,"#, ""].into_iter().enumerate() {
        let gate = format!("on{number}");
        let cancelled = server.submit("work", &format!("[[gate:{gate}]]"));
        server.journal.wait_gate(&gate);
        server.cancel(&cancelled).expect(202);
        server.finish_as(&cancelled, "cancelled");
        let failed = server.submit("work", &format!("{}[[reply:late]]", line(code)));
        server.finish_as(&failed, "failed");
    }
}

/// I7: an agent that does not know a cancel may answer it during the next turn, which continues. An
/// error without an id ends a turn again once the agent has answered one since.
#[test]
fn an_error_without_an_id_may_be_about_an_earlier_cancel() {
    let server = Setup::new().start();
    let error = r#"[[line:{"jsonrpc":"2.0","id":null,"error":{"code":-32601,"message":"no"}}]]"#;
    for number in 0..2 {
        let gate = format!("on{number}");
        let cancelled = server.submit("work", &format!("[[gate:{gate}]]"));
        server.journal.wait_gate(&gate);
        server.cancel(&cancelled).expect(202);
        server.finish_as(&cancelled, "cancelled");
        let next = server.complete("work", &format!("{error}[[reply:done]]"));
        assert_eq!(next["text"], "done", "{next}");
        let rejected = server.frames_of_kind("work", "greenroom/agent_output_rejected");
        assert_eq!(rejected.len(), number + 1);
        let failed = server.submit("work", &format!("{error}[[reply:late]]"));
        server.finish_as(&failed, "failed");
    }
}
