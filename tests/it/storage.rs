//! A database that fails. Storage is fail-stop: no 2xx, no prompt, not ready, one clear log line;
//! nothing that was answered with 2xx is lost.
//!
//! Faults need no privileges: a limit on file sizes of the running server, a lock of this process,
//! removed or damaged files, and `strace`, which makes system calls fail.

use std::{
    fs,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::Path,
    thread,
};

use serde_json::{Value, json};

use crate::{
    backup::backup,
    support::{
        Home, Log, Server, Setup, TIMEOUT, eventually, http::Reply, process::Process, server::serve,
    },
};

const TURNS: &str = "/v1/groups/work/turns";

/// Checks a failing server from outside, after a failed write: the server is alive, reports the
/// cause, and accepts nothing.
#[track_caller]
fn assert_stopped(server: &Server, cause: &str) {
    let before = storage_status(server);
    assert_eq!(before["state"], "failing", "{before}");
    assert_eq!(before["cause"], cause, "{before}");
    assert!(before["since"].is_string(), "{before}");
    let refusals: [fn(&Server) -> Reply; 6] = [
        |server| server.post(TURNS, &json!({ "prompt": "refused" })),
        |server| server.post("/v1/groups/work/compactions", &json!({})),
        |server| server.post("/v1/groups/work/pause", &json!({})),
        |server| server.put("/v1/groups/other", &json!({})),
        |server| server.put("/v1/locks/key", &json!({ "holder": "me", "ttl_ms": 60_000 })),
        |server| server.delete("/v1/groups/work"),
    ];
    for refusal in refusals {
        let reply = refusal(server);
        let problem = reply.problem(503, "storage-unavailable");
        assert!(!problem["detail"].as_str().unwrap().contains('/'), "C21: {problem}");
        assert!(reply.header("retry-after").is_some(), "{reply:?}");
    }
    server.get("/readyz").problem(503, "storage-unavailable");
    assert_eq!(server.get("/healthz").status, 204);
    let after = storage_status(server);
    assert_eq!(after["transactions"], before["transactions"], "no transaction was tried: {after}");
    assert_eq!(server.journal.times("refused"), 0, "no refused turn was started");
    let errors = server.log.lines().into_iter().filter(|line| line.contains(" ERROR "));
    let errors: Vec<_> = errors.collect();
    assert_eq!(errors.len(), 1, "not exactly one error line: {errors:#?}");
    for words in ["storage failed", "greenroom.db", cause, "remedy="] {
        assert!(errors[0].contains(words), "{words:?} is missing in {}", errors[0]);
    }
}

/// Waits until the server accepts work again by itself, and completes a turn.
#[track_caller]
fn assert_recovers(server: &Server) {
    let ready = || (server.get("/readyz").status == 200).then_some(());
    eventually("the server to be ready again", &server.log, ready);
    let line = server.log.wait("recovery", |line| line.contains("storage works again"));
    assert!(line.contains("down_ms="), "{line}");
    assert_eq!(storage_status(server)["state"], "ok");
    let task = eventually("the group to be rebuilt", &server.log, || {
        let reply = server.post(TURNS, &json!({ "prompt": "after" }));
        (reply.status == 202).then(|| reply.json())
    });
    server.finish_as(&task, "completed");
    assert_eq!(server.journal.times("after"), 1);
    assert_eq!(server.journal.times("refused"), 0);
}

#[track_caller]
fn storage_status(server: &Server) -> Value {
    server.get("/v1/status").expect(200)["storage"].clone()
}

/// Runs the server under strace, which makes these calls on this file of the data directory fail.
/// `strace` is a grandchild, so that the server keeps its pid, its exit code and its signals.
fn inject(home: &mut Home, file: &str, fault: &str) {
    let file = home.data().join(file);
    let words = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-P", file.to_str().unwrap()];
    home.wrapper = words.into_iter().chain(["-e", fault, "--"]).map(str::to_owned).collect();
}

