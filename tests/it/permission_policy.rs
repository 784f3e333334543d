//! Permission policies: a permission is answered by a caller, or by a policy of the configuration
//! or the group, for all tools or by kind.

use serde_json::json;

use crate::support::{Server, Setup, server::greenroom};

/// Runs a turn with a permission request, and returns the outcome that the agent received, without
/// `permission: `.
#[track_caller]
fn outcome_of(server: &Server, group: &str, word: &str) -> String {
    let task = server.complete(group, &format!("[[{word}]]"));
    let text = task["text"].as_str().unwrap();
    text.strip_prefix("permission: ").unwrap_or_else(|| panic!("{text:?} of {task}")).to_owned()
}

/// Checks that a permission for a tool of this kind is pending, and answers it.
#[track_caller]
fn assert_asks(server: &Server, group: &str, word: &str) {
    let (task, permission) = server.submit_asking(group, &format!("[[{word}]]"));
    server.answer(&permission, "once").expect(200);
    server.finish_as(&task, "completed");
}

/// C22, API-4: `allow` selects the first `allow_once`, else `allow_always`; `reject` the first
/// `reject_once`, else `reject_always`, else none. Each permission is stored, none is ever pending.
#[test]
fn allow_and_reject_select_an_option_for_all_tools() {
    for (policy, cases) in [
        ("allow", [("permission", "selected once"), ("permission:lasting", "selected always")]),
        ("reject", [("permission", "selected not-now"), ("permission:lasting", "selected never")]),
        ("reject", [("permission:always", "selected never"), ("permission:none", "cancelled -")]),
    ] {
        let server = Setup::new().text("defaults", "permission_policy", policy).start();
        for (word, outcome) in cases {
            assert_eq!(outcome_of(&server, "work", word), outcome, "{policy}, {word}");
        }
        let stored = server.permissions("group=work");
        assert_eq!(stored.len(), 2, "{stored:?}");
        for permission in &stored {
            let state = permission["state"].as_str().unwrap();
            let selected = if permission["selected"].is_null() { "cancelled" } else { "selected" };
            assert_eq!(state, selected, "{permission}");
            assert!(permission["resolved_by"].is_string(), "{permission}");
        }
        for kind in ["greenroom/permission_opened", "greenroom/permission_resolved"] {
            assert_eq!(server.frames_of_kind("work", kind).len(), 2, "{kind}");
        }
        let refused = server.answer(&stored[0], "once").problem(409, "already-resolved");
        assert_eq!(refused["status"], 409);
    }
}

/// API-4: `ask` is the default policy.
#[test]
fn ask_is_the_default_policy() {
    let server = Setup::new().unset("defaults", "permission_policy").start();
    assert_asks(&server, "work", "permission");
}

/// API-2: PUT sets the policy of one group, also while its agent is alive, and it survives a
/// restart.
#[test]
fn put_sets_the_policy_of_a_group() {
    let mut server = Setup::new().asks().start();
    server.put("/v1/groups/work", &json!({ "permission_policy": "allow" })).expect(201);
    assert_eq!(outcome_of(&server, "work", "permission"), "selected once");
    assert_asks(&server, "other", "permission");
    let changed = server.put("/v1/groups/work", &json!({ "permission_policy": "reject" }));
    assert_eq!(changed.expect(200)["permission_policy"], "reject");
    assert_eq!(outcome_of(&server, "work", "permission"), "selected not-now");
    server.kill_and_boot();
    assert_eq!(server.group("work")["permission_policy"], "reject");
    assert_eq!(outcome_of(&server, "work", "permission"), "selected not-now");
    server.put("/v1/groups/work", &json!({ "permission_policy": "ask" })).expect(200);
    assert_asks(&server, "work", "permission");
}

/// Checks a policy that rejects `execute`, allows `read`, and asks for the rest.
#[track_caller]
fn assert_by_kind(server: &Server, group: &str) {
    assert_eq!(outcome_of(server, group, "permission::execute"), "selected not-now");
    assert_eq!(outcome_of(server, group, "permission::read"), "selected once");
    for word in ["permission::edit", "permission", "permission::no_kind_of_acp"] {
        assert_asks(server, group, word);
    }
}

