//! Parses what an agent's updates report about its context: compactions, and its hermes session.
//!
//! Each update is parsed alone, and each field alone: a malformed field counts as absent. The
//! compaction detector combines several updates.

use greenroom_core::{
    CompactionSignal, Details, Lineage, Provenance, SUMMARY_BYTES_MAX, SignalKind, Source,
};
use serde_json::value::RawValue;

use super::{
    bounds::{ERROR_BYTES_MAX, append_bounded, truncate},
    cause::redacted,
    fields::{Fields, elements, fields, lossy_text, object, text, value},
    hermes_meta, key,
};

/// The title and kind of the tool call that codex-acp and claude-agent-acp send in place of a
/// `compaction_update` to a client without that capability (RA).
const CALL_TITLE: &str = "Compact conversation";
const CALL_KIND: &str = "think";
/// What one update reports about the agent's context.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContextUpdate {
    /// A compaction.
    pub report: Option<CompactionReport>,
    /// The current hermes session.
    pub provenance: Option<Provenance>,
}

/// What one update reports, or may report, about a compaction.
#[derive(Clone, Debug, PartialEq)]
pub enum CompactionReport {
    /// A signal.
    Compaction(CompactionSignal),
    /// A chunk of its summary.
    SummaryChunk {
        /// Its `compactionId`.
        key: String,
        /// The chunk's text.
        text: String,
    },
    /// The status of a tool call, which may represent a compaction: only the first update of a call
    /// has the title that shows it.
    Call {
        /// The call's id.
        id: String,
        /// Whether this update has that title.
        compacts: bool,
        /// The call's status as the signal of a compaction.
        kind: SignalKind,
        /// The error text of a failed call.
        error: Option<String>,
    },
}

/// Whether an update of the type `name` may report about the context without a `_meta`.
pub(super) fn may_carry_context(name: &str) -> bool {
    matches!(
        name,
        "compaction_update" | "compaction_summary_chunk" | "tool_call" | "tool_call_update"
    )
}

/// Parses what an update of the type `name` reports about the context. `params` are those of the
/// whole notification, `meta` is the update's `_meta`.
pub(super) fn parse(
    name: &str,
    meta: Option<&RawValue>,
    params: &RawValue,
) -> Option<ContextUpdate> {
    let (mut compression, mut provenance) = (None, None);
    if let Some(meta) = meta.and_then(object::<Meta<'_>>) {
        compression = meta.context_compression.and_then(compression_signal);
        provenance = meta.hermes.and_then(hermes_meta::provenance);
    }
    let report = match name {
        "compaction_update" => nested(params).map(compaction),
        "compaction_summary_chunk" => nested(params).and_then(summary_chunk),
        "tool_call" | "tool_call_update" => nested(params).and_then(|update| call(name, update)),
        _ => compression.map(CompactionReport::Compaction),
    };
    (report.is_some() || provenance.is_some()).then_some(ContextUpdate { report, provenance })
}

/// Returns the hermes session in a `_meta`.
pub(super) fn meta_provenance(meta: &RawValue) -> Option<Provenance> {
    object::<Meta<'_>>(meta)?.hermes.and_then(hermes_meta::provenance)
}

fields! {
    struct Meta { context_compression: "contextCompression", hermes: "hermes" }

    struct Params { update: "update" }

    struct CompactionUpdate {
        compaction_id: "compactionId",
        status: "status",
        summary: "summary",
        error: "error",
        content: "content",
    }

    struct CallUpdate {
        tool_call_id: "toolCallId",
        title: "title",
        kind: "kind",
        status: "status",
        content: "content",
    }

    /// A content block, or its wrapper in a tool call.
    struct Block { text: "text", content: "content" }

    /// The `_meta` of message chunks by which qwen's `/compress` reports its progress.
    struct Compression {
        phase: "phase",
        original_token_count: "originalTokenCount",
        new_token_count: "newTokenCount",
        error: "error",
    }
}

fn compaction(update: CompactionUpdate<'_>) -> CompactionReport {
    let summary = update.summary.and_then(|raw| blocks_text(raw, SUMMARY_BYTES_MAX));
    let details = Details { summary, error: update.error.and_then(error), ..Details::default() };
    let kind = match update.status.and_then(text).as_deref() {
        Some("in_progress") => SignalKind::Started,
        Some("completed") => SignalKind::Completed,
        Some("failed") => SignalKind::Failed,
        Some("cancelled") => SignalKind::Cancelled,
        _ => SignalKind::Noted,
    };
    CompactionReport::Compaction(signal(kind, update.compaction_id.and_then(key), details))
}

