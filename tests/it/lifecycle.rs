//! Compactions that an agent does by itself in a turn: one record each, whichever detectors report
//! it and in whichever order, and an active state that always ends.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, hermes, process};

/// Both detectors of hermes, in addition to ACP's.
const ALL: &[&str] = &["hermes_meta", "hermes_stderr"];

const ACP_STARTED: &str = "[[compaction:in_progress:c1]]";
const ACP_DONE: &str = "[[compaction:completed:c1]]";

/// hermes continues as session `h2`, after `h1`.
const META: &str = "[[provenance:h2:h1]]";

/// Starts a server with all detectors, and a group whose hermes session is known as `h1`.
fn server_of_h1() -> Server {
    let server = Setup::new().signals(ALL).start();
    server.complete("work", "[[provenance:h1]][[reply:x]]");
    server
}

#[track_caller]
fn sources(compaction: &Value) -> Vec<String> {
    let sources = compaction["sources"].as_array().unwrap_or_else(|| panic!("{compaction}"));
    let mut sources: Vec<String> =
        sources.iter().map(|source| source.as_str().unwrap().to_owned()).collect();
    sources.sort_unstable();
    sources
}

/// Waits until a compaction is active, and returns the group's compaction state.
#[track_caller]
fn wait_active(server: &Server) -> Value {
    let group = server
        .wait_group("work", "an active compaction", |group| group["compaction"]["active"] == true);
    group["compaction"].clone()
}

/// Checks that no compaction is active, and the count of compactions.
#[track_caller]
fn assert_inactive(server: &Server, count: u64) {
    let state = server.group("work")["compaction"].clone();
    assert_eq!(state["active"], false, "{state}\n{}", server.log.tail());
    assert_eq!(state["count"], count, "{state}");
}

/// RA: agents send `compaction_update` only to a client that advertises it.
#[test]
fn the_compaction_capability_is_advertised() {
    let server = Server::usual();
    server.complete("work", "x");
    let params = &server.journal.events_named("initialize")[0]["params"];
    assert_eq!(params["clientCapabilities"]["session"]["compaction"], json!({}), "{params}");
}

/// AM-20: detectors that the profile does not enable change nothing, not even on an exact match.
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
}

/// AM-21, AM-22, AM-23: each detector alone creates one compaction, counted once and rotating once.
#[test]
fn each_detector_alone_counts_one_compaction() {
    let (started, done) = (hermes::started("h1"), hermes::done("h1"));
    let old_form = "[[old-provenance:h2:session_split]]";
    let qwen = ["[[compression:progress]]", "[[compression:done:23375:18451]]"];
    let tool = ["[[compact-tool:in_progress:t1]]", "[[compact-tool:completed:t1]]"];
    #[rustfmt::skip]
    let cases: [(&str, Vec<&str>, &str); 8] = [
        ("update",              vec![ACP_STARTED, ACP_DONE], "acp"),
        ("update, done only",   vec![ACP_DONE],              "acp"),
        ("tool call",           tool.to_vec(),               "acp"),
        ("chunks",              qwen.to_vec(),               "acp"),
        ("meta",                vec![META],                  "hermes_meta"),
        ("meta of old",         vec![old_form],              "hermes_meta"),
        ("stderr",              vec![&started, &done],       "hermes_stderr"),
        ("stderr, done only",   vec![&done],                 "hermes_stderr"),
    ];
    for (name, steps, source) in cases {
        let server = server_of_h1();
        let task = server.play("work", &steps);
        assert_eq!(task["state"], "completed", "{name}: {task}");
        let compaction = server.only_compaction("work");
        assert_eq!(compaction["status"], "completed", "{name}: {compaction}");
        assert_eq!(compaction["source"], source, "{name}: {compaction}");
        assert_eq!(sources(&compaction), [source], "{name}: {compaction}");
        assert_eq!(compaction["from_segment"], 1, "{name}: {compaction}");
        assert_eq!(compaction["to_segment"], 2, "{name}: {compaction}");
        let state = server.group("work")["compaction"].clone();
        assert_eq!(state["last_source"], source, "{name}: {state}");
        assert!(state["last_completed_at"].is_string(), "{name}: {state}");
        server.assert_compacted("work", 1);
        assert_inactive(&server, 1);
        server.complete("work", "next");
    }
}

