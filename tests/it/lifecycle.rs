//! Compactions that an agent does by itself in a turn: one record each, whichever detectors report
//! it and in whichever order, and an active state that always ends.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Server, Setup, hermes, process};

/// Both detectors of hermes, in addition to ACP's.
const ALL: &[&str] = &["hermes_meta", "hermes_stderr"];

const ACP_STARTED: &str = "[[compaction:in_progress:c1]]";
const ACP_DONE: &str = "[[compaction:completed:c1]]";

/// hermes continues as session `h2`, after `h1`.
const META: &str = "[[provenance:h2:h1]]";

/// A group, what its agent does step by step, the statuses of the group's compactions, the newest
/// first, and their sources.
type Detected<'a> = (&'a str, &'a [&'a str], &'a [&'a str], &'a [&'a str]);

/// Starts a server with all detectors.
fn server_of_hermes() -> Server {
    Setup::new().signals(ALL).start()
}

#[track_caller]
fn sources(compaction: &Value) -> Vec<&str> {
    let sources = compaction["sources"].as_array().unwrap_or_else(|| panic!("{compaction}"));
    let mut sources: Vec<&str> = sources.iter().map(|source| source.as_str().unwrap()).collect();
    sources.sort_unstable();
    sources
}

/// Waits until a compaction is active, and returns the group's compaction state.
#[track_caller]
fn wait_active(server: &Server, group: &str) -> Value {
    let group = server
        .wait_group(group, "an active compaction", |group| group["compaction"]["active"] == true);
    group["compaction"].clone()
}

/// Checks that no compaction is active, and the count of compactions.
#[track_caller]
fn assert_inactive(server: &Server, group: &str, count: u64) {
    let state = server.group(group)["compaction"].clone();
    assert_eq!(state["active"], false, "{group}: {state}\n{}", server.log.tail());
    assert_eq!(state["count"], count, "{group}: {state}");
}

/// AM-20, RA: detectors that the profile does not enable change nothing, not even on an exact
/// match; that of ACP is advertised, as agents send `compaction_update` to no other client.
#[test]
fn detectors_of_hermes_must_be_enabled() {
    let server = Setup::new().environment("GREENROOM_LOG", "debug").start();
    let lines = format!("{}{}", hermes::started("h1"), hermes::done("h1"));
    server.complete("work", &format!("[[provenance:h1]]{lines}{META}[[reply:x]]"));
    server.log.wait("stderr to be read", |line| line.contains("context compression done"));
    server.complete("work", "next");
    assert_eq!(server.group("work")["compaction"], json!(null));
    assert!(server.compactions("work").is_empty());
    assert_eq!(server.segments("work").len(), 1);
    for fact in ["compaction_started", "compaction_ended", "stderr"] {
        assert!(server.frames_of_kind("work", &format!("greenroom/{fact}")).is_empty(), "{fact}");
    }
    let params = &server.journal.events_named("initialize")[0]["params"];
    assert_eq!(params["clientCapabilities"]["session"]["compaction"], json!({}), "{params}");
}

