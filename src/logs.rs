//! Formats log records: one line per event on stderr, as text or as JSON. API-7.
//!
//! Any value may hold text from an agent, and a terminal or a log collector reads the line: control
//! characters are always escaped (C15), and secrets redacted (C16). Dumps of the bytes that the
//! HTTP client sends are dropped, and so are most lines about requests that cannot be parsed
//! ([`unparsable`]).

mod queue;
mod unparsable;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    borrow::Cow,
    fmt::Write as _,
    io,
    panic::PanicHookInfo,
    sync::OnceLock,
    time::{Instant, SystemTime},
};

use env_logger::{Builder, Logger};
use greenroom_actors::secrets;
use log::{
    Level, LevelFilter, Log, Metadata, Record,
    kv::{Error, Key, Value, VisitSource},
};
use queue::LogQueue;
use unparsable::{Unparsable, Verdict};

use crate::text::{escape_json, is_printable};

/// The default filter: greenroom's own events, and the warnings of libraries.
const DEFAULT_FILTER: &str = "warn,greenroom=info,greenroom_actors=info,greenroom_core=info";

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// `time LEVEL target message key=value …`
    Text,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    /// Formats an event as a line, with its end.
    fn line(self, record: &Record<'_>) -> String {
        let now = SystemTime::now();
        let mut line = match self {
            Self::Text => text_line(now, record),
            Self::Json => json_line(now, record),
        };
        line.push('\n');
        line
    }
}

/// The lines on their way to stderr, once [`init`] has run.
static QUEUE: OnceLock<LogQueue> = OnceLock::new();

/// Starts logging to stderr, filtered by `GREENROOM_LOG`, else `RUST_LOG`, and has panics logged.
/// Logging never waits for the reader. Call it once.
///
/// # Errors
///
/// No thread could be started.
pub fn init(format: LogFormat) -> io::Result<()> {
    let filter = ["GREENROOM_LOG", "RUST_LOG"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|filter| !filter.is_empty()))
        .unwrap_or_else(|| DEFAULT_FILTER.to_owned());
    let filter = Builder::new().parse_filters(&filter).build();
    let queue = QUEUE.get_or_init(|| LogQueue::new(move |missing| notice(missing, format)));
    queue.start(io::stderr())?;
    // Errors always reach the logger: it counts some.
    log::set_max_level(filter.filter().max(LevelFilter::Error));
    // A second call would be a bug; the first logger stays in place.
    _ = log::set_boxed_logger(Box::new(QueuedLog {
        filter,
        format,
        queue,
        started: Instant::now(),
    }));
    std::panic::set_hook(Box::new(move |panic| report(panic, format, queue)));
    Ok(())
}

/// The requests that could not be parsed.
static UNPARSABLE: Unparsable = Unparsable::new();

/// How many requests could not be parsed.
pub fn unparsable_requests() -> u64 {
    UNPARSABLE.count()
}

/// How many log lines were dropped because stderr's reader stood still.
pub fn dropped() -> u64 {
    QUEUE.get().map_or(0, LogQueue::dropped)
}

/// The line that stands for missing ones.
fn notice(missing: u64, format: LogFormat) -> String {
    let pairs = [("lines", Value::from(missing))];
    let mut record = Record::builder();
    record.level(Level::Warn).target("greenroom").key_values(&pairs);
    let message = format_args!("log lines are missing here: stderr's reader stood still");
    format.line(&record.args(message).build())
}

/// Logs a panic, whatever the filter.
fn report(panic: &PanicHookInfo<'_>, format: LogFormat, queue: &LogQueue) {
    let thread = std::thread::current();
    let backtrace = Backtrace::capture();
    let mut pairs = vec![("thread", Value::from(thread.name().unwrap_or("unnamed")))];
    if backtrace.status() == BacktraceStatus::Captured {
        pairs.push(("backtrace", Value::from_display(&backtrace)));
    }
    let mut record = Record::builder();
    record.level(Level::Error).target("greenroom").key_values(&pairs);
    queue.push(&format.line(&record.args(format_args!("{panic}")).build()));
}

/// Adds each line to the queue.
struct QueuedLog {
    filter: Logger,
    format: LogFormat,
    queue: &'static LogQueue,
    started: Instant,
}

impl QueuedLog {
    fn push(&self, record: &Record<'_>) {
        if self.filter.matches(record) && !is_dump(record) {
            self.queue.push(&self.format.line(record));
        }
    }
}