/// AM-21, AM-22, AM-31: a start makes a compaction active without counting it; the end counts it,
/// and the record has the figures of both.
#[test]
fn a_compaction_counts_at_its_end() {
    let server = server_of_h1();
    assert_eq!(server.group("work")["compaction"], json!(null), "no signal yet");
    let (started, done) = (hermes::started("h1"), hermes::done("h1"));
    let task = server.submit("work", &format!("{started}[[gate:a]]{done}[[gate:b]][[reply:x]]"));
    let state = wait_active(&server);
    assert_eq!((&state["count"], &state["last_source"]), (&json!(0), &json!("hermes_stderr")));
    assert!(state["last_started_at"].is_string(), "{state}");
    assert_eq!(state["last_completed_at"], json!(null), "{state}");
    assert_eq!(server.only_compaction("work")["status"], "in_progress");
    server.journal.open_gate("a");
    server.wait_group("work", "its end", |group| group["compaction"]["count"] == 1);
    assert_inactive(&server, 1);
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
}

/// AM-29: two or three detectors of one compaction, in every order that pipes can produce, give one
/// record with all sources, one count, one rotation.
#[test]
fn several_detectors_give_one_compaction() {
    let (started, done) = (hermes::started("h1"), hermes::done("h1"));
    let (begun, over) = (started.as_str(), done.as_str());
    let done_as_new = hermes::done("h2");
    let cases: [&[&str]; 16] = [
        &[begun, over, META],
        &[begun, META, over],
        &[over, META],
        &[META, over],
        &[META, begun, over],
        &[begun, &done_as_new, META],
        &[begun, META, &done_as_new],
        &[ACP_STARTED, ACP_DONE, META],
        &[ACP_STARTED, META, ACP_DONE],
        &[begun, ACP_STARTED, over, ACP_DONE],
        &[ACP_STARTED, begun, ACP_DONE, over],
        &[ACP_STARTED, ACP_DONE, begun, over],
        &[begun, over, ACP_STARTED, ACP_DONE],
        &[begun, ACP_STARTED, over, ACP_DONE, META],
        &[ACP_STARTED, begun, META, ACP_DONE, over],
        &[begun, META, over, ACP_STARTED, ACP_DONE],
    ];
    let server = Setup::new().signals(ALL).start();
    for (number, steps) in cases.into_iter().enumerate() {
        let group = format!("g{number}");
        server.complete(&group, "[[provenance:h1]][[reply:x]]");
        let task = server.play(&group, steps);
        assert_eq!(task["state"], "completed", "{steps:?}: {task}");
        let compaction = server.only_compaction(&group);
        assert_eq!(compaction["status"], "completed", "{steps:?}: {compaction}");
        let has = |marker: &str| steps.iter().any(|step| step.contains(marker));
        let mut expected = Vec::new();
        for (marker, source) in [
            ("compaction:", "acp"),
            ("provenance:", "hermes_meta"),
            ("stderr-line:", "hermes_stderr"),
        ] {
            if has(marker) {
                expected.push(source);
            }
        }
        assert_eq!(sources(&compaction), expected, "{steps:?}: {compaction}");
        server.assert_compacted(&group, 1);
        assert_eq!(server.segments(&group).len(), 2, "{steps:?}");
        server.complete(&group, "next");
        server.assert_compacted(&group, 1);
    }
}

