//! Tests of the reports: when the server is asked, and what is written.

#![allow(clippy::unwrap_used)]

use std::{
    io::{self, Write},
    sync::{Mutex as StdMutex, OnceLock, mpsc},
};

use serde_json::json;

use super::*;
use crate::{
    cli::turn,
    client::fake::{Reply, Server},
};

/// Collects what is written; clones share it.
#[derive(Clone, Default)]
pub struct Sink(Arc<StdMutex<Vec<u8>>>);

impl Sink {
    /// Returns what was written since the last [`Self::take`].
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Returns what was written, and forgets it.
    pub fn take(&self) -> String {
        let text = self.text();
        self.bytes().clear();
        text
    }

    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Waiting {
    /// Reports that never ask the server.
    pub fn silent() -> Self {
        Self::new(Line::new(io::sink(), None), Duration::MAX, "greenroom")
    }
}

/// What the fake server says about the task, one poll after another; then the task ends.
const POLLS: [(&str, Option<&str>); 7] = [
    ("queued", Some("paused")),
    ("queued", Some("paused")),
    ("queued", Some("agent")),
    ("queued", Some("agent")),
    ("running", None),
    ("running", None),
    ("queued", Some("agent")),
];

/// Compacts on a server that answers the polls with [`POLLS`], and returns what is on stderr.
fn compact(columns: Option<fn() -> usize>) -> String {
    let (polled, polls) = mpsc::channel();
    let (polled, polls) = (StdMutex::new((0, polled)), StdMutex::new(polls));
    let server = Server::answering(move |request| {
        let task = |state: &str, by: Option<&str>| {
            let task = json!({ "id": "tsk_1", "group": "work", "state": state, "blocked_by": by });
            Reply::json(200, &task.to_string())
        };
        match request.split(' ').nth(1).unwrap_or_default() {
            "/v1/groups/work/compactions" => task("queued", Some("paused")),
            "/v1/tasks/tsk_1?wait=60" => {
                let polls = polls.lock().unwrap();
                // One poll more proves that the answer to the last of them was shown.
                (0..=POLLS.len()).for_each(|_| polls.recv().unwrap());
                task("completed", None)
            }
            "/v1/tasks/tsk_1" => {
                let mut polled = polled.lock().unwrap();
                let (state, by) = POLLS[polled.0.min(POLLS.len() - 1)];
                polled.0 += 1;
                _ = polled.1.send(());
                task(state, by)
            }
            _ => Reply::json(404, "{}"),
        }
    });
    let client = Client::new(server.url(), None).unwrap();
    let (sink, mut out) = (Sink::default(), Vec::new());
    let waiting =
        Waiting::new(Line::new(sink.clone(), columns), Duration::from_millis(1), "greenroom");
    turn::compact(&client, "work", false, &mut out, &waiting).unwrap();
    assert_eq!(out, b"compacted\n");
    sink.text()
}

#[test]
fn each_change_of_the_reason_is_one_line() {
    let expected = "\
waiting: group \"work\" is paused; resume it with: greenroom resume work
waiting: the agent is starting
waiting: the agent is starting
";
    assert_eq!(compact(None), expected, "the agent was at work between the last two");
}

#[test]
fn on_a_terminal_the_line_is_replaced_and_removed_before_the_end() {
    let written = compact(Some(|| 200));
    let shown: Vec<&str> = written.split("\r\x1b[J").collect();
    let reasons = ["is paused", "is starting", "is at work", "is starting"];
    let mut seen = reasons.iter().peekable();
    for line in &shown[..shown.len() - 1] {
        seen.next_if(|reason| line.contains(**reason));
    }
    assert_eq!((seen.next(), shown.last()), (None, Some(&"")), "{written:?}");
    assert!(!written.contains('\n'), "{written:?}");
}

#[test]
fn an_answer_from_before_a_move_is_not_shown() {
    static WAITING: OnceLock<Waiting> = OnceLock::new();
    let sink = Sink::default();
    let waiting =
        Waiting::new(Line::new(sink.clone(), None), Duration::from_millis(1), "greenroom");
    let waiting = WAITING.get_or_init(|| waiting);
    let (polled, polls) = mpsc::channel();
    let polled = StdMutex::new((0, polled));
    let server = Server::answering(move |_| {
        let mut polled = polled.lock().unwrap();
        polled.0 += 1;
        if polled.0 == 1 {
            WAITING.get().unwrap().moved();
        }
        _ = polled.1.send(());
        let by = if polled.0 == 1 { "held" } else { "paused" };
        let task = json!({ "group": "work", "state": "queued", "blocked_by": by });
        Reply::json(200, &task.to_string())
    });
    let client = Client::new(server.url(), None).unwrap();
    let following = waiting.follow(&client, Subject::Task("tsk_1".into()));
    waiting.begin();
    (0..5).for_each(|_| polls.recv().unwrap());
    drop(following);
    let text = "waiting: group \"work\" is paused; resume it with: greenroom resume work\n";
    assert_eq!(sink.text(), text);
}

/// A stderr that nothing reads: each write blocks for ever.
struct Unread(mpsc::Sender<()>);

impl Write for Unread {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        _ = self.0.send(());
        loop {
            thread::park();
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_unread_stderr_blocks_no_answer() {
    let (writes, begun) = mpsc::channel();
    let waiting = Waiting::new(Line::new(Unread(writes), None), Duration::from_millis(1), "gr");
    let server = Server::answering(|_| {
        let task = json!({ "group": "work", "state": "queued", "blocked_by": "paused" });
        Reply::json(200, &task.to_string())
    });
    let client = Client::new(server.url(), None).unwrap();
    let following = waiting.follow(&client, Subject::Task("tsk_1".into()));
    waiting.begin();
    begun.recv().unwrap();
    waiting.moved();
    assert_eq!(waiting.print(true, || "printed"), "printed");
    waiting.end();
    drop(following);
}

#[test]
fn a_task_that_moves_is_not_asked_about_more_often() {
    let quiet = Duration::from_secs(600);
    let waiting = Waiting::new(Line::new(io::sink(), None), quiet, "greenroom");
    waiting.begin();
    let rests_until = Instant::now() + 5 * quiet;
    waiting.lock().rests_until = Some(rests_until);
    waiting.moved();
    assert_eq!(waiting.lock().ask_at, Some(rests_until));
    waiting.lock().rests_until = Some(Instant::now());
    waiting.moved();
    let state = waiting.lock();
    assert_eq!(state.ask_at, Some(state.moved_at + quiet));
}

#[test]
fn a_reason_that_the_server_does_not_confirm_is_removed() {
    let sink = Sink::default();
    let waiting =
        Waiting::new(Line::new(sink.clone(), Some(|| 80)), Duration::from_millis(1), "gr");
    let (polled, polls) = mpsc::channel();
    let count = StdMutex::new((0, polled));
    let server = Server::answering(move |_| {
        let mut count = count.lock().unwrap();
        count.0 += 1;
        _ = count.1.send(());
        let task = json!({ "group": "work", "state": "queued", "blocked_by": "paused" });
        match count.0 {
            1 => Reply::json(200, &task.to_string()),
            _ => Reply::json(500, "{}"),
        }
    });
    let client = Client::new(server.url(), None).unwrap();
    let following = waiting.follow(&client, Subject::Task("tsk_1".into()));
    waiting.begin();
    // The answer before the last question was taken in.
    (0..3).for_each(|_| polls.recv().unwrap());
    assert!(waiting.lock().reason.is_none());
    drop(following);
    assert!(sink.text().ends_with("\r\x1b[J"), "{:?}", sink.text());
}

#[test]
fn a_hint_names_the_server_unless_it_is_the_one_that_is_found() {
    #[rustfmt::skip]
    let cases = [
        (DEFAULT_URL,       None,                   "greenroom"),
        ("http://a:1",      None,                   "greenroom --url http://a:1"),
        ("http://a:1",      Some("http://a:1/"),    "greenroom"),
        (DEFAULT_URL,       Some("http://a:1"),     "greenroom --url http://127.0.0.1:7433"),
        ("http://a\u{1b}:1", None,                  r"greenroom --url http://a\u{1b}:1"),
    ];
    for (url, found, expected) in cases {
        assert_eq!(program(url, found), expected);
    }
}
