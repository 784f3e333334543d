//! What an agent inherits: a cleared environment, a directory, and no resource of the server.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use crate::support::{Setup, process};

/// C11: the environment holds the basics, the profile's `env` and `env_pass`, greenroom's two
/// markers, and nothing else of the server's environment. C13: the agent is in another session than
/// the server, and holds no file of the server. C14: the data is readable by its owner only.
/// API-2, C12: without a `cwd` the session opens in a private directory of the group, below the
/// data directory; with a `cwd`, in that directory.
#[test]
fn an_agent_inherits_only_what_its_profile_allows() {
    let server = Setup::new()
        .environment("IT_SECRET_TOKEN", "canary")
        .environment("IT_PASSED", "yes")
        .environment("LC_ALL", "C.UTF-8")
        .environment("TZ", "UTC")
        .environment("LD_LIBRARY_PATH", "/nowhere")
        .set("agents.scripted", "env_pass", "[\"IT_PASSED\", \"IT_UNSET\"]")
        .start();
    let task = server.complete("own", "[[env]]");
    let names: BTreeSet<&str> = task["text"].as_str().unwrap().split(' ').collect();
    let required =
        ["PATH", "SCRIPT_DIR", "IT_PASSED", "LC_ALL", "TZ", "GREENROOM_RUN", "GREENROOM_DATA"];
    for name in required {
        assert!(names.contains(name), "{name} is missing in {names:?}");
    }
    let allowed = ["HOME", "USER", "LANG", "TMPDIR"];
    let other = |name: &&str| {
        !required.contains(name) && !allowed.contains(name) && !name.starts_with("LC_")
    };
    let others: Vec<_> = names.into_iter().filter(other).collect();
    assert!(others.is_empty(), "passed without permission: {others:?}");

    let (agent, data) = (server.journal.agent_pid(), server.home.data());
    for entry in fs::read_dir(format!("/proc/{agent}/fd")).unwrap().flatten() {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let shown = target.display().to_string();
        assert!(!shown.starts_with("socket:"), "a socket: {shown}");
        assert!(!target.starts_with(data.join("greenroom.db")), "{shown}");
    }
    // Of /proc, where a session that began outside of this PID namespace is 0.
    let session = |pid: u32| process::stat(pid).unwrap()[3].clone();
    assert_ne!(session(agent), session(server.pid()), "the same session as the server's");

    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    let files = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().path());
    let is_database =
        |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("greenroom.db");
    let files: Vec<PathBuf> = files.filter(is_database).collect();
    assert!(!files.is_empty() && files.iter().all(|file| mode(file) == 0o600), "{files:?}");

    let given = server.home.path().join("given");
    fs::create_dir(&given).unwrap();
    server.put("/v1/groups/given", &json!({ "cwd": given })).expect(201);
    server.complete("given", "x");
    let opened = server.journal.events_named("new");
    let private = Path::new(opened[0]["cwd"].as_str().unwrap());
    assert!(private.starts_with(&data) && mode(private) == 0o700, "{}", private.display());
    assert_eq!(opened[1]["cwd"], given.to_str().unwrap());
}

/// C12: a `cwd` must be an existing directory below the profile's roots; dots and links do not
/// lead out of them.
#[test]
fn a_cwd_outside_of_its_roots_is_refused() {
    let setup = Setup::new();
    let root = tempfile::TempDir::new().unwrap();
    let roots = format!("[{:?}]", root.path());
    let server = setup.set("agents.scripted", "cwd_roots", roots).start();
    fs::create_dir(root.path().join("inside")).unwrap();
    fs::write(root.path().join("file"), "").unwrap();
    std::os::unix::fs::symlink("/", root.path().join("link")).unwrap();
    let inside = root.path().join("inside");
    server.put("/v1/groups/good", &json!({ "cwd": inside })).expect(201);
    let path = |tail: &str| format!("{}/{tail}", root.path().display());
    for cwd in [
        "/".into(),
        "relative".into(),
        path("missing"),
        path("file"),
        path("inside/../.."),
        path("link"),
    ] {
        let reply = server.put("/v1/groups/bad", &json!({ "cwd": cwd }));
        assert_eq!(reply.status, 400, "{cwd}: {}", reply.text());
    }
    server.get("/v1/groups/bad").any_problem(404);
}

/// C12: greenroom's own directories and `/proc` are no `cwd`, except for the group's own one. If a
/// part of the path becomes a link, no agent starts there; once it is a directory again, one does.
#[test]
fn a_cwd_that_leads_elsewhere_starts_no_agent() {
    let server = Setup::new().start();
    server.complete("other", "x");
    server.complete("work", "x");
    let other = server.group("other")["cwd"].clone();
    let data = server.home.data();
    for cwd in [json!(data), json!(data.join("work")), other, json!("/proc"), json!("/proc/self")] {
        let refused = server.put("/v1/groups/work", &json!({ "cwd": cwd }));
        refused.problem(400, "invalid-cwd");
    }
    let own = server.group("work")["cwd"].clone();
    server.put("/v1/groups/work", &json!({ "cwd": own })).expect(200);

    let (given, outside) = (server.home.path().join("given"), server.home.path().join("outside"));
    fs::create_dir(&given).unwrap();
    fs::create_dir(&outside).unwrap();
    server.put("/v1/groups/given", &json!({ "cwd": given })).expect(201);
    fs::remove_dir(&given).unwrap();
    std::os::unix::fs::symlink(&outside, &given).unwrap();
    let task = server.submit("given", "x");
    let failed = server.finish_as(&task, "failed");
    assert_eq!(failed["error"]["code"], "agent_start_failed", "{failed}");
    let message = failed["error"]["message"].as_str().unwrap();
    assert!(message.contains("a part of it is a link now"), "{message}");
    fs::remove_file(&given).unwrap();
    fs::create_dir(&given).unwrap();
    server.resume("given");
    server.complete("given", "x");
    let opened = server.journal.events_named("new");
    assert_eq!(opened.last().unwrap()["cwd"], json!(given), "{opened:?}");
}

/// C13: the server raises its limit of open files to the hard limit; an agent gets the limits that
/// the server was started with, or its profile's, and no core file.
#[test]
fn an_agent_gets_the_limits_of_its_profile() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(1500), maximum }).unwrap();
    let rlimits =
        "{ open_files = 300, processes = 50000, file_size = \"1GiB\", cpu_time = \"1h\" }";
    let setup = Setup::new().agent("strict", &[]).set("agents.strict", "rlimits", rlimits);
    let server = setup.start();
    let limits = |pid: u32| {
        let shown = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        move |name: &str| {
            let line = shown.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            let both: Vec<&str> = line.split_whitespace().take(2).collect();
            both.join(" ")
        }
    };
    let hard = limits(std::process::id())("Max open files");
    let hard = hard.split(' ').nth(1).unwrap();
    assert_eq!(limits(server.pid())("Max open files"), format!("{hard} {hard}"));
    server.complete("usual", "x");
    let usual = limits(server.journal.agent_pid());
    assert_eq!(usual("Max open files"), format!("1500 {hard}"));
    assert_eq!(usual("Max core file size"), "0 0");
    server.put("/v1/groups/strict", &json!({ "agent": "strict" })).expect(201);
    server.complete("strict", "x");
    let strict = limits(server.journal.agent_pid());
    for (name, expected) in [
        ("Max open files", "300 300"),
        ("Max processes", "50000 50000"),
        ("Max file size", "1073741824 1073741824"),
        ("Max cpu time", "3600 3600"),
        ("Max address space", "unlimited unlimited"),
    ] {
        assert_eq!(strict(name), expected, "{name}");
    }
}
