//! `greenroom backup`.

use std::{fs, path::Path, process::Stdio};

use serde_json::Value;

use crate::support::{Home, Server, server::greenroom};

/// Runs `greenroom backup`; returns its output.
#[track_caller]
pub fn backup(home: &Home, target: &Path) -> Value {
    let config = home.config();
    let words =
        ["backup", target.to_str().unwrap(), "--json", "--config", config.to_str().unwrap()];
    let output = greenroom(home, &words).stdout(Stdio::piped()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
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
    let config = server.home.config();
    for (file, code) in [("mine", 2), ("missing/backup.db", 1)] {
        let words = ["backup", file, "--config", config.to_str().unwrap()];
        let output = greenroom(&server.home, &words).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(file), "{stderr}");
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
