//! `GET /metrics`: what is counted, by how much, and that a scrape is answered also when the
//! database fails.

use std::{
    collections::BTreeSet, fs, os::unix::fs::MetadataExt as _, process::Command, time::Duration,
};

use rusqlite::TransactionBehavior;
use rustix::process::Signal;
use serde_json::json;

use crate::support::{
    Events, Server, Setup,
    openmetrics::{Scrape, parse},
    process,
};

const ENDED: &str = "greenroom_tasks_ended_total";

/// A sample's name, its labels, and its increase.
type Increase = (&'static str, &'static [(&'static str, &'static str)], f64);

/// Returns the increase of a sample.
#[track_caller]
fn increase(before: &Scrape, after: &Scrape, name: &str, labels: &[(&str, &str)]) -> f64 {
    after.value(name, labels) - before.value(name, labels)
}

/// Returns the values of a family's label.
fn label_values(scrape: &Scrape, name: &str, label: &str) -> BTreeSet<String> {
    let labels = scrape.named(name).into_iter().filter_map(|sample| sample.labels.get(label));
    labels.cloned().collect()
}

/// The parser of the tests refuses what the format forbids; otherwise the tests below prove
/// nothing. The sums and last buckets of histograms are tested in actors/src/metrics/histogram.rs.
#[test]
fn the_parser_of_the_tests_is_strict() {
    let head = "# HELP greenroom_a Help.\n# TYPE greenroom_a";
    let sound = [
        format!("{head} counter\ngreenroom_a_total 1\n# EOF\n"),
        format!("{head} gauge\ngreenroom_a{{b=\"x y,{{z}}\",c=\"\"}} 1.5\n# EOF\n"),
        format!(
            "{head} histogram\ngreenroom_a_sum 3.0\ngreenroom_a_count 2\n\
             greenroom_a_bucket{{le=\"1.0\"}} 1\ngreenroom_a_bucket{{le=\"+Inf\"}} 2\n# EOF\n"
        ),
    ];
    for text in &sound {
        parse(text).unwrap();
    }
    assert_eq!(parse(&sound[1]).unwrap().0[0].labels["b"], "x y,{z}");
    for broken in [
        sound[0].replace("# EOF\n", ""),
        sound[0].replace("# EOF\n", "# EOF\nmore\n"),
        sound[0].replace("_total", ""),
        sound[0].replace(" 1\n", " -1\n"),
        sound[0].replace(" 1\n", " one\n"),
        sound[0].replace("_total 1\n", "_total 1\ngreenroom_a_total 1\n"),
        sound[0].replace("# TYPE greenroom_a counter\n", ""),
        sound[0].replace("# HELP greenroom_a Help.\n", ""),
        sound[0].replace("greenroom_a", "other_a"),
        sound[0].replace("# EOF\n", &sound[0]),
        sound[1].replace("x y", "x\\y"),
        sound[1].replace("c=", "b="),
        sound[1].replace("\"} ", "\" "),
        sound[2].replace("\"1.0\"} 1", "\"1.0\"} 3"),
        sound[2].replace("+Inf", "0.5"),
    ] {
        assert!(parse(&broken).is_err(), "{broken}");
    }
}

