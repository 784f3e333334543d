//! What readers get right after a restart: nothing that an earlier server ran.

use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, server::id};

/// The groups of each kind.
const GROUPS: usize = 3;

/// What the server ran when it was killed.
struct Before {
    groups: Vec<String>,
    tasks: Vec<String>,
    runs: Vec<String>,
}

/// Starts turns, a compaction in a turn, compaction tasks and turns that ask for permission, in
/// many groups, and waits until all of them run.
fn busy() -> (Server, Before) {
    let setup = Setup::new()
        .set("limits", "running_groups", 4 * GROUPS)
        .set("limits", "resident_agents", 4 * GROUPS)
        .text("defaults", "on_interrupt", "hold")
        .asks();
    let server = setup.start();
    server.journal.script("on-compact", "[[gate:never]]");
    let (mut groups, mut tasks) = (Vec::new(), Vec::new());
    for number in 0..GROUPS {
        let [turn, detected, ordered, asking] =
            ["turn", "detected", "ordered", "asking"].map(|kind| format!("{kind}-{number}"));
        server.complete(&ordered, "to compact");
        tasks.push(server.compact(&ordered));
        tasks.push(server.submit(&turn, "[[reply:some]][[gate:never]]"));
        server.submit(&turn, "waits for the turn before");
        tasks.push(server.submit(&detected, "[[compaction:in_progress:c1]][[gate:never]]"));
        tasks.push(server.submit(&asking, "[[permission::execute]][[gate:never]]"));
        groups.extend([turn, detected, ordered, asking]);
    }
    let runs = groups.iter().map(|group| {
        let shows = if group.starts_with("turn") { "running" } else { "compacting" };
        let runs = |shown: &Value| match group.starts_with("asking") {
            true => !server.permissions(&format!("state=pending&group={group}")).is_empty(),
            false => shown["status"] == shows,
        };
        let shown = server.wait_group(group, "the group is busy", runs);
        shown["current_run"].as_str().unwrap().to_owned()
    });
    let runs = runs.collect();
    let tasks = tasks.iter().map(|task| id(task).to_owned()).collect();
    (server, Before { groups, tasks, runs })
}

/// Reads everything that shows what runs, and checks that nothing of it is from before.
fn assert_nothing_is_from(server: &Server, before: &Before) {
    let is_old = |known: &[String], id: &Value| known.iter().any(|old| *id == **old);
    let assert_group = |shown: &Value| {
        let status = shown["status"].as_str().unwrap();
        assert!(!["running", "compacting"].contains(&status), "{shown}");
        assert!(!is_old(&before.tasks, &shown["current_task"]), "{shown}");
        assert!(!is_old(&before.runs, &shown["current_run"]), "{shown}");
        assert_ne!(shown["compaction"]["active"], true, "{shown}");
    };
    let assert_task = |task: &Value| {
        assert_ne!(task["state"], "running", "{task}");
        if task["state"] == "queued" {
            assert!(!task["blocked_by"].is_null(), "{task}");
        }
    };
    for group in &before.groups {
        assert_group(&server.group(group));
        server.list(group, "tasks").iter().for_each(assert_task);
        let snapshot = server.get(&format!("/v1/groups/{group}/snapshot")).expect(200);
        assert_group(&snapshot["group"]);
        assert!(!is_old(&before.tasks, &snapshot["current_task"]["id"]), "{snapshot}");
        assert_eq!(snapshot["permissions"], json!([]), "{snapshot}");
        assert_ne!(snapshot["compaction"]["active"], true, "{snapshot}");
        let runs = server.list(group, "runs");
        let alive = runs.iter().find(|run| run["ended_at"].is_null());
        assert!(alive.is_none(), "{alive:?}");
        let compactions = server.list(group, "compactions");
        assert!(compactions.iter().all(|one| one["status"] != "in_progress"), "{compactions:?}");
        assert_eq!(server.permissions(&format!("state=pending&group={group}")), [] as [Value; 0]);
    }
}