fn summary_chunk(update: CompactionUpdate<'_>) -> Option<CompactionReport> {
    let key = update.compaction_id.and_then(key)?;
    let text = blocks_text(update.content?, SUMMARY_BYTES_MAX).unwrap_or_default();
    Some(CompactionReport::SummaryChunk { key, text })
}

fn call(name: &str, update: CallUpdate<'_>) -> Option<CompactionReport> {
    let is = |raw: Option<&RawValue>, wanted: &str| raw.and_then(text).as_deref() == Some(wanted);
    let compacts = is(update.title, CALL_TITLE)
        && (is(update.kind, CALL_KIND) || name == "tool_call_update" && update.kind.is_none());
    let kind = match update.status.and_then(text).as_deref() {
        Some("pending" | "in_progress") => SignalKind::Started,
        None if name == "tool_call" => SignalKind::Started,
        Some("completed") => SignalKind::Completed,
        Some("failed") => SignalKind::Failed,
        Some("cancelled") => SignalKind::Cancelled,
        _ => SignalKind::Noted,
    };
    let failed = update.content.filter(|_| kind == SignalKind::Failed);
    let error = failed.and_then(|raw| blocks_text(raw, ERROR_BYTES_MAX));
    let error = error.map(|text| redacted(&text).into_owned());
    Some(CompactionReport::Call { id: update.tool_call_id.and_then(key)?, compacts, kind, error })
}

/// Parses the signal of qwen's `/compress`. A failure has no phase: the response to the prompt is
/// an error. A `done` with an unchanged context had nothing to do.
fn compression_signal(raw: &RawValue) -> Option<CompactionSignal> {
    let compression: Compression<'_> = object(raw)?;
    let details = Details {
        tokens_before: compression.original_token_count.and_then(value),
        tokens_after: compression.new_token_count.and_then(value),
        error: compression.error.and_then(error),
        ..Details::default()
    };
    let same = details.tokens_before.is_some() && details.tokens_before == details.tokens_after;
    let kind = match compression.phase.and_then(text).as_deref() {
        Some("progress") => SignalKind::Started,
        Some("done") if same => SignalKind::Noop,
        Some("done") => SignalKind::Completed,
        Some("noop") => SignalKind::Noop,
        Some("failed" | "error") => SignalKind::Failed,
        Some("cancelled") => SignalKind::Cancelled,
        _ => SignalKind::Noted,
    };
    Some(signal(kind, None, details))
}

fn signal(kind: SignalKind, key: Option<String>, details: Details) -> CompactionSignal {
    CompactionSignal { source: Source::Acp, kind, key, lineage: Lineage::default(), details }
}

fn nested<'a, T: Fields<'a>>(params: &'a RawValue) -> Option<T> {
    object(object::<Params<'_>>(params)?.update?)
}

fn error(raw: &RawValue) -> Option<String> {
    let error = lossy_text(raw).map_or_else(|| raw.get().to_owned(), |text| text.into_owned());
    (!error.is_empty()).then(|| truncate(redacted(&error).into_owned(), ERROR_BYTES_MAX))
}

/// Returns the text of content blocks, joined by line feeds; `None` if there is no text.
fn blocks_text(raw: &RawValue, bytes_max: usize) -> Option<String> {
    let blocks: Vec<&RawValue> = match raw.get().as_bytes().first() {
        Some(b'[') => elements(raw),
        _ => vec![raw],
    };
    let mut joined = String::new();
    for text in blocks.into_iter().filter_map(block_text) {
        if !joined.is_empty() {
            append_bounded(&mut joined, "\n", bytes_max);
        }
        append_bounded(&mut joined, &text, bytes_max);
    }
    (!joined.is_empty()).then_some(joined)
}

fn block_text(raw: &RawValue) -> Option<std::borrow::Cow<'_, str>> {
    let block: Block<'_> = object(raw)?;
    match block.text {
        Some(raw) => lossy_text(raw),
        None => object::<Block<'_>>(block.content?)?.text.and_then(lossy_text),
    }
}

#[cfg(test)]
mod tests {
    use SignalKind::{Cancelled, Completed, Failed, Noop, Noted, Started};

    use super::*;
    use crate::acp::{Message, parse};

