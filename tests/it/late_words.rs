//! What an agent writes after the answer to its prompt.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{Setup, millis};

/// AM-9, I7, I13: a chunk after the answer is in the frames and the text of its own turn, also if
/// the next one runs: not in that one's text, and no output that forbids its retry.
#[test]
fn late_words_belong_to_their_own_turn() {
    let server = Setup::new().retries("10ms").unset("defaults", "retry").start();
    let says = |text: &'static str| {
        move |frame: &Value| frame["payload"]["params"]["update"]["content"]["text"] == text
    };
    let words = "[[message:m1:head ]][[answer]][[gate:tail]][[message:m1:tail]]\
                 [[gate:more]][[message:m1:, more]]";
    let first = server.submit("work", words);
    let ended = server.finish_as(&first, "completed");
    assert_eq!(ended["text"], "head ");
    server.journal.open_gate("tail");
    let tail = server.wait_frame("work", "the tail", says("tail"));
    assert_eq!(tail["task"], first["id"]);
    let task = server.task(&first);
    assert_eq!(task["text"], "head tail");
    let unchanged = |task: &Value| json!([task["state"], task["stop_reason"], task["ended_at"]]);
    assert_eq!(unchanged(&task), unchanged(&ended), "I9");

    let prompt = "[[gate:go]][[times:1:error:-32603:overloaded]][[message:m2:fine]]";
    let second = server.submit("work", prompt);
    server.journal.wait_gate("go");
    server.journal.open_gate("more");
    let more = server.wait_frame("work", "more of it", says(", more"));
    assert_eq!(more["task"], first["id"]);
    server.journal.open_gate("go");
    let ended = server.finish_as(&second, "completed");
    assert_eq!(ended["text"], "fine");
    server.assert_attempts(&second, 2);
    assert_eq!(server.task(&first)["text"], "head tail, more");
}

/// I7, AM-9, I13: an agent that writes after its error may have acted: within the backoff that ends
/// the task, and its prompt is not sent again.
#[test]
fn output_after_an_error_ends_the_task() {
    let server = Setup::new().retries("10m").unset("defaults", "retry").start();
    let words = "[[answer:error:-32603:no]][[gate:tail]][[message:m1:done after all]]";
    let task = server.submit("work", words);
    let next = server.submit("work", "next");
    server.wait_retrying(&task);
    server.journal.open_gate("tail");
    let ended = server.finish_as(&task, "failed");
    assert_eq!((&ended["stop_reason"], &ended["attempt"]), (&json!("_error"), &json!(1)));
    assert_eq!(ended["error"]["code"], "agent_error", "{ended}");
    server.finish_as(&next, "completed");
    assert_eq!(server.task(&task)["text"], "done after all");
    assert_eq!(server.journal.prompts(), [words, "next"]);
}

/// AM-9, I13: history that an agent replays into the first turn after it restored its session is
/// not in that turn's text, also if the turn is interrupted; in a later turn the words count.
#[test]
fn replayed_history_is_not_in_the_text() {
    let mut server = Setup::new().start();
    let users =
        r#"{"sessionUpdate":"user_message_chunk","content":{"type":"text","text":"do it"}}"#;
    let line =
        format!(r#"{{"jsonrpc":"2.0","method":"session/update","params":{{"update":{users}}}}}"#);
    let replays = format!("[[reply:long ago]][[line:{line}]][[reply:now]]");
    server.complete("work", "first");
    server.kill_and_boot();
    assert_eq!(server.complete("work", &replays)["text"], "now");
    assert_eq!(server.complete("work", &replays)["text"], "long agonow");
    server.kill_and_boot();
    let cut = server.submit("work", &format!("{replays}[[gate:cut]]"));
    server.wait_frame("work", "the words of this turn", |frame| {
        frame["task"] == cut["id"] && frame.to_string().contains("\"now\"")
    });
    server.kill_and_boot();
    assert_eq!(server.finish_as(&cut, "interrupted")["text"], "now");
}

/// I11, AM-9: each report of late words writes the text of their task again, so an agent that
/// writes on and on after its answer is reported at most ten times a second, and without loss.
#[test]
fn late_words_are_reported_at_intervals() {
    let server = Setup::new().start();
    let words = (0..60).map(|number| format!("[[gate:g{number}]][[message:m1:x]]"));
    let words: String = words.collect();
    let prompt = format!("[[message:m1:head]][[answer]]{words}[[message:m1:end]]");
    let task = server.submit("work", &prompt);
    server.finish_as(&task, "completed");
    for number in 0..60 {
        server.journal.wait_gate(&format!("g{number}"));
        server.journal.open_gate(&format!("g{number}"));
    }
    server.wait_frame("work", "the end", |frame| {
        frame["payload"]["params"]["update"]["content"]["text"] == "end"
    });
    assert_eq!(server.task(&task)["text"], format!("head{}end", "x".repeat(60)));
    let late = server.frames_of_kind("work", "session/update");
    let mut commits: Vec<i64> = late.iter().skip(1).map(|frame| millis(&frame["at"])).collect();
    commits.dedup();
    let took_ms = commits[commits.len() - 1] - commits[0];
    let most = 3 + usize::try_from(took_ms).unwrap() / 100;
    assert!(commits.len() <= most, "{commits:?}");
}

/// AM-9: after a pause the first late word is reported at once. If it waited for the interval, no
/// word would be seen before that has passed.
#[test]
fn the_first_late_word_after_a_pause_is_reported_at_once() {
    const INTERVAL: Duration = Duration::from_millis(100);
    const WORDS: usize = 40;
    let server = Setup::new().start();
    let words = (0..WORDS).map(|number| format!("[[gate:g{number}]][[message:m1:w{number}]]"));
    let words: String = words.collect();
    let task = server.submit("work", &format!("[[message:m1:head]][[answer]]{words}"));
    server.finish_as(&task, "completed");
    let events = server.events("work", "");
    let is_at_once = (0..WORDS).any(|number| {
        let gate = format!("g{number}");
        server.journal.wait_gate(&gate);
        // The interval of the word before has passed.
        thread::sleep(2 * INTERVAL);
        let begun = Instant::now();
        server.journal.open_gate(&gate);
        events.until("the word", |event| {
            let text = json!(format!("w{number}"));
            event.is_frame()
                && event.frame()["payload"]["params"]["update"]["content"]["text"] == text
        });
        begun.elapsed() < INTERVAL
    });
    assert!(is_at_once, "each of {WORDS} words was held back");
}
