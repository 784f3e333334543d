//! The inbox: a permission request stays pending until a caller answers it, or it expires or
//! becomes void.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    Server, Setup, millis, process,
    server::{encode, id},
};

const OPENED: &str = "greenroom/permission_opened";
const RESOLVED: &str = "greenroom/permission_resolved";

/// Checks the outcome of a permission, over HTTP and in the transcript.
#[track_caller]
fn assert_resolved(server: &Server, permission: &Value, state: &str, selected: Option<&str>) {
    let now = server.permission(permission);
    let tail = server.log.tail();
    assert_eq!((&now["state"], &now["selected"]), (&json!(state), &json!(selected)), "{now}{tail}");
    assert!(now["resolved_by"].is_string(), "{now}");
    for name in ["group", "task", "tool_call", "options", "opened_at", "expires_at"] {
        assert_eq!(now[name], permission[name], "{name}");
    }
    let group = permission["group"].as_str().unwrap();
    for kind in [OPENED, RESOLVED] {
        let frames = server.frames_of_kind(group, kind);
        let about_it = frames.iter().filter(|frame| frame.to_string().contains(id(permission)));
        assert_eq!(about_it.count(), 1, "{kind}: {frames:?}");
    }
    let pending = server.permissions("state=pending");
    assert!(pending.iter().all(|other| other["id"] != permission["id"]), "{pending:?}");
}

/// API-2, AM-7: a permission is pending, in the inbox, the snapshot and the transcript, until it is
/// answered; the agent receives the answer. A second answer is 409 `already-resolved`, also if it
/// is the same, and changes nothing.
#[test]
fn a_permission_is_pending_until_it_is_answered() {
    let server = Setup::new().asks().start();
    let (task, permission) = server.submit_asking("work", "[[permission::execute]][[gate:go]]");
    assert!(id(&permission).starts_with("prm_"), "{permission}");
    assert_eq!((&permission["group"], &permission["task"]), (&json!("work"), &task["id"]));
    assert_eq!(permission["state"], "pending");
    assert_eq!(permission["tool_call"]["kind"], "execute");
    let ids = permission["options"].as_array().unwrap().iter().map(|option| &option["optionId"]);
    let ids: Vec<&Value> = ids.collect();
    assert_eq!(ids, ["always", "once", "never", "not-now"], "as the agent offered them");
    for name in ["selected", "resolved_by"] {
        assert_eq!(permission.get(name), Some(&json!(null)), "{name} of {permission}");
    }
    let open_ms = millis(&permission["expires_at"]) - millis(&permission["opened_at"]);
    assert!((599_000..=601_000).contains(&open_ms), "{open_ms} ms, not 10 minutes");
    assert_eq!(server.task(&task)["state"], "running");
    let request = &server.frames_of_kind("work", "session/request_permission")[0];
    assert_eq!(request["payload"]["params"]["options"], permission["options"]);
    let opened = &server.frames_of_kind("work", OPENED)[0];
    assert!(opened.to_string().contains(id(&permission)), "{opened}");
    assert_eq!(opened["task"], task["id"]);
    let inbox = || {
        let snapshot = server.get("/v1/groups/work/snapshot").expect(200);
        let mut fields = snapshot.as_object().unwrap().iter();
        let found = fields.find(|(name, _)| name.ends_with("permissions"));
        found.expect("the pending permissions").1.clone()
    };
    assert_eq!(inbox(), json!([permission]));
    let answered = server.answer(&permission, "once").expect(200);
    assert_eq!((&answered["id"], &answered["state"]), (&permission["id"], &json!("selected")));
    assert_eq!(answered["selected"], "once");
    assert_eq!(inbox(), json!([]));
    let refused = json!({ "cancel": true });
    for body in [json!({ "option_id": "never" }), json!({ "option_id": "once" }), refused] {
        server.answer_with(&permission, &body).problem(409, "already-resolved");
    }
    server.journal.open_gate("go");
    assert_eq!(server.finish_as(&task, "completed")["text"], "permission: selected once");
    server.answer(&permission, "never").problem(409, "already-resolved");
    assert_resolved(&server, &permission, "selected", Some("once"));
    assert_eq!(server.journal.events_named("permission").len(), 1);
    let order = server.frames("work").into_iter().map(|frame| frame["kind"].clone());
    let order: Vec<Value> = order.filter(|kind| kind.as_str().unwrap().contains("perm")).collect();
    assert_eq!(order, ["session/request_permission", OPENED, RESOLVED]);
}

