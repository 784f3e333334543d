//! What an agent's updates tell of its context: that it compacts, and which session is in force.
//!
//! Each update is read by itself, and every field of it for itself: one that is not as ACP has it
//! is taken for absent. What only several updates tell together is the
//! [`Detector`](crate::agent::detector::Detector)'s.

use greenroom_core::{Details, Lineage, Provenance, SUMMARY_BYTES_MAX, Sign, Signal, Source};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::{json, text};
use crate::agent::bounds::{ERROR_BYTES_MAX, append, cut, id};

/// The title and kind of the tool call that codex-acp and claude-agent-acp send in place of a
/// `compaction_update` to a client that did not ask for it (REAL-AGENTS).
const CALL_TITLE: &str = "Compact conversation";
const CALL_KIND: &str = "think";
/// A larger `_meta.hermes` is none: it is kept with the session, whole.
const PROVENANCE_BYTES_MAX: usize = 64 << 10;

/// What one update tells of the agent's context.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Clues {
    /// A compaction.
    pub report: Option<Report>,
    /// The hermes session in force.
    pub provenance: Option<Provenance>,
}

/// What one update tells of a compaction, or may tell.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// How it stands.
    Compaction(Signal),
    /// One more piece of its summary.
    SummaryChunk {
        /// Its `compactionId`.
        key: String,
        /// The piece's text.
        text: String,
    },
    /// How a tool call stands. It may be what stands for a compaction: only the first update of a
    /// call has the title that tells.
    Call {
        /// The call's id.
        id: String,
        /// Whether this update has that title.
        compacts: bool,
        /// How the call stands, as if it were a compaction.
        sign: Sign,
        /// What it says of its failure.
        error: Option<String>,
    },
}

/// Whether an update of the sort `word` may tell of the context without a `_meta`.
pub(super) fn may_tell(word: &str) -> bool {
    matches!(
        word,
        "compaction_update" | "compaction_summary_chunk" | "tool_call" | "tool_call_update"
    )
}

/// What an update of the sort `word` tells of the context. `params` are those of the whole
/// notification, `meta` is the update's `_meta`.
pub(super) fn clues(word: &str, meta: Option<&RawValue>, params: &RawValue) -> Option<Clues> {
    let (mut compression, mut provenance) = (None, None);
    if let Some(meta) = meta.and_then(object::<Meta>) {
        compression = meta.context_compression.and_then(compression_signal);
        provenance = meta.hermes.and_then(hermes_provenance);
    }
    let report = match word {
        "compaction_update" => nested(params).map(compaction),
        "compaction_summary_chunk" => nested(params).and_then(summary_chunk),
        "tool_call" | "tool_call_update" => nested(params).and_then(|update| call(word, update)),
        _ => compression.map(Report::Compaction),
    };
    (report.is_some() || provenance.is_some()).then_some(Clues { report, provenance })
}

/// The hermes session that a `_meta` tells of.
pub(super) fn meta_provenance(meta: &RawValue) -> Option<Provenance> {
    object::<Meta>(meta)?.hermes.and_then(hermes_provenance)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta<'a> {
    #[serde(borrow)]
    context_compression: Option<&'a RawValue>,
    #[serde(borrow)]
    hermes: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Params<'a> {
    #[serde(borrow)]
    update: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CompactionUpdate<'a> {
    #[serde(borrow)]
    compaction_id: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    summary: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CallUpdate<'a> {
    #[serde(borrow)]
    tool_call_id: Option<&'a RawValue>,
    #[serde(borrow)]
    title: Option<&'a RawValue>,
    #[serde(borrow)]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

/// A content block, or what wraps one in a tool call.
#[derive(Deserialize)]
struct Block<'a> {
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

/// What qwen's `/compress` shows as `_meta` of its message chunks.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Compression<'a> {
    #[serde(borrow)]
    phase: Option<&'a RawValue>,
    #[serde(borrow)]
    original_token_count: Option<&'a RawValue>,
    #[serde(borrow)]
    new_token_count: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// `_meta.hermes`. Today its fields stand in `sessionProvenance`, formerly they stood beside it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hermes<'a> {
    #[serde(borrow)]
    session_provenance: Option<&'a RawValue>,
    #[serde(borrow)]
    current_hermes_session_id: Option<&'a RawValue>,
    /// The older name of the former.
    #[serde(borrow)]
    hermes_session_id: Option<&'a RawValue>,
    #[serde(borrow)]
    previous_hermes_session_id: Option<&'a RawValue>,
    #[serde(borrow)]
    parent_hermes_session_id: Option<&'a RawValue>,
    #[serde(borrow)]
    reason: Option<&'a RawValue>,
    #[serde(borrow)]
    compaction: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HermesCompaction<'a> {
    #[serde(borrow)]
    last_mode: Option<&'a RawValue>,
}

