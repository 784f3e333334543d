//! Secret values of the configuration: what is stored and shown of an agent that prints them.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::support::{Server, Setup, collector::Collector, server::run};

/// The values of a profile's own variable, of one that it passes on, and of a header.
const OWN: &str = "canary\"own/1";
const PASSED: &str = "canary-passed+2";
const HEADER: &str = "canary-header-3";
/// Not secret: its name says nothing, and the other one is short.
const HOME: &str = "/srv/plain-home";
const SHORT: &str = "short-7";

const ENV: &str = "{ SCRIPT_DIR = \"$SCRIPT_DIR\", IT_API_KEY = 'canary\"own/1', \
                   IT_SHORT_KEY = 'short-7', IT_HOME = '/srv/plain-home', \
                   IT_COLLECTOR = 'canary-header-3' }";

/// The scripted agent, and one that prints all secrets and exits, both with the same variables.
fn leaky(collector: &Collector) -> Setup {
    let words = "echo \"last words $IT_API_KEY $IT_PASSED_TOKEN $IT_COLLECTOR $IT_HOME \
                 $IT_SHORT_KEY\" >&2; exit 3";
    Setup::new()
        .signals(&["hermes_stderr"])
        .text("otlp", "endpoint", &collector.url())
        .text("otlp", "interval", "20ms")
        .set("otlp", "headers", format_args!("{{ authorization = 'Bearer {HEADER}' }}"))
        .set("agents.scripted", "env", ENV)
        .set("agents.scripted", "env_pass", "['IT_PASSED_TOKEN']")
        .command("exits", "/bin/sh")
        .set("agents.exits", "args", format_args!("{:?}", ["-c", words]))
        .set("agents.exits", "env", ENV)
        .set("agents.exits", "env_pass", "['IT_PASSED_TOKEN']")
        .environment("IT_PASSED_TOKEN", PASSED)
        .environment("GREENROOM_LOG", "trace")
}

/// Checks that a text has no secret, in no form in which a program may print it.
#[track_caller]
fn assert_clean(what: &str, text: &str) {
    for secret in [OWN, PASSED, HEADER] {
        let json = json!(secret).to_string();
        let encoded = STANDARD.encode(secret);
        // An answer is JSON in JSON at most.
        let twice = json!(json.trim_matches('"')).to_string();
        for form in
            [secret, json.trim_matches('"'), twice.trim_matches('"'), encoded.trim_matches('=')]
        {
            assert!(!text.contains(form), "{form} in {what}: {text}");
        }
    }
}

fn message(task: &Value) -> &str {
    task["error"]["message"].as_str().unwrap()
}

/// C16: secret values are redacted in the errors of tasks and of compactions, in the records of
/// runs, in the log, in metrics, in spans and in frames of stderr. Messages of the agent are stored
/// as they are.
#[test]
fn secret_values_are_redacted_in_all_but_the_agents_messages() {
    let collector = Collector::start();
    let server = leaky(&collector).start();
    let collector = collector.with_log(&server.log);

    let failed =
        server.turn("error", "[[error:-32602:no ${IT_API_KEY}, ${IT_HOME} ${IT_SHORT_KEY}]]");
    let expected = format!("no [redacted:IT_API_KEY], {HOME} {SHORT}");
    assert!(message(&failed).contains(&expected), "{failed}");
    let answer = r#"{"id":$id,"error":{"code":-32602,"message":"x","data":"${IT_PASSED_TOKEN}"}}"#;
    let failed = server.turn("data", &format!("[[answer-line:{answer}]]"));
    assert!(message(&failed).contains("x: [redacted:IT_PASSED_TOKEN]"), "{failed}");

    let aborted = "Compression aborted: ${IT_PASSED_TOKEN}. No messages were dropped";
    let noise = "[[stderr-line:my ${IT_API_KEY}]]";
    let spent = "[[model:${IT_API_KEY}:1:2]]";
    server.complete("stderr", &format!("[[stderr-line:{aborted}]]{noise}{spent}"));
    server.wait_stderr_frames("stderr", 1);
    let frame = &server.frames_of_kind("stderr", "greenroom/stderr")[0];
    assert!(frame.to_string().contains("aborted: [redacted:IT_PASSED_TOKEN]."), "{frame}");

    server.complete("compaction", "first");
    let focus = "[[compaction:failed:c:no ${IT_API_KEY}]][[silent]]";
    let compaction = server.finish_as(&server.compact_with("compaction", focus), "failed");
    assert!(compaction.to_string().contains("no [redacted:IT_API_KEY]"), "{compaction}");

    server.put("/v1/groups/exits", &json!({ "agent": "exits" })).expect(201);
    let unstarted = server.turn("exits", "x");
    let last_words = format!(
        "last words [redacted:IT_API_KEY] [redacted:IT_PASSED_TOKEN] [redacted:authorization] \
         {HOME} {SHORT}"
    );
    assert!(message(&unstarted).contains(&last_words), "{unstarted}");
    assert_eq!(server.list("exits", "runs")[0]["stderr_tail"], last_words);

    let spans = collector.wait_spans(&[&server.list("stderr", "tasks")[0]]);
    assert!(spans[0].to_string().contains("[redacted:IT_API_KEY]"), "{}", spans[0]);
    let logged = server.log.lines().join("\n");
    assert!(logged.contains("line=\"my [redacted:IT_API_KEY]\""), "{logged}");
    assert_clean("the log", &logged);
    assert_clean("/metrics", &server.get("/metrics").text());
    for batch in collector.batches() {
        assert_clean("a batch of spans", &batch.body);
        assert_eq!(batch.headers["authorization"], format!("Bearer {HEADER}"));
    }
    for group in ["error", "data", "stderr", "compaction", "exits"] {
        for what in ["tasks", "runs", "compactions"] {
            let items = server.list(group, what);
            items.iter().for_each(|item| assert_clean(what, &item.to_string()));
        }
        for frame in server.frames(group) {
            let kind = frame["kind"].as_str().unwrap();
            // The answer to a prompt is a message of the agent's.
            if kind.starts_with("greenroom/") && kind != "greenroom/prompt_answered" {
                assert_clean(group, &frame.to_string());
            }
        }
    }
    let stored = Value::from(server.frames("error")).to_string();
    assert!(stored.contains(json!(OWN).to_string().trim_matches('"')), "{stored}");
    commands_are_clean(&server);
}

/// What `agents check` prints has no secret, and says the same.
fn commands_are_clean(server: &Server) {
    for arguments in [&["agents", "check", "exits"][..], &["agents", "check", "exits", "--json"]] {
        let (code, printed) = run(&server.home, arguments);
        assert_clean("agents check", &printed);
        assert!(code == 1 && printed.contains("[redacted:IT_PASSED_TOKEN]"), "{code}: {printed}");
    }
    assert_clean("check-config", &run(&server.home, &["check-config", "--json"]).1);
}