/// API-2: an invalid answer is refused, and the permission stays pending. A rejecting option is an
/// answer too; `cancel` selects none.
#[test]
fn every_answer_reaches_the_agent() {
    let server = Setup::new().asks().start();
    let (task, permission) = server.submit_asking("work", "[[permission]]");
    let problem = server.answer(&permission, "unknown").any_problem(400);
    assert!(problem.to_string().contains("option"), "{problem}");
    for (body, field) in [
        (json!({}), ""),
        (json!({ "option_id": 5 }), "option_id"),
        (json!({ "option_id": null }), ""),
        (json!({ "cancel": false }), "cancel"),
        (json!({ "cancel": "yes" }), "cancel"),
        (json!({ "option_id": "once", "cancel": true }), ""),
        (json!({ "option_id": "once", "remember": true }), "remember"),
    ] {
        let problem = server.answer_with(&permission, &body).problem(400, "invalid-body");
        assert!(problem.to_string().contains(field), "{body}: {problem}");
    }
    for unknown in ["prm_01890000-0000-7000-8000-000000000000", "nonsense", "prm_", "tsk_1"] {
        let body = json!({ "option_id": "once" });
        server.post(&format!("/v1/permissions/{unknown}"), &body).any_problem(404);
    }
    assert_eq!(server.permission(&permission), permission, "still pending");
    assert!(server.journal.events_named("permission").is_empty());
    let answered = server.answer_with(&permission, &json!({ "cancel": true })).expect(200);
    assert_eq!(answered["state"], "cancelled", "{answered}");
    assert_eq!(server.finish_as(&task, "completed")["text"], "permission: cancelled -");
    assert_resolved(&server, &permission, "cancelled", None);
    for option in ["always", "never", "not-now"] {
        let (task, permission) = server.submit_asking("work", "[[permission]]");
        server.answer(&permission, option).expect(200);
        let expected = format!("permission: selected {option}");
        assert_eq!(server.finish_as(&task, "completed")["text"], expected);
        assert_resolved(&server, &permission, "selected", Some(option));
    }
}

/// API-2: several permissions can be pending; they are listed by group and state, in pages, and
/// each answer reaches its request.
#[test]
fn each_of_several_answers_reaches_its_request() {
    let server = Setup::new().asks().start();
    let ask = "[[permission-open]][[permission-open]][[permission-open]]";
    let task = server.submit("a", &format!("{ask}[[await-permissions]][[reply:all]]"));
    server.submit_asking("b", "[[permission]]");
    let pending = server.wait_pending("a", 3);
    assert_eq!(server.permissions("state=pending").len(), 4);
    assert_eq!(server.permissions("group=absent").len(), 0);
    let mut seen = Vec::new();
    let mut query = "group=a&state=pending&limit=2".to_owned();
    loop {
        let page = server.get(&format!("/v1/permissions?{query}")).expect(200);
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 2, "{page}");
        seen.extend(items.iter().cloned());
        let Some(next) = page["next_cursor"].as_str() else { break };
        query = format!("group=a&state=pending&limit=2&cursor={}", encode(next));
    }
    assert_eq!(seen, pending);
    for query in ["limit=0", "limit=1001", "limit=x"] {
        server.get(&format!("/v1/permissions?{query}")).any_problem(400);
    }
    let answers = [(2, "once"), (0, "never"), (1, "always")];
    for (place, option) in answers {
        server.answer(&pending[place], option).expect(200);
    }
    for (place, option) in answers {
        let outcome = server.wait_outcome(&pending[place]);
        assert_eq!(outcome, json!({ "outcome": "selected", "optionId": option }));
        assert_resolved(&server, &pending[place], "selected", Some(option));
    }
    assert_eq!(server.finish_as(&task, "completed")["text"], "all");
    for (query, count) in [("group=a&state=pending", 0), ("state=selected", 3), ("group=b", 1)] {
        assert_eq!(server.permissions(query).len(), count, "{query}");
    }
}

/// AM-7, C22: without an answer in time the permission is `expired`, and the agent receives a
/// rejection.
#[test]
fn an_unanswered_permission_expires_as_rejected() {
    let server = Setup::new().asks().text("defaults", "permission_timeout", "300ms").start();
    for (form, selected, outcome) in [
        ("", Some("not-now"), "permission: selected not-now"),
        (":always", Some("never"), "permission: selected never"),
        (":none", None, "permission: cancelled -"),
    ] {
        let task = server.complete("work", &format!("[[permission{form}]]"));
        assert_eq!(task["text"], outcome);
        let expired = server.permissions("group=work&state=expired");
        let permission =
            expired.into_iter().find(|candidate| candidate["task"] == task["id"]).unwrap();
        let waited = millis(&task["ended_at"]) - millis(&permission["opened_at"]);
        assert!(240 <= waited, "after {waited} ms");
        assert_resolved(&server, &permission, "expired", selected);
        server.answer(&permission, "once").problem(409, "already-resolved");
    }
}

