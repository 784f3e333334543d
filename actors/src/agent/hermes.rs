//! What hermes says in words: compactions in its log lines on stderr (AM-20…24, RA), and a reply
//! that only pretends to have queued the prompt.

use greenroom_core::{
    CompactionSignal, Details, Json, Lineage, OutputSummary, PromptReply, SignalKind, Source,
    StopReason,
};

use crate::acp::{
    bounds::{ERROR_BYTES_MAX, append_bounded, bounded_id, truncate},
    redacted,
};

/// Log lines begin with time, level and logger in a form that users configure. A prefix that is
/// longer, or has more plain words than this, is a sentence, and the text after it may be quoted
/// from a prompt (hermes logs `Prompt on session …: <the prompt>`).
const PREFIX_BYTES_MAX: usize = 200;
const PREFIX_WORDS_MAX: usize = 2;

/// How the answer to every prompt begins once a cancel has wedged the session.
const QUEUED: &str = "Queued for the next turn";

/// The text that identifies a line, and the parser of the rest.
type Marker = (&'static str, fn(&str) -> CompactionSignal);

const MARKERS: [Marker; 8] = [
    ("context compression started:", started),
    ("context compression done:", done),
    ("Compression summary failed:", summary_failed),
    ("Compression aborted:", aborted),
    ("context compression returned an empty transcript", emptied),
    ("Compression made no progress", no_progress),
    ("compression skipped:", skipped),
    ("compression session ownership lookup failed", skipped),
];

/// Returns the signal of a compaction in a line; most lines have none.
///
/// Each attempt starts with a `started`, logged before hermes has its lock, and ends as one of:
/// done; done with a fallback marker instead of a summary, which is a [`SignalKind::Noted`] with
/// the error and then a [`SignalKind::Completed`]; aborted; no progress; skipped. hermes logs an
/// error only once in a row: a second failure for the same reason ends without a line.
pub fn stderr_signal(line: &str) -> Option<CompactionSignal> {
    memchr::memmem::find(line.as_bytes(), b"ompression")?;
    let found = |(marker, read): &Marker| Some((line.find(marker)?, marker.len(), *read));
    // The first marker counts: an error, or the focus of a compaction, can quote another line.
    let (at, length, read) = MARKERS.iter().filter_map(found).min_by_key(|(at, ..)| *at)?;
    is_log_prefix(&line[..at]).then(|| read(&line[at + length..]))
}

fn is_log_prefix(prefix: &str) -> bool {
    let quotes = prefix.contains(['=', '"', '\'', '`']);
    let glued = prefix.ends_with(char::is_alphanumeric);
    let is_word = |token: &&str| {
        let bare = token.trim_matches(|c: char| !c.is_alphanumeric());
        bare.chars().all(char::is_alphabetic) && bare.chars().any(char::is_lowercase)
    };
    let words = prefix.split_whitespace().filter(is_word).count();
    prefix.len() <= PREFIX_BYTES_MAX && !quotes && !glued && words <= PREFIX_WORDS_MAX
}

/// `session=cc2b… messages=9 tokens=~60,032 model=fake-model focus=None` (AM-21)
fn started(rest: &str) -> CompactionSignal {
    let details = Details {
        messages_before: field(rest, &["messages="]).and_then(|text| number(text).0),
        tokens_before: field(rest, &["tokens=", "rough_tokens="]).and_then(|text| number(text).0),
        ..Details::default()
    };
    signal(SignalKind::Started, Lineage { before: session(rest), ..Lineage::default() }, details)
}

/// `session=cc2b… messages=9->5 rough_tokens=~40,942 awaiting_real_usage=true` (AM-22). The session
/// is the one that continues: the same as before when hermes compacts in place.
fn done(rest: &str) -> CompactionSignal {
    let messages = field(rest, &["messages="]).map(number);
    let after = messages.and_then(|(_, rest)| {
        let rest = rest.trim_start();
        let rest = rest.strip_prefix("->").or_else(|| rest.strip_prefix('→'))?;
        number(rest.trim_start()).0
    });
    let details = Details {
        messages_before: messages.and_then(|(before, _)| before),
        messages_after: after,
        tokens_after: field(rest, &["tokens=", "rough_tokens="]).and_then(|text| number(text).0),
        ..Details::default()
    };
    let either = session(rest);
    let given = either.as_ref().and_then(|id| {
        let named = serde_json::json!({ "hermesSessionId": id });
        Json::write(&named).ok()
    });
    signal(SignalKind::Completed, Lineage { either, given, ..Lineage::default() }, details)
}

/// `… . Inserted a fallback context marker.`: hermes continues, and logs `done` next.
fn summary_failed(rest: &str) -> CompactionSignal {
    failure(SignalKind::Noted, until(rest, ". Inserted a fallback"))
}

/// `… . No messages were dropped — conversation continues unchanged. …`
fn aborted(rest: &str) -> CompactionSignal {
    failure(SignalKind::Failed, until(rest, ". No messages were dropped"))
}

/// `; refusing to rotate session=cc2b… so the parent remains resumable`
fn emptied(rest: &str) -> CompactionSignal {
    let error = "the compression returned an empty transcript";
    CompactionSignal { lineage: before(rest), ..failure(SignalKind::Failed, error) }
}

/// `(session=cc2b…) — skipping boundary rewrite.`
fn no_progress(rest: &str) -> CompactionSignal {
    signal(SignalKind::Noop, before(rest), Details::default())
}

/// `another path is compressing session=cc2b… (holder=…) — …`, `session=cc2b… was already rotated
/// by another compression path`; also `for session=cc2b… (…) - skipping compression this cycle`.
fn skipped(rest: &str) -> CompactionSignal {
    signal(SignalKind::Skipped, before(rest), Details::default())
}

fn signal(kind: SignalKind, lineage: Lineage, details: Details) -> CompactionSignal {
    CompactionSignal { source: Source::HermesStderr, kind, key: None, lineage, details }
}

fn failure(kind: SignalKind, error: &str) -> CompactionSignal {
    let error = truncate(redacted(error.trim()).into_owned(), ERROR_BYTES_MAX);
    let error = (!error.is_empty()).then_some(error);
    signal(kind, Lineage::default(), Details { error, ..Details::default() })
}

fn before(rest: &str) -> Lineage {
    Lineage { before: session(rest), ..Lineage::default() }
}

fn until<'a>(text: &'a str, end: &str) -> &'a str {
    text.find(end).map_or(text, |at| &text[..at])
}