    fn context_of(update: &str) -> Option<ContextUpdate> {
        let line = format!(
            r#"{{"jsonrpc":"2.0","method":"session/update","params":{{"sessionId":"s","update":{update}}}}}"#
        );
        match parse(&line) {
            Ok(Message::Notification(notification)) => {
                assert_eq!(notification.session.as_deref(), Some("s"), "{update}");
                notification.context.map(|context| *context)
            }
            other => panic!("{other:?}"),
        }
    }

    fn report(update: &str) -> Option<CompactionReport> {
        context_of(update)?.report
    }

    /// A-5, the most trusted detector: ACP's own update.
    #[test]
    fn a_compaction_update_gives_the_compactions_status() {
        let details = Details::default;
        let summary = |text: &str| Details { summary: Some(text.into()), ..details() };
        let error = |text: &str| Details { error: Some(text.into()), ..details() };
        #[rustfmt::skip]
        let cases = [
            ("begun",             r#""compactionId":"c","status":"in_progress""#,                        Started,   details()),
            ("done",              r#""compactionId":"c","status":"completed""#,                          Completed, details()),
            ("done, summary",     r#""compactionId":"c","status":"completed","summary":[{"type":"text","text":"a\u00e4"},{"type":"image","data":""},{"type":"text","text":"b"}]"#, Completed, summary("aä\nb")),
            ("cleared summary",   r#""compactionId":"c","status":"completed","summary":null,"error":null"#, Completed, details()),
            ("odd summary",       r#""compactionId":"c","status":"completed","summary":{"text":7}"#,     Completed, details()),
            ("odd blocks",        r#""compactionId":"c","status":"completed","summary":[1,["x"],{"text":"a"}]"#, Completed, summary("a")),
            ("failed",            r#""compactionId":"c","status":"failed","error":"no \"tokens\"""#,     Failed,    error("no \"tokens\"")),
            ("failed, with a key", r#""compactionId":"c","status":"failed","error":"bad key sk-proj-abcDEF123456""#, Failed, error("bad key [redacted]")),
            ("failed, an object", r#""compactionId":"c","status":"failed","error":{"code":1}"#,          Failed,    error(r#"{"code":1}"#)),
            ("cancelled",         r#""compactionId":"c","status":"cancelled""#,                          Cancelled, details()),
            ("a later status",    r#""compactionId":"c","status":"_paused""#,                            Noted,     details()),
            ("no status",         r#""compactionId":"c""#,                                               Noted,     details()),
        ];
        for (name, fields, kind, details) in cases {
            let parsed = report(&format!(r#"{{"sessionUpdate":"compaction_update",{fields}}}"#));
            let expected = signal(kind, Some("c".into()), details);
            assert_eq!(parsed, Some(CompactionReport::Compaction(expected)), "{name}");
        }
        let nameless = report(r#"{"sessionUpdate":"compaction_update","status":"completed"}"#);
        let expected = signal(Completed, None, details());
        assert_eq!(nameless, Some(CompactionReport::Compaction(expected)));
    }

    #[test]
    fn texts_are_bounded() {
        let long = "ä".repeat(SUMMARY_BYTES_MAX);
        let update = format!(
            r#"{{"sessionUpdate":"compaction_update","compactionId":"{long}","status":"failed","error":"x{long}","summary":[{{"text":"x{long}"}}]}}"#
        );
        let Some(CompactionReport::Compaction(signal)) = report(&update) else { panic!() };
        assert_eq!(signal.key, None);
        // One byte more would cut a character.
        let lengths =
            [signal.details.summary, signal.details.error].map(|text| text.map(|t| t.len()));
        assert_eq!(lengths, [Some(SUMMARY_BYTES_MAX - 1), Some(ERROR_BYTES_MAX - 1)]);
    }

    #[test]
    fn a_summary_chunk_is_reported() {
        let chunk = r#"{"sessionUpdate":"compaction_summary_chunk","compactionId":"c","content":{"type":"text","text":"a"}}"#;
        let expected = CompactionReport::SummaryChunk { key: "c".into(), text: "a".into() };
        assert_eq!(report(chunk), Some(expected));
        assert_eq!(report(r#"{"sessionUpdate":"compaction_summary_chunk","content":{}}"#), None);
    }

    /// RA: what codex-acp and claude-agent-acp send to clients without the capability.
    #[test]
    fn a_tool_call_may_represent_a_compaction() {
        let call = |word: &str, fields: &str| {
            report(&format!(r#"{{"sessionUpdate":"{word}","toolCallId":"t",{fields}}}"#))
        };
        #[rustfmt::skip]
        let cases = [
            ("begun",          "tool_call",        r#""title":"Compact conversation","kind":"think","status":"in_progress""#, true,  Started,   None),
            ("no status",      "tool_call",        r#""title":"Compact conversation","kind":"think""#,                        true,  Started,   None),
            ("another kind",   "tool_call",        r#""title":"Compact conversation","kind":"execute""#,                      false, Started,   None),
            ("no kind",        "tool_call",        r#""title":"Compact conversation""#,                                       false, Started,   None),
            ("another title",  "tool_call",        r#""title":"Compact","kind":"think""#,                                     false, Started,   None),
            ("title again",    "tool_call_update", r#""title":"Compact conversation","status":"completed""#,                  true,  Completed, None),
            ("only a status",  "tool_call_update", r#""status":"completed""#,                                                 false, Completed, None),
            ("neither",        "tool_call_update", r#""_meta":{}"#,                                                           false, Noted,     None),
            ("failed",         "tool_call_update", r#""status":"failed","content":[{"type":"content","content":{"type":"text","text":"no"}}]"#, false, Failed, Some("no")),
            ("cancelled",      "tool_call_update", r#""status":"cancelled""#,                                                 false, Cancelled, None),
            ("it printed",     "tool_call_update", r#""status":"completed","content":[{"type":"content","content":{"type":"text","text":"yes"}}]"#, false, Completed, None),
        ];
        for (name, word, fields, compacts, kind, error) in cases {
            let error = error.map(str::to_owned);
            let expected = CompactionReport::Call { id: "t".into(), compacts, kind, error };
            assert_eq!(call(word, fields), Some(expected), "{name}");
        }
        assert_eq!(report(r#"{"sessionUpdate":"tool_call","title":"t"}"#), None);
    }

    /// RA: qwen's `/compress`.
    #[test]
    fn a_chunk_may_report_a_compression() {
        let parsed = |meta: &str| {
            let update = format!(
                r#"{{"sessionUpdate":"agent_message_chunk","content":{{"type":"text","text":"…"}},"_meta":{meta}}}"#
            );
            match report(&update)? {
                CompactionReport::Compaction(signal) => {
                    assert_eq!((signal.source, &signal.key), (Source::Acp, &None), "{meta}");
                    let tokens = [signal.details.tokens_before, signal.details.tokens_after];
                    Some((signal.kind, tokens))
                }
                other => panic!("{other:?}"),
            }
        };
        #[rustfmt::skip]
        let cases = [
            (r#"{"contextCompression":{"phase":"progress"},"source":"slash_command"}"#,                              Some((Started,   [None, None]))),
            (r#"{"contextCompression":{"phase":"done","originalTokenCount":23375,"newTokenCount":18451}}"#,          Some((Completed, [Some(23375), Some(18451)]))),
            (r#"{"contextCompression":{"phase":"done","originalTokenCount":7,"newTokenCount":7}}"#,                  Some((Noop,      [Some(7), Some(7)]))),
            (r#"{"contextCompression":{"phase":"done","originalTokenCount":-1,"newTokenCount":"7"}}"#,               Some((Completed, [None, None]))),
            (r#"{"contextCompression":{"phase":"done"}}"#,                                                           Some((Completed, [None, None]))),
            (r#"{"contextCompression":{"phase":"failed"}}"#,                                                         Some((Failed,    [None, None]))),
            (r#"{"contextCompression":{"phase":"resting"}}"#,                                                        Some((Noted,     [None, None]))),
            (r#"{"contextCompression":{}}"#,                                                                         Some((Noted,     [None, None]))),
            (r#"{"contextCompression":["done"]}"#,                                                                   None),
            (r#"{"contextCompression":null}"#,                                                                       None),
            (r#"{"usage":{"inputTokens":1}}"#,                                                                       None),
            (r#"["contextCompression"]"#,                                                                            None),
        ];
        for (meta, expected) in cases {
            assert_eq!(parsed(meta), expected, "{meta}");
        }
    }

    #[test]
    fn other_updates_report_nothing_about_the_context() {
        for update in [
            r#"{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"contextCompression"}}"#,
            r#"{"sessionUpdate":"session_info_update","_meta":{"codex":{"threadStatus":{"type":"idle"}}}}"#,
            r#"{"sessionUpdate":"usage_update","used":1,"size":2,"_meta":{"_claude/model":"m"}}"#,
            r#"{"sessionUpdate":"from_the_future","_meta":null}"#,
        ] {
            assert_eq!(context_of(update), None, "{update}");
        }
    }
}