/// A-4, AM-3, I7: a cancel of the task answers all its pending permissions with `cancelled`; the
/// settlement of the turn and the death of the agent void them, before the turn settles, and the
/// agent receives an answer. The deletion of the group ends them, and a purge deletes them.
#[test]
fn the_end_of_a_turn_ends_its_permissions() {
    let server = Setup::new().asks().retries("10ms").start();
    let ask = "[[permission-open]][[permission-open]][[permission]]";
    let task = server.submit("cancelled", ask);
    let pending = server.wait_pending("cancelled", 3);
    server.cancel(&task).expect(202);
    server.finish_as(&task, "cancelled");
    for permission in &pending {
        assert_eq!(server.wait_outcome(permission), json!({ "outcome": "cancelled" }));
        assert_resolved(&server, permission, "cancelled", None);
        server.answer(permission, "once").problem(409, "already-resolved");
    }
    assert_eq!(server.journal.events_named("cancel").len(), 1);
    assert_eq!(server.journal.events_named("start").len(), 1, "the agent was not killed");

    let (task, permission) = server.submit_asking("settled", "[[permission-open]][[gate:go]]");
    server.journal.open_gate("go");
    server.finish_as(&task, "completed");
    assert_eq!(server.wait_outcome(&permission), json!({ "outcome": "cancelled" }));
    assert_resolved(&server, &permission, "void", None);
    server.answer(&permission, "once").problem(410, "void");
    let seq = |kind: &str| server.task_frames(&task, kind)[0]["seq"].as_u64().unwrap();
    assert!(seq(RESOLVED) < seq("greenroom/turn_settled"));

    let (task, permission) = server.submit_asking("died", "[[permission]]");
    process::signal(server.journal.agent_pid(), Signal::KILL);
    let interrupted = server.finish_as(&task, "interrupted");
    assert_eq!(interrupted["stop_reason"], "_process_exited", "{interrupted}");
    assert_resolved(&server, &permission, "void", None);
    server.answer(&permission, "once").problem(410, "void");
    server.assert_attempts(&task, 1);

    let (task, permission) = server.submit_asking("deleted", "[[permission]]");
    server.delete("/v1/groups/deleted").expect(202);
    // The agent may still complete its turn after the answer `cancelled`.
    let state = server.finish(&task)["state"].clone();
    assert!(["cancelled", "completed"].contains(&state.as_str().unwrap()), "{state}");
    assert!(server.permissions("state=pending").is_empty());
    let state = server.permission(&permission)["state"].clone();
    assert!(["cancelled", "void"].contains(&state.as_str().unwrap()), "{state}");
    server.answer(&permission, "once").expect_any(&[409, 410]);
    server.wait_status("deleted", "archived");
    server.delete("/v1/groups/deleted?purge=true").expect(202);
    server.wait_purged("deleted");
    server.answer(&permission, "once").any_problem(404);
    assert!(server.permissions("group=deleted").is_empty());
}

/// DQ-11, F4: a permission can be answered during the drain, and its turn completes; one that is
/// not answered ends with its turn, and the exit code is 0.
#[test]
fn a_permission_can_be_answered_during_the_drain() {
    let mut server = Setup::new().asks().text("server", "drain_timeout", "8s").start();
    let (task, permission) = server.submit_asking("work", "[[permission]]");
    let (late, unanswered) = server.submit_asking("late", "[[permission]]");
    server.terminate();
    server.log.wait("the drain", |line| line.contains("draining"));
    server.answer(&permission, "once").expect(200);
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log.tail());
    server.boot();
    assert_eq!(server.finish_as(&task, "completed")["text"], "permission: selected once");
    assert_resolved(&server, &permission, "selected", Some("once"));
    let ended = server.finish(&late);
    assert!(["interrupted", "cancelled"].contains(&ended["state"].as_str().unwrap()), "{ended}");
    assert!(server.permissions("state=pending").is_empty());
    server.answer(&unanswered, "once").expect_any(&[409, 410]);
    assert_eq!(server.journal.times("[[permission]]"), 2);
}