/// Returns the text after the first of `names`. The text after `focus=` is not searched, as it is a
/// caller's own.
fn field<'a>(rest: &'a str, names: &[&str]) -> Option<&'a str> {
    let rest = until(rest, " focus=");
    let starts = rest.match_indices(|c: char| c.is_whitespace() || c == '(');
    let starts = starts.map(|(at, space)| &rest[at + space.len()..]);
    std::iter::once(rest)
        .chain(starts)
        .find_map(|text| names.iter().find_map(|name| text.strip_prefix(name)))
}

/// hermes writes `none` for a session that it does not know.
fn session(rest: &str) -> Option<String> {
    let text = field(rest, &["session="])?;
    let word = text.split([' ', '\t', ')']).next()?;
    let name = word.trim_end_matches([',', '.', ';', ':']);
    bounded_id(name).filter(|name| !matches!(name.as_str(), "none" | "None" | "unknown"))
}

/// Parses the number that a text begins with (`72,908`, `~72,908`), and returns the rest too; a
/// number that is too large is `None`.
fn number(text: &str) -> (Option<u64>, &str) {
    let text = text.trim_start_matches(['~', '≈']);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != ',').unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    (digits.replace(',', "").parse().ok(), rest)
}

/// What the agent wrote since its prompt, as far as it shows that it only queued that.
#[derive(Debug, Default)]
pub struct Answer {
    /// How its text begins.
    start: String,
    has_tools: bool,
}

impl Answer {
    /// Adds output about the prompt's session.
    pub fn add(&mut self, output: &OutputSummary) {
        self.has_tools |= !output.tools.is_empty();
        let text = match &*self.start {
            "" => output.text.trim_start(),
            _ => &output.text,
        };
        append_bounded(&mut self.start, text, QUEUED.len());
    }

    /// Returns the reply with its meaning: the agent may only have queued the prompt.
    pub fn interpret(&self, reply: PromptReply) -> PromptReply {
        match reply {
            PromptReply::Stopped { stop_reason: StopReason::EndTurn, tokens }
                if !self.has_tools && self.start == QUEUED =>
            {
                PromptReply::Queued { tokens }
            }
            reply => reply,
        }
    }
}

