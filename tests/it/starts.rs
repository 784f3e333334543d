//! Starting: refused starts and their exit codes, and the probes.

use std::process::Output;

use crate::support::{
    Home, Log, Server, Setup,
    process::Process,
    server::{greenroom, under},
};

/// Runs the command until it has exited by itself, or for 20 seconds, and then its code is 124.
fn end(home: &Home, arguments: &[&str]) -> Output {
    under(&["timeout", "20"], home, arguments).output().unwrap()
}

/// Starts a server with `--config`.
fn serve(home: &Home) -> Output {
    end(home, &["serve", "--config", home.config().to_str().unwrap()])
}

/// Checks that the start failed, and returns its reason.
#[track_caller]
fn refusal(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    stderr
}

/// F32: with an error in the configuration, which includes an address that other machines reach
/// (C4), or without its file, the server exits with 2, names the place, and starts nothing.
/// `src/config/tests.rs` has every error.
#[test]
fn configuration_errors_exit_with_2_and_name_file_line_and_key() {
    let listen = "[server]\n\nlisten = \"0.0.0.0:0\"\n";
    for (text, place, word) in [
        ("[server]\nlisten = \"127.0.0.1:1\"\nlitsen = 1\n", "greenroom.toml:3", "litsen"),
        ("[server\n", "greenroom.toml:1", "expected"),
        ("[defaults]\nagent = \"absent\"\n", "greenroom.toml:2", "absent"),
        (listen, "greenroom.toml:3", "loopback"),
    ] {
        let home = Setup::new().home();
        home.write_config(text);
        let stderr = refusal(&serve(&home));
        assert!(stderr.contains(place) && stderr.contains(word), "{place}, {word}: {stderr}");
        assert!(!home.data().exists(), "{text}: nothing was started");
    }
    let home = Setup::new().environment("GREENROOM_SERVERLISTEN", "127.0.0.1:1").home();
    assert!(refusal(&serve(&home)).contains("GREENROOM_SERVERLISTEN"));
    let missing = ["serve", "--config", "missing.toml"];
    assert!(refusal(&end(&home, &missing)).contains("missing.toml"));
}

/// API-4: the default configuration file is `config/greenroom.toml`, and an environment variable
/// overrides a single key.
#[test]
fn the_default_file_is_read_and_a_variable_overrides_a_key() {
    let home = Setup::new().home();
    let address = home.address();
    let config = std::fs::read_to_string(home.config()).unwrap();
    home.write_config(&config.replace(&address.to_string(), "127.0.0.1:1"));
    let mut command = greenroom(&home, &["serve"]);
    command.env("GREENROOM_SERVER_LISTEN", address.to_string());
    let server = Process::spawn(&mut command, &Log::default()).unwrap();
    let line = server.log.wait("a ready server", |line| line.contains(" ready; "));
    assert!(line.contains(&format!(" address={address} ")), "{line}");
}

/// API-4: an existing but unreadable configuration file in the default place is an error.
#[test]
fn an_unreadable_configuration_file_is_an_error() {
    let home = Setup::new().home();
    std::fs::remove_file(home.config()).unwrap();
    for (name, works) in [("nothing", true), ("a link to nowhere", false), ("a directory", false)] {
        match name {
            "a link to nowhere" => {
                std::os::unix::fs::symlink("nowhere.toml", home.config()).unwrap();
            }
            "a directory" => {
                std::fs::remove_file(home.config()).unwrap();
                std::fs::create_dir(home.config()).unwrap();
            }
            _ => {}
        }
        for command in ["check-config", "verify", "serve"] {
            if works && command == "serve" {
                continue;
            }
            let output = end(&home, &[command]);
            let stderr = String::from_utf8_lossy(&output.stderr);
            if works {
                assert!(!stderr.contains("cannot be read"), "{name}, {command}: {stderr}");
                continue;
            }
            assert_eq!(output.status.code(), Some(2), "{name}, {command}: {stderr}");
            assert!(stderr.contains("config/greenroom.toml: cannot be read"), "{name}: {stderr}");
        }
    }
}