/// The first scrape has each family, closed label sets with all their values, and zeros; other
/// methods are 405, and foreign hosts are refused as on every route.
#[test]
fn the_first_scrape_has_all_families() {
    let server = Server::usual();
    let scrape = server.scrape();
    #[rustfmt::skip]
    let closed = [
        ("greenroom_groups", "status", "archived compacting degraded held idle paused running starting waiting"),
        ("greenroom_tasks", "state", "queued retrying running"),
        ("greenroom_tasks", "kind", "compaction turn"),
        (ENDED, "state", "cancelled completed failed interrupted skipped"),
        (ENDED, "kind", "compaction turn"),
        ("greenroom_tasks_accepted_total", "origin", "acp api auto retry"),
        ("greenroom_turn_seconds_count", "stop_reason", "_deadline _error _process_exited _protocol _server_restart _storage _unclear cancelled end_turn max_tokens max_turn_requests refusal"),
        ("greenroom_compaction_seconds_count", "source", "acp hermes_meta hermes_stderr task"),
        ("greenroom_compaction_seconds_count", "status", "abandoned cancelled completed failed noop skipped"),
        ("greenroom_runs_ended_total", "reason", "agent_auth exited protocol server_restart start_failed stopped storage"),
        ("greenroom_storage_failing", "fault", "corrupt disk_full error file_replaced io_error locked read_only stalled sync_failed"),
        ("greenroom_oldest_waiting_task_age_seconds", "blocked_by", "agent agent_auth backoff held lock paused slot storage turn"),
        ("greenroom_oldest_running_task_age_seconds", "kind", "compaction turn"),
        ("greenroom_subscribers", "stream", "all group"),
        ("greenroom_otlp_spans_total", "result", "refused rejected sent"),
        ("greenroom_http_responses_total", "class", "2xx 3xx 4xx 5xx"),
    ];
    for (name, label, all) in closed {
        let all = all.split(' ').map(str::to_owned).collect();
        assert_eq!(label_values(&scrape, name, label), all, "{name} {label}");
        if name != "greenroom_http_responses_total" {
            assert_eq!(scrape.sum(name), 0.0, "{name}");
        }
    }
    let routes = label_values(&scrape, "greenroom_http_responses_total", "route");
    for route in ["/v1/groups/{group}/turns", "/v1/locks/{key}", "/metrics", "/readyz", "none"] {
        assert!(routes.contains(route), "{route} is not in {routes:?}");
    }
    for zero in [
        "queue_wait_seconds_count task_retries_total frames_total frame_bytes_total queue_depth",
        "runs_started_total agent_lines_rejected_total stderr_lines_dropped_total",
        "lock_acquisitions_total lock_reclaims_total lock_bypasses_total lock_losses_total",
        "orphans_reaped_total shim_claims_refuted_total",
        "transactions_total commits_total transaction_groups_count",
        "commit_seconds_count slots_used slots_waiting agents_resident agents_waiting",
        "agents_let_go_total log_lines_dropped_total permissions_pending compactions_open",
        "otlp_stalled groups_broken http_unparsable_requests_total",
    ]
    .iter()
    .flat_map(|names| names.split(' '))
    {
        assert_eq!(scrape.value(&format!("greenroom_{zero}"), &[]), 0.0, "{zero}");
    }
    assert_eq!(scrape.value("greenroom_storage_up", &[]), 1.0);
    assert_eq!(scrape.value("greenroom_turn_timeout_seconds", &[]), 3600.0);
    assert_eq!(scrape.value("greenroom_compaction_timeout_seconds", &[]), 600.0);
    for some in ["slots", "agents_resident_limit", "disk_free_bytes", "uptime_seconds"] {
        assert!(scrape.value(&format!("greenroom_{some}"), &[]) > 0.0, "{some}");
    }
    assert!(scrape.value("greenroom_process_start_time_seconds", &[]) > 1.7e9);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(scrape.value("greenroom_build_info", &[("version", version)]), 1.0);

    let refused = server.post("/metrics", &json!({}));
    refused.problem(405, "method-not-allowed");
    assert_eq!(refused.header("allow"), Some("GET, HEAD"));
    server
        .request("GET", "/metrics", &[("Host", "evil.example")], None)
        .problem(403, "foreign-host");
    server.get("/v1/nothing").any_problem(404);
    let after = server.scrape();
    let of = |route, class| {
        let labels = [("route", route), ("class", class)];
        increase(&scrape, &after, "greenroom_http_responses_total", &labels)
    };
    // A scrape counts itself only after its answer.
    assert_eq!((of("/metrics", "2xx"), of("/metrics", "4xx"), of("none", "4xx")), (1.0, 1.0, 2.0));
}