#[cfg(test)]
mod tests {
    use SignalKind::{Completed, Failed, Noop, Noted, Skipped, Started};
    use greenroom_core::{ErrorKind, ToolProgress, ToolResult, ToolUpdate};
    use proptest::prelude::*;

    use super::*;

    const LOG: &str = "2026-11-20 10:45:07 [INFO] agent.conversation_compression: ";

    /// sign, session, (messages before, after), (tokens before, after), error
    type Parsed = (SignalKind, Option<String>, [Option<u64>; 2], [Option<u64>; 2], Option<String>);

    fn parsed(line: &str) -> Option<Parsed> {
        let CompactionSignal { source, kind, key, lineage, details } = stderr_signal(line)?;
        assert_eq!((source, key, details.summary), (Source::HermesStderr, None, None), "{line}");
        let given = lineage.either.as_ref().map(|id| format!(r#"{{"hermesSessionId":"{id}"}}"#));
        assert_eq!(lineage.given.as_ref().map(Json::as_str), given.as_deref(), "{line}");
        let session = match kind {
            Completed => lineage.either,
            _ => lineage.before,
        };
        let messages = [details.messages_before, details.messages_after];
        let tokens = [details.tokens_before, details.tokens_after];
        Some((kind, session, messages, tokens, details.error))
    }

    type Case<'a> = (
        &'a str,
        &'a str,
        SignalKind,
        &'a str,
        [Option<u64>; 2],
        [Option<u64>; 2],
        Option<&'a str>,
    );

    const NONE: [Option<u64>; 2] = [None, None];

    /// The lines as hermes 0.19.0 and older ones write them.
    #[test]
    fn each_form_of_a_line_is_parsed() {
        #[rustfmt::skip]
        let cases: [Case; 22] = [
            ("AM-21",                "context compression started: session=cc2b-1 messages=9 tokens=~60,032 model=fake-model focus=None", Started, "cc2b-1", [Some(9), None], [Some(60_032), None], None),
            ("AM-21, focus",         "context compression started: session=a messages=9 tokens=~6 model=m focus='the tests'",  Started, "a", [Some(9), None],    [Some(6), None],      None),
            ("AM-24, unknown",       "context compression started: session=none messages=9 tokens=~unknown model=m focus=None", Started, "", [Some(9), None],    NONE,                 None),
            ("AM-24, fields missing", "context compression started: messages=12",                                              Started, "",  [Some(12), None],   NONE,                 None),
            ("AM-24, nothing else",  "context compression started:",                                                           Started, "",  NONE,               NONE,                 None),
            ("AM-22",                "context compression done: session=20261120_104604_2129ac messages=9->5 rough_tokens=~40,942 awaiting_real_usage=true", Completed, "20261120_104604_2129ac", [Some(9), Some(5)], [None, Some(40_942)], None),
            ("AM-22, older",         "context compression done: session=a messages=50->9 tokens=~72,908",                      Completed, "a", [Some(50), Some(9)], [None, Some(72_908)], None),
            ("AM-24, arrow",         "context compression done: session=a messages=50→9 tokens=~1234",                         Completed, "a", [Some(50), Some(9)], [None, Some(1234)],   None),
            ("AM-24, arrow apart",   "context compression done: session=a messages=50 -> 9 tokens=1",                          Completed, "a", [Some(50), Some(9)], [None, Some(1)],      None),
            ("AM-24, half an arrow", "context compression done: session=a messages=50-> tokens=~",                             Completed, "a", [Some(50), None],    NONE,                 None),
            ("AM-24, no arrow",      "context compression done: messages=50",                                                  Completed, "",  [Some(50), None],    NONE,                 None),
            ("AM-24, too large",     "context compression done: messages=99999999999999999999->5 tokens=~18446744073709551615", Completed, "", [None, Some(5)],     [None, Some(u64::MAX)], None),
            ("AM-22, fallback",      "⚠ Compression summary failed: Error code: 500 - {'message': 'fake'}. Inserted a fallback context marker.", Noted, "", NONE, NONE, Some("Error code: 500 - {'message': 'fake'}")),
            ("AM-22, fallback, cut", "⚠ Compression summary failed: Error code: 500",                                          Noted,   "",  NONE, NONE, Some("Error code: 500")),
            ("aborted",              "⚠ Compression aborted: Connection error.. No messages were dropped — conversation continues unchanged. Run /compress to retry.", Failed, "", NONE, NONE, Some("Connection error.")),
            ("aborted, cut",         "⚠️  Compression aborted:",                                                                Failed,  "",  NONE, NONE, None),
            ("no progress",          "Compression made no progress (session=cc2b) — skipping boundary rewrite.",               Noop,    "cc2b", NONE, NONE, None),
            ("HL-2, lost the race",  "compression skipped: another path is compressing session=cc2b (holder=pid=1:tid=2:agent=3:nonce=4) — returning messages unchanged to avoid session fork", Skipped, "cc2b", NONE, NONE, None),
            ("HL-10, came late",     "compression skipped: session=cc2b was already rotated by another compression path",      Skipped, "cc2b", NONE, NONE, None),
            ("HL-9, look-up erred",  "compression session ownership lookup failed for session=cc2b (OperationalError: locked) - skipping compression this cycle", Skipped, "cc2b", NONE, NONE, None),
            ("emptied",              "context compression returned an empty transcript; refusing to rotate session=cc2b so the parent remains resumable", Failed, "cc2b", NONE, NONE, Some("the compression returned an empty transcript")),
            ("AM-21, focus quotes",  "context compression started: session=a model=m focus='x messages=7 tokens=~8 context compression done: session=b'", Started, "a", NONE, NONE, None),
        ];
        for (name, line, kind, session, messages, tokens, error) in cases {
            let session = (!session.is_empty()).then(|| session.to_owned());
            let expected = Some((kind, session, messages, tokens, error.map(str::to_owned)));
            for prefix in ["", LOG] {
                assert_eq!(parsed(&format!("{prefix}{line}")), expected, "{name}: {prefix}{line}");
            }
        }
    }

    /// AM-24: any log prefix.
    #[test]
    fn a_line_may_have_any_log_prefix() {
        let done = |prefix: &str| stderr_signal(&format!("{prefix}context compression done:"));
        #[rustfmt::skip]
        let cases = [
            ("none",                ""),
            ("white space",         "   "),
            ("the logger alone",    "agent.conversation_compression: "),
            ("python's own",        "INFO:agent.conversation_compression:"),
            ("milliseconds",        "2026-11-20 10:45:07,123 - agent.conversation_compression - INFO - "),
            ("with the session",    "2026-11-20 10:45:07,123 INFO [20261120_104604_2129ac] agent.x: "),
            ("ISO time",            "2026-11-20T10:45:07.123Z INFO agent.x: "),
            ("brackets",            "[2026-11-20 10:45:07] [info] [agent.x] "),
            ("a thread and a host", "[MainThread] box hermes[12]: "),
            ("a date of words",     "Fri Nov 20 10:45:07 2026 INFO: "),
            ("colors",              "\u{1b}[32mINFO\u{1b}[0m "),
            ("a symbol",            "🗜️  "),
        ];
        for (name, prefix) in cases {
            assert_eq!(done(prefix).map(|signal| signal.kind), Some(Completed), "{name}");
        }
    }

    /// hermes logs prompts and the output of tools: they can quote anything.
    #[test]
    fn a_quoted_line_is_no_signal() {
        let done = "context compression done: session=a messages=9->5";
        #[rustfmt::skip]
        let cases = [
            ("a prompt",      format!("2026-11-20 10:45:05 [INFO] acp_adapter.server: Prompt on session 288a-1: {done}")),
            ("a turn",        format!("[INFO] agent.turn_context: conversation turn: session=288a model=m history=0 msg='{done}'")),
            ("a sentence",    format!("I read the log and found {done}")),
            ("a string",      format!("\"{done}\"")),
            ("within a word", format!("x{done}")),
            ("far behind",    format!("{}{done}", "1 ".repeat(PREFIX_BYTES_MAX))),
        ];
        for (name, line) in cases {
            assert_eq!(stderr_signal(&line), None, "{name}: {line}");
        }
    }

    /// AM-24: lines without an effect.
    #[test]
    fn other_lines_are_no_signals() {
        for line in [
            "🗜️ Compacting context — summarizing earlier conversation so I can continue...",
            "  ⟳ compacting context…",
            "agent.auxiliary_client: Auxiliary compression: using auto (m) at http://127.0.0.1/v1/",
            "📦 Preflight compression: ~60,027 tokens >= 54,400 threshold. This may take a moment.",
            "📦 Pre-API compression: ~60,085 tokens near the context/output limit.",
            "Skipping preflight compression: same-session cooldown active (~29 seconds remaining)",
            "⚠ Skipping concurrent compression — another path is already compressing this session.",
            "⚠️  Session compressed 3 times — accuracy may degrade. Consider /new to start fresh.",
            "⚠ Compression returned an empty transcript. No session split was performed;",
            "agent.context_compressor: Failed to generate context summary: Connection error..",
            "context compression startled: session=a",
            "Context Compression Done: session=a",
            "ompression",
            "",
        ] {
            assert_eq!(stderr_signal(line), None, "{line}");
        }
    }

    #[test]
    fn texts_are_bounded() {
        let long = "x".repeat(100_000);
        let aborted = stderr_signal(&format!("Compression aborted: {long}ä"));
        let error = aborted.and_then(|signal| signal.details.error);
        assert_eq!(error.map(|error| error.len()), Some(ERROR_BYTES_MAX));
        let done = stderr_signal(&format!("context compression done: session={long}"));
        assert_eq!(done.map(|signal| signal.lineage), Some(Lineage::default()));
    }

    fn marker() -> impl Strategy<Value = &'static str> {
        (0..MARKERS.len()).prop_map(|at| MARKERS[at].0)
    }

