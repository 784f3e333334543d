//! Who answers a permission: a person, or a word in the configuration or of the group, for all
//! tools or by their kind.

use serde_json::json;

use crate::support::server::greenroom;
use crate::support::{Server, Setup};

/// Runs a turn that asks, and gives what the agent was told, without `permission: `.
#[track_caller]
fn told(server: &Server, group: &str, word: &str) -> String {
    let task = server.complete(group, &format!("[[{word}]]"));
    let text = task["text"].as_str().unwrap();
    text.strip_prefix("permission: ").unwrap_or_else(|| panic!("{text:?} of {task}")).to_owned()
}

/// Checks that a tool of this kind is left to somebody, and answers.
#[track_caller]
fn assert_asks(server: &Server, group: &str, word: &str) {
    let (task, permission) = server.asked(group, &format!("[[{word}]]"));
    server.answer(&permission, "once").expect(200);
    server.finish_as(&task, "completed");
}

/// C22, API 4: `allow` selects the first `allow_once`, else `allow_always`; `reject` the first
/// `reject_once`, else `reject_always`, else none. All of it is kept, nothing is ever pending.
#[test]
fn words_for_all_tools() {
    for (policy, cases) in [
        ("allow", [("permission", "selected once"), ("permission:lasting", "selected always")]),
        ("reject", [("permission", "selected not-now"), ("permission:lasting", "selected never")]),
        ("reject", [("permission:always", "selected never"), ("permission:none", "cancelled -")]),
    ] {
        let server = Setup::new().text("defaults", "permission_policy", policy).start();
        for (word, outcome) in cases {
            assert_eq!(told(&server, "work", word), outcome, "{policy}, {word}");
        }
        let kept = server.permissions("group=work");
        assert_eq!(kept.len(), 2, "{kept:?}");
        for permission in &kept {
            let state = permission["state"].as_str().unwrap();
            let selected = if permission["selected"].is_null() { "cancelled" } else { "selected" };
            assert_eq!(state, selected, "{permission}");
            assert!(permission["resolved_by"].is_string(), "{permission}");
        }
        for kind in ["greenroom/permission_opened", "greenroom/permission_resolved"] {
            assert_eq!(server.frames_of_kind("work", kind).len(), 2, "{kind}");
        }
        let refused = server.answer(&kept[0], "once").problem(409, "already-resolved");
        assert_eq!(refused["status"], 409);
    }
}

/// API 4: `ask` is the default.
#[test]
fn by_default_somebody_is_asked() {
    let server = Setup::new().unset("defaults", "permission_policy").start();
    assert_asks(&server, "work", "permission");
}

/// API 2: PUT sets another for one group, also while its agent lives, and over a restart.
#[test]
fn by_group() {
    let mut server = Setup::new().asks().start();
    server.put("/v1/groups/work", &json!({ "permission_policy": "allow" })).expect(201);
    assert_eq!(told(&server, "work", "permission"), "selected once");
    assert_asks(&server, "other", "permission");
    let changed = server.put("/v1/groups/work", &json!({ "permission_policy": "reject" }));
    assert_eq!(changed.expect(200)["permission_policy"], "reject");
    assert_eq!(told(&server, "work", "permission"), "selected not-now");
    server.kill_and_boot();
    assert_eq!(server.group("work")["permission_policy"], "reject");
    assert_eq!(told(&server, "work", "permission"), "selected not-now");
    server.put("/v1/groups/work", &json!({ "permission_policy": "ask" })).expect(200);
    assert_asks(&server, "work", "permission");
}

/// Checks a policy that rejects execute, allows read, and asks for the rest.
#[track_caller]
fn assert_by_kind(server: &Server, group: &str) {
    assert_eq!(told(server, group, "permission::execute"), "selected not-now");
    assert_eq!(told(server, group, "permission::read"), "selected once");
    for word in ["permission::edit", "permission", "permission::no_kind_of_acp"] {
        assert_asks(server, group, word);
    }
}

/// API 2: by the tool's kind, over PUT; a kind that is not named, unknown or not told is `default`.
#[test]
fn by_kind() {
    let mut server = Server::usual();
    let policy = json!({ "default": "ask", "execute": "reject", "read": "allow" });
    let made = server.put("/v1/groups/work", &json!({ "permission_policy": policy })).expect(201);
    assert_eq!(made["permission_policy"], policy);
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
        assert_eq!(told(&server, "work", &format!("permission::{kind}")), "selected once");
        let other = if kind == "read" { "edit" } else { "read" };
        assert_eq!(told(&server, "work", &format!("permission::{other}")), "selected not-now");
    }
}

/// C22: a request that names its tool call only by id is judged by the kind that was told before.
#[test]
fn by_the_kind_that_was_told_before() {
    let server = Server::usual();
    let policy = json!({ "default": "allow", "execute": "reject" });
    server.put("/v1/groups/work", &json!({ "permission_policy": policy })).expect(201);
    let task = server.complete("work", "[[tool:open]][[permission::known]]");
    assert_eq!(task["text"], "permission: selected not-now");
}

/// API 4: by the tool's kind, in the configuration.
#[test]
fn by_kind_in_the_configuration() {
    let table = "{ default = \"ask\", execute = \"reject\", read = \"allow\" }";
    let server = Setup::new().set("defaults", "permission_policy", table).start();
    server.make("work", "scripted", "");
    assert_by_kind(&server, "work");
    server.put("/v1/groups/work", &json!({ "permission_policy": "reject" })).expect(200);
    assert_eq!(told(&server, "work", "permission::read"), "selected not-now", "PUT replaces all");
}

/// API 2: a word or a kind that is none is 400 `invalid-body`, naming the field, and changes
/// nothing.
#[test]
fn what_is_no_policy() {
    let server = Server::usual();
    let made = server.make("work", "scripted", "");
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
        let said = problem.to_string();
        assert!(said.contains("permission_policy") && said.contains(word), "{policy}: {said}");
    }
    assert_eq!(server.group("work"), made);
}

/// F32: in the configuration it is an error with file and line.
#[test]
fn what_is_no_policy_in_the_configuration() {
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
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{policy}: {said}");
        let places = [":2", "line 2"];
        assert!(places.iter().any(|place| said.contains(place)), "{policy}: {said}");
        assert!(said.contains(word), "{policy}: {said}");
    }
}

/// API 4: a policy that is acted on is not warned of.
#[test]
fn nobody_is_warned_of_what_works() {
    let home = Setup::new().asks().retries("1s").home();
    let config = home.config();
    let arguments = ["check-config", "--config", config.to_str().unwrap()];
    let output = greenroom(&home, &arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    for key in ["permission_policy", "retry", "retry_base"] {
        assert!(!said.contains(key), "{said}");
    }
}