/// A turn, a failed turn and a turn whose agent crashes increase their counters by one each; no
/// label names a group or a task.
#[test]
fn turns_are_counted() {
    let server = Server::usual();
    let before = server.scrape();
    server.complete("some-group", "[[reply:x]][[garbage]][[stderr:1030]]");
    server.finish_as(&server.submit("some-group", "[[error:-32602:no]]"), "failed");
    server.finish_as(&server.submit("some-group", "[[reply:x]][[die:1]]"), "interrupted");
    server.wait_metric(ENDED, &[("kind", "turn"), ("state", "interrupted")], 1.0);
    let after = server.wait_metric("greenroom_runs_ended_total", &[("reason", "exited")], 1.0);
    for (name, count) in [
        (ENDED, 3.0),
        ("greenroom_tasks_accepted_total", 3.0),
        ("greenroom_runs_ended_total", 1.0),
        ("greenroom_turn_seconds_count", 3.0),
    ] {
        assert_eq!(after.sum(name), count, "{name}");
    }
    #[rustfmt::skip]
    let increases: [Increase; 11] = [
        ("greenroom_tasks_accepted_total", &[("kind", "turn"), ("origin", "api")], 3.0),
        (ENDED, &[("kind", "turn"), ("state", "completed")], 1.0),
        (ENDED, &[("kind", "turn"), ("state", "failed")], 1.0),
        (ENDED, &[("kind", "turn"), ("state", "interrupted")], 1.0),
        ("greenroom_turn_seconds_count", &[("stop_reason", "end_turn")], 1.0),
        ("greenroom_turn_seconds_count", &[("stop_reason", "_error")], 1.0),
        ("greenroom_turn_seconds_count", &[("stop_reason", "_process_exited")], 1.0),
        ("greenroom_queue_wait_seconds_count", &[], 3.0),
        ("greenroom_runs_started_total", &[], 1.0),
        ("greenroom_agent_lines_rejected_total", &[], 1.0),
        ("greenroom_http_responses_total", &[("route", "/v1/groups/{group}/turns"), ("class", "2xx")], 3.0),
    ];
    for (name, labels, by) in increases {
        assert_eq!(increase(&before, &after, name, labels), by, "{name} {labels:?}");
    }
    let dropped = &server.frames_of_kind("some-group", "greenroom/run_exited")[0]["payload"];
    let dropped = dropped["stderr_dropped"].as_f64().unwrap();
    assert!(dropped > 0.0);
    assert_eq!(after.value("greenroom_stderr_lines_dropped_total", &[]), dropped);
    let last = server.group("some-group")["last_seq"].as_f64().unwrap();
    let after = server.wait_metric("greenroom_frames_total", &[], last);
    assert!(after.value("greenroom_frame_bytes_total", &[]) > last);
    let status = server.get("/v1/status").expect(200);
    assert_eq!(after.value("greenroom_commits_total", &[]), status["storage"]["commits"]);
    assert!(after.value("greenroom_transactions_total", &[]) > 5.0);
    let of_groups = after.value("greenroom_transaction_groups_sum", &[]);
    assert_eq!(of_groups, after.value("greenroom_commits_total", &[]));
    assert!(after.value("greenroom_commit_seconds_sum", &[]) > 0.0);
    assert!(after.value("greenroom_database_bytes", &[]) > 0.0);
    assert_eq!(after.value("greenroom_groups", &[("status", "idle")]), 1.0);
    let text = server.get("/metrics").text();
    for unbounded in ["some-group", "tsk_", "run_0", "session"] {
        assert!(!text.contains(unbounded), "{unbounded} is in the exposition");
    }
}

/// A retried task is counted; a waiting task has an age by what it waits for.
#[test]
fn waiting_tasks_are_shown_by_age_and_cause() {
    let server = Setup::new().retries("10ms").set("limits", "running_groups", 1).start();
    server.complete("again", "[[times:1:die:1]][[reply:fine]]");
    server.wait_metric("greenroom_task_retries_total", &[], 1.0);
    let running = server.submit("busy", "[[gate:go]]");
    server.journal.wait_gate("go");
    let next = [server.submit("busy", "next"), server.submit("other", "waits for the slot")];
    let age = "greenroom_oldest_waiting_task_age_seconds";
    let scrape = server.wait_scrape("waiting tasks with an age", |scrape| {
        let ages = ["slot", "turn"].map(|by| scrape.value(age, &[("blocked_by", by)]));
        let runs = scrape.value("greenroom_oldest_running_task_age_seconds", &[("kind", "turn")]);
        ages.iter().all(|age| *age > 0.0) && runs > 0.0
    });
    let ages = scrape.named(age).into_iter().filter(|sample| sample.value > 0.0);
    assert_eq!(ages.count(), 2, "{scrape:?}");
    for (name, value) in [
        ("slots", 1.0),
        ("slots_used", 1.0),
        ("slots_waiting", 1.0),
        ("queue_depth", 2.0),
        ("agents_resident", 2.0),
    ] {
        assert_eq!(scrape.value(&format!("greenroom_{name}"), &[]), value, "{name}");
    }
    let tasks = |state| scrape.value("greenroom_tasks", &[("kind", "turn"), ("state", state)]);
    assert_eq!((tasks("running"), tasks("queued"), tasks("retrying")), (1.0, 2.0, 0.0));
    let groups = |status| scrape.value("greenroom_groups", &[("status", status)]);
    assert_eq!((groups("running"), groups("waiting"), groups("idle")), (1.0, 1.0, 1.0));
    server.journal.open_gate("go");
    next.iter().chain([&running]).for_each(|task| drop(server.finish_as(task, "completed")));
    let scrape = server.scrape();
    assert_eq!((scrape.sum("greenroom_tasks"), scrape.sum(age)), (0.0, 0.0));
}