/// AM-29: signals of detectors during an ordered compaction are merged into it, also if stderr is
/// read only after the answer.
#[test]
fn signals_are_merged_into_an_ordered_compaction() {
    let server = server_of_h1();
    for round in 1..=5 {
        let (started, done) = (hermes::started("h1"), hermes::done("h1"));
        let before = server.frames_of_kind("work", "greenroom/stderr").len();
        let task = server.compact_with("work", &format!("{started}{done}"));
        server.finish_as(&task, "completed");
        server.wait_stderr_frames("work", before + 2);
        server.assert_compacted("work", round);
        let compaction = server.compaction_of(&task);
        assert_eq!(sources(&compaction), ["hermes_stderr", "task"], "{compaction}");
        server.complete("work", "next");
        server.assert_compacted("work", round);
    }
}

/// AM-29, RA: a signal after the turn's end is merged into the same compaction.
#[test]
fn a_late_signal_is_merged() {
    let server = server_of_h1();
    let (started, done) = (hermes::started("h1"), hermes::done("h1"));
    let prompt = format!("{started}{done}[[gate:a]][[reply:x]][[answer]][[gate:late]]{META}");
    let task = server.submit("work", &prompt);
    server.wait_stderr_frames("work", 2);
    server.journal.open_gate("a");
    server.finish_as(&task, "completed");
    server.assert_compacted("work", 1);
    server.journal.open_gate("late");
    eventually("the late source", &server.log, || {
        (sources(&server.only_compaction("work")).len() == 2).then_some(())
    });
    server.complete("work", "next");
    server.assert_compacted("work", 1);
}

/// AM-23: several compactions in one turn, and in several turns, count once each.
#[test]
fn several_compactions_count_once_each() {
    let server = server_of_h1();
    let (started, done) = (hermes::started("h1"), hermes::done("h1"));
    server.play("work", &[&started, &done, &started, &done]);
    server.assert_compacted("work", 2);
    server.play("work", &[&started, &done]);
    server.assert_compacted("work", 3);
    let acp = |id: &str, status: &str| format!("[[compaction:{status}:{id}]]");
    let steps = ["a", "b"].map(|id| [acp(id, "in_progress"), acp(id, "completed")]);
    let steps: Vec<&str> = steps.iter().flatten().map(String::as_str).collect();
    server.play("other", &steps);
    server.assert_compacted("other", 2);
}

/// once a run has shown a more trusted detector, a less trusted one alone starts
/// nothing and counts nothing.
#[test]
fn a_less_trusted_detector_alone_counts_nothing() {
    let server = server_of_h1();
    server.play("work", &[ACP_STARTED, ACP_DONE]);
    server.play("work", &[&hermes::started("h1"), &hermes::done("h1")]);
    server.assert_compacted("work", 1);
    assert_inactive(&server, 1);
}

/// AM-23, RA: a second `completed` with the same id counts nothing and removes nothing
/// from the record, also in a later turn.
#[test]
fn a_repeated_completed_counts_once() {
    let server = Server::usual();
    let with_summary = "[[compaction:completed:c1:what was said]]";
    server.play("work", &[ACP_STARTED, with_summary, ACP_DONE]);
    server.assert_compacted("work", 1);
    assert_eq!(server.only_compaction("work")["summary"], "what was said");
    server.play("work", &[ACP_DONE]);
    server.assert_compacted("work", 1);
}

/// summary chunks alone create a compaction, and are joined to its summary.
#[test]
fn summary_chunks_are_joined() {
    let server = Server::usual();
    let chunks = ["[[summary-chunk:c1:what was]]", "[[summary-chunk:c1: said]]"];
    server.play("work", &[chunks[0], chunks[1], ACP_DONE]);
    server.assert_compacted("work", 1);
    assert_eq!(server.only_compaction("work")["summary"], "what was said");
}

/// AM-23: a new hermes session counts as a compaction only if the reason is compression.
#[test]
fn a_new_session_for_another_reason_does_not_count() {
    for word in ["[[provenance:h2:h1:branch]]", "[[provenance:h2]]", "[[old-provenance:h2:reset]]"]
    {
        let server = server_of_h1();
        server.play("work", &[word]);
        server.assert_compacted("work", 0);
        assert!(server.compactions("work").is_empty(), "{word}");
    }
}

