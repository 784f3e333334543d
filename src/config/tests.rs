//! Tests of what the configuration accepts, rejects (with the place) and warns of. F32.
#![allow(clippy::unwrap_used)]

use std::fs;

use greenroom_actors::profile::{CompactionMethod, Detector, Rlimits};

use super::*;

pub(super) fn from(file: &str) -> Result<Config, ConfigError> {
    Config::from_layers(Some(("x.toml", file)), &[], None)
}

pub(super) fn problem(result: Result<Config, ConfigError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn the_built_in_file_has_the_documented_defaults() {
    const MINUTE_MS: u64 = 60_000;
    let config = Config::from_layers(None, &[], None).unwrap();
    assert_eq!(config.server.listen, "127.0.0.1:7433".parse().unwrap());
    assert_eq!(config.server.allowed_hosts, Vec::<String>::new());
    assert_eq!(config.server.max_body, 1 << 20);
    assert_eq!(config.server.drain_timeout, Duration::from_secs(30));
    assert_eq!(config.storage.path, Path::new("data/greenroom.db"));
    assert_eq!(config.storage.retention_days, 0);
    assert_eq!(
        config.capacity,
        Capacity { running_groups: 8, resident_agents: 64, line_bytes_max: 16 << 20 }
    );
    assert_eq!(config.quotas, QuotaMax::default());
    assert_eq!(
        config.defaults,
        Defaults {
            agent: "demo".into(),
            limits: Limits {
                turn_ms: 60 * MINUTE_MS,
                compaction_ms: 10 * MINUTE_MS,
                idle_ms: 10 * MINUTE_MS,
                permission_ms: 10 * MINUTE_MS,
                retry_base_ms: 5_000,
                queue_max: 1000,
                queue_bytes_max: 64 << 20,
            },
            auto_compact: 0.85,
            lock_ttl: Ttl::from_ms(5 * MINUTE_MS).unwrap(),
            retry: RetryPolicy::NoOutput,
            on_interrupt: OnInterrupt::Auto,
            permission_policy: PermissionPolicy::from(Policy::Ask),
        }
    );
    assert_eq!(
        config.otlp,
        Otlp {
            endpoint: None,
            headers: BTreeMap::new(),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(10),
            backfill: false,
            service_name: "greenroom".into(),
        }
    );
    let demo = &config.agents["demo"];
    assert_eq!(
        (demo.command.as_path(), demo.args.as_slice()),
        (Path::new("greenroom"), &["demo-agent".into()][..])
    );
    assert_eq!(demo.compaction, CompactionMethod::Command { command: "/compact".into() });
    assert_eq!(demo.start_timeout, Duration::from_secs(60));
    assert_eq!(config.agents.len(), 1);
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn the_example_profiles_load() {
    let example = include_str!("../../config/agents.example.toml");
    let config = from(example).unwrap();
    let hermes = &config.agents["hermes"];
    assert_eq!(hermes.env["HERMES_HOME"], "/srv/hermes");
    assert_eq!(hermes.signals, [Detector::HermesMeta, Detector::HermesStderr]);
    assert_eq!(hermes.auto_compact, Some(0.0));
    assert_eq!(hermes.start_timeout, Duration::from_secs(60));
    assert_eq!(config.agents["gemini"].auth_method.as_deref(), Some("gemini-api-key"));
    assert_eq!(config.agents["gemini"].compaction, CompactionMethod::Rotate);
    assert!(config.agents.contains_key("codex") && config.agents.contains_key("demo"));
}

#[test]
fn a_file_overrides_single_keys_of_the_defaults() {
    let config = from(
        "server.max_body = '512KiB'\n\
         [defaults]\nauto_compact = 1\nidle_timeout = '1m 30s'\nlock_ttl = '1h'\n\
         [agents.demo]\nstart_timeout = '2s'\n\
         [agents.custom]\ncommand = 'custom'\numask = '0027'\nno_new_privs = true\n\
         compaction = { strategy = 'none' }\n\
         rlimits = { open_files = 16, core_size = '1TiB', cpu_time = '90m' }\n",
    )
    .unwrap();
    assert_eq!(config.server.max_body, 512 << 10);
    assert_eq!(config.server.drain_timeout, Duration::from_secs(30));
    assert_eq!(config.defaults.auto_compact, 1.0);
    assert_eq!(config.defaults.limits.idle_ms, 90_000);
    assert_eq!(config.defaults.lock_ttl.ms(), 3_600_000);
    let demo = &config.agents["demo"];
    assert_eq!(demo.start_timeout, Duration::from_secs(2));
    assert_eq!(demo.args, ["demo-agent"]);
    let custom = &config.agents["custom"];
    assert_eq!((custom.umask, custom.no_new_privs), (Some(0o027), true));
    assert_eq!(custom.args, Vec::<String>::new());
    let expected = Rlimits {
        open_files: Some(16),
        core_bytes: Some(1 << 40),
        cpu_seconds: Some(5400),
        ..Rlimits::default()
    };
    assert_eq!((&custom.rlimits, &demo.rlimits), (&expected, &Rlimits::default()));
}

#[test]
fn a_profile_with_its_own_command_inherits_nothing_from_a_built_in_one() {
    let config = from("[agents.demo]\ncommand = 'other'\n").unwrap();
    let demo = &config.agents["demo"];
    assert_eq!((demo.args.len(), &demo.compaction), (0, &CompactionMethod::None));
}

#[test]
fn every_error_names_its_file_and_line() {
    #[rustfmt::skip]
    let cases = [
        // Keys.
        ("\n[server]\nfoo = 1", "x.toml:3: unknown key \"foo\" in [server]; known keys: allowed_hosts, drain_timeout, listen, max_body"),
        ("\n\nserver.foo = 1", "x.toml:3: unknown key \"foo\" in [server]; known keys: allowed_hosts, drain_timeout, listen, max_body"),
        ("[sever]\nlisten = 'x'", "x.toml:1: unknown key \"sever\" at the top level; known keys: server, storage, limits, defaults, otlp, agents"),
        ("server = 1", "x.toml:1: [server] must be a table, found an integer"),
        ("[agents.a]\ncomand = 'x'", "x.toml:2: unknown key \"comand\" in [agents.a]; known keys: command, args, env, env_pass, cwd_roots, signals, auto_compact, auth_method, start_timeout, compaction, umask, no_new_privs, rlimits, sandbox, sandbox_read, sandbox_write, sandbox_network"),
        ("[agents]\na = 1", "x.toml:2: [agents.a] must be a table, found an integer"),
        ("agents = 1", "x.toml:1: [agents] must be a table, found an integer"),
        // Syntax.
        ("[server]\nlisten = 'a'\nlisten = 'b'", "x.toml:3: duplicate key"),
        ("[limits]\nqueue = = 1", "x.toml:2: extra `=`, expected nothing"),
        ("[limits]\nqueue = 99999999999999999999", "x.toml:2: 99999999999999999999 is out of range"),
        // Kinds.
        ("[server]\nlisten = 7433", "x.toml:2: listen in [server] must be a string, found an integer"),
        ("[server]\nmax_body = 5", "x.toml:2: max_body in [server] must be a size such as \"1MiB\", found an integer"),
        ("[server]\ndrain_timeout = 30", "x.toml:2: drain_timeout in [server] must be a duration such as \"30s\", found an integer"),
        ("[server]\nallowed_hosts = 'a'", "x.toml:2: allowed_hosts in [server] must be a list of strings, found a string"),
        ("[server]\nallowed_hosts = [\n'a',\n1]", "x.toml:4: allowed_hosts in [server] must be a list of strings, found an integer"),
        ("[limits]\nqueue = '1'", "x.toml:2: queue in [limits] must be an integer, found a string"),
        ("[limits]\nqueue = 1.5", "x.toml:2: queue in [limits] must be an integer, found a number"),
        ("[defaults]\nauto_compact = true", "x.toml:2: auto_compact in [defaults] must be a number from 0 to 1, found a boolean"),
        ("[agents.a]\ncommand = 'a'\nenv = { A = 1 }", "x.toml:3: env in [agents.a] must be a table of strings, also for \"A\", found an integer"),
        ("[agents.a]\ncommand = 'a'\nno_new_privs = 'yes'", "x.toml:3: no_new_privs in [agents.a] must be true or false, found a string"),
        // Ranges, both sides.
        ("[limits]\nrunning_groups = 0", "x.toml:2: running_groups in [limits] must be from 1 to 1000000, found 0"),
        ("[limits]\nrunning_groups = 1000001", "x.toml:2: running_groups in [limits] must be from 1 to 1000000, found 1000001"),
        ("[limits]\nqueue = -1", "x.toml:2: queue in [limits] must be from 1 to 1000000, found -1"),
        ("[limits]\nresident_agents = 0", "x.toml:2: resident_agents in [limits] must be from 1 to 1000000, found 0"),
        ("[storage]\nretention_days = -1", "x.toml:2: retention_days in [storage] must be from 0 to 36500, found -1"),
        ("[limits]\nline = '0B'", "x.toml:2: line in [limits] must be from 1 byte to 1.0 GiB, found \"0B\""),
        ("[limits]\nline = '1025MiB'", "x.toml:2: line in [limits] must be from 1 byte to 1.0 GiB, found \"1025MiB\""),
        ("[limits]\nline = '-1MiB'", "x.toml:2: line in [limits] must be a size such as \"1MiB\", found \"-1MiB\""),
        ("[defaults]\nauto_compact = 1.01", "x.toml:2: auto_compact in [defaults] must be from 0 to 1, found 1.01"),
        ("[defaults]\nauto_compact = -0.01", "x.toml:2: auto_compact in [defaults] must be from 0 to 1, found -0.01"),
        ("[defaults]\nauto_compact = nan", "x.toml:2: auto_compact in [defaults] must be from 0 to 1, found NaN"),
        ("[defaults]\nauto_compact = 85", "x.toml:2: auto_compact in [defaults] must be from 0 to 1, found 85"),
        ("[defaults]\nturn_timeout = '0s'", "x.toml:2: turn_timeout in [defaults] must be from 1ms to 1year 18h, found \"0s\""),
        ("[defaults]\nturn_timeout = '367d'", "x.toml:2: turn_timeout in [defaults] must be from 1ms to 1year 18h, found \"367d\""),
        ("[defaults]\nlock_ttl = '3601s'", "x.toml:2: lock_ttl in [defaults] must be from 1ms to 1h, found \"3601s\""),
        ("[defaults]\nretry_base = '5 parsecs'", "x.toml:2: retry_base in [defaults] must be a duration such as \"30s\": unknown time unit \"parsecs\", supported units: ns, us/µs, ms, sec, min, hours, days, weeks, months, years (and few variations)"),
        // Words.
        ("[defaults]\npermission_policy = 'yes'", "x.toml:2: permission_policy in [defaults] must be one of \"ask\", \"allow\", \"reject\", found \"yes\""),
        ("[defaults]\non_interrupt = ''", "x.toml:2: on_interrupt in [defaults] must be one of \"auto\", \"hold\", \"continue\", found \"\""),
        ("[defaults]\nretry = 'always'", "x.toml:2: retry in [defaults] must be one of \"no_output\", \"undelivered\", \"never\", found \"always\""),
        ("[agents.a]\ncommand = 'a'\nsignals = ['acp']", "x.toml:3: signals in [agents.a] must be one of \"hermes_meta\", \"hermes_stderr\", found \"acp\""),
        // Addresses.
        ("[server]\nlisten = 'localhost:80'", "x.toml:2: listen in [server] must be an address such as \"127.0.0.1:7433\", found \"localhost:80\""),
        ("[server]\nlisten = '127.0.0.1'", "x.toml:2: listen in [server] must be an address such as \"127.0.0.1:7433\", found \"127.0.0.1\""),
        ("[server]\nlisten = '127.0.0.1:65536'", "x.toml:2: listen in [server] must be an address such as \"127.0.0.1:7433\", found \"127.0.0.1:65536\""),
        ("[server]\nlisten = '0.0.0.0:7433'", "x.toml:2: listen in [server] must be a loopback address: 0.0.0.0:7433 is reachable from other machines, and this version has no tokens to protect it"),
        ("[server]\nlisten = '[::]:7433'", "x.toml:2: listen in [server] must be a loopback address: [::]:7433 is reachable from other machines, and this version has no tokens to protect it"),
        ("[server]\nallowed_hosts = ['http://a']", "x.toml:2: allowed_hosts in [server] must be hosts such as \"greenroom.example:7433\", found \"http://a\""),
        ("[storage]\nurl = 'postgres:x'", "x.toml:2: url in [storage] must be \"sqlite:\" and the path of a file, found \"postgres:x\""),
        ("[storage]\nurl = 'sqlite:'", "x.toml:2: url in [storage] must be \"sqlite:\" and the path of a file, found \"sqlite:\""),
        ("[storage]\nurl = 'sqlite::memory:'", "x.toml:2: url in [storage] must be \"sqlite:\" and the path of a file, found \"sqlite::memory:\""),
        ("[storage]\nurl = 'sqlite:a.db?mode=ro'", "x.toml:2: url in [storage] must be \"sqlite:\" and the path of a file, found \"sqlite:a.db?mode=ro\""),
        // The exporter.
        ("[otlp]\nurl = ''", "x.toml:2: unknown key \"url\" in [otlp]; known keys: backfill, endpoint, headers, interval, service_name, timeout"),
        ("[otlp]\nendpoint = 4318", "x.toml:2: endpoint in [otlp] must be a string, found an integer"),
        ("[otlp]\nendpoint = '127.0.0.1:4318'", "x.toml:2: endpoint in [otlp] must be a URL such as \"http://127.0.0.1:4318\", found \"127.0.0.1:4318\""),
        ("[otlp]\nendpoint = 'http://'", "x.toml:2: endpoint in [otlp] must be a URL such as \"http://127.0.0.1:4318\", found \"http://\""),
        ("[otlp]\nendpoint = 'http://a:99999'", "x.toml:2: endpoint in [otlp] must be a URL such as \"http://127.0.0.1:4318\", found \"http://a:99999\""),
        ("[otlp]\nendpoint = 'grpc://a:4317'", "x.toml:2: endpoint in [otlp] must be a URL such as \"http://127.0.0.1:4318\", found \"grpc://a:4317\""),
        ("[otlp]\nendpoint = 'http://a/?key=x'", "x.toml:2: endpoint in [otlp] must be a URL such as \"http://127.0.0.1:4318\", without a query, found \"http://a/?key=x\""),
        ("[otlp]\nendpoint = 'https://a'", "x.toml:2: endpoint in [otlp] must begin with http://, found \"https://a\": this version does not support TLS; a collector on this machine can forward the spans"),
        ("[otlp]\nendpoint = 'http://u:canary@a'", "x.toml:2: endpoint in [otlp] must not contain user and password: put them into headers"),
        ("[otlp]\nheaders = { 'a b' = 'canary' }", "x.toml:2: headers in [otlp] cannot set a header \"a b\""),
        ("[otlp]\nheaders = { Content-Type = 'canary' }", "x.toml:2: headers in [otlp] cannot set a header \"Content-Type\""),
        ("[otlp]\nheaders = { a = \"can\\nary\" }", "x.toml:2: headers in [otlp] has an invalid value for \"a\""),
        ("[otlp]\nheaders = { a = 1 }", "x.toml:2: headers in [otlp] must be a table of strings, also for \"a\", found an integer"),
        ("[otlp]\ninterval = '9ms'", "x.toml:2: interval in [otlp] must be from 10ms to 1h, found \"9ms\""),
        ("[otlp]\ntimeout = '2h'", "x.toml:2: timeout in [otlp] must be from 10ms to 1h, found \"2h\""),
        ("[otlp]\nbackfill = 'yes'", "x.toml:2: backfill in [otlp] must be true or false, found a string"),
        ("[otlp]\nservice_name = ''", "x.toml:2: service_name in [otlp] must be 1 to 255 bytes long"),
        // Agents.
        ("[defaults]\nagent = 'absent'", "x.toml:2: agent in [defaults] must be one of the profiles demo, found \"absent\""),
        ("\n[agents.a]\nargs = []", "x.toml:2: [agents.a] lacks the required key command"),
        ("[agents.a]\ncommand = ' '", "x.toml:2: command in [agents.a] must name a program"),
        ("[agents.'a b']\ncommand = 'a'", "x.toml:1: the name of agent \"a b\" must be 1 to 64 letters, digits, '.', '_', '-'"),
        ("[agents.a]\ncommand = 'a'\nenv_pass = ['A=B']", "x.toml:3: env_pass in [agents.a] must hold names of variables, found \"A=B\""),
        ("[agents.a]\ncommand = 'a'\nenv = { '' = 'x' }", "x.toml:3: env in [agents.a] cannot set the variable \"\" to this"),
        ("[agents.a]\ncommand = 'a'\ncwd_roots = ['repos']", "x.toml:3: cwd_roots in [agents.a] must hold absolute paths, found \"repos\""),
        ("[agents.a]\ncommand = 'a'\nsandbox = 'docker'", "x.toml:3: sandbox in [agents.a] must be one of \"none\", \"landlock\", \"bubblewrap\", found \"docker\""),
        ("[agents.'..']\ncommand = 'a'\nsandbox = 'landlock'", "x.toml:3: sandbox in [agents...] needs a home directory by the profile's name, which has dots alone"),
        ("[agents.a]\ncommand = 'a'\nsandbox_read = ['repos']", "x.toml:3: sandbox_read in [agents.a] must hold absolute paths, found \"repos\""),
        ("[agents.a]\ncommand = 'a'\nsandbox_write = '/srv'", "x.toml:3: sandbox_write in [agents.a] must be a list of strings, found a string"),
        ("[agents.a]\ncommand = 'a'\nsandbox_network = [443, 65536]", "x.toml:3: sandbox_network in [agents.a] must be a list of ports, 1 to 65535, found 65536"),
        ("[agents.a]\ncommand = 'a'\nsandbox_network = [0]", "x.toml:3: sandbox_network in [agents.a] must be a list of ports, 1 to 65535, found 0"),
        ("[agents.a]\ncommand = 'a'\nsandbox_network = '443'", "x.toml:3: sandbox_network in [agents.a] must be a list of ports, 1 to 65535, found a string"),
        ("[agents.a]\ncommand = 'a'\nauto_compact = 2", "x.toml:3: auto_compact in [agents.a] must be from 0 to 1, found 2"),
        ("[agents.a]\ncommand = 'a'\nauth_method = ''", "x.toml:3: auth_method in [agents.a] must not be empty"),
        ("[agents.a]\ncommand = 'a'\numask = '0888'", "x.toml:3: umask in [agents.a] must be octal, \"0000\" to \"0777\", found \"0888\""),
        ("[agents.a]\ncommand = 'a'\numask = '1000'", "x.toml:3: umask in [agents.a] must be octal, \"0000\" to \"0777\", found \"1000\""),
        ("[agents.a]\ncommand = 'a'\numask = 27", "x.toml:3: umask in [agents.a] must be a string, found an integer"),
        ("[agents.a]\ncommand = 'a'\ncompaction = {}", "x.toml:3: [agents.a.compaction] lacks the required key strategy"),
        ("[agents.a]\ncommand = 'a'\ncompaction = '/compact'", "x.toml:3: [agents.a.compaction] must be a table, found a string"),
        ("[agents.a]\ncommand = 'a'\n[agents.a.compaction]\nstrategy = 'magic'", "x.toml:4: strategy in [agents.a.compaction] must be one of \"command\", \"rotate\", \"none\", found \"magic\""),
        ("[agents.a]\ncommand = 'a'\n[agents.a.compaction]\nstrategy = 'command'", "x.toml:3: [agents.a.compaction] lacks the required key command"),
        ("[agents.a]\ncommand = 'a'\n[agents.a.compaction]\nstrategy = 'rotate'\ncommand = '/c'", "x.toml:5: command in [agents.a.compaction] belongs to strategy \"command\""),
        ("[agents.a]\ncommand = 'a'\n[agents.a.compaction]\nstrategy = 'command'\ncommand = ''", "x.toml:5: command in [agents.a.compaction] must not be empty"),
        ("[agents.a]\ncommand = 'a'\n[agents.a.compaction]\nstrategy = 'none'\nfocus = 1", "x.toml:5: unknown key \"focus\" in [agents.a.compaction]; known keys: strategy, command"),
        ("[agents.a]\ncommand = 'a'\nrlimits = 5", "x.toml:3: [agents.a.rlimits] must be a table, found an integer"),
        ("[agents.a]\ncommand = 'a'\n[agents.a.rlimits]\naddress_space = '1GiB'", "x.toml:4: unknown key \"address_space\" in [agents.a.rlimits]; known keys: open_files, processes, core_size, file_size, cpu_time"),
        ("[agents.a]\ncommand = 'a'\n[agents.a.rlimits]\nopen_files = 15", "x.toml:4: open_files in [agents.a.rlimits] must be from 16 to 1048576, found 15"),
        ("[agents.a]\ncommand = 'a'\n[agents.a.rlimits]\nprocesses = 0", "x.toml:4: processes in [agents.a.rlimits] must be from 1 to 4194304, found 0"),
        ("[agents.a]\ncommand = 'a'\n[agents.a.rlimits]\ncore_size = 0", "x.toml:4: core_size in [agents.a.rlimits] must be a size such as \"1MiB\", found an integer"),
        ("[agents.a]\ncommand = 'a'\n[agents.a.rlimits]\nfile_size = '2PiB'", "x.toml:4: file_size in [agents.a.rlimits] must be from 1 byte to 1.0 PiB, found \"2PiB\""),
        ("[agents.a]\ncommand = 'a'\n[agents.a.rlimits]\ncpu_time = '500ms'", "x.toml:4: cpu_time in [agents.a.rlimits] must be from 1s to 1year 18h, found \"500ms\""),
    ];
    for (file, expected) in cases {
        assert_eq!(problem(from(file)), expected, "for {file:?}");
    }
}

#[test]
fn values_at_the_bounds_are_accepted() {
    #[rustfmt::skip]
    let cases = [
        "[limits]\nrunning_groups = 1\nqueue = 1000000\nresident_agents = 1\nline = '1GiB'",
        "[limits]\nline = '1B'",
        "[server]\nlisten = '[::1]:0'\ndrain_timeout = '0s'\nallowed_hosts = ['GreenRoom.example:7433']",
        "[server]\nlisten = '127.8.9.10:1'",
        "[server]\nlisten = '[::ffff:127.0.0.1]:1'",
        "[storage]\nretention_days = 36500\nurl = 'sqlite:///var/lib/g.db'",
        "[defaults]\nauto_compact = 0\nturn_timeout = '1ms'\nidle_timeout = '0s'",
        "[defaults]\nauto_compact = 1.0\nturn_timeout = '366d'",
        "[agents.a]\ncommand = 'a'\nsandbox = 'bubblewrap'\nsandbox_network = [1, 65535]",
        "[agents.a]\ncommand = 'a'\nsandbox = 'none'\nsandbox_write = ['/srv']\nsandbox_network = []",
        "[agents.a]\ncommand = 'a'\numask = '0'\n[defaults]\nagent = 'a'",
        "\u{feff}[limits]\r\nqueue = 2\r\n",
        "",
    ];
    for file in cases {
        from(file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
    }
    let config = from("[storage]\nurl = 'sqlite:///var/lib/g.db'").unwrap();
    assert_eq!(config.storage.path, Path::new("/var/lib/g.db"));
    let config = from("[server]\nallowed_hosts = ['GreenRoom.example:7433']").unwrap();
    assert_eq!(config.server.allowed_hosts, ["greenroom.example:7433"]);
}

#[test]
fn an_unreadable_file_is_named_in_the_error() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing.toml");
    let error = problem(Config::load(Some(&missing), None));
    let expected = format!("{}: cannot be read: No such file", missing.display());
    assert!(error.starts_with(&expected), "{error}");

    let error = problem(Config::load(Some(directory.path()), None));
    assert!(error.contains(": cannot be read: "), "{error}");

    let latin1 = directory.path().join("latin1.toml");
    fs::write(&latin1, b"# one\n# caf\xe9\n").unwrap();
    let error = problem(Config::load(Some(&latin1), None));
    assert_eq!(error, format!("{}:2: is not UTF-8", latin1.display()));
}

/// Only a missing file counts as absent. An unreadable file is an error, and so is a dangling link.
#[test]
fn only_a_missing_file_is_absent() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, path(name)).unwrap();
    fs::create_dir(path("empty")).unwrap();
    fs::create_dir(path("is_a_directory.toml")).unwrap();
    fs::write(path("file"), "x").unwrap();
    link("empty", "link_to_empty");
    link("file", "link_to_file");
    link("nowhere", "dangling");
    link("dangling", "dangling_twice");
    link("loop", "loop");
    #[rustfmt::skip]
    let cases = [
        ("missing.toml",                Ok(None)),
        ("no/such/directory.toml",      Ok(None)),
        ("empty/missing.toml",          Ok(None)),
        ("link_to_empty/missing.toml",  Ok(None)),
        ("file",                        Ok(Some("x"))),
        ("link_to_file",                Ok(Some("x"))),
        ("dangling",                    Err("No such file")),
        ("dangling_twice",              Err("No such file")),
        ("dangling/missing.toml",       Err("No such file")),
        ("loop",                        Err("Too many levels")),
        ("loop/missing.toml",           Err("Too many levels")),
        ("is_a_directory.toml",         Err("Is a directory")),
        ("file/missing.toml",           Err("Not a directory")),
    ];
    for (name, expected) in cases {
        let (file, found) = (path(name), read_if_present(&path(name)));
        match expected {
            Ok(text) => assert_eq!(found.unwrap().as_deref(), text, "{name}"),
            Err(why) => {
                let problem = found.unwrap_err().to_string();
                let begins = format!("{}: cannot be read: {why}", file.display());
                assert!(problem.starts_with(&begins), "{problem}");
            }
        }
    }
    let denied = io::Error::from(ErrorKind::PermissionDenied);
    assert!(!is_absent(&path("missing.toml"), &denied));
}

