//! Starting: what is refused, with which exit code, and what the probes say.

use std::io::Read;
use std::process::{Child, Output};
use std::time::Duration;

use crate::support::server::{greenroom, serve};
use crate::support::{Home, Log, Server, Setup, within};

/// How long a start that must fail may take.
const REFUSAL: Duration = Duration::from_secs(20);

/// Waits until the process has ended by itself; kills it if it does not.
#[track_caller]
fn ended(mut child: Child) -> Output {
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
        if REFUSAL < start.elapsed() {
            child.kill().unwrap();
            let text = reader.join().unwrap().unwrap();
            panic!("still running after {REFUSAL:?}:\n{}", String::from_utf8_lossy(&text));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: Vec::new(), stderr: reader.join().unwrap().unwrap() }
}

/// F32: errors in the configuration exit 2, say the file, line and key, and start nothing.
#[test]
fn configuration_errors() {
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
        let output = ended(serve(&home));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}: {said}");
        assert!(said.contains("greenroom.toml"), "{name} names the file: {said}");
        let places = [format!(":{line}"), format!("line {line}")];
        assert!(places.iter().any(|place| said.contains(place)), "{name} names {places:?}: {said}");
        assert!(said.contains(word), "{name} names {word}: {said}");
        assert!(!home.data().exists(), "{name}: nothing was started");
    }
}

/// F32: a default agent that is not configured, and a file that is missing, exit 2.
#[test]
fn configuration_that_does_not_fit() {
    let home = Setup::new().text("defaults", "agent", "nobody").home();
    let output = ended(serve(&home));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("nobody"), "{said}");
    let missing = home.path().join("missing.toml");
    let arguments = ["serve", "--config", missing.to_str().unwrap()];
    let output = ended(greenroom(&home, &arguments).spawn().unwrap());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("missing.toml"), "{said}");
}

/// API 4: the configuration's place is `config/greenroom.toml`, and an environment variable
/// overrides a single key.
#[test]
fn default_place_and_override() {
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
    let ready = within(REFUSAL, "a ready server", &log, || {
        assert!(child.try_wait().unwrap().is_none(), "it ended\n{}", log.tail());
        crate::support::http::exchange(&client, "GET", &url, &[], None).ok()
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(ready.status < 300, "{ready:?}");
}

/// API 4: a configuration file in the default place that exists and cannot be read is an error.
#[test]
fn a_file_that_cannot_be_read_is_an_error() {
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
            let output = ended(greenroom(&home, &[command]).spawn().unwrap());
            let said = String::from_utf8_lossy(&output.stderr);
            if works {
                assert!(!said.contains("cannot be read"), "{name}, {command}: {said}");
                continue;
            }
            assert_eq!(output.status.code(), Some(2), "{name}, {command}: {said}");
            assert!(said.contains("config/greenroom.toml: cannot be read"), "{name}: {said}");
        }
    }
}

/// API 4: the server warns of variables that an orchestrator sets for a service, by name; a name
/// that only looks like a key's is refused.
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
    let output = ended(serve(&home));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("GREENROOM_SERVERLISTEN"), "{said}");
}

/// C4: without tokens only the loopback is served: another address is refused at the start.
#[test]
fn only_loopback_without_tokens() {
    for address in ["0.0.0.0:0", "[::]:0"] {
        let home = Setup::new().home();
        let config = std::fs::read_to_string(home.config()).unwrap();
        home.write_config(&config.replace(&home.address().to_string(), address));
        let output = ended(serve(&home));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{address}: {said}");
        assert!(!said.trim().is_empty(), "{address}: no reason given");
    }
}

/// F26: a second server on the same data directory refuses, and the first is not disturbed.
#[test]
fn one_server_a_data_directory() {
    let server = Server::usual();
    let running = server.submit("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    let second: Home = Setup::new()
        .text("storage", "url", &format!("sqlite:{}/greenroom.db", server.home.data().display()))
        .home();
    let output = ended(serve(&second));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(!said.trim().is_empty(), "no reason given");
    server.journal.open_gate("go");
    server.finish_as(&running, "completed");
    assert_eq!(server.journal.events_named("start").len(), 1);
}

/// F32: a second server on the same port refuses, and its data is as it was.
#[test]
fn one_server_a_port() {
    let server = Server::usual();
    let second = Setup::new().home();
    let config = std::fs::read_to_string(second.config()).unwrap();
    let own = second.address().to_string();
    second.write_config(&config.replace(&own, &server.address().to_string()));
    let output = ended(serve(&second));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains(&server.address().to_string()), "names the address: {said}");
    server.complete("work", "undisturbed");
}

/// I2: after kill -9 the lock of the data directory is free.
#[test]
fn lock_of_the_dead_is_free() {
    let mut server = Server::usual();
    for _ in 0..3 {
        server.kill_and_boot();
    }
    server.complete("work", "x");
}

/// API 2, C1: `/healthz` says nothing, `/readyz` says ready, `/v1/status` says what is what.
#[test]
fn probes() {
    let server = Server::usual();
    let health = server.get("/healthz");
    assert!([200, 204].contains(&health.status), "{}", health.status);
    assert!(health.body.is_empty(), "{}", health.text());
    let ready = server.get("/readyz");
    assert!([200, 204].contains(&ready.status), "{}", ready.status);
    let status = server.get("/v1/status").expect(200);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"), "{status}");
}

/// API 2, C10, C16: the profiles are listed by name, without their secrets.
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