impl Log for QueuedLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata) || Unparsable::concerns(metadata.level(), metadata.target())
    }

    fn log(&self, record: &Record<'_>) {
        match UNPARSABLE.judge(record, self.started.elapsed().as_millis() as u64) {
            Verdict::Other => self.push(record),
            Verdict::Drop => {}
            Verdict::Log { why, requests } => {
                let pairs = [("err", Value::from(&*why)), ("requests", Value::from(requests))];
                let mut record = Record::builder();
                record.level(Level::Warn).target("greenroom::http").key_values(&pairs);
                let message = format_args!("requests could not be parsed as HTTP");
                self.push(&record.args(message).build());
            }
        }
    }

    fn flush(&self) {
        self.queue.flush();
    }
}

/// Whether the record is the HTTP client's dump of the bytes that it sends. They include tokens, so
/// no filter enables it.
fn is_dump(record: &Record<'_>) -> bool {
    record.level() == Level::Trace && record.target().starts_with("ureq")
}

/// Formats a time as RFC 3339 in UTC, with milliseconds.
fn time(at: SystemTime) -> impl std::fmt::Display {
    humantime::format_rfc3339_millis(at)
}

/// Returns the text without the secrets of the configuration.
fn redacted(text: String) -> String {
    match secrets::redacted(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(redacted) => redacted,
    }
}

/// Redacts the texts in a JSON value.
fn redact(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) => *text = redacted(std::mem::take(text)),
        serde_json::Value::Array(values) => values.iter_mut().for_each(redact),
        serde_json::Value::Object(members) => members.values_mut().for_each(redact),
        _ => {}
    }
}

fn text_line(at: SystemTime, record: &Record<'_>) -> String {
    let mut line = format!("{} {} ", time(at), record.level());
    escape_into(&mut line, record.target());
    line.push(' ');
    escape_into(&mut line, &redacted(record.args().to_string()));
    _ = record.key_values().visit(&mut TextPairs(&mut line));
    line
}

struct TextPairs<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for TextPairs<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        self.0.push(' ');
        escape_into(self.0, key.as_str());
        self.0.push('=');
        quote_into(self.0, &redacted(value.to_string()));
        Ok(())
    }
}

/// Appends `text`, in quotes if it would be ambiguous as one value without them.
fn quote_into(line: &mut String, text: &str) {
    let is_plain = |c: char| c != ' ' && c != '"' && c != '=' && c != '\\' && is_printable(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        line.push_str(text);
        return;
    }
    line.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => line.extend(['\\', c]),
            _ => escape_char_into(line, c),
        }
    }
    line.push('"');
}

fn escape_into(line: &mut String, text: &str) {
    text.chars().for_each(|c| escape_char_into(line, c));
}

fn escape_char_into(line: &mut String, c: char) {
    if is_printable(c) {
        line.push(c);
    } else {
        match c.escape_debug() {
            // Letters without a glyph.
            escaped if escaped.len() == 1 => line.extend(c.escape_unicode()),
            escaped => line.extend(escaped),
        }
    }
}

fn json_line(at: SystemTime, record: &Record<'_>) -> String {
    let mut pairs = JsonPairs(String::from("{"));
    pairs.push("time", time(at).to_string().into());
    pairs.push("level", record.level().as_str().into());
    pairs.push("target", record.target().into());
    pairs.push("message", redacted(record.args().to_string()).into());
    _ = record.key_values().visit(&mut pairs);
    pairs.0.push('}');
    escape_json(&pairs.0)
}

struct JsonPairs(String);

impl JsonPairs {
    fn push(&mut self, key: &str, value: serde_json::Value) {
        let comma = if self.0.len() == 1 { "" } else { "," };
        _ = write!(self.0, "{comma}{}:{value}", serde_json::Value::from(key));
    }
}

