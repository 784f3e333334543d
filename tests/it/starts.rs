//! Starting: refused starts and their exit codes, and the probes.

use std::{
    io::Read,
    process::{Child, Output},
    time::Duration,
};

use crate::support::{
    Home, Log, Server, Setup,
    server::{greenroom, serve},
    within,
};

/// The longest duration of a start that must fail.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(20);

/// Waits until the process has exited by itself; kills it after the timeout.
#[track_caller]
fn wait_exit(mut child: Child) -> Output {
    let mut stderr = child.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        stderr.read_to_end(&mut text).map(|_| text)
    });
    let start = std::time::Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if REFUSAL_TIMEOUT < start.elapsed() {
            child.kill().unwrap();
            let text = reader.join().unwrap().unwrap();
            panic!("still running after {REFUSAL_TIMEOUT:?}:\n{}", String::from_utf8_lossy(&text));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: Vec::new(), stderr: reader.join().unwrap().unwrap() }
}

/// F32: with an error in the configuration the server exits with 2, names the file, line and key,
/// and starts nothing.
#[test]
fn configuration_errors_exit_with_2_and_name_file_line_and_key() {
    let cases = [
        ("unknown key", "[server]\nlisten = \"127.0.0.1:1\"\nlitsen = 1\n", "3", "litsen"),
        ("unknown section", "\n[severs]\nx = 1\n", "2", "severs"),
        ("wrong type", "[limits]\nqueue = \"many\"\n", "2", "queue"),
        ("negative", "[limits]\n\nqueue = -1\n", "3", "queue"),
        ("bad size", "[limits]\nline = \"16 elephants\"\n", "2", "line"),
        ("bad duration", "[defaults]\nturn_timeout = \"soon\"\n", "2", "turn_timeout"),
        ("bad word", "[defaults]\npermission_policy = \"maybe\"\n", "2", "permission_policy"),
        ("unknown key of a profile", "[agents.x]\ncommand = \"x\"\ncomand = 1\n", "3", "comand"),
        ("not TOML", "[server\n", "1", "greenroom.toml"),
    ];
    for (name, text, line, word) in cases {
        let home = Setup::new().home();
        home.write_config(text);
        let output = wait_exit(serve(&home));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}: {stderr}");
        assert!(stderr.contains("greenroom.toml"), "{name} names the file: {stderr}");
        let places = [format!(":{line}"), format!("line {line}")];
        assert!(
            places.iter().any(|place| stderr.contains(place)),
            "{name} names {places:?}: {stderr}"
        );
        assert!(stderr.contains(word), "{name} names {word}: {stderr}");
        assert!(!home.data().exists(), "{name}: nothing was started");
    }
}

/// F32: with an unconfigured default agent, or a missing file, the server exits with 2.
#[test]
fn an_unknown_default_agent_and_a_missing_file_exit_with_2() {
    let home = Setup::new().text("defaults", "agent", "absent").home();
    let output = wait_exit(serve(&home));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("absent"), "{stderr}");
    let missing = home.path().join("missing.toml");
    let arguments = ["serve", "--config", missing.to_str().unwrap()];
    let output = wait_exit(greenroom(&home, &arguments).spawn().unwrap());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("missing.toml"), "{stderr}");
}

