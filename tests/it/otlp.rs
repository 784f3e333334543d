//! Ended tasks as OpenTelemetry spans: what a collector receives, and that no span is lost while
//! the collector or the server is down.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::{
    Server, Setup,
    collector::{Answer, Collector, attribute},
    eventually, millis,
    server::id,
    setup::Port,
};

const OK: Option<Answer> = None;

fn exporting(url: &str) -> Setup {
    Setup::new().text("otlp", "endpoint", url).text("otlp", "interval", "20ms")
}

fn start(collector: Collector) -> (Server, Collector) {
    let server = exporting(&collector.url()).start();
    let collector = collector.with_log(&server.log);
    (server, collector)
}

fn uuid(task: &Value) -> String {
    id(task).trim_start_matches("tsk_").replace('-', "")
}

/// Counts the spans of each task.
fn counts(spans: &[Value]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for span in spans {
        let task = attribute(span, "greenroom.task").as_str().unwrap();
        *counts.entry(task.to_owned()).or_default() += 1;
    }
    counts
}

fn lines(server: &Server, words: &str) -> usize {
    server.log.lines().iter().filter(|line| line.contains(words)).count()
}

const DOWN: &str = "the collector takes no spans";
const UP: &str = "the collector takes spans again";
const REFUSED: &str = "the collector refused a batch";

const SPANS: &str = "greenroom_otlp_spans_total";
const STALLED: &str = "greenroom_otlp_stalled";