/// AM-21, AM-22, AM-23, AM-29, A-5, RA: each detector alone, and several of one compaction, give
/// one record; each record has its outcome, and only a completed one counts and rotates, once.
#[test]
fn each_detected_compaction_has_one_record() {
    let (started, done) = (&*hermes::started("h1"), &*hermes::done("h1"));
    let (no_progress, skipped) = (&*hermes::no_progress("h1"), &*hermes::skipped("h1"));
    let (fallback, aborted) = (&*hermes::fallback(), &*hermes::aborted());
    let rotated = &*hermes::already_rotated("h1");
    let chunks = "[[summary-chunk:c1:what was]][[gate:chunk]][[summary-chunk:c1: said]]";
    let own_keys = "[[compaction:completed:a]][[compaction:completed:b]]";
    let qwen = "[[compression:done:23375:18451]]";
    let tool = ["[[compact-tool:in_progress:t1]]", "[[compact-tool:completed:t1]]"];
    let (acp, meta, stderr) = ("acp", "hermes_meta", "hermes_stderr");
    #[rustfmt::skip]
    let cases: &[Detected<'_>] = &[
        ("update",            &[ACP_STARTED, ACP_DONE],                      &["completed"], &[acp]),
        ("update-done",       &[ACP_DONE],                                   &["completed"], &[acp]),
        ("tool-call",         &tool,                                         &["completed"], &[acp]),
        ("chunks",            &["[[compression:progress]]", qwen],           &["completed"], &[acp]),
        ("meta",              &[META],                                       &["completed"], &[meta]),
        ("meta-of-old",       &["[[old-provenance:h2:session_split]]"],      &["completed"], &[meta]),
        ("stderr",            &[started, done],                              &["completed"], &[stderr]),
        ("stderr-done",       &[done],                                       &["completed"], &[stderr]),
        ("meta-in-stderr",    &[started, META, done],                        &["completed"], &[meta, stderr]),
        ("all",               &[ACP_STARTED, started, META, ACP_DONE, done], &["completed"], &[acp, meta, stderr]),
        ("acp-at-end",        &[started, META, done, ACP_STARTED, ACP_DONE], &["completed"], &[acp, meta, stderr]),
        ("summary-repeated",  &[chunks, ACP_DONE, ACP_DONE],                 &["completed"], &[acp]),
        ("two",               &[started, done, started, done],               &["completed"; 2], &[stderr]),
        ("two-by-key",        &[own_keys],                                   &["completed"; 2], &[acp]),
        ("fallback",          &[started, fallback, done],                    &["completed"], &[stderr]),
        ("aborted",           &[started, aborted],                           &["failed"],    &[stderr]),
        ("no-progress",       &[started, no_progress],                       &["noop"],      &[stderr]),
        ("skipped",           &[started, skipped],                           &["skipped"],   &[stderr]),
        ("skipped-and-again", &[started, rotated, started, started, done],   &["completed", "skipped"], &[stderr]),
        ("another-session",   &["[[provenance:h2:h1:branch]]"],              &[],            &[]),
    ];
    let server = server_of_hermes();
    server.journal.open_gate("chunk");
    for (group, steps, statuses, detectors) in cases {
        server.complete(group, "[[provenance:h1]][[reply:x]]");
        assert_eq!(server.group(group)["compaction"], json!(null), "{group}: no signal yet");
        assert_eq!(server.play(group, steps)["state"], "completed", "{group}");
        let all = server.compactions(group);
        let shown: Vec<&Value> = all.iter().map(|compaction| &compaction["status"]).collect();
        assert_eq!(shown, *statuses, "{group}: {all:?}");
        let count = statuses.iter().filter(|status| **status == "completed").count();
        server.assert_compacted(group, count);
        for compaction in &all {
            assert_eq!(sources(compaction), *detectors, "{group}: {compaction}");
            assert!(detectors.contains(&compaction["source"].as_str().unwrap()), "{compaction}");
        }
        if count > 0 {
            let newest = (&all[0]["from_segment"], &all[0]["to_segment"]);
            assert_eq!(newest, (&json!(count), &json!(count + 1)), "{group}: {all:?}");
        }
        if !all.is_empty() {
            assert_inactive(&server, group, count as u64);
        }
        server.complete(group, "next");
        server.assert_compacted(group, count);
    }
    let summary = server.only_compaction("summary-repeated")["summary"].clone();
    assert_eq!(summary, "what was said");
    // A less trusted detector alone starts and counts nothing, once ACP has reported in the run.
    server.play("update", &[started, done]);
    server.only_compaction("update");
    server.assert_compacted("update", 1);
}

/// AM-21, AM-22, AM-31: a start makes a compaction active without counting it; the end counts it,
/// and the record has the figures of both. A failure afterwards is not a completion.
#[test]
fn a_compaction_counts_at_its_end() {
    let server = server_of_hermes();
    server.complete("work", "[[provenance:h1]][[reply:x]]");
    let (started, done) = (hermes::started("h1"), hermes::done("h1"));
    let task = server.submit("work", &format!("{started}[[gate:a]]{done}[[gate:b]][[reply:x]]"));
    let state = wait_active(&server, "work");
    assert_eq!((&state["count"], &state["last_source"]), (&json!(0), &json!("hermes_stderr")));
    assert!(state["last_started_at"].is_string(), "{state}");
    assert_eq!(state["last_completed_at"], json!(null), "{state}");
    assert_eq!(server.only_compaction("work")["status"], "in_progress");
    server.journal.open_gate("a");
    server.wait_group("work", "its end", |group| group["compaction"]["count"] == 1);
    assert_inactive(&server, "work", 1);
    assert_eq!(server.task(&task)["state"], "running", "the turn continues (AM-14)");
    server.journal.open_gate("b");
    server.finish_as(&task, "completed");
    let compaction = server.only_compaction("work");
    for (name, value) in [
        ("messages_before", 9),
        ("messages_after", 5),
        ("tokens_before", 60_027),
        ("tokens_after", 40_937),
    ] {
        assert_eq!(compaction[name], value, "{name} of {compaction}");
    }
    let completed = server.group("work")["compaction"].clone();
    assert_eq!(completed["last_started_at"], state["last_started_at"]);
    assert!(completed["last_started_at"].as_str() <= completed["last_completed_at"].as_str());
    server.play("work", &[&started, &hermes::aborted()]);
    assert_inactive(&server, "work", 1);
    let failed = server.group("work")["compaction"].clone();
    assert_eq!(failed["last_completed_at"], completed["last_completed_at"], "{failed}");
}

