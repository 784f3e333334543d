//! The inbox on the command line.

use serde_json::{Value, json};

use crate::support::{Setup, server::id};

/// API-5: `greenroom permissions` lists the pending permissions with their ids and options, which
/// an answer needs; with `--json`, one object per line. `permissions answer ID OPTION` and
/// `permissions cancel ID` answer one. A refusal of the server is printed, with exit code 5; wrong
/// usage exits with 2.
#[test]
fn permissions_are_listed_and_answered() {
    let server = Setup::new().asks().start();
    server.cli_stdout(&["permissions"]);
    assert_eq!(server.cli_stdout(&["permissions", "--json"]), "");
    let (task, first) = server.submit_asking("work", "[[permission::execute]]");
    let (other, second) = server.submit_asking("other", "[[permission]]");
    let stdout = server.cli_stdout(&["permissions"]);
    for permission in [&first, &second] {
        let line = stdout.lines().find(|line| line.contains(id(permission)));
        let line = line.unwrap_or_else(|| panic!("no {permission} in {stdout}"));
        assert!(line.contains(permission["group"].as_str().unwrap()), "{line}");
        for option in ["always", "once", "never", "not-now"] {
            assert!(line.contains(option), "{option} in {line}");
        }
    }
    let lines = server.cli_stdout(&["permissions", "--json"]);
    let listed: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(listed.len(), 2, "{lines}");
    assert!(listed.contains(&first) && listed.contains(&second), "{lines}");

    let refuses = |arguments: &[&str], code: i32| {
        let refused = server.cli(arguments);
        assert_eq!(refused.status.code(), Some(code), "{arguments:?}: {refused:?}");
        assert!(!refused.stderr.is_empty(), "{arguments:?}");
    };
    refuses(&["permissions", "answer", id(&first), "absent"], 5);
    server.cli_stdout(&["permissions", "answer", id(&first), "always"]);
    assert_eq!(server.finish_as(&task, "completed")["text"], "permission: selected always");
    let stdout = server.cli_stdout(&["permissions"]);
    assert!(!stdout.contains(id(&first)) && stdout.contains(id(&second)), "{stdout}");
    let stdout = server.cli_stdout(&["permissions", "cancel", id(&second), "--json"]);
    let answered: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&answered["id"], &answered["state"]), (&second["id"], &json!("cancelled")));
    assert_eq!(server.finish_as(&other, "completed")["text"], "permission: cancelled -");
    refuses(&["permissions", "answer", id(&first), "once"], 5);
    refuses(&["permissions", "cancel", id(&first)], 5);
    refuses(&["permissions", "cancel", "prm_01890000-0000-7000-8000-000000000000"], 5);
    refuses(&["permissions", "answer"], 2);
    refuses(&["permissions", "no"], 2);
}