/// Each started task is one span with the ids, the times and the counts of the task, and without
/// any text of the conversation. A task that never started has no span.
#[test]
fn each_started_task_is_one_span() {
    let collector = Collector::start();
    // A hex dump would show a long secret in rows, at least one of them completely.
    let secret = "hush-".repeat(10);
    let server = exporting(&collector.url())
        .set("otlp", "headers", format!("{{ x-key = {secret:?} }}"))
        .text("otlp", "service_name", "own")
        .environment("GREENROOM_LOG", "info,ureq=trace,ureq_proto::util=trace")
        .start();
    let collector = collector.with_log(&server.log);
    let done = server.complete("work", "canary [[reply:canary]][[tool]][[tokens:120:7]]");
    let failed = server.turn("other", "[[error:-32602:canary]]");
    let compacted = server.finish_as(&server.compact("work"), "completed");
    let gate = server.submit("work", "[[gate:never]]");
    server.journal.wait_gate("never");
    let unstarted = server.submit("work", "canary");
    server.cancel(&unstarted).expect(202);
    server.cancel(&gate).expect(202);
    let cancelled = server.finish_as(&gate, "cancelled");
    let tasks = [&done, &failed, &compacted, &cancelled];
    let spans = collector.wait_spans(&tasks);
    for (task, span) in tasks.iter().zip(&spans) {
        let task = server.task(task);
        assert_eq!(span["traceId"], uuid(&task), "{span}");
        let bytes: Vec<u8> = (0..16)
            .map(|at| u8::from_str_radix(&uuid(&task)[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        let hash = Sha256::digest(bytes);
        let first: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(span["spanId"], first, "{span}");
        for (key, at) in [("startTimeUnixNano", "started_at"), ("endTimeUnixNano", "ended_at")] {
            assert_eq!(span[key], format!("{}000000", millis(&task[at])), "{span}");
        }
        let waited = millis(&task["started_at"]) - millis(&task["created_at"]);
        assert_eq!(*attribute(span, "greenroom.queue_wait_ms"), waited.to_string());
        for key in ["group", "state", "kind", "origin", "run"] {
            assert_eq!(attribute(span, &format!("greenroom.{key}")), &task[key], "{key} of {span}");
        }
        assert_eq!(attribute(span, "gen_ai.agent.name"), "scripted");
        assert_eq!(attribute(span, "gen_ai.conversation.id"), &task["group"]);
    }
    let [done, failed, compacted, _] = spans.as_slice() else { panic!() };
    assert_eq!((&done["name"], &done["status"]), (&json!("invoke_agent scripted"), &json!({})));
    assert_eq!(attribute(done, "gen_ai.usage.input_tokens"), "120");
    assert_eq!(attribute(done, "gen_ai.usage.output_tokens"), "7");
    assert_eq!(attribute(done, "greenroom.tools.calls"), "1");
    let reasons = json!([{ "stringValue": "end_turn" }]);
    let attributes = done["attributes"].as_array().unwrap().iter();
    let mut attributes =
        attributes.filter(|attribute| attribute["key"] == "gen_ai.response.finish_reasons");
    assert_eq!(attributes.next().unwrap()["value"]["arrayValue"]["values"], reasons);
    assert_eq!(attribute(failed, "error.type"), "agent_error");
    assert_eq!(failed["status"], json!({ "code": 2, "message": "agent_error" }));
    assert_eq!(compacted["name"], "compact scripted");
    assert_eq!(attribute(compacted, "gen_ai.operation.name"), "compact");
    let all = counts(&collector.spans());
    assert!(!all.contains_key(id(&unstarted)), "{all:?}");
    for batch in collector.batches() {
        assert_eq!(batch.path, "/v1/traces");
        assert_eq!(batch.headers["content-type"], "application/json");
        assert_eq!(batch.headers["x-key"], secret);
        assert!(batch.body.contains(r#"{"key":"service.name","value":{"stringValue":"own"}}"#));
        assert!(!batch.body.contains("canary"), "{}", batch.body);
    }
    assert!(lines(&server, "ureq::run") > 0, "the log of the client is captured");
    assert_eq!(lines(&server, "hush"), 0, "a header's value in the log");
}

/// The span of a retried task is in the trace of the first task. The position of the export is
/// stored, so that a restart resumes there.
#[test]
fn a_retry_is_in_the_trace_of_the_first_task() {
    let (server, collector) = start(Collector::start());
    let first = server.turn("work", "[[error:-32602:no]]");
    let second = server.finish(&server.retry(&first).expect(202));
    let third = server.finish(&server.retry(&second).expect(202));
    let spans = collector.wait_spans(&[&first, &second, &third]);
    let ids: Vec<&Value> = spans.iter().map(|span| &span["spanId"]).collect();
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2], "{ids:?}");
    for span in &spans {
        assert_eq!(span["traceId"], uuid(&first), "{span}");
    }
    assert_eq!(attribute(&spans[2], "greenroom.retry_of"), &second["id"]);
    let ended_at = millis(&server.task(&third)["ended_at"]);
    eventually("the position to be that task's", &server.log, || {
        let position = "SELECT ended_at FROM exports WHERE name = 'otlp'";
        let position: i64 = server.database().query_row(position, [], |row| row.get(0)).unwrap();
        (position == ended_at).then_some(())
    });
    assert_eq!(counts(&collector.spans())[id(&third)], 1);
}

/// Groups work while the collector is down; later it receives every span once. The log has one line
/// for the beginning and one for the end of the outage.
#[test]
fn a_collector_that_was_down_gets_every_span_later() {
    let port = Port::take();
    let server = exporting(&format!("http://{}", port.address())).start();
    let mut tasks = vec![server.complete("work", "x")];
    server.log.wait("a line that the collector is down", |line| {
        line.contains(DOWN) && line.contains("WARN")
    });
    server.wait_metric(STALLED, &[], 1.0);
    tasks.extend((0..3).map(|number| server.complete(&format!("g{}", number % 3), "x")));
    let failures = [
        Answer::HangUp,
        Answer::Status(503, "Retry-After: 0\r\n", "{}"),
        Answer::Status(429, "", "{}"),
    ];
    let collector = Collector::listen(TcpListener::bind(port.address()).unwrap(), &failures)
        .with_log(&server.log);
    collector.wait_spans(&tasks.iter().collect::<Vec<_>>());
    server
        .log
        .wait("a line that the collector is up", |line| line.contains(UP) && line.contains("INFO"));
    let last = server.complete("work", "y");
    collector.wait_spans(&[&last]);
    let scrape = server.wait_metric(SPANS, &[("result", "sent")], 5.0);
    assert_eq!((scrape.value(STALLED, &[]), scrape.sum(SPANS)), (0.0, 5.0));
    let counts = counts(&collector.spans());
    assert!(counts.len() == 5 && counts.values().all(|count| *count == 1), "{counts:?}");
    let batches = collector.batches();
    assert!(batches.len() > 3 && batches.iter().take(3).all(|batch| !batch.taken));
    assert_eq!((lines(&server, DOWN), lines(&server, UP), lines(&server, REFUSED)), (1, 1, 0));
}

/// The server is killed with unsent spans and a running turn: no span is lost.
#[test]
fn a_killed_server_loses_no_span() {
    let collector = Collector::start();
    collector.always(Some(Answer::Status(503, "", "{}")));
    let (mut server, collector) = start(collector);
    let first = server.complete("work", "x");
    collector.wait_batches(1);
    let second = server.complete("other", "y");
    let running = server.submit("work", "[[reply:x]][[gate:never]]");
    server.journal.wait_gate("never");
    server.kill();
    collector.always(OK);
    server.boot();
    let interrupted = server.finish_as(&running, "interrupted");
    let spans = collector.wait_spans(&[&first, &second, &interrupted]);
    assert_eq!(attribute(&spans[2], "error.type"), "server_restarted", "{}", spans[2]);
    server.kill_and_boot();
    let last = server.complete("work", "z");
    let again = collector.wait_spans(&[&first, &second, &interrupted, &last]);
    // By now a span may have been sent twice: both are the same.
    assert_eq!(again[..3], spans[..]);
    for span in collector.spans() {
        let same = again.iter().find(|other| other["spanId"] == span["spanId"]);
        assert_eq!(same, Some(&span));
    }
}

/// A batch that the collector refuses is dropped, the collector's message is logged, and later
/// batches are not delayed; the same holds for a persistent error of the collector.
#[test]
fn a_refused_batch_is_dropped_and_logged() {
    let collector = Collector::start();
    collector.answer(&[Answer::Status(400, "", r#"{"message":"no\nsuch \u001b[31mspan"}"#)]);
    let (server, collector) = start(collector);
    let refused = server.complete("work", "x");
    let line = server.log.wait("the refusal", |line| line.contains(REFUSED));
    assert!(line.contains("ERROR") && line.contains("status=400 spans=1"), "{line}");
    assert!(line.contains(r#"said="no such \u{1b}[31mspan""#), "{line}");

    collector.always(Some(Answer::Status(500, "", "broken")));
    let broken = server.complete("work", "x");
    server.log.wait("a line that the batch is dropped", |line| {
        line.contains("status=500 spans=1 refused=2")
    });
    collector.always(OK);

    let partial =
        r#"{"partialSuccess":{"rejectedSpans":"18446744073709551615","errorMessage":"too odd"}}"#;
    collector.answer(&[Answer::Status(200, "", partial)]);
    let rejected = server.complete("work", "x");
    server.log.wait("the rejection", |line| {
        line.contains("ERROR") && line.contains("rejected=1") && line.contains("too odd")
    });
    let taken = server.complete("work", "x");
    collector.wait_spans(&[&rejected, &taken]);
    let counts = counts(&collector.spans());
    assert!(!counts.contains_key(id(&refused)) && !counts.contains_key(id(&broken)), "{counts:?}");
    assert_eq!(counts[id(&rejected)], 1, "a rejected span is not sent again");
    assert_eq!(lines(&server, REFUSED), 2, "one line per batch");
    let scrape = server.wait_metric(SPANS, &[("result", "sent")], 1.0);
    let of = |result| scrape.value(SPANS, &[("result", result)]);
    assert_eq!((of("refused"), of("rejected")), (2.0, 1.0));
    let tries = collector.batches().iter().filter(|batch| batch.body.contains(id(&broken))).count();
    assert_eq!(tries, 5);
}

/// Without an endpoint nothing is sent or stored. The first start with an endpoint exports only
/// tasks that end later; later starts resume at the stored position, however the server ended, also
/// if that position is in the future.
#[test]
fn export_begins_at_the_first_configured_start_and_resumes() {
    let collector = Collector::start();
    let mut server = Setup::new().text("otlp", "interval", "20ms").start();
    let history = server.complete("work", "x");
    let count_positions = |server: &Server| -> i64 {
        server.database().query_row("SELECT count(*) FROM exports", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(count_positions(&server), 0);
    let threads = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let name = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("comm")).unwrap();
    let names: Vec<String> = threads.map(|thread| name(thread.unwrap())).collect();
    assert!(!names.iter().any(|name| name.trim() == "otlp"), "{names:?}");
    server.kill();
    let off = fs::read_to_string(server.home.config()).unwrap();
    let on = off.replace("[otlp]", &format!("[otlp]\nendpoint = {:?}", collector.url()));
    server.home.write_config(&on);
    server.boot();
    let first = server.complete("work", "x");
    collector.wait_spans(&[&first]);
    assert_eq!(counts(&collector.spans()).get(id(&history)), None);
    assert_eq!(count_positions(&server), 1);

    server.kill();
    server.home.write_config(&off);
    server.boot();
    let between = server.complete("work", "x");
    server.kill();
    server.home.write_config(&on);
    server.boot();
    collector.wait_spans(&[&between]);

    server.kill();
    let ahead = "UPDATE exports SET ended_at = ended_at + 3600000";
    assert_eq!(server.writable_database().execute(ahead, []).unwrap(), 1);
    server.boot();
    server
        .log
        .wait("a line that the clock was set back", |line| line.contains("clock was set back"));
    let last = server.complete("work", "x");
    collector.wait_spans(&[&last]);
}

/// `backfill`: the first start also sends earlier tasks. Batches are bounded. A turn becomes
/// readable only after a page was sent, and it ended before the last turn of that page: it is
/// sent, although the collector fails at the next page.
#[test]
fn a_collector_that_fails_between_two_pages_misses_no_span() {
    let collector = Collector::start();
    let mut server = Server::usual();
    let tasks: Vec<Value> =
        (0..300).map(|number| server.submit(&format!("g{}", number % 4), "x")).collect();
    tasks.iter().for_each(|task| _ = server.finish_as(task, "completed"));
    server.kill();
    let database = server.writable_database();
    let mut ends =
        database.prepare("SELECT key, ended_at FROM turns ORDER BY ended_at, key").unwrap();
    let ends = ends.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let ends: Vec<(i64, i64)> = ends.map(Result::unwrap).collect();
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis());
    // One turn is late: until it can be read, it counts as the last one.
    let (base, late) = (now.unwrap() + 1_000, 200);
    let set_end = |rank: usize, ms: i64| {
        let set = "UPDATE turns SET ended_at = ? WHERE key = ?";
        assert_eq!(database.execute(set, [ms, ends[rank].0]).unwrap(), 1);
    };
    database.execute_batch("BEGIN").unwrap();
    (0..ends.len()).for_each(|rank| set_end(rank, base + rank as i64));
    set_end(late, base + 3_600_000);
    database.execute_batch("COMMIT").unwrap();
    let before = fs::read_to_string(server.home.config()).unwrap();
    let section = format!("[otlp]\nendpoint = {:?}\ninterval = \"20ms\"", collector.url());
    server.home.write_config(&format!("{before}\n{section}\nbackfill = true\n"));
    // Longer than the time in which late turns are searched.
    let fails = Answer::Status(503, "Retry-After: 9\r\n", "{}");
    collector.answer(&[Answer::Status(200, "", "{}"), fails]);
    server.boot();
    let collector = collector.with_log(&server.log);
    let arrived = collector.wait_batches(2);
    assert_eq!((arrived[0].taken, arrived[1].taken), (true, false));
    set_end(late, base + late as i64);
    collector.wait_spans(&tasks.iter().collect::<Vec<_>>());
    let counts = counts(&collector.spans());
    assert!(counts.len() == 300 && counts.values().all(|count| *count == 1), "{counts:?}");
    let largest = collector.batches().iter().map(|batch| batch.spans.len()).max();
    assert!(largest <= Some(256), "{largest:?}");
    // `verify` compares the rows when the test ends.
    (0..ends.len()).for_each(|rank| set_end(rank, ends[rank].1));
}

/// A collector that never answers delays neither a turn nor an orderly end, and no span is lost. An
/// orderly end sends the remaining spans immediately.
#[test]
fn a_silent_collector_delays_nothing() {
    let collector = Collector::start();
    collector.always(Some(Answer::Silence));
    let mut server = exporting(&collector.url()).text("otlp", "timeout", "1h").start();
    let collector = collector.with_log(&server.log);
    let first = server.complete("work", "x");
    collector.wait_batches(1);
    let second = server.complete("work", "x");
    server.terminate();
    assert!(server.wait_exit().success());
    server
        .log
        .wait("a line that spans are postponed", |line| line.contains("after the next start"));
    collector.always(OK);
    let hourly = fs::read_to_string(server.home.config()).unwrap().replace("20ms", "1h");
    server.home.write_config(&hourly);
    server.boot();
    let last = server.complete("work", "x");
    server.terminate();
    assert!(server.wait_exit().success());
    collector.wait_spans(&[&first, &second, &last]);
}