/// API-4: the default configuration file is `config/greenroom.toml`, and an environment variable
/// overrides a single key.
#[test]
fn the_default_file_is_read_and_a_variable_overrides_a_key() {
    let home = Setup::new().home();
    let address = home.address();
    let config = std::fs::read_to_string(home.config()).unwrap();
    home.write_config(&config.replace(&address.to_string(), "127.0.0.1:1"));
    let log = Log::default();
    let mut command = greenroom(&home, &["serve"]);
    let mut child = command.env("GREENROOM_SERVER_LISTEN", address.to_string()).spawn().unwrap();
    log.follow(child.stderr.take().unwrap());
    let client = crate::support::http::client();
    let url = format!("http://{address}/readyz");
    let ready = within(REFUSAL_TIMEOUT, "a ready server", &log, || {
        assert!(child.try_wait().unwrap().is_none(), "the server ended\n{}", log.tail());
        crate::support::http::exchange(&client, "GET", &url, &[], None).ok()
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(ready.status < 300, "{ready:?}");
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
            let output = wait_exit(greenroom(&home, &[command]).spawn().unwrap());
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

/// API-4: the server warns of variables that an orchestrator sets for a service, by name; a name
/// that only resembles a key is refused.
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
    let home = Setup::new().environment("GREENROOM_SERVERLISTEN", "127.0.0.1:1").home();
    let output = wait_exit(serve(&home));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("GREENROOM_SERVERLISTEN"), "{stderr}");
}

/// C4: without tokens the server listens on loopback addresses only: another address is refused at
/// the start.
#[test]
fn without_tokens_only_loopback_addresses_are_allowed() {
    for address in ["0.0.0.0:0", "[::]:0"] {
        let home = Setup::new().home();
        let config = std::fs::read_to_string(home.config()).unwrap();
        home.write_config(&config.replace(&home.address().to_string(), address));
        let output = wait_exit(serve(&home));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{address}: {stderr}");
        assert!(!stderr.trim().is_empty(), "{address}: no reason given");
    }
}

/// F26: a second server on the same data directory refuses to start, and the first is not
/// disturbed.
#[test]
fn a_second_server_on_the_same_data_directory_is_refused() {
    let server = Server::usual();
    let running = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let second: Home = Setup::new()
        .text("storage", "url", &format!("sqlite:{}/greenroom.db", server.home.data().display()))
        .home();
    let output = wait_exit(serve(&second));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{stderr}");
    assert!(!stderr.trim().is_empty(), "no reason given");
    server.journal.open_gate("go");
    server.finish_as(&running, "completed");
    assert_eq!(server.journal.events_named("start").len(), 1);
}

/// F32: a second server on the same port refuses to start, and the first is not disturbed.
#[test]
fn a_second_server_on_the_same_port_is_refused() {
    let server = Server::usual();
    let second = Setup::new().home();
    let config = std::fs::read_to_string(second.config()).unwrap();
    let configured = second.address().to_string();
    second.write_config(&config.replace(&configured, &server.address().to_string()));
    let output = wait_exit(serve(&second));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{stderr}");
    assert!(stderr.contains(&server.address().to_string()), "names the address: {stderr}");
    server.complete("work", "undisturbed");
}

/// I2: after kill -9 the lock of the data directory is free.
#[test]
fn the_lock_of_a_killed_server_is_free() {
    let mut server = Server::usual();
    for _ in 0..3 {
        server.kill_and_boot();
    }
    server.complete("work", "x");
}

/// API-2, C1: `/healthz` has no body, `/readyz` reports readiness, `/v1/status` has the version.
#[test]
fn probes_report_health_readiness_and_version() {
    let server = Server::usual();
    let health = server.get("/healthz");
    assert!([200, 204].contains(&health.status), "{}", health.status);
    assert!(health.body.is_empty(), "{}", health.text());
    let ready = server.get("/readyz");
    assert!([200, 204].contains(&ready.status), "{}", ready.status);
    let status = server.get("/v1/status").expect(200);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"), "{status}");
}

/// API-2, C10, C16: the profiles are listed by name, without their secrets.
#[test]
fn agents_are_listed_without_secrets() {
    let setup = Setup::new().agent("secretive", &[]);
    let env = "{ SCRIPT_DIR = \"$SCRIPT_DIR\", IT_KEY = \"canary-value\" }";
    let server = setup.set("agents.secretive", "env", env).start();
    let agents = server.get("/v1/agents").expect(200).to_string();
    assert!(agents.contains("scripted") && agents.contains("secretive"), "{agents}");
    assert!(!agents.contains("canary-value"), "{agents}");
    server.put("/v1/groups/work", &serde_json::json!({ "agent": "secretive" })).expect(201);
    server.complete("work", "x");
    assert!(!server.log.tail().contains("canary-value"));
}