    proptest! {
        #[test]
        fn no_line_panics(line in any::<String>()) {
            stderr_signal(&line);
        }

        #[test]
        fn no_line_like_hermes_panics(
            before in "[ 0-9:.a-z\\[\\]→~é]{0,20}",
            marker in marker(),
            after in "( |session=|messages=|tokens=|rough_|focus=|->|→|~|,|[0-9]{1,25}|\\PC){0,30}",
        ) {
            stderr_signal(&format!("{before}{marker}{after}"));
        }

        /// The text after a marker never changes the kind of the line.
        #[test]
        fn the_first_marker_counts(one in marker(), other in marker(), rest in "\\PC{0,30}") {
            let kind = stderr_signal(one).map(|signal| signal.kind);
            let quoting = stderr_signal(&format!("{LOG}{one} {rest} {other}"));
            prop_assert_eq!(quoting.map(|signal| signal.kind), kind);
        }
    }

    /// RA: what a session that a cancel has wedged answers, and what only looks like it.
    #[test]
    fn a_reply_that_queues_the_prompt_is_recognized() {
        let notice = "Queued for the next turn. (1 queued)";
        #[rustfmt::skip]
        let cases: [(&str, &[&str], StopReason, bool); 8] = [
            ("the notice",        &[notice],                                StopReason::EndTurn,   true),
            ("in pieces",         &["", "\n", " Queued for", " the next turn"], StopReason::EndTurn, true),
            ("with more",         &[notice, "So."],                         StopReason::EndTurn,   true),
            ("cut off",           &["Queued for the next"],                 StopReason::EndTurn,   false),
            ("within a sentence", &["It was queued for the next turn"],     StopReason::EndTurn,   false),
            ("after other words", &["So. ", notice],                        StopReason::EndTurn,   false),
            ("nothing",           &[],                                      StopReason::EndTurn,   false),
            ("cancelled",         &[notice],                                StopReason::Cancelled, false),
        ];
        for (name, texts, stop_reason, is_queued) in cases {
            let mut answer = Answer::default();
            for text in texts {
                answer.add(&OutputSummary { text: (*text).into(), ..OutputSummary::default() });
            }
            let reply = PromptReply::Stopped { stop_reason, tokens: None };
            let queued = PromptReply::Queued { tokens: None };
            let expected = if is_queued { queued } else { reply.clone() };
            assert_eq!(answer.interpret(reply), expected, "{name}");
            let step = ToolProgress::Ended(ToolResult::Completed);
            let tools = vec![ToolUpdate { call: "t".into(), step }];
            answer.add(&OutputSummary { tools, ..OutputSummary::default() });
            let reply = PromptReply::Stopped { stop_reason, tokens: None };
            assert_eq!(answer.interpret(reply.clone()), reply, "{name}, and a tool");
        }
        let failed =
            PromptReply::Failed { code: -32603, kind: ErrorKind::Passing, message: notice.into() };
        assert_eq!(Answer::default().interpret(failed.clone()), failed);
    }
}