/// AM-29: signals of detectors during an ordered compaction are merged into it, also if stderr is
/// read only after the answer.
#[test]
fn signals_are_merged_into_an_ordered_compaction() {
    let server = server_of_hermes();
    server.complete("work", "[[provenance:h1]][[reply:x]]");
    for round in 1..=3 {
        let (started, done) = (hermes::started("h1"), hermes::done("h1"));
        let task = server.compact_with("work", &format!("{started}{done}"));
        server.finish_as(&task, "completed");
        server.wait_stderr_frames("work", 2 * round);
        server.assert_compacted("work", round);
        let compaction = server.compaction_of(&task);
        assert_eq!(sources(&compaction), ["hermes_stderr", "task"], "{compaction}");
        server.complete("work", "next");
        server.assert_compacted("work", round);
    }
}

/// AM-23, AM-29, A-5: a `done` after the compaction was abandoned still counts and rotates, once;
/// a later signal of another detector is merged into the same compaction.
#[test]
fn a_late_done_counts_once() {
    let server = server_of_hermes();
    let (started, done) = (hermes::started("h1"), format!("{}{META}", hermes::done("h1")));
    let acp_twice = [ACP_DONE, ACP_DONE].concat();
    for (group, begun, over, sources_of_it) in [
        ("acp", ACP_STARTED, &acp_twice, &["acp"] as &[&str]),
        ("hermes", &started, &done, &["hermes_meta", "hermes_stderr"]),
    ] {
        server.complete(group, "[[provenance:h1]][[reply:x]]");
        let gates = [format!("{group}-a"), format!("{group}-late")];
        let prompt = format!("{begun}[[gate:{}]][[answer]][[gate:{}]]{over}", gates[0], gates[1]);
        let task = server.submit(group, &format!("{prompt}[[reply:after]]"));
        wait_active(&server, group);
        server.journal.open_gate(&gates[0]);
        server.finish_as(&task, "completed");
        assert_eq!(server.only_compaction(group)["status"], "abandoned");
        assert_inactive(&server, group, 0);
        server.journal.open_gate(&gates[1]);
        server.wait_group(group, "the late compaction", |group| group["compaction"]["count"] == 1);
        server.wait_frame(group, "the update after it", |frame| {
            frame["payload"]["params"]["update"]["content"]["text"] == "after"
        });
        server.wait_stderr_frames(group, if group == "acp" { 0 } else { 2 });
        let compaction = server.only_compaction(group);
        assert_eq!(compaction["status"], "completed");
        assert_eq!(sources(&compaction), sources_of_it, "{compaction}");
        server.complete(group, "next");
        server.assert_compacted(group, 1);
        assert_inactive(&server, group, 1);
    }
}