/// Moves the write-ahead log of a killed server into the database, because a page in the log hides
/// the page, damaged or not, in the database.
fn move_log(server: &Server) {
    // The last connection moves the log when it closes.
    let read = "SELECT count(*) FROM groups";
    server.writable_database().query_row(read, [], |_| Ok(())).unwrap();
    assert!(!server.home.data().join("greenroom.db-wal").exists());
}

/// Starts a server that must refuse to start; returns its reason.
#[track_caller]
fn wait_refusal(home: &Home) -> String {
    let mut process = Process::spawn(&mut serve(home), &Log::default()).unwrap();
    let status = process.wait_exit(TIMEOUT);
    assert_eq!(status.and_then(|status| status.code()), Some(1), "{}", process.log.tail());
    process.log.wait("the reason", |line| line.starts_with("greenroom: "))
}

/// Waits until the server has nothing left to store: two answers show the same transactions.
#[track_caller]
fn wait_stored(server: &Server) {
    let mut last = Value::Null;
    eventually("the end of the writes", &server.log, || {
        let now = storage_status(server)["transactions"].clone();
        (std::mem::replace(&mut last, now.clone()) == now).then_some(())
    });
}

/// F19: a write fails for lack of space, here by a limit on file sizes: its signal does not kill
/// the server, and agents do not ignore it. The server recovers by itself when there is space.
#[test]
fn without_disk_space_the_server_stops_accepting_and_recovers() {
    let server = Server::usual();
    server.complete("work", "before");
    let agent = fs::read_to_string(format!("/proc/{}/status", server.journal.agent_pid())).unwrap();
    let ignored = agent.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    assert_eq!(ignored & (1 << 24), 0, "SIGXFSZ is ignored in an agent");
    let running = server.submit("other", "[[gate:go]]");
    server.journal.wait_gate("go");
    wait_stored(&server);
    server.limit_file_size(Some(1));
    server.post(TURNS, &json!({ "prompt": "refused" })).problem(503, "storage-unavailable");
    assert_stopped(&server, "io_error");
    server.limit_file_size(None);
    assert_recovers(&server);
    // This turn had nothing to store meanwhile, so it continued.
    server.journal.open_gate("go");
    server.finish_as(&running, "completed");
}

/// F19: ENOSPC for several writes in a row, as on a full disk before an operator frees space.
#[test]
fn a_full_disk_stops_the_server_until_space_is_free() {
    let mut home = Setup::new().home();
    inject(&mut home, "greenroom.db-wal", "inject=pwrite64:error=ENOSPC:when=200..203");
    let server = Server::start(home);
    let refused = eventually("a full disk", &server.log, || {
        let reply = server.post(TURNS, &json!({ "prompt": "[[reply:x]]" }));
        (reply.status != 202).then_some(reply)
    });
    // The agent's frames may have failed first, and stopped the group's actor.
    refused.any_problem(503);
    server.log.wait("the failure", |line| line.contains("storage failed"));
    assert_stopped(&server, "disk_full");
    assert_recovers(&server);
}

/// F20: a failed sync ends the process with its own exit code, and one clear log line; everything
/// that was answered with 2xx is stored after the next start. As `fdatasync` is the call that
/// fails, this also tests the build setting in `.cargo/config.toml`.
#[test]
fn a_failed_sync_ends_the_process() {
    let mut home = Setup::new().home();
    inject(&mut home, "greenroom.db-wal", "inject=fdatasync:error=EIO:when=30+");
    let mut server = Server::start(home);
    let mut accepted = Vec::new();
    let body = json!({ "prompt": "x" }).to_string();
    let json = [("Content-Type", "application/json")];
    while let Ok(reply) = server.try_request("POST", TURNS, &json, Some(body.as_bytes()))
        && reply.status == 202
    {
        accepted.push(reply.json());
    }
    assert!(accepted.len() > 3, "the fault was too early: {accepted:?}");
    let status = server.wait_exit();
    assert_eq!(status.code(), Some(70), "{}", server.log.tail());
    let line = server.log.wait("the reason", |line| line.contains("storage failed"));
    assert!(line.contains("sync_failed") && line.contains(" ERROR "), "{line}");
    server.home.wrapper.clear();
    server.boot();
    for task in &accepted {
        let ended = server.finish(task);
        assert!(ended["state"] == "completed" || ended["state"] == "interrupted", "{ended}");
    }
}