/// RA, AM-23: the outcomes of a compression by hermes are distinct; only `done` counts,
/// also with a fallback marker.
#[test]
fn outcomes_of_hermes_are_distinct() {
    let (started, done) = (hermes::started("h1"), hermes::done("h1"));
    let (fallback, aborted) = (hermes::fallback(), hermes::aborted());
    let (no_progress, skipped) = (hermes::no_progress("h1"), hermes::skipped("h1"));
    let rotated = hermes::already_rotated("h1");
    let server = Setup::new().signals(ALL).start();
    for (number, (steps, status, count)) in [
        (vec![&started, &aborted], "failed", 0),
        (vec![&started, &no_progress], "noop", 0),
        (vec![&started, &skipped], "skipped", 0),
        (vec![&started, &rotated], "skipped", 0),
        (vec![&started, &fallback, &done], "completed", 1),
    ]
    .into_iter()
    .enumerate()
    {
        let group = format!("g{number}");
        let steps: Vec<&str> = steps.into_iter().map(String::as_str).collect();
        server.play(&group, &steps);
        let compaction = server.only_compaction(&group);
        assert_eq!(compaction["status"], status, "{steps:?}: {compaction}");
        server.assert_compacted(&group, count);
        assert_eq!(server.group(&group)["compaction"]["active"], false, "{steps:?}");
    }
}

/// RA: `started` repeats, four in one turn, each skipped: none counts or stays active.
#[test]
fn repeated_starts_count_nothing() {
    let server = server_of_h1();
    let (started, rotated) = (hermes::started("h1"), hermes::already_rotated("h1"));
    server.play("work", &[started.as_str(), rotated.as_str()].repeat(4));
    server.assert_compacted("work", 0);
    assert_inactive(&server, 0);
    assert!(server.compactions("work").iter().all(|compaction| compaction["status"] == "skipped"));
    server.play("work", &[&started, &started, &started, &hermes::done("h1")]);
    server.assert_compacted("work", 1);
    assert_inactive(&server, 1);
}

/// AM-24: any prefix, both arrows, missing and unknown fields are tolerated; merely similar lines
/// change nothing.
#[test]
fn lines_of_hermes_are_parsed_with_tolerance() {
    let server = Setup::new().signals(&["hermes_stderr"]).start();
    for (number, text) in [
        "context compression done: session=h1 messages=9->5 tokens=~72,908",
        "[2026-01-01T00:00:00Z WARN x] context compression done: session=h1 messages=9→5",
        "agent.conversation_compression: context compression done: session=h1",
        "x: context compression done: session=h1 messages=9->5 more=1 focus=None tokens=~1",
    ]
    .into_iter()
    .enumerate()
    {
        let group = format!("g{number}");
        server.play(&group, &[&hermes::line(text)]);
        server.assert_compacted(&group, 1);
    }
    let noise = [
        "Compacting context — summarizing earlier conversation so I can continue...",
        "agent.auxiliary_client: Auxiliary compression: using auto (fake-model)",
        "Session compressed 3 times",
        "context compression is a fine thing",
    ];
    let noise: String = noise.into_iter().map(hermes::line).collect();
    server.play("noise", &[&format!("{noise}{}", hermes::started("h1"))]);
    let compaction = server.only_compaction("noise");
    assert_eq!(compaction["status"], "abandoned", "no signal ended it: {compaction}");
    server.assert_compacted("noise", 0);
}

