//! `greenroom agents check`: what it says of agents that can be used, and of those that cannot.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Output, Stdio},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    Home, Log, Setup, eventually,
    journal::Journal,
    process::{Process, all, is_alive, signal},
    server::{greenroom, under},
};

/// An agent that wants a login, in shell: it answers `initialize`, then refuses `session/new`.
const LOCKED: &str = r#"
    read line
    methods='[{"id":"api-key","name":"A key"}]'
    echo '{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":1,"authMethods":'"$methods"'}}'
    read line
    echo 'not logged in, see the manual' >&2
    echo '{"jsonrpc":"2.0","id":2,"error":{"code":-32000,"message":"Authentication required"}}'
    read line
"#;

fn locked(setup: Setup) -> Setup {
    setup.command("locked", "sh").set("agents.locked", "args", format_args!("{:?}", ["-c", LOCKED]))
}

fn run(home: &Home, arguments: &[&str]) -> (Output, String) {
    let arguments = [&["agents", "check"], arguments].concat();
    let mut command = under(&["timeout", "30"], home, &arguments);
    let output = command.stdout(Stdio::piped()).output().unwrap();
    let printed = String::from_utf8(output.stdout.clone()).unwrap();
    (output, printed)
}

/// Checks one profile; returns the exit code and the JSON.
fn check(home: &Home, name: &str) -> (Option<i32>, Value) {
    let (output, printed) = run(home, &[name, "--json"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let found = serde_json::from_str(&printed).unwrap_or_else(|err| panic!("{err}: {stderr}"));
    (output.status.code(), found)
}

/// The living processes with the variable of the home's agents.
fn agents_of(home: &Home) -> Vec<u32> {
    let variable = format!("SCRIPT_DIR={}", home.script().display());
    let has_it = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|own| own == variable.as_bytes())
    };
    all().into_iter().filter(has_it).filter(|pid| is_alive(*pid)).collect()
}

/// API-5: an agent that works is described by what it says and by what its profile says.
#[test]
fn a_working_agent_is_described() {
    let home = Setup::new()
        .signals(&["hermes_stderr"])
        .set("agents.scripted", "auto_compact", "0.5")
        .text("defaults", "permission_policy", "reject")
        .home();
    let (code, found) = check(&home, "scripted");
    assert_eq!((code, &found["ok"], &found["problem"]), (Some(0), &json!(true), &Value::Null));
    assert_eq!(
        found["agent"],
        json!({
            "name": "scripted-agent", "version": "1", "load": true, "resume": true,
            "prompts": ["embeddedContext"], "auth_methods": [],
        })
    );
    let permissions = json!({ "policy": "reject", "modes": { "current": null, "available": [] } });
    assert_eq!(found["permissions"], permissions);
    assert_eq!(
        found["compaction"],
        json!({
            "strategy": "command", "command": "/compact", "detectors": ["acp", "hermes_stderr"],
            "auto_compact": 0.5,
        })
    );
    let (_, printed) = run(&home, &["scripted"]);
    for part in [
        "scripted: ok in ",
        " s: scripted-agent 1\n  sessions     load, resume\n  prompts      text, embeddedContext\n",
        "  permissions  policy reject; the agent names no modes\n",
        "  compaction   by its command /compact; ordered at 50 % of the context; detected by acp, \
         hermes_stderr\n",
        "  sandbox      none: the agent has all rights of its user\n",
    ] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    assert!(!home.data().exists(), "no database is needed");
}