fn compaction(update: CompactionUpdate<'_>) -> Report {
    let summary = update.summary.and_then(|raw| blocks_text(raw, SUMMARY_BYTES_MAX));
    let details = Details { summary, error: update.error.and_then(error), ..Details::default() };
    let sign = match update.status.and_then(text).as_deref() {
        Some("in_progress") => Sign::Started,
        Some("completed") => Sign::Completed,
        Some("failed") => Sign::Failed,
        Some("cancelled") => Sign::Cancelled,
        _ => Sign::Noted,
    };
    Report::Compaction(signal(sign, update.compaction_id.and_then(key), details))
}

fn summary_chunk(update: CompactionUpdate<'_>) -> Option<Report> {
    let key = update.compaction_id.and_then(key)?;
    let text = blocks_text(update.content?, SUMMARY_BYTES_MAX).unwrap_or_default();
    Some(Report::SummaryChunk { key, text })
}

fn call(word: &str, update: CallUpdate<'_>) -> Option<Report> {
    let is = |raw: Option<&RawValue>, wanted: &str| raw.and_then(text).as_deref() == Some(wanted);
    let compacts = is(update.title, CALL_TITLE)
        && (is(update.kind, CALL_KIND) || word == "tool_call_update" && update.kind.is_none());
    let sign = match update.status.and_then(text).as_deref() {
        Some("pending" | "in_progress") => Sign::Started,
        None if word == "tool_call" => Sign::Started,
        Some("completed") => Sign::Completed,
        Some("failed") => Sign::Failed,
        Some("cancelled") => Sign::Cancelled,
        _ => Sign::Noted,
    };
    let failed = update.content.filter(|_| sign == Sign::Failed);
    let error = failed.and_then(|raw| blocks_text(raw, ERROR_BYTES_MAX));
    Some(Report::Call { id: update.tool_call_id.and_then(key)?, compacts, sign, error })
}

/// A failure of `/compress` has no phase of its own: it is the error that answers the prompt. A
/// `done` after which the context is as it was found nothing to do.
fn compression_signal(raw: &RawValue) -> Option<Signal> {
    let compression: Compression = object(raw)?;
    let details = Details {
        tokens_before: compression.original_token_count.and_then(value),
        tokens_after: compression.new_token_count.and_then(value),
        error: compression.error.and_then(error),
        ..Details::default()
    };
    let same = details.tokens_before.is_some() && details.tokens_before == details.tokens_after;
    let sign = match compression.phase.and_then(text).as_deref() {
        Some("progress") => Sign::Started,
        Some("done") if same => Sign::Noop,
        Some("done") => Sign::Completed,
        Some("noop") => Sign::Noop,
        Some("failed" | "error") => Sign::Failed,
        Some("cancelled") => Sign::Cancelled,
        _ => Sign::Noted,
    };
    Some(signal(sign, None, details))
}