/// AM-25, I5: settlement ends an active compaction: its `abandoned` frame precedes `turn_settled`;
/// count and history are unchanged.
#[test]
fn settlement_abandons_an_active_compaction() {
    for (end, state) in [("[[reply:x]]", "completed"), ("[[error:-32602:no]]", "failed")] {
        let server = Server::usual();
        server.play("work", &[ACP_STARTED, ACP_DONE]);
        let before = server.group("work")["compaction"].clone();
        let task = server.turn("work", &format!("[[compaction:in_progress:c2]]{end}"));
        assert_eq!(task["state"], state);
        let all = server.compactions("work");
        assert_eq!(
            (&all[0]["status"], &all[1]["status"]),
            (&json!("abandoned"), &json!("completed"))
        );
        assert!(all[0]["ended_at"].is_string(), "{all:?}");
        let state = server.group("work")["compaction"].clone();
        assert_eq!(state["active"], false);
        assert_eq!(state["last_completed_at"], before["last_completed_at"]);
        server.assert_compacted("work", 1);
        let id = task["id"].as_str().unwrap();
        let frames = server.frames_where("work", &format!("&task={id}"));
        let place = |kind: &str| frames.iter().position(|frame| frame["kind"] == kind).unwrap();
        let (ended, settled) =
            (place("greenroom/compaction_ended"), place("greenroom/turn_settled"));
        assert!(ended < settled, "{frames:?}");
        assert_eq!(frames[ended]["payload"]["status"], "abandoned", "{frames:?}");
    }
}

/// AM-23, A-5: a `done` after the compaction was abandoned still counts and rotates,
/// once.
#[test]
fn a_late_done_counts_once() {
    let (started, done) = (hermes::started("h1"), hermes::done("h1"));
    let acp_twice = [ACP_DONE, ACP_DONE].concat();
    for (begun, over) in [(ACP_STARTED, &acp_twice), (started.as_str(), &done)] {
        let server = server_of_h1();
        let prompt = format!("{begun}[[gate:a]][[answer]][[gate:late]]{over}[[reply:after]]");
        let task = server.submit("work", &prompt);
        wait_active(&server);
        server.journal.open_gate("a");
        server.finish_as(&task, "completed");
        assert_eq!(server.only_compaction("work")["status"], "abandoned");
        assert_inactive(&server, 0);
        server.journal.open_gate("late");
        server.wait_group("work", "the late compaction", |group| group["compaction"]["count"] == 1);
        server.wait_frame("work", "the update after it", |frame| {
            frame["payload"]["params"]["update"]["content"]["text"] == "after"
        });
        assert_eq!(server.only_compaction("work")["status"], "completed");
        server.complete("work", "next");
        server.assert_compacted("work", 1);
        assert_inactive(&server, 1);
    }
}

/// AM-27, AM-28, I5: a compaction that is active when the agent dies or the server ends, or when
/// its turn settles before a restart, is not active afterwards, and is not counted.
#[test]
fn deaths_and_restarts_abandon_an_active_compaction() {
    #[derive(Debug, PartialEq)]
    enum End {
        Settled,
        AgentKilled,
        ServerKilled,
        ServerTerminated,
    }
    use End::{AgentKilled, ServerKilled, ServerTerminated, Settled};
    let started = hermes::started("h1");
    for begun in [ACP_STARTED, started.as_str()] {
        for end in [Settled, AgentKilled, ServerKilled, ServerTerminated] {
            let setup = Setup::new().signals(ALL).text("server", "drain_timeout", "100ms");
            let mut server = setup.start();
            let task = server.submit("work", &format!("{begun}[[gate:go]]"));
            wait_active(&server);
            match end {
                Settled => server.journal.open_gate("go"),
                AgentKilled => process::signal(server.journal.agent_pid(), Signal::KILL),
                ServerKilled => server.kill_and_boot(),
                ServerTerminated => {
                    server.terminate();
                    server.wait_exit();
                    server.boot();
                }
            }
            server.finish(&task);
            assert_inactive(&server, 0);
            let compaction = server.only_compaction("work");
            assert_eq!(compaction["status"], "abandoned", "{end:?}: {compaction}");
            server.kill_and_boot();
            assert_inactive(&server, 0);
            assert_eq!(server.only_compaction("work"), compaction, "{end:?}");
            server.journal.open_gate("go");
            server.complete("work", "next");
            assert_inactive(&server, 0);
            server.assert_compacted("work", 0);
        }
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
    assert_inactive(&server, 0);
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
    let rounds = 12;
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