/// F20: the same when the write-ahead log is moved into the database.
#[test]
fn a_failed_sync_of_a_checkpoint_ends_the_process() {
    let mut server = Server::usual();
    let task = server.complete("work", "before");
    server.kill();
    // The first sync after the start succeeds, because otherwise the start might fail.
    inject(&mut server.home, "greenroom.db", "inject=fdatasync:error=EIO:when=2+");
    server.spawn();
    // The start itself may already move the log into the database.
    eventually("the second start, or its failure", &server.log, || {
        let lines = server.log.lines();
        let started = lines.iter().filter(|line| line.contains(" ready;")).count() == 2;
        (started || lines.iter().any(|line| line.contains("storage failed"))).then_some(())
    });
    let mut seen = Value::Null;
    eventually("the fault", &server.log, || {
        let Ok(status) = server.try_request("GET", "/v1/status", &[], None) else {
            return Some(());
        };
        let last = status.json()["storage"]["last_checkpoint_at"].clone();
        if last != seen {
            seen = last;
            let (json, body) = ([("Content-Type", "application/json")], b"{\"prompt\": \"more\"}");
            server.try_request("POST", TURNS, &json, Some(body)).err()?;
            return Some(());
        }
        None
    });
    assert_eq!(server.wait_exit().code(), Some(70), "{}", server.log.tail());
    let line = server.log.wait("the reason", |line| line.contains("storage failed"));
    assert!(line.contains("write-ahead log") && line.contains("sync_failed"), "{line}");
    server.home.wrapper.clear();
    server.boot();
    server.finish_as(&task, "completed");
}

/// F22: a read-only data directory is refused.
#[test]
fn a_read_only_directory_is_refused() {
    let mut home = Setup::new().home();
    inject(&mut home, "greenroom.lock", "inject=openat:error=EROFS");
    let stderr = wait_refusal(&home);
    assert!(
        stderr.contains("greenroom.lock") && stderr.contains("Read-only file system"),
        "{stderr}"
    );
    assert!(!home.data().join("greenroom.db").exists(), "nothing was created");
}

/// F23: while another program holds the write lock nothing is accepted; after its release the
/// server works again.
#[test]
fn a_write_lock_of_another_program_stops_the_server_until_its_release() {
    let server = Server::usual();
    server.complete("work", "before");
    let other = server.writable_database();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    // This request takes the whole timeout for locks.
    server.post(TURNS, &json!({ "prompt": "refused" })).problem(503, "storage-unavailable");
    assert_stopped(&server, "locked");
    other.execute_batch("ROLLBACK").unwrap();
    assert_recovers(&server);
}