fn hermes_provenance(raw: &RawValue) -> Option<Provenance> {
    if PROVENANCE_BYTES_MAX < raw.get().len() {
        return None;
    }
    let outer: Hermes = object(raw)?;
    let inner: Hermes = outer.session_provenance.and_then(object).unwrap_or_default();
    let pick = |field: fn(&Hermes<'_>) -> Option<String>| field(&inner).or_else(|| field(&outer));
    let current = pick(|hermes| {
        let current = hermes.current_hermes_session_id.and_then(key);
        current.or_else(|| hermes.hermes_session_id.and_then(key))
    })?;
    let reason = pick(|hermes| hermes.reason.and_then(key));
    let mode = pick(|hermes| {
        let compaction: HermesCompaction = hermes.compaction.and_then(object)?;
        compaction.last_mode.and_then(key)
    });
    let compacted =
        reason.as_deref() == Some("compression") || mode.as_deref() == Some("session_split");
    // `previous` is the session of the turn's start: after two compactions in a turn it is not the
    // one that was compacted last, and after none it is still the same.
    let parent = pick(|hermes| hermes.parent_hermes_session_id.and_then(key));
    let at_start = pick(|hermes| hermes.previous_hermes_session_id.and_then(key))
        .filter(|previous| *previous != current);
    let previous = if compacted { parent.or(at_start) } else { at_start.or(parent) };
    Some(Provenance { current, previous, compacted, given: json(raw) })
}

fn signal(sign: Sign, key: Option<String>, details: Details) -> Signal {
    Signal { source: Source::Acp, sign, key, lineage: Lineage::default(), details }
}

fn nested<'a, T: Deserialize<'a>>(params: &'a RawValue) -> Option<T> {
    object(object::<Params<'_>>(params)?.update)
}

/// serde would take an array for an object, field by field.
fn object<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Option<T> {
    raw.get().starts_with('{').then(|| serde_json::from_str(raw.get()).ok())?
}

fn value<T: DeserializeOwned>(raw: &RawValue) -> Option<T> {
    serde_json::from_str(raw.get()).ok()
}

fn key(raw: &RawValue) -> Option<String> {
    text(raw).and_then(|text| id(&text))
}

fn error(raw: &RawValue) -> Option<String> {
    let words = text(raw).map_or_else(|| raw.get().to_owned(), |text| text.into_owned());
    (!words.is_empty()).then(|| cut(words, ERROR_BYTES_MAX))
}

/// The text in content blocks, one line feed between two blocks; none if there is none.
fn blocks_text(raw: &RawValue, bytes_max: usize) -> Option<String> {
    let blocks: Vec<&RawValue> = match raw.get().as_bytes().first() {
        Some(b'[') => serde_json::from_str(raw.get()).ok()?,
        _ => vec![raw],
    };
    let mut joined = String::new();
    for text in blocks.into_iter().filter_map(block_text) {
        if !joined.is_empty() {
            append(&mut joined, "\n", bytes_max);
        }
        append(&mut joined, &text, bytes_max);
    }
    (!joined.is_empty()).then_some(joined)
}

fn block_text(raw: &RawValue) -> Option<std::borrow::Cow<'_, str>> {
    let block: Block = object(raw)?;
    match block.text {
        Some(words) => text(words),
        None => object::<Block<'_>>(block.content?)?.text.and_then(text),
    }
}

#[cfg(test)]
mod tests {
    use Sign::{Cancelled, Completed, Failed, Noop, Noted, Started};

    use super::*;
    use crate::agent::acp::{Heard, hear};

    fn clues_of(update: &str) -> Option<Clues> {
        let line = format!(
            r#"{{"jsonrpc":"2.0","method":"session/update","params":{{"sessionId":"s","update":{update}}}}}"#
        );
        match hear(&line) {
            Ok(Heard::Notice(notice)) => {
                assert_eq!(notice.session.as_deref(), Some("s"), "{update}");
                notice.clues.map(|clues| *clues)
            }
            other => panic!("{other:?}"),
        }
    }

    fn report(update: &str) -> Option<Report> {
        clues_of(update)?.report
    }

    /// ARCHITECTURE 5, the most trusted detector: ACP's own update.
    #[test]
    fn a_compaction_update_tells_how_a_compaction_stands() {
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
            ("failed, an object", r#""compactionId":"c","status":"failed","error":{"code":1}"#,          Failed,    error(r#"{"code":1}"#)),
            ("called off",        r#""compactionId":"c","status":"cancelled""#,                          Cancelled, details()),
            ("a later status",    r#""compactionId":"c","status":"_paused""#,                            Noted,     details()),
            ("no status",         r#""compactionId":"c""#,                                               Noted,     details()),
        ];
        for (name, fields, sign, details) in cases {
            let told = report(&format!(r#"{{"sessionUpdate":"compaction_update",{fields}}}"#));
            let expected = signal(sign, Some("c".into()), details);
            assert_eq!(told, Some(Report::Compaction(expected)), "{name}");
        }
        let nameless = report(r#"{"sessionUpdate":"compaction_update","status":"completed"}"#);
        let expected = signal(Completed, None, details());
        assert_eq!(nameless, Some(Report::Compaction(expected)));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let long = "ä".repeat(SUMMARY_BYTES_MAX);
        let update = format!(
            r#"{{"sessionUpdate":"compaction_update","compactionId":"{long}","status":"failed","error":"x{long}","summary":[{{"text":"x{long}"}}]}}"#
        );
        let Some(Report::Compaction(told)) = report(&update) else { panic!() };
        assert_eq!(told.key, None);
        // One byte more would cut a character.
        let lengths = [told.details.summary, told.details.error].map(|text| text.map(|t| t.len()));
        assert_eq!(lengths, [Some(SUMMARY_BYTES_MAX - 1), Some(ERROR_BYTES_MAX - 1)]);
    }

    #[test]
    fn a_piece_of_a_summary_is_told() {
        let chunk = r#"{"sessionUpdate":"compaction_summary_chunk","compactionId":"c","content":{"type":"text","text":"a"}}"#;
        let expected = Report::SummaryChunk { key: "c".into(), text: "a".into() };
        assert_eq!(report(chunk), Some(expected));
        assert_eq!(report(r#"{"sessionUpdate":"compaction_summary_chunk","content":{}}"#), None);
    }

    /// REAL-AGENTS: what codex-acp and claude-agent-acp send to clients that did not ask.
    #[test]
    fn a_tool_call_may_stand_for_a_compaction() {
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
            ("it printed",     "tool_call_update", r#""status":"completed","content":[{"type":"content","content":{"type":"text","text":"yes"}}]"#, false, Completed, None),
        ];
        for (name, word, fields, compacts, sign, error) in cases {
            let error = error.map(str::to_owned);
            let expected = Report::Call { id: "t".into(), compacts, sign, error };
            assert_eq!(call(word, fields), Some(expected), "{name}");
        }
        assert_eq!(report(r#"{"sessionUpdate":"tool_call","title":"t"}"#), None);
    }

    /// REAL-AGENTS: qwen's `/compress`.
    #[test]
    fn a_chunk_may_tell_of_a_compression() {
        let told = |meta: &str| {
            let update = format!(
                r#"{{"sessionUpdate":"agent_message_chunk","content":{{"type":"text","text":"…"}},"_meta":{meta}}}"#
            );
            match report(&update)? {
                Report::Compaction(told) => {
                    assert_eq!((told.source, &told.key), (Source::Acp, &None), "{meta}");
                    let tokens = [told.details.tokens_before, told.details.tokens_after];
                    Some((told.sign, tokens))
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
            assert_eq!(told(meta), expected, "{meta}");
        }
    }

    /// SEEDS AM-13, AM-23: which hermes session is in force, by today's names and by the older.
    #[test]
    fn hermes_tells_its_session() {
        #[rustfmt::skip]
        let cases = [
            ("root",             r#"{"sessionProvenance":{"acpSessionId":"a","currentHermesSessionId":"a","rootHermesSessionId":"a","parentHermesSessionId":null,"sessionKind":"root","compressionDepth":0}}"#, Some(("a", None, false))),
            ("rotated",          r#"{"sessionProvenance":{"acpSessionId":"a","currentHermesSessionId":"b","parentHermesSessionId":"p","previousHermesSessionId":"a","reason":"compression"}}"#, Some(("b", Some("p"), true))),
            ("loaded later",     r#"{"sessionProvenance":{"currentHermesSessionId":"b","parentHermesSessionId":"p","sessionKind":"continuation"}}"#, Some(("b", Some("p"), false))),
            ("same as before",   r#"{"sessionProvenance":{"currentHermesSessionId":"b","previousHermesSessionId":"b","parentHermesSessionId":null}}"#, Some(("b", None, false))),
            ("another reason",   r#"{"sessionProvenance":{"currentHermesSessionId":"b","previousHermesSessionId":"a","reason":"branch"}}"#, Some(("b", Some("a"), false))),
            ("older",            r#"{"hermesSessionId":"b","compaction":{"lastMode":"session_split"}}"#,               Some(("b", None, true))),
            ("older, in place",  r#"{"hermesSessionId":"b","compaction":{"lastMode":"in_place"}}"#,                    Some(("b", None, false))),
            ("older, nested",    r#"{"sessionProvenance":{"hermesSessionId":"b","compaction":{"lastMode":"session_split"}}}"#, Some(("b", None, true))),
            ("older, beside",    r#"{"sessionProvenance":{"currentHermesSessionId":"b"},"compaction":{"lastMode":"session_split"}}"#, Some(("b", None, true))),
            ("no session",       r#"{"compaction":{"lastMode":"session_split"}}"#,                                     None),
            ("empty",            r#"{}"#,                                                                              None),
            ("no object",        r#""b""#,                                                                             None),
            ("odd fields",       r#"{"sessionProvenance":7,"hermesSessionId":8}"#,                                     None),
        ];
        for (name, hermes, expected) in cases {
            let update = format!(
                r#"{{"_meta":{{"hermes":{hermes}}},"title":"t","sessionUpdate":"session_info_update"}}"#
            );
            let expected = expected.map(|(current, previous, compacted)| Provenance {
                current: current.into(),
                previous: previous.map(str::to_owned),
                compacted,
                given: greenroom_core::Json::parse(hermes.into()).expect("JSON"),
            });
            let told = clues_of(&update).and_then(|clues| clues.provenance);
            assert_eq!(told, expected, "{name}, in an update");
            let answer = format!(r#"{{"_meta":{{"hermes":{hermes}}},"sessionId":"a"}}"#);
            assert_eq!(super::super::provenance(&answer), expected, "{name}, in an answer");
        }
        for answer in ["null", "{}", "[]", "", r#"[{"hermes":{"hermesSessionId":"b"}}]"#] {
            assert_eq!(super::super::provenance(answer), None, "{answer}");
        }
        let long = "x".repeat(PROVENANCE_BYTES_MAX);
        let large = format!(r#"{{"_meta":{{"hermes":{{"hermesSessionId":"b","x":"{long}"}}}}}}"#);
        assert_eq!(super::super::provenance(&large), None);
    }

    #[test]
    fn other_updates_tell_nothing_of_the_context() {
        for update in [
            r#"{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"contextCompression"}}"#,
            r#"{"sessionUpdate":"session_info_update","_meta":{"codex":{"threadStatus":{"type":"idle"}}}}"#,
            r#"{"sessionUpdate":"usage_update","used":1,"size":2,"_meta":{"_claude/model":"m"}}"#,
            r#"{"sessionUpdate":"from_the_future","_meta":null}"#,
        ] {
            assert_eq!(clues_of(update), None, "{update}");
        }
    }
}
