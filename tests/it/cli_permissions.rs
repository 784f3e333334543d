//! The inbox on the command line.

use serde_json::{Value, json};

use crate::support::{Server, Setup, server::id};

#[track_caller]
fn start_asking() -> Server {
    Setup::new().asks().start()
}

/// API-5: `greenroom permissions` lists the pending permissions with their ids and options, which
/// an answer needs; with `--json`, one object per line.
#[test]
fn pending_permissions_are_listed() {
    let server = start_asking();
    server.cli_stdout(&["permissions"]);
    assert_eq!(server.cli_stdout(&["permissions", "--json"]), "");
    let (task, first) = server.submit_asking("work", "[[permission::execute]]");
    let (_, second) = server.submit_asking("other", "[[permission]]");
    let stdout = server.cli_stdout(&["permissions"]);
    for permission in [&first, &second] {
        let line = stdout.lines().find(|line| line.contains(id(permission)));
        let line = line.unwrap_or_else(|| panic!("no {permission} in {stdout}"));
        assert!(line.contains(permission["group"].as_str().unwrap()), "{line}");
    }
    for option in ["always", "once", "never", "not-now"] {
        assert!(stdout.contains(option), "{option} in {stdout}");
    }
    let lines = server.cli_stdout(&["permissions", "--json"]);
    let listed: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(listed.len(), 2, "{lines}");
    assert!(listed.contains(&first) && listed.contains(&second), "{lines}");
    server.answer(&first, "once").expect(200);
    server.finish_as(&task, "completed");
    let stdout = server.cli_stdout(&["permissions"]);
    assert!(!stdout.contains(id(&first)) && stdout.contains(id(&second)), "{stdout}");
}

/// API-5: `permissions answer ID OPTION` and `permissions cancel ID` answer a permission; a refusal
/// of the server is printed, with exit code 5.
#[test]
fn permissions_are_answered_and_refusals_printed() {
    let server = start_asking();
    let (task, permission) = server.submit_asking("work", "[[permission]]");
    let refused = server.cli(&["permissions", "answer", id(&permission), "absent"]);
    assert_eq!(refused.status.code(), Some(5), "{refused:?}");
    assert!(!refused.stderr.is_empty(), "{refused:?}");
    server.cli_stdout(&["permissions", "answer", id(&permission), "always"]);
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
    let (task, permission) = server.submit_asking("work", "[[permission]]");
    let stdout = server.cli_stdout(&["permissions", "cancel", id(&permission), "--json"]);
    let answered: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&answered["id"], &answered["state"]), (&permission["id"], &json!("cancelled")));
    assert_eq!(server.finish_as(&task, "completed")["text"], "permission: cancelled -");
}

/// API-5: wrong usage exits with code 2.
#[test]
fn wrong_usage_exits_with_2() {
    let server = start_asking();
    for arguments in [
        &["permissions", "answer"][..],
        &["permissions", "answer", "prm_1"],
        &["permissions", "no"],
    ] {
        let output = server.cli(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
}