/// F38, I2: a sync that hangs is noticed. The request in it gets an answer that promises nothing;
/// with its key it is one task. All others are refused at once until the sync returns; reads are
/// answered.
#[test]
fn a_sync_that_hangs_is_noticed() {
    let mut home = Setup::new().home();
    inject(&mut home, "greenroom.db-wal", "inject=fdatasync:delay_enter=16000000:when=20");
    let server = Server::start(home);
    server.put("/v1/groups/work", &json!({})).expect(201);
    server.post("/v1/groups/work/pause", &json!({})).expect(202);
    let submit = |n: usize| {
        server.post_once(&format!("key-{n}"), TURNS, &json!({ "prompt": format!("turn {n}") }))
    };
    let mut submitted = 0;
    let unanswered = loop {
        let reply = submit(submitted);
        if reply.status != 202 {
            break reply;
        }
        submitted += 1;
        assert!(submitted < 100, "no sync hangs");
    };
    unanswered.problem(503, "outcome-unknown");
    assert!(unanswered.header("retry-after").is_none(), "{unanswered:?}");
    let stalled = storage_status(&server);
    assert_eq!((&stalled["state"], &stalled["cause"]), (&json!("stalled"), &json!("stalled")));
    assert!(stalled["since"].is_string() && stalled["stalled_ms"].as_u64() >= Some(7000));
    let refused = submit(submitted + 1);
    refused.problem(503, "storage-unavailable");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    let lock = json!({ "holder": "me", "ttl_ms": 60_000 });
    server.put("/v1/locks/key", &lock).problem(503, "storage-unavailable");
    server.delete("/v1/groups/work").problem(503, "storage-unavailable");
    server.get("/readyz").problem(503, "storage-unavailable");
    assert_eq!(server.get("/healthz").status, 204);
    assert_eq!(server.group("work")["queue_length"], submitted);
    let scrape = server.scrape();
    assert_eq!(scrape.value("greenroom_storage_up", &[]), 0.0);
    assert_eq!(scrape.value("greenroom_storage_failing", &[("fault", "stalled")]), 1.0);
    assert!(scrape.value("greenroom_storage_stalled_seconds", &[]) >= 7.0);

    server.log.wait("its end", |line| line.contains("storage is no longer stalled"));
    let lines = server.log.lines();
    let begins = lines.iter().filter(|line| line.contains(" ERROR ")).collect::<Vec<_>>();
    assert!(begins.len() == 1 && begins[0].contains("storage stalled"), "{begins:?}");
    assert_eq!(storage_status(&server)["state"], "ok");
    let repeated = submit(submitted).expect(202);
    assert_eq!(repeated["deduplicated"], true, "it was stored in the end: {repeated}");
    server.resume("work");
    server.finish_as(&repeated, "completed");
    let prompts = server.journal.times(&format!("turn {submitted}"));
    assert_eq!(prompts, 1, "one task, one prompt");
    assert_eq!(server.journal.times(&format!("turn {}", submitted + 1)), 0, "refused");
}

/// F26: `verify` and `backup` lock the directory while they read the log. A start waits for them,
/// and is refused immediately if another server has the lock.
#[test]
fn a_start_waits_for_readers_of_the_files() {
    let mut server = Server::usual();
    server.complete("work", "before");
    let refused = wait_refusal_of_second(&server);
    assert!(refused.contains("in use by another greenroom"), "{refused}");
    server.terminate();
    server.wait_exit();
    let reader = fs::File::open(server.home.data().join("greenroom.lock")).unwrap();
    reader.lock_shared().unwrap();
    let log = server.log.clone();
    let waits = thread::spawn(move || {
        log.wait("the start to wait", |line| line.contains("waiting for another process"));
        drop(reader);
    });
    server.boot();
    waits.join().unwrap();
    server.complete("work", "after");
}

/// Starts a second server on the data of a running one; returns its reason for refusing.
#[track_caller]
fn wait_refusal_of_second(server: &Server) -> String {
    let other = Setup::new().home();
    let data = format!("sqlite:{}/greenroom.db", server.home.data().display());
    let config = fs::read_to_string(other.config()).unwrap();
    other.write_config(&config.replace("sqlite:data/greenroom.db", &data));
    wait_refusal(&other)
}