/// API-5, F7: each problem of a start is named, with what mends it; the exit code is 1.
#[test]
fn an_agent_that_cannot_be_used_is_explained() {
    let scripts = tempfile::tempdir().unwrap();
    let script = scripts.path().join("agent");
    fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let home = locked(Setup::new())
        .command("absent", "no-such-agent")
        .command("broken", script.to_str().unwrap())
        .agent("exits", &["--exit-at-start", "7"])
        .agent("silent", &["--hang-initialize"])
        .text("agents.silent", "start_timeout", "300ms")
        .agent("refuses", &["--fail-initialize"])
        .agent("future", &["--wrong-version"])
        .command("no-agent", "echo")
        .set("agents.no-agent", "args", "[\"hello\"]")
        .set("agents.locked", "env_pass", "[\"IT_UNSET_KEY\"]")
        .home();
    #[rustfmt::skip]
    let cases = [
        ("absent",   "command_not_found", "command no-such-agent was not found in PATH (", "set `command` of [agents.absent]"),
        ("broken",   "cannot_start",      "the interpreter that",                           "check `command`"),
        ("exits",    "exited",            "the agent exited with code 7",                   "--exit-at-start 7"),
        ("silent",   "timeout",           "it was not ready within 300 ms",                 "`start_timeout` in [agents.silent]"),
        ("refuses",  "refused",           "it refused initialize",                          "run it by hand"),
        ("future",   "protocol",          "it speaks ACP version 4242",                     "--acp"),
        ("no-agent", "exited",            "the agent exited with code 0",                   "echo hello"),
        ("locked",   "auth_required",     "Authentication required (error -32000)",         "set `auth_method` to one of: api-key; not set here, of its `env_pass`: IT_UNSET_KEY"),
    ];
    for (name, kind, message, remedy) in cases {
        let (code, found) = check(&home, name);
        let problem = &found["problem"];
        assert_eq!((code, &found["ok"]), (Some(1), &json!(false)), "{name}: {found}");
        assert_eq!(problem["kind"], kind, "{name}: {found}");
        assert!(problem["message"].as_str().unwrap().contains(message), "{name}: {found}");
        assert!(problem["remedy"].as_str().unwrap().contains(remedy), "{name}: {found}");
    }
    let (_, printed) = run(&home, &["locked"]);
    assert!(printed.contains("\n  login        api-key: A key\n"), "{printed}");
    assert!(printed.contains("\n  stderr       not logged in, see the manual\n"), "{printed}");
    let journal = fs::read_to_string(home.script().join("journal.jsonl")).unwrap();
    assert!(!journal.contains("\"prompt\""), "no prompt is sent: {journal}");
}

/// API-5, I10: without a name all profiles are checked, the built-in one too; one that fails makes
/// the exit code 1. No process of an agent is left, not even of one that ignores the end of its
/// stdin.
#[test]
fn all_profiles_are_checked_and_leave_nothing() {
    let home = locked(Setup::new()).agent("stays", &["--outlives-eof"]).home();
    let (output, printed) = run(&home, &["--json"]);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    let found = printed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let found: Vec<_> =
        found.map(|found| (found["profile"].clone(), found["ok"] == json!(true))).collect();
    let expected = [("demo", true), ("locked", false), ("scripted", true), ("stays", true)];
    let expected: Vec<_> = expected.into_iter().map(|(name, ok)| (json!(name), ok)).collect();
    assert_eq!(found, expected);
    assert_eq!(agents_of(&home), Vec::<u32>::new(), "processes of agents");
}

/// API-5, I10: a check that Ctrl-C or a kill ends leaves no process of an agent, and after Ctrl-C
/// no directory either.
#[test]
fn a_check_that_is_ended_leaves_nothing() {
    for (number, code) in [(Signal::INT, Some(130)), (Signal::KILL, None)] {
        let home = Setup::new().agent("silent", &["--hang-initialize"]).home();
        let scratch = home.path().join("scratch");
        fs::create_dir(&scratch).unwrap();
        let log = Log::default();
        let mut command = greenroom(&home, &["agents", "check", "silent"]);
        let mut check = Process::spawn(command.env("TMPDIR", &scratch), &log).unwrap();
        let journal = Journal::new(home.script(), log.clone());
        journal.wait("an agent at work", |event| event["event"] == "initialize");
        assert_eq!(agents_of(&home), [journal.agent_pid()]);
        signal(check.pid(), number);
        let status = check.wait_exit(Duration::from_secs(20)).expect("the end of the check");
        assert_eq!(status.code(), code, "{}", log.tail());
        eventually("the end of the agent", &log, || agents_of(&home).is_empty().then_some(()));
        let is_left = fs::read_dir(&scratch).unwrap().next().is_some();
        assert_eq!(is_left, number == Signal::KILL, "the directory of the check");
    }
}

/// API-5, F32: an unknown profile is an error of usage.
#[test]
fn an_unknown_profile_is_an_error_of_usage() {
    let home = Setup::new().home();
    let output = greenroom(&home, &["agents", "check", "nemo"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("there is no agent \"nemo\"; known agents: demo, scripted"),
        "{stderr}"
    );
}