/// AM-25, AM-27, AM-28, I5: a compaction that is active when its turn settles, when the agent dies
/// or when the server ends is abandoned before `turn_settled` and not counted, also after a
/// restart.
#[test]
fn every_end_abandons_an_active_compaction() {
    let mut server = Setup::new().signals(ALL).text("server", "drain_timeout", "100ms").start();
    let (started, done) = (hermes::started("h1"), hermes::done("h1"));
    #[rustfmt::skip]
    let ends = [
        ("settled",    ACP_STARTED, "[[reply:x]]",        "completed"),
        ("failed",     &started,    "[[error:-32602:no]]", "failed"),
        ("died",       ACP_STARTED, "",                   "interrupted"),
        ("killed",     &started,    "",                   "interrupted"),
        ("terminated", ACP_STARTED, "",                   "interrupted"),
    ];
    for (group, begun, end, state) in ends {
        let done = if begun == ACP_STARTED { "[[compaction:completed:c0]]" } else { &done };
        server.play(group, &[done]);
        let before = server.group(group)["compaction"].clone();
        let task = server.submit(group, &format!("{begun}[[gate:{group}]]{end}"));
        wait_active(&server, group);
        match group {
            "died" => process::signal(server.journal.agent_pid(), Signal::KILL),
            "killed" => server.kill_and_boot(),
            "terminated" => {
                server.restart();
            }
            _ => server.journal.open_gate(group),
        }
        server.finish_as(&task, state);
        let after = server.group(group)["compaction"].clone();
        assert_eq!(after["last_completed_at"], before["last_completed_at"], "{group}");
        let frames = server.frames_where(group, &format!("&task={}", task["id"].as_str().unwrap()));
        let place = |kind: &str| frames.iter().position(|frame| frame["kind"] == kind).unwrap();
        let (ended, settled) =
            (place("greenroom/compaction_ended"), place("greenroom/turn_settled"));
        assert!(ended < settled, "{frames:?}");
        assert_eq!(frames[ended]["payload"]["status"], "abandoned", "{frames:?}");
    }
    let stored = ends.map(|(group, ..)| server.compactions(group));
    server.kill_and_boot();
    for ((group, ..), all) in ends.iter().zip(stored) {
        assert_eq!(server.compactions(group), all, "{group}");
        let statuses = (&all[0]["status"], &all[1]["status"]);
        assert_eq!(statuses, (&json!("abandoned"), &json!("completed")), "{group}");
        assert!(all[0]["ended_at"].is_string(), "{all:?}");
        server.complete(group, "next");
        assert_inactive(&server, group, 1);
        server.assert_compacted(group, 1);
    }
}

/// AM-28, I12: after `compaction_timeout` a compaction without further signals is no longer active;
/// the turn continues, and a late `done` still counts.
#[test]
fn the_deadline_abandons_an_active_compaction() {
    let server = Setup::new().text("defaults", "compaction_timeout", "300ms").start();
    let task = server.submit("work", &format!("{ACP_STARTED}[[gate:go]]{ACP_DONE}[[reply:x]]"));
    server.journal.wait_gate("go");
    server.wait_group("work", "the deadline", |group| group["compaction"]["active"] == false);
    assert_eq!(server.frames_of_kind("work", "greenroom/compaction_started").len(), 1);
    assert_eq!(server.only_compaction("work")["status"], "abandoned");
    assert_inactive(&server, "work", 0);
    assert_eq!(server.task(&task)["state"], "running");
    assert!(server.journal.events_named("cancel").is_empty(), "the turn is not cancelled");
    server.journal.open_gate("go");
    assert_eq!(server.finish_as(&task, "completed")["text"], "x");
    server.assert_compacted("work", 1);
}

/// AM-30: racing stdout and stderr lose, repeat and reorder nothing within each stream; each turn
/// has its `turn_started` and `turn_settled`, and each `done` counts once.
#[test]
fn racing_pipes_lose_and_reorder_nothing() {
    let server = Setup::new().signals(&["hermes_stderr"]).start();
    let rounds = 6;
    for round in 0..rounds {
        let (started, done) = (hermes::started("h1"), hermes::done("h1"));
        let text: String = (0..10).map(|n| format!("[[reply:{round}.{n} ]]")).collect();
        server.complete("work", &format!("{started}{text}{done}{text}"));
        server.wait_stderr_frames("work", 2 * (round + 1));
    }
    let frames = server.frames("work");
    let texts = frames.iter().filter_map(|frame| {
        frame["payload"]["params"]["update"]["content"]["text"].as_str().map(str::to_owned)
    });
    let expected = (0..rounds)
        .flat_map(|round| (0..2).flat_map(move |_| (0..10).map(move |n| format!("{round}.{n} "))));
    assert_eq!(texts.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    let stderr = server.frames_of_kind("work", "greenroom/stderr");
    let order = stderr.iter().map(|frame| frame["payload"].to_string().contains("started"));
    assert_eq!(order.collect::<Vec<_>>(), [true, false].repeat(rounds));
    let mut open = None;
    for frame in &frames {
        match frame["kind"].as_str().unwrap() {
            "greenroom/turn_started" => assert_eq!(open.replace(&frame["task"]), None, "{frame}"),
            "greenroom/turn_settled" => assert_eq!(open.take(), Some(&frame["task"]), "{frame}"),
            _ => {}
        }
    }
    server.assert_compacted("work", rounds);
}