/// The same of what shows all groups at once.
fn assert_no_total_is_from(server: &Server, before: &Before) {
    let groups = server.get("/v1/groups?limit=1000").expect(200);
    for shown in groups["items"].as_array().unwrap() {
        assert!(!["running", "compacting"].contains(&shown["status"].as_str().unwrap()), "{shown}");
        assert_ne!(shown["compaction"]["active"], true, "{shown}");
    }
    let counts = &server.get("/v1/status").expect(200)["groups"];
    for status in ["running", "compacting"] {
        assert!(counts[status].is_null() || counts[status] == 0, "{counts}");
    }
    assert_eq!(server.permissions("state=pending"), [] as [Value; 0]);
    let metrics = server.get("/metrics").text();
    for line in ["greenroom_compactions_open 0", "greenroom_permissions_pending 0"] {
        assert!(metrics.lines().any(|known| known.starts_with(line)), "no {line}");
    }
    let task = server.get(&format!("/v1/tasks/{}", before.tasks[0])).expect(200);
    assert_ne!(task["state"], "running", "{task}");
}

/// Waits until the server answers at all, and not until it says that it is ready.
fn wait_answer(server: &Server) {
    eventually("the first answer", &server.log, || {
        server.try_request("GET", "/healthz", &[], None).ok()
    });
}

/// I5, AM-27, I9: after a kill amid turns and compactions in many groups, no answer shows any of
/// them as running, from the first one on: neither a group's own nor a list's, a count or a stream.
#[test]
fn nothing_of_an_earlier_server_is_shown_as_running() {
    let (mut server, before) = busy();
    for round in 0..2 {
        server.kill();
        server.spawn();
        wait_answer(&server);
        if round == 0 {
            assert_nothing_is_from(&server, &before);
        }
        assert_no_total_is_from(&server, &before);
        assert_nothing_is_from(&server, &before);
    }
    server.get("/readyz").expect(200);
}

/// I5, AM-27: the stream of a client that joins at once has the end of what an earlier server left
/// before it is in sync.
#[test]
fn a_stream_that_joins_at_once_has_the_ends() {
    let (mut server, before) = busy();
    server.kill();
    server.spawn();
    wait_answer(&server);
    for group in before.groups.iter().rev() {
        let seen = server.events(group, "").until_synced();
        let count = |kind: &str| seen.iter().filter(|event| event.event == kind).count();
        for (began, ended) in [
            ("greenroom/run_started", "greenroom/run_exited"),
            ("greenroom/turn_started", "greenroom/turn_settled"),
            ("greenroom/compaction_started", "greenroom/compaction_ended"),
            ("greenroom/permission_opened", "greenroom/permission_resolved"),
        ] {
            assert_eq!(count(began), count(ended), "{group}: {began}");
        }
    }
}

/// I5, AM-27, I15: a group that cannot be recovered is shown as `starting`, and what its rows say
/// of its tasks is refused; its transcript can be read. The others are answered at once, and the
/// server is ready.
#[test]
fn a_group_that_cannot_be_recovered_is_starting() {
    let (mut server, mut before) = busy();
    server.kill();
    server.home.environment.push(("FAILPOINT".into(), "recovery=detected-".into()));
    server.boot();
    let counts = &server.get("/v1/status").expect(200)["groups"];
    assert_eq!(counts["starting"], GROUPS, "{counts}");
    let (stuck, sound) =
        before.groups.iter().cloned().partition(|group: &String| group.starts_with("detected"));
    for group in &stuck as &Vec<String> {
        let shown = server.group(group);
        assert_eq!(shown["status"], "starting", "{shown}");
        assert_eq!((&shown["current_task"], &shown["current_run"]), (&json!(null), &json!(null)));
        assert_eq!(shown["compaction"]["active"], false, "{shown}");
        for what in ["tasks", "snapshot", "runs", "compactions", "turns"] {
            let path = format!("/v1/groups/{group}/{what}");
            server.get(&path).problem(503, "group-rebuilding");
        }
        assert!(!server.frames(group).is_empty());
    }
    // The third task of each four is a turn of theirs.
    for task in before.tasks.iter().skip(2).step_by(4) {
        server.get(&format!("/v1/tasks/{task}")).problem(503, "group-rebuilding");
    }
    before.groups = sound;
    assert_nothing_is_from(&server, &before);
    server.kill();
    server.home.environment.pop();
    server.boot();
    before.groups.extend(stuck);
    assert_nothing_is_from(&server, &before);
}
