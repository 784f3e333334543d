//! An agent that wants a login before it opens a session: the group's queue waits.

use serde_json::json;

use crate::support::{Server, Setup};

/// Returns how many agents have begun.
fn starts(server: &Server, group: &str) -> usize {
    server.frames_of_kind(group, "greenroom/run_started").len()
}

/// DQ-13, API-1, API-7: no task fails of a missing login and no attempt counts. All of them show
/// what they wait for, over a kill of the server too, and the log says what to do. `resume` lets
/// the queue continue in its order.
#[test]
fn a_missing_login_stops_the_queue_and_fails_no_task() {
    let mut server = Setup::new().retries("10ms").start();
    server.journal.script("on-new", "[[error:-32000:Authentication required]]");
    server.create_group("work", "scripted", "");
    let tasks = ["one", "two", "three"].map(|prompt| server.submit("work", prompt));
    server.wait_group("work", "waits for a login", |group| group["blocked_by"] == "agent_auth");
    server.log.wait("what to do", |line| {
        line.contains("WARN")
            && line.contains("agent_auth")
            && line.contains("Authentication required")
            && line.contains("scripted")
            && line.contains("greenroom resume work")
    });
    let labels = [("blocked_by", "agent_auth")];
    server.wait_scrape("the wait", |scrape| {
        scrape.value("greenroom_oldest_waiting_task_age_seconds", &labels) > 0.0
    });
    for life in ["first", "second"] {
        let group = server.group("work");
        let shown = (&group["status"], &group["blocked_by"], &group["queue_length"]);
        assert_eq!(shown, (&json!("waiting"), &json!("agent_auth"), &json!(3)), "{life}");
        for task in &tasks {
            let task = server.task(task);
            let shown = (&task["state"], &task["blocked_by"], &task["attempt"]);
            assert_eq!(shown, (&json!("queued"), &json!("agent_auth"), &json!(0)), "{life}");
        }
        assert_eq!(starts(&server, "work"), 1, "{life}");
        if life == "first" {
            server.kill_and_boot();
        }
    }
    server.journal.script("on-new", "");
    server.resume("work");
    for task in &tasks {
        server.finish_as(task, "completed");
    }
    assert_eq!(server.journal.prompts(), ["one", "two", "three"]);
    assert_eq!(starts(&server, "work"), 2);
}

/// DQ-8, A-4: an error that no retry cures ends its task at the first attempt, whatever in the
/// error says so; one that may pass is retried.
#[test]
fn an_error_that_stays_is_not_retried() {
    let server = Setup::new().retries("10ms").start();
    #[rustfmt::skip]
    let cases = [
        (r#"{"code":-32603,"message":"x","data":{"error":{"type":"invalid_request_error"}}}"#,  1),
        (r#"{"code":-32603,"message":"x","data":{"cause":{"code":"context_length_exceeded"}}}"#, 1),
        (r#"{"code":-32603,"message":"x","data":{"code":"model_not_found"}}"#,                  1),
        (r#"{"code":-32603,"message":"x","data":{"status":529}}"#,                              6),
    ];
    for (error, attempts) in cases {
        let prompt = format!(r#"[[answer-line:{{"id":$id,"error":{error}}}]]"#);
        let ended = server.finish_as(&server.submit("work", &prompt), "failed");
        assert_eq!(ended["attempt"], attempts, "{error}: {ended}");
    }
}

/// DQ-8: an error of a start that no retry cures fails the task at its first attempt.
#[test]
fn an_error_of_a_start_that_stays_is_not_retried() {
    let server = Setup::new().retries("10ms").start();
    server.journal.script("on-new", "[[error:-32602:unknown model]]");
    server.create_group("work", "scripted", "");
    let ended = server.finish_as(&server.submit("work", "one"), "failed");
    assert_eq!((&ended["attempt"], starts(&server, "work")), (&json!(1), 1), "{ended}");
    let error = &ended["error"];
    assert_eq!(error["code"], "agent_start_failed");
    assert!(error["message"].to_string().contains("unknown model"), "{error}");
}

/// DQ-13, DQ-8: a prompt that is refused for a login fails at its first attempt, whatever in the
/// error says so; what follows waits, over a kill of the server too, and continues after `resume`.
#[test]
fn a_prompt_that_is_refused_for_a_login_fails_alone() {
    let mut server = Setup::new().retries("10ms").start();
    server.create_group("work", "scripted", "");
    let refusals = [
        r#"{"code":-32000,"message":"Authentication required"}"#,
        r#"{"code":-32603,"message":"x","data":{"status":401}}"#,
    ];
    for refusal in refusals {
        let prompt = format!(r#"[[answer-line:{{"id":$id,"error":{refusal}}}]]"#);
        let tasks = [&*prompt, "two"].map(|prompt| server.submit("work", prompt));
        let ended = server.finish_as(&tasks[0], "failed");
        let shown = (&ended["attempt"], &ended["error"]["code"]);
        assert_eq!(shown, (&json!(1), &json!("agent_error")), "{ended}");
        server.wait_blocked(&tasks[1], "agent_auth");
        server.kill_and_boot();
        server.wait_blocked(&tasks[1], "agent_auth");
        server.resume("work");
        server.finish_as(&tasks[1], "completed");
    }
    assert!(server.frames_of_kind("work", "greenroom/context_lost").is_empty());
}