/// API-2: PUT sets a policy by the tool's kind; an unlisted, unknown or missing kind has the policy
/// `default`.
#[test]
fn a_policy_can_be_set_by_kind() {
    let mut server = Server::usual();
    let policy = json!({ "default": "ask", "execute": "reject", "read": "allow" });
    let created =
        server.put("/v1/groups/work", &json!({ "permission_policy": policy })).expect(201);
    assert_eq!(created["permission_policy"], policy);
    assert_by_kind(&server, "work");
    server.kill_and_boot();
    assert_eq!(server.group("work")["permission_policy"], policy);
    assert_by_kind(&server, "work");
    let every = [
        "read",
        "edit",
        "delete",
        "move",
        "search",
        "execute",
        "think",
        "fetch",
        "switch_mode",
        "other",
    ];
    for kind in every {
        let policy = json!({ "default": "reject", kind: "allow" });
        server.put("/v1/groups/work", &json!({ "permission_policy": policy })).expect(200);
        assert_eq!(outcome_of(&server, "work", &format!("permission::{kind}")), "selected once");
        let other = if kind == "read" { "edit" } else { "read" };
        assert_eq!(
            outcome_of(&server, "work", &format!("permission::{other}")),
            "selected not-now"
        );
    }
}

/// C22: a request that names its tool call only by id has the kind of the earlier tool call.
#[test]
fn an_earlier_tool_call_gives_the_kind() {
    let server = Server::usual();
    let policy = json!({ "default": "allow", "execute": "reject" });
    server.put("/v1/groups/work", &json!({ "permission_policy": policy })).expect(201);
    let task = server.complete("work", "[[tool:open]][[permission::known]]");
    assert_eq!(task["text"], "permission: selected not-now");
}

/// API-4: the configuration can set a policy by the tool's kind.
#[test]
fn a_policy_by_kind_can_be_configured() {
    let table = "{ default = \"ask\", execute = \"reject\", read = \"allow\" }";
    let server = Setup::new().set("defaults", "permission_policy", table).start();
    server.create_group("work", "scripted", "");
    assert_by_kind(&server, "work");
    server.put("/v1/groups/work", &json!({ "permission_policy": "reject" })).expect(200);
    assert_eq!(
        outcome_of(&server, "work", "permission::read"),
        "selected not-now",
        "PUT replaces all"
    );
}

/// API-2: an unknown word or kind is 400 `invalid-body`, names the field, and changes nothing.
#[test]
fn an_invalid_policy_is_refused() {
    let server = Server::usual();
    let created = server.create_group("work", "scripted", "");
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
        let problem = server.put("/v1/groups/work", &body).problem(400, "invalid-body");
        let text = problem.to_string();
        assert!(text.contains("permission_policy") && text.contains(word), "{policy}: {text}");
    }
    assert_eq!(server.group("work"), created);
}

/// F32: an invalid policy in the configuration is an error with file and line.
#[test]
fn an_invalid_policy_in_the_configuration_is_an_error() {
    let cases = [
        ("\"maybe\"", "maybe"),
        ("{ default = \"maybe\" }", "maybe"),
        ("{ default = \"ask\", exec = \"allow\" }", "exec"),
        ("{ default = \"ask\", execute = 5 }", "execute"),
    ];
    for (policy, word) in cases {
        let home = Setup::new().home();
        home.write_config(&format!("[defaults]\npermission_policy = {policy}\n"));
        let config = home.config();
        let arguments = ["check-config", "--config", config.to_str().unwrap()];
        let output = greenroom(&home, &arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{policy}: {stderr}");
        let places = [":2", "line 2"];
        assert!(places.iter().any(|place| stderr.contains(place)), "{policy}: {stderr}");
        assert!(stderr.contains(word), "{policy}: {stderr}");
    }
}

/// API-4: greenroom does not warn of a policy that it applies.
#[test]
fn check_config_does_not_warn_of_a_supported_policy() {
    let home = Setup::new().asks().retries("1s").home();
    let config = home.config();
    let arguments = ["check-config", "--config", config.to_str().unwrap()];
    let output = greenroom(&home, &arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    for key in ["permission_policy", "retry", "retry_base"] {
        assert!(!stderr.contains(key), "{stderr}");
    }
}