/// Compactions are counted by source and status, open ones and their locks too.
#[test]
fn compactions_are_counted() {
    let server = Server::usual();
    server.complete("work", "first");
    let task = server.compact_with("work", "[[gate:go]]");
    server.journal.wait_gate("go");
    server.wait_metric("greenroom_compactions_open", &[], 1.0);
    server.journal.open_gate("go");
    server.finish_as(&task, "completed");
    let seconds = "greenroom_compaction_seconds_count";
    let done = [("source", "task"), ("status", "completed")];
    let scrape = server.wait_metric(seconds, &done, 1.0);
    assert_eq!(scrape.sum(seconds), 1.0, "no other compaction");
    assert_eq!(scrape.value(ENDED, &[("kind", "compaction"), ("state", "completed")]), 1.0);
    assert_eq!(
        scrape.sum("greenroom_turn_seconds_count"),
        1.0,
        "the prompt of a compaction is not a turn"
    );
    assert_eq!(scrape.value("greenroom_lock_acquisitions_total", &[]), 1.0);
    assert_eq!(scrape.value("greenroom_lock_reclaims_total", &[]), 0.0);
    assert_eq!(scrape.value("greenroom_compactions_open", &[]), 0.0);
    // Locks of other holders count too; a repeated acquisition by the same holder does not.
    server.acquire_lock("a-session", "outside").expect(201);
    server.acquire_lock("a-session", "outside").expect(200);
    assert_eq!(server.scrape().value("greenroom_lock_acquisitions_total", &[]), 2.0);
    server.acquire_lock("another", &dead_holder()).expect(201);
    server.acquire_lock("another", "outside").expect(201);
    let scrape = server.scrape();
    assert_eq!(scrape.value("greenroom_lock_acquisitions_total", &[]), 4.0);
    assert_eq!(scrape.value("greenroom_lock_reclaims_total", &[]), 1.0);
    let mut database = server.writable_database();
    let dropped = database.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    dropped.execute_batch("DROP TABLE locks").unwrap();
    dropped.commit().unwrap();
    server.finish_as(&server.compact("work"), "completed");
    server.wait_metric("greenroom_lock_bypasses_total", &[], 1.0);
}

/// Returns a holder whose process has provably ended.
fn dead_holder() -> String {
    let mut child = Command::new("true").spawn().unwrap();
    let pid = child.id();
    child.wait().unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let namespace = fs::metadata("/proc/self/ns/pid").unwrap().ino();
    let (boot, nonce) = (boot.trim(), "0".repeat(32));
    format!("greenroom:pid={pid}:start=1:ns={namespace}:boot={boot}:nonce={nonce}")
}

/// A task that has its slot, and whose agent has not started, is waiting too. A permission counts
/// as pending until it is answered; a held group is shown, and the age of its waiting tasks.
#[test]
fn waits_for_an_agent_a_permission_and_a_caller_are_shown() {
    let server = Setup::new().asks().agent("slow", &["--gate-initialize", "start"]).start();
    let age = "greenroom_oldest_waiting_task_age_seconds";
    let wait_age = |by| {
        server.wait_scrape("a waiting task with an age", |scrape| {
            scrape.value(age, &[("blocked_by", by)]) > 0.0
        })
    };
    server.create_group("slow", "slow", "");
    let task = server.submit("slow", "x");
    let scrape = wait_age("agent");
    assert_eq!(scrape.value("greenroom_tasks", &[("kind", "turn"), ("state", "queued")]), 1.0);
    assert_eq!(scrape.sum("greenroom_oldest_running_task_age_seconds"), 0.0);
    server.journal.open_gate("start");
    server.finish_as(&task, "completed");
    assert_eq!(server.scrape().sum(age), 0.0);

    let (task, permission) = server.submit_asking("work", "[[permission]]");
    assert_eq!(server.scrape().value("greenroom_permissions_pending", &[]), 1.0);
    server.answer(&permission, "once").expect(200);
    server.finish_as(&task, "completed");
    assert_eq!(server.scrape().value("greenroom_permissions_pending", &[]), 0.0);

    server.create_group("held", "scripted", "hold");
    server.finish_as(&server.submit("held", "[[reply:x]][[die:1]]"), "interrupted");
    server.submit("held", "next");
    let scrape = wait_age("held");
    assert_eq!(scrape.value("greenroom_groups", &[("status", "held")]), 1.0);
    assert_eq!(scrape.sum("greenroom_groups"), 3.0);
}

