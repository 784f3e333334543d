//! `greenroom backup`.

use std::{fs, path::Path};

use serde_json::Value;

use crate::support::{Home, Server, server::run};

/// Runs `greenroom backup`; returns its output.
#[track_caller]
pub fn backup(home: &Home, target: &Path) -> Value {
    let (code, output) = run(home, &["backup", target.to_str().unwrap(), "--json"]);
    assert_eq!(code, 0, "{output}");
    serde_json::from_str(&output).unwrap()
}

/// A backup of a running server has everything that was answered with 2xx before it began, and a
/// server can start from it; so can it from a backup of a stopped server. A backup overwrites no
/// file, and reports the refusal by its exit code.
#[test]
fn a_backup_is_restored() {
    let mut server = Server::usual();
    let done = server.complete("work", "before");
    let running = server.submit("work", "[[reply:x]][[gate:go]]");
    server.journal.wait_gate("go");
    let waiting = server.submit("work", "waiting");
    let target = server.home.path().join("backup.db");
    let report = backup(&server.home, &target);
    assert_eq!(report["bytes"], fs::metadata(&target).unwrap().len());
    server.journal.open_gate("go");
    server.finish_as(&waiting, "completed");
    server.kill();
    let offline = server.home.path().join("offline.db");
    backup(&server.home, &offline);
    fs::write(server.home.path().join("mine"), "mine").unwrap();
    for (file, code) in [("mine", 2), ("missing/backup.db", 1)] {
        let (refused, output) = run(&server.home, &["backup", file]);
        assert!(refused == code && output.contains(file), "{refused}: {output}");
    }
    assert_eq!(fs::read_to_string(server.home.path().join("mine")).unwrap(), "mine");
    for (backup, state) in [(&offline, "completed"), (&target, "interrupted")] {
        server.kill();
        fs::remove_dir_all(server.home.data()).unwrap();
        fs::create_dir(server.home.data()).unwrap();
        fs::copy(backup, server.home.data().join("greenroom.db")).unwrap();
        server.boot();
        server.finish_as(&done, "completed");
        server.finish_as(&running, state);
        server.finish_as(&waiting, "completed");
    }
}
