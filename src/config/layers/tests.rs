//! Tests of the layers: flags, then the environment, then the file.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use crate::config::{Config, ConfigError, tests::problem};

fn from_env(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let variables: Vec<(String, String)> =
        variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    Config::from_layers(None, &variables, None)
}

#[test]
fn the_environment_overrides_single_keys() {
    let config = from_env(&[
        ("GREENROOM_SERVER_LISTEN", "127.0.0.1:9000"),
        ("GREENROOM_SERVER_ALLOWED_HOSTS", "a.example, b.example:80"),
        ("GREENROOM_LIMITS_RUNNING_GROUPS", "3"),
        ("GREENROOM_STORAGE_URL", "sqlite:elsewhere.db"),
        ("GREENROOM_DEFAULTS_TURN_TIMEOUT", "2s"),
        ("GREENROOM_DEFAULTS_AUTO_COMPACT", "0"),
        // Not configuration keys.
        ("GREENROOM_URL", "http://elsewhere"),
        ("GREENROOM_TOKEN", "grn_x"),
        ("GREENROOM_RUN", "run_x"),
        ("GREENROOM_DATA", "x"),
        ("GREENROOM_CONFIG", "x"),
        ("GREENROOM_BIN", "x"),
        ("GREENROOM_LOG", "debug"),
        ("GREENROOM_LOG_STYLE", "never"),
        ("PATH", "/bin"),
    ])
    .unwrap();
    assert_eq!(config.server.listen, "127.0.0.1:9000".parse().unwrap());
    assert_eq!(config.server.allowed_hosts, ["a.example", "b.example:80"]);
    assert_eq!(config.capacity.running_groups, 3);
    assert_eq!(config.storage.path, Path::new("elsewhere.db"));
    assert_eq!(config.defaults.limits.turn_ms, 2_000);
    assert_eq!(config.defaults.auto_compact, 0.0);
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn the_environment_sets_tables_and_switches() {
    let config = from_env(&[
        ("GREENROOM_OTLP_HEADERS", "authorization=Bearer a=b, x-other = 1 ,"),
        ("GREENROOM_OTLP_BACKFILL", "true"),
    ])
    .unwrap();
    let expected = [("authorization", "Bearer a=b"), ("x-other", "1")];
    let headers = config.otlp.headers.iter();
    let headers: Vec<_> = headers.map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!((headers.as_slice(), config.otlp.backfill), (&expected[..], true));
    let printed = config.to_json().to_string();
    assert!(printed.contains(r#""headers":["authorization","x-other"]"#), "{printed}");
    assert!(!printed.contains("Bearer"), "{printed}");
    let error = problem(from_env(&[("GREENROOM_OTLP_HEADERS", "canary")]));
    assert!(error.ends_with("must be a table of strings, found a string"), "{error}");
}

#[test]
fn errors_of_the_environment_name_the_variable() {
    #[rustfmt::skip]
    let cases = [
        ("GREENROOM_SERVER_LISTNE", "x", "environment variable GREENROOM_SERVER_LISTNE: unknown key \"listne\" in [server]; known keys: allowed_hosts, drain_timeout, listen, max_body"),
        ("GREENROOM_SERVER", "x", "environment variable GREENROOM_SERVER: unknown key \"\" in [server]; known keys: allowed_hosts, drain_timeout, listen, max_body"),
        ("GREENROOM_LIMITS_QUEUE", "0", "environment variable GREENROOM_LIMITS_QUEUE: queue in [limits] must be from 1 to 1000000, found 0"),
        ("GREENROOM_LIMITS_QUEUE", "many", "environment variable GREENROOM_LIMITS_QUEUE: queue in [limits] must be an integer, found a string"),
        ("GREENROOM_SERVER_LISTEN", "0.0.0.0:1", "environment variable GREENROOM_SERVER_LISTEN: listen in [server] must be a loopback address: 0.0.0.0:1 is reachable from other machines, and this version has no tokens to protect it"),
        ("GREENROOM_SERVERLISTEN", "127.0.0.1:1", "environment variable GREENROOM_SERVERLISTEN: unknown key; keys of [server] are GREENROOM_SERVER_…"),
        ("GREENROOM_LIMITSQUEUE", "1", "environment variable GREENROOM_LIMITSQUEUE: unknown key; keys of [limits] are GREENROOM_LIMITS_…"),
        ("GREENROOM_SERVER_PORT", "8080", "environment variable GREENROOM_SERVER_PORT: unknown key \"port\" in [server]; known keys: allowed_hosts, drain_timeout, listen, max_body"),
        ("GREENROOM_AGENTS_DEMO_COMMAND", "x", "environment variable GREENROOM_AGENTS_DEMO_COMMAND: agents can only be configured in the file"),
    ];
    for (name, value, expected) in cases {
        assert_eq!(problem(from_env(&[(name, value)])), expected);
    }
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let file = Some(("x.toml", "[server]\nlisten = '127.0.0.1:1'\n[limits]\nqueue = 5"));
    let env = [("GREENROOM_SERVER_LISTEN".to_owned(), "127.0.0.1:2".to_owned())];
    let port = |env: &[(String, String)], flag| {
        Config::from_layers(file, env, flag).unwrap().server.listen.port()
    };
    assert_eq!(port(&[], None), 1);
    assert_eq!(port(&env, None), 2);
    assert_eq!(port(&env, Some("127.0.0.1:3")), 3);
    let error = problem(Config::from_layers(file, &env, Some("10.0.0.1:3")));
    assert!(
        error.starts_with("--listen: listen in [server] must be a loopback address"),
        "{error}"
    );
}

#[test]
fn an_unknown_variable_is_warned_of() {
    let config = from_env(&[("GREENROOM_SEVER_X", "1")]).unwrap();
    let ignored = "environment variable GREENROOM_SEVER_X: ignored: not a key of the configuration";
    assert_eq!(config.warnings, [ignored]);
}

/// A variable that Kubernetes or Docker sets for a service is not fatal; a key that looks like one
/// stays a key.
#[test]
fn a_variable_that_an_orchestrator_set_is_warned_of() {
    let canary = "tcp://10.9.8.7:7433";
    let names = [
        "GREENROOM_PORT",
        "GREENROOM_SERVICE_HOST",
        "GREENROOM_PORT_7433_TCP_ADDR",
        "GREENROOM_SERVER_PORT",
        "GREENROOM_SERVER_SERVICE_HOST",
        "GREENROOM_SERVER_SERVICE_PORT_HTTP",
        "GREENROOM_SERVER_PORT_7433_TCP",
        "GREENROOM_SERVERLESS_PORT",
        "GREENROOM_AGENTS_PORT",
        "GREENROOM_AGENTS_DEMO_SERVICE_HOST",
    ];
    let mut variables: Vec<(&str, &str)> = names.iter().map(|name| (*name, canary)).collect();
    variables.push(("GREENROOM_OTLP_SERVICE_NAME", "service"));
    let config = from_env(&variables).unwrap();
    assert_eq!(config.otlp.service_name, "service");
    assert_eq!(config.warnings.len(), names.len(), "{:?}", config.warnings);
    for (name, warning) in names.iter().zip(&config.warnings) {
        let begins = format!("environment variable {name}: ");
        assert!(warning.starts_with(&begins) && !warning.contains("10.9"), "{warning}");
    }
}
