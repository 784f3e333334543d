//! The inbox on the command line.

use serde_json::{Value, json};

use crate::support::server::id;
use crate::support::{Server, Setup};

#[track_caller]
fn asking() -> Server {
    Setup::new().asks().start()
}

/// API 5: `greenroom permissions` lists what is pending, with what an answer needs: its id and the
/// options; with `--json`, an object a line.
#[test]
fn lists_what_is_pending() {
    let server = asking();
    server.cli_says(&["permissions"]);
    assert_eq!(server.cli_says(&["permissions", "--json"]), "");
    let (task, first) = server.asked("work", "[[permission::execute]]");
    let (_, second) = server.asked("other", "[[permission]]");
    let said = server.cli_says(&["permissions"]);
    for permission in [&first, &second] {
        let line = said.lines().find(|line| line.contains(id(permission)));
        let line = line.unwrap_or_else(|| panic!("no {permission} in {said}"));
        assert!(line.contains(permission["group"].as_str().unwrap()), "{line}");
    }
    for option in ["always", "once", "never", "not-now"] {
        assert!(said.contains(option), "{option} in {said}");
    }
    let lines = server.cli_says(&["permissions", "--json"]);
    let listed: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(listed.len(), 2, "{lines}");
    assert!(listed.contains(&first) && listed.contains(&second), "{lines}");
    server.answer(&first, "once").expect(200);
    server.finish_as(&task, "completed");
    let said = server.cli_says(&["permissions"]);
    assert!(!said.contains(id(&first)) && said.contains(id(&second)), "{said}");
}

/// API 5: `permissions answer ID OPTION` and `permissions cancel ID` answer; what the server
/// refuses is said, with exit code 5.
#[test]
fn answers() {
    let server = asking();
    let (task, permission) = server.asked("work", "[[permission]]");
    let refused = server.cli(&["permissions", "answer", id(&permission), "nobody"]);
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    assert!(!refused.stderr.is_empty(), "{refused:?}");
    server.cli_says(&["permissions", "answer", id(&permission), "always"]);
    assert_eq!(server.finish_as(&task, "completed")["text"], "permission: selected always");
    for again in [
        vec!["permissions", "answer", id(&permission), "once"],
        vec!["permissions", "cancel", id(&permission)],
        vec!["permissions", "cancel", "prm_01890000-0000-7000-8000-000000000000"],
    ] {
        let refused = server.cli(&again);
        assert_eq!(refused.status.code(), Some(5), "{again:?}: {refused:?}");
        assert!(!refused.stderr.is_empty(), "{again:?}");
    }
    let (task, permission) = server.asked("work", "[[permission]]");
    let said = server.cli_says(&["permissions", "cancel", id(&permission), "--json"]);
    let answered: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&answered["id"], &answered["state"]), (&permission["id"], &json!("cancelled")));
    assert_eq!(server.finish_as(&task, "completed")["text"], "permission: cancelled -");
}

/// API 5: a wrong use is exit code 2.
#[test]
fn wrong_use() {
    let server = asking();
    for arguments in [
        &["permissions", "answer"][..],
        &["permissions", "answer", "prm_1"],
        &["permissions", "no"],
    ] {
        let output = server.cli(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
}