#[test]
fn an_endpoint_is_a_base_url_or_the_whole_url() {
    #[rustfmt::skip]
    let cases = [
        ("",                                  None),
        (" http://127.0.0.1:4318 ",           Some("http://127.0.0.1:4318/v1/traces")),
        ("http://[::1]:4318/",                Some("http://[::1]:4318/v1/traces")),
        ("http://collector/otlp",             Some("http://collector/otlp/v1/traces")),
        ("http://collector/otlp/v1/traces",   Some("http://collector/otlp/v1/traces")),
    ];
    for (endpoint, url) in cases {
        let config = from(&format!("[otlp]\nendpoint = {endpoint:?}")).unwrap();
        assert_eq!(config.otlp.endpoint.as_deref(), url, "{endpoint:?}");
    }
}

#[test]
fn a_permission_policy_is_a_word_or_a_table_of_words() {
    let policy = |value: &str| from(&format!("[defaults]\npermission_policy = {value}\n"));
    let mixed =
        policy("{ default = 'reject', read = 'allow' }").unwrap().defaults.permission_policy;
    let on = |kind| mixed.on(Some(kind));
    assert_eq!((on("read"), on("execute")), (Policy::Allow, Policy::Reject));
    for (value, wrong) in [
        ("'yes'", "must be one of \"ask\", \"allow\", \"reject\", found \"yes\""),
        ("{ read = 'yes' }", "found \"yes\""),
        ("{ shell = 'allow' }", "has an unknown kind of tool \"shell\""),
        ("{ read = 1 }", "must be a table of strings"),
        ("1", "must be a string"),
    ] {
        let problem = problem(policy(value));
        assert!(problem.starts_with("x.toml:2: ") && problem.contains(wrong), "{problem}");
    }
}

#[test]
fn the_shipped_file_unchanged_is_not_warned_of() {
    assert_eq!(from(BUILTIN).unwrap(), Config::from_layers(None, &[], None).unwrap());
    let changed = BUILTIN.replace("queue = 1000", "queue = 999");
    let config = from(&changed).unwrap();
    assert_eq!((config.defaults.limits.queue_max, config.warnings.len()), (999, 0));
}