/// Open streams are counted, of a group and of all groups.
#[track_caller]
fn assert_streams_are_counted(server: &Server) {
    let group = [server.events("work", ""), server.events("work", "?after=3")];
    let all = Events::open(server.address(), "/v1/events", &[], &server.log);
    let scrape = server.scrape();
    let open =
        |scrape: &Scrape, stream| scrape.value("greenroom_subscribers", &[("stream", stream)]);
    assert_eq!((open(&scrape, "group"), open(&scrape, "all")), (2.0, 1.0));
    drop((group, all));
    // The server notices the end at its next write.
    server.wait_scrape("the end of the streams", |scrape| {
        server.complete("work", "y");
        open(scrape, "group") + open(scrape, "all") == 0.0
    });
}

/// I10: processes that survived their shim, or their shim and their server, are killed and counted;
/// so is an idle agent that was evicted.
#[test]
fn orphans_and_evictions_are_counted() {
    let mut server = Setup::new().set("limits", "resident_agents", 1).start();
    server.complete("idle", "x");
    let orphans = process::KillOnDrop::reported(&server.complete("work", "[[spawn-orphans]]"));
    server.wait_metric("greenroom_agents_let_go_total", &[], 1.0);
    let interrupted = server.submit("work", "[[reply:x]][[gate:never]]");
    server.journal.wait_gate("never");
    process::signal(process::parent(server.journal.agent_pid()), Signal::KILL);
    server.finish_as(&interrupted, "interrupted");
    let scrape = server.wait_scrape("a count of the orphans", |scrape| {
        scrape.value("greenroom_orphans_reaped_total", &[]) >= orphans.0.len() as f64
    });
    assert!(orphans.all_gone(), "{scrape:?}");

    let orphans = process::KillOnDrop::reported(&server.complete("work", "[[spawn-orphans]]"));
    let shim = process::parent(server.journal.agent_pid());
    // A stopped shim does not notice its server's end.
    process::signal(shim, Signal::STOP);
    server.kill();
    process::signal(shim, Signal::KILL);
    assert!(orphans.all_live());
    server.boot();
    let reaped = server.scrape().value("greenroom_orphans_reaped_total", &[]);
    assert!(reaped >= orphans.0.len() as f64, "{reaped} of {:?}", orphans.0);
    assert!(orphans.all_gone());
}

/// F19: while storage cannot be written, a scrape is answered and shows the failure; after the
/// recovery it shows none. If the database cannot be read, a scrape has the values in memory, and
/// lacks the others.
#[test]
fn a_scrape_shows_a_failing_storage() {
    let server = Server::usual();
    server.complete("work", "before");
    assert_streams_are_counted(&server);
    let completed = [("kind", "turn"), ("state", "completed")];
    let ended = server.scrape().value(ENDED, &completed);
    let database = server.writable_database();
    database.busy_timeout(Duration::from_secs(5)).unwrap();
    database.execute_batch("ALTER TABLE heads RENAME TO elsewhere").unwrap();
    let scrape = server.scrape();
    assert_eq!(scrape.value("greenroom_storage_up", &[]), 0.0);
    assert_eq!(scrape.value(ENDED, &completed), ended);
    assert!(scrape.named("greenroom_groups").is_empty(), "a zero would be wrong");
    database.execute_batch("ALTER TABLE elsewhere RENAME TO heads").unwrap();
    drop(database);
    assert_eq!(server.scrape().value("greenroom_groups", &[("status", "idle")]), 1.0);

    server.limit_file_size(Some(1));
    let refused = server.post("/v1/groups/work/turns", &json!({ "prompt": "refused" }));
    refused.problem(503, "storage-unavailable");
    let before = server.scrape();
    assert_eq!(before.value("greenroom_storage_up", &[]), 0.0);
    assert_eq!(before.value("greenroom_storage_failing", &[("fault", "io_error")]), 1.0);
    assert_eq!(before.sum("greenroom_storage_failing"), 1.0);
    assert_eq!(before.value(ENDED, &completed), ended);
    server.limit_file_size(None);
    let after = server.wait_metric("greenroom_storage_up", &[], 1.0);
    assert_eq!(after.sum("greenroom_storage_failing"), 0.0);
    let class = [("route", "/v1/groups/{group}/turns"), ("class", "5xx")];
    assert_eq!(after.value("greenroom_http_responses_total", &class), 1.0);
}