/// API-4: `check-config` warns of a command that is not found, and of a root that is no directory;
/// with `--json` too, on stderr. It is no error: the program may be installed later.
#[test]
fn check_config_warns_of_what_the_machine_lacks() {
    let home = Setup::new().home();
    let (root, file) = (home.path().join("no-such-root"), home.config());
    let agents = format!(
        "\n[agents.absent]\ncommand = \"no-such-agent\"\n\n[agents.rootless]\ncommand = \
         \"greenroom\"\ncwd_roots = [{root:?}, {file:?}, \"/\"]\n"
    );
    let config = std::fs::read_to_string(&file).unwrap();
    home.write_config(&(config + &agents));
    for arguments in [&["check-config"][..], &["check-config", "--json"]] {
        let output = end(&home, arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        let warnings: Vec<&str> = stderr.lines().collect();
        let expected = [
            "warning: agents.absent: command no-such-agent was not found in PATH (".to_owned(),
            format!("warning: agents.rootless: cwd_roots: {} does not exist", root.display()),
            format!("warning: agents.rootless: cwd_roots: {} is no directory", file.display()),
        ];
        assert_eq!(warnings.len(), expected.len(), "{stderr}");
        for (warning, start) in warnings.iter().zip(&expected) {
            assert!(warning.starts_with(start), "{start}: {stderr}");
        }
    }
}

/// API-4: the server warns of variables that an orchestrator sets for a service, by name.
#[test]
fn variables_of_an_orchestrator_are_not_fatal() {
    let server = Setup::new()
        .environment("GREENROOM_SERVER_PORT", "tcp://10.9.8.7:7433")
        .environment("GREENROOM_SERVER_SERVICE_HOST", "10.9.8.7")
        .start();
    for name in ["GREENROOM_SERVER_PORT", "GREENROOM_SERVER_SERVICE_HOST"] {
        let line = server.log.wait(name, |line| line.contains(&format!("{name}:")));
        assert!(line.contains("WARN") && !line.contains("10.9.8.7"), "{line}");
    }
}

/// F26, F32: a second server on the same data directory, the same database by way of links, or the
/// same port, refuses to start, and the first is not disturbed.
#[test]
fn a_second_server_on_the_same_data_or_port_is_refused() {
    let server = Server::usual();
    let running = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let data = format!("sqlite:{}/greenroom.db", server.home.data().display());
    let same_data = Setup::new().text("storage", "url", &data).home();
    let linked = |target: &str, link: &str, path: &str| {
        let home = Setup::new().text("storage", "url", &format!("sqlite:{path}")).home();
        let link = home.path().join(link);
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(server.home.data().join(target), link).unwrap();
        home
    };
    let linked_file = linked("greenroom.db", "linked/greenroom.db", "linked/greenroom.db");
    let linked_dir = linked("", "linked", "linked/greenroom.db");
    let same_port = Setup::new().home();
    let config = std::fs::read_to_string(same_port.config()).unwrap();
    let (own, taken) = (same_port.address().to_string(), server.address().to_string());
    same_port.write_config(&config.replace(&own, &taken));
    for (second, word) in [
        (same_data, "another"),
        (linked_file, "another"),
        (linked_dir, "another"),
        (same_port, taken.as_str()),
    ] {
        let output = serve(&second);
        let stderr = String::from_utf8_lossy(&output.stderr);
        let refused = matches!(output.status.code(), Some(1 | 2));
        assert!(refused && stderr.contains(word), "{word}: {stderr}");
    }
    server.journal.open_gate("go");
    server.finish_as(&running, "completed");
    assert_eq!(server.journal.events_named("start").len(), 1);
}

/// F37: the refusal of a database of a later version is one line, with the file, both versions and
/// what to do, and exit code 2; the file is unchanged.
#[test]
fn a_database_of_a_later_version_is_refused_with_a_remedy() {
    let mut server = Server::usual();
    server.complete("work", "x");
    server.terminate();
    assert_eq!(server.wait_exit().code(), Some(0));
    let database = server.home.database();
    let conn = rusqlite::Connection::open(&database).unwrap();
    let known: u32 = conn.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    conn.pragma_update(None, "user_version", 99).unwrap();
    conn.close().unwrap();
    let before = std::fs::read(&database).unwrap();
    let output = serve(&server.home);
    let reason = refusal(&output);
    let expected = format!(
        "greenroom: {} is of a later greenroom: its schema is 99, and this greenroom knows up to \
         {known}; start the later greenroom, or restore a backup from before its first start\n",
        database.display()
    );
    assert_eq!(reason, expected);
    assert_eq!(std::fs::read(&database).unwrap(), before, "no byte is changed");
    // For the check of what the server leaves.
    let conn = rusqlite::Connection::open(&database).unwrap();
    conn.pragma_update(None, "user_version", known).unwrap();
}

/// F32: on a machine that lacks what the server needs, it exits with 2 before it creates anything,
/// and says in one line what is missing: `/proc` of its own PID namespace, and as many open files
/// as the configured agents need.
#[test]
fn a_machine_that_lacks_something_is_named() {
    let as_root = rustix::process::getuid().is_root();
    // Another user may do this in a user namespace of its own.
    let unshare = if as_root { "unshare" } else { "unshare --map-root-user" };
    let hides_proc = format!("exec {unshare} --mount sh -c 'mount -t tmpfs none /proc && exec");
    let other_pids = format!("exec {unshare} --pid --fork sh -c 'exec");
    #[rustfmt::skip]
    let cases = [
        ("no /proc",       format!("{hides_proc} \"$0\" \"$@\"' \"$0\" \"$@\""), "/proc is not mounted", "mount -t proc proc /proc"),
        ("another's",      format!("{other_pids} \"$0\" \"$@\"' \"$0\" \"$@\""), "/proc is of another PID namespace", "mount -t proc proc /proc"),
        ("too few files",  "ulimit -n 300; exec \"$0\" \"$@\"".to_owned(), "at most 300 files may be open (RLIMIT_NOFILE), and this configuration needs 448", "limits.resident_agents to 34 or less"),
    ];
    for (name, script, missing, remedy) in cases {
        let home = Setup::new().home();
        let config = home.config();
        let arguments = ["serve", "--config", config.to_str().unwrap()];
        let output = under(&["timeout", "20", "sh", "-c", &script], &home, &arguments).output();
        let reason = refusal(&output.unwrap());
        assert!(reason.contains(missing) && reason.contains(remedy), "{name}: {reason}");
        assert_eq!(reason.lines().count(), 1, "{name}: {reason}");
        assert!(!home.data().exists(), "{name}: nothing was created");
    }
}

/// API-2, C1, C10, C16: `/healthz` has no body, `/readyz` reports readiness, `/v1/status` has the
/// version, and the profiles are listed by name, without their secrets. After kill -9 the lock of
/// the data directory is free (I2).
#[test]
fn probes_and_lists_report_no_secrets() {
    let setup = Setup::new().agent("secretive", &[]);
    let env = "{ SCRIPT_DIR = \"$SCRIPT_DIR\", IT_KEY = \"canary-value\" }";
    let mut server = setup.set("agents.secretive", "env", env).start();
    for _ in 0..2 {
        server.kill_and_boot();
    }
    let health = server.get("/healthz");
    assert!([200, 204].contains(&health.status), "{}", health.status);
    assert!(health.body.is_empty(), "{}", health.text());
    let ready = server.get("/readyz");
    assert!([200, 204].contains(&ready.status), "{}", ready.status);
    let status = server.get("/v1/status").expect(200);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"), "{status}");
    let agents = server.get("/v1/agents").expect(200).to_string();
    assert!(agents.contains("scripted") && agents.contains("secretive"), "{agents}");
    assert!(!agents.contains("canary-value"), "{agents}");
    server.put("/v1/groups/work", &serde_json::json!({ "agent": "secretive" })).expect(201);
    server.complete("work", "x");
    assert!(!server.log.lines().iter().any(|line| line.contains("canary-value")));
}
