//! Permission policies: a permission is answered by a caller, or by a policy of the configuration
//! or the group, for all tools or by kind.

use serde_json::{Value, json};

use crate::support::{Server, Setup};

/// Sets the group's policy.
#[track_caller]
fn put(server: &Server, group: &str, policy: &Value) {
    let body = json!({ "permission_policy": policy });
    let changed = server.put(&format!("/v1/groups/{group}"), &body).expect_any(&[200, 201]);
    assert_eq!(changed["permission_policy"], *policy);
}

/// Runs a turn with a permission request, and checks the outcome that the agent received.
#[track_caller]
fn assert_outcome(server: &Server, group: &str, word: &str, outcome: &str) {
    let task = server.complete(group, &format!("[[{word}]]"));
    assert_eq!(task["text"], format!("permission: {outcome}"), "{group}, {word}: {task}");
}

/// Checks a policy that rejects `execute`, allows `read`, and asks for the rest, also for an
/// unknown or missing kind.
#[track_caller]
fn assert_by_kind(server: &Server, group: &str) {
    assert_outcome(server, group, "permission::execute", "selected not-now");
    assert_outcome(server, group, "permission::read", "selected once");
    for word in ["permission::edit", "permission", "permission::no_kind_of_acp"] {
        let (task, permission) = server.submit_asking(group, &format!("[[{word}]]"));
        server.answer(&permission, "once").expect(200);
        server.finish_as(&task, "completed");
    }
}

/// C22, API-4: `allow` selects the first `allow_once`, else `allow_always`; `reject` the first
/// `reject_once`, else `reject_always`, else none. Each permission is stored, none is ever pending.
#[test]
fn allow_and_reject_select_an_option_for_all_tools() {
    let server = Setup::new().unset("defaults", "permission_policy").start();
    for (policy, words) in [
        (
            "allow",
            &[("permission", "selected once"), ("permission:lasting", "selected always")][..],
        ),
        (
            "reject",
            &[
                ("permission", "selected not-now"),
                ("permission:lasting", "selected never"),
                ("permission:always", "selected never"),
                ("permission:none", "cancelled -"),
            ],
        ),
    ] {
        put(&server, policy, &json!(policy));
        for (word, outcome) in words {
            assert_outcome(&server, policy, word, outcome);
        }
        let stored = server.permissions(&format!("group={policy}"));
        assert_eq!(stored.len(), words.len(), "{stored:?}");
        for permission in &stored {
            let selected = if permission["selected"].is_null() { "cancelled" } else { "selected" };
            assert_eq!(permission["state"], selected, "{permission}");
            assert!(permission["resolved_by"].is_string(), "{permission}");
            server.answer(permission, "once").problem(409, "already-resolved");
        }
        for kind in ["greenroom/permission_opened", "greenroom/permission_resolved"] {
            assert_eq!(server.frames_of_kind(policy, kind).len(), words.len(), "{kind}");
        }
    }
    server.submit_asking("default", "[[permission]]");
}

/// API-2, API-4, C22: the configuration, or a PUT, also while the agent is alive, sets a policy by
/// the tool's kind, and it survives a restart. A request that names its tool call only by id has
/// the kind of the earlier tool call. An unknown word or kind is 400 `invalid-body`, names the
/// field, and changes nothing.
#[test]
fn a_policy_can_be_set_by_kind() {
    let table = "{ default = \"ask\", execute = \"reject\", read = \"allow\" }";
    let mut server = Setup::new().set("defaults", "permission_policy", table).start();
    assert_by_kind(&server, "configured");
    put(&server, "configured", &json!("reject"));
    assert_outcome(&server, "configured", "permission::read", "selected not-now");
    let created = server.create_group("refused", "scripted", "");
    for (policy, word) in [
        (json!("maybe"), "permission_policy"),
        (json!(5), "permission_policy"),
        (json!(["ask"]), "permission_policy"),
        (json!({ "default": "maybe" }), "permission_policy"),
        (json!({ "default": "ask", "execute": "perhaps" }), "execute"),
        (json!({ "default": "ask", "execute": 5 }), "execute"),
        (json!({ "default": "ask", "exec": "allow" }), "exec"),
    ] {
        let body = json!({ "permission_policy": policy });
        let problem = server.put("/v1/groups/refused", &body).problem(400, "invalid-body");
        let text = problem.to_string();
        assert!(text.contains("permission_policy") && text.contains(word), "{policy}: {text}");
    }
    assert_eq!(server.group("refused"), created);
    put(&server, "work", &json!({ "default": "allow", "execute": "reject" }));
    assert_outcome(&server, "work", "tool:open]][[permission::known", "selected not-now");
    let policy = json!({ "default": "ask", "execute": "reject", "read": "allow" });
    put(&server, "work", &policy);
    assert_by_kind(&server, "work");
    server.kill_and_boot();
    assert_eq!(server.group("work")["permission_policy"], policy);
    assert_by_kind(&server, "work");
}