impl<'kvs> VisitSource<'kvs> for JsonPairs {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        // A value that cannot be serialized as JSON is logged as its text.
        let mut value = serde_json::to_value(&value).unwrap_or_else(|_| value.to_string().into());
        redact(&mut value);
        match key.as_str() {
            // Keys of the event must not shadow those of the line.
            name @ ("time" | "level" | "target" | "message") => {
                self.push(&format!("{name}_"), value);
            }
            name => self.push(name, value),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    const AT: Duration = Duration::from_millis(1_795_176_000_007);

    fn record_with<T>(
        message: &str,
        pairs: &[(&str, Value<'_>)],
        line: impl Fn(SystemTime, &Record<'_>) -> T,
    ) -> T {
        line(
            SystemTime::UNIX_EPOCH + AT,
            &Record::builder()
                .level(Level::Info)
                .target("greenroom::group")
                .args(format_args!("{message}"))
                .key_values(&pairs)
                .build(),
        )
    }

    #[test]
    fn a_text_line_has_the_documented_form() {
        let pairs = [
            ("group", Value::from("work")),
            ("from", Value::from("idle")),
            ("to", Value::from("running")),
            ("queued", Value::from(3)),
        ];
        let line = record_with("status", &pairs, text_line);
        let expected = "2026-11-20T12:00:00.007Z INFO greenroom::group status group=work from=idle \
                        to=running queued=3";
        assert_eq!(line, expected);
    }

    #[test]
    fn values_are_quoted_and_escaped_where_needed() {
        #[rustfmt::skip]
        let cases = [
            ("plain",                    "plain"),
            ("tsk_0198/a:b@c,é…日本🦀",  "tsk_0198/a:b@c,é…日本🦀"),
            ("it's",                     "it's"),
            ("",                         r#""""#),
            ("two words",                r#""two words""#),
            ("a=b",                      r#""a=b""#),
            (r#"say "hi""#,              r#""say \"hi\"""#),
            (r"back\slash",              r#""back\\slash""#),
            ("line\nfeed\r\ttab",        r#""line\nfeed\r\ttab""#),
            ("\u{1b}[31mred",            r#""\u{1b}[31mred""#),
            ("nul\0",                    r#""nul\0""#),
            ("csi\u{9b}31m",             r#""csi\u{9b}31m""#),
            ("del\u{7f}",                r#""del\u{7f}""#),
            ("bidi\u{202e}evil",         r#""bidi\u{202e}evil""#),
            ("line\u{2028}separator",    r#""line\u{2028}separator""#),
            ("no-break\u{a0}space",      r#""no-break\u{a0}space""#),
        ];
        for (value, expected) in cases {
            let line = record_with("m", &[("k", Value::from(value))], text_line);
            assert_eq!(line.split_once(" k=").unwrap().1, expected);
        }
    }

    #[test]
    fn messages_and_keys_are_escaped_too() {
        let line = record_with("a\nb \u{1b}c", &[("k\r", Value::from(1))], text_line);
        assert!(line.ends_with(r"group a\nb \u{1b}c k\r=1"), "{line}");
    }

    /// C16: a line has no secret of the configuration, wherever it stands.
    #[test]
    fn secrets_are_redacted_in_a_line() {
        secrets::set([("LOG_KEY".to_owned(), "log-canary \"1\"".to_owned())]);
        let listed = ["log-canary \"1\""];
        let pairs =
            [("k", Value::from("a log-canary \"1\"")), ("list", Value::from_serde(&listed))];
        let message = "said log-canary \"1\"!";
        let line = record_with(message, &pairs, text_line);
        assert!(!line.contains("canary"), "{line}");
        assert!(
            line.contains("said [redacted:LOG_KEY]! k=\"a [redacted:LOG_KEY]\" list="),
            "{line}"
        );
        let line = record_with(message, &pairs, json_line);
        assert!(!line.contains("canary"), "{line}");
        assert!(line.contains(r#""list":["[redacted:LOG_KEY]"]"#), "{line}");
    }

    #[test]
    fn a_json_line_is_one_object_with_flat_keys() {
        let pairs = [
            ("group", Value::from("work \"1\"\n\u{1b}\u{9b}\u{2028}")),
            ("queued", Value::from(3)),
            ("ok", Value::from(true)),
            ("target", Value::from("mine")),
        ];
        let line = record_with("two\nlines", &pairs, json_line);
        assert!(line.chars().all(is_printable), "{line}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        let expected = serde_json::json!({
            "time": "2026-11-20T12:00:00.007Z",
            "level": "INFO",
            "target": "greenroom::group",
            "message": "two\nlines",
            "group": "work \"1\"\n\u{1b}\u{9b}\u{2028}",
            "queued": 3,
            "ok": true,
            "target_": "mine",
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn only_greenrooms_own_events_are_logged_at_info() {
        let logger = Builder::new().parse_filters(DEFAULT_FILTER).build();
        let matches =
            |target, level| logger.matches(&Record::builder().target(target).level(level).build());
        assert!(matches("greenroom::group", Level::Info));
        assert!(matches("greenroom_actors::agent", Level::Info));
        assert!(!matches("greenroom::group", Level::Debug));
        assert!(!matches("actix_server::worker", Level::Info));
        assert!(matches("actix_server::worker", Level::Warn));
    }
}