/// I2, C14: the name of a directory that is created for the database is synced before any
/// acknowledgement, so that a power loss loses nothing; only the owner can access it.
#[test]
fn created_directories_are_synced() {
    let mut home = Setup::new().text("storage", "url", "sqlite:data/deep/greenroom.db").home();
    let trace = home.path().join("trace");
    let words = ["strace", "-D", "-f", "-qq", "-y", "-o", trace.to_str().unwrap()];
    let words = words.into_iter().chain(["-e", "trace=fsync", "--"]);
    home.wrapper = words.map(str::to_owned).collect();
    let server = Server::start(home);
    server.complete("work", "acknowledged");
    let traced = fs::read_to_string(&trace).unwrap();
    let home = server.home.path();
    for created in [home.join("data/deep"), home.join("data"), home.to_owned()] {
        let synced = format!("<{}>) = 0", created.display());
        assert!(traced.contains(&synced), "{synced} is missing in\n{traced}");
    }
    for created in ["data/deep", "data"] {
        let mode = fs::metadata(home.join(created)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{created}");
    }
}

/// F24: a file that is not a database, or a damaged one, is refused at the start, named, and left
/// unchanged. So is a damaged log: a changed byte in its middle hides all later commits.
#[test]
fn a_damaged_database_or_log_is_refused() {
    let mut server = Server::usual();
    let task = server.complete("work", "before");
    (0..4).for_each(|_| drop(server.complete("work", "x")));
    server.kill();
    let path = server.home.data().join("greenroom.db-wal");
    let log = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let at = log.metadata().unwrap().len() / 2;
    let mut byte = [0];
    log.read_exact_at(&mut byte, at).unwrap();
    log.write_all_at(&[byte[0] ^ 1], at).unwrap();
    let damaged = fs::read(&path).unwrap();
    let stderr = wait_refusal(&server.home);
    assert!(stderr.contains("greenroom.db-wal") && stderr.contains("damaged"), "{stderr}");
    assert_eq!(fs::read(&path).unwrap(), damaged, "the log is unchanged");
    log.write_all_at(&byte, at).unwrap();

    move_log(&server);
    let file = server.home.data().join("greenroom.db");
    let whole = fs::read(&file).unwrap();
    // The header; everything after the page with the schema.
    for place in [0..100, 4096..whole.len()] {
        let mut damaged = whole.clone();
        damaged[place.clone()].fill(0xA5);
        fs::write(&file, &damaged).unwrap();
        let stderr = wait_refusal(&server.home);
        for words in ["greenroom.db", "damaged", "restore a backup", "nothing was changed"] {
            assert!(stderr.contains(words), "{words:?} is missing in {stderr}");
        }
        assert!(fs::read(&file).unwrap() == damaged, "{place:?}");
    }
    fs::write(&file, &whole).unwrap();
    server.boot();
    server.finish_as(&task, "completed");
}

/// F24: damage that a reader finds stops the server until its restart: a successful write proves
/// nothing.
#[test]
fn damage_found_by_a_reader_stops_the_server() {
    let mut server = Server::usual();
    server.complete("work", "[[reply:a-very-peculiar-answer]]");
    server.kill();
    move_log(&server);
    let file = server.home.data().join("greenroom.db");
    let whole = fs::read(&file).unwrap();
    let words = b"a-very-peculiar-answer";
    let mut damaged = whole.clone();
    for at in 0..whole.len() - words.len() {
        if whole[at..].starts_with(words) && at >= 4096 {
            damaged[at / 4096 * 4096..][..8].fill(0xA5);
        }
    }
    assert_ne!(damaged, whole);
    fs::write(&file, &damaged).unwrap();
    // Its group is recovered at the start, and its rows may be found damaged then.
    server.spawn();
    server.wait_for("/healthz");
    server.get("/v1/groups/work/frames").problem(503, "storage-unavailable");
    server.log.wait("the failure", |line| line.contains("storage failed"));
    assert_stopped(&server, "corrupt");
    // Long enough for two trial writes, which would succeed.
    let uptime = || server.get("/v1/status").expect(200)["uptime_ms"].as_u64().unwrap();
    let began = uptime();
    eventually("two seconds and a half", &server.log, || (began + 2_500 < uptime()).then_some(()));
    assert_eq!(storage_status(&server)["state"], "failing", "{}", server.log.tail());
    server.kill();
    fs::write(&file, &whole).unwrap();
    fs::remove_file(server.home.data().join("greenroom.db-wal")).unwrap();
    server.boot();
    server.complete("work", "after");
}

/// F25: the write-ahead log of a running server is removed. It alone held what was answered with
/// 2xx, which is still stored after a restart.
#[test]
fn removal_of_the_log_stops_the_server_and_loses_nothing() {
    let mut server = Server::usual();
    let task = server.complete("work", "before");
    let log = server.home.data().join("greenroom.db-wal");
    fs::remove_file(&log).unwrap();
    let line = server.log.wait("the failure", |line| line.contains("storage failed"));
    assert!(line.contains("greenroom.db-wal was removed"), "{line}");
    assert_stopped(&server, "file_replaced");
    assert!(!log.exists(), "it is not created again");
    server.kill_and_boot();
    server.finish_as(&task, "completed");
}

/// F25: a missing database is not created again while its log or its groups' files exist.
#[test]
fn a_missing_database_is_not_created_again() {
    let mut server = Server::usual();
    server.complete("work", "before");
    server.kill();
    let (file, aside) = (server.home.data().join("greenroom.db"), server.home.path().join("aside"));
    fs::rename(&file, &aside).unwrap();
    let stderr = wait_refusal(&server.home);
    assert!(stderr.contains("greenroom.db-wal is still there"), "{stderr}");
    assert!(!file.exists(), "it is not created again");
    fs::rename(&aside, &file).unwrap();
    server.boot();
    fs::remove_file(&file).unwrap();
    server.log.wait("the failure", |line| line.contains("greenroom.db was removed"));
    assert_stopped(&server, "file_replaced");
    // Restore it from the descriptor that the process still has open, as an operator would before
    // stopping the process.
    let open = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().map(Result::unwrap);
    let deleted = |path: &Path| {
        fs::read_link(path).is_ok_and(|to| to.to_string_lossy().ends_with("greenroom.db (deleted)"))
    };
    let open = open.map(|entry| entry.path()).find(|path| deleted(path)).unwrap();
    fs::copy(open, &file).unwrap();
    server.kill_and_boot();
    server.complete("work", "after");
}

/// C14: whatever the umask, only the owner can access what greenroom creates; existing files are
/// left unchanged, and named in a warning.
#[test]
fn created_files_are_private() {
    let mut home = Setup::new().home();
    let words = ["sh", "-c", "umask 0; exec \"$@\"", "sh"];
    home.wrapper = words.map(str::to_owned).to_vec();
    let mut server = Server::start(home);
    server.complete("work", "x");
    let data = server.home.data();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    let files = ["greenroom.db", "greenroom.db-wal", "greenroom.db-shm", "greenroom.lock"];
    for file in files {
        assert_eq!(mode(&data.join(file)), 0o600, "{file}");
    }
    let copy = server.home.path().join("backup.db");
    backup(&server.home, &copy);
    assert_eq!(mode(&copy), 0o600);
    server.kill();
    assert!(!server.log.tail().contains("other users of this machine"), "{}", server.log.tail());
    fs::set_permissions(&data, fs::Permissions::from_mode(0o750)).unwrap();
    fs::set_permissions(data.join("greenroom.db"), fs::Permissions::from_mode(0o644)).unwrap();
    server.boot();
    for path in ["data mode=0750", "greenroom.db mode=0644"] {
        server.log.wait("a warning", |line| line.contains(" WARN ") && line.contains(path));
    }
    assert_eq!((mode(&data), mode(&data.join("greenroom.db"))), (0o750, 0o644));
}

/// The log is moved into the database in the background, and a purged group's pages are returned to
/// the file system.
#[test]
fn a_purge_returns_disk_space() {
    let server = Server::usual();
    server.complete("work", "[[chunks:20000:300]]");
    let moved = || {
        let status = storage_status(&server);
        status["last_checkpoint_at"].is_string().then_some(())?;
        status["database_bytes"].as_u64().filter(|bytes| *bytes > 6_000_000)
    };
    let before = eventually("the log to be moved", &server.log, moved);
    server.delete("/v1/groups/work?purge=true").expect(202);
    let after =
        || storage_status(&server)["database_bytes"].as_u64().filter(|bytes| *bytes < before / 3);
    eventually("the file to shrink", &server.log, after);
}
